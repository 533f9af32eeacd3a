"""What the doctor says of the nodes of a cluster."""

from typing import Any

import pytest
import redis

from sagastream.broker.urls import Address
from sagastream.store.keys import StoreKeys
from sagastream_bridge.inspection.cluster_check import (
    Master,
    View,
    of_away,
    of_clocks,
    of_coverage,
    of_view,
    view,
)
from sagastream_bridge.inspection.findings import OK, PROBLEM, WARNING, Finding

#: Their slots are 13907, 264 and 5649.
KEYS = StoreKeys("saga", ["0", "1br", "2"], "0")


#: Where the node was reached that was asked.
ASKED = Address("10.0.0.1", 6379)


def node(number: int) -> list[Any]:
    """A node, as CLUSTER SLOTS has it."""
    return [b"10.0.0.%d" % number, 6379, b"id%d" % number, []]


def line(number: int, flags: str = "master", master: str = "-") -> str:
    """A node, as CLUSTER NODES has it."""
    return f"id{number} 10.0.0.{number}:6379@16379 {flags} {master} 0 0 1 connected"


SLOTS = [[0, 8191, node(1), node(3)], [8192, 16383, node(2)]]


def lines(findings: Any) -> list[tuple[str, str, str]]:
    found: list[Finding] = list(findings)
    return [(one.level, one.about, one.line) for one in found]


def test_each_node_has_the_partitions_in_its_slots() -> None:
    one = Master(address="10.0.0.1:6379", slots=8192, partitions=(1, 2), replicas=1)
    two = Master(address="10.0.0.2:6379", slots=8192, partitions=(0,), has_shared=True)
    assert view(SLOTS, "", KEYS, ASKED) == View(masters=(one, two))
    assert view(SLOTS, "", None, ASKED).masters[1] == Master(address="10.0.0.2:6379", slots=8192)


@pytest.mark.parametrize("host", [b"", None])
def test_a_node_that_has_met_no_other_is_where_it_was_reached(host: bytes | None) -> None:
    alone = [[0, 16383, [host, 17000, b"id1", []]]]
    nodes = ":17000@27000 myself,master - 0 0 1 connected"
    for slots in (alone, []):  # perhaps it has no slots yet
        (one,) = view(slots, f"id1 {nodes}", KEYS, ASKED).masters
        assert one.address == "10.0.0.1:17000"


def test_a_node_that_should_have_a_name_and_has_none_is_at_its_address() -> None:
    nameless = [[0, 16383, [b"?", 17000, b"id1", [b"ip", b"10.0.0.7"]]]]
    (one,) = view(nameless, "id1 10.0.0.7:17000@27000,? myself,master - 0 0 1 connected", KEYS, ASKED).masters
    assert one.address == "10.0.0.7:17000"


def test_nodes_that_are_down_are_seen_as_the_others_see_them() -> None:
    nodes = [line(1, "myself,master"), line(2, "master,fail"), line(3, "slave,fail?", "id1"), line(4)]
    found = view(SLOTS, "\n".join(nodes), KEYS, ASKED)
    assert [(one.address, one.is_down, one.replicas, one.slots) for one in found.masters] == [
        ("10.0.0.1:6379", False, 0, 8192),
        ("10.0.0.2:6379", True, 0, 8192),
        ("10.0.0.4:6379", False, 0, 0),
    ]
    assert found.replicas_down == ("10.0.0.3:6379",)
    said = lines(of_view(found, 3, ["10.0.0.2:6379"]))
    text = "nodes: 3 masters, of which 2 answer, 0 replicas; each slot has a node: too few answer, so the cluster takes"
    assert (said[0][0], said[0][2][: len(text)]) == (PROBLEM, text)  # one of the two has no slots, and no say
    assert (WARNING, "cluster", "the replica 10.0.0.3:6379 is down") in said
    assert ("node 10.0.0.4:6379", "it has no slots") in [(about, text[:15]) for _, about, text in said]


@pytest.mark.parametrize(
    ("masters", "silent", "level", "says"),
    [
        (3, (), OK, "nodes: 3 masters, 0 replicas; each slot has a node"),
        (3, (2,), WARNING, "nodes: 3 masters, of which 2 answer, 0 replicas; each slot has a node"),
        (
            3,
            (2, 3),
            PROBLEM,
            "nodes: 3 masters, of which 1 answers, 0 replicas; each slot has a node: too few answer, ",
        ),
        (4, (1, 2), PROBLEM, "nodes: 4 masters, of which 2 answer, 0 replicas; each slot has a node: too few answer, "),
        (2, (1, 2), PROBLEM, "nodes: 2 masters, of which none answers, 0 replicas; each slot has a node: too few "),
    ],
)
def test_masters_that_do_not_answer_are_counted(masters: int, silent: tuple[int, ...], level: str, says: str) -> None:
    """They may have died a moment ago, so that the others do not know it yet."""
    names = [f"10.0.0.{number}:6379" for number in range(1, masters + 1)]
    each = 16384 // masters
    slots = [16384 - each * (masters - 1), *[each] * (masters - 1)]
    found = View(masters=tuple(Master(address=name, slots=of) for name, of in zip(names, slots, strict=True)))
    first, *others = lines(of_view(found, None, [names[number - 1] for number in silent]))
    assert (first[0], first[2][: len(says)]) == (level, says)
    alone = [text for _, _, text in others if text.startswith("nodes without a replica: ")]
    assert all(names[number - 1] not in text for text in alone for number in silent)


def test_a_dead_master_whose_slots_others_have_gets_no_slots() -> None:
    nodes = [line(1, "myself,master"), line(2), line(3, "slave", "id1"), line(4, "master,fail")]
    said = lines(of_view(view(SLOTS, "\n".join(nodes), KEYS, ASKED), 3, []))
    assert said[0] == (OK, "cluster", "nodes: 2 masters, 1 replica; each slot has a node")
    text = "it is down, and other nodes have its slots; start it: it becomes a replica"
    assert (WARNING, "node 10.0.0.4:6379", text) in said
    assert all("rebalance" not in text for _, _, text in said[:-1])


def test_a_cluster_that_lacks_slots_is_a_problem() -> None:
    ((level, _, text), *_) = lines(of_view(view(SLOTS[:1], "", KEYS, ASKED), 3, []))
    assert (level, "8192 of 16384 slots have no node" in text) == (PROBLEM, True)


@pytest.mark.parametrize(
    ("held", "level", "ends"),
    [
        ([(0,), (1, 2)], OK, "b has 1-2"),
        ([(0, 1, 2), ()], WARNING, "some nodes have more work than others; move slots: redis-cli --cluster rebalance"),
    ],
)
def test_partitions_are_to_be_spread_evenly(held: list[tuple[int, ...]], level: str, ends: str) -> None:
    masters = [Master(address=name, slots=1, partitions=of, replicas=1) for name, of in zip("ab", held, strict=True)]
    found = lines(of_view(View(masters=tuple(masters)), 3, []))[-1]
    assert (found[0], found[1], ends in found[2]) == (level, "partitions", True)


def test_a_node_without_a_partition_does_no_work() -> None:
    masters = tuple(Master(address=name, slots=1, partitions=of, replicas=1) for name, of in (("a", (0,)), ("b", ())))
    (level, _, text) = lines(of_view(View(masters=masters), 1, []))[-1]
    assert level == WARNING
    assert text.startswith("of 1 partition, a has 0; b has none: nodes without one do no work; ")


def test_one_dead_node_must_not_stop_all() -> None:
    assert lines(of_coverage({"a": "no", "b": ""})) == []
    assert " is yes: " in lines(of_coverage({"a": "yes", "b": "yes"}))[0][2]
    assert " is yes on b: " in lines(of_coverage({"a": "no", "b": "yes"}))[0][2]


def test_clocks_that_are_apart_are_told() -> None:
    assert lines(of_clocks({})) == lines(of_clocks({"a": 0, "b": 400, "c": -100})) == []
    ((level, about, text),) = lines(of_clocks({"a": 0, "b": 3000}))
    assert (level, about) == (WARNING, "clock")
    assert text.startswith("the clock of b is 3 s ahead of that of a: a signal near the end of its wait may")


def test_what_a_node_has_that_is_away() -> None:
    error = redis.TimeoutError("Timeout")
    one = Master(address="a", slots=1, partitions=(0, 1), has_shared=True)
    text = "it does not answer (Timeout); what waits for it: partitions 0-1 of 3 and the keys of the whole store"
    assert lines([of_away(one, error, 3)]) == [(PROBLEM, "node a", f"{text}; start it: no replica takes its place")]
    other = Master(address="b", slots=1, partitions=(2,), replicas=1)
    assert "partition 2 of 3; a replica takes its place" in of_away(other, error, 3).line
    assert "nobody knows what" in of_away(one, error, None).line
