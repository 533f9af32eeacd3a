"""The sagas that one worker parks, told to the log: each, as long as they are few, or else how many."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sagastream.core.saga import Found, SagaState
from sagastream.core.step_state import Step
from sagastream.orchestrator.change import Change
from sagastream.telemetry import Log

#: At most so many parked sagas have a line of their own in each span of so many seconds. A service that refuses
#: everything parks thousands: the rest is counted, and told when the span is over.
_MOST: Final = 10
_SPAN_S: Final = 60.0
#: The line about the rest names so many of the commands at which sagas are parked.
_NAMED: Final = 3
_REASON_CHARS: Final = 300


class ParkedReport:
    """What one worker tells of them."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._since_s: float | None = None  # when the present span began, by time.monotonic
        self._told = 0  # in this span
        self._rest: Counter[str] = Counter()  # those that have no line, by SERVICE/COMMAND

    def committed(self, written: Sequence[Change]) -> None:
        """These changes are in the store."""
        for change in written:
            if change.notices and any(notice.kind == "parked" for notice in change.notices):
                assert isinstance(change.after, SagaState)  # there is this notice of no other
                for number in _newly_parked(change.before, change.after):
                    self._parked(change.after, number)

    def look(self) -> None:
        """Called once a turn: tells the rest of a span that is over."""
        if self._rest and self._since_s is not None and time.monotonic() - self._since_s >= _SPAN_S:
            self.tell_rest()

    def tell_rest(self) -> None:
        """Tell of those that have no line yet."""
        if not self._rest:
            return
        number, others = sum(self._rest.values()), len(self._rest) - _NAMED
        places = ", ".join(f"{count} at {place}" for place, count in self._rest.most_common(_NAMED))
        more = f" and {others} more commands" if others > 0 else ""
        what = "1 more saga was" if number == 1 else f"{number} more sagas were"
        self._log.warning(f"{what} parked: {places}{more}; see sagastream list --status parked")
        self._rest.clear()

    def _parked(self, saga: SagaState, number: int) -> None:
        now_s = time.monotonic()
        if self._since_s is None or now_s - self._since_s >= _SPAN_S:
            self.tell_rest()
            self._since_s, self._told = now_s, 0
        step = saga.steps[number - 1]
        if self._told >= _MOST:
            self._rest[f"{step.definition.service}/{step.command}"] += 1
            return
        self._told += 1
        why = str(step.parked)
        why = why if len(why) <= _REASON_CHARS else f"{why[:_REASON_CHARS]}…"
        text = f"saga {saga.saga_id} is parked at {step.definition.service}: {why}"
        self._log.warning(f"{text}; see sagastream show {saga.saga_id}", extra=_about(saga, number, step))


def _newly_parked(before: Found, after: SagaState) -> list[int]:
    """The numbers of the steps that this change has parked."""
    parked = after.parked_steps
    if not isinstance(before, SagaState):
        return parked
    return [number for number in parked if before.parked_place(number) != after.parked_place(number)]


def _about(saga: SagaState, number: int, step: Step) -> Mapping[str, Any]:
    """The fields for `extra` of the log record."""
    return {
        "saga_id": saga.saga_id,
        "service": step.definition.service,
        "step": number,
        "attempt": step.current_attempt,
        "compensating": step.being_undone or None,
        "trace_id": saga.trace_id,
    }
