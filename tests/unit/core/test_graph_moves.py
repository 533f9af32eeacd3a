"""What a graph can do: branches, settle and then undo, conditions, waits, starts, signalled retries, parking."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from sagastream.core.asked import MAX_KEPT_BYTES
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.clock import Jump, Watch
from sagastream.core.commands import Reply, ok
from sagastream.core.decision import decide, may_undo
from sagastream.core.messages import Due, Verb
from sagastream.core.parsing import parse_signal
from sagastream.core.saga import SagaState, protocol_view
from sagastream.core.strict_json import encode, value_of
from sagastream.core.transitions import Moment
from support import random_graphs
from support.graph_stories import DAY_MS, UNDONE_BY, GraphStory, do, given_graph, graph_of

#: a, then b and c beside each other, then d.
DIAMOND = (do("a"), do("b"), do("c", after=["a"]), do("d", after=["b", "c"]))
ONCE: dict[str, Any] = {"attempts": 1, "compensation_attempts": 1}
PIVOT: dict[str, Any] = {"kind": "pivot", "compensation": None}
RETRIABLE: dict[str, Any] = {"kind": "retriable", "attempts": 1}
HOUR_MS = 3600 * 1000
WAIT: dict[str, Any] = {"wait": "approval", "timeout_ms": 30 * DAY_MS}


def both_out(**members: Any) -> GraphStory:
    """A diamond of which b and c are out."""
    return given_graph(*DIAMOND, **members).expect_all_sent("A 1").when("A_ok", 1).expect_all_sent("B 2", "C 3")


def the_clock_is_set(story: GraphStory, by_ms: int) -> None:
    """The broker's clock is set, and every worker has seen it."""
    if by_ms > 0:
        story.watch = Watch(since_ms=1, jumps=(*story.watch.jumps, Jump(until_ms=story.now_ms, by_ms=by_ms)))
    story.now_ms += by_ms


# --- forward


def test_what_is_ready_is_sent_at_once_and_what_comes_after_it_when_all_of_it_is_done() -> None:
    story = both_out().expect_at(2)
    story.expect_waits("s to answer B, step 2 (b); s to answer C, step 3 (c)")
    story.when("C_ok", 3).expect_nothing_sent().expect_at(2).expect_status("PENDING")
    story.when("B_ok", 2).expect_all_sent("D 4").expect_at(4)
    story.when("D_ok", 4).expect_status("COMPLETED").expect_outcome(
        '{"type":"saga_completed","saga_id":"saga42","status":"COMPLETED"}', to="me-1"
    )
    assert protocol_view(story.saga)["completed_steps"] == [1, 2, 3, 4]


def test_steps_that_come_after_nothing_are_all_sent_at_the_begin() -> None:
    story = given_graph(do("a", after=[]), do("b", after=[]), do("c", after=["a", "b"]))
    story.expect_all_sent("A 1", "B 2").when("B_ok", 2).expect_nothing_sent().when("A_ok", 1).expect_all_sent("C 3")


def test_each_step_has_its_own_timeout_attempts_and_delay() -> None:
    begin = (do("a", after=[], timeout_ms=1000), do("b", after=[], timeout_ms=5000, attempts=2), do("c", after=[1, 2]))
    story = given_graph(*begin)
    sent_ms = story.now_ms
    assert story.saga.due_ms == sent_ms + 1000
    story.when_due().expect_nothing_sent().expect_phases("BACKING_OFF", "OUT", "WAITING")
    story.when("B_ok", 2).expect_phases("BACKING_OFF", "COMPLETED", "WAITING")
    story.when_due().expect_all_sent("A 1")
    assert story.saga.steps[0].attempt == 2
    story.when("A_ok", 1).expect_all_sent("C 3")


def test_two_steps_that_are_due_at_once_are_both_seen_to() -> None:
    story = both_out().when_due().expect_phases("COMPLETED", "BACKING_OFF", "OUT", "WAITING")
    assert story.saga.due_ms == story.now_ms
    story.when_due().expect_phases("COMPLETED", "BACKING_OFF", "BACKING_OFF", "WAITING")


# --- settle, then undo


def test_a_failure_lets_what_is_out_settle_and_nothing_more_is_sent() -> None:
    story = both_out().when("B_failed", 2, error="sold out").expect_nothing_sent()
    story.expect_status("PENDING").expect_phases("COMPLETED", "FAILED", "OUT", "WAITING").expect_at(3)
    assert (story.saga.failed_step, story.saga.cancelling) == (2, "Step 2 (b) failed: sold out")
    story.expect_waits("s to answer C, step 3 (c), to go back then")
    story.when("C_ok", 3, result=7).expect_status("COMPENSATING", "Step 2 (b) failed: sold out")
    story.expect_all_sent("UnC 3").expect_told_the_result(b"7").expect_at(3, undone=[3])
    story.when("UnC_ok", 3).expect_all_sent("UnA 1").expect_at(1, undone=[3, 1])
    story.when("UnA_ok", 1).expect_aborted("Step 2 (b) failed: sold out").expect_at(1, undone=[3, 1])


def test_what_is_not_answered_in_time_while_the_saga_settles_is_undone_and_not_sent_again() -> None:
    story = both_out().when("B_failed", 2, error="no").when_due()
    story.expect_status("COMPENSATING", "Step 2 (b) failed: no").expect_all_sent("UnC 3")
    assert story.saga.steps[2].unknown
    story.when("C_ok", 3, result=1).expect_late(3, 1).when("UnC_ok", 3).expect_all_sent("UnA 1")


def test_what_fails_while_the_saga_settles_does_not_change_why_it_goes_back() -> None:
    story = both_out().when("C_failed", 3, error="full").when("B_failed", 2, error="no")
    story.expect_status("COMPENSATING", "Step 3 (c) failed: full").expect_all_sent("UnA 1")
    story.expect_phases("UNDO_OUT", "FAILED", "FAILED", "WAITING")
    story.when("UnA_ok", 1).expect_aborted("Step 3 (c) failed: full").expect_at(1, undone=[1])


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
@pytest.mark.parametrize(
    "answers", [("B_ok", "C_failed"), ("C_failed", "B_ok"), ("C_failed", "B_failed"), ("C_failed",)]
)
def test_what_fails_while_the_saga_is_to_be_cancelled_does_not_change_why(how: str, answers: Sequence[str]) -> None:
    """Whichever comes first of a failure, a cancel and the deadline is the reason."""
    tell = {"why": {"$ref": "/failure"}}
    steps = (do("a", compensation_params=tell), *DIAMOND[1:])
    story = given_graph(*steps, deadline_ms=10_000).when("A_ok", 1)
    if how == "cancelled":
        why = "Cancelled: ordered twice"
        story.when_asked(Verb.CANCEL, "ordered twice")
    else:
        why = "The deadline, 10000 ms after the begin, has passed"
        story.when_due()
    for kind in answers:
        error: Any = {"error": "full"} if kind.endswith("failed") else {}
        story.when(kind, "ABC".index(kind[0]) + 1, **error)
    if len(answers) == 1:
        story.when_due()
    story.expect_status("COMPENSATING", why)
    assert (story.saga.failed_step, story.saga.steps[2].error) == (None, b'"full"')
    if "B_failed" not in answers:
        story.when("UnB_ok", 2)
    story.expect_all_sent("UnA 1")
    told = encode({"why": {"step": None, "error": None, "reason": why}})
    assert story.decision.commands[0].undo == told
    story.when("UnA_ok", 1).expect_aborted(why)


def test_a_second_cancel_adds_to_why_the_saga_goes_back() -> None:
    story = both_out().when_asked(Verb.CANCEL, "ordered twice").when("C_failed", 3, error="full")
    story.when_asked(Verb.CANCEL, "now", request_id="op-2", now=True)
    story.expect_status("COMPENSATING", "Cancelled: ordered twice; Cancelled: now")


def test_a_saga_of_which_nothing_was_done_ends_at_the_step_that_failed() -> None:
    story = given_graph(do("a", after=[]), do("b", after=[])).when("B_failed", 2, error="no").when("A_failed", 1)
    story.expect_aborted("Step 2 (b) failed: no").expect_at(2)


def test_a_step_between_two_attempts_is_not_waited_for_and_may_have_been_done() -> None:
    story = both_out().when_due().when_due().expect_phases("COMPLETED", "BACKING_OFF", "BACKING_OFF", "WAITING")
    story.when("B_failed", 2, error="no").expect_status("COMPENSATING", "Step 2 (b) failed: no").expect_all_sent(
        "UnC 3"
    )


def test_a_step_that_is_tried_again_is_not_while_the_saga_settles_and_may_still_be_done() -> None:
    story = given_graph(do("a", after=[]), do("b", after=[], retry_failed=True)).when("A_failed", 1, error="no")
    story.when("B_failed", 2, error="busy", attempt=1).expect_status("COMPENSATING", "Step 1 (a) failed: no")
    story.expect_all_sent("UnB 2")


def test_a_cancel_lets_what_is_out_settle() -> None:
    story = both_out().when_asked(Verb.CANCEL, "ordered twice").expect_nothing_sent().expect_status("PENDING")
    story.expect_waits(
        "s to answer B, step 2 (b), to be cancelled then; s to answer C, step 3 (c), to be cancelled then"
    )
    story.when("B_ok", 2).expect_nothing_sent().when("C_ok", 3)
    story.expect_status("COMPENSATING", "Cancelled: ordered twice").expect_all_sent("UnC 3", "UnB 2")
    story.expect_at(3, undone=[3, 2])
    story.when("UnC_ok", 3).expect_nothing_sent().expect_at(2, undone=[3, 2])
    story.when("UnB_ok", 2).expect_all_sent("UnA 1").when("UnA_ok", 1).expect_aborted("Cancelled: ordered twice")


def test_a_cancel_now_undoes_all_that_is_out_at_once() -> None:
    story = both_out().when_asked(Verb.CANCEL, "stuck", now=True).expect_status("COMPENSATING", "Cancelled: stuck")
    story.expect_all_sent("UnC 3", "UnB 2")
    assert [step.unknown for step in story.saga.steps] == [False, True, True, False]


def test_a_saga_that_settles_may_be_cancelled_now_but_not_otherwise() -> None:
    story = both_out().when("B_failed", 2, error="no")
    story.when_asked(Verb.CANCEL).expect_refused("is being cancelled already")
    story.when_asked(Verb.CANCEL, "it hangs", "op-2", now=True)
    story.expect_status("COMPENSATING", "Step 2 (b) failed: no; Cancelled: it hangs").expect_all_sent("UnC 3")


@pytest.mark.parametrize("hard", [False, True])
def test_a_deadline_is_like_a_cancel(hard: bool) -> None:
    story = both_out(deadline_ms=5000, deadline="hard" if hard else "soft").when_due()
    why = "The deadline, 5000 ms after the begin, has passed"
    if hard:
        story.expect_status("COMPENSATING", why).expect_all_sent("UnC 3", "UnB 2")
    else:
        story.expect_status("PENDING").expect_nothing_sent().when("B_ok", 2).when("C_ok", 3)
        story.expect_status("COMPENSATING", why).expect_all_sent("UnC 3", "UnB 2")


def test_a_compensation_is_sent_when_all_that_came_after_its_step_is_undone() -> None:
    steps = (do("a"), do("b"), do("c"), do("d", after=["a"]), do("e", after=["c", "d"]))
    story = given_graph(*steps).when("A_ok", 1).when("B_ok", 2).when("D_ok", 4).when("C_ok", 3).expect_all_sent("E 5")
    story.when("E_failed", 5, error="no").expect_all_sent("UnD 4", "UnC 3")
    story.when("UnD_ok", 4).expect_nothing_sent().when("UnC_ok", 3).expect_all_sent("UnB 2")
    story.when("UnB_ok", 2).expect_all_sent("UnA 1").expect_at(1, undone=[4, 3, 2, 1])


def test_the_pivot_is_sent_alone_and_after_it_nothing_is_undone() -> None:
    story = given_graph(do("a", after=[]), do("b", after=[]), do("c", after=[1, 2], **PIVOT), do("d", **RETRIABLE))
    story.when("A_ok", 1).when("B_ok", 2).expect_all_sent("C 3").when("C_ok", 3).expect_all_sent("D 4")
    story.when_asked(Verb.CANCEL).expect_refused("is past its pivot: there is no way back")


def test_a_pivot_that_is_done_while_the_saga_is_to_be_cancelled_is_behind_it() -> None:
    story = given_graph(do("a", **PIVOT), do("b", **RETRIABLE), do("c", after=["a"], **RETRIABLE))
    story.when_asked(Verb.CANCEL, "no").when("A_ok", 1).expect_all_sent("B 2", "C 3")
    story.expect_interventions(
        "cancel: no", "too late: step 1 (a), the pivot, was done before this could be: Cancelled: no"
    )


def test_what_a_service_says_too_late_of_one_branch_leaves_the_other_alone() -> None:
    story = both_out().when_due().when_due(after_ms=0).when("B_ok", 2).when("B_ok", 2).expect_duplicate_counted()
    story.when("C_failed", 3, unknown=True, attempt=7).expect_duplicate_counted().expect_phases(
        "COMPLETED", "COMPLETED", "BACKING_OFF", "WAITING"
    )


# --- conditions


def choice(**data: Any) -> GraphStory:
    """One of b and c is done, as the input says; d follows in any case."""
    by_card = {"eq": [{"$ref": "/input/card"}, True]}
    return given_graph(
        do("a"),
        do("b", when=by_card),
        do("c", after=["a"], when={"not": by_card}),
        do("d", after=["b", "c"], params={"ref": {"$ref": "/steps/b/result", "default": "cash"}}),
        input=data,
    )


def test_a_step_whose_condition_does_not_hold_is_bypassed_and_counts_as_done() -> None:
    story = choice(card=True).when("A_ok", 1).expect_all_sent("B 2")
    story.expect_phases("COMPLETED", "OUT", "BYPASSED", "WAITING").expect_steps(
        "COMPLETED", "PENDING", "PENDING", "PENDING"
    )
    story.when("B_ok", 2, result="c1").expect_all_sent("D 4").expect_params(b'{"ref":"c1"}')
    story.when("D_ok", 4).expect_status("COMPLETED")
    view = protocol_view(story.saga)
    assert (view["completed_steps"], view["steps"][2]["status"]) == ([1, 2, 4], "PENDING")


def test_a_bypassed_step_is_never_undone() -> None:
    story = choice(card=False).when("A_ok", 1).expect_all_sent("C 3").when("C_ok", 3).expect_all_sent("D 4")
    story.expect_params(b'{"ref":"cash"}').when("D_failed", 4, error="no").expect_all_sent("UnC 3")
    story.when("UnC_ok", 3).expect_all_sent("UnA 1").when("UnA_ok", 1).expect_aborted("Step 4 (d) failed: no")
    story.expect_phases("COMPENSATED", "BYPASSED", "COMPENSATED", "FAILED")


def test_steps_that_are_bypassed_one_after_the_other_hold_nothing_up() -> None:
    story = given_graph(do("a", when=False), do("b", when=False), do("c"), do("d", when=False))
    story.expect_all_sent("C 3").when("C_ok", 3).expect_status("COMPLETED")


def test_a_saga_whose_steps_are_all_bypassed_is_completed_at_its_begin() -> None:
    given_graph(do("a", when=False), do("b", when=False)).expect_status("COMPLETED").expect_nothing_sent()


def test_a_condition_that_cannot_be_told_fails_its_step_and_nothing_beside_it_has_begun() -> None:
    cheap = {"lt": [{"$ref": "/input/n"}, 5]}
    story = given_graph(do("a"), do("b"), do("c", after=["a"], when=cheap), input={"n": "5"})
    why = (
        "Step 3 (c) failed: when: /lt: a text (/input/n) and a number have no order; only two numbers or two texts have"
    )
    story.when("A_ok", 1).expect_status("COMPENSATING", why).expect_all_sent("UnA 1")
    story.expect_phases("UNDO_OUT", "WAITING", "FAILED")


def test_a_step_that_fails_behind_a_bypassed_one_leaves_that_bypassed() -> None:
    cheap = {"lt": [{"$ref": "/input/n"}, 5]}
    story = given_graph(
        do("a", when=False), {"wait_ms": 5, "after": ["a"]}, do("c", after=["a"], when=cheap), input={"n": "5"}
    )
    assert str(story.saga.status) == "ABORTED"
    story.expect_phases("BYPASSED", "WAITING", "FAILED")


# --- references


def test_what_a_step_sends_is_built_once_and_each_attempt_carries_the_same_bytes() -> None:
    total = {"$concat": ["order ", {"$ref": "/input/n"}]}
    story = given_graph(do("a"), do("b", params={"of": {"$ref": "/steps/a/result/id"}, "text": total}), input={"n": 7})
    story.when("A_ok", 1, result={"id": {"$ref": "/input/n"}}).expect_all_sent("B 2")
    built = b'{"of":{"$ref":"/input/n"},"text":"order 7"}'
    story.expect_params(built).when_due().when_due().expect_params(built)
    assert story.saga.steps[1].definition.params != built
    assert protocol_view(story.saga)["steps"][1]["params"] == orjson.loads(built)
    story.when("B_failed", 2).expect_all_sent("UnA 1")


def test_a_reference_that_finds_nothing_fails_its_step_before_it_is_sent() -> None:
    story = given_graph(do("a"), do("b", params={"$ref": "/steps/1/result/id"})).when("A_ok", 1, result={})
    why = "Step 2 (b) failed: /steps/1/result/id: there is nothing there (steps/1/result has no member id)"
    story.expect_status("COMPENSATING", why).expect_all_sent("UnA 1")
    assert (story.saga.steps[1].attempt, story.saga.steps[1].unknown) == (0, False)


def test_a_first_step_that_cannot_be_built_ends_the_saga_at_once() -> None:
    story = given_graph(do("a", params={"$ref": "/input/x"}), request_id=None)
    story.expect_aborted("Step 1 (a) failed: /input/x: there is nothing there (input has no member x)")


def test_a_reference_that_finds_nothing_behind_the_pivot_parks_its_step_and_others_go_on() -> None:
    story = given_graph(
        do("a", **PIVOT), do("b", params={"$ref": "/steps/a/result/id"}, **RETRIABLE), do("c", after=["a"], **RETRIABLE)
    )
    why = "/steps/a/result/id: there is nothing there (steps/a/result is null)"
    story.when("A_ok", 1, result=None).expect_all_sent("C 3").expect_step_parked(2, why).expect_at(2)
    story.expect_waits("a person, step 2 (b) is parked; s to answer C, step 3 (c)")
    story.when_asked(Verb.RETRY).expect_done(Verb.RETRY).expect_nothing_sent().expect_step_parked(2, why)
    story.when("C_ok", 3).expect_status("PENDING").when_asked(Verb.SKIP, request_id="op-2").expect_status("COMPLETED")


def test_a_parked_step_that_can_be_built_by_now_is_sent_by_a_retry() -> None:
    """The pivot was skipped, and was done after all: its result is known now."""
    story = given_graph(
        do("a", attempts=1, **PIVOT),
        do("b", when={"exists": {"$ref": "/steps/a/result/id"}}, **RETRIABLE),
        do("c", params={"$ref": "/steps/a/result/id"}, **RETRIABLE),
    ).when_due()
    story.when_asked(Verb.SKIP).expect_phases("SKIPPED", "BYPASSED", "PARKED")
    story.when("A_ok", 1, result={"id": 5}).expect_late(1, {"id": 5})
    story.when_asked(Verb.RETRY, request_id="op-2").expect_all_sent("C 3").expect_params(b"5")


def test_a_retry_of_the_last_step_may_find_that_it_is_bypassed() -> None:
    story = given_graph(
        do("a", attempts=1, **PIVOT), do("b", when={"lt": [{"$ref": "/steps/a/result"}, 5]}, **RETRIABLE)
    ).when_due()
    story.when_asked(Verb.SKIP).expect_step_parked(
        2, "when: /steps/a/result: there is nothing there (step a has no result)"
    )
    story.when("A_ok", 1, result=7).when_asked(Verb.RETRY, request_id="op-2").expect_status("COMPLETED")
    story.expect_phases("SKIPPED", "BYPASSED")


def test_a_compensation_is_told_what_its_step_says_and_each_attempt_is_told_the_same() -> None:
    told = {
        "why": {"$ref": "/failure/reason"},
        "at": {"$ref": "/failure/step"},
        "error": {"$ref": "/failure/error"},
        "mine": {"$ref": "/steps/a/result/id"},
    }
    story = given_graph(do("a", compensation_params=told), do("b")).when("A_ok", 1, result={"id": 5})
    story.when("B_failed", 2, error={"code": 4})
    undo = b'{"why":"Step 2 (b) failed: {\\"code\\":4}","at":"b","error":{"code":4},"mine":5}'
    assert [command.undo for command in story.decision.commands] == [undo]
    story.when_due().when_due()
    assert [command.undo for command in story.decision.commands] == [undo]


def test_a_compensation_of_a_cancelled_saga_is_told_that_no_step_failed() -> None:
    told = {"$ref": "/failure"}
    story = given_graph(do("a", compensation_params=told), do("b")).when("A_ok", 1).when_asked(Verb.CANCEL, now=True)
    story.when("UnB_ok", 2)
    assert [command.undo for command in story.decision.commands] == [
        b'{"step":null,"error":null,"reason":"Cancelled: as agreed"}'
    ]


def test_a_compensation_whose_params_cannot_be_built_parks_its_step_and_other_branches_are_undone() -> None:
    story = given_graph(
        do("a", after=[]),
        do("b", after=["a"], compensation_params={"$ref": "/steps/b/result/id"}),
        do("c", after=["a"]),
        do("d", after=["b", "c"]),
    )
    story.when("A_ok", 1).when("B_ok", 2, result={}).when("C_ok", 3).when("D_failed", 4, error="no")
    why = "what undoes step 2 (b) cannot be told its compensation_params: /steps/b/result/id: there is nothing there"
    why += " (steps/b/result has no member id)"
    story.expect_all_sent("UnC 3").expect_step_parked(2, why).expect_at(3, undone=[3])
    story.when("UnC_ok", 3).expect_nothing_sent().expect_waits("a person, step 2 (b) is parked")
    story.when_asked(Verb.RETRY).expect_step_parked(2, why)
    story.when_asked(Verb.SKIP, request_id="op-2").expect_all_sent("UnA 1")


# --- waits and pauses


def approved(**members: Any) -> GraphStory:
    """A saga that waits for an approval beside a step."""
    wait = {"id": "ok", "after": ["a"], **WAIT, **members}
    return given_graph(do("a"), do("b"), wait, do("c", after=["b", "ok"], params={"$ref": "/steps/ok/result"}))


def awaited(**members: Any) -> GraphStory:
    story = approved(**members).when("A_ok", 1).expect_all_sent("B 2")
    return story.expect_phases("COMPLETED", "OUT", "AWAITING", "WAITING")


def test_a_wait_is_done_when_its_signal_comes_and_the_payload_is_its_result() -> None:
    story = awaited().expect_waits("s to answer B, step 2 (b); the signal approval, step 3 (ok)")
    story.when_signalled("approval", b'{"by":"boss"}', actor="ann").expect_signal_done().expect_nothing_sent()
    story.expect_interventions("signal approval: ")
    assert story.saga.interventions[0].actor == "ann"
    story.when("B_ok", 2).expect_all_sent("C 4").expect_params(b'{"by":"boss"}')
    view = protocol_view(story.saga)
    assert view["steps"][2] == {
        "transaction": "approval",
        "params": None,
        "status": "COMPLETED",
        "result": {"by": "boss"},
    }


def test_the_same_signal_is_done_once() -> None:
    story = awaited().when_signalled("approval", b"1").when_signalled("approval", b"1")
    story.expect_signal_done().expect_nothing_changed()


def test_a_signal_that_comes_before_its_wait_is_kept_for_it() -> None:
    story = approved().when_signalled("approval", b"5").expect_signal_done().expect_nothing_sent()
    assert [(one.name, one.payload, one.at_ms) for one in story.saga.signals] == [("approval", b"5", story.now_ms)]
    story.when_signalled("approval", b"6", request_id="op-2").expect_refused(
        "has been sent the signal approval already, and no other step will wait for it", to="op-2"
    )
    story.when("A_ok", 1).expect_all_sent("B 2").expect_phases("COMPLETED", "OUT", "COMPLETED", "WAITING")
    assert (story.saga.signals, story.saga.steps[2].result) == ((), b"5")
    story.when_signalled("approval", b"6", request_id="op-2").expect_refused(
        "has no open step that waits for the signal approval; it takes none now", to="op-2"
    )


def test_a_signal_that_no_step_waits_for_is_refused() -> None:
    awaited().when_signalled("aproval").expect_refused(
        "has no open step that waits for the signal aproval; it takes: approval"
    )
    story = awaited().when_signalled("approval").when("B_ok", 2).when("C_ok", 4).expect_status("COMPLETED")
    story.when_signalled("approval", request_id="op-2").expect_refused("has ended, COMPLETED", to="op-2")


def test_a_signal_to_a_saga_that_goes_back_is_refused() -> None:
    told = "goes back, and waits for no signal: Cancelled: as agreed"
    story = approved().when_asked(Verb.CANCEL, request_id="op-0").when_signalled("approval").expect_refused(told)
    story.when("A_ok", 1).expect_all_sent("UnA 1").when_signalled("approval").expect_refused(told)


@pytest.mark.parametrize("early", [False, True])
def test_a_signal_is_not_lost_if_the_saga_is_to_be_cancelled_and_the_pivot_is_done_all_the_same(early: bool) -> None:
    story = given_graph(do("a", **PIVOT), {**WAIT})
    if early:
        story.when_signalled("approval", b"1").when_asked(Verb.CANCEL, request_id="op-2")
    else:
        story.when_asked(Verb.CANCEL, request_id="op-2").when_signalled("approval", b"1").expect_signal_done()
    story.when("A_ok", 1).expect_status("COMPLETED")
    assert story.saga.steps[1].result == b"1"


def test_a_signal_is_dropped_if_the_pivot_was_not_done() -> None:
    story = given_graph(do("a"), do("b", **PIVOT), {**WAIT}).when("A_ok", 1).when_signalled("approval", b"1")
    story.when_asked(Verb.CANCEL, request_id="op-2").when("B_failed", 2, error="no").expect_all_sent("UnA 1")
    assert story.saga.signals == ()


def test_a_signal_is_kept_only_as_long_as_somebody_may_wait_for_it() -> None:
    story = approved().when_signalled("approval", b"5").when("A_failed", 1, error="no")
    story.expect_aborted("Step 1 (a) failed: no")
    assert story.saga.signals == ()


def test_signals_that_take_too_much_are_not_kept() -> None:
    large = b'"%b"' % (b"x" * (MAX_KEPT_BYTES - 2))
    waits = [{"wait": "one", "timeout_ms": 1000}, {"wait": "two", "timeout_ms": 1000}]
    story = given_graph(do("a"), *waits).when_signalled("one", large).expect_signal_done()
    story.when_signalled("two", b"1", request_id="op-2").expect_refused(
        f"keeps signals of {MAX_KEPT_BYTES} bytes already: signal again once it waits for two", to="op-2"
    )


def test_two_waits_for_one_signal_take_one_each() -> None:
    one, two = ({"wait": "go", "timeout_ms": 1000} for _ in range(2))
    story = given_graph(do("a"), one, two)
    story.when_signalled("go", b"1").when_signalled("go", b"2", request_id="op-2").expect_signal_done("op-2")
    story.when_signalled("go", b"3", request_id="op-3").expect_refused(
        "has been sent the signal go already, and no other step will wait for it", to="op-3"
    )
    story.when("A_ok", 1).expect_status("COMPLETED")
    assert [step.result for step in story.saga.steps] == [None, b"1", b"2"]


def test_a_wait_fails_when_its_time_is_over_and_the_saga_goes_back() -> None:
    story = awaited(timeout_ms=5000).when("B_ok", 2).when_due()
    why = "Step 3 (ok) failed: no signal approval within 5 s"
    story.expect_status("COMPENSATING", why).expect_all_sent("UnB 2").expect_phases(
        "COMPLETED", "UNDO_OUT", "FAILED", "WAITING"
    )


def test_a_wait_that_may_go_on_is_done_without_a_result_when_its_time_is_over() -> None:
    wait = {"id": "ok", **WAIT, "timeout_ms": 5000, "on_timeout": "continue"}
    story = given_graph(wait, do("a", params={"$ref": "/steps/ok/result", "default": "late"})).when_due()
    story.expect_all_sent("A 2").expect_params(b'"late"').expect_phases("COMPLETED", "OUT")


@pytest.mark.parametrize("early", [False, True])
def test_a_wait_that_is_declined_fails(early: bool) -> None:
    story = approved() if early else awaited()
    story.when_signalled("approval", declined="too dear", actor="ann").expect_signal_done()
    story.expect_interventions("decline approval: too dear")
    story = story.when("A_ok", 1) if early else story.when("B_ok", 2)
    why = "Step 3 (ok) failed: approval was declined: too dear"
    story.expect_status("COMPENSATING", why).expect_all_sent("UnA 1" if early else "UnB 2")


def test_a_signal_is_in_time_or_not_by_when_it_was_added_and_not_by_when_it_is_read() -> None:
    story = awaited(timeout_ms=5000)
    due_ms = story.saga.steps[2].due_ms
    assert due_ms is not None
    story.now_ms = due_ms + 60_000
    story.when_signalled("approval", request_id="op-0", added_ms=due_ms + 7).expect_refused(
        "waited for approval until 7 ms before it came: step 3 (ok)", to="op-0"
    )
    # In this millisecond the wait may have been ended already.
    story.when_signalled("approval", request_id="op-0", added_ms=due_ms).expect_refused(
        "waited for approval until 0 ms before it came: step 3 (ok)", to="op-0"
    )
    story.when_signalled("approval", b"1", added_ms=due_ms - 1).expect_signal_done()
    assert story.saga.steps[2].result == b"1"


@pytest.mark.parametrize("looked_at", [False, True])
def test_a_signal_that_was_added_before_the_clock_was_set_back_is_in_time(looked_at: bool) -> None:
    """Whether or not the saga was told of the clock before."""
    story = awaited(timeout_ms=5000)
    added_ms = story.now_ms + 4000
    story.now_ms += 4500
    the_clock_is_set(story, -HOUR_MS)
    if looked_at:
        story.when_due(after_ms=0)
        assert story.saga.due_ms == story.now_ms + 5000
    story.when_signalled("approval", b"1", added_ms=added_ms).expect_signal_done()
    assert story.saga.steps[2].result == b"1"


def test_after_the_clock_was_set_back_the_ids_of_signals_say_nothing_of_the_time() -> None:
    """Redis gives no lower id than before: for an hour, all ids hold the same millisecond."""
    story = awaited(timeout_ms=300_000)
    ahead_ms = story.now_ms + HOUR_MS
    story.when_signalled("approval", b"1", added_ms=ahead_ms).expect_signal_done().expect_all_sent()
    assert story.saga.steps[2].result == b"1"
    # Nobody knows when this one came: perhaps in time. So the wait takes it, unless somebody has ended it.
    story = awaited(timeout_ms=300_000)
    story.now_ms += 400_000
    story.when_signalled("approval", b"1", added_ms=ahead_ms).expect_signal_done()
    assert story.saga.steps[2].result == b"1"


def test_a_signal_after_the_clock_went_forward_is_in_time_if_the_wait_is_not_over_by_then() -> None:
    story = awaited(timeout_ms=5000)
    the_clock_is_set(story, HOUR_MS)
    story.when_signalled("approval", b"1", added_ms=story.now_ms + 500).expect_signal_done()
    assert story.saga.steps[2].result == b"1"
    story = awaited(timeout_ms=5000)
    the_clock_is_set(story, HOUR_MS)
    story.now_ms += 7000
    story.when_due(after_ms=0).expect_status("PENDING")  # nothing tells how much of that time was before
    due_ms = story.saga.due_ms
    assert due_ms is not None
    story.now_ms = due_ms + 60_000
    story.when_signalled("approval", b"1", added_ms=due_ms + 7).expect_refused(
        "waited for approval until 7 ms before it came: step 3 (ok)"
    )


def test_a_signal_that_is_too_late_for_one_wait_is_kept_for_the_next_one() -> None:
    one, two = ({"id": f"w{n}", "wait": "go", "timeout_ms": 1000, "on_timeout": "continue"} for n in (1, 2))
    story = given_graph(one, two)
    due_ms = story.saga.due_ms
    assert due_ms is not None
    story.now_ms = due_ms + 60_000
    story.when_signalled("go", b"1", added_ms=due_ms + 1).expect_signal_done().expect_phases("AWAITING", "WAITING")
    story.when_due().expect_status("COMPLETED")
    assert [step.result for step in story.saga.steps] == [None, b"1"]


def test_a_wait_behind_the_pivot_parks_when_it_is_declined_or_its_time_is_over() -> None:
    for declined in (None, "no"):
        story = given_graph(do("a", **PIVOT), {"id": "ok", **WAIT, "timeout_ms": 5000}, do("b", **RETRIABLE))
        story.when("A_ok", 1).expect_nothing_sent()
        if declined is None:
            story.when_due().expect_step_parked(2, "no signal approval within 5 s")
        else:
            story.when_signalled("approval", declined=declined)
            story.expect_step_parked(2, "approval was declined: no")
        story.when_signalled("approval", request_id="op-2").expect_refused(
            "is parked at step 2 (ok), and waits for approval again after a retry of that step", to="op-2"
        )
        story.when_asked(Verb.RETRY, request_id="op-3").expect_phases("COMPLETED", "AWAITING", "WAITING")
        assert story.saga.due_ms == story.now_ms + 5000
        story.when_signalled("approval", request_id="op-4").expect_all_sent("B 3")


def test_a_kept_decline_behind_the_pivot_parks_the_wait() -> None:
    story = given_graph(do("a", **PIVOT), {**WAIT}).when_signalled("approval", declined="no").when("A_ok", 1)
    story.expect_step_parked(2, "approval was declined: no")
    assert story.saga.signals == ()
    story.when_asked(Verb.SKIP, request_id="op-2").expect_status("COMPLETED").expect_phases("COMPLETED", "SKIPPED")


def test_a_pause_ends_by_itself() -> None:
    story = given_graph(do("a"), {"wait_ms": DAY_MS}, do("b")).when("A_ok", 1).expect_nothing_sent()
    story.expect_waits("the end of its pause, step 2").expect_at(2)
    assert (story.saga.due_ms, story.saga.steps[1].definition.transaction) == (story.now_ms + DAY_MS, "pause")
    story.when_due().expect_all_sent("B 3")


def test_a_wait_and_a_pause_end_at_once_if_the_saga_goes_back() -> None:
    steps = (do("a"), do("b"), {"after": [1], **WAIT}, {"after": [1], "wait_ms": DAY_MS})
    story = given_graph(*steps).when("A_ok", 1).expect_phases("COMPLETED", "OUT", "AWAITING", "AWAITING")
    story.when_asked(Verb.CANCEL).expect_phases("COMPLETED", "OUT", "FAILED", "FAILED")
    story.when("B_ok", 2).expect_all_sent("UnB 2")
    story = given_graph(*steps).when("A_ok", 1).when("B_failed", 2, error="no")
    story.expect_status("COMPENSATING", "Step 2 (b) failed: no").expect_all_sent("UnA 1")


def test_no_service_answers_for_a_wait() -> None:
    story = awaited().when("approval_ok", 3, result=1)
    story.expect_quarantined("step 3 sends no command: nothing answers it")


# --- a start


def test_a_saga_with_a_start_waits_for_it_and_its_deadline_counts_from_then() -> None:
    start_ms = graph_start()
    story = given_graph(do("a"), do("b"), start_at_ms=start_ms, deadline_ms=5000).expect_nothing_sent()
    story.expect_status("PENDING").expect_waits("its start").expect_phases("WAITING", "WAITING")
    assert story.saga.due_ms == start_ms
    story.when_due(after_ms=1000).expect_nothing_changed()
    story.when_due().expect_all_sent("A 1")
    assert story.now_ms == start_ms
    story.when_due().expect_status("PENDING")
    assert story.now_ms == start_ms + 5000
    story.when("A_ok", 1).expect_status("COMPENSATING", "The deadline, 5000 ms after the start, has passed")


def graph_start() -> int:
    """A time that is later than the begin of these stories."""
    return given_graph(do("a")).now_ms + DAY_MS


def to_start(**members: Any) -> GraphStory:
    """A saga that starts in a day, and then has 10 minutes."""
    return given_graph(*SLOW, start_at_ms=graph_start(), deadline_ms=600_000, **members).expect_nothing_sent()


SLOW = (do("a", timeout_ms=HOUR_MS), do("b"))


@pytest.mark.parametrize("deadline", ["soft", "hard"])
@pytest.mark.parametrize("event", ["due", "retry", "again"])
def test_a_saga_starts_and_has_its_time_if_the_clock_was_set_back_before(event: str, deadline: str) -> None:
    """A start is a time of the calendar, and the deadline counts from there."""
    story = to_start(deadline=deadline)
    start_ms = graph_start()
    the_clock_is_set(story, -HOUR_MS)
    if event == "due":
        before = story.saga
        story.when_due(after_ms=0).expect_nothing_sent()
        assert story.saga == replace(before, updated_ms=story.now_ms)
    elif event == "again":
        begin = graph_of(*SLOW, start_at_ms=start_ms, deadline_ms=600_000, deadline=deadline)
        story.when_begun_again(begin).expect_nothing_changed().expect_notices()
    else:
        story.when_asked_of("a", Verb.RETRY)
        assert story.decision.notices[0].kind == "refused"
    assert story.saga.due_ms == start_ms
    story.when_due().expect_all_sent("A 1")
    assert (story.now_ms, story.saga.set_back_ms) == (start_ms, 0)
    story.when("A_ok", 1).expect_all_sent("B 2")
    assert story.saga.deadline_now_ms == start_ms + 600_000
    # From now on it waits as any other saga: for as long as it would have.
    the_clock_is_set(story, -HOUR_MS)
    story.when_due(after_ms=0)
    assert story.saga.deadline_now_ms == start_ms + 600_000 - (start_ms + 1000 - story.now_ms)


@pytest.mark.parametrize("set_back", [False, True])
def test_a_saga_that_would_start_while_the_clock_goes_forward_has_its_time_from_then_on(set_back: bool) -> None:
    story = to_start()
    start_ms = graph_start()
    if set_back:
        the_clock_is_set(story, -HOUR_MS)
        story.when_due(after_ms=0)
    the_clock_is_set(story, start_ms + 40 * 60_000 - story.now_ms)
    story.when_due(after_ms=0).expect_nothing_sent().expect_status("PENDING")
    assert story.saga.deadline_now_ms == story.now_ms + 600_000
    story.when_due(after_ms=0).expect_all_sent("A 1")
    story.when_due()
    assert story.now_ms == start_ms + 40 * 60_000 + 600_000
    story.when("A_ok", 1).expect_status("COMPENSATING", "The deadline, 600000 ms after the start, has passed")


@pytest.mark.parametrize("looked_at", [False, True])
def test_a_clock_that_goes_forward_before_a_start_leaves_the_deadline_where_it_is(looked_at: bool) -> None:
    story = to_start()
    start_ms = graph_start()
    the_clock_is_set(story, HOUR_MS)
    if looked_at:
        story.when_due(after_ms=0).expect_nothing_sent()
    while story.saga.is_to_start:
        story.when_due()
    assert (story.now_ms, story.saga.deadline_now_ms) == (start_ms, start_ms + 600_000)
    # It is told of the same jump again, by another worker.
    story.when_due(after_ms=1).expect_nothing_changed()


def test_a_saga_that_waits_for_its_start_can_be_cancelled_and_signalled() -> None:
    story = given_graph(do("a"), {**WAIT}, start_at_ms=graph_start()).when_signalled("approval", b"1")
    story.expect_signal_done().expect_waits("its start")
    story.when_asked(Verb.CANCEL, request_id="op-2").expect_aborted("Cancelled: as agreed")


def test_a_start_that_has_passed_is_now() -> None:
    given_graph(do("a"), start_at_ms=1_000_000_000_000).expect_all_sent("A 1")


def test_a_saga_whose_first_step_cannot_be_built_fails_at_its_start() -> None:
    story = given_graph(do("a", params={"$ref": "/input/x"}), start_at_ms=graph_start()).when_due()
    story.expect_aborted("Step 1 (a) failed: /input/x: there is nothing there (input has no member x)")


# --- retries that are signalled


def to_be_retried(**members: Any) -> GraphStory:
    """The only attempt of b has failed, and it waits for a signal to be sent again."""
    retry: dict[str, Any] = {"retry_on": "topped-up", "retry_within_ms": DAY_MS, "attempts": 1} | members
    story = given_graph(do("a"), do("b", **retry)).when("A_ok", 1).expect_all_sent("B 2")
    assert story.decision.commands[0].retried
    return story.when("B_failed", 2, error="no money", attempt=1).expect_nothing_sent()


def test_a_step_that_may_be_retried_waits_for_the_signal_after_its_last_failure() -> None:
    story = to_be_retried().expect_status("PENDING").expect_phases("COMPLETED", "RETRY_AWAITED")
    story.expect_waits("the signal topped-up, to send B, step 2 (b) again")
    assert story.saga.due_ms == story.now_ms + DAY_MS
    story.when_signalled("topped-up").expect_signal_done().expect_all_sent("B 2")
    assert (story.decision.commands[0].attempt, story.decision.commands[0].retried) == (2, True)
    story.when("B_ok", 2).expect_status("COMPLETED")


def test_the_attempts_of_a_signalled_retry_are_counted_anew() -> None:
    story = to_be_retried(attempts=2, retry_failed=True).expect_phases("COMPLETED", "BACKING_OFF").when_due()
    story.when("B_failed", 2, error="no", attempt=2).expect_phases("COMPLETED", "RETRY_AWAITED")
    story.when_signalled("topped-up").expect_all_sent("B 2").when_due().expect_phases("COMPLETED", "BACKING_OFF")
    story.when_due().expect_all_sent("B 2").when_due().expect_phases("COMPLETED", "RETRY_AWAITED")
    story.when_signalled("topped-up", request_id="op-2").expect_all_sent("B 2")
    assert story.saga.steps[1].attempt == 5


@pytest.mark.parametrize("how", ["over", "declined", "cancelled", "cancelled now", "deadline"])
def test_a_retry_that_does_not_come_goes_back_and_the_step_may_have_been_done(how: str) -> None:
    story = to_be_retried()
    if how == "over":
        story.when_due()
        reason = "Step 2 (b) failed: no money; no signal topped-up within 1 d"
    elif how == "declined":
        story.when_signalled("topped-up", declined="I gave up")
        reason = "Step 2 (b) failed: no money; topped-up was declined: I gave up"
    else:
        story.when_asked(Verb.CANCEL, now=how == "cancelled now")
        reason = "Cancelled: as agreed"
    # No service has recorded the failure: another delivery of the command may still do it.
    story.expect_status("COMPENSATING", reason).expect_all_sent("UnB 2")
    assert story.saga.steps[1].unknown
    story.when("UnB_ok", 2).expect_all_sent("UnA 1").when("UnA_ok", 1).expect_aborted(reason)


def test_a_signal_to_retry_that_came_before_the_failure_is_kept_for_it() -> None:
    story = given_graph(do("a", retry_on="topped-up", retry_within_ms=DAY_MS, attempts=1))
    story.when_signalled("topped-up").expect_signal_done().expect_nothing_sent()
    story.when("A_failed", 1, error="no").expect_all_sent("A 1")
    assert story.saga.steps[0].attempt == 2
    story.when("A_failed", 1, error="no").expect_phases("RETRY_AWAITED")


RETRY: dict[str, Any] = {"retry_on": "card", "retry_within_ms": DAY_MS, "attempts": 1}


def test_a_signal_to_retry_is_refused_before_the_command_of_its_step_is_out() -> None:
    """Nothing has failed, and whatever was mended is mended by then."""
    story = given_graph(do("a"), do("b", **RETRY)).when_signalled("card")
    story.expect_refused("has no open step that waits for the signal card; it takes none now")
    story.when("A_ok", 1).when_signalled("card", request_id="op-2").expect_signal_done("op-2")


def test_a_signal_to_retry_that_was_not_needed_is_dropped_once_its_step_is_done() -> None:
    """Somebody clicked twice: the second click must not send another step again, for which nobody has done anything."""
    story = given_graph(do("a", **RETRY), do("b", **RETRY)).when("A_failed", 1, error="no")
    story.when_signalled("card").expect_all_sent("A 1")
    story.when_signalled("card", request_id="op-2").expect_signal_done("op-2").expect_nothing_sent()
    kept = [len(story.saga.signals)]
    story.when("A_ok", 1).expect_all_sent("B 2")
    assert [*kept, len(story.saga.signals)] == [1, 0]
    story.when("B_failed", 2, error="no").expect_phases("COMPLETED", "RETRY_AWAITED").expect_nothing_sent()


def test_a_signal_that_was_not_needed_stays_for_another_step_that_may_take_it() -> None:
    wait = {"wait": "card", "timeout_ms": DAY_MS, "after": []}
    for other in (do("b", after=[], **RETRY), do("b", after=[])):
        story = given_graph(do("a", **RETRY), other, wait | {"after": ["b"]})
        for number in range(1, 4 if "retry_on" in other else 3):
            story.when_signalled("card", encode(number), request_id=f"op-{number}").expect_signal_done(f"op-{number}")
        story.when("A_ok", 1)
        left = (b"1", b"2") if "retry_on" in other else (b"1",)
        assert tuple(one.payload for one in story.saga.signals) == left
        story.when("B_ok", 2).expect_status("COMPLETED")
        assert story.saga.steps[2].result == b"1"


def test_a_signal_is_dropped_if_its_wait_is_bypassed() -> None:
    wait = {"id": "w", **WAIT, "when": {"eq": [1, 2]}}
    story = given_graph(do("a"), wait, do("b"), do("c")).when_signalled("approval").expect_signal_done()
    story.when("A_ok", 1).expect_phases("COMPLETED", "BYPASSED", "OUT", "WAITING")
    assert story.saga.signals == ()


def test_a_kept_decline_of_a_retry_goes_back_at_once() -> None:
    story = given_graph(do("a", retry_on="topped-up", retry_within_ms=DAY_MS, attempts=1))
    story.when_signalled("topped-up", declined="never").when("A_failed", 1, error="no")
    story.expect_status("COMPENSATING", "Step 1 (a) failed: no; topped-up was declined: never").expect_all_sent("UnA 1")


def test_a_step_that_was_done_after_all_need_not_be_retried() -> None:
    retry: dict[str, Any] = {"retry_on": "topped-up", "retry_within_ms": DAY_MS, "attempts": 1}
    story = given_graph(do("a", **retry), do("b")).when_due().expect_phases("RETRY_AWAITED", "WAITING")
    story.when("A_ok", 1).expect_all_sent("B 2")


def test_a_failure_of_a_step_that_could_be_retried_leaves_it_in_doubt_while_the_saga_settles() -> None:
    """Its command says that it may be sent again, so its service has not recorded the failure."""
    retry: dict[str, Any] = {"retry_on": "topped-up", "retry_within_ms": DAY_MS}
    story = given_graph(do("a", after=[]), do("b", after=[], **retry)).when("A_failed", 1, error="no")
    story.when("B_failed", 2, error="no money", attempt=1).expect_all_sent("UnB 2")
    assert story.saga.steps[1].unknown


@pytest.mark.parametrize("how", ["over", "cancelled", "failed while it is cancelled"])
def test_a_pivot_that_waits_for_a_retry_in_vain_parks_if_nothing_undoes_it(how: str) -> None:
    retry: dict[str, Any] = {"retry_on": "topped-up", "retry_within_ms": DAY_MS, "attempts": 1}
    story = given_graph(do("a"), do("b", **retry, **PIVOT)).when("A_ok", 1)
    if how == "failed while it is cancelled":
        story.when_asked(Verb.CANCEL).when("B_failed", 2, error="no money")
    elif how == "over":
        story.when("B_failed", 2, error="no money").when_due()
    else:
        story.when("B_failed", 2, error="no money").when_asked(Verb.CANCEL)
    parked = story.saga.steps[1].parked
    assert parked is not None
    assert parked.endswith("nothing undoes it")
    story.expect_status("PENDING").when("B_ok", 2).expect_status("COMPLETED")


# --- parking, and verbs with a step


def two_parked() -> GraphStory:
    """Behind the pivot, b and c are parked, and d is out."""
    story = given_graph(do("a", **PIVOT), *(do(one, after=["a"], **RETRIABLE) for one in "bcd"), do("e", **RETRIABLE))
    story.when("A_ok", 1).expect_all_sent("B 2", "C 3", "D 4").when("C_failed", 3, error="full")
    story.expect_step_parked(3, "C of step 3 (c) failed: full").when("B_failed", 2, error="shut")
    return story.expect_step_parked(2, "B of step 2 (b) failed: shut").expect_at(2)


def test_a_parked_step_leaves_other_branches_alone() -> None:
    two_parked().expect_status("PENDING").when("D_ok", 4).expect_all_sent("E 5")


@pytest.mark.parametrize("verb", [Verb.RETRY, Verb.SKIP, Verb.ABANDON])
def test_a_verb_that_does_not_say_which_of_several_parked_steps_it_means_is_refused(verb: Verb) -> None:
    told = "is parked at several steps: 2 (b), 3 (c); say with step which one is meant"
    two_parked().when_asked(verb).expect_refused(told).when_asked(verb, now=True).expect_refused(told)


@pytest.mark.parametrize("step", [3, "c"])
def test_a_verb_may_say_which_step_it_means_by_its_number_or_id(step: int | str) -> None:
    story = two_parked().when_asked_of(step, Verb.RETRY).expect_done(Verb.RETRY).expect_all_sent("C 3")
    story.expect_at(2).when("C_ok", 3).when_asked_of("b", Verb.SKIP, request_id="op-2").expect_done(Verb.SKIP, "op-2")
    story.expect_phases("COMPLETED", "SKIPPED", "COMPLETED", "OUT", "WAITING")


def test_a_verb_may_say_which_step_it_means_by_where_it_is_parked() -> None:
    story = two_parked().when_asked(Verb.RETRY, parked_at="3/transaction/1").expect_all_sent("C 3")
    story.when_asked(Verb.RETRY, request_id="op-2", parked_at="3/transaction/1").expect_refused(
        "is no longer parked at 3/transaction/1: it is parked at 2/transaction/1", to="op-2"
    )


def test_a_verb_that_names_one_step_and_the_place_of_another_is_refused() -> None:
    two_parked().when_asked_of("c", Verb.RETRY, parked_at="2/transaction/1").expect_refused(
        "is parked at 2/transaction/1, but that is not step c"
    )


def test_what_was_done_about_one_step_names_it() -> None:
    story = two_parked().when_asked_of("c", Verb.RETRY).when_asked(Verb.CANCEL, now=True, request_id="op-2")
    story.when_asked(Verb.SKIP, parked_at="2/transaction/1", request_id="op-3")
    assert [(done.verb, done.step) for done in story.saga.interventions] == [("retry", 3), ("skip", 2)]


def unbuilt() -> GraphStory:
    """A step behind the pivot refers to what is not there."""
    story = given_graph(
        do("a", **PIVOT), do("b", params={"$ref": "/steps/a/result/q"}, **RETRIABLE), do("c", **RETRIABLE)
    )
    return story.when("A_ok", 1, result={})


def untold() -> GraphStory:
    """A compensation cannot be told what it is to be told."""
    story = given_graph(do("a"), do("b", compensation_params={"$ref": "/steps/b/result/q"}), do("c")).when("A_ok", 1)
    return story.when("B_ok", 2, result={}).when("C_failed", 3)


def unknown_undo() -> GraphStory:
    """Nobody knows what undoes a step."""
    story = given_graph(do("a"), do("b"), do("c"), published={"s": {"A": "UnA", "C": "UnC"}}).when("A_ok", 1)
    return story.when("B_ok", 2).when("C_failed", 3)


def declined_early() -> GraphStory:
    """A wait behind the pivot was declined before it began."""
    story = given_graph(do("a", **PIVOT), WAIT | {"timeout_ms": 1000}, do("b", **RETRIABLE))
    return story.when_signalled("approval", declined="no", request_id="op-0").when("A_ok", 1)


@pytest.mark.parametrize("story", [unbuilt, untold, unknown_undo, declined_early])
def test_what_is_parked_again_after_a_retry_is_parked_at_another_place(story: Callable[[], GraphStory]) -> None:
    """Even if nothing was sent in between. So what was asked about the first place is not done to the second."""
    one = story()
    places = [one.saga.parked_at]
    for number in (1, 2):
        one.when_asked(Verb.RETRY, request_id=f"op-{number}", parked_at=places[-1])
        if one.saga.parked_at is None:
            one.when_due()
        places.append(one.saga.parked_at)
        one.when_asked(Verb.SKIP, request_id="op-x", parked_at=places[-2]).expect_refused(
            f"is no longer parked at {places[-2]}: it is parked at {places[-1]}", to="op-x"
        )
    assert len({*places, None}) == 4
    one.when_asked(Verb.SKIP, request_id="op-3", parked_at=places[-1]).expect_done(Verb.SKIP, "op-3")


def test_a_step_that_could_not_be_built_before_has_all_its_attempts() -> None:
    steps = (
        do("a", **PIVOT),
        do("b", **RETRIABLE | {"attempts": 2}),
        do("c", params={"$ref": "/steps/b/result/q"}, **RETRIABLE),
    )
    story = given_graph(*steps).when("A_ok", 1)
    story.when("B_failed", 2).when_due().when("B_failed", 2).when_asked(Verb.SKIP)
    story.expect_step_parked(3, "/steps/b/result/q: there is nothing there (step b has no result)")
    story.when_asked(Verb.RETRY, request_id="op-2").when("B_ok", 2, result={"q": 1})
    story.when_asked(Verb.RETRY, request_id="op-3").expect_all_sent("C 3").when("C_failed", 3)
    assert (story.saga.steps[2].attempt, story.saga.parked_at) == (1, "3/transaction/3")


def test_a_retry_of_an_undo_that_is_not_needed_any_more_leaves_the_saga_at_another_undo() -> None:
    story = given_graph(do("a", after=[]), do("b", after=[]), do("c", after=["a", "b"]), published={"s": {"A": "UnA"}})
    story.when("B_ok", 2).when("A_ok", 1).when("C_failed", 3).expect_all_sent("UnA 1").expect_at(2, undone=[1])
    story.published = {"s": {"A": "UnA", "B": None}}
    story.when_asked(Verb.RETRY).expect_done(Verb.RETRY).expect_nothing_sent().expect_at(1, undone=[1])
    story.expect_phases("UNDO_OUT", "COMPLETED", "FAILED").expect_waits("s to answer UnA, step 1 (a)")
    assert story.saga.updated_ms == story.now_ms
    assert story.saga.times_out_ms == story.saga.steps[0].due_ms
    story.when("UnA_ok", 1).expect_status("ABORTED", "Step 3 (c) failed: no reason given")


def test_a_verb_about_a_step_that_is_not_parked_or_not_there_is_refused() -> None:
    two_parked().when_asked_of("d", Verb.RETRY).expect_refused(
        "is not parked at step d, it is parked at 2/transaction/1, 3/transaction/1"
    )
    two_parked().when_asked_of("x", Verb.RETRY).expect_refused("has no step x")
    two_parked().when_asked_of(9, Verb.SKIP).expect_refused("has no step 9")
    both_out().when_asked_of("b", Verb.RETRY).expect_refused(
        "is not parked at step b, it waits for s to answer B, step 2 (b); s to answer C, step 3 (c)"
    )


def test_a_saga_is_not_abandoned_while_a_command_is_out_unless_now() -> None:
    story = two_parked()
    story.when_asked_of(2, Verb.ABANDON).expect_refused(
        "has commands out, of step 4 (d): abandon it with now, and they count as unknown"
    )
    story.when_asked(Verb.ABANDON, now=True, parked_at="2/transaction/1").expect_aborted(
        "abandoned at step 2 (b): as agreed"
    )
    story.expect_phases("COMPLETED", "IN_DOUBT", "IN_DOUBT", "IN_DOUBT", "WAITING")
    story.when("D_ok", 4, result=1).expect_late(4, 1)


def test_a_step_of_which_nothing_was_sent_is_not_in_doubt_when_its_saga_is_abandoned() -> None:
    story = given_graph(do("a", **PIVOT), do("b", params={"$ref": "/input/x"}, **RETRIABLE)).when("A_ok", 1)
    story.when_asked(Verb.ABANDON).expect_phases("COMPLETED", "FAILED")
    story = given_graph(do("a", **PIVOT), {**WAIT, "timeout_ms": 5}, {**WAIT, "after": ["a"]}).when("A_ok", 1)
    story.when_due().when_asked(Verb.ABANDON).expect_phases("COMPLETED", "FAILED", "FAILED")
    assert not any(step.unknown for step in story.saga.steps)


def test_the_undo_of_one_branch_is_parked_while_the_other_goes_on_and_what_came_before_waits() -> None:
    story = given_graph(*(step | ONCE for step in DIAMOND))
    story.when("A_ok", 1).when("B_ok", 2).when("C_ok", 3).when("D_failed", 4, error="no")
    story.expect_all_sent("UnC 3", "UnB 2")
    story.when("UnC_failed", 3, error="shut").expect_step_parked(3, "UnC of step 3 (c) failed: shut")
    story.expect_at(3, undone=[3, 2])
    story.when("UnB_ok", 2).expect_nothing_sent().when_asked(Verb.RETRY).expect_all_sent("UnC 3")
    story.when("UnC_ok", 3).expect_all_sent("UnA 1")


def test_undos_that_are_parked_are_abandoned_with_what_is_out() -> None:
    story = given_graph(*(step | ONCE for step in DIAMOND))
    story.when("A_ok", 1).when("B_ok", 2).when("C_ok", 3).when("D_failed", 4, error="no")
    story.when("UnC_failed", 3, error="shut")
    story.when_asked(Verb.ABANDON).expect_refused(
        "has commands out, of step 2 (b): abandon it with now, and they count as unknown"
    )
    story.when_asked(Verb.ABANDON, now=True).expect_aborted("Step 4 (d) failed: no; abandoned at step 3 (c): as agreed")
    story.expect_phases("COMPLETED", "COMPLETED", "COMPLETED", "FAILED").expect_at(3, undone=[3, 2])
    story.when("UnB_ok", 2).expect_undone_late(2)


def test_an_undo_that_nobody_knows_parks_one_branch() -> None:
    known = {name: undo for name, undo in UNDONE_BY["s"].items() if name != "B"}
    story = both_out(published={"s": known}).when("B_ok", 2).when("C_ok", 3).when("D_failed", 4, error="no")
    why = "nobody knows what undoes B of step 2 (b): "
    why += "service s published no such command, and the step names no compensation"
    story.expect_all_sent("UnC 3").expect_step_parked(2, why)
    story.published = UNDONE_BY
    story.when_asked(Verb.RETRY).expect_all_sent("UnB 2").when("UnC_ok", 3).when("UnB_ok", 2).expect_all_sent("UnA 1")


# --- again


def test_a_graph_that_is_begun_again_compares_what_was_asked_for_and_not_what_was_built() -> None:
    steps = (do("a"), do("b", params={"$ref": "/steps/a/result"}))
    story = given_graph(*steps).when("A_ok", 1, result={"$ref": "/input"})
    assert story.saga.steps[1].params == b'{"$ref":"/input"}'
    story.when_begun_again(graph_of(*steps)).expect_nothing_changed().expect_notices()
    other = (steps[0], do("b", params={"$ref": "/input"}))
    story.when_begun_again(graph_of(*other)).expect_nothing_changed()
    (refused,) = story.decision.notices
    assert refused.kind == "refused"
    assert b"params" in refused.body


def test_what_services_publish_is_never_needed_where_it_is_not_asked_for() -> None:
    """Random graphs, whose steps are all done, in any order: some fail before they are sent."""
    went_back = sum(_went_back_unsent(number) for number in range(800))
    assert went_back >= 10


def _went_back_unsent(number: int) -> bool:
    """Whether an answer has made this graph go back, since the next step failed before it was sent."""
    chance = random.Random(number)
    made = random_graphs.graph(number, "unsent")
    if commands := [node.body for node in made.nodes if node.sends and node.body.get("kind") != "retriable"]:
        chance.choice(commands)["params"]["absent"] = {"$ref": "/input/absent"}
    state = decide(None, parse_begin(made.body(946_684_800_000)), Moment(now_ms=10**12, published={})).state
    while isinstance(state, SagaState) and state.status == "PENDING" and state.parked is None:
        number = chance.choice(state.active_steps or [0])
        step = state.steps[number - 1]
        event: Any = Due(saga_id=state.saga_id)
        if step.in_flight:
            result = encode(random_graphs.result_of(state.saga_id, number, value_of(step.params)))
            event = Reply(type=ok(step.command), saga_id=state.saga_id, step=number, result=result)
        elif step.definition.shape.wait is not None:
            event = parse_signal({"saga_id": state.saga_id, "name": step.definition.shape.wait, "payload": {"n": 3}})
        now_ms = max(10**12, state.due_ms or 0) if isinstance(event, Due) else 10**12
        after = decide(state, event, Moment(now_ms=now_ms, published={})).state
        assert isinstance(after, SagaState)
        goes_back = after.reason is not None or after.cancelling is not None
        assert may_undo(state, event) or not goes_back
        if goes_back and isinstance(event, Reply):
            return True
        state = after
    assert isinstance(state, SagaState)
    return False
