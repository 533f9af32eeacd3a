"""What a worker reports about its turns: all of it to the observer, what a person should know to the log."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from sagastream.broker.entries import Entry
from sagastream.core import trace_context
from sagastream.core.decision import Event
from sagastream.core.messages import Begin
from sagastream.core.saga import Found, SagaState
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.parked import ParkedReport
from sagastream.store.keys import StoreKeys
from sagastream.telemetry import Log, Move, Observer, Observers, guarded

#: How often a worker reports what holds sagas up, in seconds: a key that is not a stream, a saga with a fault.
_REPEAT_EVERY_S: Final = 60.0


class TurnReport:
    """Reports the commits of one worker."""

    def __init__(self, who: str, observer: Observer | None) -> None:
        """`who`: the name of the worker, as its log records have it."""
        self._log = Log("worker", who)
        self.parked = ParkedReport(self._log)
        self._observer = guarded(observer)
        self._repeat_at: dict[str, float] = {}  # when to report each of them again, by time.monotonic

    def with_traces(
        self, inputs: list[tuple[Entry | None, Event]], states: Mapping[str, Found]
    ) -> list[tuple[Entry | None, Event]]:
        """These inputs. If a saga is to begin and its request names no trace, the request gets the one that the
        observer has for it."""
        observer = self._observer
        if observer is None or not observer.watches("trace_for"):
            return inputs
        return [(entry, _with_trace(observer, event, states)) for entry, event in inputs]

    def committed(
        self,
        changes: Sequence[Change],
        *,
        lost: Sequence[Change],
        stuck: Sequence[Change],
        messages: int,
        duration_s: float,
    ) -> None:
        """Report the commit of these changes. `lost` and `stuck`: those of them that were not written, see
        `Store.commit`. `messages`: how many messages and timers led to them. `duration_s`: how long deciding and
        committing took."""
        refused = {id(change) for change in (*lost, *stuck)}
        written = [change for change in changes if id(change) not in refused]
        if self._observer is not None:
            self._tell(self._observer, written, lost, messages, duration_s)
        self._tell_stuck(stuck)
        self._tell_quarantined(written)
        self.parked.committed(written)
        for change in written:
            if change.is_gone and change.after is None:
                text = f"saga {change.saga_id} was due, and is gone: somebody has deleted its hash"
                self._log.warning(text, extra=_about(change))
            if change.fault is not None and self._is_time(f"fault of {change.saga_id}"):
                text = f"saga {change.saga_id} was due, and stands still: {change.fault}"
                self._log.error(text, extra=_about(change))

    def trimmed(self, keys: StoreKeys, dropped: Mapping[str, int]) -> None:
        """So many of the oldest entries of these streams were dropped. Nobody misses an event."""
        for stream in (one.quarantine for one in keys.partitions):
            if number := dropped.get(stream):
                text = f"{stream} takes too much memory: {number} of the oldest messages were dropped"
                self._log.error(f"{text}; see sagastream quarantine list", extra={"stream": stream})

    def _is_time(self, what: str) -> bool:
        """Whether to report this now. It may come up in every turn, and is reported once in _REPEAT_EVERY_S."""
        now = time.monotonic()
        if now < self._repeat_at.get(what, 0.0):
            return False
        self._repeat_at[what] = now + _REPEAT_EVERY_S
        return True

    def _tell(
        self, observer: Observers, written: Sequence[Change], lost: Sequence[Change], messages: int, duration_s: float
    ) -> None:
        moves: list[Move] = [
            (change.before if isinstance(change.before, SagaState) else None, after)
            for change in written
            if change.after is not change.before and isinstance(after := change.written, SagaState)
        ]
        commands = sum([len(change.commands) for change in written])
        observer.turn_committed(
            sagas=len(moves), messages=messages, commands=commands, duration_s=duration_s, moves=moves
        )
        for change in lost:
            observer.comparison_lost(saga_id=str(change.saga_id))
        if observer.watches("saga_moved", "saga_parked", "saga_ended"):
            for before, after in moves:
                _tell_moved(observer, before, after)

    def _tell_stuck(self, stuck: Sequence[Change]) -> None:
        """Report to which keys nothing can be appended, each once in _REPEAT_EVERY_S. The entries stay pending and are
        tried again."""
        streams: dict[bool, set[str]] = {False: set(), True: set()}
        for change in stuck:
            those = streams[change.is_full]
            those |= {change.partition.commands(command.service) for command in change.commands}
            those |= {change.partition.quarantine} if change.quarantined else set()
            those |= {change.partition.events} if change.notices and change.is_full else set()
        for stream in sorted(streams[False]):
            fault = f"{stream} is not a stream: sagas that need it stand still, until it is one or is gone"
            self._tell_fault_of({stream}, fault)
        if full := sorted(streams[True]):
            fault = f"a stream takes no more entries, one of {', '.join(full)}: sagas that need it stand still"
            self._tell_fault_of(full, f"{fault}; sagastream doctor --repair fixes it")

    def _tell_fault_of(self, streams: Collection[str], fault: str) -> None:
        if self._is_time(fault):
            self._log.error(fault, extra={"stream": ", ".join(streams)})
            if self._observer is not None:
                for stream in streams:
                    self._observer.stream_stuck(stream=stream)

    def _tell_quarantined(self, written: Sequence[Change]) -> None:
        """The log gets one line for all of them: a faulty client may flood the quarantine."""
        found = [(change, *one) for change in written for one in change.quarantined]
        if not found:
            return
        change, entry, reason = found[0]
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        text = f"quarantined the entry {entry.id.decode()} of {entry.stream}: {reason}{more}"
        of_entry = {"stream": entry.stream, "entry_id": entry.id.decode()}
        self._log.warning(text, extra=_about(change) | of_entry)
        if self._observer is not None:
            for _, entry, reason in found:
                self._observer.entry_quarantined(stream=entry.stream, entry_id=entry.id.decode(), reason=reason)


def _with_trace(observer: Observer, event: Event, states: Mapping[str, Found]) -> Event:
    if not isinstance(event, Begin) or event.traceparent is not None or states.get(event.saga_id) is not None:
        return event
    named: object = observer.trace_for(request=event)
    if not isinstance(named, str):
        return event
    return replace(event, traceparent=trace_context.read(named.encode(errors="replace")))


def _about(change: Change) -> dict[str, object]:
    """The fields for `extra` of a log record about the saga of this change."""
    trace_id = change.before.trace_id if isinstance(change.before, SagaState) else None
    return {"saga_id": change.saga_id, "trace_id": trace_id}


def _tell_moved(observer: Observer, before: SagaState | None, after: SagaState) -> None:
    observer.saga_moved(before=before, after=after)
    if after.ended:
        if before is None or not before.ended:
            observer.saga_ended(saga=after)
    elif (parked := after.parked) is not None and (before is None or before.parked != parked):
        observer.saga_parked(saga=after)
