"""A master, a replica of it, and one address: a failover moves the address to the replica."""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import redis

from sagastream.broker.connection import connect
from support.servers import OwnServer, start_server
from support.waiting import until


class Pair:
    """`url`: the address of the master, whichever server that is."""

    is_deaf = True  # a master hears only from the tests that it is none any more

    def __init__(self, kind: str, folder: Path) -> None:
        for name in ("one", "two"):
            (folder / name).mkdir()
        self.master = start_server(kind, folder / "one", OwnServer)
        self.replica = start_server(kind, folder / "two", OwnServer)
        self._address = Path(tempfile.mkdtemp(prefix="sgp-")) / "s.sock"
        self._point_at(self.master)
        self.url = f"unix://{self._address}"
        self.lost_bytes = 0  # that the master had accepted and the replica never got, when they changed places
        with connect(self.master.url) as master, connect(self.replica.url) as replica:
            for server in (master, replica):
                for name, value in (("bind", "127.0.0.1"), ("repl-diskless-sync-delay", 0), ("port", _free_port())):
                    server.config_set(name, value)
            replica.replicaof("127.0.0.1", master.config_get("port")["port"])
            until(lambda: _about(replica)["master_link_status"] == "up", what="the replica has all")

    def cut(self) -> None:
        """From now on, nothing that the master accepts reaches the replica."""
        with connect(self.master.url) as master:
            master.config_set("port", 0)
            master.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def wait(self) -> None:
        """Until the replica has all that the master has now."""
        with connect(self.master.url) as master:
            master.set("support:replicas", "1")
            assert master.wait(1, 10_000) == 1

    def promote(self) -> None:
        """The master dies, and the replica becomes the master. What it does not have is lost."""
        with connect(self.master.url) as master, connect(self.replica.url) as replica:
            replica.replicaof("NO", "ONE")
            self._count_lost(master, replica)
        self.master.kill()
        self._point_at(self.replica)

    @contextmanager
    def promoted_while_stopped(self) -> Iterator[None]:
        """The master stands still, and the replica becomes the master. Then the old one goes on, beside the new one:
        connections that were open to it stay. At the end of the block it hears that it is a replica."""
        self.master.pause()
        with connect(self.replica.url) as replica:
            replica.replicaof("NO", "ONE")
            self._point_at(self.replica)
            self.master.resume()
            yield
            with connect(self.master.url) as master:
                self._count_lost(master, replica)
                master.replicaof("127.0.0.1", replica.config_get("port")["port"])

    def _count_lost(self, old: redis.Redis, new: redis.Redis) -> None:
        self.lost_bytes = _about(old)["master_repl_offset"] - (_about(new)["second_repl_offset"] - 1)

    def stop(self) -> None:
        self.master.stop()
        self.replica.stop()
        self._address.unlink(missing_ok=True)
        self._address.parent.rmdir()

    def _point_at(self, server: OwnServer) -> None:
        new = self._address.with_suffix(".new")
        new.symlink_to(server.url.removeprefix("unix://"))
        new.replace(self._address)


def _about(client: redis.Redis) -> Any:
    return client.info("replication")


def _free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
