"""Readings that wait for entries in several slots of a cluster. A node lets one connection wait for one reading, in one
slot. So each slot is waited for over a connection of its own.

A reading that has got nothing when another one has cannot be taken back: the node may give it entries a moment later,
and those are then this consumer's. So it goes on to wait, and what it gets is taken along with the next reading. One
that only looks goes on as well: the next look usually asks the same, so whoever waits for long asks seldom.
"""

import os
import selectors
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple

from redis.exceptions import RedisError

from sagastream.broker import wire
from sagastream.broker.failures import NodeAway, no_node_of, of_node
from sagastream.broker.routes import Command, Reading
from sagastream.broker.urls import Address
from sagastream.broker.wire import Words

#: For how long a look waits that may go on when nobody waits for it, in milliseconds.
LOOK_MS: Final = 2_000
#: How much later than it should a node may answer, in seconds.
_LATE_S: Final = 2.0


class _Waiting(NamedTuple):
    connection: Any
    node: Address
    words: Words  # without for how long it waits
    until_s: float  # by time.monotonic


class Waits:
    """The readings of one client that wait."""

    def __init__(self, connect: Callable[[Address], Any], node_of: Callable[[int], Address | None]) -> None:
        """`connect`: opens a connection to a node that is not away. `node_of`: the node of a slot."""
        self._connect = connect
        self._node_of = node_of
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._waiting: dict[tuple[Hashable, int], _Waiting] = {}  # by who waits, and the slot
        self._idle: dict[Address, list[Any]] = {}  # connections on which nobody waits

    def collect(self, command: Command, who: Hashable) -> tuple[dict[int, Any], set[int]]:
        """See Collect. `who`: who reads, if it is no consumer of a group."""
        reading, whose = _reading_of(command), _whose(command, who)
        got: dict[int, Any] = {}
        waiting: set[int] = set()
        for slot, one in self._of(whose):
            is_same = slot in reading.by_slot and one.words == reading.words(slot)
            if _has_answer(one):
                answer = self._taken(whose, slot, one)
                if is_same or reading.consumer is not None:
                    got[slot] = answer
            elif one.node != self._node_of(slot) or time.monotonic() > one.until_s + _LATE_S:
                self._drop(whose, slot, one)  # it hangs, or has the slot no more
            elif is_same:
                waiting.add(slot)
        return got, waiting

    def wait(self, command: Command, block_ms: int, who: Hashable) -> list[Any]:
        """See Wait."""
        reading, whose = _reading_of(command), _whose(command, who)
        until_s = time.monotonic() + block_ms / 1000
        answers: list[Any] = []  # those that are not nothing
        failed: set[int] = set()
        while not any(isinstance(answer, list) for answer in answers) and (left_s := until_s - time.monotonic()) > 0:
            waiting = dict(self._of(whose))
            for slot in reading.by_slot.keys() - waiting.keys() - failed:
                begun = self._begin(reading, slot, max(1, round(left_s * 1000)))
                if isinstance(begun, RedisError):
                    answers.append(begun)
                    failed.add(slot)
                    continue
                with self._lock:
                    self._waiting[whose, slot] = waiting[slot] = begun
            if not waiting:
                break
            for slot in _ready(waiting, left_s):
                one = waiting[slot]
                answer = self._taken(whose, slot, one)
                # A look from before only tells that there is more.
                is_of_now = reading.consumer is not None or one.words == reading.words(slot)
                if answer is not None:
                    answers.append(answer if is_of_now or isinstance(answer, RedisError) else [])
                if isinstance(answer, RedisError):
                    failed.add(slot)
        return answers

    def give_up(self, whose: Hashable) -> None:
        """Close the connections on which this consumer waits, if any. It looks for what they got among its own."""
        for slot, one in self._of(whose):
            self._drop(whose, slot, one)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            connections = [one.connection for one in self._waiting.values()]
            connections += [connection for those in self._idle.values() for connection in those]
            self._waiting.clear()
            self._idle.clear()
        for connection in connections:
            connection.disconnect()

    def _drop(self, whose: Hashable, slot: int, one: _Waiting) -> None:
        with self._lock:
            self._waiting.pop((whose, slot), None)
        one.connection.disconnect()

    def _of(self, whose: Hashable) -> list[tuple[int, _Waiting]]:
        with self._lock:
            if self._pid != os.getpid():  # this process was forked: the connections are those of the other
                self._waiting, self._idle, self._pid = {}, {}, os.getpid()
            return [(slot, one) for (other, slot), one in self._waiting.items() if other == whose]

    def _begin(self, reading: Reading, slot: int, block_ms: int) -> "_Waiting | RedisError":
        node = self._node_of(slot)
        if node is None:
            return no_node_of(slot)
        if reading.consumer is None:
            block_ms = max(block_ms, LOOK_MS)
        with self._lock:
            idle = self._idle.get(node)
            connection = idle.pop() if idle else None
        try:
            if connection is None or not connection.is_connected or connection.can_read():
                if connection is not None:
                    connection.disconnect()
                connection = self._connect(node)
            wire.send(connection, [reading.words(slot, block_ms=block_ms)])
        except RedisError as error:
            return error if isinstance(error, NodeAway) else of_node(node, error, was_sent=False)
        return _Waiting(connection, node, reading.words(slot), time.monotonic() + block_ms / 1000)

    def _taken(self, whose: Hashable, slot: int, one: _Waiting) -> Any:
        """Its answer. The connection is free for another one then."""
        with self._lock:
            self._waiting.pop((whose, slot), None)
        try:
            (answer,) = wire.answers(one.connection, 1)
        except RedisError as error:
            one.connection.disconnect()
            return of_node(one.node, error, was_sent=True)
        with self._lock:
            self._idle.setdefault(one.node, []).append(one.connection)
        return answer


def _ready(waiting: dict[int, _Waiting], left_s: float) -> list[int]:
    """The slots whose readings have an answer, as soon as one has."""
    with selectors.DefaultSelector() as selector:
        for slot, one in waiting.items():
            selector.register(one.connection, selectors.EVENT_READ, slot)
        return [key.data for key, _ in selector.select(left_s)]


def _reading_of(command: Command) -> Reading:
    assert command.reading is not None
    return command.reading


def _whose(command: Command, who: Hashable) -> Hashable:
    return _reading_of(command).consumer or who


def _has_answer(one: _Waiting) -> bool:
    try:
        return bool(one.connection.can_read())
    except RedisError:
        return True  # reading it will say why
