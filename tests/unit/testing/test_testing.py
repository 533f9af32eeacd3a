"""The test kit: what goes wrong when a test says so, what it shows, and what it refuses."""

import asyncio
import re
import sqlite3
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import assume, given
from hypothesis import strategies as st

from sagastream import Context, Reject, Service
from sagastream.errors import MalformedMessage, RequestRefused, ScenarioError, ServiceError
from sagastream.testing import CommandFaults, Fault, Sagas, check_every_fault
from sagastream.testing.clock import START

DOCS = (Path(__file__).parents[3] / "docs" / "testing.md").read_text()
Books = dict[str, int]


def do(transaction: str, params: Any = 1, **more: Any) -> dict[str, Any]:
    return {"transaction": transaction, "service": "work", "params": params} | more


STEPS = [do("Take"), do("Pay", 5)]


def serve(sagas: Sagas) -> Books:
    """The service `work`, which takes and pays, each once for each key. What it has done, by key; 0: given back."""
    books: Books = {}
    service = Service("work")

    def done(params: Any, context: Context) -> Any:
        if books.setdefault(context.key, params) == 0:
            raise Reject("cancelled")
        return {"done": params}

    async def undone(params: Any, context: Context) -> None:
        books[context.transaction_key] = 0

    for name, undo in (("Take", "GiveBack"), ("Pay", "PayBack")):
        service.command(name, compensation=undo)(done)
        service.compensation(undo)(undone)
    sagas.serve(service)
    return books


def balanced(saga: Any, books: Books) -> None:
    assert sum(books.values()) == (6 if saga.status == "COMPLETED" else 0)


def test_a_test_pauses_a_service_and_resumes_it(sagas: Sagas) -> None:
    books = serve(sagas)
    sagas.pause("work", "Pay")
    saga = sagas.run(STEPS)
    assert (saga.commands, saga.state.steps[1].is_held) == (["Take"], True)
    assert "step 2: Pay is held, since work is paused" in saga.explain()
    sagas.advance(86_400)
    assert not saga.state.ended
    sagas.pause("work")
    with pytest.raises(ScenarioError, match=r"^work/Take is not paused; paused: work, work/Pay$"):
        sagas.resume("work", "Take")
    sagas.resume("work", reason="it is paid", actor="ann")
    assert saga.commands == ["Take"]
    sagas.resume("work", "Pay")
    assert saga.status == "COMPLETED"
    told = [event.text for event in saga.history if event.kind in ("HELD", "RESUMED")]
    ends = "service work was resumed by ann: it is paid and Pay of service work was resumed: as the test has it"
    assert told == ["Pay held: Pay of service work is paused: as the test has it", f"Pay goes on: {ends}"]
    balanced(saga, books)


def test_a_saga_runs_against_its_services(sagas: Sagas) -> None:
    books = serve(sagas)
    saga = sagas.run(STEPS)
    assert saga.status == "COMPLETED"
    assert saga.commands == saga.called == ["Take", "Pay"]
    assert saga.results == [{"done": 1}, {"done": 5}]
    assert books == {f"{saga.saga_id}/1/transaction": 1, f"{saga.saga_id}/2/transaction": 5}
    assert sagas.clock.elapsed_ms == 0


def test_a_rejection_has_the_error_that_the_test_gives(sagas: Sagas) -> None:
    books = serve(sagas)
    sagas.command("Pay").rejects({"code": 7})
    saga = sagas.run(STEPS)
    assert (saga.status, saga.reason) == ("ABORTED", 'Step 2 failed: {"code":7}')
    assert saga.commands == ["Take", "Pay", "GiveBack"]
    assert saga.called == ["Take", "GiveBack"]
    assert sum(books.values()) == 0


def test_a_day_is_waited_for_in_no_time(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").times_out()
    day_ms = 24 * 3600 * 1000
    saga = sagas.run([do("Take"), do("Pay", attempts=2, timeout_ms=day_ms, backoff_ms=day_ms)])
    assert saga.reason == f"Step 2 failed: no answer within {day_ms} ms (2 attempts)"
    assert 2.5 * day_ms <= sagas.clock.elapsed_ms <= 3 * day_ms
    assert saga.commands == ["Take", "Pay", "Pay", "PayBack", "GiveBack"]


def test_a_handler_is_told_a_deadline_by_the_clock_of_the_test(sagas: Sagas) -> None:
    told: list[Any] = []
    service = Service("work")
    service.command("Take", compensation=None)(
        lambda params, context: told.append((context.deadline, context.remaining_s))
    )
    sagas.serve(service)
    sagas.advance(90)
    sagas.run([do("Take", timeout_ms=5_000)])
    assert told == [(START + timedelta(seconds=95), 5.0)]
    assert sagas.clock.now() == START + timedelta(seconds=90)


@pytest.mark.parametrize(("times", "calls"), [(1, 4), (2, 7)])
def test_a_handler_that_raises_is_tried_as_often_as_in_production(sagas: Sagas, times: int, calls: int) -> None:
    serve(sagas)
    sagas.command("Pay").raises(KeyError("sku"), after_effect=True, times=times)
    saga = sagas.run(STEPS)
    assert saga.status == "COMPLETED"
    assert saga.called == ["Take"] + ["Pay"] * calls


charged: list[int] = []


def charge(amount: int) -> None:
    """The function that `call=` names: it knows nothing about sagas."""
    charged.append(amount)
    if amount < 0:
        raise ValueError(amount)


def test_a_step_that_is_declared_to_run_on_rq_runs_here(sagas: Sagas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shop_charges", sys.modules[__name__])
    service = Service("work")
    service.command("Take", compensation=None, via="rq", queue="slow")(lambda params, context: {"took": params})
    service.command("Pay", call="shop_charges.charge", via="rq")
    sagas.serve(service)
    charged.clear()
    saga = sagas.run(STEPS)
    assert (saga.status, saga.results, charged) == ("COMPLETED", [{"took": 1}, None], [5])


def test_a_function_that_is_not_told_the_key_is_tried_once_as_in_production(
    sagas: Sagas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shop_charges", sys.modules[__name__])
    service = Service("work")
    service.command("Pay", call="shop_charges.charge")
    sagas.serve(service)
    charged.clear()
    saga = sagas.run([do("Pay", -5, attempts=1)])
    assert (saga.called, charged) == (["Pay"], [-5])
    assert "(try 1 of 1)" in saga.explain()


def test_what_goes_well_first_is_counted(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").rejects("no", skip=1)
    first, second = sagas.run(STEPS), sagas.run(STEPS)
    assert (first.status, second.status) == ("COMPLETED", "ABORTED")
    assert re.fullmatch(r"saga-1-[0-9a-f]{12}", first.saga_id)
    assert second.saga_id == first.saga_id.replace("saga-1", "saga-2")


def test_no_two_tests_have_a_saga_of_the_same_id_so_that_books_may_last(tmp_path: Path) -> None:
    """The second saga would find what the first has booked, and be done without an effect."""
    for number in (1, 2):
        books = sqlite3.connect(tmp_path / "books.db", isolation_level=None)
        books.execute("CREATE TABLE IF NOT EXISTS booked (key TEXT UNIQUE)")
        service = Service("work")
        service.command("Pay", compensation=None)(
            lambda params, context, books=books: books.execute("INSERT INTO booked VALUES (?)", [context.key]) and None
        )
        with Sagas(service) as sagas:
            assert sagas.run([do("Pay")]).status == "COMPLETED"
        assert books.execute("SELECT count(*) FROM booked").fetchone() == (number,)
        books.close()


def test_one_step_or_one_saga_goes_wrong_alone(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay", step=2, saga_id="b").rejects("no")
    steps = [do("Pay"), do("Pay")]
    a, b = sagas.begin(steps, saga_id="a"), sagas.begin(steps, saga_id="b")
    sagas.settle()
    assert (a.status, b.status) == ("COMPLETED", "ABORTED")
    assert b.commands == ["Pay", "Pay", "PayBack"]


def test_the_first_fault_that_was_named_comes_first(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").times_out(times=1)
    sagas.command("Pay").rejects("no")
    saga = sagas.run(STEPS)
    assert saga.commands == ["Take", "Pay", "Pay", "GiveBack"]
    assert saga.reason == "Step 2 failed: no (2 attempts)"


def test_a_process_that_dies_leaves_its_command_to_another_when_the_lease_has_run_out(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").crashes(after_effect=True)
    saga = sagas.run(STEPS)
    assert saga.called == ["Take", "Pay", "Pay"]
    assert saga.commands == ["Take", "Pay"]
    assert sagas.clock.elapsed_s == 30


def test_a_command_that_kills_whoever_works_on_it_is_given_up(sagas: Sagas) -> None:
    books = serve(sagas)
    sagas.command("Pay").crashes(after_effect=True, times=None)
    saga = sagas.run([do("Take"), do("Pay", timeout_ms=3600 * 1000, attempts=1)])
    assert saga.reason == "Step 2 failed: 5 processes took Pay and did not live to answer it"
    assert sum(books.values()) == 0


def test_an_answer_that_comes_after_the_undo_is_undone(sagas: Sagas) -> None:
    service = Service("work")
    effects: list[str] = []
    service.command("Pay", compensation="PayBack")(lambda params, context: effects.append(context.key))
    service.compensation("PayBack")(lambda params, context: effects.append(context.key))
    sagas.serve(service)
    sagas.command("Pay").answers_late(by_s=3)
    saga = sagas.run([do("Pay", attempts=1)])
    assert (saga.status, sagas.clock.elapsed_s) == ("ABORTED", 63)
    keys = [key.removeprefix(saga.saga_id) for key in effects]
    assert keys == ["/1/transaction", "/1/compensation", "/1/compensation/1"]


def test_an_answer_at_the_last_moment_is_in_time(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").takes(60)
    saga = sagas.run([do("Take"), do("Pay", attempts=1)])
    assert (saga.status, saga.commands) == ("COMPLETED", ["Take", "Pay"])


def test_an_answer_that_comes_twice_is_ignored_once(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").answers_twice()
    saga = sagas.run([*STEPS, do("Take")])
    assert (saga.status, saga.state.duplicates) == ("COMPLETED", 1)
    assert saga.called == ["Take", "Pay", "Take"]


class Strange(BaseException):
    """An error of a library that wants nobody to catch it."""


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, Strange])
def test_whatever_a_handler_raises_is_a_failure_of_it_as_in_production(sagas: Sagas, kind: type[BaseException]) -> None:
    service = Service("odd")

    @service.command("Do", compensation=None)
    def handle(params: Any, context: Context) -> None:
        raise kind("by itself")

    sagas.serve(service)
    saga = sagas.run([{"transaction": "Do", "service": "odd", "attempts": 1}])
    assert saga.reason == f"Step 1 failed: {kind.__name__}: by itself"


@pytest.mark.parametrize("ends", [pytest.fail, pytest.skip, KeyboardInterrupt])
def test_what_ends_the_test_is_no_failure_of_the_handler_in_which_it_is_raised(sagas: Sagas, ends: Any) -> None:
    service = Service("odd")

    @service.command("Do", compensation=None)
    def handle(params: Any, context: Context) -> None:
        raise KeyboardInterrupt if ends is KeyboardInterrupt else ends("by the test")

    sagas.serve(service)
    expected: Any = KeyboardInterrupt if ends is KeyboardInterrupt else ends.Exception
    with pytest.raises(expected):
        sagas.run([{"transaction": "Do", "service": "odd"}])


def test_an_async_handler_that_is_cancelled_has_failed(sagas: Sagas) -> None:
    service = Service("work")

    @service.command("Pay", compensation=None)
    async def pay(params: Any, context: Context) -> None:
        raise asyncio.CancelledError

    sagas.serve(service)
    assert sagas.run([do("Pay", attempts=3)]).reason == "Step 1 failed: CancelledError:  (3 attempts)"


@pytest.mark.parametrize("result", [object(), float("nan"), "x" * 2_000_000])
def test_a_result_that_no_reply_can_carry_leaves_the_outcome_unknown(sagas: Sagas, result: object) -> None:
    service = Service("work")
    service.command("Pay", compensation="PayBack")(lambda params, context: result)
    service.compensation("PayBack")(lambda params, context: None)
    sagas.serve(service)
    saga = sagas.run([do("Pay", attempts=1)])
    assert (saga.reason or "").startswith("Step 1 failed: the result of Pay is unusable: ")
    assert saga.called == ["Pay", "PayBack"]


def test_an_outage_of_what_a_handler_keeps_its_data_in_is_the_tests_to_mend(sagas: Sagas) -> None:
    service = Service("work")

    @service.command("Pay", compensation=None)
    def pay(params: Any, context: Context) -> None:
        raise redis.ConnectionError("refused")

    sagas.serve(service)
    with pytest.raises(redis.ConnectionError, match="refused"):
        sagas.run([do("Pay")])


def test_the_first_answer_stands(sagas: Sagas) -> None:
    service = Service("work")
    calls: list[str] = []

    @service.command("Count", compensation=None)
    def count(params: Any, context: Context) -> int:
        calls.append(context.key)
        return len(calls)

    sagas.serve(service)
    sagas.command("Count").is_delivered_twice()
    saga = sagas.run([do("Count"), do("Count")])
    assert saga.results == [1, 3]
    assert "Count_ok: 2" not in saga.explain()  # that was the second one's; it sends what is recorded
    assert saga.state.duplicates == 1
    assert [key.removeprefix(saga.saga_id) for key in calls] == ["/1/transaction"] * 2 + ["/2/transaction"]


def test_a_command_that_nobody_waits_for_any_more_is_not_begun(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").crashes()
    saga = sagas.run([do("Take"), do("Pay", timeout_ms=10_000, attempts=1, compensation=None)])
    assert saga.status == "ABORTED"
    assert saga.called == ["Take", "GiveBack"]
    assert "Pay came 20000 ms too late, and was not begun" in saga.explain()


def test_what_takes_long_can_be_cancelled_meanwhile(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").takes(20)
    saga = sagas.begin(STEPS)
    sagas.advance(5)
    assert (saga.status, saga.commands) == ("PENDING", ["Take", "Pay"])
    saga.cancel("changed their mind")
    assert (saga.status, saga.reason) == ("ABORTED", "Cancelled: changed their mind")
    assert saga.commands == ["Take", "Pay", "PayBack", "GiveBack"]
    assert sagas.clock.elapsed_s == 20


def test_a_parked_saga_is_retried_once_the_fault_is_over(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").rejects("no")
    fault = sagas.command("GiveBack").rejects("closed")
    saga = sagas.run(STEPS)
    assert (saga.status, saga.commands.count("GiveBack")) == ("COMPENSATING", 20)
    assert saga.parked == "GiveBack of step 1 failed 20 times: closed"
    fault.stop()
    saga.retry()
    assert saga.status == "ABORTED"
    assert not saga.parked


@pytest.mark.parametrize(("verb", "status"), [("skip", "ABORTED"), ("abandon", "ABORTED")])
def test_a_parked_saga_is_ended_by_an_operator(sagas: Sagas, verb: str, status: str) -> None:
    serve(sagas)
    sagas.command("Pay").rejects("no")
    sagas.command("GiveBack").rejects("closed")
    saga = sagas.run(STEPS)
    getattr(saga, verb)("as it is")
    assert saga.status == status
    assert saga.state.interventions[0].reason == "as it is"


def test_an_operator_is_refused_as_in_production(sagas: Sagas) -> None:
    serve(sagas)
    saga = sagas.run(STEPS)
    with pytest.raises(RequestRefused, match=f"saga {saga.saga_id} has ended, COMPLETED"):
        saga.cancel()
    with pytest.raises(RequestRefused, match=f"another saga has the id {saga.saga_id}"):
        sagas.begin(STEPS[:1], saga_id=saga.saga_id)


def test_the_deadline_of_a_saga_passes(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").takes(20)
    saga = sagas.run(STEPS, deadline_ms=10_000)
    assert saga.reason == "The deadline, 10000 ms after the begin, has passed"
    assert saga.status == "ABORTED"


def test_a_hard_deadline_passes_and_what_is_out_is_undone_at_once_and_again_once_it_was_done(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").takes(20)
    saga = sagas.run(STEPS, deadline_ms=10_000, deadline="hard")
    assert saga.reason == "The deadline, 10000 ms after the begin, has passed"
    assert saga.status == "ABORTED"
    assert saga.state.steps[1].unknown
    assert "PayBack" in saga.commands


def test_a_saga_is_cancelled_now(sagas: Sagas) -> None:
    serve(sagas)
    sagas.command("Pay").is_done_late()
    saga = sagas.begin(STEPS)
    sagas.advance(1)
    with pytest.raises(RequestRefused, match="is not parked"):
        saga.retry()
    saga.cancel("it hangs", now=True)
    assert (saga.status, saga.reason) == ("ABORTED", "Cancelled: it hangs")
    assert saga.state.interventions[0].verb == "cancel now"


def test_the_same_test_sees_the_same_times_each_time() -> None:
    def told(seed: int) -> str:
        with Sagas(seed=seed) as sagas:
            serve(sagas)
            sagas.command("Pay").raises()
            return sagas.run(STEPS, saga_id="s").explain()

    assert told(1) == told(1) != told(2)


# --- what it refuses


def test_what_nobody_serves_is_named_with_what_there_is(sagas: Sagas) -> None:
    with pytest.raises(ScenarioError, match=r"nothing is served yet: call sagas\.serve"):
        sagas.command("Pay")
    serve(sagas)
    with pytest.raises(ScenarioError, match=r"no service that is served has Pya; did you mean Pay\?"):
        sagas.command("Pya")
    with pytest.raises(ScenarioError, match="has Fly; there is Take, Pay, GiveBack, PayBack"):
        sagas.command("Fly")
    with pytest.raises(ScenarioError, match=r"step 1: no service wrok is served; did you mean work\?"):
        sagas.run([do("Pay", service="wrok")])
    with pytest.raises(ScenarioError, match=r"step 2: service work has no command Pays; did you mean Pay\?"):
        sagas.run([do("Pay"), do("Pays")])
    with pytest.raises(ScenarioError, match="has PayBak; did you mean PayBack"):
        sagas.run([do("Pay", compensation="PayBak")])
    with pytest.raises(MalformedMessage, match=r"step 1: timeout_ms must be a whole number"):
        sagas.run([do("Pay", timeout_ms=0)])
    with pytest.raises(ServiceError, match="two services are called work"):
        serve(sagas)


def test_a_fault_that_cannot_be_is_refused_where_it_is_named(sagas: Sagas) -> None:
    serve(sagas)
    with pytest.raises(ScenarioError, match="Pay cannot go wrong like that"):
        sagas.command("Pay").times_out(times=0)
    with pytest.raises(MalformedMessage):
        sagas.command("Pay").rejects(object())
    with pytest.raises(ScenarioError, match=r"not a Reject: \.rejects\('no'\)"):
        sagas.command("Pay").rejects(Reject("no"))
    wrong: Any = "1"
    with pytest.raises(ScenarioError, match="Pay: times is a whole number, or None for each time, not '1'"):
        sagas.command("Pay").raises(times=wrong)
    with pytest.raises(ScenarioError, match="Pay: skip is a whole number, not '1'"):
        sagas.command("Pay").raises(skip=wrong)
    for seconds in (wrong, float("nan"), float("inf")):
        with pytest.raises(ScenarioError, match="is not a number of seconds"):
            sagas.command("Pay").takes(seconds)
    for step in (0, -1, wrong):
        with pytest.raises(ScenarioError, match=f"Pay of step {step!r}: steps count from 1"):
            sagas.command("Pay", step=step)


@pytest.mark.parametrize("given", ["x", None, [Service("work")]])
def test_what_is_no_service_is_refused(given: Any) -> None:
    with pytest.raises(ServiceError, match=r"is not a Service: give services one by one, as in sagas\.serve\("):
        Sagas(given)


@pytest.mark.parametrize("steps", [None, 3, do("Pay"), "Pay", ["Pay"], [[do("Pay")]]])
def test_what_is_no_list_of_steps_is_refused(sagas: Sagas, steps: Any) -> None:
    serve(sagas)
    with pytest.raises(
        ScenarioError, match=r"steps is a list of steps, each a dict, as in sagas\.run\(\[step\]\); not "
    ):
        sagas.run(steps)


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), float("inf"), "1", None])
def test_time_goes_on_by_no_less_than_nothing(sagas: Sagas, seconds: Any) -> None:
    with pytest.raises(ScenarioError, match=r"time cannot advance by .*; give a number of seconds, at least 0"):
        sagas.advance(seconds)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (
            lambda sagas: sagas.command("PayBack").rejects("no"),
            r"PayBack: it was never sent\. What was sent: Take \(ste",
        ),
        (lambda sagas: sagas.command("Pay", step=1).rejects("no"), "Pay of step 1: it was never sent"),
        (lambda sagas: sagas.command("Pay").times_out(skip=1), "was to be called 1 times, and 1 were to go well"),
    ],
)
def test_a_fault_that_never_happened_is_an_error(fault: Any, why: str) -> None:
    def run() -> None:
        with Sagas() as sagas:
            serve(sagas)
            fault(sagas)
            sagas.run(STEPS)

    with pytest.raises(ScenarioError, match=why):
        run()


def test_a_test_that_fails_is_not_blamed_for_its_faults_too() -> None:
    def fail() -> None:
        with Sagas() as sagas:
            serve(sagas)
            sagas.command("Pay").rejects("no")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_a_handler_may_begin_a_saga_and_lets_no_time_pass(sagas: Sagas) -> None:
    service = Service("work")
    service.command("Begin", compensation=None)(lambda params, context: sagas.begin([do("Pay")]) and None)
    service.command("Run", compensation=None)(lambda params, context: sagas.run([do("Pay")]) and None)
    service.command("Pay", compensation=None)(lambda params, context: params)
    sagas.serve(service)
    saga = sagas.run([do("Begin")])
    assert saga.status == "COMPLETED"
    assert re.search(r"saga-2-\w+ is COMPLETED", sagas.explain())
    with pytest.raises(ScenarioError, match=r"call sagas\.begin\(steps\)"):
        sagas.run([do("Run")])


def test_an_async_test_is_told_how_to_run_async_handlers() -> None:
    async def ask(sagas: Sagas) -> str:
        with pytest.raises(ScenarioError, match=r"await asyncio\.to_thread\(sagas\.run, steps\)"):
            sagas.run(STEPS)
        return (await asyncio.to_thread(sagas.run, STEPS)).status

    with Sagas() as sagas:
        serve(sagas)
        sagas.command("Pay").rejects("no")
        assert asyncio.run(ask(sagas)) == "ABORTED"


# --- the story


def test_the_story_has_what_handlers_raised_from_where_they_begin(sagas: Sagas) -> None:
    service = Service("work")

    @service.command("Take", compensation=None)
    def broken(params: Any, context: Context) -> None:
        raise KeyError("sku\x1b[31m")

    sagas.serve(service)
    saga = sagas.run([do("Take", attempts=1)])
    told = saga.explain()
    assert told.startswith(f"{saga.saga_id} is ABORTED: Step 1 failed: KeyError: 'sku\\x1b[31m'\n")
    assert told.count("Traceback") == 1
    assert 'raise KeyError("sku' in told
    assert "handlers.py" not in told
    assert "\x1b" not in told
    assert repr(saga) == f"<{saga.saga_id} is ABORTED: Step 1 failed: KeyError: 'sku\\x1b[31m'>"


# --- whatever goes wrong


def test_services_that_keep_to_the_rules_pass_the_sweep() -> None:
    sweep = check_every_fault(serve, STEPS, balanced)
    assert len(sweep.runs) == len(set(sweep.runs)) == 57
    assert "Pay of step 2 kills its process, having been done" in sweep.runs
    assert "Pay of step 2 is rejected, then GiveBack of step 1 is answered twice" in sweep.runs


def test_the_sweep_takes_steps_of_every_kind_and_ends_each_saga() -> None:
    steps = [do("Take"), do("Pay", 2, kind="pivot", compensation=None), do("Pay", 3, kind="retriable")]
    statuses: list[str] = []

    def ended(saga: Any, books: Books) -> None:
        statuses.append(saga.status)
        assert saga.parked is None
        balanced(saga, books)

    sweep = check_every_fault(serve, steps, ended)
    assert set(statuses) == {"COMPLETED", "ABORTED"}
    assert "Pay of step 2 is out when the saga is cancelled" in sweep.runs
    assert "Pay of step 3 is out when the saga is cancelled" not in sweep.runs


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ("does it again", "Pay of step 1 is given to two processes: assert 10 == 5"),
        ("undoes it once", "Pay of step 1 is done a day late: assert 5 == 0"),
        (
            "undoes what it finds",
            "the saga is parked again: PayBack of step 1 failed 40 times: KeyError: 'saga-1-",
        ),
    ],
)
def test_the_sweep_finds_services_that_do_not_keep_to_the_rules(mistake: str, found: str) -> None:
    def careless(sagas: Sagas) -> list[tuple[str, int]]:
        paid: list[tuple[str, int]] = []
        undone: set[str] = set()
        service = Service("work")

        @service.command("Pay", compensation="PayBack")
        def pay(params: Any, context: Context) -> None:
            if mistake == "does it again" or (context.key, params) not in paid:
                paid.append((context.key, params))

        @service.compensation("PayBack")
        def pay_back(params: Any, context: Context) -> None:
            if mistake == "undoes it once" and context.transaction_key in undone:
                return
            undone.add(context.transaction_key)
            if mistake == "undoes what it finds" and not paid:
                raise KeyError(context.transaction_key)
            paid.clear()

        sagas.serve(service)
        return paid

    def paid_or_not(saga: Any, paid: list[tuple[str, int]]) -> None:
        assert sum(amount for _, amount in paid) == (5 if saga.status == "COMPLETED" else 0)

    with pytest.raises(AssertionError, match=re.escape(found)):
        check_every_fault(careless, [do("Pay", 5)], paid_or_not)


@pytest.mark.parametrize("returned", [False, True, 0])
def test_a_check_that_asserts_nothing_but_returns_is_refused(returned: object) -> None:
    def check(saga: Any, books: Books) -> Any:
        return returned

    with pytest.raises(ScenarioError, match=f"check returned {returned}, which is ignored: let it assert"):
        check_every_fault(serve, STEPS, check)


def test_a_sweep_of_what_fails_by_itself_is_refused() -> None:
    def closed(sagas: Sagas) -> None:
        service = Service("work")

        @service.command("Pay", compensation=None)
        def pay(params: Any, context: Context) -> None:
            raise Reject("closed")

        sagas.serve(service)

    with pytest.raises(
        ScenarioError, match=r"nothing goes wrong, and yet the saga does not complete:\nsaga-1-.* is ABORTED"
    ):
        check_every_fault(closed, [do("Pay")], lambda saga, state: None)


def rejects(command: CommandFaults, times: int | None) -> Fault:
    return command.rejects("no", times=times)


FAULTS = [
    rejects,
    lambda command, times: command.raises(times=times),
    lambda command, times: command.raises(after_effect=True, times=times),
    lambda command, times: command.times_out(times=times),
    lambda command, times: command.times_out(after_effect=True, times=times),
    lambda command, times: command.takes(45, times=times),
    lambda command, times: command.answers_late(times=times),
    lambda command, times: command.answers_late(by_s=90, times=times),
    lambda command, times: command.is_done_late(times=times),
    lambda command, times: command.is_done_late(by_s=90, times=times),
    lambda command, times: command.answers_twice(times=times),
    lambda command, times: command.is_delivered_twice(times=times),
    lambda command, times: command.crashes(times=times),
    lambda command, times: command.crashes(after_effect=True, times=times),
]  # fmt: skip


@given(
    faults=st.lists(
        st.tuples(
            st.sampled_from(["Take", "Pay", "GiveBack", "PayBack"]),
            st.sampled_from(FAULTS),
            st.none() | st.integers(1, 3),
        ),
        max_size=6,
    ),
    retriable=st.booleans(),
)
def test_the_books_balance_whatever_goes_wrong_together(faults: list[Any], retriable: bool) -> None:
    for rejected in [name for name, fault, _ in faults if fault is rejects and name in ("Take", "Pay")]:
        # If a service rejects a step, it says that nothing of it remains. That must be true, whatever else went wrong.
        assume([fault for name, fault, _ in faults if name == rejected] == [rejects])
    sagas = Sagas()
    books = serve(sagas)
    named: list[Fault] = []
    for name, fault, times in faults:
        command: CommandFaults = sagas.command(name)
        named.append(fault(command, times))
    saga = sagas.run([do("Take"), do("Pay", 5, retry_failed=retriable)])
    for fault in named:
        fault.stop()
    if saga.parked:
        saga.retry()
    sagas.close()
    assert saga.state.ended, saga.explain()
    balanced(saga, books)


# --- the plugin


def pytest_in(folder: Path, test: str) -> str:
    (folder / "test_it.py").write_text(test)
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "--tb=short"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout + done.stderr


def test_the_example_of_the_documentation_runs_word_for_word(tmp_path: Path) -> None:
    example = re.search(r"```python\n(# test_shop\.py\n.*?)```", DOCS, re.DOTALL)
    assert example is not None
    assert "3 passed" in pytest_in(tmp_path, example[1])
    story = re.search(r"(?<=\n\n)    saga-1-\w+ (is .*\n(    .*\n)+)", DOCS)
    assert story is not None
    wanted = 'assert saga.reason == "Step 2 failed: card declined"'
    assert textwrap.dedent(f"    {story[1]}") in pytest_in(tmp_path, example[1].replace(wanted, "assert False"))
    taking = re.search(r"        if self\.taken\.setdefault.*\n.*\n", example[1])
    careless = re.search(r"Put `(self\.taken\[key\] = .*)` in the place", DOCS)
    said = re.search(r"    AssertionError: (.*)\n {6}(.*)\n", DOCS)
    assert taking is not None
    assert careless is not None
    assert said is not None
    printed = pytest_in(tmp_path, example[1].replace(taking[0], f"        {careless[1]}\n"))
    assert said[1] in printed
    assert said[2] in printed


def test_the_documentation_tells_the_truth_about_graphs(tmp_path: Path) -> None:
    example = re.search(r"```python\n(# test_trip\.py\n.*?)```", DOCS, re.DOTALL)
    assert example is not None
    assert "3 passed" in pytest_in(tmp_path, example[1])


def test_a_fault_that_never_happened_fails_the_test_and_a_failure_shows_the_story(tmp_path: Path) -> None:
    test = """
from sagastream import Service

def serve(sagas):
    service = Service("work")
    service.command("Do", compensation="Undo")(lambda params, context: None)
    service.compensation("Undo")(lambda params, context: None)
    sagas.serve(service)

STEPS = [{"transaction": "Do", "service": "work", "params": None}]

def test_unused(sagas):
    serve(sagas)
    sagas.command("Undo").rejects("no")
    assert sagas.run(STEPS).status == "COMPLETED"

def test_fails(sagas):
    serve(sagas)
    assert sagas.run(STEPS).status == "ABORTED"
"""
    printed = pytest_in(tmp_path, test)
    assert "ScenarioError: a fault that never happened: Undo is rejected: no" in printed
    assert re.search(r"-+ Captured sagas call -+\nsaga-1-\w+ is COMPLETED\n +0\.000 s  it is to be run: Do\n", printed)
    assert "2 failed" in printed
    assert "error" not in printed.splitlines()[-1]


def test_the_plugin_costs_nothing_until_a_test_asks_for_it() -> None:
    code = """
import sys, pytest
before = set(sys.modules)
import sagastream.pytest_plugin
print(sorted(name for name in set(sys.modules) - before if name != "importlib"))
import sagastream.testing
print("redis" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["['sagastream', 'sagastream.pytest_plugin']", "False"]
