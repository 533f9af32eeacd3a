"""The trip of travel.py: its three services, a person's approval, a start tomorrow, and the ways in which it ends."""

import json
import sqlite3
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaState
from support.processes import Commands
from support.servers import Server
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("server", ["valkey"], indirect=True)]

HERE: Final = Path(__file__).parent
FILE: Final = HERE / "travel.py"
PAGE: Final = (HERE.parents[2] / "docs" / "definitions.md").read_text()
ADA: Final = {"traveller": "Ada", "to": "Lagos", "leaves": "2026-12-24", "nights": 3}


class Trips:
    """A worker and the three services, in processes of their own."""

    def __init__(self, server: Server, commands: Commands) -> None:
        self.client = SagaClient(server.broker())
        self.commands = commands
        self.env = {"REDIS_URL": server.url, "PYTHONPATH": str(HERE)}
        services = [word for name in ("flights", "hotels", "payments") for word in ("--service", f"travel:{name}")]
        commands.quiet("up", *services, env=self.env)

    def begin(self, saga_id: str, trip: Any) -> None:
        """Begin a trip as the docs do, by the definition in the store."""
        given = ("--input", json.dumps(trip), "--id", saga_id)
        done = self.commands.run("begin", "travel", *given, **self.env)
        assert (done.returncode, done.stdout) == (0, f"{saga_id} accepted\n"), done.stderr

    def deploy(self) -> None:
        done = self.commands.run("deploy", "travel:travel", **self.env)
        assert (done.returncode, done.stdout) == (0, "travel version 1 is current\n"), done.stderr

    def waits(self, saga_id: str) -> SagaState:
        """The saga once it waits for its approval."""

        def found() -> SagaState | None:
            state = self.client.get(saga_id)
            return state if state is not None and "the signal approval" in state.waiting_for else None

        return until(found, what=f"{saga_id} waits for its approval")

    def signal(self, saga_id: str, *options: str) -> None:
        done = self.commands.run("signal", saga_id, "approval", *options, **self.env)
        assert done.returncode == 0, done.stderr

    def rows(self) -> list[Any]:
        """What has been done, by the services' own database."""
        with closing(sqlite3.connect(self.commands.folder / "travel.db", timeout=30)) as db:
            return db.execute("SELECT * FROM done ORDER BY id").fetchall()


@pytest.fixture
def trips(server: Server, commands: Commands) -> Trips:
    return Trips(server, commands)


def test_a_trip_is_booked_approved_and_paid(trips: Trips) -> None:
    assert len(FILE.read_text().splitlines()) <= 60
    assert f"```python\n# travel.py\n{FILE.read_text()}```" in PAGE
    trips.deploy()
    trips.begin("trip-1", ADA)
    state = trips.waits("trip-1")
    assert sorted(state.completed_steps) == [1, 2]
    booked = [("trip-1/1/transaction", "Lagos on 24 December, 3"), ("trip-1/2/transaction", "Lagos on 24 December, 3")]
    assert trips.rows() == booked
    trips.signal("trip-1", "--payload", '{"by": "Grace"}')
    assert trips.client.wait("trip-1", 60).status == "COMPLETED"
    paid = ("trip-1/4/transaction", "for Ada: trip-1/1/transaction, trip-1/2/transaction; Grace")
    assert trips.rows() == [*booked, paid]


def test_a_trip_that_is_declined_is_undone(trips: Trips) -> None:
    trips.deploy()
    trips.begin("trip-1", ADA)
    trips.waits("trip-1")
    assert len(trips.rows()) == 2
    trips.signal("trip-1", "--decline", "too far")
    state = trips.client.wait("trip-1", 60)
    assert (state.status, sorted(state.compensating_steps)) == ("ABORTED", [1, 2])
    assert state.reason is not None
    assert "too far" in state.reason
    assert trips.rows() == []


def test_a_trip_that_no_service_takes_leaves_nothing(trips: Trips) -> None:
    trips.deploy()
    trips.begin("trip-1", ADA | {"nights": 0})
    state = trips.client.wait("trip-1", 60)
    # Flight and hotel are asked at once: either may be the first to refuse.
    refused = {f"Step {number} failed: there is no such trip" for number in (1, 2)}
    assert state.status == "ABORTED"
    assert state.reason in refused
    assert trips.rows() == []


def test_an_input_that_is_no_trip_begins_nothing(trips: Trips) -> None:
    trips.deploy()
    missing = [f"'{name}' is a required property" for name in ("traveller", "leaves", "nights")]
    for data, text in (
        (ADA | {"nights": "3"}, "Error: input/nights: '3' is not of type 'integer'\n"),
        ({"to": "Lagos"}, f"Error: input: {'; '.join(missing)}\n"),
    ):
        done = trips.commands.run("begin", "travel", "--input", json.dumps(data), "--id", "trip-1", **trips.env)
        assert (done.returncode, done.stderr) == (1, text)
    assert trips.client.get("trip-1") is None


def test_it_starts_tomorrow_and_can_be_cancelled_until_then(trips: Trips) -> None:
    before = datetime.now(UTC)
    program = trips.commands.start(str(FILE), program=(sys.executable,), env=trips.env)
    said = program.communicate(timeout=60)
    assert (program.returncode, *said) == (0, b"", b"")
    state = until(lambda: trips.client.get("trip-1"), what="a worker has read it")
    assert state.status == "PENDING"
    assert state.start_ms is not None
    starts = datetime.fromtimestamp(state.start_ms / 1000, UTC)
    assert timedelta(days=1) <= starts - before < timedelta(days=1, minutes=5)
    assert [step.attempt for step in state.steps] == [0, 0, 0, 0]
    cancelled = trips.client.cancel("trip-1", "it rains there", 60)
    assert cancelled.status == "ABORTED"
    assert trips.rows() == []


def test_it_starts_when_its_time_has_come(trips: Trips) -> None:
    trips.deploy()
    soon = round(time.time() * 1000) + 1_500
    trips.client.begin(trips.client.definition("travel"), ADA, saga_id="trip-1", start_at_ms=soon)
    state = trips.waits("trip-1")
    sent = [step.sent_ms for step in state.steps[:2]]
    assert all(ms is not None and ms >= soon for ms in sent)
