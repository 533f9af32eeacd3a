"""Two servers behind one address: a master and its replica, which change places.

An address leads new connections to the master. A connection that is open stays with the server that it was opened to,
whatever becomes of that, as it is behind a name whose address changes.
"""

import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis

from sagastream.broker.connection import connect
from support.proxy import CuttingProxy
from support.servers import OwnServer, start_server
from support.waiting import until

#: The ways in which a master becomes a replica.
SWITCHES: Final = ("FAILOVER", "REPLICAOF")
#: The commands in which readers wait.
_BLOCKING: Final = ("xread", "xreadgroup", "blmove", "blpop", "brpop", "brpoplpush")


class Pair:
    """A master, a replica that has all it has, and the address of the master."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._servers: list[OwnServer] = []
        self._clients: list[redis.Redis] = []
        self._ports: list[int] = []
        for name in ("first", "second"):
            (folder / name).mkdir()
            server = start_server(kind, folder / name, OwnServer)
            self._servers.append(server)
            self._clients.append(connect(server.url))
            self._ports.append(_free_port())
            self._clients[-1].config_set("port", self._ports[-1])
        self._master = 0
        self.clients[1].replicaof("127.0.0.1", str(self._ports[0]))
        self._until_replicating(1)
        self._proxy = CuttingProxy(_path(self._servers[0]), seed=1)
        self.url = self._proxy.url

    @property
    def clients(self) -> list[redis.Redis]:
        """Of the two servers themselves, in the order in which they were started."""
        return self._clients

    @property
    def master(self) -> redis.Redis:
        return self._clients[self._master]

    @property
    def replica(self) -> redis.Redis:
        return self._clients[1 - self._master]

    def __enter__(self) -> Self:
        self._proxy.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._proxy.__exit__(kind, error, at)
        for client in self._clients:
            client.close()
        for server in self._servers:
            server.stop()

    def switch(self, how: str, *, readdress: bool = True) -> None:
        """Let the two change places, as an operator does who plans it: nothing is lost.

        `readdress`: let the address lead to the new master, too.
        """
        old, new = self._master, 1 - self._master
        if how == "FAILOVER":
            command: Any = self.master.execute_command
            command("FAILOVER", "TO", "127.0.0.1", self._ports[new])
        else:
            until(lambda: _offset(self.master) == _offset(self.replica), what="the replica has all")
            self.replica.replicaof("NO", "ONE")
            self.master.replicaof("127.0.0.1", str(self._ports[new]))
        self._master = new
        until(lambda: _role(self.clients[new]) == "master", what="the replica is the master")
        self._until_replicating(old)
        if readdress:
            self.readdress()

    def readdress(self) -> None:
        """Let the address lead to the present master."""
        self._proxy.lead_to(_path(self._servers[self._master]))

    def unblock(self) -> int:
        """End every blocking read with an error. Returns how many there were."""
        blocked = [one["id"] for one in self.master.client_list() if one["cmd"] in _BLOCKING and "b" in one["flags"]]
        return sum(self.master.client_unblock(int(one), error=True) for one in blocked)

    def _until_replicating(self, number: int) -> None:
        def replicates() -> bool:
            info: Any = self.clients[number].info("replication")
            return bool(info["role"] == "slave" and info["master_link_status"] == "up")

        until(replicates, what="the replica follows the master")


def _role(client: redis.Redis) -> Any:
    info: Any = client.info("replication")
    return info["role"]


def _offset(client: redis.Redis) -> Any:
    info: Any = client.info("replication")
    return info["master_repl_offset"]


def _path(server: OwnServer) -> str:
    return server.url.removeprefix("unix://")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
