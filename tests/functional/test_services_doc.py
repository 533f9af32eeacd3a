"""The examples of docs/services.md, word for word."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaStatus
from support.processes import Commands
from support.servers import Server
from support.waiting import until

DOC = (Path(__file__).parents[2] / "docs" / "services.md").read_text()


def example(language: str, first: str) -> str:
    """The only example in this language that begins with this text."""
    [found] = [text for text in re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL) if text.startswith(first)]
    return str(found)


@pytest.mark.parametrize("number", [0, 1], ids=["as it is run", "as it is developed"])
def test_the_service_runs_as_it_stands_there(server: Server, commands: Commands, number: int) -> None:
    (commands.folder / "trips.py").write_text(example("python", "# trips.py"))
    command = re.findall(r"^    sagastream (service .*)$", DOC, re.MULTILINE)[number]
    env = {"REDIS_URL": server.url}
    commands.quiet(*shlex.split(command), env=env)
    commands.quiet("worker", env=env)
    client = SagaClient(server.broker())

    def run(saga_id: str, *steps: tuple[str, Any]) -> Any:
        body: Any = [
            {"transaction": name, "service": "trips", "params": params, "attempts": 1} for name, params in steps
        ]
        return client.wait(client.begin(saga_id, body), 60)

    flight = {"flight": "LX12"}
    booked = run("t-1", ("BookSeat", flight), ("AskHotel", None))
    assert booked.status is SagaStatus.COMPLETED
    assert [json.loads(step.result) for step in booked.steps] == [flight, "confirmed"]
    # There is no such flight, so the seat is given back, and the next saga gets it.
    assert run("t-2", ("BookSeat", flight), ("BookSeat", {"flight": "X"})).status is SagaStatus.ABORTED
    assert run("t-3", ("BookSeat", flight)).status is SagaStatus.COMPLETED
    refused = run("t-4", ("BookSeat", flight))
    assert (refused.status, "sold_out" in refused.reason) == (SagaStatus.ABORTED, True)


#: A machine whose clock is a minute ahead.
AHEAD = """
import datetime, time

real, minute = datetime.datetime, datetime.timedelta(minutes=1)
machine = time.time


class Ahead(real):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + minute


datetime.datetime = Ahead
time.time = lambda: machine() + 60
"""


def test_the_clock_of_the_machine_may_be_wrong(server: Server, commands: Commands) -> None:
    (commands.folder / "trips.py").write_text(AHEAD + example("python", "# trips.py"))
    env = {"REDIS_URL": server.url}
    commands.quiet("service", "trips:service", env=env)
    commands.quiet("worker", env=env)
    client = SagaClient(server.broker())
    client.begin("t-1", [{"transaction": "AskHotel", "service": "trips", "timeout_ms": 30_000, "attempts": 1}])
    state = client.wait("t-1", 60)
    assert (state.status, state.reason) == (SagaStatus.COMPLETED, None)


def test_the_probe_tells_a_process_that_hears_from_its_broker(server: Server, commands: Commands) -> None:
    health = commands.folder / "healthy"
    probe = example("sh", "test").replace("/tmp/healthy", str(health))
    assert example("sh", "test").strip() in example("yaml", "livenessProbe")

    def is_healthy() -> bool:
        return subprocess.run(["sh", "-c", probe], capture_output=True, check=False).returncode == 0

    assert not is_healthy()
    process = commands.quiet("worker", "--health-file", str(health), env={"REDIS_URL": server.url})
    until(is_healthy, what="it has heard from the broker")
    process.kill()
    process.wait()
    os.utime(health, (1, 1))  # a while later
    assert not is_healthy()
