"""The test kit with sagas that are graphs: several commands at once, references, signals, pauses, starts."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from sagastream import Context, Definition, Reject, Service
from sagastream.errors import ImpossibleTransition, RequestRefused, SagastreamError, ScenarioError
from sagastream.testing import Saga, Sagas, check_every_fault
from sagastream.testing.orchestrator import InProcessOrchestrator

INPUT = {"user": "u1", "late": False}


class Ledger:
    """What stands, by idempotency key: the reversal of a key is final."""

    def __init__(self) -> None:
        self.stands: dict[str, Any] = {}
        self.told: list[tuple[str, Any]] = []  # what compensations were told
        self.inputs: list[Any] = []

    @property
    def names(self) -> list[str]:
        return sorted(what for what in self.stands.values() if what is not None)


def serve(sagas: Sagas) -> Ledger:
    """A service that books and pays, once under each key."""
    ledger = Ledger()
    service = Service("work")

    def doing(name: str) -> None:
        @service.command(name, compensation=f"Cancel{name}")
        def do(params: Any, context: Context) -> Any:
            if ledger.stands.setdefault(context.key, name) is None:
                raise Reject("cancelled")
            ledger.inputs.append((context.input, context.definition))
            return {"id": f"{name}-1", "params": params}

        @service.compensation(f"Cancel{name}")
        async def undo(params: Any, context: Context) -> None:
            ledger.told.append((name, context.undo))
            ledger.stands[context.transaction_key] = None

    for name in ("Flight", "Hotel", "Extra", "Pay", "Tell"):
        doing(name)
    sagas.serve(service)
    return ledger


def step(name: str, params: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": name.lower(), "transaction": name, "service": "work", "params": params} | more


TRAVEL: list[dict[str, Any]] = [
    step("Flight", {"for": {"$ref": "/input/user"}}, after=[]),
    step(
        "Hotel",
        {"for": {"$ref": "/input/user"}},
        after=[],
        compensation_params={
            "why": {"$ref": "/failure/reason"},
            "id": {"$ref": "/steps/hotel/result/id", "default": ""},
        },
    ),
    step("Extra", after=["hotel"], when={"eq": [{"$ref": "/input/late"}, True]}),
    {"id": "approval", "wait": "approve", "timeout_ms": 86_400_000, "after": ["flight", "extra"]},
    step(
        "Pay",
        [{"$ref": "/steps/flight/result/id"}, {"$ref": "/steps/approval/result/by", "default": None}],
        kind="pivot",
    ),
    {"id": "rest", "wait_ms": 3_600_000},
    step("Tell", kind="retriable"),
]


def test_a_graph_runs_with_all_that_it_needs(sagas: Sagas) -> None:
    ledger = serve(sagas)
    sagas.on_wait("approve", {"by": "boss"}, after_s=60)
    saga = sagas.run(TRAVEL, INPUT)
    assert saga.status == "COMPLETED"
    assert saga.commands == ["Flight", "Hotel", "Pay", "Tell"]
    assert saga.results[4] == {"id": "Pay-1", "params": ["Flight-1", "boss"]}
    assert sagas.clock.elapsed_s == 3660
    assert ledger.names == ["Flight", "Hotel", "Pay", "Tell"]
    assert ledger.inputs == [(INPUT, None)] * 4


def test_what_goes_wrong_in_one_branch_is_settled_and_undone_in_the_other(sagas: Sagas) -> None:
    ledger = serve(sagas)
    sagas.command("Flight").rejects("full")
    sagas.command("Hotel").takes(5)
    saga = sagas.run(TRAVEL, INPUT)
    assert (saga.status, saga.reason) == ("ABORTED", "Step 1 (flight) failed: full")
    assert saga.commands == ["Flight", "Hotel", "CancelHotel"]
    assert sagas.clock.elapsed_s == 5
    assert ledger.told == [("Hotel", {"why": "Step 1 (flight) failed: full", "id": "Hotel-1"})]
    assert "it goes back as soon as Hotel is answered: Step 1 (flight) failed: full" in saga.explain()


def test_the_story_of_a_graph_tells_what_its_steps_wait_for(sagas: Sagas) -> None:
    serve(sagas)
    sagas.on_wait("approve", {"by": "boss"})
    told = sagas.run(TRAVEL, INPUT, saga_id="trip").explain().splitlines()
    texts = [line.partition(" s  ")[2] for line in told[1:]]
    assert texts == [
        "it is to be run: Flight, Hotel, Extra, approve, Pay, pause, Tell",
        "step 1: Flight is sent to work",
        "step 2: Hotel is sent to work",
        'step 1: Flight_ok: {"id":"Flight-1","params":{"for":"u1"}}',
        'step 2: Hotel_ok: {"id":"Hotel-1","params":{"for":"u1"}}',
        "step 3 is bypassed: its condition does not hold",
        "step 4 waits for the signal approve",
        'the signal approve comes: {"by":"boss"}',
        'step 4 is done: {"by":"boss"}',
        "step 5: Pay is sent to work",
        'step 5: Pay_ok: {"id":"Pay-1","params":["Flight-1","boss"]}',
        "step 6 pauses for 3600 s",
        "step 6 is done",
        "step 7: Tell is sent to work",
        'step 7: Tell_ok: {"id":"Tell-1","params":null}',
        "COMPLETED",
    ]


def test_a_test_signals_and_declines_in_between(sagas: Sagas) -> None:
    ledger = serve(sagas)
    saga = sagas.begin(TRAVEL, INPUT)
    sagas.advance(3600)
    assert saga.state.waiting_for == "the signal approve, step 4 (approval)"
    with pytest.raises(RequestRefused, match="no open step that waits for the signal other"):
        saga.signal("other")
    with pytest.raises(ScenarioError, match="the signal: name must be"):
        saga.signal("not a name")
    saga.signal("approve", decline="too dear", actor="boss")
    assert (saga.status, saga.reason) == ("ABORTED", "Step 4 (approval) failed: approve was declined: too dear")
    assert saga.commands == ["Flight", "Hotel", "CancelHotel", "CancelFlight"]
    assert [(done.verb, done.reason, done.actor) for done in saga.state.interventions] == [
        ("decline approve", "too dear", "boss")
    ]
    assert ledger.names == []


def test_a_signal_that_comes_before_its_step_waits_is_kept(sagas: Sagas) -> None:
    serve(sagas)
    saga = sagas.begin(TRAVEL, INPUT)
    saga.signal("approve", {"by": "early bird"})
    assert saga.status == "COMPLETED"
    assert saga.results[4]["params"] == ["Flight-1", "early bird"]


def test_without_a_signal_the_time_runs_out(sagas: Sagas) -> None:
    ledger = serve(sagas)
    saga = sagas.run(TRAVEL, INPUT)
    assert saga.reason == "Step 4 (approval) failed: no signal approve within 1 d"
    assert sagas.clock.elapsed_s == 86_400
    assert ledger.names == []


def test_a_planned_signal_that_comes_too_late_is_refused_and_told(sagas: Sagas) -> None:
    serve(sagas)
    sagas.on_wait("approve", after_s=90_000)
    saga = sagas.run(TRAVEL, INPUT)
    assert saga.status == "ABORTED"
    assert "the signal approve is refused" in saga.explain()


def test_a_start_is_waited_for_on_the_clock_of_the_test(sagas: Sagas) -> None:
    serve(sagas)
    sagas.on_wait("approve")
    saga = sagas.begin(TRAVEL, INPUT, start_at=sagas.clock.now() + timedelta(days=1), deadline_ms=7_200_000)
    sagas.advance(3600)
    assert (saga.status, saga.commands) == ("PENDING", [])
    sagas.settle()
    assert saga.status == "COMPLETED"
    assert sagas.clock.elapsed_s == 86_400 + 3600


def test_a_step_that_waits_for_a_retry_is_sent_again_by_its_signal(sagas: Sagas) -> None:
    ledger = serve(sagas)
    sagas.on_wait("topped_up", after_s=60)
    sagas.command("Pay").rejects("no money", times=1)
    saga = sagas.run([step("Pay", retry_on="topped_up", retry_within_ms=3_600_000)], {})
    assert saga.status == "COMPLETED"
    assert (saga.commands, ledger.names) == (["Pay", "Pay"], ["Pay"])
    assert "step 1 waits for the signal topped_up, to send Pay again" in saga.explain()
    # It comes once for a step, so what fails each time fails in the end.
    sagas.command("Flight").rejects("full")
    saga = sagas.run([step("Flight", retry_on="topped_up", retry_within_ms=3_600_000)], {})
    assert saga.status == "ABORTED"
    assert saga.commands.count("Flight") == 2


def test_of_several_parked_steps_an_operator_names_one(sagas: Sagas) -> None:
    serve(sagas)
    for name in ("Tell", "Extra"):
        sagas.command(name).rejects("no", times=1)
    behind = [step(name, kind="retriable", attempts=1, after=["pay"]) for name in ("Tell", "Extra")]
    saga = sagas.run([step("Pay", kind="pivot"), *behind], {})
    assert saga.state.parked_steps == [2, 3]
    with pytest.raises(RequestRefused, match="is parked at several steps"):
        saga.retry()
    saga.retry(step="extra")
    assert saga.state.parked_steps == [2]
    saga.skip(step=2)
    assert saga.status == "COMPLETED"


def test_a_definition_is_run_with_its_input(sagas: Sagas) -> None:
    ledger = serve(sagas)
    trip = Definition("trip", version=1)
    flight = trip.step("Flight", service="work", params={"for": trip.input.user})
    trip.step("Pay", service="work", kind="pivot", params={"of": flight.result.id})
    saga = sagas.run(trip, {"user": "u7"})
    assert saga.results[1]["params"] == {"of": "Flight-1"}
    assert ledger.inputs == [({"user": "u7"}, "trip")] * 2
    with pytest.raises(ScenarioError, match="a definition says the deadline"):
        sagas.begin(trip, {"user": "u7"}, deadline_ms=5)


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"times": 0}, "times is at least 1"),
        ({"times": "2"}, "times is at least 1"),
        ({"after_s": -1}, "after_s is a number of seconds"),
        ({"decline": ""}, "decline must be"),
        ({"payload": {1}}, "not JSON: it is a set"),
    ],
)
def test_a_signal_that_cannot_be_is_refused_when_it_is_planned(sagas: Sagas, plan: dict[str, Any], why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        sagas.on_wait("approve", **plan)


@pytest.mark.parametrize(
    ("name", "hint"), [("aprove", "did you mean approve?"), ("nix", "there is topped_up, approve")]
)
def test_a_signal_that_no_step_takes_is_named(name: str, hint: str) -> None:
    steps = [step("Tell", retry_on="topped_up", retry_within_ms=1000), *TRAVEL[3:4]]
    steps[1] = steps[1] | {"after": ["tell"]}
    text = f"on_wait({name!r}): no step of these sagas takes this signal; {hint}"
    sagas = Sagas()
    try:
        serve(sagas)
        sagas.on_wait(name)
        sagas.check_faults()  # no saga has begun, so nobody knows
        assert sagas.run(steps, INPUT).status == "ABORTED"
        with pytest.raises(ScenarioError) as error:
            sagas.check_faults()
        assert str(error.value) == text
        assert sagas.explain().endswith(text)
    finally:
        sagas.close()


def test_a_signal_of_sagas_without_waits_is_named() -> None:
    def test() -> None:
        with Sagas() as sagas:
            serve(sagas)
            sagas.on_wait("approve")
            sagas.run([step("Flight")])

    with pytest.raises(ScenarioError, match=r"takes this signal; no step waits for any$"):
        test()


def test_a_sweep_names_such_a_signal_before_it_tells_what_it_did_not_complete() -> None:
    def setup(sagas: Sagas) -> Ledger:
        sagas.on_wait("aprove")
        return serve(sagas)

    with pytest.raises(ScenarioError, match=r"^on_wait\('aprove'\): .* did you mean approve\?$"):
        check_every_fault(setup, TRAVEL, settled, input=INPUT)


# --- what a test shows of its own mistakes


def typo(sagas: Sagas) -> Ledger:
    ledger = serve(sagas)
    sagas.command("Fligt")
    return ledger


@pytest.mark.parametrize(
    ("mistake", "functions"),
    [
        (lambda: Sagas().command("Pay"), ["<lambda>"]),
        (lambda: Sagas().command("Pay", step=0), ["<lambda>"]),
        (lambda: Sagas().on_wait("a b"), ["<lambda>"]),
        (lambda: Sagas().begin([{"transaction": "Pay"}]), ["<lambda>"]),
        (lambda: Sagas().run([step("Pay")]), ["<lambda>"]),
        (lambda: Sagas().run(Definition("empty", version=1), {}), ["<lambda>"]),
        (lambda: check_every_fault(typo, [step("Pay")], settled), ["<lambda>", "typo"]),
        (lambda: check_every_fault(serve, [step("Nope")], settled), ["<lambda>"]),
    ],
)
def test_a_mistake_of_a_test_is_shown_in_its_own_lines(mistake: Callable[[], object], functions: list[str]) -> None:
    with pytest.raises(SagastreamError) as error:
        mistake()
    shown = [entry.name for entry in error.traceback.filter(error)]
    assert shown == ["test_a_mistake_of_a_test_is_shown_in_its_own_lines", *functions]


def test_what_may_be_a_fault_of_the_kit_keeps_all_its_lines(sagas: Sagas, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ImpossibleTransition("a fault")

    monkeypatch.setattr(InProcessOrchestrator, "request", broken)
    serve(sagas)
    with pytest.raises(ImpossibleTransition) as error:
        sagas.begin([step("Pay")])
    assert [entry.name for entry in error.traceback.filter(error)][-2:] == ["begin", "broken"]


# --- every fault


def settled(saga: Saga, ledger: Ledger) -> None:
    """All that the saga wanted stands, or nothing does."""
    names = ["Flight", "Hotel", "Pay", "Tell"]
    assert ledger.names == (names if saga.status == "COMPLETED" else [])


def travel(sagas: Sagas) -> Ledger:
    sagas.on_wait("approve", {"by": "boss"}, after_s=60)
    return serve(sagas)


def test_whatever_goes_wrong_all_of_a_graph_stands_or_nothing() -> None:
    sweep = check_every_fault(travel, TRAVEL, settled, input=INPUT, start_in_s=60)
    for what in (
        "is declined",
        "is not signalled in time",
        "is signalled twice",
        "is signalled before its step waits",
        "is waited for when the saga is cancelled",
    ):
        assert f"approve of step 4 {what}" in sweep.runs
    assert "Hotel of step 2 is out when the saga is cancelled" in sweep.runs
    assert "Hotel of step 2 is answered after the others, then Flight of step 1 is rejected" in sweep.runs
    assert "Flight of step 1 is lost each time, then Hotel of step 2 is rejected" in sweep.runs
    assert "approve of step 4 is declined, then CancelFlight of step 1 is lost once" in sweep.runs
    assert not [run for run in sweep.runs if "pause" in run]  # it is behind the pivot, and cannot be cancelled
    assert len(sweep.runs) == len(set(sweep.runs))
    assert len(sweep.runs) > 100


def test_waits_behind_the_pivot_are_parked_and_retried() -> None:
    steps = [
        step("Pay", kind="pivot"),
        {"id": "sign", "wait": "sign", "timeout_ms": 1000},
        step("Tell", kind="retriable"),
    ]

    def setup(sagas: Sagas) -> Ledger:
        sagas.on_wait("sign")
        return serve(sagas)

    def check(saga: Saga, ledger: Ledger) -> None:
        assert saga.status in ("COMPLETED", "ABORTED")
        assert ledger.names == (["Pay", "Tell"] if saga.status == "COMPLETED" else [])

    sweep = check_every_fault(setup, steps, check, input={})
    assert "sign of step 2 is declined" in sweep.runs
    assert "sign of step 2 is waited for when the saga is cancelled" not in sweep.runs


def test_signals_that_send_a_failed_step_again_go_wrong_too() -> None:
    steps = [step("Hotel"), step("Pay", retry_on="topped_up", retry_within_ms=3_600_000)]

    def setup(sagas: Sagas) -> Ledger:
        sagas.on_wait("topped_up", after_s=60)
        return serve(sagas)

    def check(saga: Saga, ledger: Ledger) -> None:
        assert ledger.names == (["Hotel", "Pay"] if saga.status == "COMPLETED" else [])

    sweep = check_every_fault(setup, steps, check, input={})
    assert "Pay of step 2 is rejected, then topped_up of step 2 is declined" in sweep.runs
    assert "Pay of step 2 is rejected, then topped_up of step 2 is not signalled in time" in sweep.runs


def test_a_broken_graph_is_found() -> None:
    """The sweep tells what breaks: here, the undo of one branch is forgotten."""

    def broken(sagas: Sagas) -> Ledger:
        ledger = travel(sagas)
        sagas.command("CancelHotel").rejects("never", times=1)
        return ledger

    forgetful = [dict(one) for one in TRAVEL]
    forgetful[1] |= {"compensation": None}
    del forgetful[1]["compensation_params"]
    with pytest.raises(AssertionError, match=r"approve of step 4 is declined: assert \['Hotel'\] == \[\]"):
        check_every_fault(travel, forgetful, settled, input=INPUT)
    with pytest.raises(ScenarioError, match="nothing goes wrong, and yet"):
        check_every_fault(serve, TRAVEL, settled, input=INPUT)  # nobody approves
    with pytest.raises(ScenarioError, match="a fault that never happened"):
        check_every_fault(broken, TRAVEL, settled, input=INPUT)


def test_the_same_test_gives_the_same_story() -> None:
    stories = set()
    for _ in range(3):
        sagas = Sagas(seed=3)
        travel(sagas)
        sagas.command("Flight").times_out(times=1)
        sagas.command("Hotel").is_delivered_twice()
        stories.add(sagas.run(TRAVEL, INPUT, saga_id="trip").explain())
        sagas.close()
    assert len(stories) == 1
