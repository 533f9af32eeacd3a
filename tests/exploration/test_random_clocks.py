"""Random walks through graphs while the broker's clock is set back and forward: no start, timeout, pause, wait or
deadline comes early, and no signal that came in time is refused or left unread.

What is early is told by a clock that nobody sets. Signals are added to a stream, whose ids never go back, and are read
some time later.
"""

from typing import Any, Final

import orjson
import pytest
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exploration.test_random_graphs import KINDS, Walk, begins, check
from sagastream.broker.clock import BrokerClock
from sagastream.core.decision import Event
from sagastream.core.messages import Begin, Due, Signal
from sagastream.core.phases import AWAITS
from sagastream.core.saga import SagaState
from sagastream.core.transitions import Decision
from sagastream.core.waits import may_be_in_time

#: By how much the clock is set, in ms: less than most waits last, and more.
SET_MS: Final = (-3_600_000, -45_000, -10_000, 10_000, 45_000, 3_600_000)
#: Events take 10 ms each. Which of them was the start, or has seen that the clock was set, is not told more exactly.
SLACK_MS: Final = 1_000
CHANCES: Final = st.lists(
    st.tuples(st.sampled_from((*KINDS, "due", *("set",) * 4, "look", "signal", "read")), st.integers(0, 100)),
    max_size=60,
)


class ClockWalk(Walk):
    """A walk whose clock is set."""

    def __init__(self, begin: Begin) -> None:
        self.clock = BrokerClock()
        self.true_ms = 0  # by a clock that nobody sets
        self.newest_id_ms = 0
        self.unread: list[tuple[Signal, int]] = []  # signals in their stream, each with the true time
        self.since: dict[int, tuple[int, int]] = {}  # of each step that waits for a time: since when, and for how long
        self.started_ms: int | None = None
        super().__init__(begin)

    def passes(self, ms: int) -> None:
        super().passes(ms)
        self.true_ms += ms

    def comes(self, kind: str, pick: int) -> None:
        if kind == "set":
            # A worker looks at all sagas as soon as it sees that the clock was set; something else may come before.
            self.comes("look", 0)
            self.now_ms += SET_MS[pick % len(SET_MS)]
        elif kind == "look":
            self.passes(10)
            self.happens(Due(saga_id="s"))
        elif kind == "read":
            while self.unread:
                self.reads(*self.unread.pop(0))
        else:
            super().comes(kind, pick)

    def signals(self, signal: Signal) -> None:
        """It is added to its stream."""
        self.newest_id_ms = max(self.newest_id_ms, self.now_ms)
        self.unread.append((replace(signal, added_ms=self.newest_id_ms), self.true_ms))

    def reads(self, signal: Signal, added_ms: int) -> None:
        """A worker reads a signal that was added at this true time."""
        decision = self.happens(signal)
        for text in [orjson.loads(notice.body).get("text", "") for notice in decision.notices]:
            if "ms before it came" in text:
                since_ms, for_ms = self.since[int(text.rpartition(" ")[2])]
                assert added_ms >= since_ms + for_ms, f"{signal} came in time, and is refused: {text}"

    def happens(self, event: Event) -> Decision:
        self.clock.is_now(self.now_ms, self.true_ms / 1000, self.true_ms / 1000)
        self.watch = self.clock.watch
        if isinstance(event, Due):
            self.reads_before_a_wait_ends()
        return super().happens(event)

    def reads_before_a_wait_ends(self) -> None:
        """What a worker does before it looks at a saga of which a wait is over: see orchestrator/order.py."""
        times = [step.due_ms for step in self.saga.steps if step.phase in AWAITS and step.due_ms is not None]
        over_ms = max((due_ms for due_ms in times if due_ms <= self.now_ms), default=None)
        if over_ms is None:
            return
        found = [one for one in self.unread if may_be_in_time(one[0].added_ms or 0, over_ms, self.now_ms)]
        self.unread = [one for one in self.unread if one not in found]
        for one in found:
            self.reads(*one)

    def judge(self, before: SagaState, event: Event, after: SagaState) -> None:
        super().judge(before, event, after)
        if before.is_to_start and any(step.attempt for step in after.steps):
            assert self.now_ms >= (before.start_ms or 0), "it has started before its start"
        if not isinstance(event, Due):
            return
        if "The deadline" in (after.reason or after.cancelling or "") and not (before.reason or before.cancelling):
            self.judge_deadline(before)
            return
        for number, (was, now) in enumerate(zip(before.steps, after.steps, strict=True), 1):
            if now is not was and was.is_active and was.due_ms is not None and was.due_ms <= self.now_ms:
                since_ms, for_ms = self.since[number]
                passed_ms = self.true_ms - since_ms
                assert passed_ms >= for_ms - 1, f"step {number}, {was.phase}: {passed_ms} of {for_ms} ms have passed"
                if was.phase in AWAITS:
                    self.judge_unread(number, was.definition.shape.wait or was.definition.shape.retry_on)

    def judge_deadline(self, before: SagaState) -> None:
        started_ms, wanted_ms = self.started_ms, self.begin.deadline_ms or 0
        if started_ms is None:  # workers came too late for its start
            assert self.now_ms >= (before.start_ms or 0), "the deadline comes before the start"
            started_ms = self.true_ms
        passed_ms = self.true_ms - started_ms + SLACK_MS
        assert passed_ms >= wanted_ms, f"the deadline comes after {passed_ms} of {wanted_ms} ms"

    def judge_unread(self, number: int, name: str | None) -> None:
        since_ms, for_ms = self.since[number]
        left = [signal for signal, added_ms in self.unread if signal.name == name and added_ms < since_ms + for_ms]
        assert not left, f"{left} came in time, and step {number} has waited in vain"

    def notes(self, before: SagaState | None, after: SagaState) -> None:
        super().notes(before, after)
        if self.started_ms is None and not after.is_to_start:
            self.started_ms = self.true_ms
        for number, step in enumerate(after.steps, 1):
            was = None if before is None else before.steps[number - 1]
            if step.due_ms is not None and (was is None or _wait_of(was) != _wait_of(step)):
                self.since[number] = self.true_ms, step.due_ms - self.now_ms


def _wait_of(step: Any) -> tuple[object, ...]:
    return step.phase, step.attempt, step.compensation_attempt, step.due_ms is None, step.is_held


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(begin=begins(), chances=CHANCES)
def test_nothing_comes_early_however_the_clock_is_set(begin: Begin, chances: list[tuple[str, int]]) -> None:
    walk = ClockWalk(begin)
    for kind, pick in chances:
        walk.comes(kind, pick)
    walk.comes("read", 0)
    walk.ends()
    note(walk.saga.status)
    check(walk)
