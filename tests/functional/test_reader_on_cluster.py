"""A reader of a consumer group on a cluster whose nodes go away, and come back."""

from collections.abc import Iterator

import pytest
import redis

from sagastream.broker import wire
from sagastream.broker.failures import NodeAway
from sagastream.broker.group_reader import GroupReader
from support.clusters import Cluster, Node
from support.waiting import takes_less_than, until

#: One in the slots of each of three nodes.
ONE, TWO, THREE = "s{3}", "s{1}", "s{0}"
STREAMS = [ONE, TWO, THREE]


class Read:
    """A reader, and what it has read."""

    def __init__(self, cluster: Cluster, name: str = "me") -> None:
        self.client = cluster.broker().client
        self.joined = 0
        self.reader = GroupReader(self.client, group="g", consumer=name, lease_ms=1000, on_join=self._join)

    def _join(self) -> list[str]:
        self.joined += 1
        return STREAMS

    def turn(self, block_ms: int | None = 1) -> list[str]:
        """The streams of the entries that it reads; with a `!` if they were delivered before."""
        return [entry.stream + "!" * entry.again for entry in self.reader.read(block_ms)]

    def until(self, *streams: str) -> None:
        """Read until it has read all these."""
        left = set(streams)

        def has_read() -> bool:
            left.difference_update(self.turn())
            return not left

        until(has_read, what=f"it reads {streams}")


@pytest.fixture
def own(mortal: Cluster) -> Iterator[Cluster]:
    yield mortal
    mortal.close_brokers()
    for node in mortal.nodes:
        if not node.is_live:
            node.start()
    mortal.wait_ok()
    mortal.clear()


@pytest.fixture
def read(own: Cluster) -> Read:
    made = Read(own)
    assert made.turn() == []
    return made


def add(client: redis.Redis, *streams: str) -> None:
    for stream in streams:
        client.xadd(stream, {"body": "x"})


def test_a_node_that_dies_stops_only_its_own_streams_and_what_it_held_is_read_again(own: Cluster, read: Read) -> None:
    client, node = read.client, own.node_of(ONE)
    add(client, ONE, TWO)
    read.until(ONE, TWO)
    node.kill()
    add(client, THREE)
    read.until(THREE, f"{TWO}!", f"{THREE}!")  # that of the others too: nobody knows what was on its way
    assert [read.turn(), read.turn(block_ms=20)] == [[], []]
    add(client, TWO)
    assert read.turn(block_ms=500) == [TWO]
    node.start()
    read.until(f"{ONE}!", f"{TWO}!", f"{THREE}!")
    until(lambda: read.turn() == [], what="it has read all")
    assert read.joined == 1


def test_a_group_that_a_node_has_lost_is_made_again(own: Cluster, read: Read) -> None:
    client, node = read.client, own.node_of(ONE)
    node.kill()
    for file in node.folder.glob("appendonlydir/*"):
        file.unlink()
    assert read.turn() == []
    node.start()

    def is_back() -> bool:
        add(client, TWO)  # the others have something all the time
        read.turn()
        return _has_group(node, ONE)

    until(is_back, what="there is a group again")
    add(client, ONE)
    until(lambda: ONE in {stream.rstrip("!") for stream in read.turn()}, what="it is read")
    assert read.joined == 2


def test_a_reader_that_begins_while_a_node_is_away_reads_its_streams_once_it_is_back(own: Cluster) -> None:
    node = own.node_of(ONE)
    node.kill()
    read = Read(own)
    add(read.client, TWO)
    read.until(TWO)
    node.start()
    until(lambda: _added(node, ONE), what="the node takes an entry")
    read.until(ONE)
    assert read.joined == 1


def _has_group(node: Node, stream: str) -> bool:
    try:
        return bool(node.ask("XINFO", "GROUPS", stream))
    except redis.ResponseError:  # there is no such stream, or its cluster is not whole yet
        return False


def _added(node: Node, stream: str) -> bool:
    try:
        return bool(node.ask("XADD", stream, "*", "body", "x"))
    except redis.ResponseError:  # its cluster is not whole yet
        return False


@pytest.mark.soak  # it waits until the reader takes the node for away
def test_a_node_that_hangs_holds_up_a_reading_once(own: Cluster, read: Read) -> None:
    client, node = read.client, own.node_of(ONE)
    add(client, ONE)
    node.pause()
    add(client, TWO, THREE)
    read.until(TWO, THREE)
    (hung,) = wire.round_trip(client, [("XLEN", ONE)])
    assert isinstance(hung, NodeAway)
    add(client, TWO)
    with takes_less_than(1.0):
        read.until(TWO)
    node.resume()
    until(lambda: any(stream.startswith(ONE) for stream in read.turn()), what="it is read")
    assert read.joined == 1


def test_what_can_be_left_and_held_of_others_is_while_a_node_is_away(own: Cluster, read: Read) -> None:
    client, node = read.client, own.node_of(ONE)
    add(client, ONE, TWO, THREE)
    entries = read.reader.read(1)
    while len(entries) < 3:
        entries += read.reader.read(1)
    node.kill()
    assert read.reader.leases.renew(entries) == set()  # those of the node that is away may well be its own still
    client.xack(TWO, "g", *[entry.id for entry in entries if entry.stream == TWO])
    assert {stream for stream, _ in read.reader.leases.renew(entries)} == {TWO}
    read.reader.leases.forget_gone(STREAMS)
    read.reader.leases.clock_set_back(STREAMS)
    read.reader.leases.look(STREAMS)
    read.reader.show_up()
    read.reader.leave()
    heir = Read(own, "heir")
    until(lambda: f"{THREE}!" in heir.turn(), what="it takes over")
