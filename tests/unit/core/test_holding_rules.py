"""What a process does while it holds a command, and time passes."""

import pytest
from msgspec.structs import replace

from sagastream.core.commands import failed, reply_to
from sagastream.core.holding_rules import LONGEST_S, State, is_handed_back, is_overdue, is_renewed
from sagastream.core.service_actions import RUN, Run, Undo
from support.values import a_command

CHARGE = a_command()
UNDO = Undo(refusal=reply_to(CHARGE, failed(CHARGE.type)))


@pytest.mark.parametrize(("state", "stopping", "alone", "held_s", "expected"), [
    (State.WAITING, False, False, 7.5, False), (State.WAITING, False, False, 7.6, True),
    (State.WAITING, False, True, 30.0, False), (State.WAITING, False, True, 30.1, True),
    (State.WAITING, True, False, 0.0, True), (State.WAITING, True, True, 0.0, True),
    (State.RUNNING, False, False, 99.0, False), (State.RUNNING, True, True, 99.0, False),
    (State.BACKING_OFF, False, True, 99.0, False), (State.BACKING_OFF, True, False, 0.0, True),
])  # fmt: skip
def test_what_waits_for_long_or_would_be_begun_by_a_process_that_ends_is_handed_back(
    state: State, stopping: bool, alone: bool, held_s: float, expected: bool
) -> None:
    assert is_handed_back(state, stopping=stopping, alone=alone, held_s=held_s, lease_s=30.0) is expected


@pytest.mark.parametrize(("state", "todo", "not_after_ms", "alone", "running_s", "expected"), [
    (State.WAITING, RUN, 5001, False, 0.0, False), (State.WAITING, RUN, None, True, 0.0, True),
    (State.BACKING_OFF, RUN, None, False, 0.0, True), (State.BACKING_OFF, RUN, 1, False, 0.0, True),
    (State.RUNNING, RUN, 5001, False, 99.0, True), (State.RUNNING, RUN, 5000, False, 1.0, False),
    # Its answer is always waited for: a retriable step, a compensation, an undo of a command that was too late.
    (State.RUNNING, RUN, None, False, LONGEST_S - 1, True), (State.RUNNING, RUN, None, False, LONGEST_S, False),
    (State.RUNNING, UNDO, 1, False, LONGEST_S - 1, True), (State.RUNNING, UNDO, 1, False, LONGEST_S, False),
])  # fmt: skip
def test_a_lease_is_renewed_while_a_handler_backs_off_or_its_answer_is_waited_for(
    state: State, todo: Run | Undo, not_after_ms: int | None, *, alone: bool, running_s: float, expected: bool
) -> None:
    command = replace(CHARGE, not_after_ms=not_after_ms)
    assert is_renewed(state, command, todo, alone=alone, running_s=running_s, now_ms=5000) is expected


@pytest.mark.parametrize(
    ("not_after_ms", "ran_ms", "hard_timeout_ms", "overdue"),
    [
        (1000, 5000, None, False),
        (999, 5000, None, True),
        (None, 5000, None, False),
        (None, round(LONGEST_S * 1000), None, False),
        (None, round(LONGEST_S * 1000) + 1, None, True),
        (None, 5000, 5000, False),
        (None, 5001, 5000, True),
        (2000, 5001, 5000, True),
    ],
)
def test_what_should_have_ended_by_now(
    not_after_ms: int | None, ran_ms: int, hard_timeout_ms: int | None, overdue: bool
) -> None:
    found = is_overdue(not_after_ms=not_after_ms, now_ms=1000, ran_ms=ran_ms, hard_timeout_ms=hard_timeout_ms)
    assert found is overdue
