"""Whether the store has room for more sagas. A worker looks along with its heartbeat, and says so if there is none.

Each node of a cluster has a memory of its own, so each is looked at, and what follows concerns its partitions alone.

Near its maxmemory, a store must drain: replies, timers and operators' requests go on, requests to begin sagas are left
unread, and clients are told (`begin.lua` looks at the key `full`).

Unread requests fill the memory, too, and only to read them takes them away. So they do not count: what counts is the
rest. It gets less by itself, since ended sagas and records expire, so begins are never left for ever. What the server
says of the size of a stream is an estimate, so a few begins are taken now and then all the same, unless the server is
far over its maxmemory.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import redis

from sagastream.broker import wire
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import NodeAway, is_wrong_type
from sagastream.broker.scripting import even_if_full
from sagastream.broker.server import facts
from sagastream.broker.wire import or_raise
from sagastream.store.keys import FULL_KEPT_MS, Partition, StoreKeys
from sagastream.store.reach import ranges
from sagastream.telemetry import Log

#: From this share of maxmemory on, without unread requests, no saga begins …
FULL_AT: Final = 0.8
#: … until it is less than this. In between it stays as it is, so that it does not change with each saga that ends.
ROOM_AT: Final = 0.7
#: How many unread requests a partition may have before clients are told to wait, unless a worker is told otherwise.
MOST_UNREAD: Final = 100_000
#: While there is no room, a few begins are taken once in so many seconds, up to this share of maxmemory.
_A_FEW_EVERY_S: Final = 10.0
_A_FEW_UNTIL: Final = 1.25
#: What PTTL says of a key that does not expire.
_FOR_EVER: Final = -1
#: How many nodes of a stream the server looks at to tell its size: it takes a millisecond for so many.
_SAMPLES: Final = 10_000


class Memory(NamedTuple):
    """How much memory a server has and uses, in bytes."""

    most: int = 0  # maxmemory; 0: there is no limit
    used: int = 0

    @classmethod
    def read(cls, told: Mapping[str, str]) -> "Memory":
        """`told`: what INFO says of it. What replicas and the append-only file wait for does not count."""
        used = int(told.get("used_memory", 0)) - int(told.get("mem_not_counted_for_evict", 0))
        return cls(int(told.get("maxmemory", 0)), used)

    @property
    def share(self) -> float:
        """How much of it is used."""
        return self.used / self.most if self.most else 0.0


class Room:
    """The room of the store, as one worker sees it: on a cluster, each node has its own."""

    def __init__(self, who: str, most_unread: int = MOST_UNREAD) -> None:
        """`who`: the name of the worker, as its log records have it. `most_unread`: how many unread requests to begin
        sagas a partition may have."""
        self._log = Log("worker", who)
        self._most_unread = most_unread
        self._keys: StoreKeys | None = None
        #: That of the server which is fullest.
        self.memory = Memory()
        self._take_at = 0.0  # when to take a few begins all the same
        #: The numbers of the partitions of which the server has no room for more sagas.
        self.full: frozenset[int] = frozenset()

    def join(self, keys: StoreKeys) -> None:
        """Look at this store from now on."""
        self._keys = keys

    def takes_a_few(self) -> bool:
        """Whether a few begins are to be taken now, although there is no room. It says so once."""
        now = time.monotonic()
        if now < self._take_at or self.memory.used > _A_FEW_UNTIL * self.memory.most:
            return False
        self._take_at = now + _A_FEW_EVERY_S
        return True

    def look(self, preferred: frozenset[int] | None = None) -> Exchange[None]:
        """Look, and tell clients if there is no room. If this user may not look, there is room.

        `preferred`: the numbers of the partitions whose clients this worker tells; None: of all.
        """
        assert self._keys is not None
        partitions = self._keys.partitions
        if preferred is not None:
            partitions = tuple(one for one in partitions if one.number in preferred)
        if not partitions:
            self.full = frozenset()
            return
        groups = self._keys.in_calls(partitions)
        answers = iter((yield [words for group in groups for words in self._asked(group)]))
        unread: list[Any] = []
        left_ms: list[Any] = []
        servers: dict[object, tuple[Memory, list[int]]] = {}  # each with the numbers of its partitions
        self.full &= {one.number for one in partitions}
        full = self.full  # if a node is away, as it was
        for group in groups:
            unread += islice(answers, len(group))
            left_ms += islice(answers, len(group))
            info, server = next(answers), _server(group, next(answers) if self._keys.apart else None)
            if isinstance(info, NodeAway):
                continue
            memory = Memory.read({} if isinstance(info, redis.ResponseError) else facts(info))
            servers.setdefault(server, (memory, []))[1].extend(one.number for one in group)
        rest = yield from self._without_requests({server: memory for server, (memory, _) in servers.items()})
        for server, (_, numbers) in servers.items():
            is_full = rest[server] >= (ROOM_AT if full.intersection(numbers) else FULL_AT)
            full = full.union(numbers) if is_full else full.difference(numbers)
        if servers:
            self.memory = max((memory for memory, _ in servers.values()), key=lambda memory: memory.share)
            self._judge(full, max(rest.values()))
        if told := [*_outlived(partitions, left_ms), *self._told(partitions, unread)]:
            for answer in (yield told):
                if not (is_wrong_type(answer) or isinstance(answer, NodeAway)):
                    or_raise(answer)

    def _asked(self, group: Sequence[Partition]) -> list[wire.Words]:
        """What one server is asked about these partitions, and then about itself."""
        asked: list[wire.Words] = [("XLEN", one.requests) for one in group]
        asked += [("PTTL", one.full) for one in group]
        asked.append(("INFO", "memory"))
        if self._keys is not None and self._keys.apart:
            asked.append(("CLUSTER", "MYID"))
        return asked

    def _without_requests(self, servers: Mapping[object, Memory]) -> Exchange[dict[object, float]]:
        """Which share of the memory of each server is used, without unread requests. These are measured only if it
        matters."""
        assert self._keys is not None
        used = {server: memory.used for server, memory in servers.items()}
        if any(memory.share >= ROOM_AT for memory in servers.values()):
            groups = self._keys.in_calls(self._keys.partitions)
            asked: list[wire.Words] = []
            for group in groups:
                asked += [("MEMORY", "USAGE", one.requests, "SAMPLES", _SAMPLES) for one in group]
                asked += [("CLUSTER", "MYID")] if self._keys.apart else []
            answers = iter((yield asked))
            for group in groups:
                sizes = list(islice(answers, len(group)))
                server = _server(group, next(answers) if self._keys.apart else None)
                if server in used:
                    used[server] -= sum(size for size in sizes if isinstance(size, int))
        return {server: used[server] / memory.most if memory.most else 0.0 for server, memory in servers.items()}

    def _judge(self, full: frozenset[int], rest: float) -> None:
        """`full`: the numbers of the partitions that have no room by now. `rest`: the share of the memory of a server
        that is used without unread requests; of the fullest one."""
        before, self.full = self.full, full
        if new := full - before:
            self._take_at = time.monotonic() + _A_FEW_EVERY_S
            self._log.warning(
                f"{self._named(new)} is full: {rest:.0%} of maxmemory is used, without requests to begin sagas. These "
                f"stay unread until it is less than {ROOM_AT:.0%}, and what has begun goes on; see sagastream doctor"
            )
        if gone := before - full:
            self._log.warning(f"{self._named(gone)} has room again: sagas begin again")

    def _named(self, numbers: frozenset[int]) -> str:
        assert self._keys is not None
        return f"the node that has partition {ranges(numbers)}" if self._keys.apart else "the store"

    def _told(self, partitions: tuple[Partition, ...], unread: list[Any]) -> Iterator[wire.Words]:
        """What tells clients that there is no room, for each partition that has none."""
        used = f"{self.memory.share:.0%} of maxmemory is used"
        for partition, number in zip(partitions, unread, strict=True):
            waiting = number if isinstance(number, int) else 0
            at_most = f"at most {self._most_unread} may (sagastream worker --max-unread)"
            is_full = partition.number in self.full
            why = used if is_full else f"{waiting} requests to begin sagas wait, and {at_most}"
            if is_full or waiting > self._most_unread:
                yield even_if_full(partition.full, "SET", partition.full, why, "PX", FULL_KEPT_MS)


def _server(group: Sequence[Partition], node_id: Any) -> object:
    """What stands for the server that has these partitions. `node_id`: its answer, on a cluster; if this user may not
    ask, each partition counts as on a server of its own."""
    return node_id if node_id is None or isinstance(node_id, bytes) else group[0].number


def _outlived(partitions: tuple[Partition, ...], left_ms: list[Any]) -> Iterator[wire.Words]:
    """Deletes what tells clients for longer than a worker ever says it: the server's clock was set back since, or its
    expiry was taken away."""
    for partition, left in zip(partitions, left_ms, strict=True):
        if isinstance(left, int) and (left == _FOR_EVER or left > FULL_KEPT_MS):
            yield "DEL", partition.full
