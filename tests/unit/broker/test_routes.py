"""Where the commands of a round trip go on a cluster, in which parts, and what their answers make together."""

from typing import Any

import pytest
import redis

from sagastream.broker.cluster_map import slot_of
from sagastream.broker.failures import NodeAway
from sagastream.broker.routes import Reading, routed
from sagastream.broker.wire import Words


def slots(*commands: Words) -> list[list[int | None]]:
    """Of each command the slots of its parts."""
    return [[part.slot for part in command.parts] for command in routed(commands)]


def of(*keys: str) -> list[int]:
    return [slot_of(key) for key in keys]


@pytest.mark.parametrize(
    ("key", "as_key"),
    [("a{1}b", "1"), ("a{}b{1}", "a{}b{1}"), ("a{{1}b", "{1"), ("{1}{2}", "1"), ("a{1", "a{1"), (b"x{1}", b"1")],
)
def test_a_hash_tag_alone_says_the_slot(key: Any, as_key: Any) -> None:
    assert slot_of(key) == slot_of(as_key)


def test_slots_are_those_of_redis() -> None:
    assert (slot_of("123456789"), slot_of("foo"), slot_of("")) == (12739, 12182, 0)


@pytest.mark.parametrize(
    "words",
    [
        ("GET", "k"),
        (b"get", b"k"),
        ("XADD", "k", "*", "a", "1"),
        ("EVALSHA", "sha", 2, "k", "{k}2", "arg"),
        ("EVAL", b"text", "1", "k"),
        ("XGROUP", "CREATE", "k", "g", "0"),
        ("XGROUP CREATE", "k", "g", "0"),
        ("XINFO", "STREAM", "k"),
        ("MEMORY", "USAGE", "k"),
        ("XREADGROUP", "GROUP", "g", "c", "COUNT", 5, "BLOCK", 9, "STREAMS", "k", "{k}2", ">", ">"),
        ("XREAD", b"STREAMS", "k", "0"),
        ("SCAN", 0, "MATCH", "some{k}:index:*", "COUNT", 10),
        ("MGET", "k", "{k}2"),
    ],
)
def test_a_command_goes_to_the_slot_of_its_first_key(words: Words) -> None:
    assert slots(words) == [of("k")]


@pytest.mark.parametrize(
    "words",
    [
        ("PING",),
        ("INFO", "server"),
        ("MEMORY STATS",),
        ("EVAL", "text", 0, "arg"),
        ("SCRIPT", "LOAD", "text"),
        ("SCAN", 0),
        ("SCAN", 0, "MATCH", "saga:*"),
        ("SCAN", 0, "MATCH", "saga:{*}:requests"),
        ("SCAN", 0, "MATCH", "sag?:{k}:requests"),
        ("SCAN", 0, "COUNT", 5, "MATCH", "a[b]{k}"),
        ("ACL", "WHOAMI"),
        ("WAIT", 1, 100),
        ("TIME",),
    ],
)
def test_a_command_without_a_key_goes_anywhere(words: Words) -> None:
    assert slots(words) == [[None]]


def test_without_a_key_it_goes_where_its_neighbours_go() -> None:
    load = ("SCRIPT", "LOAD", "text")
    a, b = of("a")[0], of("b")[0]
    assert slots(load, ("GET", "a"), load, ("GET", "b")) == [[a], [a], [b], [b]]
    assert slots(("SET", "a", 1), ("WAIT", 1, 9), ("SET", "b", 1), ("WAIT", 1, 9)) == [[a], [a], [b], [b]]
    assert slots(("PING",), ("GET", "a"), ("TIME",), ("PING",)) == [[None], [a], [a], [None]]
    assert slots(("INFO",), ("GET", "a"), ("INFO", "replication"), ("CLUSTER", "MYID")) == [[None], [a], [a], [a]]


def test_a_transaction_goes_to_one_node_whatever_stands_in_it() -> None:
    a, b = of("a")[0], of("b")[0]
    asked = [("GET", "b"), ("MULTI",), ("TIME",), ("PING",), ("SET", "a", 1), ("DEL", "a", "{a}2"), ("EXEC",)]
    assert slots(*asked, ("TIME",), ("GET", "b")) == [[b], [a], [a], [a], [a], [a], [a], [a], [b]]
    assert [command.parts[0].is_in_transaction for command in routed([*asked, ("GET", "b")])] == [
        *[False, True, True, True, True, True, True, False],
    ]


def test_keys_are_counted_in_parts_and_summed() -> None:
    (command,) = routed([("EXISTS", "a", "b", "{a}2")])
    assert [part.words for part in command.parts] == [("EXISTS", "a", "{a}2"), ("EXISTS", "b")]
    for part, count in zip(command.parts, (2, 1), strict=True):
        part.ends(count)
    assert command.answer() == 3
    command.parts[1].ends(NodeAway("away", was_sent=False))
    assert isinstance(command.answer(), NodeAway)


READING = ("XREADGROUP", "GROUP", "g", "c", "COUNT", 5, "BLOCK", 90, "STREAMS", "a", "b", "{a}2", ">", ">", ">")
ONE, TWO = [[b"a", [[b"1-0", []]]]], [[b"b", [[b"2-0", []]]]]
AWAY, REFUSED = NodeAway("away", was_sent=True), redis.ResponseError("NOGROUP no such group")
DOWN = redis.exceptions.ClusterDownError("Hash slot not served")


def test_a_reading_of_several_slots_is_asked_in_parts_that_do_not_wait() -> None:
    (command,) = routed([READING])
    assert [part.words for part in command.parts] == [
        ["XREADGROUP", "GROUP", "g", "c", "COUNT", 5, "STREAMS", "a", "{a}2", ">", ">"],
        ["XREADGROUP", "GROUP", "g", "c", "COUNT", 5, "STREAMS", "b", ">"],
    ]
    assert command.reading is not None
    assert command.reading.block_ms == 90
    assert command.reading.words(slot_of("b"), block_ms=7)[-5:] == ["BLOCK", 7, "STREAMS", "b", ">"]


@pytest.mark.parametrize(
    ("answers", "together"),
    [
        ([None, None], None),
        ([ONE, None], ONE),
        ([ONE, TWO], [*ONE, *TWO]),
        ([ONE, AWAY], ONE),
        ([ONE, REFUSED], ONE),  # its entries are this reader's by now
        ([None, AWAY], None),  # the node comes back by itself
        ([None, REFUSED], REFUSED),
        ([AWAY, REFUSED], REFUSED),
        ([None, DOWN], None),
        ([AWAY, AWAY], AWAY),
        ([DOWN, AWAY], DOWN),
        ([], None),
    ],
)
def test_what_the_parts_of_a_reading_have_read_together(answers: list[Any], together: Any) -> None:
    assert Reading.merged(answers) == together


@pytest.mark.parametrize(
    ("words", "consumer"),
    [
        (READING, ("g", "c")),
        ((*READING[:-1], "0"), None),  # what it holds already
        (("XREAD", "BLOCK", 5, "STREAMS", "a", "b", "0", "0"), None),
    ],
)
def test_whose_the_entries_of_a_reading_are(words: Words, consumer: Any) -> None:
    assert Reading(words).consumer == consumer
