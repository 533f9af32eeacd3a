"""The floor: only the stream traffic of a saga, packed beforehand and written to a socket as it is.

For a saga: XADD of the begin; for each step XADD of the command, XREADGROUP and XACK by the service,
XADD of the reply, XREADGROUP and XACK by the orchestrator, HSET of the saga. sagastream adds the decisions, the dedupe,
timers and events.
"""

import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final, Self

import hiredis
import redis

from sagastream.broker.cluster_map import slot_of
from sagastream.broker.connection import Broker
from sagastream.broker.nodes import nodes_of
from sagastream.errors import BrokerError

_STEP: Final = b'{"transaction":"BenchDo","service":"bench-1","params":{"sku":"abc123","quantity":1}}'
_COMMAND: Final = b'{"type":"BenchDo","saga_id":"bench-00000000","step":1,"params":{"sku":"abc123","quantity":1}}'
_REPLY: Final = b'{"type":"BenchDo_ok","saga_id":"bench-00000000","step":1,"result":{"id":"r1"}}'


class Floor:
    """Bare traffic on its own streams, which are deleted afterwards. On a cluster it is that of one node."""

    def __init__(self, broker: Broker, steps: int) -> None:
        """`steps`: how many each saga has, one after the other."""
        self._client = broker.client
        self._steps = steps
        self._begin = b'{"type":"saga_begin","saga_id":"bench-00000000","steps":[%b]}' % b",".join([_STEP] * steps)
        self._prefix = f"bench-floor:{{{uuid.uuid4().hex[:8]}}}"
        self._streams = [f"{self._prefix}:{name}" for name in ("requests", "commands", "replies")]
        self._next_id = 1

    def __enter__(self) -> Self:
        for stream in self._streams:
            self._client.xgroup_create(stream, "g", id="0", mkstream=True)
        self._socket = _connected(self._client, self._streams[0])
        self._reader = hiredis.Reader()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        for key in self._client.scan_iter(f"{self._prefix}:*", 1000):
            self._client.unlink(key)

    def sagas_per_s(self, count: int, batch: int) -> float:
        """Throughput of `count` sagas on one connection; `batch` of them take each step together."""
        rounds = [self._rounds(batch) for _ in range(max(1, count // batch))]
        start = time.perf_counter()
        for one in rounds:
            for packed, answers in one:
                self._send(packed, answers)
        return batch * len(rounds) / (time.perf_counter() - start)

    def latencies_s(self, count: int) -> list[float]:
        """How long each of `count` sagas takes, one after the other, with one round trip per message."""
        taken = []
        for _ in range(count):
            rounds = [(_packed([command]), 1) for commands in self._messages(1) for command in commands]
            start = time.perf_counter()
            for packed, answers in rounds:
                self._send(packed, answers)
            taken.append(time.perf_counter() - start)
        return taken

    def _rounds(self, batch: int) -> list[tuple[bytes, int]]:
        """The writes of one batch: what can be sent before an answer is needed, and how many answers come."""
        return [(_packed(commands), len(commands)) for commands in self._messages(batch)]

    def _messages(self, batch: int) -> Iterator[list[Sequence[Any]]]:
        requests, commands, replies = self._streams
        first, self._next_id = self._next_id, self._next_id + batch * (self._steps + 1)
        ids = [f"{first + n}-1" for n in range(batch)]
        yield [("XADD", requests, i, "body", self._begin, "request_id", "0" * 32) for i in ids]
        for step in range(self._steps):
            ids = [f"{first + step * batch + n}-1" for n in range(batch)]
            read = ("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS")
            command = ("body", _COMMAND, "attempt", 1, "begun_ms", 1_700_000_000_000)
            saga = ("status", "PENDING", "current_step", step, "version", step, f"step{step}.result", b'{"id":"r1"}')
            yield [("XADD", commands, i, *command) for i in ids]
            yield [(*read, commands, ">") for _ in ids]
            yield [("XACK", commands, "g", i) for i in ids] + [("XADD", replies, i, "body", _REPLY) for i in ids]
            yield [(*read, replies, ">") for _ in ids]
            yield [("XACK", replies, "g", i) for i in ids] + [("HSET", f"{self._prefix}:hash:{i}", *saga) for i in ids]

    def _send(self, packed: bytes, answers: int) -> None:
        """Write, and read all answers by hiredis: it costs what a client in C costs."""
        self._socket.sendall(packed)
        while answers:
            self._reader.feed(self._socket.recv(1 << 20))
            while answers and (answer := self._reader.gets()) is not False:
                if isinstance(answer, Exception):
                    raise answer
                answers -= 1


def _connected(client: "redis.Redis", key: str) -> socket.socket:
    """Our own socket to the same server, or to the node that has this key. Raises BrokerError if the login needs more
    than a password."""
    options = client.get_connection_kwargs()
    if options.get("ssl_cert_reqs") is not None:
        raise BrokerError("the floor is not measured over TLS; measure with an unencrypted REDIS_URL")
    if (sentinels := options.get("sentinels")) is not None:
        client.ping()  # it has asked them by then
        options = options | sentinels.master._asdict()
    nodes = nodes_of(client)
    if nodes is not None and (node := nodes.map.node_of(slot_of(key))) is not None:
        options = options | node._asdict()
    if "path" in options:
        found = socket.socket(socket.AF_UNIX)
        found.connect(options["path"])
    else:
        found = socket.create_connection((options.get("host", "localhost"), options.get("port", 6379)))
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found.settimeout(60)
    login = []
    if options.get("password"):
        login.append(("AUTH", *filter(None, (options.get("username"), options["password"]))))
    login.append(("SELECT", options.get("db") or 0))
    found.sendall(_packed(login))
    reader = hiredis.Reader()
    for _ in login:
        while (answer := reader.gets()) is False:
            reader.feed(found.recv(4096))
        if isinstance(answer, Exception):
            raise BrokerError(f"the floor cannot be measured: {answer}")
    return found


def _packed(commands: Sequence[Sequence[Any]]) -> bytes:
    parts = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            data = word if isinstance(word, bytes) else str(word).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)
