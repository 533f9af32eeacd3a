"""Examines a service: who works for it, and what keeps the sagas that wait for it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import redis

from sagastream.client.evidence import explain
from sagastream.core.causes import Cause, CauseKind, Evidence, ServiceFacts
from sagastream.core.pauses import pauses_of
from sagastream.core.saga import SagaState
from sagastream.core.why_out import fails
from sagastream.core.why_service import hangs, nobody
from sagastream.rq_steps.asking import run
from sagastream.store import sagas
from sagastream.store.keys import ORCHESTRATOR_GROUP, StoreKeys
from sagastream.store.unread import unread
from sagastream_bridge.inspection.findings import Finding, cannot_tell, ok, problem, problem_of, warning
from sagastream_bridge.inspection.indexes import SagaCheck, Waiting
from sagastream_bridge.inspection.key_check import KeyCheck
from sagastream_bridge.inspection.streams import StreamCheck

#: The causes of which a service's findings tell, if sagas wait for it.
_OF_A_SERVICE: Final = (CauseKind.NO_COMMAND, CauseKind.KILLS, CauseKind.PROCESS_DEAD)
#: So many sagas are named of those whose command cannot be opened for the same reason.
_NAMED: Final = 3
#: At most so many entries of a stream are looked at for each of them.
_LOOKED_AT: Final = 100


class ServiceCheck:
    """Examines services, one after the other."""

    def __init__(
        self,
        client: "redis.Redis",
        keys: StoreKeys,
        evidence: Evidence,
        *,
        sagas_seen: SagaCheck,
        streams: StreamCheck,
        key_check: KeyCheck,
    ) -> None:
        """`sagas_seen`: has examined all sagas."""
        self._client = client
        self._keys = keys
        self._evidence = evidence
        self._sagas = sagas_seen
        self._streams = streams
        self._key_check = key_check
        self._why = self._explained()

    def examine(self, service: str) -> Iterator[Finding]:
        evidence = self._evidence
        partitions = self._keys.partitions
        commands = [partition.commands(service) for partition in partitions]
        replies = [partition.replies(service) for partition in partitions]
        streams = [stream for partition in partitions for stream in partition.streams_of(service)]
        if wrong_types := list(self._key_check.types(dict.fromkeys(streams, "stream"))):
            yield from wrong_types
            return
        yield from self._key_check.kept([*streams, self._keys.published(service)])
        for stream in streams:
            yield from self._streams.renew(stream)
            yield from self._streams.size(stream)
        if not evidence.hears:
            yield cannot_tell(f"service {service}", evidence)
        else:
            yield from self._readers(service, sum(self._client.xlen(stream) for stream in commands))
            if evidence.of(service).ever_was:  # otherwise its attempts only time out, and nothing has a log
                yield from self._failing(service)
        for stream in commands:
            yield from self._streams.examine(stream, service)
        for stream in replies:
            yield from self._streams.examine(stream, ORCHESTRATOR_GROUP)

    def _readers(self, service: str, entries: int) -> Iterator[Finding]:
        """Who works for a service, and what its sagas wait for. `entries`: how many are in its streams."""
        evidence = self._evidence
        about, facts = f"service {service}", evidence.of(service)
        waiting = {command: one for (name, command), one in self._sagas.waiting.items() if name == service}
        if (cause := nobody(facts, evidence.names, evidence.now_ms)) is None:
            is_well = any(process.is_at_work and process.name not in facts.hung for process in facts.alive)
            text = f"at work: {facts.at_work}; entries waiting or in flight: {entries}"
            yield ok(about, text) if is_well else warning(about, text)
            yield from self._hanging(about, facts, waiting, evidence.now_ms)
            yield from self._unopened(about, facts, waiting.values())
            for command, one in waiting.items():
                yield from self._stuck(about, command, one)
        elif waiting:
            named = "; ".join(f"sagas that wait for {command}: {one.named}" for command, one in waiting.items())
            of_sagas = (told for one in waiting.values() for told in self._causes(one) if told.kind is cause.kind)
            yield problem_of(about, f"{cause.text}; {named}", next(of_sagas, cause))
            for command, one in waiting.items():
                yield from self._stuck(about, command, one, kinds=(CauseKind.KILLS,))
        elif entries:
            yield from self._leftover(service, cause, entries)
        elif facts.processes:
            yield warning(about, cause.text, *cause.do, kind=cause.kind)
        else:
            yield ok(about, "none is running, and there is nothing to do")

    def _explained(self) -> dict[str, Sequence[Cause]]:
        """Why sagas wait, by their ids: of those that wait for the same, the ones that have waited longest; and those
        whose command a process cannot open."""
        first = {state.saga_id: state for one in self._sagas.waiting.values() for state, _ in one.first}
        states = list(first.values())
        left = {one.saga_id for facts in self._evidence.services.values() for one in facts.unopened}
        more, _ = sagas.read(self._client, self._keys, sorted(left - first.keys()))
        states += [state for state in more.values() if isinstance(state, SagaState)]
        causes = run(self._client, explain(self._keys, states, _LOOKED_AT))
        return {state.saga_id: found for state, found in zip(states, causes, strict=True)}

    def _causes(self, waiting: Waiting) -> Iterator[Cause]:
        """Why its first sagas wait; of one that has several commands out, those causes that are of this one."""
        for state, number in waiting.first:
            for cause in self._why[state.saga_id]:
                if number in cause.facts.get("steps", (number,)):
                    yield cause

    def _hanging(
        self, about: str, facts: ServiceFacts, waiting: Mapping[str, Waiting], now_ms: int
    ) -> Iterator[Finding]:
        """Of each live process the oldest handler that should have ended, and who waits for that."""
        alive = {process.name for process in facts.alive}
        overdue = sorted((one for one in facts.handlers if one.overdue), key=lambda one: one.since_ms, reverse=True)
        for one in {one.process: one for one in overdue if one.process in alive}.values():
            cause = hangs(one, now_ms)
            text = f"saga {one.saga_id}: {cause.text}"
            if one.process not in facts.hung:
                yield warning(about, text, *cause.do, kind=cause.kind)
                continue
            text += ". All slots of its process are taken so: it begins nothing more"
            for command, behind in waiting.items():
                if any(_is_behind(found, one.process, one.saga_id) for found in self._causes(behind)):
                    text += f"; sagas that wait for {command}: {behind.named}"
            yield problem_of(about, text, cause)

    def _unopened(self, about: str, facts: ServiceFacts, waiting: Iterable[Waiting]) -> Iterator[Finding]:
        """Commands that nobody has done yet, since a process cannot open them: each key that is missing, each fault."""
        looked_at = [state.saga_id for one in waiting for state, _ in one.first]
        found: dict[str, tuple[Cause, list[str]]] = {}
        for saga_id in dict.fromkeys([*looked_at, *(one.saga_id for one in facts.unopened)]):
            for cause in self._why.get(saga_id, ()):
                if cause.kind is CauseKind.CANNOT_OPEN:
                    found.setdefault(cause.text, (cause, []))[1].append(saga_id)
        for text, (cause, ids) in found.items():
            named = ", ".join(ids[:_NAMED]) + (" …" if len(ids) > _NAMED else "")
            yield problem(about, f"{text}; sagas: {named}", cause.do[0], kind=cause.kind)

    def _stuck(
        self, about: str, command: str, waiting: Waiting, kinds: Sequence[CauseKind] = _OF_A_SERVICE
    ) -> Iterator[Finding]:
        """What keeps the sagas that wait for a command, besides what hangs."""
        causes = {cause.kind: cause for cause in reversed([*self._causes(waiting)]) if cause.kind in kinds}
        for cause in causes.values():
            text = f"{cause.text}; sagas that wait for {command}: {waiting.named}"
            # What a dead process has is taken over by another, if there is nothing else to do.
            yield problem_of(about, text, cause) if cause.do else warning(about, text, kind=cause.kind)

    def _failing(self, service: str) -> Iterator[Finding]:
        """Commands of a service whose attempts fail again and again."""
        for (name, command), failing in self._sagas.failing.items():
            if name == service:
                cause = fails(*failing.first[0])
                paused = pauses_of(service, command, self._evidence.pauses)
                held = f"; no more are sent: {paused[0].told} is paused" if paused else ""
                text = f"{cause.text}{held}; sagas: {failing.named}"
                yield warning(f"service {service}", text, *cause.do, kind=cause.kind)

    def _leftover(self, service: str, cause: Cause, entries: int) -> Iterator[Finding]:
        """Commands of a service that nobody runs, though no saga is known to wait for it."""
        unwanted = len(run(self._client, unread(self._keys, service)).unwanted)
        text = f"{cause.text}; commands that no saga is known to wait for: {entries}"
        drops = (f"sagastream drop-commands {service}  # drops {unwanted} of them",) if unwanted else ()
        if unwanted == entries:
            yield warning(f"service {service}", text, *drops, kind=cause.kind)
        else:  # a process has read the others, and may have done something about them
            yield problem(f"service {service}", text, *cause.do, *drops, kind=cause.kind)


def _is_behind(cause: Cause, process: str, saga_id: str) -> bool:
    """Whether a saga waits for the handler of another one that hangs in this process."""
    return cause.kind is CauseKind.HANGS and (cause.facts.get("process"), cause.facts.get("saga_id")) == (
        process,
        saga_id,
    )
