"""A command that tests fork is as one that a user starts."""

import signal
import subprocess
import sys

import pytest

from support import prepared
from support.processes import SAGASTREAM, Commands
from support.servers import Server
from support.waiting import until


def test_what_is_forked_is_as_what_is_started(
    commands: Commands, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    saga = '{"saga_id": "s1", "steps": [{"transaction": "Do", "service": "till"}]}'
    env = {"REDIS_URL": server.url, "XDG_STATE_HOME": "here"}

    def told() -> list[tuple[int, str, str]]:
        server.clear()
        lines = [
            ("begin", "-"),
            ("definitions",),
            ("begin", "nothing.json"),
            ("--help",),
            ("nonsense",),
            ("begin", "s1\udcff"),
        ]
        done = [commands.run(*line, given=saga if line[-1] == "-" else "", **env) for line in lines]
        return [(one.returncode, one.stdout, one.stderr) for one in done]

    if prepared.parent() is None:
        pytest.skip("nothing is forked")
    assert isinstance(commands.quiet("list"), prepared.Forked)
    forked = told()
    assert [code for code, _, _ in forked] == [0, 0, 2, 0, 2, 2]
    monkeypatch.setattr("support.prepared.parent", lambda: None)
    assert not isinstance(commands.quiet("list"), prepared.Forked)
    assert told() == forked


def test_a_forked_process_can_be_killed_waited_for_and_talked_to(commands: Commands, server: Server) -> None:
    worker = commands.start("worker", env={"REDIS_URL": server.url}, stderr=subprocess.STDOUT)
    assert worker.stdout is not None
    assert b"started" in worker.stdout.readline()
    assert worker.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.01)
    worker.kill()
    assert (worker.wait(60), worker.poll(), worker.returncode) == (-signal.SIGKILL,) * 3
    assert worker.stdout.read() == b""
    bridge = commands.start("bridge", env={"REDIS_URL": server.url})
    bridge.send_signal(signal.SIGTERM)
    until(lambda: bridge.poll() is not None, what="it ends")


def test_what_python_reads_as_it_starts_needs_a_start(commands: Commands) -> None:
    started = commands.quiet("list", env={"PYTHONDEVMODE": "1"})
    assert not isinstance(started, prepared.Forked)
    assert not isinstance(commands.quiet("list", program=("env", SAGASTREAM)), prepared.Forked)
    assert not isinstance(commands.quiet("-c", "pass", program=(sys.executable,)), prepared.Forked)
    (commands.folder / "redis").mkdir()
    assert not isinstance(commands.quiet("list", env={"PYTHONPATH": ":."}), prepared.Forked)


def test_a_service_is_found_on_the_path_that_it_is_given(commands: Commands, server: Server) -> None:
    (folder := commands.folder / "modules").mkdir()
    text = "import sys; from sagastream import Service; service = Service('till'); print(sys.path[:3], flush=True)"
    (folder / "shop.py").write_text(text)
    env = {"REDIS_URL": server.url, "PYTHONPATH": "modules"}
    told = []
    for program in ((SAGASTREAM,), (sys.executable, SAGASTREAM)):
        service = commands.start("service", "shop:service", program=program, env=env, stderr=subprocess.DEVNULL)
        assert service.stdout is not None
        told.append((isinstance(service, prepared.Forked), service.stdout.readline()))
    assert told == [(prepared.parent() is not None, told[0][1]), (False, told[0][1])]
    assert str(folder).encode() in told[0][1]
