"""A service in JavaScript on a cluster: each partition is served from its node, and waits for no other one."""

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from sagastream.client.blocking import SagaClient
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.roles import Role
from support.clusters import Cluster, Node, free_ports, slot_of
from support.processes import Commands
from support.scenes import do
from support.servers import KINDS
from support.stores import divided, in_each
from support.users import Users
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

kinds = pytest.mark.parametrize("kind", KINDS)

PARTITIONS: Final = 6

#: A service on the runtime of the sample. It counts what it does, in the slot that its params name.
SERVICE = """
import { connect } from './sagastream/broker.mjs'
import { Service } from './sagastream/service.mjs'

const service = new Service('work', { leaseMs: 60_000 })
const redis = connect()

service.command('Do', { compensation: 'Undo' }, async (params, { key }) => {
  await redis.incr(`{${params.tag}}done ${key}`)
  if (params.wait) while (!(await redis.exists('go on'))) await new Promise((next) => setTimeout(next, 5))
})

service.compensation('Undo', ({ tag }, { transactionKey }) => redis.incr(`{${tag}}undone ${transactionKey}`))

await service.run()
redis.destroy()
"""


class Work:
    """The service `work` on a cluster, whose commands are sent by hand. `said`: what it has told."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        (folder / "work.mjs").write_text(SERVICE)
        self._cluster, self._folder = cluster, folder
        broker = cluster.broker()
        self.keys: StoreKeys = divided(broker, PARTITIONS)
        self.client: redis.Redis = broker.client
        self._ids = (f"s{number}" for number in count())
        self._sent: dict[int, set[str]] = {partition.number: set() for partition in self.keys.partitions}
        self.running: list[subprocess.Popen[bytes]] = []
        self._log = folder / "said.txt"
        self._log.write_bytes(b"")

    def start(self, url: str | None = None) -> None:
        """One process, once it is at work in all partitions."""
        there = {partition.number: len(self.consumers(partition)) for partition in self.keys.partitions}
        with self._log.open("ab") as log:
            env = os.environ | {"REDIS_URL": url or self._cluster.url}
            self.running.append(subprocess.Popen(["node", "work.mjs"], cwd=self._folder, env=env, stderr=log))
        for one in self.keys.partitions:
            until(lambda one=one: len(self.consumers(one)) > there[one.number], what="it joins")  # type: ignore[misc]

    @property
    def said(self) -> list[str]:
        return [line.partition(": ")[2] for line in self._log.read_text().splitlines()]

    def told(self, what: str) -> list[str]:
        return [line for line in self.said if what in line]

    def consumers(self, partition: Partition) -> list[str]:
        try:
            found: Any = self.client.xinfo_consumers(partition.commands("work"), "work")
        except redis.ResponseError:
            return []
        return [consumer["name"].decode() for consumer in found]

    def reaches(self, partition: Partition) -> bool:
        """Whether the node of a partition answers the test itself."""
        with contextlib.suppress(redis.ConnectionError):
            return self.client.xlen(partition.commands("work")) >= 0
        return False

    def send(self, partition: Partition, *, undo: bool = False, saga_id: str | None = None, **params: Any) -> str:
        saga_id = saga_id or next(self._ids)
        given = {"tag": self.keys.tags[partition.number]} | params
        body: dict[str, Any] = {"type": "Undo" if undo else "Do", "saga_id": saga_id, "step": 1}
        body |= {"compensating": True} if undo else {"params": given}
        entry: dict[Any, Any] = {"body": json.dumps(body), "begun_ms": 1} | (
            {"params": json.dumps(given)} if undo else {}
        )
        self._sent[partition.number].add(f"{body['type']}_ok {saga_id}")
        self.client.xadd(partition.commands("work"), entry)
        return saga_id

    def answers(self, partition: Partition) -> list[str]:
        entries: Any = self.client.xrange(partition.replies("work"))
        bodies = [json.loads(fields[b"body"]) for _, fields in entries]
        return [f"{body['type']} {body['saga_id']}" for body in bodies]

    def all_answered(self, *partitions: Partition) -> None:
        """Wait until all that was sent is answered in these."""
        for one in partitions or self.keys.partitions:
            until(
                lambda one=one: (
                    set(self.answers(one)) == self._sent[one.number] and not self.client.xlen(one.commands("work"))
                ),  # type: ignore[misc]
                what=f"all is answered in partition {one.number}",
            )

    def answers_more(self, partitions: list[Partition]) -> bool:
        """Have some more be answered in each of these."""
        for one in partitions:
            for _ in range(5):
                self.send(one)
        self.all_answered(*partitions)
        return True

    def send_until(self, stop: threading.Event, partition: Partition) -> list[str]:
        sent = []
        while not stop.wait(0.01):
            sent.append(self.send(partition))
        return sent

    def done(self, partition: Partition, saga_id: str, what: str = "done") -> int:
        return int(self.client.get(f"{{{self.keys.tags[partition.number]}}}{what} {saga_id}/1/transaction") or 0)

    def ends(self) -> None:
        """End its processes as their users would, while handlers may still run."""
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        self.client.set("go on", 1)
        for process in self.running:
            assert process.wait(60) == 0, self.said
        for one in self.keys.partitions:
            assert {*self.consumers(one)} <= {"victim"}

    def kill(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()


def test_it_computes_slots_as_the_servers_do(node_sample: Path) -> None:
    keys = [
        "saga:store",
        "saga:{0}:commands:till",
        "{3um}",
        "a{}b",
        "{}",
        "{a}{b}",
        "a}b{c}",
        "{{a}}",
        "{a",
        "ü{é–}",
        "",
    ]
    program = f"console.log(JSON.stringify({json.dumps(keys)}.map(slotOf)))"
    script = f"import {{ slotOf }} from './sagastream/cluster.mjs'\n{program}"
    ran = subprocess.run(
        ["node", "--input-type=module", "--eval", script], cwd=node_sample, capture_output=True, timeout=60, check=True
    )
    assert json.loads(ran.stdout) == [slot_of(key) for key in keys]


@pytest.fixture
def work(cluster: Cluster, node_sample: Path) -> Iterator[Work]:
    made = Work(cluster, node_sample)
    yield made
    made.kill()


def waiting_at(node: Node) -> int:
    """How many connections wait there for commands."""
    with node.connect() as client:
        return sum("b" in one["flags"] for one in client.client_list())


def test_it_serves_every_partition_on_its_node(cluster: Cluster, work: Work) -> None:
    partitions = work.keys.partitions
    nodes = [cluster.node_of(one.commands("work")) for one in partitions]
    assert [nodes.count(node) for node in cluster.nodes] == [2, 2, 2]
    held = {}
    for one in partitions:  # a process that died has held a command for longer than the lease
        held[one.number] = work.send(one)
        stream = one.commands("work")
        work.client.xgroup_create(stream, "work", id="0")
        found: Any = work.client.xreadgroup("work", "victim", {stream: ">"})
        work.client.xclaim(stream, "work", "victim", 0, [found[0][1][0][0]], idle=120_000)
    users = Users(cluster, partitions=PARTITIONS)
    url = users.url(Role.SERVICE, "work")
    for node in cluster.nodes:
        node.ask("ACL", "SETUSER", "work", "(~{*}done* ~{*}undone* ~go* +incr +exists)")
    work.start(url)
    work.all_answered()
    done = {one.number: work.send(one) for one in partitions}
    work.all_answered()
    for node in cluster.nodes:
        node.ask("SCRIPT", "FLUSH")
    for one in partitions:
        work.send(one, saga_id=done[one.number])  # it comes again
        work.send(one, undo=True, saga_id=done[one.number])
        work.client.xadd(one.commands("work"), {"body": "{"})
    work.all_answered()
    for one in partitions:
        assert work.done(one, held[one.number]) == work.done(one, done[one.number]) == 1
        assert work.done(one, done[one.number], "undone") == 1
        assert sorted(work.answers(one)) == sorted(
            [f"Do_ok {held[one.number]}", *[f"Do_ok {done[one.number]}"] * 2, f"Undo_ok {done[one.number]}"]
        )
        assert work.client.xlen(one.quarantine_of("work")) == 1
    assert work.client.hgetall(work.keys.published("work")) == {b"Do": b"Undo"}
    assert work.client.smembers(work.keys.services) == {b"work"}
    for node in cluster.nodes:  # one connection waits for each partition
        until(lambda node=node: waiting_at(node) == 2, what="it waits for commands")  # type: ignore[misc]
    last = [(one, work.send(one, wait=True)) for one in partitions]
    until(lambda: all(work.done(one, saga_id) for one, saga_id in last), what="they run")
    work.ends()
    work.all_answered()
    assert users.refused() == []
    assert len(work.said) == 1 + PARTITIONS, work.said
    assert len(work.told("quarantined the entry")) == PARTITIONS


def test_sagas_complete_and_are_undone(cluster: Cluster, node_sample: Path, commands: Commands) -> None:
    keys = divided(cluster.broker(), PARTITIONS)
    dead, *_ = free_ports(1)
    env = {"REDIS_URL": f"redis://127.0.0.1:{dead},127.0.0.1:{cluster.nodes[1].port}"}
    commands.quiet("worker", env=env)
    program = ["node", "notification.mjs"]
    service = subprocess.Popen(program, cwd=node_sample, env=os.environ | env, stderr=subprocess.PIPE, text=True)
    try:
        send = do({"to": "ann@example.org", "text": "Ordered"}, "SendNotification", "notification")
        misdirected = do({"to": "ann", "text": ""}, "SendNotification", "notification")
        good, bad = in_each(keys, "good"), in_each(keys, "bad")
        with SagaClient(cluster.url) as sagas:
            for saga_id in good:
                sagas.begin(saga_id, [send, send])
            for saga_id in bad:
                sagas.begin(saga_id, [send, misdirected])
            assert {str(sagas.wait(saga_id, 60).status) for saga_id in good} == {"COMPLETED"}
            assert {sagas.wait(saga_id, 60).reason for saga_id in bad} == {"Step 2 failed: no_such_address"}
        outbox: Any = cluster.broker().client.hgetall("stubs:{notification}:outbox")
        assert [outbox[f"{saga_id}/1/transaction".encode()] for saga_id in bad] == [b"withdrawn"] * PARTITIONS
        assert len(outbox) == 3 * PARTITIONS
        service.terminate()
        said = service.communicate(timeout=60)[1]
        assert (service.returncode, said.count("\n")) == (0, 1), said
    finally:
        service.kill()


@contextlib.contextmanager
def halfway(cluster: Cluster, partition: Partition, to: Node) -> Iterator[None]:
    """Within this, the slot of a partition is on the move, and its replies are there before its commands."""
    stream, replies = partition.commands("work"), partition.replies("work")
    source, slot = cluster.node_of(stream), slot_of(stream)
    to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.node_id)
    source.ask("MIGRATE", "127.0.0.1", to.port, replies, 0, 5000)
    yield
    cluster.move_slots([stream], to)


def goes_on_elsewhere(cluster: Cluster, work: Work, away: Node, how: str) -> None:
    """While a node is away, the partitions of the others are served, and no more than that is told."""
    others = [one for one in work.keys.partitions if cluster.node_of(one.commands("work")) is not away]
    held = [(one, work.send(one, wait=True)) for one in work.keys.partitions if one not in others]
    until(lambda: all(work.done(*one) for one in held), what="they run")
    gone = f"the node 127.0.0.1:{away.port} of the cluster is away"
    (away.kill if how == "dies" else away.pause)()
    until(lambda: work.answers_more(others) and work.told(gone), what="it says so")
    assert work.answers_more(others)
    (away.start if how == "dies" else away.resume)()
    cluster.wait_ok()
    work.client.set("go on", 1)
    for one in work.keys.partitions:
        work.send(one)
    work.all_answered()
    assert [line.partition(" (")[0] for line in work.said] == ["started", gone, gone[:-4] + "back"], work.said


def waits_where_a_slot_is_on_the_move(cluster: Cluster, work: Work, moving: Partition, to: Node) -> None:
    others = [one for one in work.keys.partitions if one is not moving]
    with halfway(cluster, moving, to):  # a call of a script finds its keys on two nodes
        work.send(moving)
        told = "a part of the cluster is away (TRYAGAIN "
        until(lambda: work.answers_more(others) and work.told(told), what="it waits there, and goes on elsewhere")
    work.all_answered()
    until(lambda: work.told("a part of the cluster is back"), what="it says so")


def follows_its_slot(cluster: Cluster, work: Work, moving: Partition, *nodes: Node) -> None:
    """Each command that is sent while the slot moves is done once, and answered once."""
    before = len(work.said)
    with ThreadPoolExecutor() as pool:
        stop = threading.Event()
        sending = pool.submit(work.send_until, stop, moving)
        try:
            for node in nodes:
                cluster.move_slots([moving.commands("work")], node)
                there = len(work.answers(moving))
                until(lambda there=there: len(work.answers(moving)) > there + 5, what="it goes on there")  # type: ignore[misc]
        finally:
            stop.set()
        sent = sending.result()
    work.all_answered()
    assert [work.done(moving, saga_id) for saga_id in sent] == [1] * len(sent)
    assert len(work.answers(moving)) == len({*work.answers(moving)})
    # If a call of a script came just then, it tells of that, and of nothing else.
    assert all(line.startswith("a part of the cluster is ") for line in work.said[before:]), work.said


@kinds
@pytest.mark.parametrize("how", ["dies", pytest.param("hangs", marks=pytest.mark.soak)])
def test_a_node_that_is_away_or_slots_that_move_hold_up_no_other_partition(
    kind: str, how: str, tmp_path: Path, node_sample: Path
) -> None:
    cluster = Cluster(kind, tmp_path)
    work = Work(cluster, node_sample)
    try:
        away = cluster.node_of(work.keys.services)  # what the whole store shares is away, too
        cluster.nodes.sort(key=lambda node: node is away)  # the url names another one
        work.start()
        goes_on_elsewhere(cluster, work, away, how)
        moving, other = work.keys.partitions[0], cluster.nodes[0]
        waits_where_a_slot_is_on_the_move(cluster, work, moving, other)
        follows_its_slot(cluster, work, moving, away, other)
        work.ends()
    finally:
        work.kill()
        cluster.stop()


@kinds
def test_it_goes_on_at_the_replica_that_takes_over(kind: str, tmp_path: Path, node_sample: Path) -> None:
    """Its client for its own data, too, which waits there when the node dies."""
    cluster = Cluster(kind, tmp_path, 3, 1)
    work = Work(cluster, node_sample)
    try:
        first = work.keys.partitions[0]
        master = cluster.node_of(first.commands("work"))
        cluster.nodes.sort(key=lambda node: node is master)  # the url names another one
        work.start()
        held = work.send(first, wait=True)
        until(lambda: work.done(first, held), what="it runs")
        work.all_answered(*work.keys.partitions[1:])
        cluster.wait_for_replicas(master)
        master.kill()
        until(lambda: work.reaches(first), what="a replica takes over")
        work.client.set("go on", 1)
        for one in work.keys.partitions:
            work.send(one)
        work.all_answered()
        assert work.done(first, held) == 1
        work.ends()
        gone = f"the node 127.0.0.1:{master.port} of the cluster"
        assert [line.partition(" (")[0].partition(";")[0] for line in work.said] == [
            "started",
            f"{gone} is away",
            f"{gone} has no slots any more",
        ], work.said
    finally:
        work.kill()
        cluster.stop()
