"""Connections of a client in an event loop, to a server or, if that is a node of a cluster, to all nodes: what
to_cluster.py is for a client that blocks.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import redis

from sagastream.broker import wire
from sagastream.broker.bundle import Bundle
from sagastream.broker.cluster_map import ClusterMap
from sagastream.broker.failures import no_node_of, of_node
from sagastream.broker.hello import MayLeadToCluster
from sagastream.broker.in_loop import Connection, SSLConnection
from sagastream.broker.nodes import LONGEST_S
from sagastream.broker.probes import Probes
from sagastream.broker.routes import Command, Reading
from sagastream.broker.seeds import no_cluster_node, reached, seeds_of
from sagastream.broker.to_cluster import PATIENCE_S
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
from sagastream.broker.waits import LOOK_MS


class NodesInLoop:
    """The nodes of the cluster that a url leads to, for all connections of a pool."""

    def __init__(self, seeds: Sequence[Address], *, is_secure: bool) -> None:
        """`seeds`: the servers that the url names."""
        self._is_secure = is_secure
        self.map = ClusterMap(seeds)
        self.probes = Probes(is_secure=is_secure)
        #: The options of each connection, as the pool has them.
        self.options: dict[str, Any] = {}

    async def connected(self, node: Address, **options: Any) -> Any:
        """A connection to this node alone. Raises redis.RedisError."""
        kind = SSLConnection if self._is_secure else Connection
        limits = {"socket_timeout": min(self.options["socket_timeout"], LONGEST_S)}
        connection: Any = kind(**(self.options | limits | {"host": node.host, "port": node.port} | options))
        await connection.connect()
        return connection

    async def asked(self, node: Address, patience_s: float, *words: str) -> Any:
        """What a node answers over a connection of its own; the error, if it does not."""
        try:
            connection = await self.connected(node, socket_timeout=patience_s, socket_connect_timeout=patience_s)
        except redis.RedisError as error:
            return error
        try:
            await connection.send_command(*words)
            return await connection.read_response()
        except redis.RedisError as error:
            return error
        finally:
            await connection.disconnect(nowait=True)


class _Waiting(NamedTuple):
    connection: Any
    node: Address
    words: wire.Words
    answer: "asyncio.Task[Any]"


class ToBrokerInLoop(MayLeadToCluster, Connection):
    """A connection to a server, or to a cluster."""

    def __init__(self, *, nodes: NodesInLoop, **options: Any) -> None:
        self._nodes = nodes
        nodes.options = options
        self._bundle: Bundle | None = None
        self._by_node: dict[Address, Any] = {}
        self._waiting: dict[int, _Waiting] = {}  # by slot
        self._idle: dict[Address, list[Any]] = {}  # connections on which nothing waits
        super().__init__(**options)

    async def connect(self) -> None:
        if not self._nodes.map.is_cluster:
            if len(self._nodes.map.seeds) > 1:
                await self._go(reached(self._nodes.map))
            else:
                await super().connect()  # type: ignore[no-untyped-call]  # redis-py has no type for it
        if self._nodes.map.is_cluster:  # it may be known by now
            await super().disconnect()
            self._bundle = self._bundle or Bundle(self._nodes.map)
            await self._go(self._bundle.open())

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        if self._bundle is not None:
            self._bundle.forget()
            waiting, self._waiting = self._waiting, {}
            connections = [*self._by_node.values(), *(one.connection for one in waiting.values())]
            connections += [connection for those in self._idle.values() for connection in those]
            self._by_node, self._idle = {}, {}
            answers = [one.answer for one in waiting.values()]
            for answer in answers:
                answer.cancel()
            for connection in connections:
                await connection.disconnect(nowait=True)
            await asyncio.gather(*answers, return_exceptions=True)
        await super().disconnect(*args, **kwargs)

    async def can_read(self) -> bool:
        if self._bundle is not None:
            return not self._bundle.is_idle
        return bool(await super().can_read())

    async def send_words(self, commands: Sequence[wire.Words]) -> None:
        """Send these commands."""
        if self._bundle is None:
            await self.send_packed_command([wire.pack(commands)])
        else:
            await self._go(self._bundle.send(commands))

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        if self._bundle is None:
            return await super().read_response(*args, **kwargs)
        return wire.or_raise(await self._go(self._bundle.read()))

    async def _go(self, steps: Steps) -> Any:
        try:
            to_do = next(steps)
            while True:
                to_do = steps.send(await self._do(to_do))
        except StopIteration as end:
            return end.value

    async def _do(self, to_do: ToDo) -> Any:
        match to_do:
            case Send(node, commands):
                return await self._send(node, commands)
            case Read(node):
                return await self._read(node)
            case AskForMap(node):
                return await self._nodes.asked(node, PATIENCE_S, "CLUSTER", "SLOTS")
            case Reach(server):
                return await self._reach(server)
            case Probe(node):
                return await asyncio.to_thread(self._nodes.probes.look, node)
            case Login(node):
                return await self._login(node)
            case Wait(command, block_ms):
                return await self._wait(command, block_ms)
            case Collect(command):
                return await self._collect(command)

    async def _reach(self, server: Address) -> Exception | None:
        self.host, self.port = server
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            return error
        if self._nodes.map.is_cluster:
            return None
        await super().disconnect()
        return no_cluster_node(server)

    async def _login(self, node: Address) -> redis.RedisError | None:
        await self._drop(node)
        try:
            self._by_node[node] = await self._nodes.connected(node)
        except redis.RedisError as error:
            return error
        return None

    async def _send(self, node: Address, commands: Sequence[wire.Words]) -> redis.RedisError | None:
        try:
            connection = self._by_node.get(node)
            if connection is not None and await self._is_spent(node, connection):
                await connection.disconnect(nowait=True)
                connection = None
            if connection is None:
                connection = self._by_node[node] = await self._nodes.connected(node)
        except redis.RedisError as error:
            await self._drop(node)
            return error
        try:
            await connection.send_packed_command([wire.pack(commands)])
        except redis.RedisError as error:
            await self._drop(node)
            return half_sent(error)
        return None

    async def _is_spent(self, node: Address, connection: Any) -> bool:
        """Whether the node has closed the connection since: it may have restarted. If it owes no answer, nothing else
        can be read there."""
        if not connection.is_connected:
            return True
        try:
            owes = self._bundle is not None and self._bundle.expects(node)
            return not owes and bool(await connection.can_read())
        except (redis.RedisError, OSError):
            return True

    async def _read(self, node: Address) -> Any:
        try:
            return await self._by_node[node].read_response()
        except redis.ResponseError as error:
            return error
        except redis.RedisError as error:
            await self._drop(node)
            return error

    async def _drop(self, node: Address) -> None:
        if (connection := self._by_node.pop(node, None)) is not None:
            await connection.disconnect(nowait=True)

    async def _collect(self, command: Command) -> tuple[dict[int, Any], set[int]]:
        """See Collect. In an event loop, no consumer of a group reads."""
        reading = command.reading
        assert reading is not None
        got: dict[int, Any] = {}
        waiting: set[int] = set()
        for slot, one in list(self._waiting.items()):
            is_same = slot in reading.by_slot and one.words == reading.words(slot)
            if one.answer.done():
                answer = await self._taken(slot)
                if is_same:
                    got[slot] = answer
            elif one.node != self._nodes.map.node_of(slot):
                await self._drop_waiting(slot)  # it has the slot no more
            elif is_same:
                waiting.add(slot)
        return got, waiting

    async def _wait(self, command: Command, block_ms: int) -> list[Any]:
        """See Wait, and waits.py."""
        reading = command.reading
        assert reading is not None
        until_s = time.monotonic() + block_ms / 1000
        answers: list[Any] = []  # those that are not nothing
        failed: set[int] = set()
        while not any(isinstance(answer, list) for answer in answers) and (left_s := until_s - time.monotonic()) > 0:
            for slot in reading.by_slot.keys() - self._waiting.keys() - failed:
                if (error := await self._begin(reading, slot, max(1, round(left_s * 1000)))) is not None:
                    answers.append(error)
                    failed.add(slot)
            slots = {one.answer: slot for slot, one in self._waiting.items()}
            if not slots:
                break
            ready, _ = await asyncio.wait(slots, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            for task in ready:
                slot = slots[task]
                one = self._waiting[slot]
                answer = await self._taken(slot)
                # A look from before only tells that there is more.
                is_of_now = slot in reading.by_slot and one.words == reading.words(slot)
                if answer is not None:
                    answers.append(answer if is_of_now or isinstance(answer, redis.RedisError) else [])
                if isinstance(answer, redis.RedisError):
                    failed.add(slot)
        return answers

    async def _drop_waiting(self, slot: int) -> None:
        one = self._waiting.pop(slot)
        one.answer.cancel()
        await one.connection.disconnect(nowait=True)
        await asyncio.gather(one.answer, return_exceptions=True)

    async def _taken(self, slot: int) -> Any:
        """The answer that has come to what waits in this slot. The connection is free for another one then."""
        one = self._waiting.pop(slot)
        error = one.answer.exception()
        if error is None:
            self._idle.setdefault(one.node, []).append(one.connection)
            return one.answer.result()
        await one.connection.disconnect(nowait=True)
        if not isinstance(error, redis.RedisError):
            raise error
        return error if isinstance(error, redis.ResponseError) else of_node(one.node, error, was_sent=True)

    async def _begin(self, reading: Reading, slot: int, block_ms: int) -> redis.RedisError | None:
        node = self._nodes.map.node_of(slot)
        if node is None:
            return no_node_of(slot)
        if (why := self._nodes.map.why_away(node)) is not None:
            return of_node(node, why, was_sent=False)  # what does not wait sees that it is back
        try:
            idle = self._idle.get(node)
            connection = idle.pop() if idle else None
            if connection is None or not connection.is_connected:
                connection = await self._nodes.connected(node)
            waits_ms = max(block_ms, LOOK_MS)
            await connection.send_packed_command([wire.pack([reading.words(slot, block_ms=waits_ms)])])
        except redis.RedisError as error:
            return of_node(node, error, was_sent=False)
        answer = asyncio.ensure_future(connection.read_response())
        self._waiting[slot] = _Waiting(connection, node, reading.words(slot), answer)
        return None


class SSLToBrokerInLoop(ToBrokerInLoop, SSLConnection):
    pass


def options_in_loop(url: str) -> dict[str, Any]:
    """What a pool in an event loop needs besides a url that may lead to a cluster."""
    is_secure = url.startswith("rediss")
    return {
        "connection_class": SSLToBrokerInLoop if is_secure else ToBrokerInLoop,
        "nodes": NodesInLoop(seeds_of(url), is_secure=is_secure),
    }
