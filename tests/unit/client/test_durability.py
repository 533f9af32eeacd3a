"""What a begin asks so that a replica has it, too, and what the answers mean."""

from typing import Any

import pytest
import redis

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import NodeAway
from sagastream.client.durability import Replicas, check_durable
from sagastream.store.keys import StoreKeys
from support.stores import KEYS, ONLY


def two_trips() -> Exchange[list[Any]]:
    first = yield [("A",)]
    second = yield [("B",), ("C",)]
    return first + second


def info(replicas: int, history: str = "h1") -> bytes:
    return b"# Replication\r\nrole:master\r\nconnected_slaves:%d\r\nmaster_replid:%b\r\n" % (replicas, history.encode())


def play(answers: list[list[Any]], replicas: Replicas | None = None) -> tuple[list[list[str]], Any]:
    """The names of the commands of each round trip, with how long it waits; and the result."""
    exchange, sent = (replicas or Replicas(KEYS)).confirmed([ONLY], two_trips()), []
    commands = next(exchange)
    try:
        for one in answers:
            sent.append([f"WAIT {words[2]!s}" if words[0] == "WAIT" else str(words[0]) for words in commands])
            commands = exchange.send(one)
    except StopIteration as end:
        return sent, end.value
    raise AssertionError("it has not ended")


FIRST: list[Any] = ["a", "OK", 0, info(1)]


def test_each_round_trip_ends_with_a_write_and_a_wait_and_the_last_one_counts() -> None:
    sent, found = play([FIRST, ["b", "c", "OK", 1, info(1)]])
    assert sent == [["A", "EVAL", "WAIT 20", "INFO"], ["B", "C", "EVAL", "WAIT 20", "INFO"]]
    assert found == (["a", "b", "c"], [ONLY])


@pytest.mark.parametrize(
    ("waited", "sure"),
    [
        (["OK", 1, info(1)], [ONLY]),
        (["OK", 0, info(1)], []),
        (["OK", 1, info(1, "h2")], []),  # a new master, which may lack what was asked for
        (["OK", 1, redis.ResponseError("it does not tell")], []),
    ],
)
def test_a_replica_that_is_connected_is_waited_for(waited: list[Any], sure: list[Any]) -> None:
    sent, found = play([FIRST, ["b", "c", "OK", 0, info(1)], waited])
    assert sent[2] == ["EVAL", "WAIT 980", "INFO"]
    assert found == (["a", "b", "c"], sure)


def test_where_no_replica_is_connected_nobody_waits() -> None:
    replicas = Replicas(KEYS)
    sent, found = play([["a", "OK", 0, info(0)], ["b", "c", "OK", 0, info(0)]], replicas)
    assert [words[-2] for words in sent] == ["WAIT 20", "WAIT 1"]
    assert found == (["a", "b", "c"], [])
    assert "no replica is connected to it" in str(replicas.missing("s1"))
    sent, found = play([["a", "OK", 0, info(0)], ["b", "c", "OK", 0, info(1)], ["OK", 1, info(1)]], replicas)
    assert [words[-2] for words in sent] == ["WAIT 1", "WAIT 1", "WAIT 980"]  # one has come
    assert found[1] == [ONLY]


@pytest.mark.parametrize("at", [2, 3])
def test_a_server_that_refuses_to_say_it_confirms_nothing(at: int) -> None:
    answers: list[Any] = ["b", "c", "OK", 1, info(1)]
    answers[at] = redis.exceptions.NoPermissionError("NOPERM")
    with pytest.raises(redis.exceptions.NoPermissionError):
        play([FIRST, answers])


def test_on_a_cluster_each_partition_is_asked_for_and_a_node_that_is_away_confirms_nothing() -> None:
    keys = StoreKeys("saga", ["0", "1", "2", "3"], "0")
    zero, one, two, three = keys.partitions

    def trip() -> Exchange[list[Any]]:
        return (yield [("A",)])

    exchange = Replicas(keys).confirmed([two, zero, one, three], trip())
    commands = next(exchange)
    assert [str(words[0]) for words in commands] == ["A", *("EVAL", "WAIT", "INFO") * 4]
    assert [words[3] for words in commands if words[0] == "EVAL"] == [
        two.confirm, zero.confirm, one.confirm, three.confirm
    ]  # fmt: skip
    away = NodeAway("away", was_sent=True)
    late = exchange.send(["a", "OK", 1, info(1), "OK", 0, info(0), "OK", away, away, "OK", 0, info(2)])
    assert [words[3] for words in late if words[0] == "EVAL"] == [three.confirm]
    with pytest.raises(StopIteration) as ended:
        exchange.send(["OK", 1, info(2)])
    assert ended.value.value == (["a"], [two, three])


def test_nothing_else_can_be_waited_for() -> None:
    check_durable(None)
    check_durable("replica")
    for durable in ("disk", True, 1):
        with pytest.raises(ValueError, match="durable must be 'replica', or None"):
            check_durable(durable)
