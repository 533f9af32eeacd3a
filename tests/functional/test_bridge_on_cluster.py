"""The bridge as a process on a cluster of three nodes: the samples of the protocol, and lines that go on while a node
is away."""

import json
from pathlib import Path
from typing import Any

import pytest

from sagastream.core.messages import Code
from support.clusters import Cluster
from support.processes import SAMPLES, Commands, Talk
from support.stores import divided, in_each
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

SAMPLE_RUNS = Path(__file__).parent / "samples"
WORK = """
from sagastream import Service

service = Service("work")


@service.command("Do", compensation=None)
def do(params, context):
    return params
"""
STEPS = [{"transaction": "Do", "service": "work", "params": 1}]


def test_the_samples_come_out_byte_for_byte(cluster: Cluster, commands: Commands) -> None:
    env = {"REDIS_URL": cluster.url, "SAGASTREAM_PARTITIONS": "6"}
    commands.quiet("worker", env=env)
    for where in SAMPLES:
        commands.quiet("service", where, env=env)
    for name, saga_id, status in (("completes", "saga42", "COMPLETED"), ("compensates", "saga43", "ABORTED")):
        given = (SAMPLE_RUNS / f"{name}.in.jsonl").read_text()
        done = commands.run("bridge", "--drain-timeout", "60", given=given, **env)
        expected = (SAMPLE_RUNS / f"{name}.out.jsonl").read_text()
        assert (done.stdout, done.returncode, done.stderr) == (expected, 0, "")
        assert json.loads(commands.run("show", "--json", saga_id, **env).stdout)["status"] == status


def test_lines_of_the_other_nodes_go_on_while_one_is_away_and_its_own_are_done_when_it_is_back(
    tmp_path: Path, commands: Commands
) -> None:
    cluster = Cluster("valkey", tmp_path)
    try:
        _talk_while_a_node_is_away(cluster, commands)
    finally:
        cluster.stop()


def _talk_while_a_node_is_away(cluster: Cluster, commands: Commands) -> None:
    keys = divided(cluster.broker(), 6)
    node = next(one for one in cluster.nodes if one is not cluster.node_of(keys.alive) and one.url != cluster.url)
    env = {"REDIS_URL": cluster.url}
    (commands.folder / "work.py").write_text(WORK)
    commands.quiet("worker", env=env)
    commands.quiet("service", "work:service", env=env)
    talk = Talk(commands.start("bridge", "--outcomes", "--drain-timeout", "60", env=env))

    def begin(saga_id: str, **more: Any) -> None:
        talk.say("me", {"type": "saga_begin", "saga_id": saga_id, "steps": STEPS} | more)

    def ended(count: int) -> set[str]:
        told = [talk.hear()[2] for _ in range(count)]
        assert {body["type"] for body in told} == {"saga_completed"}
        return {body["saga_id"] for body in told}

    for saga_id in (first := in_each(keys, "first")):
        begin(saga_id)
    assert ended(6) == {*first}
    node.kill()
    ids = in_each(keys, "s")
    away = {saga_id for saga_id in ids if cluster.node_of(keys.saga(saga_id)) is node}
    assert len(away) == 2
    for saga_id in ids:
        begin(saga_id)
    assert ended(4) == {*ids} - away
    talk.say("me", {"type": "saga_status", "msg_id": 7, "saga_id": min(away)})
    told = talk.hear()[2]
    assert (told["type"], told["in_reply_to"], told["code"]) == ("error", 7, Code.UNAVAILABLE)
    assert "is away" in told["text"]
    for saga_id in (more := in_each(keys, "more")):
        begin(saga_id)
    assert ended(4) == {saga_id for saga_id in more if keys.of(saga_id) not in {keys.of(one) for one in away}}
    node.start()
    assert ended(4) == away | {saga_id for saga_id in more if keys.of(saga_id) in {keys.of(one) for one in away}}
    process = talk.process
    assert process.stdin is not None
    node.kill()
    begin(in_each(keys, "last")[keys.of(min(away)).number])
    process.stdin.close()
    until(lambda: not node.is_live, what="it is dead")
    assert process.poll() is None  # it waits until the broker has its last line
    node.start()
    assert len(ended(1)) == 1
    assert process.wait(60) == 1  # an error was answered
