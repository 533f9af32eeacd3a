"""What a begin asks so that a replica has it, too, and what the answers mean."""

from typing import Any

import pytest
import redis

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import NodeAway
from sagastream.client.durability import check_durable, confirmed
from sagastream.store.keys import StoreKeys
from support.stores import KEYS, ONLY


def two_trips() -> Exchange[list[Any]]:
    first = yield [("A",)]
    second = yield [("B",), ("C",)]
    return first + second


def play(answers: list[list[Any]]) -> tuple[list[list[str]], Any]:
    """The names of the commands of each round trip; and the result."""
    exchange, sent = confirmed(KEYS, [ONLY], two_trips()), []
    commands = next(exchange)
    try:
        for one in answers:
            sent.append([str(words[0]) for words in commands])
            commands = exchange.send(one)
    except StopIteration as end:
        return sent, end.value
    raise AssertionError("it has not ended")


def test_each_round_trip_ends_with_a_write_and_a_wait_and_the_last_one_counts() -> None:
    sent, found = play([["a", "OK", 0], ["b", "c", "OK", 1]])
    assert sent == [["A", "EVAL", "WAIT"], ["B", "C", "EVAL", "WAIT"]]
    assert found == (["a", "b", "c"], [ONLY])
    assert play([["a", "OK", 1], ["b", "c", "OK", 0]])[1] == (["a", "b", "c"], [])


@pytest.mark.parametrize("at", [2, 3])
def test_a_server_that_refuses_to_say_it_confirms_nothing(at: int) -> None:
    answers: list[Any] = ["b", "c", "OK", 1]
    answers[at] = redis.exceptions.NoPermissionError("NOPERM")
    with pytest.raises(redis.exceptions.NoPermissionError):
        play([["a", "OK", 1], answers])


def test_on_a_cluster_each_partition_is_asked_for_and_a_node_that_is_away_confirms_nothing() -> None:
    keys = StoreKeys("saga", ["0", "1", "2"], "0")
    zero, one, two = keys.partitions

    def trip() -> Exchange[list[Any]]:
        return (yield [("A",)])

    exchange = confirmed(keys, [two, zero, one], trip())
    commands = next(exchange)
    assert [str(words[0]) for words in commands] == ["A", "EVAL", "WAIT", "EVAL", "WAIT", "EVAL", "WAIT"]
    assert [words[3] for words in commands if words[0] == "EVAL"] == [two.confirm, zero.confirm, one.confirm]
    with pytest.raises(StopIteration) as ended:
        exchange.send(["a", "OK", 1, "OK", 0, "OK", NodeAway("away", was_sent=True)])
    assert ended.value.value == (["a"], [two])


def test_nothing_else_can_be_waited_for() -> None:
    check_durable(None)
    check_durable("replica")
    for durable in ("disk", True, 1):
        with pytest.raises(ValueError, match="durable must be 'replica', or None"):
            check_durable(durable)
