"""How a store stands: the figures of the overview, and what is wrong. Every read is bounded."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import Exchange, run, together
from sagastream.broker.wire import Words, unless_refused
from sagastream.client.evidence import survey
from sagastream.core.causes import Cause, Evidence, ServiceFacts
from sagastream.core.durations import spoken
from sagastream.core.filtering import Filter
from sagastream.core.indexing import PARKED, of_status
from sagastream.core.pauses import Pause
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.why import no_worker
from sagastream.core.why_out import LATE_MS
from sagastream.core.why_service import hangs
from sagastream.core.why_waits import pause_told, pauses_nothing
from sagastream.store import lineage, reach
from sagastream.store.finding import find
from sagastream.store.keys import StoreKeys
from sagastream.store.losses import Loss
from sagastream.store.reach import Reach
from sagastream_bridge.dashboard.unserved import Unserved, look
from sagastream_bridge.inspection import figures
from sagastream_bridge.inspection.figures import Figures, ServiceFigures

#: At most so many parked sagas are looked at for what the overview says of them.
MOST_PARKED: Final = 500
#: If the oldest command of a service waits for longer than this, that is told, in milliseconds.
_WAITS_LONG_MS: Final = 60_000


class Queue(NamedTuple):
    """A service, and the commands of it that are not answered yet."""

    facts: ServiceFacts
    figures: ServiceFigures
    unserved: Unserved | None = None  # set if nobody runs it, and something waits for it

    @property
    def waiting(self) -> int:
        return self.figures.unread + self.figures.held

    @property
    def unwanted(self) -> int:
        """How many commands wait if no saga waits for any of them; otherwise 0."""
        one = self.unserved
        return 0 if one is None or one.is_awaited or one.unwanted != self.waiting else one.unwanted


class Standing(Struct, frozen=True, kw_only=True):
    """How a store stands at one moment."""

    figures: Figures
    parked: int  # how many live sagas are parked …
    back: int  # … and how many are being undone
    aborted: int  # how many of those that have ended were undone
    full: str | None  # why no more sagas begin; None: they do
    evidence: Evidence
    queues: Sequence[Queue]
    losses: Sequence[Loss]
    away: Sequence[str] = ()  # what cannot be reached, and why

    @property
    def now_ms(self) -> int:
        return self.figures.at_ms

    @property
    def live(self) -> int:
        return self.figures.live.total

    @property
    def unread(self) -> int:
        """Requests that no worker has read."""
        return self.figures.requests + self.figures.interventions

    @property
    def quarantined(self) -> int:
        return self.figures.all_quarantined


class Stuck(Struct, frozen=True, kw_only=True):
    """Parked sagas that wait at the same command of the same service."""

    service: str
    command: str
    being_undone: bool
    count: int
    why: str  # why the first of them is parked
    oldest_ms: int
    sagas: tuple[SagaState, ...]


class Parked(Struct, frozen=True, kw_only=True):
    """What the parked sagas have in common."""

    groups: Sequence[Stuck]
    looked_at: int
    are_more: bool  # there are more than were looked at
    effects: int  # how many effects of them stand that are neither followed by the rest nor undone


class Notice(Struct, frozen=True, kw_only=True):
    """Something that is wrong, in words, and what helps."""

    level: str  # problem or warning
    text: str
    do: tuple[str, ...] = ()
    href: str | None = None  # the page that tells more


# --- what is read


def read(broker: Broker, keys: StoreKeys) -> Standing:
    """How a store stands, as far as it can be reached."""
    reached = run(broker.client, reach.look(keys))
    return reach.despite_refusals(broker.client, reached, lambda there: _standing(broker, there))


def _standing(broker: Broker, reached: Reach) -> Standing:
    client, keys = broker.client, reached.keys
    found = figures.of_reached(broker, reached)
    names = [service.name for service in found.services]
    evidence, (counts, full) = run(client, together(survey(keys, names), _indexed(keys)))
    waits = [service.name for service in found.services if service.unread + service.held]
    unserved = look(client, keys, evidence, waits)
    return Standing(
        figures=found,
        parked=counts[0],
        back=counts[1],
        aborted=counts[2],
        full=full,
        evidence=evidence,
        queues=[Queue(evidence.of(one.name), one, unserved.get(one.name)) for one in found.services],
        losses=lineage.losses(client, keys),
        away=tuple(reached.told()),
    )


def parked(keys: StoreKeys) -> Exchange[Parked]:
    """What the parked sagas have in common, of MOST_PARKED at most."""
    page = yield from find(keys, Filter(status="PARKED"), MOST_PARKED, counts=False)
    return Parked(
        groups=_groups(page.sagas),
        looked_at=len(page.sagas),
        are_more=page.cursor is not None,
        effects=sum(step.would_stay for state in page.sagas for step in state.steps),
    )


def _groups(states: Sequence[SagaState]) -> list[Stuck]:
    """By where they are parked, the most frequent first."""
    found: dict[tuple[str, str, bool], list[tuple[SagaState, int]]] = {}
    for state in states:
        for number in state.parked_steps[:1]:
            step = state.steps[number - 1]
            place = (step.definition.service, step.command, step.being_undone)
            found.setdefault(place, []).append((state, number))
    groups = [
        Stuck(
            service=service,
            command=command,
            being_undone=being_undone,
            count=len(those),
            why=str(those[0][0].steps[those[0][1] - 1].parked),
            oldest_ms=min(state.updated_ms for state, _ in those),
            sagas=tuple(state for state, _ in those),
        )
        for (service, command, being_undone), those in found.items()
    ]
    return sorted(groups, key=lambda group: (-group.count, group.service, group.command))


def _indexed(keys: StoreKeys) -> Exchange[tuple[list[int], str | None]]:
    """How many sagas are parked, are undone, and were aborted; and why no more begin."""
    names = (PARKED, of_status(SagaStatus.COMPENSATING), of_status(SagaStatus.ABORTED))
    asked: list[Words] = [("ZCARD", one.index(name)) for name in names for one in keys.partitions]
    asked += [("GET", one.full) for one in keys.partitions]
    answers, each = (yield asked), len(keys.partitions)
    counts = [sum(unless_refused(answer, 0) for answer in answers[at : at + each]) for at in range(0, 3 * each, each)]
    texts = [unless_refused(answer, None) for answer in answers[3 * each :]]
    return counts, next((text.decode(errors="backslashreplace") for text in texts if text is not None), None)


# --- what is wrong


def notices(found: Standing) -> list[Notice]:
    """What is wrong in a store, the worst first."""
    nodes = ("sagastream doctor  # says more about the nodes",)
    away = [Notice(level="problem", text=text, do=nodes) for text in found.away]
    return sorted([*away, *_notices(found)], key=lambda one: one.level != "problem")


def _notices(found: Standing) -> Iterator[Notice]:
    evidence = found.evidence
    for cause in evidence.broker:
        yield _problem(cause)
    if found.full is not None and not evidence.broker:
        text = f"No saga begins, since the store is full: {found.full}"
        yield Notice(level="problem", text=text, do=("sagastream doctor  # says what fills it, and what helps",))
    for loss in found.losses:
        do = ("sagastream doctor --after-failover", "sagastream doctor --settled  # once that is dealt with")
        yield Notice(level="problem", text=f"{loss.text}: {loss.evidence}", do=do)
    for cause in no_worker(evidence):
        waits = found.unread or found.live > found.parked
        yield _problem(cause) if waits else Notice(level="warning", text=cause.text, do=cause.do)
    late_ms = found.figures.timer_lag_ms
    if late_ms > LATE_MS and any(worker.is_alive for worker in evidence.workers):
        text = f"The workers are behind: the time of a saga came {spoken(late_ms)} ago, and none has seen to it"
        yield Notice(level="problem", text=text, do=("sagastream worker  # starts another one",))
    for one in evidence.pauses:
        yield _of_pause(one, found)
    for queue in found.queues:
        yield from _of_queue(queue, evidence)
    if found.parked:
        text = f"{_counted(found.parked, 'saga is', 'sagas are')} parked: a person must say how to go on"
        yield Notice(level="warning", text=text, href="/parked")
    if found.quarantined:
        text = f"{_counted(found.quarantined, 'message was', 'messages were')} set aside: see why, and what to do"
        yield Notice(level="warning", text=text, href="/quarantine")


def of_service(queue: Queue, found: Standing) -> list[Notice]:
    """What is wrong with one service, and that it is paused."""
    pauses = [_of_pause(one, found) for one in found.evidence.pauses if one.service == queue.facts.name]
    return [*pauses, *_of_queue(queue, found.evidence)]


def of_strangers(found: Standing) -> dict[str, list[tuple[Pause, Notice]]]:
    """What is paused of services that the store does not know, by service."""
    known = {queue.facts.name for queue in found.queues}
    strangers: dict[str, list[tuple[Pause, Notice]]] = {}
    for one in found.evidence.pauses:
        if one.service not in known:
            strangers.setdefault(one.service, []).append((one, _of_pause(one, found)))
    return strangers


def _of_pause(one: Pause, found: Standing) -> Notice:
    if nothing := pauses_nothing(one, found.evidence):
        text = f"{pause_told(one, found.now_ms)}; it holds nothing: {nothing}"
    else:
        # The index of what is held knows services, and no commands.
        beside = [of for of in found.evidence.pauses if of.service == one.service]
        pauses = sum(not pauses_nothing(of, found.evidence) for of in beside)
        held = _counted(found.figures.held_sagas.get(one.service, 0), "saga is", "sagas are")
        by = f", by its {pauses} pauses together" if pauses > 1 else ""
        text = f"{pause_told(one, found.now_ms)}; {held} held at this service{by}"
    do = (f"sagastream resume {one.words} --reason TEXT  # sends what is held",)
    return Notice(level="warning", text=text, do=do, href=f"/services#service-{one.service}")


def _of_queue(queue: Queue, evidence: Evidence) -> Iterator[Notice]:
    facts, href = queue.facts, f"/services#service-{queue.facts.name}"
    if not facts.alive:
        if queue.unserved is not None:
            yield _unserved(queue, queue.unserved.cause, href)
        return
    oldest: dict[str, Cause] = {}
    for handler in sorted((one for one in facts.handlers if one.overdue), key=lambda one: one.since_ms, reverse=True):
        if facts.is_alive(handler.process):
            oldest[handler.process] = hangs(handler, evidence.now_ms)
    for cause in oldest.values():
        yield Notice(level="problem", text=f"Service {facts.name}: {cause.text}", do=cause.do, href=href)
    for one in {left.why: left for left in facts.unopened if facts.is_alive(left.process)}.values():
        text = f"Service {facts.name}: process {one.process} cannot open {one.command} of saga {one.saga_id}: {one.why}"
        yield Notice(
            level="problem", text=text, do=("give it the key: the file that SAGASTREAM_KEYS names",), href=href
        )
    waits_ms = queue.figures.oldest_command_ms or 0
    if waits_ms > _WAITS_LONG_MS and queue.figures.unread and not oldest:
        text = f"Service {facts.name} is behind: its oldest command has waited for {spoken(waits_ms)}"
        do = (f"sagastream service MODULE:NAME  # starts another process of {facts.name}",)
        yield Notice(level="warning", text=text, do=do, href=href)


def _unserved(queue: Queue, cause: Cause, href: str) -> Notice:
    """That nobody runs a service for which something waits."""
    if queue.unwanted:
        text = f"{cause.text}; no saga waits for {_counted(queue.unwanted, 'command', 'commands')} of it"
        do = (f"sagastream drop-commands {queue.facts.name}  # drops what no saga waits for",)
        return Notice(level="warning", text=text, do=do, href=href)
    text = f"{cause.text}; {_counted(queue.waiting, 'command waits', 'commands wait')} for one"
    return Notice(level="problem", text=text, do=cause.do, href=href)


def _problem(cause: Cause) -> Notice:
    return Notice(level="problem", text=cause.text, do=cause.do)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
