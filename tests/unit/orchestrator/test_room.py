"""Of which partitions the servers have room for more sagas."""

import contextlib
from typing import Any

import pytest

from sagastream.broker.failures import NodeAway
from sagastream.broker.wire import Words
from sagastream.orchestrator.room import Room
from sagastream.orchestrator.streams import Streams
from sagastream.store.keys import StoreKeys

KEYS = StoreKeys("saga", ["0", "1a", "2b"], "0")
#: Two nodes: the first partition is on one, the others are on the other one.
ON = {"0": b"a", "1a": b"b", "2b": b"b"}


class Nodes:
    """What the nodes of a cluster answer."""

    def __init__(self) -> None:
        self.used: dict[bytes, int | None] = {b"a": 0, b"b": 0}  # None: it is away
        self.requests = dict.fromkeys(ON, 0)  # how many bytes they take
        self.told: list[str] = []

    def look(self, room: Room, preferred: frozenset[int] | None = None) -> frozenset[int]:
        looking = room.look(preferred)
        with contextlib.suppress(StopIteration):
            asked = next(looking)
            while True:
                asked = looking.send(self._answers(asked))
        return room.full

    def _answers(self, asked: Any) -> list[Any]:
        answers: list[Any] = []
        tag = ""
        for words in asked:
            tag = next((str(word).partition("{")[2].partition("}")[0] for word in words if "{" in str(word)), tag)
            answers.append(self._answer(words, tag))
        return answers

    def _answer(self, words: Words, tag: str) -> Any:
        if (used := self.used[ON[tag]]) is None:
            return NodeAway("away", was_sent=False)
        match words:
            case ("INFO", _):
                return f"maxmemory:1000\r\nused_memory:{used}\r\n".encode()
            case ("CLUSTER", "MYID"):
                return ON[tag]
            case ("MEMORY", *_):
                return self.requests[tag]
            case ("XLEN", _):
                return 1
            case ("PTTL", _):
                return -2
        self.told.append(tag)
        return b"OK"


@pytest.fixture
def room() -> Room:
    made = Room("worker w")
    made.join(KEYS)
    return made


def test_a_node_that_is_full_stops_the_begins_of_its_partitions_alone(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = Nodes()
    assert nodes.look(room) == set()
    nodes.used[b"b"] = 900
    assert nodes.look(room) == {1, 2}
    assert nodes.told == ["1a", "2b"]
    assert "the node that has partition 1-2 is full: 90% of maxmemory is used" in caplog.text
    first, second, third = KEYS.partitions
    streams = Streams(KEYS, ["till"], room)
    assert streams.left_unread() == {second.requests, third.requests}
    assert set(streams.wanted(streams.names)) == set(streams.names) - streams.left_unread()
    assert first.requests in streams.wanted(streams.names)
    nodes.used = {b"a": 900, b"b": None}
    assert nodes.look(room) == {0, 1, 2}  # of one that is away, what was known
    nodes.used = {b"a": 750, b"b": 500}
    assert nodes.look(room) == {0}
    assert "the node that has partition 1-2 has room again" in caplog.text


def test_requests_of_others_on_the_same_node_do_not_count(room: Room) -> None:
    nodes = Nodes()
    nodes.used = {b"a": 900, b"b": 900}
    nodes.requests |= {"1a": 100, "2b": 100}
    assert nodes.look(room, frozenset({0, 1})) == {0}


def test_whoever_looks_after_none_has_room(room: Room) -> None:
    nodes = Nodes()
    nodes.used[b"a"] = 900
    assert [nodes.look(room), nodes.look(room, frozenset())] == [{0}, set()]
