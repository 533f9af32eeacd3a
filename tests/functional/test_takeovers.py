"""What is taken over from a dead process, with real processes: who is charged with its death, and who is not."""

import json
import signal
import subprocess
import textwrap
from typing import Any

import pytest

from sagastream.core.service_rules import MAX_TAKEOVERS
from support.processes import Commands
from support.servers import Server
from support.stores import ONLY
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

#: What the handlers do is in files in the current folder.
SERVICE = textwrap.dedent("""
    import asyncio
    import os
    import time
    from pathlib import Path

    import redis

    from sagastream import Service

    service = Service("work", concurrency=20, lease_ms=1500)

    def told(name, line):
        with open(name, "a") as file:
            print(line, file=file)

    @service.command("Work", compensation=None)
    def work(params, context):
        told("began", context.saga_id)
        if params == "die":
            time.sleep(0.1)  # the others begin, too
            told("deaths", context.saga_id)
            os._exit(1)
        if params == "away" and not Path("data").exists():
            raise redis.ConnectionError("the data are away")
        time.sleep(params if isinstance(params, float) else 0)
        told("done", context.saga_id)

    @service.command("WorkAsync", compensation=None)
    async def work_async(params, context):
        told("began", context.saga_id)
        if params == "die":
            await asyncio.sleep(0.1)
            told("deaths", context.saga_id)
            os._exit(1)
        await asyncio.sleep(params)
        told("done", context.saga_id)

    @service.compensation("Undo")
    def undo(params, context):
        told("began", context.saga_id)
        time.sleep(3)
        told("done", context.saga_id)
""")


class Play:
    """The broker, and processes of the service, of which each that dies is started again."""

    def __init__(self, server: Server, commands: Commands) -> None:
        self._server = server
        self._commands = commands
        self.folder = commands.folder
        self.redis = server.broker().client
        (self.folder / "fatal.py").write_text(SERVICE)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> "subprocess.Popen[bytes]":
        self.processes.append(self._commands.quiet("service", "fatal:service", env={"REDIS_URL": self._server.url}))
        return self.processes[-1]

    def start_again(self) -> None:
        for process in list(self.processes):
            if process.poll() is not None:
                self.processes.remove(process)
                self.start()

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def deliver(self, saga_id: str, params: Any, name: str = "Work", **more: Any) -> None:
        body = {"type": name, "saga_id": saga_id, "step": 1, "params": params} | more
        self.redis.xadd(ONLY.commands("work"), {"body": json.dumps(body), "begun_ms": 1})

    def answers(self) -> dict[str, str]:
        """By saga: the type of the reply and its error."""
        entries: Any = self.redis.xrange(ONLY.replies("work"))
        bodies = [json.loads(fields[b"body"]) for _, fields in entries]
        return {body["saga_id"]: f"{body['type']} {body.get('error', '')}".strip() for body in bodies}

    def answered(self, number: int) -> dict[str, str]:
        """The answers, once there are so many."""

        def all_there() -> bool:
            self.start_again()
            return len(self.answers()) >= number

        until(all_there, what=f"{number} answers", timeout_s=120)
        return self.answers()


@pytest.fixture
def play(server: Server, commands: Commands) -> Play:
    return Play(server, commands)


@pytest.mark.parametrize("name", ["Work", "WorkAsync"])
@pytest.mark.parametrize("processes", [1, 2])
def test_who_ran_beside_a_command_that_kills_completes(play: Play, name: str, processes: int) -> None:
    innocent = {f"healthy-{number}": f"{name}_ok" for number in range(8)}
    for saga_id in list(innocent)[:4]:
        play.deliver(saga_id, 0.4, name)
    play.deliver("poison", "die", name)
    for saga_id in list(innocent)[4:]:
        play.deliver(saga_id, 0.4, name)
    for _ in range(processes):
        play.start()
    answers = play.answered(len(innocent) + 1)
    poison = f"{name}_failed {MAX_TAKEOVERS} processes took {name} and did not live to answer it"
    assert answers == innocent | {"poison": poison}
    assert len(play.lines("deaths")) == MAX_TAKEOVERS
    assert sorted(play.lines("done")) == sorted(innocent)


def test_two_commands_that_kill_are_both_known_and_nobody_else_is_charged(play: Play) -> None:
    for saga_id, params in (("poison-1", "die"), ("healthy", 1.0), ("poison-2", "die")):
        play.deliver(saga_id, params)
    play.start()
    answers = play.answered(3)
    assert answers["healthy"] == "Work_ok"
    for saga_id in ("poison-1", "poison-2"):
        assert answers[saga_id] == f"Work_failed {MAX_TAKEOVERS} processes took Work and did not live to answer it"


def test_to_be_handed_back_is_no_death(play: Play) -> None:
    """The handler waits for its data while its process is replaced, again and again."""
    play.deliver("patient", "away")
    for _ in range(2 * MAX_TAKEOVERS):
        before, process = len(play.lines("began")), play.start()
        until(lambda before=before: len(play.lines("began")) > before, what="it begins")  # type: ignore[misc]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        play.processes.clear()
    (play.folder / "data").touch()
    play.start()
    assert play.answered(1) == {"patient": "Work_ok"}


@pytest.mark.parametrize("name", ["Work", "WorkAsync", "Undo"])
def test_what_takes_longer_than_the_lease_and_has_no_deadline_runs_once(play: Play, name: str) -> None:
    more = {"compensating": True} if name == "Undo" else {}
    play.deliver("slow", 3.0, name, **more)
    for _ in range(3):
        play.start()
    assert play.answered(1) == {"slow": f"{name}_ok"}
    assert play.lines("began") == ["slow"]


def test_a_process_that_was_stopped_while_it_waited_does_not_take_its_command_for_new(play: Play) -> None:
    """The broker's answer waits in its socket. It says the time at which the command came, and is read long after."""
    stopped = play.start()
    play.deliver("first", 0.0)
    play.answered(1)
    for number in range(1, 20):
        stopped.send_signal(signal.SIGSTOP)
        seconds, micros = play.redis.time()
        body = {"type": "Work", "saga_id": f"new-{number}", "step": 1, "params": 0.0}
        ms = seconds * 1000 + micros // 1000
        fields: Any = {"body": json.dumps(body), "begun_ms": 1, "not_after_ms": ms + 60_000, "unrecorded_ms": ms}
        play.redis.xadd(ONLY.commands("work"), fields, id=f"{ms}-*")  # as commit.lua adds it
        group: Any = play.redis.xpending(ONLY.commands("work"), "work")
        if group["pending"]:
            break
        stopped.send_signal(signal.SIGCONT)  # it was stopped between two readings
        play.answered(number + 1)
    other = play.start()
    play.answered(number + 1)
    other.terminate()
    other.wait(60)
    stopped.send_signal(signal.SIGCONT)
    play.deliver("last", 0.0)
    until(lambda: "last" in play.lines("done"), what="it works again")
    assert play.lines("began") == ["first", *(f"new-{one}" for one in range(1, number + 1)), "last"]
