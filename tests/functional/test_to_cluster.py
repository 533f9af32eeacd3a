"""The connections of a client to a real cluster: redis-py's own methods, round trips, readings that wait."""

import asyncio
import contextlib
import pickle
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from sagastream.broker import exchange, scripting, wire
from sagastream.broker.cluster_map import SLOTS
from sagastream.broker.connection import Broker, connect, connect_async
from sagastream.broker.failures import NodeAway, NodeRefuses, NoNode, told
from sagastream.broker.nodes import Nodes, give_up_waiting
from sagastream.errors import BrokerError
from support.clusters import Cluster, Node, free_ports
from support.servers import Server, binary_of
from support.waiting import slowness, takes_less_than, until

#: One in the slots of each of three nodes.
ONE, TWO, THREE = "s{3}", "s{1}", "s{0}"


@pytest.fixture
def broker(cluster: Cluster) -> Broker:
    assert len({cluster.node_of(key) for key in (ONE, TWO, THREE)}) == 3
    return cluster.broker()


def reading(*streams: str, block_ms: int | None = None, consumer: str = "me") -> list[Any]:
    block = [] if block_ms is None else ["BLOCK", block_ms]
    return ["XREADGROUP", "GROUP", "g", consumer, "COUNT", 9, *block, "STREAMS", *streams, *(">" for _ in streams)]


def read(client: redis.Redis, words: list[Any]) -> list[str]:
    """The streams that a reading finds something in."""
    (found,) = wire.round_trip(client, [words])
    return [stream.decode() for stream, _ in wire.or_raise(found) or []]


@pytest.fixture
def streams(broker: Broker) -> tuple[str, ...]:
    for stream in (ONE, TWO, THREE):
        broker.client.xgroup_create(stream, "g", id="0", mkstream=True)
    return (ONE, TWO, THREE)


def test_a_url_of_any_node_leads_to_all(cluster: Cluster) -> None:
    for node in cluster.nodes:
        broker = Broker(node.url)
        for number in range(30):
            broker.client.set(f"k{number}", number)
        assert broker.is_cluster
        assert broker.client.exists(*(f"k{number}" for number in range(40))) == 30
        assert sorted(broker.servers()) == sorted(f"127.0.0.1:{one.port}" for one in cluster.nodes)
        assert sum(client.dbsize() for client in broker.servers().values()) == 30
        assert broker.client.unlink(*(f"k{number}" for number in range(30))) == 30
        broker.close()


def test_a_cluster_without_slots_is_an_outage_however_often_it_is_asked(tmp_path: Path) -> None:
    """As long as nobody has made a cluster of its nodes."""
    port, bus = free_ports(2)
    node = Node(binary_of("valkey"), tmp_path, f"redis://127.0.0.1:{port}", port=port, bus=bus)
    try:
        node.start()
        broker = node.broker()
        for _ in range(2):
            with pytest.raises(redis.ConnectionError, match="knows no node that has slots"):
                broker.check_server()
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        until(lambda: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"), what="it takes its slots for served")
        broker.check_server()
        assert list(broker.servers()) == [f"127.0.0.1:{port}"]
    finally:
        node.stop()


def test_a_url_of_several_nodes_needs_one_that_answers(cluster: Cluster) -> None:
    ports = [node.port for node in cluster.nodes]
    dead, *_ = free_ports(1)
    url = f"redis://127.0.0.1:{dead},127.0.0.1:{ports[1]},127.0.0.1:{ports[0]}"
    broker = Broker(url)
    broker.client.set(ONE, 1)
    assert broker.is_cluster
    assert sorted(broker.servers()) == sorted(f"127.0.0.1:{port}" for port in ports)
    assert broker.shown_url == url
    broker.close()
    with connect(url) as client:
        assert [client.get(key) for key in (ONE, TWO)] == [b"1", None]


@pytest.mark.both_in_soak
def test_what_several_nodes_in_a_url_cannot_be(server: Server) -> None:
    dead, port = free_ports(2)
    nobody = rf"127.0.0.1:{dead} \(nobody listens there\), localhost:{dead} \(nobody listens there\)"
    url = f"redis://127.0.0.1:{dead},localhost:{dead}"
    with contextlib.closing(Broker(url)) as broker, pytest.raises(NoNode, match=nobody):
        broker.check_server()
    with server.connect() as client:
        client.config_set("port", port)
    url = f"redis://127.0.0.1:{dead},127.0.0.1:{port}"
    with contextlib.closing(Broker(url)) as broker:
        for _ in range(2):  # also with the connection of the first time
            with pytest.raises(BrokerError, match=f"a node of one cluster, and 127.0.0.1:{port} is not"):
                broker.client.set(ONE, 1)


def test_a_client_without_a_broker_finds_the_nodes_too(cluster: Cluster) -> None:
    """As services of users have it."""
    for node in cluster.nodes:
        with connect(node.url) as client:
            for key in (ONE, TWO, THREE):
                client.incr(key)
    with connect(cluster.url) as client:
        assert [client.get(key) for key in (ONE, TWO, THREE)] == [b"3", b"3", b"3"]


def test_a_node_that_refuses_the_login_is_named(cluster: Cluster) -> None:
    """Users are made on each node: so one may lack them."""

    async def ask(url: str) -> None:
        pool = connect_async(url)
        try:
            wire.or_raise(*await exchange.run_async(pool, get()))
        finally:
            await pool.aclose()

    def get() -> exchange.Exchange[Any]:
        return (yield [("GET", ONE)])

    node = cluster.node_of(ONE)
    other = next(one for one in cluster.nodes if one is not node)
    with node.connect() as admin:
        admin.config_set("requirepass", "secret")
        try:
            for call in (partial(connect(other.url).get, ONE), lambda: asyncio.run(ask(other.url))):
                with pytest.raises(NodeRefuses) as raised:
                    call()
                who = f"the node 127.0.0.1:{node.port} of the cluster"
                assert told(raised.value).startswith(f"{who} wants a password, and REDIS_URL has none")
        finally:
            admin.config_set("requirepass", "")


def test_a_broker_that_is_closed_has_no_connections(cluster: Cluster) -> None:
    broker = Broker(cluster.url)
    assert read(broker.client, ["XREAD", "BLOCK", 1, "STREAMS", ONE, TWO, "0", "0"]) == []
    idle: list[Any] = [*broker.client.connection_pool._given_back]  # type: ignore[attr-defined]  # ours, see pool.py
    assert [one.is_connected for one in idle] == [True]
    broker.close()
    assert [one.is_connected for one in idle] == [False]
    clients = [partial(node.ask, "CLIENT", "LIST") for node in cluster.nodes]
    until(lambda: all(len(asked().splitlines()) == 1 for asked in clients), what="only the test is connected")


def test_pipelines_and_transactions_of_redis_py(broker: Broker) -> None:
    plain = broker.client.pipeline(transaction=False)
    for key in (ONE, TWO, THREE):
        plain.set(key, key)
        plain.get(key)
    assert plain.execute() == [True, b"s{3}", True, b"s{1}", True, b"s{0}"]
    whole = broker.client.pipeline(transaction=True)
    whole.set(ONE, "1")
    whole.incr(ONE)
    whole.get(ONE)
    assert whole.execute() == [True, 2, b"2"]
    with broker.client.pipeline() as watching:
        watching.watch(ONE)  # type: ignore[no-untyped-call]
        watching.multi()
        watching.incr(ONE)
        broker.client.incr(ONE)
        with pytest.raises(redis.WatchError):
            watching.execute()
    assert broker.client.get(ONE) == b"3"


def test_a_new_script_is_loaded_where_it_is_called(broker: Broker) -> None:
    text = "return {redis.call('INCR', KEYS[1]), 1}"
    for key in (ONE, TWO, THREE):
        load, called = wire.round_trip(broker.client, [("SCRIPT", "LOAD", text), ("EVAL", text, 1, key)])
        assert isinstance(load, bytes)
        assert called == [1, 1]
        (again,) = wire.round_trip(broker.client, [("EVALSHA", load, 1, key)])
        assert again == [2, 1]


def test_keys_of_a_partition_are_scanned_where_they_are(broker: Broker) -> None:
    keys = {f"saga:{{{tag}}}:index:{number}" for tag in range(4) for number in range(5)}
    for key in keys:
        broker.client.set(key, 1)
    for tag in range(4):
        found = {key.decode() for key in broker.client.scan_iter(f"saga:{{{tag}}}:index:*")}
        assert found == {key for key in keys if f"{{{tag}}}" in key}


def test_a_call_over_several_slots_is_refused_by_the_server(broker: Broker) -> None:
    with pytest.raises(redis.exceptions.ClusterCrossSlotError):
        broker.client.mget(ONE, TWO)


def test_a_reading_brings_what_all_have_and_wakes_at_once(broker: Broker, streams: tuple[str, ...]) -> None:
    client = broker.client
    client.xadd(ONE, {"n": 1})
    client.xadd(TWO, {"n": 1})
    assert read(client, reading(*streams, block_ms=400)) == [ONE, TWO]
    began = time.monotonic()
    assert read(client, reading(*streams, block_ms=100)) == []
    assert time.monotonic() - began >= 0.1
    for stream in streams:
        adding = threading.Timer(0.05, lambda stream=stream: client.xadd(stream, {"n": 1}))
        adding.start()
        with takes_less_than(0.4):
            assert read(client, reading(*streams, block_ms=5000)) == [stream]
        adding.join()


def test_what_a_reading_that_still_waits_gets_comes_with_the_next(broker: Broker, streams: tuple[str, ...]) -> None:
    client = broker.client
    waited = threading.Timer(0.05, lambda: client.xadd(ONE, {"n": 1}))
    waited.start()
    assert read(client, reading(*streams, block_ms=30_000)) == [ONE]  # the others wait on for half a minute
    client.xadd(TWO, {"n": 1})
    client.xadd(THREE, {"n": 1})
    assert client.xlen(TWO) == 1
    until(lambda: client.xpending(THREE, "g")["pending"] == 1, what="the reading that waits has it")
    assert sorted(read(client, reading(*streams))) == sorted([TWO, THREE])
    assert [client.xpending(stream, "g")["pending"] for stream in streams] == [1, 1, 1]


def test_other_streams_are_read_meanwhile_and_nothing_is_lost(broker: Broker, streams: tuple[str, ...]) -> None:
    client = broker.client
    waited = threading.Timer(0.05, lambda: client.xadd(ONE, {"n": 1}))
    waited.start()
    assert read(client, reading(*streams, block_ms=30_000)) == [ONE]
    client.xadd(TWO, {"n": 1})
    until(lambda: client.xpending(TWO, "g")["pending"] == 1, what="the reading that waits has it")
    assert read(client, reading(ONE, THREE)) == [TWO]  # of a stream that is not asked for by now


def test_two_consumers_wait_beside_each_other(broker: Broker, streams: tuple[str, ...]) -> None:
    found: list[str] = []
    client = broker.client
    threads = [
        threading.Thread(
            target=lambda name=name: found.extend(read(client, reading(*streams, block_ms=300, consumer=name)))
        )
        for name in ("me", "you")
    ]
    for thread in threads:
        thread.start()
    client.xadd(ONE, {"n": 1})
    client.xadd(TWO, {"n": 1})
    for thread in threads:
        thread.join()
    while more := read(client, reading(*streams)) + read(client, reading(*streams, consumer="you")):
        found += more
    assert sorted(found) == sorted([ONE, TWO])


def test_who_gives_up_waiting_finds_what_it_got_among_its_own(broker: Broker, streams: tuple[str, ...]) -> None:
    client = broker.client
    waited = threading.Timer(0.05, lambda: client.xadd(ONE, {"n": 1}))
    waited.start()
    assert read(client, reading(*streams, block_ms=30_000)) == [ONE]
    client.xadd(TWO, {"n": 1})
    until(lambda: client.xpending(TWO, "g")["pending"] == 1, what="the reading that waits has it")
    give_up_waiting(client, "g", "me")
    assert read(client, reading(*streams)) == []
    own: wire.Words = ["XREADGROUP", "GROUP", "g", "me", "COUNT", 9, "STREAMS", *streams, "0", "0", "0"]
    (found,) = wire.round_trip(client, [own])
    assert [stream for stream, page in found if page] == [ONE.encode(), TWO.encode()]


def test_a_look_at_streams_wakes_at_once_and_opens_few_connections(broker: Broker, streams: tuple[str, ...]) -> None:
    client = broker.client
    after: dict[str, str] = dict.fromkeys(streams, "0")
    assert read(client, ["XREAD", "BLOCK", 1, "STREAMS", *after, *after.values()]) == []
    connections = broker.connections
    for number in range(30):
        stream = streams[number % 3]
        threading.Timer(0.01, lambda stream=stream: client.xadd(stream, {"n": 1})).start()
        found: Any = None
        with takes_less_than(1):
            while not found:  # a look from before may end early, with nothing
                looking: wire.Words = ("XREAD", "BLOCK", 9000, "STREAMS", *after, *after.values())
                (found,) = wire.round_trip(client, [looking])
        ((name, page),) = found
        assert name.decode() == stream
        after[stream] = page[-1][0].decode()
    assert broker.connections - connections <= 3


def test_what_a_node_that_hangs_may_have_got_is_not_taken_for_unsent(tmp_path: Path) -> None:
    """It takes what fits into the buffers of the connection, and does it when it goes on."""
    made = Cluster("valkey", tmp_path)
    try:
        broker = made.broker()
        broker.client.set(ONE, "there")
        node = made.node_of(ONE)
        node.pause()
        first, _ = wire.round_trip(broker.client, [("SET", ONE, "done"), ("SET", ONE, b"x" * (32 << 20))])
        assert isinstance(first, NodeAway)
        assert first.was_sent
        node.resume()
        until(lambda: node.ask("GET", ONE) == b"done", what="it has done what it got")
    finally:
        made.stop()


def test_a_node_that_restarted_is_reached_again(tmp_path: Path) -> None:
    cluster = Cluster("valkey", tmp_path)
    try:
        client = cluster.broker().client
        for key in (ONE, TWO, THREE):
            client.set(key, 1)
        node = cluster.node_of(ONE)
        node.kill()
        first, second, third = wire.round_trip(client, [("GET", ONE), ("GET", TWO), ("GET", THREE)])
        assert isinstance(first, NodeAway)
        assert (second, third) == (b"1", b"1")
        with pytest.raises(NodeAway):
            exchange.run(client, scripting.Script("due").call([ONE], [1, 1]))
        node.start()
        until(lambda: wire.round_trip(client, [("GET", ONE)]) == [b"1"], what="it is reached")
    finally:
        cluster.stop()


def test_a_node_that_hangs_is_waited_for_once_in_a_while(tmp_path: Path) -> None:
    cluster = Cluster("valkey", tmp_path)
    try:
        client = cluster.broker().client
        client.set(TWO, 1)
        node = cluster.node_of(ONE)
        node.pause()
        with takes_less_than(4):
            first, second = wire.round_trip(client, [("GET", ONE), ("GET", TWO)])
        assert isinstance(first, NodeAway)
        assert second == b"1"
        began = time.monotonic()
        for _ in range(20):
            assert wire.round_trip(client, [("GET", ONE), ("GET", TWO)])[1] == b"1"
        assert time.monotonic() - began < 1.5 * slowness()
        node.resume()
        until(lambda: wire.round_trip(client, [("GET", ONE)]) == [None], what="it is reached")
    finally:
        cluster.stop()


def test_the_options_of_a_client_can_be_sent_to_another_process(cluster: Cluster) -> None:
    broker = cluster.broker()
    broker.client.ping()
    options = broker.client.get_connection_kwargs()
    nodes = pickle.loads(pickle.dumps(options["nodes"]))
    assert isinstance(nodes, Nodes)
