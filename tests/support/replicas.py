"""A master, a replica of it, and one address: a failover moves the address to the replica."""

import socket
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import redis

from sagastream.broker.connection import connect
from support.servers import OwnServer, start_server
from support.waiting import until


class Pair:
    """`url`: the address of the master, whichever server that is."""

    def __init__(self, kind: str, folder: Path) -> None:
        for name in ("one", "two"):
            (folder / name).mkdir()
        self.master = start_server(kind, folder / "one", OwnServer)
        self.replica = start_server(kind, folder / "two", OwnServer)
        self._address = Path(tempfile.mkdtemp(prefix="sgp-")) / "s.sock"
        self._point_at(self.master)
        self.url = f"unix://{self._address}"
        with connect(self.master.url) as master, connect(self.replica.url) as replica:
            for name, value in (("bind", "127.0.0.1"), ("repl-diskless-sync-delay", 0), ("port", _free_port())):
                master.config_set(name, value)
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
        with connect(self.replica.url) as replica:
            replica.replicaof("NO", "ONE")
        self.master.kill()
        self._point_at(self.replica)

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
