"""Shapes that sagas have in the wild, each in a file beside this one with its services: run on real processes, to each
of their ends. What was done is read from the services' own databases."""

import json
import sqlite3
import time
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from sagastream.client import requests
from sagastream.client.blocking import SagaClient
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState
from sagastream.errors import RequestRefused
from support.processes import Commands
from support.servers import Server
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("server", ["valkey"], indirect=True)]

HERE: Final = Path(__file__).parent
DAY_MS: Final = 24 * 3600 * 1000


class Stage:
    """A worker and the services of one shape, as `sagastream up` runs them."""

    def __init__(self, server: Server, commands: Commands) -> None:
        self.client = SagaClient(server.broker())
        self.commands = commands
        self.env = {"REDIS_URL": server.url, "PYTHONPATH": str(HERE)}
        self._numbers = count(2)  # the file itself has 1

    def up(self, module: str, *services: str) -> None:
        named = [word for name in services for word in ("--service", f"{module}:{name}")]
        self.commands.quiet("up", *named, env=self.env)
        self._database = f"{module}.db"

    def shown(self, name: str) -> tuple[int, dict[str, Any]]:
        """Begin the saga of a file as the docs do, and wait for it. The exit code, and what `show` says of it."""
        file = HERE / f"{name}.json"
        done = self.commands.run("begin", str(file), "--wait", **self.env)
        saga_id = json.loads(file.read_text())["saga_id"]
        shown = self.commands.run("show", saga_id, "--json", **self.env)
        return done.returncode, json.loads(shown.stdout)

    def begin(self, name: str, *, start_at_ms: int | None = None, deadline_ms: int | None = None, **given: Any) -> str:
        """Begin the saga of a file with other values in its input. Returns its id."""
        body = json.loads((HERE / f"{name}.json").read_text())
        body["saga_id"] = f"{name}-{next(self._numbers)}"
        body["input"] |= given
        body.pop("start_at_ms", None)
        if start_at_ms is not None:
            body["start_at_ms"] = start_at_ms
        if deadline_ms is not None:
            body |= {"deadline_ms": deadline_ms, "deadline": "hard"}
        self.client.begin_request(requests.to_begin(body))
        return str(body["saga_id"])

    def end(self, name: str, **given: Any) -> SagaState:
        return self.client.wait(self.begin(name, **given), 60)

    def waits(self, saga_id: str, signal: str) -> SagaState:
        """The saga once it waits for this signal."""

        def found() -> SagaState | None:
            state = self.client.get(saga_id)
            waits = state is not None and f"the signal {signal}" in state.waiting_for
            return state if waits else None

        return until(found, what=f"{saga_id} waits for {signal}")

    def rows(self, statement: str, *values: Any) -> list[Any]:
        """What a service's database says."""
        with closing(sqlite3.connect(self.commands.folder / self._database, timeout=30)) as db:
            return [row[0] if len(row) == 1 else row for row in db.execute(statement, values)]

    def log(self, saga_id: str) -> list[str]:
        return self.rows("SELECT what FROM log WHERE saga_id = ? ORDER BY seq", saga_id)


@pytest.fixture
def stage(server: Server, commands: Commands) -> Stage:
    return Stage(server, commands)


def phases(state: SagaState) -> list[str]:
    return [str(step.phase) for step in state.steps]


def test_an_order_is_told_why_it_is_rejected(stage: Stage) -> None:
    stage.up("order_credit", "orders", "customers")
    code, shown = stage.shown("order_credit")
    assert (code, shown["status"]) == (0, "COMPLETED")
    state = stage.end("order_credit", total=700)  # 600 are left
    assert (state.status, state.failed_step) == ("ABORTED", 2)
    assert state.reason == 'Step 2 (credit) failed: {"code":"credit_limit","left":600}'
    orders = stage.rows("SELECT id, state, why FROM orders ORDER BY id")
    assert orders == [("order-1", "APPROVED", None), (state.saga_id, "REJECTED", "credit_limit")]
    assert stage.rows("SELECT order_id FROM credit") == ["order-1"]


def test_a_total_goes_from_the_first_step_to_the_third(stage: Stage) -> None:
    stage.up("ticket", "kitchen", "accounting", "orders")
    code, shown = stage.shown("ticket")
    assert (code, shown["status"]) == (0, "COMPLETED")
    assert shown["steps"][2]["params"] == shown["steps"][0]["result"]
    assert stage.rows("SELECT card, total FROM cards") == [("4242", 19)]
    assert stage.rows("SELECT state, total FROM tickets") == [("CONFIRMED", 19)]
    assert stage.rows("SELECT total FROM orders") == [19]
    assert phases(stage.end("ticket", card="expired")) == ["COMPENSATED", "FAILED", "WAITING", "WAITING"]
    assert stage.rows("SELECT state FROM tickets ORDER BY state") == ["CANCELLED", "CONFIRMED"]


def test_an_order_fails_in_seven_ways_and_each_is_undone(stage: Stage) -> None:
    stage.up("order_payment", "orders", "payment", "inventory")
    code, _ = stage.shown("order_payment")
    assert (code, stage.log("order-1")) == (0, ["ordered", "charged 20", "reserved"])
    undone = ["ordered", "charged 20", "refunded", "cancelled: stock"]
    ways: list[tuple[dict[str, Any], list[str]]] = [
        ({"quantity": 0}, []),
        ({"card": "declined"}, ["ordered", "cancelled: pay"]),
        ({"card": "the line goes dead"}, ["ordered", "charged 20", "refunded", "cancelled: pay"]),
        ({"sku": "sold out"}, undone),
        ({"sku": "a broken row"}, undone),
        ({"sku": "sold out", "card": "refunds are slow"}, undone),
        ({"sku": "far away", "deadline_ms": 1000}, [*undone[:3], "cancelled: None"]),
    ]
    begun = [stage.begin("order_payment", **given) for given, _ in ways]
    for saga_id, (given, wanted) in zip(begun, ways, strict=True):
        state = stage.client.wait(saga_id, 60)
        assert state.status == "ABORTED", given
        log = stage.log(saga_id)
        assert log.count("reserved") == log.count("released"), given  # it may be reserved too late
        log = [what for what in log if what not in ("reserved", "released")]
        assert log == wanted, given


def test_three_bookings_are_made_at_once_and_undone_at_once(stage: Stage) -> None:
    stage.up("bookings", "transport", "rooms")
    code, shown = stage.shown("trip_at_once")
    assert (code, shown["status"]) == (0, "COMPLETED")
    state = stage.end("trip_at_once", to="Atlantis")
    assert phases(state) == ["COMPENSATED", "COMPENSATED", "FAILED"]
    assert len({step.sent_ms for step in state.steps}) == 1
    assert state.compensating_steps == (2, 1)
    assert state.steps[0].compensation_sent_ms == state.steps[1].compensation_sent_ms
    assert stage.rows("SELECT what, state FROM bookings WHERE key LIKE ? ORDER BY what", f"{state.saga_id}/%") == [
        ("car", "cancelled"),
        ("hotel", "cancelled"),
    ]


def test_a_summary_gets_four_results(stage: Stage) -> None:
    stage.up("bookings", "transport", "rooms", "desk")
    code, shown = stage.shown("holiday")
    assert (code, shown["status"]) == (0, "COMPLETED")
    assert shown["steps"][4]["params"] == {
        "what": "summary",
        "text": "Ada goes to Osaka",
        "of": [f"{what}-holiday-1" for what in ("payment", "hotel", "flight", "car")],
    }
    state = stage.end("holiday", to="Atlantis")
    assert phases(state) == ["COMPENSATED", "COMPENSATED", "FAILED", "COMPENSATED", "WAITING"]
    assert state.compensating_steps == (4, 2, 1)


def test_parts_of_a_machine_are_taken_apart_in_a_legal_order(stage: Stage) -> None:
    stage.up("instance", "cloud")
    code, shown = stage.shown("instance")
    assert (code, shown["status"]) == (0, "COMPLETED")
    made = stage.log("vm-1")
    assert made[0] == "make instance"
    assert made.index("make pick") < made.index("make reserve")
    assert made[5:] == ["make configure", "make attach", "make boot"]
    state = stage.end("instance", size=1000)
    undone = [what for what in stage.log(state.saga_id) if what.startswith("undo")]
    assert undone[:2] == ["undo attach", "undo configure"]
    assert undone.index("undo reserve") < undone.index("undo pick")
    assert len(undone) == 7
    assert undone[-1] == "undo instance"


@pytest.mark.parametrize(
    ("loser", "given", "left"),
    [
        ("before", {"from": ["nobody", "b"]}, ["FAILED", "COMPENSATED", "WAITING", "WAITING"]),
        ("too poor", {"from": ["a", "b"], "amount": 101}, ["FAILED", "FAILED", "WAITING", "WAITING"]),
        ("beside", {"to": ["nobody", "d"]}, ["COMPENSATED", "COMPENSATED", "FAILED", "COMPENSATED"]),
        ("after", {"to": ["c", "nobody"]}, ["COMPENSATED", "COMPENSATED", "COMPENSATED", "FAILED"]),
    ],
)
def test_no_money_is_lost_whoever_loses(stage: Stage, loser: str, given: Any, left: list[str]) -> None:
    stage.up("transfers", "north", "south")
    assert stage.end("transfers").status == "COMPLETED"
    state = stage.end("transfers", **given)
    assert phases(state) == left
    accounts = stage.rows("SELECT name, money FROM accounts ORDER BY name")
    assert accounts == [("a", 70), ("b", 70), ("c", 130), ("d", 130)]


def test_a_parcel_is_called_back_by_its_tracking_number(stage: Stage) -> None:
    stage.up("shipping", "shop", "carrier")
    received, refused = stage.begin("shipping"), stage.begin("shipping")
    stage.waits(received, "received")
    done = stage.commands.run("signal", received, "received", "--payload", '{"by": "Ada"}', **stage.env)
    assert done.returncode == 0, done.stderr
    state = stage.client.wait(received, 60)
    assert (state.status, state.results[3]) == ("COMPLETED", {"by": "Ada"})
    stage.client.signal(refused, "received", decline="it is broken", timeout_s=60)
    state = stage.client.wait(refused, 60)
    assert (state.status, state.reason) == ("ABORTED", "Step 4 (handover) failed: received was declined: it is broken")
    assert dict(stage.rows("SELECT tracking, state FROM parcels")) == {
        f"T-{received}": "sent",
        f"T-{refused}": "called back",
    }
    assert stage.log(refused) == ["do stock", "do payment", "undo payment", "undo stock"]


def test_one_of_two_branches_is_taken(stage: Stage) -> None:
    stage.up("loan", "bank")
    code, shown = stage.shown("loan")
    assert (code, shown["status"]) == (0, "COMPLETED")
    assert stage.log("loan-1") == ["score", "grant at 3", "pay out at 3"]
    poor = stage.begin("loan", income=30000)
    stage.waits(poor, "reviewed")
    stage.client.signal(poor, "reviewed", {"rate": 9}, 60)
    state = stage.client.wait(poor, 60)
    assert phases(state) == ["COMPLETED", "BYPASSED", "COMPLETED", "COMPLETED", "COMPLETED"]
    assert stage.log(poor) == ["score", "grant at 9", "pay out at 9"]
    refused = stage.begin("loan", income=100)
    stage.waits(refused, "reviewed")
    stage.client.signal(refused, "reviewed", decline="no income", timeout_s=60)
    assert stage.client.wait(refused, 60).status == "ABORTED"
    assert stage.log(refused) == ["score"]


def test_a_post_is_put_together_and_kept_in_three_places(stage: Stage) -> None:
    stage.up("compose_post", "parts", "storage")
    code, shown = stage.shown("compose_post")
    assert (code, shown["status"]) == (0, "COMPLETED")
    post = {
        "id": "post-post-1",
        "text": "hello @grace",
        "by": {"user": "ada", "name": "Ada"},
        "media": [{"id": "m1", "type": "image"}],
    }
    assert set(stage.rows("SELECT place, owner, post FROM kept")) == {
        ("posts", "ada", str(post)),
        ("timeline", "ada", "post-post-1"),
        ("home", "grace", "post-post-1"),
    }
    state = stage.end("compose_post", text="nobody is mentioned")  # so nobody's timeline can be found
    assert (state.status, state.failed_step) == ("ABORTED", 7)
    assert "/steps/text/result/mentions/0" in str(state.reason)
    assert len(stage.rows("SELECT * FROM kept")) == 3


def test_a_trip_starts_when_it_should_and_is_paid_once_it_is_approved(stage: Stage) -> None:
    stage.up("bookings", "transport", "rooms", "desk")
    now_ms = int(time.time() * 1000)
    tomorrow = stage.begin("approved_trip", start_at_ms=now_ms + DAY_MS)
    soon = stage.begin("approved_trip", start_at_ms=now_ms + 2000)
    state = until(lambda: stage.client.get(tomorrow), what="a worker has read it")
    assert (state.status, state.waiting_for, state.due_ms) == ("PENDING", "its start", now_ms + DAY_MS)
    stage.client.cancel(tomorrow, "no holidays", 60)
    state = stage.client.wait(tomorrow, 60)
    assert (state.status, state.reason) == ("ABORTED", "Cancelled: no holidays")
    stage.waits(soon, "approval")
    with pytest.raises(RequestRefused, match="has no open step that waits for the signal aproval"):
        stage.client.signal(soon, "aproval", {}, 60)
    stage.client.signal(soon, "approval", {"by": "boss"}, 60, actor="boss@example.com")
    state = stage.client.wait(soon, 60)
    assert state.status == "COMPLETED"
    assert all(step.sent_ms is not None and step.sent_ms >= now_ms + 2000 for step in state.steps)
    [told] = stage.rows("SELECT told FROM bookings WHERE what = 'payment'")
    assert json.loads(told) == {
        "what": "payment",
        "approved_by": "boss",
        "of": [f"flight-{soon}", f"hotel-{soon}"],
    }
    assert not stage.rows("SELECT key FROM bookings WHERE key LIKE ?", f"{tomorrow}/%")


def test_an_approval_may_come_before_it_is_waited_for(stage: Stage) -> None:
    stage.up("bookings", "transport", "rooms", "desk")
    start_ms = int(time.time() * 1000) + 1500
    saga_id = stage.begin("approved_trip", start_at_ms=start_ms)
    stage.client.signal(saga_id, "approval", {"by": "early bird"}, 60)
    state = stage.client.get(saga_id)
    assert state is not None
    assert state.steps[2].phase is Phase.WAITING
    with pytest.raises(RequestRefused, match="has been sent the signal approval already"):
        stage.client.signal(saga_id, "approval", {"by": "too many"}, 60)
    state = stage.client.wait(saga_id, 60)
    assert (state.status, state.results[2]) == ("COMPLETED", {"by": "early bird"})


def test_each_item_of_an_order_is_a_step_of_its_own(stage: Stage) -> None:
    stage.up("picking", "warehouse")

    def begin(saga_id: str, **items: int) -> Any:
        given = json.dumps({"items": [{"sku": sku, "quantity": quantity} for sku, quantity in items.items()]})
        file = str(HERE / "picking.json")
        return stage.commands.run("begin", file, "--id", saga_id, "--input", given, "--wait", **stage.env)

    assert begin("box-1", pen=2, hat=1).returncode == 0
    assert begin("box-2").returncode == 0
    done = begin("box-3", cup=3, pen=4, hat=2)
    assert done.returncode == 3, done.stderr
    state = stage.client.get("box-3")
    assert state is not None
    assert [step.definition.shape.id for step in state.steps] == ["open", "pick.0", "pick.1", "pick.2", "pack"]
    assert state.reason == 'Step 3 (pick.1) failed: {"not_enough":"pen"}'
    assert phases(state) == ["COMPENSATED", "COMPENSATED", "FAILED", "COMPENSATED", "WAITING"]
    assert stage.rows("SELECT id, parts FROM boxes ORDER BY id") == [("box-1", "1: 2 pen, 2: 1 hat"), ("box-2", "")]
    assert dict(stage.rows("SELECT sku, quantity FROM shelf")) == {"pen": 3, "cup": 5, "hat": 4}
    refused = begin("box-4", pen=0)
    assert refused.returncode == 1
    assert "/items/0/quantity" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert stage.client.get("box-4") is None
