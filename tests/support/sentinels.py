"""A master, a replica of it, and three Sentinels that watch them, each at a port of its own on loopback."""

import subprocess
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis

from sagastream.broker.connection import connect
from support.servers import OwnServer, free_port, start_server
from support.waiting import until

MASTER: Final = "mymaster"
#: For how long a server must be silent until a Sentinel takes it for down. A busy machine is not to look like that; but
#: at the end of the master they are quick.
_PATIENT_MS, _EAGER_MS = 60_000, 500
#: Sentinels are quick here: usually they take seconds to hear of each other, and to agree on what is down. They turn a
#: replica that has become the master back if they do not hear why within four publish-periods, and one of them takes a
#: second to look.
_QUICK: Final = ("info-period", 200, "ping-period", 100, "ask-period", 100, "publish-period", 500)


class SentinelSet:
    """`url`: names the Sentinels. `master` and `replica`: as they were at the beginning."""

    def __init__(self, kind: str, folder: Path, *settings: str) -> None:
        """`settings`: lines for the configuration of the Sentinels."""
        self._running: list[subprocess.Popen[bytes]] = []
        self._servers: list[OwnServer] = []
        try:
            self._start(kind, folder, settings)
        except BaseException:
            self.stop()
            raise

    def _start(self, kind: str, folder: Path, settings: tuple[str, ...]) -> None:
        for name in ("one", "two"):
            (folder / name).mkdir()
            self._servers.append(start_server(kind, folder / name, OwnServer))
        self.master, self.replica = self._servers
        self.ports = [listen(server) for server in self._servers]
        with connect(self.replica.url) as replica:
            replica.replicaof("127.0.0.1", str(self.ports[0]))
            until(lambda: _about(replica)["master_link_status"] == "up", what="the replica has all")
        self.sentinels = [free_port() for _ in range(3)]
        for port in self.sentinels:
            self._running.append(self._sentinel(folder, port, settings))
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.sentinels)}/{MASTER}"
        for port in self.sentinels:
            until(partial(self._is_quick, port), what="the Sentinel answers")
        for port in self.sentinels:
            until(partial(self._is_ready, port), what="the Sentinels know each other and the replica")

    def _sentinel(self, folder: Path, port: int, settings: tuple[str, ...]) -> "subprocess.Popen[bytes]":
        own = folder / f"sentinel-{port}"
        own.mkdir()
        lines = (
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {own}",
            f"sentinel monitor {MASTER} 127.0.0.1 {self.ports[0]} 2",
            f"sentinel down-after-milliseconds {MASTER} {_PATIENT_MS}",
            f"sentinel failover-timeout {MASTER} 2000",
            *settings,
        )
        (own / "conf").write_text("\n".join(lines) + "\n")
        devnull = subprocess.DEVNULL
        options: dict[str, Any] = {"stdout": devnull, "stderr": devnull}
        return subprocess.Popen([self.master.binary, str(own / "conf"), "--sentinel"], **options)

    @property
    def new_master(self) -> str:
        """Where the replica listens, which is to become the master."""
        return f"127.0.0.1:{self.ports[1]}"

    @property
    def at_new_master(self) -> bool:
        """Whether all Sentinels say so."""
        found = [_answers(port, "GET-MASTER-ADDR-BY-NAME", MASTER) for port in self.sentinels]
        return all(one is not None and int(one[1]) == self.ports[1] for one in found)

    def wait(self) -> None:
        """Until the replica has all that the master has now."""
        with connect(self.master.url) as master:
            master.set("support:replicas", "1")
            assert master.wait(1, 10_000) == 1

    def want_replicas(self) -> None:
        """As docs/operating.md has it: a master takes no writes without a replica."""
        for server in (self.master, self.replica):
            with connect(server.url) as client:
                client.config_set("min-replicas-to-write", 1)

    def switch(self) -> None:
        """Tell a Sentinel to make the replica the master, as docs/operating.md has it: nobody has died, and nothing is
        lost."""
        with connect(self.master.url) as master:
            master.client_pause(4000, all=False)
        until(lambda: _answers(self.sentinels[0], "FAILOVER", MASTER), what="it takes the order")

    def _is_quick(self, port: int) -> bool:
        return _answers(port, "DEBUG", *_QUICK) is not None

    def _is_ready(self, port: int) -> bool:
        replicas, others = _answers(port, "REPLICAS", MASTER), _answers(port, "SENTINELS", MASTER)
        return [len(replicas or ()), len(others or ())] == [1, 2] and _answers(port, "CKQUORUM", MASTER) is not None

    def kill_master(self) -> None:
        self._wait_for_signs(_EAGER_MS)
        self.master.kill()

    def pause_master(self) -> None:
        self._wait_for_signs(_EAGER_MS)
        self.master.pause()

    def resume_master(self) -> None:
        """It takes itself for the master until a Sentinel tells it otherwise."""
        self._wait_for_signs(_PATIENT_MS)
        self.master.resume()

    def _wait_for_signs(self, milliseconds: int) -> None:
        for port in self.sentinels:
            assert _answers(port, "SET", MASTER, "down-after-milliseconds", milliseconds) is not None

    def kill_sentinel(self, number: int) -> None:
        self._running[number].kill()
        self._running[number].wait()

    def stop(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
        for server in self._servers:
            server.stop()


def listen(server: OwnServer) -> int:
    """Have a server that has only a socket listen at a port, too."""
    port = free_port()
    with connect(server.url) as client:
        client.config_set("bind", "127.0.0.1")
        client.config_set("port", port)
        client.config_set("repl-diskless-sync-delay", 0)
    return port


def _answers(port: int, *words: Any) -> Any:
    """What a Sentinel answers; None: it refuses, or does not answer."""
    with redis.Redis(port=port) as sentinel:
        ask: Any = sentinel.execute_command
        try:
            return ask("SENTINEL", *words)
        except redis.RedisError:
            return None


def _about(client: redis.Redis) -> Any:
    return client.info("replication")
