"""What can be reached of a store, by what each partition answers."""

from typing import Any

import pytest
from redis.exceptions import ClusterDownError, NoPermissionError, ResponseError

from sagastream.broker.failures import NodeAway, name_node
from sagastream.store import reach
from sagastream.store.keys import StoreKeys
from sagastream.store.reach import Reach

KEYS = StoreKeys("saga", ["0", "1", "2", "3"], "0")


def looked(answers: list[Any]) -> Reach:
    """What is found if the keys of the whole store and then the partitions answer this."""
    exchange = reach.look(KEYS)
    assert [words[0] for words in next(exchange)] == ["EXISTS"] * 5
    with pytest.raises(StopIteration) as end:
        exchange.send(answers)
    found: Reach = end.value.value
    return found


def test_a_single_server_is_not_asked() -> None:
    keys = StoreKeys("saga", ["0", "1"])
    with pytest.raises(StopIteration) as end:
        next(reach.look(keys))
    assert end.value.value == Reach(keys, {}, None)
    assert end.value.value.is_whole


def test_the_partitions_of_a_node_that_is_away_are_left_out_and_named() -> None:
    away = NodeAway("the node 10.0.0.1:6379 of the cluster is away (it hangs)", was_sent=False)
    found = looked([1, 0, away, away, 1])
    assert [one.number for one in found.keys.partitions] == [0, 3]
    assert found.told() == [f"{away}: partitions 1-2 of 4 are left out"]
    assert (found.shared, found.is_whole) == (None, False)
    with pytest.raises(NodeAway):
        found.check()
    ids = [f"s{number}" for number in range(50)]
    assert [found.keys.of(one) for one in ids] == [KEYS.of(one) for one in ids]


def test_the_keys_of_the_whole_store_may_be_away() -> None:
    down = ClusterDownError("The cluster is down")
    found = looked([down, down, 1, 1, 1])
    assert found.shared is down
    assert found.told() == ["the cluster is down: partition 0 of 4 is left out"]


def test_if_all_of_it_is_away_that_is_an_outage_and_a_refusal_is_an_answer() -> None:
    away = NodeAway("all are away", was_sent=False)
    with pytest.raises(NodeAway):
        looked([away] * 5)
    assert looked([ResponseError("NOPERM no")] * 5).is_whole


def test_what_one_node_denies_is_left_out_and_named() -> None:
    denied = NoPermissionError("User x has no permissions to run the 'exists' command")
    name_node(denied, "10.0.0.1:6379")
    found = looked([1, 1, denied, 1, 1])
    assert [one.number for one in found.keys.partitions] == [0, 2, 3]
    (told,) = found.told()
    assert told.startswith("the node 10.0.0.1:6379 of the cluster denies this to the user in REDIS_URL: User x has no")
    assert told.endswith(": partition 1 of 4 is left out")


@pytest.mark.parametrize(("numbers", "text"), [([], "none"), ([3], "3"), ([7, 0, 1, 2], "0-2, 7")])
def test_ranges(numbers: list[int], text: str) -> None:
    assert reach.ranges(numbers) == text
