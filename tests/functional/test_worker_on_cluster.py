"""Workers on a cluster whose nodes go away, and come back: sagas of the other partitions go on."""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import redis

from sagastream.broker import exchange, wire
from sagastream.broker.connection import Broker
from sagastream.broker.partial import run_all, there
from sagastream.broker.scripting import added_even_if_full
from sagastream.client import requests
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.saga import SagaState
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.room import Room
from sagastream.orchestrator.worker import Orchestrator
from sagastream.store import layout, sagas
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.reach import ranges
from sagastream.telemetry import Observer
from support.clusters import Cluster, Node
from support.servers import KINDS
from support.waiting import slowness, until

STEP = {"transaction": "Do", "service": "work", "params": 1, "attempts": 50, "timeout_ms": 60_000}


class Work:
    """The service `work`: a thread that does each command once, by its key, and goes on with the partitions that it can
    reach. What it must remember, it remembers itself."""

    def __init__(self, cluster: Cluster, keys: StoreKeys) -> None:
        self._client = cluster.broker().client
        self._keys = keys
        self.effects: Counter[str] = Counter()
        self._stop = threading.Event()
        self._after = dict.fromkeys(keys.partitions, b"0")
        self._client.sadd(keys.services, "work")
        self._client.hset(keys.published("work"), "Do", "")
        for partition in keys.partitions:
            self._client.xgroup_create(partition.commands("work"), "work", id="0", mkstream=True)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.001):
            found = run_all(self._client, [self._answer(one) for one in self._keys.partitions])
            if not any(there(found)):
                self._stop.wait(0.01)

    def _answer(self, partition: Partition) -> Any:
        """Answer what stands in the stream of one partition: an entry is deleted with its answer, in one."""
        stream = partition.commands("work")
        (page,) = yield [("XRANGE", stream, "-", "+", "COUNT", 100)]
        for entry_id, words in wire.or_raise(page):
            fields = dict(zip(words[::2], words[1::2], strict=True))
            body = json.loads(fields[b"body"])
            self.effects[f"{body['saga_id']}/{body['step']}"] = 1
            reply = {"type": "Do_ok", "saga_id": body["saga_id"], "step": body["step"]}
            written = {"body": json.dumps(reply), "attempt": fields.get(b"attempt", b"1")}
            added = added_even_if_full(partition.replies("work"), written)
            gone = [("XACK", stream, "work", entry_id), ("XDEL", stream, entry_id)]
            *_, done = yield [("MULTI",), added, *gone, ("EXEC",)]
            wire.or_raise(done)
        return len(page)


class Told(Observer):
    """What an observer is told of outages."""

    def __init__(self) -> None:
        self.away: list[tuple[int, ...]] = []
        self.outages = 0

    def partitions_away(self, *, numbers: tuple[int, ...], **_: object) -> None:
        self.away.append(numbers)

    def outage_began(self, **_: object) -> None:
        self.outages += 1


class Stage:
    """Workers, the service `work`, and clients that begin one saga after another in each partition."""

    def __init__(self, cluster: Cluster, workers: int) -> None:
        self.cluster = cluster
        self.broker = cluster.broker()
        self.keys = layout.check(self.broker)
        self.work = Work(cluster, self.keys)
        self.told = [Told() for _ in range(workers)]
        self.stop = threading.Event()
        self.failed: list[BaseException] = []
        self._threads = [threading.Thread(target=self._works, args=(cluster.broker(), told)) for told in self.told]
        for thread in self._threads:
            thread.start()
        self._number = 0

    def _works(self, broker: Broker, told: Told) -> None:
        try:
            Orchestrator(broker, self.stop, observer=told).run()
        except BaseException as error:
            self.failed.append(error)
            raise

    def close(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()
        self.work.close()
        assert self.failed == []

    def begin(self, partitions: Sequence[Partition], each: int, steps: Sequence[Any] = (STEP, STEP)) -> list[str]:
        """Ask for so many sagas in each of these. Returns their ids."""
        ids: list[str] = []
        missing = Counter({partition.number: each for partition in partitions})
        while missing.total():
            self._number += 1
            saga_id = f"s{self._number}"
            if missing[number := self.keys.of(saga_id).number] > 0:
                missing[number] -= 1
                ids.append(saga_id)
        asked = [parse_begin({"saga_id": one, "steps": [*steps]}, request_id=f"r-{one}") for one in ids]
        exchange.run(self.broker.client, requests.append(self.keys, asked))
        return ids

    def ended(self, ids: Sequence[str]) -> bool:
        with contextlib.suppress(redis.RedisError):
            states, _ = sagas.read(self.broker.client, self.keys, ids)
            return all(isinstance(one, SagaState) and one.ended for one in states.values())
        return False

    def lasts(self, partitions: Sequence[Partition], each: int = 100) -> float:
        """How long so many sagas of each of these partitions take, in seconds."""
        began = time.monotonic()
        ids = self.begin(partitions, each)
        until(lambda: self.ended(ids), what=f"sagas of {[one.number for one in partitions]} end")
        return time.monotonic() - began

    def of(self, node: Node) -> tuple[list[Partition], list[Partition]]:
        """The partitions that this node has, and the others."""
        here = [one for one in self.keys.partitions if self.cluster.node_of(one.timers) is node]
        return here, [one for one in self.keys.partitions if one not in here]

    def did_each_once(self) -> bool:
        return set(self.work.effects.values()) == {1}


@pytest.fixture
def stage(mortal: Cluster, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", "6")
    made = Stage(mortal, getattr(request, "param", 1))
    try:
        yield made
    finally:
        for node in mortal.nodes:
            if node.process is not None and node.process.poll() is not None:
                node.start()
            node.resume()
        mortal.wait_ok()
        made.close()
        mortal.close_brokers()
        mortal.clear()


def test_a_node_that_dies_stops_only_the_sagas_of_its_partitions(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    of_the_whole_store = stage.cluster.node_of(stage.keys.alive)
    another = next(node for node in stage.cluster.nodes if node is not of_the_whole_store)
    for node in (another, of_the_whole_store):
        _dies_and_comes_back(stage, node, caplog)


def _dies_and_comes_back(stage: Stage, node: Node, caplog: pytest.LogCaptureFixture) -> None:
    here, others = stage.of(node)
    told = stage.told[0]
    stage.lasts(stage.keys.partitions, 10)
    open_ids = stage.begin(here, 20)
    caplog.clear()
    node.kill()
    stage.lasts(others, 20)
    assert not stage.ended(open_ids)
    until(lambda: told.away, what="it is told")
    assert told.away == [tuple(one.number for one in here)]
    node.start()
    until(lambda: stage.ended(open_ids), what="its sagas end")
    until(lambda: told.away[-1] == (), what="it is told that all are back")
    assert told.outages == 0
    told.away.clear()
    names = ranges(one.number for one in here)
    said = [one.getMessage() for one in caplog.records if one.getMessage().startswith(f"partitions {names} of")]
    assert ["cannot" in text for text in said] == [True, False]


def test_what_waits_for_a_time_goes_on_elsewhere_while_the_node_of_the_whole_store_is_away(stage: Stage) -> None:
    """That node keeps what services publish. A worker that has met no time yet has had no other reason to read it."""
    node = stage.cluster.node_of(stage.keys.alive)
    _, others = stage.of(node)
    stage.lasts(others, each=1)
    node.kill()
    ids = stage.begin(others, 1, [STEP, {"id": "pause", "wait_ms": 200}])
    until(lambda: stage.ended(ids), what="the pauses end", timeout_s=30)


def test_a_node_that_is_full_is_told_from_the_others(stage: Stage) -> None:
    node = stage.cluster.nodes[0]
    here, _ = stage.of(node)
    room = Room("worker w")
    room.join(stage.keys)
    exchange.run(stage.broker.client, room.look())
    assert room.full == set()
    with node.connect() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
        try:
            exchange.run(stage.broker.client, room.look())
        finally:
            client.config_set("maxmemory", 0)
    assert room.full == {one.number for one in here}


def test_each_node_gives_its_own_memory_to_what_was_set_aside(stage: Stage) -> None:
    node = stage.cluster.nodes[0]
    here, _ = stage.of(node)
    stream = here[0].quarantine
    store, share = Store(stage.broker.client), 3 << 20
    for _ in range(20):
        stage.broker.client.xadd(stream, {"body": "x" * (100 << 10)})
    assert store.trim(stage.keys, here, share * 8 * len(here)) == {}
    assert list(store.trim(stage.keys, here, share * 8 * len(here) // 2)) == [stream]


@pytest.mark.soak  # it waits until a node that hangs is held to be away, and measures for some time
@pytest.mark.parametrize("mortal", KINDS, indirect=True)
@pytest.mark.parametrize("stage", [2], indirect=True)
@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_others_go_on_at_half_of_their_rate_at_least(stage: Stage, how: str) -> None:
    stage.lasts(stage.keys.partitions, 10)
    for node in stage.cluster.nodes:
        here, others = stage.of(node)
        usual_s = min(stage.lasts(others) for _ in range(3))
        open_ids = stage.begin(here, 20)
        node.kill() if how == "dies" else node.pause()
        stage.lasts(others, 10)  # whoever asks a node that hangs waits for it once
        took_s = min(stage.lasts(others) for _ in range(3))
        assert took_s < (2 * usual_s + 0.5) * slowness(), (took_s, usual_s)
        assert not stage.ended(open_ids)
        node.start() if how == "dies" else node.resume()
        until(partial(stage.ended, open_ids), what="its sagas end")
        stage.cluster.wait_ok()
    assert [told.outages for told in stage.told] == [0, 0]
    assert stage.did_each_once()
