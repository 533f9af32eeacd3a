"""Connections of a client that blocks, to a server or, if that is a node of a cluster, to all nodes.

What the url names, only the server knows: so the first connection asks it, and becomes a bundle if it is a node.
"""

from collections.abc import Sequence
from typing import Any, Final

import redis
from redis.connection import Connection, SSLConnection

from sagastream.broker import wire
from sagastream.broker.bundle import Bundle
from sagastream.broker.hello import MayLeadToCluster, say_hello
from sagastream.broker.nodes import Nodes
from sagastream.broker.seeds import no_cluster_node, reached, seeds_of
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

#: How long a node may take to give the map, in seconds. Usually there are others to ask.
PATIENCE_S: Final = 1.0


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
        return no_cluster_node(server)

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
