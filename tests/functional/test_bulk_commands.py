"""The command line about many sagas, with real processes, of which one is killed in the middle."""

import json
import os
import pty
import signal
from typing import Any

import pytest

from sagastream import Accepted, SagaClient
from sagastream.store.bulks import is_bulk_id
from support.processes import Commands
from support.scenes import do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.waiting import until

pytestmark = pytest.mark.both_in_soak
BANK = """
from pathlib import Path

from sagastream import Reject, Service

service = Service("bank")

@service.command("Pay", compensation=None)
def pay(params, context):
    if context.step > 1:
        if not Path("mended").exists():
            raise Reject("out of \\x1b[2J order <b>")
        with open("calls", "a") as file:
            file.write(context.saga_id + "\\n")
"""


def parked(client: SagaClient, count: int) -> list[str]:
    """So many sagas that are parked."""
    names = [f"p{number:03}" for number in range(count)]
    steps: Any = [do(0, "Pay", "bank", kind="pivot"), do(0, "Pay", "bank", kind="retriable") | {"attempts": 1}]
    begun = client.begin_many([{"saga_id": n, "steps": steps, "attributes": {"customer": "c1"}} for n in names])
    assert all(isinstance(one, Accepted) for one in begun)
    redis: Any = client._redis
    until(lambda: redis.zcard(ONLY.index("status=PARKED")) == count, what="all are parked")
    return names


def on_terminal(commands: Commands, answer: str, *arguments: str, **env: str) -> tuple[int, str]:
    """Run a command, and answer what it asks. Returns its exit code, and the last line if that tells of a bulk."""
    here, there = pty.openpty()
    try:
        process = commands.start(*arguments, stdin=there, env=env)
        os.write(here, f"{answer}\n".encode())
        said, errors = process.communicate(timeout=60)
        assert b"Ask all of them?" in said + errors
    finally:
        os.close(here)
        os.close(there)
    last = said.decode().splitlines()[-1]
    return process.returncode, last if last.startswith("bulk ") else ""


def refused_all(commands: Commands, client: SagaClient, env: dict[str, str]) -> None:
    """On a terminal, it is asked. Of these sagas, none can be cancelled: each says why."""
    cancel = ("cancel", "--where", "customer=c1", "--reason", "never mind")
    assert on_terminal(commands, "n", *cancel, **env) == (1, "")
    assert client.bulks() == []
    code, said_yes = on_terminal(commands, "y", *cancel, **env)
    assert code == 0
    cancelled = commands.run("bulk", said_yes.split()[1], "--follow", "--limit", "2", **env)
    assert cancelled.returncode == 3
    assert "90 refused; 90 found of 90" in cancelled.stdout
    *_, told, one, other = cancelled.stdout.splitlines()
    assert told == "refused, the newest 2 of 90:"
    assert all(line.endswith("is past its pivot: there is no way back") for line in (one, other))


def test_many_are_retried_while_the_worker_that_does_it_is_killed(server: Server, commands: Commands) -> None:
    broker = server.broker()
    env = {"REDIS_URL": broker.url}
    client = SagaClient(broker)
    (commands.folder / "bank.py").write_text(BANK)
    commands.quiet("service", "bank:service", env=env)
    workers = [commands.quiet("worker", env=env) for _ in range(2)]
    names = parked(client, 90)
    (commands.folder / "mended").touch()

    # Without a terminal, nothing is asked; and nothing is done without --yes.
    asked = ("retry", "--where", "customer=c1", "--reason", "the bank is \x1b[2J back")
    shown = commands.run(*asked, **env)
    assert shown.returncode == 2
    assert "to retry: 90 or more sagas with customer=c1, status PARKED" in shown.stdout.replace(
        "90 sagas", "90 or more sagas"
    )
    assert len([line for line in shown.stdout.splitlines() if line.startswith("PARKED")]) == 10
    assert "nothing was done: standard input is no terminal to ask on; say --yes" in shown.stderr
    assert "\x1b" not in shown.stdout + shown.stderr
    refused_all(commands, client, env)
    begun = commands.run(*asked, "--yes", "--rate", "40", **env)
    assert begun.returncode == 0, begun
    bulk_id = begun.stdout.splitlines()[-1].split()[1]
    assert is_bulk_id(bulk_id)
    follow = commands.start("bulk", bulk_id, "--follow", "--json", env=env)
    until(lambda: client.bulk(bulk_id).done >= 15, what="it goes on")
    holder: Any = broker.client.hget(KEYS.bulk(bulk_id), "holder")
    carrying = next(one for one in workers if f"-{one.pid}-" in holder.decode())
    carrying.send_signal(signal.SIGKILL)
    carrying.wait()
    said, _ = follow.communicate(timeout=120)
    assert follow.returncode == 0
    last = json.loads(said.splitlines()[-1])
    assert (last["state"], last["found"], last["asked"], last["done"], last["refused"]) == ("DONE", 90, 90, 90, 0)
    calls = commands.folder / "calls"
    until(lambda: len(calls.read_text().split()) >= 90, what="all are paid")
    assert sorted(calls.read_text().split()) == names

    # The list, one bulk, what it did, and who did it.
    row = commands.run("bulk", **env).stdout
    assert row.startswith(f"{bulk_id}  DONE ")
    assert "retry: 90 taken; 90 found of 90" in row
    assert "the bank is \\x1b[2J back" in row
    results = [json.loads(line) for line in commands.run("bulk", bulk_id, "--json", **env).stdout.splitlines()]
    assert sorted(one["saga_id"] for one in results[1:]) == names
    assert "bulk begin" in commands.run("operations", **env).stdout
    state = client.get("p007")
    assert state is not None
    assert [one.verb for one in state.interventions] == ["retry"]


def test_a_bulk_that_nobody_carries_is_a_problem_for_the_doctor(server: Server, commands: Commands) -> None:
    broker = server.broker()
    env = {"REDIS_URL": broker.url}
    done = commands.run("bulk", "\x1b[2J", **env)
    assert (done.returncode, "there is no bulk '\\x1b[2J'" in done.stderr, "\x1b" in done.stderr) == (1, True, False)
    done = commands.run("abandon", "--status", "parked", "--reason", "r", "--yes", **env)
    assert (done.returncode, done.stdout) == (0, "there is no such saga: nothing is done\n")
    client = SagaClient(broker)
    runs, rests = (client.begin_bulk("retry", "mended", status="PARKED") for _ in range(2))
    client.pause_bulk(rests.bulk_id, reason="too many", actor="ann")
    broker.client.hset(KEYS.bulk(runs.bulk_id), "updated_ms", 1)
    told = commands.run("doctor", **env).stdout
    assert f"bulk {runs.bulk_id}" in told
    assert "no worker has gone on with it for " in told
    assert f"sagastream bulk {rests.bulk_id} --resume has it go on" in told
    client.pause_bulk(runs.bulk_id, reason="another")
    shown = commands.run("bulk", rests.bulk_id, "--resume", "--actor", "bob", **env).stdout
    assert [line[:9] + line[33:] for line in shown.splitlines() if line.startswith(("paused", "resumed"))] == [
        "paused     by ann: too many",
        "resumed    by bob",
    ]
