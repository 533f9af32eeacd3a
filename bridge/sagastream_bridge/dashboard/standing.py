"""How a store stands: the figures of the overview, and what is wrong. Every read is bounded."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import redis
from msgspec import Struct

from sagastream.broker import wire
from sagastream.broker.entries import time_of
from sagastream.broker.exchange import Exchange, all_of, run, together
from sagastream.broker.wire import or_raise
from sagastream.client.evidence import survey
from sagastream.client.finding import find
from sagastream.core.causes import Cause, Evidence, ServiceFacts
from sagastream.core.durations import spoken
from sagastream.core.filtering import Filter
from sagastream.core.indexing import PARKED, of_status
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.why import no_worker
from sagastream.core.why_out import LATE_MS, hangs, nobody
from sagastream.store import lineage, published
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.lineage import Loss

#: At most so many parked sagas are looked at for what the overview says of them.
MOST_PARKED: Final = 500
#: If the oldest command of a service waits for longer than this, that is told, in milliseconds.
_WAITS_LONG_MS: Final = 60_000


class Queue(Struct, frozen=True, kw_only=True):
    """The commands of a service that are not answered yet."""

    facts: ServiceFacts
    held: int  # how many processes have read
    oldest_ms: int | None  # when the oldest one was added; None: there is none

    @property
    def waiting(self) -> int:
        return self.facts.unread + self.held


class Standing(Struct, frozen=True, kw_only=True):
    """The figures of a store at one moment."""

    now_ms: int
    live: int
    parked: int  # of those that are live
    back: int  # of those that are live: they are being undone
    ended: int  # and still kept
    aborted: int  # of those that have ended
    unread: int  # requests that no worker has read yet
    quarantined: int
    late_ms: int  # for how long the time of a live saga has passed, of the one that has waited longest
    full: str | None  # why no more sagas begin; None: they do
    used_bytes: int
    most_bytes: int  # 0: no limit
    evidence: Evidence
    queues: Sequence[Queue]
    losses: Sequence[Loss]


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


def read(client: "redis.Redis", keys: StoreKeys) -> Standing:
    """The figures of a store."""
    return run(client, _look(keys, lineage.losses(client, keys)))


def _look(keys: StoreKeys, losses: Sequence[Loss]) -> Exchange[Standing]:
    services = yield from published.services(keys)
    ((now_ms, used, most), partitions), (evidence, queues) = yield from together(
        together(_server(), all_of([_partition(one) for one in keys.partitions])),
        together(survey(keys, services), all_of([_queue(keys, service) for service in services])),
    )
    aside = yield from _quarantined(keys, services)
    counts: Counter[str] = Counter()
    dues, full = [], None
    for one, due_ms, text in partitions:
        counts.update(one)
        dues += [due_ms] if due_ms is not None else []
        full = full or text
    return Standing(
        now_ms=now_ms,
        live=counts["live"],
        parked=counts["parked"],
        back=counts["back"],
        aborted=counts["aborted"],
        ended=counts["ended"],
        unread=counts["unread"],
        quarantined=aside,
        late_ms=max(0, now_ms - min(dues)) if dues else 0,
        full=full,
        used_bytes=used,
        most_bytes=most,
        evidence=evidence,
        queues=[
            Queue(facts=evidence.of(service), held=held, oldest_ms=oldest_ms)
            for service, (held, oldest_ms) in zip(services, queues, strict=True)
        ],
        losses=losses,
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


def _server() -> Exchange[tuple[int, int, int]]:
    time, info = yield [("TIME",), ("INFO", "memory")]
    lines = (line.partition(b":") for line in _read(info, b"").splitlines())
    facts = {name: value for name, colon, value in lines if colon}
    used, most = (int(facts.get(name, b"0")) for name in (b"used_memory", b"maxmemory"))
    return wire.milliseconds(or_raise(time)), used, most


def _partition(one: Partition) -> Exchange[tuple[dict[str, int], int | None, str | None]]:
    """Its counts; when the next of its sagas is due; and why no more begin."""
    answers = yield [
        ("ZCARD", one.timers),
        ("ZCARD", one.index(PARKED)),
        ("ZCARD", one.index(of_status(SagaStatus.COMPENSATING))),
        ("ZCARD", one.index(of_status(SagaStatus.ABORTED))),
        ("ZCARD", one.ended),
        ("XLEN", one.requests),
        ("XLEN", one.interventions),
        ("ZRANGEBYSCORE", one.timers, "-inf", "(+inf", "WITHSCORES", "LIMIT", 0, 1),
        ("GET", one.full),
    ]
    live, stuck, back, aborted, ended, requests, interventions = (_read(answer, 0) for answer in answers[:7])
    first, full = _read(answers[7], []), _read(answers[8], None)
    counts = {"live": live, "parked": stuck, "back": back, "aborted": aborted, "ended": ended}
    counts["unread"] = requests + interventions
    return counts, int(float(first[1])) if first else None, None if full is None else _text(full)


def _queue(keys: StoreKeys, service: str) -> Exchange[tuple[int, int | None]]:
    streams = [partition.commands(service) for partition in keys.partitions]
    asked: list[wire.Words] = [("XPENDING", stream, service) for stream in streams]
    asked += [("XRANGE", stream, "-", "+", "COUNT", 1) for stream in streams]
    answers = yield asked
    held = sum(_read(answer, [0])[0] for answer in answers[: len(streams)])
    times = [time_of(page[0][0]) for page in (_read(answer, []) for answer in answers[len(streams) :]) if page]
    return held, min(times, default=None)


def _quarantined(keys: StoreKeys, services: Sequence[str]) -> Exchange[int]:
    streams = [partition.quarantine for partition in keys.partitions]
    streams += [partition.quarantine_of(service) for service in services for partition in keys.partitions]
    answers = yield [("XLEN", stream) for stream in streams]
    return sum(_read(answer, 0) for answer in answers)


def _read(answer: Any, instead: Any) -> Any:
    """An answer; something else if the server refuses it, as if the key has another type. The doctor tells of that."""
    return instead if isinstance(answer, redis.ResponseError) else answer


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


# --- what is wrong


def notices(found: Standing) -> Iterator[Notice]:
    """What is wrong in a store, the worst first."""
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
    if found.late_ms > LATE_MS and any(worker.is_alive for worker in evidence.workers):
        text = f"The workers are behind: the time of a saga came {spoken(found.late_ms)} ago, and none has seen to it"
        yield Notice(level="problem", text=text, do=("sagastream worker  # starts another one",))
    for queue in found.queues:
        yield from _of_queue(queue, evidence)
    if found.parked:
        text = f"{_counted(found.parked, 'saga is', 'sagas are')} parked: a person must say how to go on"
        yield Notice(level="warning", text=text, href="/parked")
    if found.quarantined:
        text = f"{_counted(found.quarantined, 'message was', 'messages were')} set aside, since nobody could read them"
        yield Notice(level="warning", text=text, href="/quarantine")


def of_service(queue: Queue, evidence: Evidence) -> list[Notice]:
    """What is wrong with one service."""
    return list(_of_queue(queue, evidence))


def _of_queue(queue: Queue, evidence: Evidence) -> Iterator[Notice]:
    facts, href = queue.facts, f"/services#service-{queue.facts.name}"
    if (cause := nobody(facts, evidence.names, evidence.now_ms)) is not None:
        if queue.waiting:
            text = f"{cause.text}; {_counted(queue.waiting, 'command waits', 'commands wait')} for one"
            yield Notice(level="problem", text=text, do=cause.do, href=href)
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
    waits_ms = 0 if queue.oldest_ms is None else evidence.now_ms - queue.oldest_ms
    if waits_ms > _WAITS_LONG_MS and facts.unread and not oldest:
        text = f"Service {facts.name} is behind: its oldest command has waited for {spoken(waits_ms)}"
        do = (f"sagastream service MODULE:NAME  # starts another process of {facts.name}",)
        yield Notice(level="warning", text=text, do=do, href=href)


def _problem(cause: Cause) -> Notice:
    return Notice(level="problem", text=cause.text, do=cause.do)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
