"""What ends a wait, and how a saga that has not completed becomes an error."""

import asyncio
import math
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from sagastream import AsyncSagaClient, CorruptSaga, RequestRefused, SagaAborted, SagaClient, SagaParked, Unsettled
from sagastream.client.answers import Accepted, Refused
from sagastream.client.requests import to_begin, to_intervene
from sagastream.client.waiting import Outcome, Waiter, completed
from sagastream.core.messages import Verb
from sagastream.core.phases import Phase
from sagastream.core.saga import Intervention, SagaState, SagaStatus
from sagastream.core.step_state import Step

BEGIN = to_begin(
    {
        "saga_id": "s1",
        "steps": [
            {"transaction": "Reserve", "service": "inventory"},
            {"transaction": "Charge", "service": "till"},
        ],
    }
)


def a_saga(status: SagaStatus, *steps: Phase, unknown: bool = False, **more: object) -> SagaState:
    made = [Step(definition=d, phase=s) for d, s in zip(BEGIN.steps, steps, strict=True)]
    made[-1] = replace(made[-1], unknown=unknown)
    state = SagaState(saga_id="s1", status=status, current_step=1, steps=tuple(made), begun_ms=0, updated_ms=0)
    return replace(state, **more)


COMPLETED = a_saga(SagaStatus.COMPLETED, Phase.COMPLETED, Phase.COMPLETED)
PENDING = a_saga(SagaStatus.PENDING, Phase.OUT, Phase.WAITING)


def refusal(outcome: Outcome | None) -> Exception:
    assert isinstance(outcome, Refused)
    return outcome.error


def test_a_saga_that_is_not_there_or_goes_on_settles_nothing() -> None:
    wait = Waiter.for_end_of(Accepted(begin=BEGIN))
    assert wait.outcome(None) is None
    assert wait.outcome(PENDING) is None


def test_its_end_and_its_being_parked_settle_it() -> None:
    parked = PENDING.with_step(1, replace(PENDING.step, phase=Phase.PARKED, parked="why"))
    for wait in (Waiter.for_end_of("s1"), Waiter.for_end_of(Accepted(begin=BEGIN))):
        assert wait.outcome(COMPLETED) is COMPLETED
        assert wait.outcome(parked) is parked


def test_another_saga_of_the_same_id_is_refused_even_while_it_goes_on() -> None:
    other = to_begin({"saga_id": "s1", "steps": [{"transaction": "Else", "service": "till"}]})
    error = refusal(Waiter.for_end_of(Accepted(begin=other)).outcome(PENDING))
    assert isinstance(error, RequestRefused)
    assert error.code == 22


def test_a_damaged_saga_is_told_as_such() -> None:
    assert isinstance(refusal(Waiter.for_end_of("s1").outcome(CorruptSaga("why"))), CorruptSaga)


def test_an_operators_request_is_settled_when_it_was_done_and_not_by_the_end() -> None:
    request = to_intervene(Verb.CANCEL, "s1", "why")
    wait = Waiter(saga_id="s1", request=request)
    assert wait.outcome(COMPLETED) is None
    done = Intervention(verb="cancel", reason="why", at_ms=0, request_id=request.request_id)
    state = PENDING.with_intervention(done)
    assert wait.outcome(state) is state


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (PENDING, "not SagaState: give its saga_id"),
        (
            Refused(saga_id="s1", error=RequestRefused(22, "why")),
            "not Refused: it was not begun, and its error says why",
        ),
        (Unsettled(saga_id="s1", error=redis.TimeoutError(), sent=True), "not Unsettled: begin it again first"),
        (["s1"], "not list: for many there is as_completed"),
        (5, "not int"),
        (b"s1", "not bytes"),
        (None, "not NoneType"),
    ],
)
def test_what_cannot_be_waited_for_is_told_with_what_to_do_instead(wrong: Any, hint: str) -> None:
    told = f"^to be waited for: what begin returned, or the id of a saga, {hint}$"
    with pytest.raises(TypeError, match=told):
        Waiter.for_end_of(wrong)
    with SagaClient("redis://nowhere.invalid") as client, pytest.raises(TypeError, match=told):
        client.wait(wrong)


@pytest.mark.parametrize("wrong", ["q5", b"q5", None, 5, Accepted(begin=BEGIN)])
def test_one_saga_is_not_waited_for_as_if_it_were_many(wrong: Any) -> None:
    told = f"^sagas must be a list of ids, or of what begin returned, not {type(wrong).__name__}$"
    with SagaClient("redis://nowhere.invalid") as client, pytest.raises(TypeError, match=told):
        client.as_completed(wrong)


@pytest.mark.parametrize(
    ("timeout_s", "error"),
    [(-1, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("5", TypeError), (True, TypeError)],
)
def test_what_is_no_time_to_wait_is_refused_before_anything_is_sent(timeout_s: Any, error: type[Exception]) -> None:
    told = "timeout_s must be a number of seconds from 0 on, or None to wait for as long as it takes, not "

    async def use() -> None:
        async with AsyncSagaClient("redis://nowhere.invalid") as client:
            for call in (client.wait("s1", timeout_s), client.retry("s1", "why", timeout_s)):
                with pytest.raises(error, match=told):
                    await call

    with SagaClient("redis://nowhere.invalid") as client:
        with pytest.raises(error, match=told):
            client.wait("s1", timeout_s)
        with pytest.raises(error, match=told):
            client.as_completed(["s1"], timeout_s)
        with pytest.raises(error, match=told):
            client.cancel("s1", "why", timeout_s)
    asyncio.run(use())


def test_a_completed_saga_is_itself() -> None:
    assert completed(COMPLETED) is COMPLETED


def test_an_aborted_saga_names_the_step_that_failed() -> None:
    state = a_saga(SagaStatus.ABORTED, Phase.COMPENSATED, Phase.FAILED, reason="Step 2 failed: no money")
    with pytest.raises(SagaAborted) as caught:
        completed(state)
    error = caught.value
    assert (error.saga_id, error.reason) == ("s1", "Step 2 failed: no money")
    assert (error.step, error.transaction, error.service) == (2, "Charge", "till")
    assert str(error) == "saga s1 was aborted: Step 2 failed: no money (step 2, Charge of till)"


def test_a_step_that_was_undone_because_nobody_knew_is_the_one_that_failed() -> None:
    state = a_saga(SagaStatus.ABORTED, Phase.COMPENSATED, Phase.COMPENSATED, unknown=True, reason="why")
    with pytest.raises(SagaAborted) as caught:
        completed(state)
    assert caught.value.step == 2


def test_a_cancelled_saga_names_no_step() -> None:
    state = a_saga(SagaStatus.ABORTED, Phase.COMPENSATED, Phase.WAITING, reason="Cancelled: why")
    with pytest.raises(SagaAborted) as caught:
        completed(state)
    assert (caught.value.step, caught.value.transaction, caught.value.service) == (None, None, None)
    assert str(caught.value) == "saga s1 was aborted: Cancelled: why"


def test_a_parked_saga_names_what_it_is_parked_at() -> None:
    state = a_saga(SagaStatus.COMPENSATING, Phase.UNDO_PARKED, Phase.FAILED)
    state = state.with_step(1, replace(state.steps[0], compensation="Release", parked="the bank is closed"))
    with pytest.raises(SagaParked) as caught:
        completed(state)
    assert str(caught.value) == "saga s1 is parked: the bank is closed (step 1, Release of inventory)"
