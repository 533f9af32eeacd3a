"""What people see of a store on a cluster, and what they still see while one of its nodes is dead."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from starlette.testclient import TestClient

from sagastream.broker.connection import Broker
from sagastream.broker.failures import NodeAway
from sagastream.client.blocking import SagaClient
from sagastream.core.filtering import Filter
from sagastream.orchestrator.worker import Orchestrator
from sagastream.store import layout
from sagastream.store.keys import StoreKeys
from sagastream_bridge.dashboard.app import Dashboard
from sagastream_bridge.dashboard.finding import Search
from sagastream_bridge.dashboard.reading import StoreReader
from sagastream_bridge.dashboard.rules import Names
from sagastream_bridge.dashboard.standing import notices
from sagastream_bridge.inspection import figures, lookup
from sagastream_bridge.inspection.doctor import Doctor
from sagastream_bridge.inspection.findings import OK, PROBLEM, WARNING, Finding
from support.clusters import Cluster, Node
from support.processes import Commands
from support.scenes import do
from support.servers import KINDS
from support.stores import divided, in_each
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

#: Nodes by their place: they have the partitions 1-2, 3-4, and 0 and 5 with the keys of the whole store.
FIRST, SECOND, THIRD = 0, 1, 2
IDS: Final = tuple(f"s{number}" for number in range(24))


class Stage:
    """A cluster of three nodes; a store of six partitions, with sagas in all of them that wait for a service."""

    def __init__(self, kind: str, folder: Path, commands: Commands) -> None:
        self.commands = commands
        self.cluster = Cluster(kind, folder)
        worker = self.run("worker", url=self.cluster.url)
        self.broker = self.cluster.broker()
        client = SagaClient(self.broker)
        for saga_id in IDS:
            client.begin(saga_id, [do(1, "Fly", "nobody", compensation=None)])
        self.keys: StoreKeys = layout.look(self.broker)
        until(lambda: self.commands_out() == len(IDS), what="all commands are out")
        worker.terminate()
        worker.wait()

    def run(self, *arguments: str, url: str) -> "subprocess.Popen[bytes]":
        return self.commands.quiet(*arguments, env={"REDIS_URL": url})

    def commands_out(self) -> int:
        return sum(self.broker.client.xlen(one.commands("nobody")) for one in self.keys.partitions)

    def told(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """What a command says, which is told of a node that answers."""
        return self.commands.run(*arguments, REDIS_URL=self.cluster.url)

    def ids(self, *partitions: int) -> set[str]:
        """The sagas in these partitions."""
        return {saga_id for saga_id in IDS if self.keys.of(saga_id).number in partitions}

    def restart(self, node: Node) -> None:
        node.start()
        self.cluster.wait_ok()


@pytest.fixture
def stage(kind: str, tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", "6")
    made = Stage(kind, tmp_path, commands)
    yield made
    made.cluster.stop()


def examined(stage: Stage) -> list[Finding]:
    """What the doctor finds, asked by a process that has just begun."""
    return list(Doctor(Broker(stage.cluster.url)).examine())


def said(findings: list[Finding], about: str) -> str:
    return "\n".join(f"{one.level} {one.line}" for one in findings if one.about == about)


def a_slot_that_is_on_its_way_is_told(stage: Stage) -> None:
    with stage.cluster.half_moved(stage.keys.partitions[1].timers, stage.cluster.nodes[SECOND]):
        found = examined(stage)
        assert "on their way to another node: partition 1; what" in said(found, "cluster")
        assert "a part of its keys there; if nothing moves it any more" in said(found, "partitions")
        assert said(found, "sagas").startswith(f"{OK} {len(stage.ids(0, 2, 3, 4, 5))} live")
        assert "no process of service nobody is listening" in said(found, "service nobody")


def the_line_for_redis_cli_begins_at_the_owner(stage: Stage) -> None:
    """The first node that the url names is dead, and the owner is not named."""
    owner, dead, third = (f"redis://127.0.0.1:{node.port}" for node in stage.cluster.nodes)
    url = f"{dead},{third.removeprefix('redis://')}"
    printed = stage.commands.run("show", "--redis", min(stage.ids(1)), REDIS_URL=url).stdout
    assert set(re.findall(r"^redis-cli .* -u (\S+)", printed, re.MULTILINE)) == {owner}


def test_a_cluster_without_a_store_wants_one_with_partitions(cluster: Cluster) -> None:
    broker = cluster.broker()
    said = [one.line for one in Doctor(broker).examine() if one.about in ("store", "partitions")]
    text = "there is none yet: the first process makes it, with 1 partition, so one node does all the work"
    assert said == [f"{text}; sagastream init --partitions N, before any other process starts"]
    layout.check(broker)
    assert "store" not in [one.about for one in Doctor(broker).examine()]


@contextmanager
def denies(node: Node, command: str) -> Iterator[None]:
    """Within this, a node lets nobody call a command."""
    node.ask("ACL", "SETUSER", "default", f"-{command}")
    try:
        yield
    finally:
        node.ask("ACL", "SETUSER", "default", "+@all")


def test_what_one_node_denies_is_left_out_and_named(cluster: Cluster, commands: Commands) -> None:
    keys, broker = divided(cluster.broker(), 3), cluster.broker()
    client, worker, ids = SagaClient(broker), Orchestrator(broker, threading.Event()), in_each(keys)
    for saga_id in ids:
        client.begin(saga_id, [do(1, "Fly", "nobody", compensation=None)])
    until(lambda: worker.turn(1) >= 0 and all(map(client.get, ids)), what="all have begun")
    node = cluster.node_of(keys.partitions[1].timers)
    begins = f"the node 127.0.0.1:{node.port} of the cluster denies this to the user in REDIS_URL: "
    ends = "; sagastream acl ROLE --cluster prints it for all nodes: partition 1 of 3 is left out"
    for command in ("exists", "zcard"):
        with denies(node, command):
            (text,) = lookup.listing(broker, Filter(), 10, None).reach.told()
            assert len(StoreReader(broker).find(Search()).sagas) == 2
            away = figures.of_broker(broker, keys).partitions_away
        assert away == (command == "exists")  # other figures that are refused count as none
        assert text.startswith(begins)
        assert text.endswith(f"'{command}' command{ends}")
    with denies(node, "xlen"):
        done = commands.run("list", "--json", REDIS_URL=cluster.url)
        aside = commands.run("quarantine", "list", REDIS_URL=cluster.url)
    *sagas, page = map(json.loads, done.stdout.splitlines())
    assert ({saga["saga_id"] for saga in sagas}, page["partitions_away"]) == ({ids[0], ids[2]}, [1])
    for told in (done, aside):
        assert (told.returncode, told.stderr.startswith(begins), ends in told.stderr) == (0, True, True)
    with denies(cluster.node_of(keys.alive), "zrange"):  # so who is alive cannot be read
        found = lookup.listing(broker, Filter(), 10, None)
        assert {state.saga_id for state in found.page.sagas} == {ids[1], ids[2]}
        (note,) = lookup.saga(broker, ids[1]).notes
        assert note.startswith("why it waits cannot be told: the node ")


def a_dead_node_is_told_of_once(found: list[Finding], address: str) -> None:
    assert said(found, f"node {address}").startswith(f"{PROBLEM} it does not answer (")
    assert said(found, "cluster").startswith(f"{WARNING} nodes: 3 masters, of which 2 answer, 0 replicas; each slot")
    assert f"{WARNING} no node answers for 3-4 of 6: what follows leaves them out" in said(found, "partitions")
    assert [one.line for one in found if "Connection refused" in one.line and one.about != f"node {address}"] == []


#: The pages that show something of all partitions.
LISTS: Final = ("/sagas", "/parked", "/services", "/bulks", "/quarantine", "/definitions")


def browser(stage: Stage) -> TestClient:
    dashboard = Dashboard(Broker(stage.cluster.url), names=Names.of("127.0.0.1"))
    return TestClient(dashboard.app, base_url="http://127.0.0.1:8420")


def what_the_dashboard_reads_is_short(stage: Stage) -> None:
    now = StoreReader(Broker(stage.cluster.url))
    figures = now.standing().figures
    assert (figures.live.total, figures.partitions_away) == (len(IDS) - len(stage.ids(3, 4)), 2)
    assert any("partitions 3-4 of 6 are left out" in one.text for one in notices(now.standing()))
    assert now.saga(min(stage.ids(1))).causes
    with pytest.raises(NodeAway) as raised:
        now.saga(min(stage.ids(3, 4)))
    now.outage.found(raised.value)
    assert now.outage.known() is None


def each_page_says_what_is_left_out(stage: Stage) -> None:
    pages, left_out = browser(stage), "of the cluster is away (Error 111"
    for at in ("/", *LISTS):
        said = pages.get(at).text
        assert (said.count("partitions 3-4 of 6 are left out"), said.count(left_out)) == (1, 1), at
    count = len(IDS) - len(stage.ids(3, 4))
    assert f"{count} shown of at least {count}, newest first" in pages.get("/sagas").text
    assert "No saga is like that in the partitions that can be" in pages.get("/sagas?status=PARKED").text
    assert "No saga is parked in the partitions that can be reached" in pages.get("/parked").text
    assert f"{count} <small>or more</small>" in pages.get("/").text
    assert "left out" not in pages.get(f"/sagas/{min(stage.ids(1))}").text


def the_page_of_a_saga_names_the_node_that_it_waits_for(stage: Stage, where: str) -> None:
    saga_id = min(stage.ids(3))
    page = browser(stage).get(f"/sagas/{saga_id}")
    assert (page.status_code, "<h1>A node of the cluster is away</h1>" in page.text) == (503, True)
    assert f"the node {where} of the cluster is away" in page.text
    assert f"Saga {saga_id} is in partition 3 of 6. This page cannot be read without that node." in page.text
    assert ("PING" in page.text, "sagastream doctor" in page.text) == (False, True)


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_reached_is_told_and_so_is_what_cannot(stage: Stage) -> None:
    cluster, where = stage.cluster, [f"127.0.0.1:{node.port}" for node in stage.cluster.nodes]
    found = examined(stage)
    assert said(found, "cluster").startswith(f"{OK} nodes: 3 masters, 0 replicas; each slot has a node")
    assert f"{WARNING} nodes without a replica: {', '.join(where)}" in said(found, "cluster")
    spread = f"{where[0]} has 1-2; {where[1]} has 3-4; {where[2]} has 0, 5"
    assert said(found, "partitions") == f"{OK} of 6 partitions, {spread}"
    assert said(found, f"node {where[2]}").endswith("; partitions 0, 5 of 6; the keys of the whole store")
    assert said(found, "sagas").startswith(f"{OK} 24 live")

    printed = stage.told("show", "--redis", IDS[0]).stdout
    shown = subprocess.run(["bash", "-c", printed], capture_output=True, text=True, timeout=60, check=True).stdout
    assert ("PENDING" in shown, '"type":"Fly"' in shown, "MOVED" in shown) == (True, True, False)

    a_slot_that_is_on_its_way_is_told(stage)
    cluster.nodes[SECOND].kill()
    found, away = examined(stage), stage.ids(3, 4)
    a_dead_node_is_told_of_once(found, where[1])
    assert said(found, "sagas").startswith(f"{OK} {len(IDS) - len(away)} live")
    assert "no process of service nobody is listening" in said(found, "service nobody")
    done = stage.told("list", "--json")
    *rows, last = map(json.loads, done.stdout.splitlines())
    assert {row["saga_id"] for row in rows} == {*IDS} - away
    assert last["partitions_away"] == [3, 4]
    assert "partitions 3-4 of 6 are left out" in done.stderr
    assert stage.told("quarantine", "list").returncode == 0
    done = stage.told("show", min(away))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(
        f"Error: saga {min(away)} cannot be reached: the node {where[1]} of the cluster is away"
    )
    assert "no process of service nobody" in stage.told("show", min(stage.ids(1))).stdout
    the_line_for_redis_cli_begins_at_the_owner(stage)
    what_the_dashboard_reads_is_short(stage)
    each_page_says_what_is_left_out(stage)
    the_page_of_a_saga_names_the_node_that_it_waits_for(stage, where[1])
    stage.restart(cluster.nodes[SECOND])

    cluster.nodes[THIRD].kill()
    found = examined(stage)
    assert "who is at work and what is paused cannot be read" in said(found, "store")
    assert said(found, "sagas").startswith(f"{OK} {len(stage.ids(1, 2, 3, 4))} live")
    done = stage.told("list")
    assert f"{len(stage.ids(1, 2, 3, 4))} live" in done.stderr
    assert "what is known of the whole store cannot be read" in done.stderr
    assert "why it waits cannot be told" in stage.told("show", min(stage.ids(1))).stdout
    page = browser(stage).get("/sagas")
    assert (page.status_code, page.text.count("partitions 0, 5 of 6 are left out")) == (200, 1)
    assert page.text.count("of the cluster is away") == 1
    now = StoreReader(Broker(cluster.url))
    with pytest.raises(NodeAway):
        now.standing()
    assert "why it waits cannot be told" in now.saga(min(stage.ids(1))).notes[0]
