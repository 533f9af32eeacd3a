"""How much one saga may make of a small request: what comes with its commands, what is built, what is sent at once."""

from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.core import back, references
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.references import MAX_BUILT_BYTES, MAX_TOGETHER_BYTES
from sagastream.core.sealed_messages import sealed_begin
from sagastream.core.steps import MAX_CARRIED_BYTES
from sagastream.core.strict_json import MAX_PAYLOAD_BYTES
from sagastream.errors import MalformedMessage
from sagastream.store import saga_hash
from support.graph_stories import GraphStory, do, given_graph
from support.states import written

#: Results of this many bytes fill the room for params that are built exactly.
PART = 1 << 19
PARTS = MAX_TOGETHER_BYTES // PART
RESULT = "x" * (PART - 2)
ALL_OF_IT: dict[str, Any] = {"params": {"$ref": "/steps/a/result"}}
NO_UNDO: dict[str, Any] = {"compensation": None}
SEND = {"transaction": "A", "service": "s", "after": []}


# --- the input, which comes with each command


def a_body(size: int, *steps: dict[str, Any]) -> dict[str, Any]:
    """A saga with an input of so many bytes."""
    return {"saga_id": "s1", "input": {"a": "x" * (size - 8)}, "steps": list(steps)}


@pytest.mark.parametrize("commands", [17, 100])
def test_an_input_is_small_enough_for_all_the_commands_with_which_it_comes(commands: int) -> None:
    most = MAX_CARRIED_BYTES // commands
    wait = {"wait": "go", "timeout_ms": 1000, "after": []}
    waits = [wait] if commands < 100 else []
    begin = parse_begin(a_body(most, *[SEND] * commands, *waits))
    assert len(begin.input or b"") == most
    with pytest.raises(MalformedMessage) as caught:
        parse_begin(a_body(most + 1, *[SEND] * commands), called="the saga")
    assert str(caught.value) == (
        f"the saga: input: too large: {most + 1} bytes; each of {commands} steps gets it with its command, and "
        f"together that is at most {MAX_CARRIED_BYTES}"
    )


def test_sixteen_commands_may_come_with_the_largest_input() -> None:
    assert 16 * MAX_PAYLOAD_BYTES <= MAX_CARRIED_BYTES
    parse_begin(a_body(MAX_PAYLOAD_BYTES - 1024, *[SEND] * 16))


def test_an_input_that_is_too_large_once_it_is_sealed_is_refused_too() -> None:
    class Longer:
        key = "k"

        def encode(self, data: bytes, _: object) -> bytes:
            return b"xx" * len(data)

        def decode(self, data: bytes, _: object) -> bytes:
            return data

    most = MAX_CARRIED_BYTES // 100
    begin = parse_begin(a_body(most, *[SEND] * 100))
    with pytest.raises(
        MalformedMessage, match=r"^the saga: input: too large: sealed, [0-9]{6} bytes; each of 100 steps"
    ):
        sealed_begin(Longer(), begin)


# --- what is built


def fan_out(steps: int, last: dict[str, Any], **members: Any) -> GraphStory:
    """A step whose result is long, and steps after it whose params are that result; then one with these members."""
    fan = [do(f"b{number}", after=["a"], **ALL_OF_IT, **NO_UNDO, **members) for number in range(steps)]
    story = given_graph(do("a", **NO_UNDO), *fan, do("c", after=["a"], **NO_UNDO, **members) | last)
    return story.when("A_ok", 1, result=RESULT)


def test_the_params_of_all_steps_together_are_built_up_to_a_limit() -> None:
    story = fan_out(PARTS, {"params": "plain"})
    assert len(story.decision.commands) == PARTS + 1
    assert sum(len(step.built or b"") for step in story.saga.steps) == MAX_TOGETHER_BYTES
    story = fan_out(PARTS, {"params": {"$ref": "/saga/id"}})
    why = f"/saga/id: too large: what is built for all steps together has more than {MAX_TOGETHER_BYTES} bytes"
    story.expect_nothing_sent().expect_aborted(f"Step {PARTS + 2} (c) failed: {why}")
    assert all(step.built is None for step in story.saga.steps)


def test_what_was_built_before_counts() -> None:
    again = do("d", after=[f"b{number}" for number in range(PARTS)], params={"$ref": "/saga/id"}, **NO_UNDO)
    fan = [do(f"b{number}", after=["a"], **ALL_OF_IT, **NO_UNDO) for number in range(PARTS)]
    story = given_graph(do("a", **NO_UNDO), *fan, again).when("A_ok", 1, result=RESULT)
    for number in range(PARTS):
        story.when(f"B{number}_ok", number + 2)
    why = f"/saga/id: too large: what is built for all steps together has more than {MAX_TOGETHER_BYTES} bytes"
    story.expect_aborted(f"Step {PARTS + 2} (d) failed: {why}")


def test_behind_the_pivot_a_step_is_parked_for_which_there_is_no_room() -> None:
    retriable = {"kind": "retriable", "attempts": 1}
    fan = [do(f"b{number}", after=["a"], **ALL_OF_IT, **retriable) for number in range(PARTS + 1)]
    story = given_graph(do("a", kind="pivot", **NO_UNDO), *fan).when("A_ok", 1, result=RESULT)
    assert len(story.decision.commands) == PARTS
    why = f"too large: what is built for all steps together has more than {MAX_TOGETHER_BYTES} bytes"
    story.expect_step_parked(PARTS + 2, f"/steps/a/result: {why}")


def test_a_step_of_its_own_has_the_limit_of_params_still() -> None:
    story = given_graph(do("a", **NO_UNDO), do("b", **NO_UNDO, params=[{"$ref": "/steps/a/result"}] * 3))
    story.when("A_ok", 1, result=RESULT)
    why = f"/steps/a/result: too large: what is built has more than {MAX_BUILT_BYTES} bytes"
    story.expect_aborted(f"Step 2 (b) failed: {why}")


def test_what_compensations_are_told_has_a_limit_together_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"compensation_params": {"$ref": "/saga/id"}}  # 8 bytes
    monkeypatch.setattr(references, "MAX_TOGETHER_BYTES", 16)
    story = given_graph(*[do(one, after=[], **told) for one in "abc"], do("d", after=["a", "b", "c"]))
    for number, one in enumerate("ABC", 1):
        story.when(f"{one}_ok", number)
    story.when("D_failed", 4, error="no").expect_all_sent("UnC 3", "UnB 2")
    why = "/saga/id: too large: what is built for all steps together has more than 16 bytes"
    story.expect_step_parked(1, f"what undoes step 1 (a) cannot be told its compensation_params: {why}")


# --- what is sent at once


def with_results(count: int, size: int) -> GraphStory:
    """Steps beside each other, each done with a result of so many bytes; then one that fails: they are undone."""
    beside = [do(f"b{number}", after=[], compensation="Undo") for number in range(count)]
    story = given_graph(*beside, do("c", after=list(range(1, count + 1)), **NO_UNDO))
    for number in range(count):
        story.when(f"B{number}_ok", number + 1, result="x" * (size - 2))
    return story.when("C_failed", count + 1, error="no")


def test_compensations_with_long_results_are_not_all_sent_in_one_piece() -> None:
    size = back.AT_ONCE_BYTES // 4 - len(b"null") - len(b"{}")
    story = with_results(7, size)
    story.expect_all_sent("Undo 7", "Undo 6", "Undo 5", "Undo 4")
    story.expect_phases(*["UNDO_BACKING_OFF"] * 3, *["UNDO_OUT"] * 4, "FAILED").expect_at(7, undone=range(7, 0, -1))
    assert story.saga.due_ms == story.now_ms
    assert story.saga.steps[0].send_again_ms == story.now_ms
    assert "the time to send Undo, step 1 (b0); " in replace(story.saga, current_step=1).waiting_for
    for number in (1, 2, 3):
        story.when_due(0).expect_all_sent(f"Undo {number}")
        assert len(story.decision.commands[0].result or b"") == size
    for number in range(1, 8):
        story.when("Undo_ok", number)
    story.expect_aborted("Step 8 (c) failed: no")


def test_what_is_put_off_is_one_more_command_than_the_limit_says_and_each_commit_sends_one() -> None:
    assert len(with_results(9, back.AT_ONCE_BYTES // 8 - 2048).decision.commands) == 9
    assert len(with_results(10, back.AT_ONCE_BYTES // 8 - 2048).decision.commands) == 9


def test_a_compensation_that_was_put_off_is_as_it_was_in_the_hash() -> None:
    state = with_results(6, back.AT_ONCE_BYTES // 4).saga
    assert [step.phase for step in state.steps[:3]] == ["UNDO_BACKING_OFF", "UNDO_BACKING_OFF", "UNDO_OUT"]
    assert saga_hash.read("saga42", written(saga_hash.changed_fields(None, state))) == replace(state, version=1)


def test_a_saga_whose_results_are_short_is_undone_in_one_piece() -> None:
    story = with_results(90, 1000)
    assert [command.step for command in story.decision.commands] == list(range(90, 0, -1))
