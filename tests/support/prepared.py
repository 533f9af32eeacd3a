"""Starts `sagastream …` in a quarter of the time, and for a third of the work: hundreds of tests start several.

Most of a start is the import of what others have written: redis, asyncio, click. So one process for each process of the
tests imports all of that once, and forks for each command line. Nothing of ours is imported before: the fork runs the
installed script as Python would, in the environment and the folder that it is given.

Who asks for more than that, such as an environment in which Python itself starts in another way, gets a start as usual.
With `SAGASTREAM_TESTS_FORK=0`, so does everybody. Processes that our own commands start are started as usual, too.
"""

import array
import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, NoReturn, TextIO

#: The command `sagastream` of the environment that the tests run in.
SCRIPT: Final = str(Path(sys.executable).with_name("sagastream"))
#: What is imported before the fork; each brings along what it needs.
IMPORTED: Final = ("asyncio", "click", "hiredis", "logging", "msgspec", "orjson", "redis", "redis.asyncio", "ssl")
#: Python reads such variables as it starts.
READ_AT_START: Final = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC", "TZ")
#: How many bytes a request has at most.
_MOST_BYTES: Final = 1 << 20
_OPTIONS: Final = {"cwd", "env", "stdin", "stdout", "stderr"}


class Forked(subprocess.Popen[bytes]):
    """A process that was forked. To those who use it, it is as any that was started."""

    def __init__(self, path: str, args: Sequence[str], cwd: Path, env: Mapping[str, str], **streams: Any) -> None:
        self.args = [*args]
        self.returncode: int | None = None
        # What the methods of `Popen` that are used as they are look at.
        self._child_created, self._input, self._communication_started = True, None, False
        self._sigint_wait_secs = 0.25
        self.text_mode = self.encoding = self.errors = None
        pipes = [_stream(streams.get(name), number) for number, name in enumerate(("stdin", "stdout"))]
        merged = streams.get("stderr") == subprocess.STDOUT
        pipes.append((os.dup(pipes[1][0]), None) if merged else _stream(streams.get("stderr"), 2))
        ours: list[IO[bytes] | None] = [pipe for _, pipe in pipes]
        self.stdin, self.stdout, self.stderr = ours
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._told.connect(path)
        theirs = [number for number, _ in pipes]
        asked = json.dumps([self.args, str(cwd), dict(env)]).encode()
        self._told.sendmsg([asked], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", theirs))])
        for number in theirs:
            os.close(number)
        self.pid = int(self._told.recv(64))

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        return self._ended(0.0)

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._ended(timeout)) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as ready:
                ready.register(self._told, selectors.EVENT_READ)
                if ready.select(timeout):
                    self.returncode = int(self._told.recv(64))
                    self._told.close()
        return self.returncode


def _stream(wanted: Any, number: int) -> tuple[int, IO[bytes] | None]:
    """What the process gets as this stream, and our end of it if it is a pipe."""
    if wanted is None:
        return os.dup(number), None
    if wanted == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_RDWR), None
    if wanted != subprocess.PIPE:
        return os.dup(wanted if isinstance(wanted, int) else wanted.fileno()), None
    read, write = os.pipe()
    return (read, open(write, "wb", -1)) if number == 0 else (write, open(read, "rb", -1))  # noqa: PTH123


class Parent:
    """The process that forks, as its own parent sees it."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._env = dict(os.environ)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._path = self._ours.recv(4096).decode()
        atexit.register(self.end)

    def can(self, program: Sequence[str], env: Mapping[str, str], options: Mapping[str, Any]) -> bool:
        """Whether a fork of it is what would be started."""
        return (
            [*program] == [SCRIPT]
            and options.keys() <= _OPTIONS
            and _read_at_start(env) == _read_at_start(self._env)
            and not _hides(options["cwd"], env)
            and self._process.poll() is None
        )

    def start(self, args: Sequence[str], *, cwd: Path, env: Mapping[str, str], **streams: Any) -> Forked:
        return Forked(self._path, args, cwd, env, **streams)

    def end(self) -> None:
        self._ours.close()
        self._process.wait()


def _read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(READ_AT_START) and name != "PYTHONPATH"}


def _hides(cwd: Path, env: Mapping[str, str]) -> bool:
    """Whether PYTHONPATH leads to other modules than those that were imported before the fork."""
    imported = {"sitecustomize", "usercustomize", *(name.partition(".")[0] for name in IMPORTED)}
    there = {path.stem for folder in _python_path(env) for path in (cwd / folder).glob("*")}
    return bool(imported & there)


def _python_path(env: Mapping[str, str]) -> list[str]:
    return [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]


@functools.cache
def parent() -> Parent | None:
    """That of this process; None: each command is started as usual."""
    return Parent() if os.environ.get("SAGASTREAM_TESTS_FORK", "1") != "0" else None


def popen(args: Sequence[str], *, program: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """As `subprocess.Popen(args, **options)`. `program`: what `args` begin with."""
    found = parent()
    if found is not None and found.can(program, options["env"], options):
        return found.start(args, **options)
    return subprocess.Popen(args, **options)


# --- in the process that forks


class _Forking:
    """Forks as it is asked to, and tells how those processes have ended."""

    def __init__(self, lifeline: socket.socket) -> None:
        self._lifeline = lifeline
        self._asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asking.bind(f"\0sagastream-tests-{os.getpid()}-{time.time_ns()}")
        self._asking.listen(64)
        self._running: dict[int, socket.socket] = {}
        self._woken, self._waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> tuple[list[str], str, dict[str, str]]:
        """Returns in a child, with what it is to run."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, and then this process
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waking)
        self._lifeline.send(self._asking.getsockname())
        with selectors.DefaultSelector() as ready:
            for watched in (self._lifeline, self._asking, self._woken):
                ready.register(watched, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    if key.fileobj is self._lifeline:
                        os._exit(0)  # the tests have ended
                    if key.fileobj is self._asking and (asked := self._asked()) is not None:
                        return asked
                self._collect()

    def _asked(self) -> tuple[list[str], str, dict[str, str]] | None:
        """Fork; None in the parent."""
        one, _ = self._asking.accept()
        data, numbers, _, _ = socket.recv_fds(one, _MOST_BYTES, 3)
        pid = os.fork()
        if pid:
            for number in numbers:
                os.close(number)
            self._running[pid] = one
            one.send(str(pid).encode())
            return None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for told in (one, self._asking, self._lifeline, *self._running.values()):
            told.close()
        os.close(self._woken)
        os.close(self._waking)
        for wanted, number in enumerate(numbers):
            os.dup2(number, wanted)
            os.close(number)
        args, cwd, env = json.loads(data)
        return args, cwd, env

    def _collect(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                with self._running.pop(pid) as told, contextlib.suppress(OSError):  # the test may be gone
                    told.send(str(os.waitstatus_to_exitcode(status)).encode())


def _fresh_streams() -> Iterator[TextIO]:
    """Standard input, output and error as Python makes them."""
    for number, mode, errors in ((0, "rb", "strict"), (1, "wb", "strict"), (2, "wb", "backslashreplace")):
        raw = open(number, mode, -1, closefd=False)  # noqa: SIM115
        per_line = number == 2 or (number == 1 and os.isatty(1))
        yield io.TextIOWrapper(raw, None, errors, line_buffering=per_line)


def main() -> NoReturn:
    del sys.path[0]  # this folder
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    args, cwd, env = _Forking(socket.socket(fileno=int(sys.argv[1]))).serve()
    os.chdir(cwd)
    del sys.path[: len(_python_path(os.environ))]
    sys.path[:0] = [str(Path(args[0]).parent), *map(os.path.abspath, _python_path(env))]
    os.environ.clear()
    os.environ.update(env)
    for name, stream in zip(("stdin", "stdout", "stderr"), _fresh_streams(), strict=True):
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = args
    runpy.run_path(args[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    main()
