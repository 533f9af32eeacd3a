"""Connections of a client that blocks, to a server or, if that is a node of a cluster, to all nodes.

What the url names, only the server knows: so the first connection asks it, and becomes a bundle if it is a node.
"""

import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

import redis
from redis.connection import Connection, SSLConnection

from sagastream.broker import wire
from sagastream.broker.bundle import Bundle
from sagastream.broker.cluster_map import ClusterMap, slot_of
from sagastream.broker.failures import of_node
from sagastream.broker.hello import MayLeadToCluster, say_hello
from sagastream.broker.pool import Pool
from sagastream.broker.probes import Probes
from sagastream.broker.seeds import no_node, reached, seeds_of
from sagastream.broker.to_do import (
    AskForMap,
    Collect,
    Login,
    Probe,
    Reach,
    Read,
    Send,
    Steps,
    ToDo,
    Wait,
    half_sent,
)
from sagastream.broker.urls import Address
from sagastream.broker.waits import Waits

#: How long a node may take to answer at most, in seconds: half a second to wait for entries, and this. A single server
#: has more time; but the other nodes must not wait for one that hangs.
LONGEST_S: Final = 0.5 + 2.0
#: How long a node may take to give the map, in seconds. Usually there are others to ask.
PATIENCE_S: Final = 1.0


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


class ToBroker(MayLeadToCluster, Connection):
    """A connection to a server, or to a cluster."""

    def __init__(self, *, nodes: Nodes, **options: Any) -> None:
        self._nodes = nodes
        nodes.options = options
        self._bundle: Bundle | None = None
        self._by_node: dict[Address, Any] = {}
        super().__init__(**options)  # type: ignore[no-untyped-call]  # redis-py has no type for it

    def connect(self) -> None:
        if not self._nodes.map.is_cluster:
            if len(self._nodes.map.seeds) > 1:
                self._go(reached(self._nodes.map))
            else:
                super().connect()  # type: ignore[no-untyped-call]
        if self._nodes.map.is_cluster:  # it may be known by now
            if self._bundle is None:
                super().disconnect()  # type: ignore[no-untyped-call]
                self._bundle = Bundle(self._nodes.map)
            self._go(self._bundle.open())

    @property
    def is_connected(self) -> bool:
        if self._bundle is None:
            return bool(super().is_connected)
        return any(connection.is_connected for connection in self._by_node.values())

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        if self._bundle is not None:
            self._bundle.forget()
            for connection in self._by_node.values():
                connection.disconnect()
            self._by_node.clear()
            self._nodes.waits.give_up(id(self))
        super().disconnect(*args, **kwargs)  # type: ignore[no-untyped-call]

    def can_read(self, timeout: float = 0) -> bool:
        if self._bundle is not None:
            return not self._bundle.is_idle
        return bool(super().can_read(timeout))

    def send_words(self, commands: Sequence[wire.Words]) -> None:
        """Send these commands."""
        if self._bundle is None:
            self.send_packed_command([wire.pack(commands)])
        else:
            self._go(self._bundle.send(commands))

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        if self._bundle is None:
            super().send_command(*args, **kwargs)  # type: ignore[no-untyped-call]
        else:
            self._go(self._bundle.send([args]))

    def pack_commands(self, commands: Any) -> Any:
        """What send_packed_command takes, for a pipeline of redis-py."""
        return super().pack_commands(commands) if self._bundle is None else list(commands)  # type: ignore[no-untyped-call]

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if self._bundle is None:
            super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]
        else:
            self._go(self._bundle.send(command))

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        if self._bundle is None:
            return super().read_response(*args, **kwargs)
        return wire.or_raise(self._go(self._bundle.read()))

    def _go(self, steps: Steps) -> Any:
        try:
            to_do = next(steps)
            while True:
                to_do = steps.send(self._do(to_do))
        except StopIteration as end:
            return end.value

    def _do(self, to_do: ToDo) -> Any:
        match to_do:
            case Send(node, commands):
                return self._send(node, commands)
            case Read(node):
                return self._read(node)
            case AskForMap(node):
                return self._nodes.asked(node, PATIENCE_S, "CLUSTER", "SLOTS")
            case Reach(server):
                return self._reach(server)
            case Probe(node):
                return self._nodes.probes.look(node)
            case Login(node):
                return self._login(node)
            case Wait(command, block_ms):
                return self._nodes.waits.wait(command, block_ms, id(self))
            case Collect(command):
                return self._nodes.waits.collect(command, id(self))

    def _reach(self, server: Address) -> Exception | None:
        self.host, self.port = server
        try:
            super().connect()  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            return error
        if self._nodes.map.is_cluster:
            return None
        super().disconnect()  # type: ignore[no-untyped-call]
        return no_node(server)

    def _login(self, node: Address) -> redis.RedisError | None:
        self._drop(node)
        try:
            self._by_node[node] = self._nodes.connected(node)
        except redis.RedisError as error:
            return error
        return None

    def _send(self, node: Address, commands: Sequence[wire.Words]) -> redis.RedisError | None:
        try:
            connection = self._by_node.get(node)
            if connection is not None and self._is_spent(node, connection):
                connection.disconnect()
                connection = None
            if connection is None:
                connection = self._by_node[node] = self._nodes.connected(node)
        except redis.RedisError as error:
            self._drop(node)
            return error
        try:
            wire.send(connection, commands)
        except redis.RedisError as error:
            self._drop(node)
            return half_sent(error)
        return None

    def _is_spent(self, node: Address, connection: Any) -> bool:
        """Whether the node has closed the connection since: it may have restarted. If it owes no answer, nothing else
        can be read there."""
        if not connection.is_connected:
            return True
        try:
            return not (self._bundle is not None and self._bundle.expects(node)) and bool(connection.can_read())
        except redis.RedisError:
            return True

    def _read(self, node: Address) -> Any:
        try:
            return self._by_node[node].read_response()
        except redis.ResponseError as error:
            return error
        except redis.RedisError as error:
            self._drop(node)
            return error

    def _drop(self, node: Address) -> None:
        if (connection := self._by_node.pop(node, None)) is not None:
            connection.disconnect()


class SSLToBroker(ToBroker, SSLConnection):
    pass


def options(url: str) -> dict[str, Any]:
    """What a client in redis-py needs besides a url that may lead to a cluster."""
    is_secure = url.startswith("rediss")
    return {
        "connection_class": SSLToBroker if is_secure else ToBroker,
        "nodes": Nodes(seeds_of(url), is_secure=is_secure),
        "redis_connect_func": say_hello,
    }


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
    """Have the node that says what time it is be asked at the next TIME, however short it is since it was asked. A
    single server is asked anyway."""
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
