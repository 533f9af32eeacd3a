"""Processes as a user starts them: commands of `sagastream`, and a bridge to talk with."""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sagastream.broker.which_home import home_of
from support.prepared import SCRIPT, popen
from support.waiting import until

#: The command `sagastream` of the environment that the tests run in.
SAGASTREAM = SCRIPT

#: Sample services; see stubs/.
SAMPLES = tuple(f"sagastream_stubs.{name}:service" for name in ("inventory", "payment", "shipping"))


class Commands:
    """Starts processes in an empty folder of their own and ends whatever is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cwd"
        self.folder.mkdir()
        self.state = folder / "state"
        self.running: list[subprocess.Popen[bytes]] = []

    def environment(self, **changes: str) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "RQ_URL", "SAGASTREAM_HOME", "NO_COLOR")}
        return env | {"XDG_STATE_HOME": str(self.state)} | changes

    @property
    def home(self) -> Path:
        """The home of those that name none: that of the folder in which they run."""
        return home_of(self.folder.resolve(), self.state)

    def start(
        self, *arguments: str, program: Sequence[str] = (SAGASTREAM,), **options: Any
    ) -> "subprocess.Popen[bytes]":
        """Start `sagastream ARGUMENTS`. `env`: changes of the environment. `program`: started instead of sagastream."""
        env = self.environment(**options.pop("env", {}))
        for name in ("stdin", "stdout", "stderr"):
            options.setdefault(name, subprocess.PIPE)
        process = popen([*program, *arguments], program=program, cwd=self.folder, env=env, **options)
        self.running.append(process)
        return process

    def quiet(self, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
        """Start a process whose output nobody reads."""
        devnull = subprocess.DEVNULL
        return self.start(*arguments, stdin=devnull, stdout=devnull, stderr=devnull, **options)

    def run(self, *arguments: str, given: str | bytes = b"", **env: str) -> "subprocess.CompletedProcess[str]":
        """Run `sagastream ARGUMENTS` to its end."""
        data = given.encode() if isinstance(given, str) else given
        process = popen(
            [SAGASTREAM, *arguments],
            program=[SAGASTREAM],
            cwd=self.folder,
            env=self.environment(**env),
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
        )
        try:
            said, errors = process.communicate(data, timeout=120)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, said.decode(), errors.decode())

    def shell(self, lines: str) -> "subprocess.CompletedProcess[str]":
        """Run lines that a page tells a person to type, and end the processes that they leave in the background."""
        script = lines.replace("sagastream ", f"{SAGASTREAM} ") + "\nkill $!; wait $!\n"
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def end(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
            if process.poll() is None and has_children(process.pid):  # which it ends first
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(12)
            process.kill()  # one that still runs waits for handlers that hang
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()


def has_children(pid: int) -> bool:
    return subprocess.run(["pgrep", "-P", str(pid)], stdout=subprocess.DEVNULL, check=False).returncode == 0


def tell_to_end(process: "subprocess.Popen[bytes]") -> None:
    """Send SIGTERM to a process of `sagastream`, and wait until it knows: the thread that waits for signals is gone."""

    def threads() -> set[str]:
        return set(os.listdir(f"/proc/{process.pid}/task"))  # noqa: PTH208 - names are wanted

    before = threads()
    process.send_signal(signal.SIGTERM)
    until(lambda: process.poll() is not None or before - threads(), what="it knows that it is to end")


class Talk:
    """A bridge to which the test talks, line by line."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self._rest = b""

    def say(self, src: str, body: Any, dest: str = "orchestrator") -> None:
        self.say_raw(json.dumps({"src": src, "dest": dest, "body": body}).encode())

    def say_raw(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def hear(self, timeout_s: float = 60.0) -> tuple[str, str, dict[str, Any]]:
        """The next line: (src, dest, body)."""
        value = self.line(timeout_s)
        return value["src"], value["dest"], value["body"]

    def line(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """The next line, with all its members."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            ready = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"no line within {timeout_s:g} s"
            chunk = os.read(self.process.stdout.fileno(), 65536)
            assert chunk, "the bridge said its last"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))

    def finish(self) -> tuple[int, str, str]:
        """End its input. Returns (exit code, the rest of its output, stderr)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        rest = self._rest + self.process.stdout.read()
        errors = self.process.stderr.read()
        return self.process.wait(60), rest.decode(), errors.decode()
