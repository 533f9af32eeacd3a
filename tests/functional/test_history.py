"""The history of a saga: what real processes have done, as a person, a client and a pipe see it."""

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
from typing import Any

import pytest

from sagastream import AsyncSagaClient, Context, HistoryEvent, HistoryKind, Reject, Service, connect
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store import published
from sagastream.store.keys import StoreKeys
from support.processes import SAGASTREAM, Commands
from support.scenes import Scene, do
from support.servers import Server
from support.waiting import until

#: Hostile: what a terminal would act on.
HOSTILE = "closed \x1b[2J\u202e"


class Moody(Scene):
    """A scene whose service fails the first two attempts of each transaction, and the first one of each undo."""

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server.broker())
        self.service = Service("work")
        self.service.command("Do", compensation="Undo")(self._do)
        self.service.compensation("Undo")(self._undo)
        keys = StoreKeys(self.broker.prefix, ["0"])
        published.publish(self.broker.client, keys, "work", self.service.publishes())
        self.runner = ServiceRunner(self.broker, self.service, self.stop)
        self.worker = Orchestrator(self.broker, self.stop, **options)
        self.process = self.runner.name.split()[-1]

    def _do(self, params: Any, context: Context) -> Any:
        if params == "never" or context.attempt < 3:
            raise Reject(HOSTILE)
        return params

    def _undo(self, _: Any, context: Context) -> None:
        if context.attempt < 2:
            raise Reject("not yet")


def stored(server: Server) -> dict[bytes, bytes]:
    """The hash of the saga s1."""
    fields: Any = connect(server.url).hgetall("saga:{0}:saga:s1")
    return dict(fields)


QUICK: dict[str, Any] = {"retry_failed": True, "backoff_ms": 1}


def test_a_history_names_each_attempt_and_the_process_that_answered_it(server: Server, commands: Commands) -> None:
    scene = Moody(server)
    scene.begin("s1", do(1, **QUICK), do("never", attempts=1))
    state = scene.play("s1")
    assert state.status == "ABORTED"
    events = scene.client.history("s1")
    assert [(event.kind, event.step, event.attempt) for event in events] == [
        ("BEGUN", None, None),
        ("SENT", 1, 1),
        ("FAILED", 1, 1),
        ("SENT", 1, 2),
        ("FAILED", 1, 2),
        ("SENT", 1, 3),
        ("DONE", 1, 3),
        ("SENT", 2, 1),
        ("FAILED", 2, 1),
        ("UNDO_SENT", 1, 1),
        ("UNDO_FAILED", 1, 1),
        ("UNDO_SENT", 1, 2),
        ("UNDONE", 1, 2),
        ("ENDED", None, None),
    ]

    async def heard() -> list[HistoryEvent]:
        async with AsyncSagaClient(scene.broker) as client:
            return await client.history("s1")

    assert asyncio.run(heard()) == events
    answered = [event for event in events if event.kind not in ("BEGUN", "SENT", "UNDO_SENT", "ENDED")]
    assert {event.process for event in answered} == {scene.process}
    assert (answered[0].error_value, answered[4].error_value) == (HOSTILE, "not yet")
    assert [event.at_ms for event in events] == sorted(event.at_ms or 0 for event in events)

    # The hash says it to whoever reads it without us; a person reads the table, a program the JSON.
    fields = stored(server)
    assert fields[b"step1.done_by"] == fields[b"step1.compensation_done_by"] == scene.process.encode()
    env = {"REDIS_URL": server.url}
    shown = commands.run("show", "s1", "--history", **env).stdout
    head, *rows = shown.splitlines()
    assert head == "s1  ABORTED"
    assert len(rows) == len(events)
    for row, event in zip(rows, events, strict=True):
        assert re.fullmatch(r"  \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z  [ 12]  \S.*", row), row
        assert event.text.partition(":")[0] in row
    assert "\\x1b[2J\\u202e" in shown
    assert "\x1b" not in shown
    told = json.loads(commands.run("show", "s1", "--history", "--json", **env).stdout)
    assert [one["kind"] for one in told["history"]] == [event.kind for event in events]
    assert told["history"][2]["error"] == HOSTILE
    assert told["steps"][0]["done_by"] == scene.process

    # An erased saga keeps its course, and nothing that anybody has written.
    scene.client.erase("s1", "asked to")
    erased = scene.client.history("s1")
    assert [event.kind for event in erased][-2:] == ["ENDED", "ASKED"]
    assert b"closed" not in b"".join(stored(server).values())


def test_a_saga_that_completes_writes_no_journal_and_no_process(server: Server) -> None:
    scene = Scene(server.broker())
    scene.begin("s1", do(1), do(2))
    entries: list[Any] = []
    reading: Any = connect(server.url)

    def settled() -> bool:
        scene.worker.turn(block_ms=1)
        scene.runner.turn(block_ms=1)
        entries.extend(reading.xrange("saga:{0}:replies:work"))
        state = scene.client.get("s1")
        return state is not None and state.ended

    until(settled, what="s1 ends")
    assert entries
    assert all(set(fields) == {b"body", b"attempt"} for _, fields in entries)
    fields = stored(server)
    assert not [name for name in fields if name == b"journal" or name.endswith(b"done_by")]


@pytest.mark.parametrize(("history_bytes", "kept"), [(0, 0), (300, 300)])
def test_a_worker_keeps_as_much_as_it_is_told(server: Server, history_bytes: int, kept: int) -> None:
    scene = Moody(server, history_bytes=history_bytes)
    scene.begin("s1", do(1, **QUICK))
    scene.play("s1")
    journal = stored(server).get(b"journal", b"")
    assert len(journal) <= kept
    assert bool(journal) is bool(kept)
    assert HistoryKind.LEFT_OUT in [event.kind for event in scene.client.history("s1")]


def test_a_watch_in_a_pipe_prints_each_change_and_ends_with_the_saga(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    scene = Scene(server.broker())
    scene.begin("s1", do(1), do(2))
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    watching = commands.start("show", "s1", "--watch", "--history", env=env)
    assert watching.stdout is not None
    out = watching.stdout.fileno()
    os.set_blocking(out, False)
    said = b""

    def says(words: bytes) -> bool:
        nonlocal said
        try:
            said += os.read(out, 65536)
        except BlockingIOError:
            return False
        return words in said

    until(lambda: says(b"sent to work"), what="the first picture")
    scene.runner.turn(block_ms=1)
    scene.turns_until(lambda: bool(scene.client.get("s1").completed_steps))  # type: ignore[union-attr]
    until(lambda: says(b"1  Do done"), what="the second picture")
    scene.play("s1")
    assert watching.wait(60) == 0
    says(b"")
    pictures = said.decode().split("\n\n")
    assert len(pictures) == 3
    assert all(picture.startswith("s1  ") for picture in pictures)
    assert "ended, COMPLETED" in pictures[2]


def test_a_watch_on_a_terminal_draws_anew_in_80_columns_and_an_interrupt_ends_it_quietly(
    server: Server, commands: Commands
) -> None:
    scene = Moody(server)
    scene.begin("s2", do("never", kind="pivot", attempts=3, **QUICK), do(1, name="Do", kind="retriable"))
    scene.turns_until(lambda: scene.client.get("s2") is not None)
    main, side = pty.openpty()
    env = {"REDIS_URL": server.url, "TERM": "xterm", "COLUMNS": "80", "LINES": "12"}
    watching = commands.start("show", "s2", "--watch", "--history", env=env, stdout=side, stderr=subprocess.PIPE)
    os.close(side)
    os.set_blocking(main, False)
    said = b""

    def says(words: bytes) -> bool:
        nonlocal said
        try:
            said += os.read(main, 65536)
        except BlockingIOError:
            return False
        return words in said

    until(lambda: says(b"sent to work"), what="the first picture")
    assert said.startswith(b"\x1b[?1049h\x1b[2J\x1b[H")  # a screen of its own: nothing is left above
    watching.send_signal(signal.SIGINT)
    assert watching.wait(60) == 128 + signal.SIGINT
    until(lambda: says(b"\x1b[?1049l"), what="the screen that was there before")
    assert watching.stderr is not None
    assert watching.stderr.read() == b""
    scene.play("s2")
    os.close(main)
    main, side = pty.openpty()
    again = subprocess.run(
        [SAGASTREAM, "show", "s2", "--watch", "--history"],
        stdout=side,
        stderr=subprocess.PIPE,
        env=commands.environment(**env),
        cwd=commands.folder,
        timeout=120,
        check=False,
    )
    os.close(side)
    os.set_blocking(main, False)
    shown = os.read(main, 65536).decode()
    os.close(main)
    assert (again.returncode, again.stderr) == (0, b"")  # it has ended: one picture
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown).splitlines()
    assert lines[0] == "s2  ABORTED"
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(" " * 29) for line in lines)  # a long text goes on below
