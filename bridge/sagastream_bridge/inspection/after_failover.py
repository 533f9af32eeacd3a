"""After a failover that lost writes: which sagas say other than what was done?

The store cannot tell by itself: its sagas, records and indexes went back together. The services can. So each is asked
which of its effects stand, and that is compared with the sagas. A service that does not answer is judged by its
records, which tell less.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

import redis

from sagastream.broker import exchange
from sagastream.broker.connection import Broker
from sagastream.broker.scripting import added_even_if_full
from sagastream.broker.wire import or_raise, round_trip
from sagastream.client.blocking import SagaClient
from sagastream.core.back import told_to_undo
from sagastream.core.commands import Command, ok
from sagastream.core.phases import Phase
from sagastream.core.saga import Found as FoundSaga
from sagastream.core.saga import SagaState
from sagastream.core.sending import Published
from sagastream.core.step_state import Step
from sagastream.core.steps import AS_PUBLISHED, STANDING
from sagastream.errors import CannotBuild, QuarantineError, UnreadableSaga
from sagastream.store import heartbeat, layout, lineage, published, reach, sagas, told
from sagastream.store.quarantine import Quarantine
from sagastream_bridge.inspection.evidence import ASKED_BY, KEYS_AT_ONCE, NoAnswer, Page, Questions, Where, recorded
from sagastream_bridge.inspection.findings import OK, PROBLEM, REPAIRED, WARNING, Finding
from sagastream_bridge.inspection.reconcile import Difference, Effect, Found, differences
from sagastream_bridge.inspection.workers_looked import WorkersLooked

#: How many sagas one round trip reads.
_PAGE: Final = 100
#: How often a difference is looked at again, and how long to wait in between, in seconds. A store at work moves while
#: it is read, and an effect that is overruled is undone a moment after its saga has ended.
_LOOKS: Final = 3
_PAUSE_S: Final = 0.5
#: How long to wait until a service has undone an effect, in seconds.
_UNDONE_WITHIN_S: Final = 30.0
#: The number of the partition whose node holds what belongs to the whole store.
_SHARED: Final = 0
#: … of which nobody but people can know whether something is lost.
_OF_PEOPLE: Final = (
    "what people wrote in the lost time is lost, too: deploy definitions, pause services and begin bulks again if they "
    "are not there"
)
#: Among how many of the newest quarantined messages to look for the answer to an undo.
_NEWEST: Final = 1000


class AfterFailover:
    """Compares the sagas of a store with the effects of their services."""

    def __init__(self, broker: Broker, *, since_ms: int, repair: bool = False) -> None:
        """
        Args:
            since_ms: sagas and effects that have not changed since then are not looked at, live sagas excepted.
            repair: undo the effects that stand although their sagas say that nothing of them remains.
        """
        self._store: redis.Redis = broker.client
        self._keys = layout.look(broker)
        self._client = SagaClient(broker)
        self._since_ms = since_ms
        self._repair = repair
        self._asked: dict[str, Questions] = {}  # by service: those that answer
        self._services: Published = {}  # what each publishes
        self._looked_at = Counter[str]()

    def examine(self) -> Iterator[Finding]:
        there = exchange.run(self._store, reach.look(self._keys))
        for text in there.told():
            yield Finding(level=PROBLEM, about="cluster", text=f"{text}; look again when it is back")
        if there.shared is not None:
            text = f"what belongs to the whole store cannot be read, so nothing can be compared: {there.shared}"
            yield Finding(level=PROBLEM, about="cluster", text=text)
            return
        self._keys = there.keys
        is_worked = heartbeat.worker_is_alive(self._store, self._keys)
        silent = [*WorkersLooked(self._store, self._keys).wait()] if is_worked else []
        yield from silent
        losses = lineage.losses(self._store, self._keys)
        for loss in losses:
            yield Finding(level=WARNING, about="failover", text=f"{loss.text}: {loss.evidence}")
        if any(loss.is_of(_SHARED) for loss in losses):
            yield Finding(level=WARNING, about="failover", text=_OF_PEOPLE)
        if not is_worked:
            text = "no worker is running, so no service can be asked: sagastream worker"
            yield Finding(level=PROBLEM, about="workers", text=text)
            return
        names = exchange.run(self._store, published.services(self._keys))
        self._services = published.read(self._store, self._keys, names)
        suspects: dict[Where, tuple[str, Effect]] = {}  # the steps that may differ, with what their services say
        for service in sorted(self._services):
            yield self._heard(service, suspects)
        differing = self._looked_at_again(suspects)
        if self._repair:
            yield from self._repaired(differing, suspects)
        for where, found in sorted(differing.items()):
            yield _finding(found, suspects[where][0])
        otherwise = [*self._told_otherwise()]
        yield from otherwise
        if not (differing or otherwise or silent) and there.is_whole:
            text = f"effects compared: {sum(self._looked_at.values())}; every saga says what was done"
            yield Finding(level=OK, about="sagas", text=text)

    # --- what may differ

    def _heard(self, service: str, suspects: dict[Where, tuple[str, Effect]]) -> Finding:
        """Compare what a service says with the sagas; add what may differ to `suspects`."""
        answers, seen = STANDING in self._services[service], 0
        try:
            for page in self._reported(service) if answers else recorded(self._store, self._keys, service):
                seen += len(page)
                self._looked_at.update(page.values())
                for found in self._differences(page):
                    suspects[Where(found.saga_id, found.step)] = service, found.effect
        except NoAnswer as error:
            del self._asked[service]
            text = f"it did not say which of its effects stand: {error}; not all of it was compared"
            return Finding(level=PROBLEM, about=f"service {service}", text=text)
        if answers:
            return Finding(level=OK, about=f"service {service}", text="it said which of its effects stand")
        if not seen and not self._store.exists(self._keys.published(service)):
            text = "it has never published a command, and has no records: there is nothing to compare"
            return Finding(level=OK, about=f"service {service}", text=text)
        text = (
            f"it has no command {STANDING}: it was judged by its records, which live for two days and went back "
            "together with the sagas; effects without a record are not seen"
        )
        return Finding(level=WARNING, about=f"service {service}", text=text)

    def _reported(self, service: str) -> Iterator[Page]:
        """What a service says: of all that has changed, and of what sagas say that it has done."""
        questions = self._asked[service] = Questions(self._client, self._store, self._keys, service)
        yield from questions.since(self._since_ms)
        done = self._done_by(service)
        while steps := list(islice(done, KEYS_AT_ONCE)):
            yield questions.of(steps)

    def _done_by(self, service: str) -> Iterator[Where]:
        """The steps that a service has done, as the sagas say that changed since then. What nothing undoes is left
        out: it may have no effect that a service keeps."""
        ids = (
            partition.saga_id(key.decode(errors="backslashreplace"))
            for partition in self._keys.partitions
            for key in self._store.scan_iter(partition.saga("*"), _PAGE)
        )
        saga_ids = (saga_id for saga_id in ids if not saga_id.startswith(ASKED_BY))
        while page := list(islice(saga_ids, _PAGE)):
            for saga_id, state in self._read(page).items():
                if isinstance(state, SagaState) and (not state.ended or state.updated_ms >= self._since_ms):
                    for number, step in enumerate(state.steps, 1):
                        is_done = step.definition.service == service and step.phase is Phase.COMPLETED
                        if is_done and self._undo_of(step) is not None:
                            yield Where(saga_id, number)

    def _differences(self, page: Page) -> Iterator[Found]:
        by_saga: dict[str, dict[int, Effect]] = defaultdict(dict)
        for where, effect in page.items():
            by_saga[where.saga_id][where.step] = effect
        saga_ids = iter(by_saga)
        while some := list(islice(saga_ids, _PAGE)):
            for saga_id, state in self._read(some).items():
                if not isinstance(state, UnreadableSaga):
                    yield from differences(saga_id, state, by_saga[saga_id])

    def _told_otherwise(self) -> Iterator[Finding]:
        """The sagas of which another end may have been told than they have now."""
        kept = told.kept(self._store, self._keys)
        ends = iter([end for end in kept if not end.saga_id.startswith(ASKED_BY)])
        while page := list(islice(ends, _PAGE)):
            states = self._read({end.saga_id for end in page})
            for end in page:
                if end.saga_id not in states:
                    continue  # its node is away
                state = states[end.saga_id]
                about, was = f"saga {end.saga_id}", f"it may have been told to have ended {end.status}"
                if state is None:
                    yield Finding(level=PROBLEM, about=about, text=f"{was}, and there is no such saga; {_GONE}")
                elif isinstance(state, SagaState) and state.ended and state.status != end.status:
                    text = f"{was}, and has ended {state.status}; tell whoever relies on that"
                    yield Finding(level=PROBLEM, about=about, text=text)
                elif isinstance(state, SagaState) and not state.ended:
                    text = f"{was}, and goes on from an earlier state; look again when it has ended"
                    yield Finding(level=WARNING, about=about, text=text)

    def _looked_at_again(self, suspects: dict[Where, tuple[str, Effect]]) -> dict[Where, Found]:
        """Those that differ each time, while their saga does not move."""
        differing: dict[Where, Found] = {}
        for look in range(_LOOKS):
            if look:
                time.sleep(_PAUSE_S)  # nothing tells when a store at work has come to rest
            left = iter(suspects if not look else list(differing))
            differing = {}
            while page := list(islice(left, KEYS_AT_ONCE)):
                before = self._read({where.saga_id for where in page})
                effects = self._effects_now({where: suspects[where] for where in page})
                after = self._read({where.saga_id for where in page})
                for found in self._differences(effects):
                    if _version(before.get(found.saga_id)) == _version(after.get(found.saga_id)):
                        differing[Where(found.saga_id, found.step)] = found
            if not differing:
                break
        return differing

    def _effects_now(self, suspects: dict[Where, tuple[str, Effect]]) -> Page:
        """What services say now, of at most KEYS_AT_ONCE steps; of those that do not answer, what they said before, or
        their records."""
        effects = {where: effect for where, (_, effect) in suspects.items()}
        for service, questions in self._asked.items():
            if theirs := [where for where, (one, _) in suspects.items() if one == service]:
                with suppress(NoAnswer):
                    effects |= questions.of(theirs)
        return effects

    def _read(self, saga_ids: Collection[str]) -> dict[str, FoundSaga]:
        """These sagas, without those whose nodes are away."""
        return exchange.run(self._store, sagas.load_there(self._keys, saga_ids))[0]

    # --- set right

    def _repaired(
        self, differing: dict[Where, Found], suspects: Mapping[Where, tuple[str, Effect]]
    ) -> Iterator[Finding]:
        """Undo what stands, of each saga the last step first. Those that are undone are removed from `differing`."""
        standing = [where for where, found in differing.items() if found.difference is Difference.STANDS]
        while standing:
            last = {where.saga_id: where for where in sorted(standing)}
            standing = [where for where in standing if last[where.saga_id] != where]
            left = iter(last.values())
            while page := list(islice(left, KEYS_AT_ONCE)):
                for where in self._undone([(where, suspects[where][0]) for where in page]):
                    del differing[where]
                    text = f"step {where.step}: its effect in service {suspects[where][0]} stood, and is undone now"
                    yield Finding(level=REPAIRED, about=f"saga {where.saga_id}", text=text)

    def _undone(self, standing: Sequence[tuple[Where, str]]) -> list[Where]:
        """Send the compensations of these steps, and wait. Returns those of which the services say that they are
        undone."""
        states = self._read({where.saga_id for where, _ in standing})
        sent: dict[Where, Command] = {}
        for where, service in standing:
            state = states.get(where.saga_id)
            if service in self._asked and isinstance(state, SagaState):
                command = self._compensation(state, where)
                if command is not None:
                    sent[where] = command
                    self._send(command)
        if not sent:
            return []
        until_s = time.monotonic() + _UNDONE_WITHIN_S
        while not all(self._is_answered(command) for command in sent.values()) and time.monotonic() < until_s:
            time.sleep(_PAUSE_S / 5)
        now = self._effects_now({where: (command.service, Effect.DONE) for where, command in sent.items()})
        undone = [where for where in sent if now[where] is not Effect.DONE]
        self._drop_answers([sent[where] for where in undone])
        return undone

    def _undo_of(self, step: Step) -> str | None:
        """The command that undoes a step; None: nothing does, or nobody says what."""
        definition = step.definition
        if step.compensation or definition.compensation != AS_PUBLISHED:
            return step.compensation or definition.compensation
        return self._services.get(definition.service, {}).get(definition.transaction)

    def _compensation(self, state: SagaState, where: Where) -> Command | None:
        """The command that undoes a step, as the orchestrator would send it; None: nothing does, or what that is to be
        told cannot be built."""
        step = state.steps[where.step - 1]
        undo = self._undo_of(step)
        if undo is None:
            return None
        try:
            to_undo = told_to_undo(state, where.step)
        except CannotBuild:
            return None
        return Command(
            service=step.definition.service,
            type=undo,
            saga_id=where.saga_id,
            step=where.step,
            params=step.params,
            result=step.result,
            compensating=True,
            attempt=step.compensation_attempt + 1,
            begun_ms=state.begun_ms,
            retried=True,
            undo=to_undo,
            input=state.input,
            definition=None if state.definition is None else state.definition.name,
        )

    def _send(self, command: Command) -> None:
        """Send a compensation as the orchestrator does. The service must not know it as done: it would not do it."""
        partition = self._keys.of(command.saga_id)
        forgetting = ("HDEL", partition.done(command.service, command.begun_ms), command.record)
        sending = added_even_if_full(partition.commands(command.service), command.fields())
        for answer in round_trip(self._store, [("MULTI",), forgetting, sending, ("EXEC",)]):
            or_raise(answer)

    def _is_answered(self, command: Command) -> bool:
        done = self._keys.of(command.saga_id).done(command.service, command.begun_ms)
        return bool(self._store.hexists(done, command.record))

    def _drop_answers(self, commands: Sequence[Command]) -> None:
        """Drop the answers from the quarantine: their sagas have ended, so a worker has set them aside."""
        expected = {(command.saga_id, ok(command.type)) for command in commands}
        quarantine = Quarantine(self._store, self._keys)
        for message in islice(quarantine.newest_first(), _NEWEST):
            if (message.saga_id, message.kind) in expected:
                with suppress(QuarantineError):
                    quarantine.drop(message.id, actor="sagastream doctor", reason="after a failover")


_GONE: Final = (
    "its begin is lost, or it ended longer ago than sagas are kept: begin it again with the same id and steps, or undo "
    "the effect by hand"
)
_REMEDIES: Final = {
    Difference.NO_SAGA: _GONE,
    Difference.STANDS: "sagastream doctor --after-failover --repair undoes it, if the service says how",
    Difference.MISSING: "do it by hand, or begin it again as a saga with another id",
    Difference.MENDS: "the saga finds that when it comes to the step; look again when it has ended",
}


def _finding(found: Found, service: str) -> Finding:
    level = WARNING if found.difference is Difference.MENDS else PROBLEM
    effect = "stands" if found.effect is Effect.DONE else f"is {found.effect}"
    text = f"step {found.step}: its effect in service {service} {effect}, and {found.says}; "
    return Finding(level=level, about=f"saga {found.saga_id}", text=text + _REMEDIES[found.difference])


def _version(state: FoundSaga) -> int | None:
    return state.version if isinstance(state, SagaState) else None
