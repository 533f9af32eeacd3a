"""A saga at one moment, in words and as the protocol shows it."""

from typing import Any

import pytest
from msgspec.structs import replace

from sagastream import Context, Reject, Service
from sagastream.core.phases import STEP, Phase
from sagastream.core.saga import MAX_INTERVENTIONS, Intervention, KeptSignal, SagaState, SagaStatus, protocol_view
from sagastream.core.step_state import Step
from sagastream.core.steps import GRAPH, Shape, StepDefinition, StepKind
from sagastream.errors import ImpossibleTransition
from sagastream.testing import Sagas


def a_step(
    name: str,
    phase: Phase = Phase.WAITING,
    *,
    kind: StepKind = StepKind.COMPENSATABLE,
    attempts: int = 3,
    compensation_attempts: int = 10,
    **members: Any,
) -> Step:
    definition = StepDefinition(
        transaction=name,
        service=f"{name}-service",
        params=b'{"n":18446744073709551615}',
        kind=kind,
        attempts=attempts,
        compensation_attempts=compensation_attempts,
    )
    return Step(definition=definition, phase=phase, **members)


def out(name: str = "A", **members: Any) -> Step:
    """A step whose command is out."""
    return a_step(name, Phase.OUT, **({"attempt": 1, "due_ms": 5} | members))


def a_saga(*steps: Step, status: SagaStatus = SagaStatus.PENDING, current_step: int = 1, **members: Any) -> SagaState:
    return SagaState(
        saga_id="saga42", status=status, current_step=current_step, steps=steps, begun_ms=1, updated_ms=2, **members
    )


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        (SagaStatus.PENDING, False),
        (SagaStatus.COMPENSATING, False),
        (SagaStatus.COMPLETED, True),
        (SagaStatus.ABORTED, True),
    ],
)
def test_completed_and_aborted_sagas_have_ended_and_no_others(status: SagaStatus, ended: bool) -> None:
    assert a_saga(a_step("A"), status=status).ended is ended


def test_the_current_step_counts_from_1() -> None:
    first, second = a_step("A"), a_step("B")
    assert a_saga(first, second, current_step=1).step is first
    assert a_saga(first, second, current_step=2).step is second


@pytest.mark.parametrize("phase", Phase)
def test_a_step_may_have_an_effect_when_it_completed_or_nobody_knows_until_it_is_undone(phase: Phase) -> None:
    undone = (Phase.UNDO_OUT, Phase.UNDO_BACKING_OFF, Phase.UNDO_PARKED)
    assert a_step("A", phase).may_have_effect is (phase in (Phase.COMPLETED, Phase.IN_DOUBT, *undone))


@pytest.mark.parametrize(
    ("phase", "status"),
    [
        *((phase, "PENDING") for phase in (Phase.WAITING, Phase.OUT, Phase.BACKING_OFF, Phase.PARKED)),
        (Phase.COMPLETED, "COMPLETED"),
        *((phase, "FAILED") for phase in (Phase.FAILED, Phase.SKIPPED)),
        (Phase.COMPENSATED, "COMPENSATED"),
    ],
)
@pytest.mark.parametrize("unknown", [False, True])
def test_users_see_what_became_of_a_step(phase: Phase, status: str, unknown: bool) -> None:
    assert a_step("A", phase, unknown=unknown).status == status


@pytest.mark.parametrize(
    "phase", [Phase.UNDO_OUT, Phase.UNDO_BACKING_OFF, Phase.UNDO_PARKED, Phase.UNDO_SKIPPED], ids=str
)
def test_while_a_step_is_undone_users_see_what_became_of_its_transaction(phase: Phase) -> None:
    assert a_step("A", phase).status == "COMPLETED"
    assert a_step("A", phase, unknown=True).status == "FAILED"


def test_a_step_was_skipped_by_an_operator_alone() -> None:
    assert {phase for phase in Phase if a_step("A", phase).skipped} == {Phase.SKIPPED, Phase.UNDO_SKIPPED}
    assert not any(a_step("A", phase, unknown=True).may_have_effect for phase in (Phase.SKIPPED, Phase.UNDO_SKIPPED))


@pytest.mark.parametrize("phase", [Phase.IN_DOUBT, Phase.COMPENSATED])
def test_a_step_that_was_done_too_late_is_a_completed_one(phase: Phase) -> None:
    assert not a_step("A", phase, unknown=True).completed
    assert a_step("A", phase, unknown=True, late_ms=0).completed


# --- what happens to a step


def test_a_step_changes_as_the_table_says_and_waits_for_nothing_else_than_it_is_told() -> None:
    sent = a_step("A").moved("sent", due_ms=5, attempt=1)
    assert (sent.phase, sent.due_ms, sent.attempt) == (Phase.OUT, 5, 1)
    parked = sent.moved("parked", parked="why")
    assert (parked.phase, parked.due_ms, parked.parked) == (Phase.PARKED, None, "why")
    assert parked.moved("completed").parked is None


@pytest.mark.parametrize("phase", Phase)
def test_a_step_refuses_what_does_not_stand_in_the_table(phase: Phase) -> None:
    happenings = {happening for _, happening in STEP} | {"dreaming"}
    for happening in happenings - {happening for before, happening in STEP if before is phase}:
        with pytest.raises(ImpossibleTransition, match=f"'{happening}' cannot happen to a step that is {phase}$"):
            a_step("A", phase).moved(happening)


# --- the pivot


@pytest.mark.parametrize(
    ("pivot", "past"),
    [
        (a_step("P", kind=StepKind.PIVOT), False),
        (a_step("P", Phase.IN_DOUBT, kind=StepKind.PIVOT, unknown=True), False),
        (a_step("P", Phase.COMPENSATED, kind=StepKind.PIVOT, unknown=True), False),
        (a_step("P", Phase.COMPLETED, kind=StepKind.PIVOT), True),
        (a_step("P", Phase.SKIPPED, kind=StepKind.PIVOT), True),
        (a_step("P", Phase.COMPLETED), False),  # like any other step
    ],
)
def test_there_is_no_way_back_once_the_pivot_was_done_or_is_taken_for_done(pivot: Step, past: bool) -> None:
    saga = a_saga(a_step("A", Phase.COMPLETED), pivot, a_step("R", kind=StepKind.RETRIABLE), current_step=2)
    assert saga.past_pivot is past
    assert saga.may_be_cancelled is not past


def test_a_saga_may_be_cancelled_once_and_on_its_way_forward_alone() -> None:
    assert a_saga(a_step("A")).may_be_cancelled
    assert not a_saga(a_step("A"), cancelling="ordered twice").may_be_cancelled
    for status in (SagaStatus.COMPENSATING, SagaStatus.COMPLETED, SagaStatus.ABORTED):
        assert not a_saga(a_step("A"), status=status).may_be_cancelled


# --- time


def test_a_saga_may_be_cancelled_now_on_its_way_forward_unless_it_is_parked() -> None:
    assert a_saga(out()).may_be_cancelled_now
    assert a_saga(out(), cancelling="ordered twice").may_be_cancelled_now
    assert not a_saga(a_step("A", Phase.PARKED, parked="x")).may_be_cancelled_now
    assert not a_saga(a_step("A", Phase.UNDO_OUT, due_ms=5), status=SagaStatus.COMPENSATING).may_be_cancelled_now
    pivot = a_step("P", Phase.COMPLETED, kind=StepKind.PIVOT)
    assert not a_saga(pivot, out("R"), current_step=2).may_be_cancelled_now


def test_a_saga_is_due_when_the_first_of_its_times_has_come() -> None:
    again = a_step("A", Phase.BACKING_OFF, due_ms=6)
    assert a_saga(out()).due_ms == 5
    assert a_saga(again).due_ms == 6
    assert a_saga(out(), deadline_ms=4).due_ms == 4
    assert a_saga(out(), deadline_ms=6).due_ms == 5
    assert a_saga(again, deadline_ms=4).due_ms == 4
    assert (a_saga(out()).times_out_ms, a_saga(out()).send_again_ms) == (5, None)
    assert (a_saga(again).times_out_ms, a_saga(again).send_again_ms) == (None, 6)


def test_a_deadline_counts_as_long_as_the_saga_may_be_cancelled() -> None:
    pivot = a_step("P", Phase.COMPLETED, kind=StepKind.PIVOT)
    undone = a_step("A", Phase.UNDO_OUT, due_ms=5)
    assert a_saga(out(), deadline_ms=4, cancelling="x").due_ms == 5
    assert a_saga(undone, deadline_ms=4, status=SagaStatus.COMPENSATING).due_ms == 5
    assert a_saga(pivot, out("R"), current_step=2, deadline_ms=4).due_ms == 5


def test_a_hard_deadline_counts_for_a_saga_that_is_being_cancelled_if_it_cuts_something_off() -> None:
    hard: dict[str, Any] = {"deadline_ms": 4, "hard_deadline": True, "cancelling": "x"}
    before, after = a_step("A", Phase.OUT, due_ms=5, sent_ms=3), a_step("A", Phase.OUT, due_ms=5, sent_ms=4)
    assert a_saga(before, **hard).due_ms == 4
    assert a_saga(after, **hard).due_ms == 5
    assert a_saga(before, **hard | {"hard_deadline": False}).due_ms == 5
    assert not a_saga(before, hard_deadline=True).is_cut_off


def test_a_saga_that_is_parked_or_has_ended_is_never_due() -> None:
    parked = a_step("A", Phase.PARKED, parked="x")
    assert a_saga(parked, deadline_ms=7).due_ms is None
    undo_parked = a_step("A", Phase.UNDO_PARKED, parked="x")
    assert a_saga(undo_parked, status=SagaStatus.COMPENSATING, deadline_ms=7).due_ms is None
    for status in (SagaStatus.COMPLETED, SagaStatus.ABORTED):
        assert a_saga(a_step("A", Phase.COMPLETED), status=status, deadline_ms=7).due_ms is None


# --- attempts


def test_the_attempts_of_a_step_are_those_of_the_command_that_it_is_at() -> None:
    sent: dict[str, Any] = {"attempt": 2, "compensation": "UndoA", "compensation_attempt": 5}
    forward = a_step("A", Phase.OUT, attempts=3, compensation_attempts=7, **sent)
    back = a_step("A", Phase.UNDO_OUT, attempts=3, compensation_attempts=7, **sent)
    assert (forward.command, forward.current_attempt, forward.attempts) == ("A", 2, 3)
    assert (back.command, back.current_attempt, back.attempts) == ("UndoA", 5, 7)


def test_a_step_that_nobody_knows_how_to_undo_is_at_no_attempt_of_it() -> None:
    step = a_step("A", Phase.UNDO_PARKED, attempt=2, parked="nobody knows")
    assert (step.command, step.current_attempt) == ("A", 0)


@pytest.mark.parametrize(
    ("attempt", "before", "of_round"),
    [(0, 0, 1), (1, 0, 1), (3, 0, 3), (4, 3, 1), (6, 3, 3), (7, 6, 1), (9, 6, 3), (2, 1, 1)],
)
def test_an_operator_who_has_a_step_tried_anew_gives_it_as_many_attempts_again(
    attempt: int, before: int, of_round: int
) -> None:
    forward = a_step("A", Phase.OUT, attempts=3, attempt=attempt, tried_before=before)
    assert (forward.attempts, forward.attempt_of_round) == (before + 3, of_round)
    back = a_step("A", Phase.UNDO_OUT, compensation_attempts=3, compensation_attempt=attempt, tried_before=before)
    assert (back.attempts, back.attempt_of_round) == (before + 3, of_round)


def test_a_saga_keeps_its_newest_interventions() -> None:
    saga = a_saga(a_step("A"))
    for n in range(MAX_INTERVENTIONS + 1):
        saga = saga.with_intervention(Intervention(verb="retry", reason="x", at_ms=n))
    assert [done.at_ms for done in saga.interventions] == list(range(1, MAX_INTERVENTIONS + 1))


def test_what_is_signalled_again_and_again_pushes_out_nothing_else() -> None:
    saga = a_saga(a_step("A"))
    for verb in ("signal approve", "cancel", *["signal topped-up"] * MAX_INTERVENTIONS, *["retry"] * MAX_INTERVENTIONS):
        saga = saga.with_intervention(Intervention(verb=verb, reason="x", at_ms=0))
    kept = [done.verb for done in saga.interventions]
    assert kept[:2] == ["signal approve", "cancel"]
    assert (len(kept), kept.count("signal topped-up"), kept[-49:]) == (MAX_INTERVENTIONS, 49, ["retry"] * 49)


# --- what it waits for


def test_a_pending_saga_waits_for_the_transaction_of_its_current_step() -> None:
    saga = a_saga(a_step("A", Phase.COMPLETED), out("B"), current_step=2)
    assert saga.waiting_for == "B-service to answer B, step 2"


def undone(**members: Any) -> Step:
    return a_step("A", Phase.UNDO_OUT, compensation="UndoA", due_ms=5, **members)


def test_a_compensating_saga_waits_for_the_compensation() -> None:
    saga = a_saga(undone(), a_step("B"), status=SagaStatus.COMPENSATING)
    assert saga.waiting_for == "A-service to answer UndoA, step 1"


def test_a_later_attempt_is_told_with_its_number() -> None:
    assert a_saga(out(attempt=1)).waiting_for == "A-service to answer A, step 1"
    assert a_saga(out(attempt=2)).waiting_for == "A-service to answer A, step 1 (attempt 2 of 3)"
    saga = a_saga(undone(compensation_attempt=4), status=SagaStatus.COMPENSATING)
    assert saga.waiting_for == "A-service to answer UndoA, step 1 (attempt 4 of 10)"


def test_a_saga_between_two_attempts_waits_for_the_time_of_the_next_one() -> None:
    saga = a_saga(a_step("A", Phase.BACKING_OFF, attempt=1, due_ms=5))
    assert saga.waiting_for == "the time to send A, step 1 again (attempt 2 of 3)"


def test_a_saga_that_is_to_be_cancelled_says_so() -> None:
    saga = a_saga(out(attempt=2), cancelling="ordered twice")
    assert saga.waiting_for == "A-service to answer A, step 1 (attempt 2 of 3), to be cancelled then"


def test_a_parked_saga_waits_for_a_person() -> None:
    assert a_saga(a_step("A", Phase.PARKED, attempt=2, parked="x")).waiting_for == "a person, it is parked"
    parked = a_step("A", Phase.UNDO_PARKED, parked="nobody knows")
    saga = a_saga(parked, status=SagaStatus.COMPENSATING)
    assert (saga.waiting_for, saga.parked) == ("a person, it is parked", "nobody knows")


@pytest.mark.parametrize("status", [SagaStatus.COMPLETED, SagaStatus.ABORTED])
def test_an_ended_saga_waits_for_nothing(status: SagaStatus) -> None:
    assert a_saga(a_step("A"), status=status).waiting_for == "nothing, it has ended"


def test_what_a_step_returned_or_failed_with_is_told_as_a_value() -> None:
    first = a_step("A", Phase.COMPLETED, result=b'{"payment":18446744073709551615}')
    second = a_step("B", Phase.FAILED, error=b'"no money"', compensation_error=b"[1]")
    saga = a_saga(first, second, a_step("C"))
    assert saga.results == [{"payment": 18446744073709551615}, None, None]
    assert [step.error_value for step in saga.steps] == [None, "no money", None]
    assert [step.compensation_error_value for step in saga.steps] == [None, [1], None]


def test_the_test_kit_tells_the_same_results() -> None:
    service = Service("shop")

    @service.command("Sell", compensation=None)
    def sell(params: Any, context: Context) -> Any:
        if params is None:
            raise Reject("sold out")
        return params

    with Sagas(service) as sagas:
        steps = ({"transaction": "Sell", "service": "shop", "params": params} for params in ({"n": [1.5]}, None))
        saga = sagas.run(list(steps))
    assert saga.results == saga.state.results == [{"n": [1.5]}, None]


def test_the_protocols_view_has_its_members_in_order_and_no_others() -> None:
    saga = a_saga(
        a_step("A", Phase.COMPLETED, result=b"null"), a_step("B", Phase.PARKED, parked="x"), current_step=2, reason="y"
    )
    view = protocol_view(saga)
    assert list(view) == ["saga_id", "status", "current_step", "completed_steps", "compensating_steps", "steps"]
    assert [list(step) for step in view["steps"]] == [
        ["transaction", "params", "status", "result"],
        ["transaction", "params", "status"],
    ]
    assert view["steps"][0] == {
        "transaction": "A",
        "params": {"n": 2**64 - 1},
        "status": "COMPLETED",
        "result": None,
    }


def test_the_protocols_view_is_made_of_plain_json_values() -> None:
    view = protocol_view(a_saga(a_step("A", Phase.COMPLETED), compensating_steps=(1,)))
    assert type(view["status"]) is str
    assert type(view["steps"][0]["status"]) is str
    assert view["compensating_steps"] == [1]


def test_a_step_that_completed_stays_a_completed_one_when_it_is_compensated() -> None:
    steps = [a_step("A", Phase.COMPENSATED), a_step("B", Phase.COMPLETED), a_step("C", Phase.FAILED)]
    saga = a_saga(*steps, status=SagaStatus.COMPENSATING, current_step=2, compensating_steps=(2, 1))
    assert protocol_view(saga)["completed_steps"] == [1, 2]
    assert protocol_view(saga)["compensating_steps"] == [2, 1]


def test_a_step_that_was_compensated_to_be_on_the_safe_side_never_completed() -> None:
    steps = [a_step("A", Phase.COMPLETED), a_step("B", Phase.COMPENSATED, unknown=True)]
    assert protocol_view(a_saga(*steps, status=SagaStatus.COMPENSATING))["completed_steps"] == [1]
    assert protocol_view(a_saga(replace(steps[1], phase=Phase.IN_DOUBT)))["completed_steps"] == []


def test_a_step_that_was_skipped_never_completed() -> None:
    saga = a_saga(a_step("A", Phase.SKIPPED), a_step("B", Phase.COMPLETED))
    assert protocol_view(saga)["completed_steps"] == [2]
    assert protocol_view(saga)["steps"][0]["status"] == "FAILED"


def test_its_weight_counts_all_that_it_was_given() -> None:
    """Workers keep no heavy sagas in memory."""
    plain = a_saga(a_step("A", Phase.COMPLETED))
    heavy = b'"%b"' % (b"x" * 998)
    for name in ("result", "error", "compensation_error"):
        step = replace(plain.steps[0], **{name: None})
        assert a_saga(replace(step, **{name: heavy})).weight == a_saga(step).weight + 1000
    told = Intervention(verb="cancel", reason="as agreed", at_ms=0)
    assert replace(plain, interventions=(told,) * 3).weight == plain.weight + 3000
    graph = replace(plain, format=GRAPH)
    assert replace(graph, input=heavy).weight == plain.weight + 1000
    assert replace(graph, signals=(KeptSignal(name="go", payload=heavy, at_ms=0),)).weight == plain.weight + 1000
    declined = KeptSignal(name="go", payload=b"", declined="x" * 500, at_ms=0)
    assert replace(graph, signals=(declined,)).weight == plain.weight + 500
    assert graph.with_step(1, replace(graph.steps[0], parked="x" * 500)).weight == plain.weight + 500
    for name in ("built", "built_undo"):
        assert graph.with_step(1, replace(graph.steps[0], **{name: heavy})).weight == plain.weight + 1000
    for shape in (Shape(when=heavy), Shape(compensation_params=heavy)):
        definition = replace(graph.steps[0].definition, shape=shape)
        assert graph.with_step(1, replace(graph.steps[0], definition=definition)).weight == plain.weight + 1000
