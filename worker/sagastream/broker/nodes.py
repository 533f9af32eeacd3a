"""The nodes of the cluster that a client leads to: what all its connections share, and what else is asked of them."""

import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

import redis
from redis.connection import Connection, SSLConnection

from sagastream.broker import wire
from sagastream.broker.cluster_map import ClusterMap, slot_of
from sagastream.broker.failures import of_node
from sagastream.broker.pool import Pool
from sagastream.broker.probes import Probes
from sagastream.broker.urls import Address
from sagastream.broker.waits import Waits

#: How long a node may take to answer at most, in seconds: half a second to wait for entries, and this. A single server
#: has more time; but the other nodes must not wait for one that hangs.
LONGEST_S: Final = 0.5 + 2.0


class Nodes:
    """The nodes of the cluster that a url leads to, for all connections of a client."""

    def __init__(self, seeds: Sequence[Address], *, is_secure: bool) -> None:
        """`seeds`: the servers that the url names."""
        self._seeds, self.is_secure = seeds, is_secure
        self.map = ClusterMap(seeds)
        self.waits = Waits(self._to_wait, self.map.node_of)
        self.probes = Probes(is_secure=is_secure)
        #: The options of each connection, as the client has them.
        self.options: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._clients: dict[Address, redis.Redis] = {}

    def __reduce__(self) -> Any:  # RQ sends the options of connections to processes that it starts
        return _nodes, (self._seeds, self.is_secure)

    def connected(self, node: Address, **options: Any) -> Any:
        """A connection to this node alone. Raises redis.RedisError."""
        kind = _SSLToNode if self.is_secure else _ToNode
        limits = {"socket_timeout": min(self.options["socket_timeout"], LONGEST_S)}
        connection: Any = kind(**(self.options | limits | {"host": node.host, "port": node.port} | options))
        connection.connect()
        return connection

    def client_of(self, node: Address) -> "redis.Redis":
        """A client of this node alone."""
        with self._lock:
            if (client := self._clients.get(node)) is None:
                kind = SSLConnection if self.is_secure else Connection
                options = self.options | {"host": node.host, "port": node.port}
                pool = Pool(connection_class=kind, **options)
                client = self._clients[node] = redis.Redis.from_pool(pool)  # and closes it
        return client

    def close(self) -> None:
        """Close all connections besides those of the client's pool."""
        self.waits.close()
        self.probes.close()
        with self._lock:
            for client in self._clients.values():
                client.close()

    def _to_wait(self, node: Address) -> Any:
        """A connection on which something waits. Whether a node is back is seen by what does not wait."""
        if (why := self.map.why_away(node)) is not None:
            raise of_node(node, why, was_sent=False)
        return self.connected(node)

    def asked(self, node: Address, patience_s: float, *words: str) -> Any:
        """What a node answers over a connection of its own; the error, if it does not."""
        try:
            connection = self.connected(node, socket_timeout=patience_s, socket_connect_timeout=patience_s)
        except redis.RedisError as error:
            return error
        try:
            connection.send_command(*words)
            return connection.read_response()
        except redis.RedisError as error:
            return error
        finally:
            connection.disconnect()


def _nodes(seeds: Sequence[Address], is_secure: bool) -> Nodes:
    return Nodes(seeds, is_secure=is_secure)


class _ToNode(Connection):
    """A connection to one node."""

    def fileno(self) -> int:
        """The number of its socket, for a selector."""
        socket: Any = self._sock
        return int(socket.fileno())


class _SSLToNode(_ToNode, SSLConnection):
    pass


def clients(client: "redis.Redis", *, answering: bool = False) -> dict[str, "redis.Redis"]:
    """A client for each server, by its address: of each master of a cluster, or of the one server ("").
    `answering`: not of nodes that are known to be away. Raises redis.RedisError if it is not known which there are."""
    known = nodes_of(client)
    if known is None or not known.map.masters:
        # To connect is enough to learn it. A PING may be refused, if the server has no disk.
        with wire.connection(client):
            pass
    if (nodes := nodes_of(client)) is None:
        return {"": client}
    wanted = [node for node in nodes.map.masters if not (answering and nodes.map.is_away(node))]
    return {str(node): nodes.client_of(node) for node in wanted}


def nodes_of(client: "redis.Redis") -> Nodes | None:
    """The nodes of the cluster that a client leads to; None: it leads to a single server, as far as is known."""
    nodes: Nodes | None = client.get_connection_kwargs().get("nodes")
    return nodes if nodes is not None and nodes.map.is_cluster else None


def takes_time_at(options: Mapping[str, Any], key: str) -> None:
    """Have the node that has this key say what time it is. `options`: of the connections of a client or a pool; without
    a cluster, nothing is changed."""
    if (nodes := options.get("nodes")) is not None:
        nodes.map.time.slot = slot_of(key)


def wants_time(client: "redis.Redis") -> None:
    """Have the next TIME ask the node that says what time it is, even if it was asked a moment ago. A single server is
    asked each time."""
    if (nodes := nodes_of(client)) is not None:
        nodes.map.time.wants_news()


def node_of(client: "redis.Redis", key: str) -> Address | None:
    """The node of the cluster that has this key; None: nobody knows, or the client leads to a single server."""
    nodes = nodes_of(client)
    return None if nodes is None else nodes.map.node_of(slot_of(key))


def give_up_waiting(client: "redis.Redis", group: str, consumer: str) -> None:
    """Let nothing wait for entries any more in the name of this consumer."""
    whose: Hashable = (group, consumer)
    if (nodes := nodes_of(client)) is not None:
        nodes.waits.give_up(whose)
