"""A store of three partitions, on real servers: every part of sagastream works in each of them. And stores with several
prefixes on one server."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import Exchange
from sagastream.broker.scripting import Script
from sagastream.client.answers import Accepted
from sagastream.client.blocking import SagaClient
from sagastream.core.filtering import Filter
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.errors import QuarantineError, RequestRefused, StoreMismatch
from sagastream.orchestrator.worker import Orchestrator
from sagastream.store import layout
from sagastream.store.keys import StoreKeys
from sagastream.store.quarantine import Quarantine
from sagastream_bridge.inspection.doctor import Doctor
from sagastream_bridge.inspection.findings import OK, REPAIRED
from sagastream_bridge.inspection.lookup import listing
from support.faults import Scale, world_of
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import divided, in_each
from support.waiting import until

pytestmark = pytest.mark.both_in_soak


class Divided(Scene):
    """A worker, a service and a client, in a store of three partitions."""

    def __init__(self, broker: Broker) -> None:
        self.keys = divided(broker)
        self.ids = in_each(self.keys)
        super().__init__(broker)

    def lengths(self, name: str) -> list[int]:
        """How much stands in a stream or zset of each partition."""
        found: list[int] = []
        for partition in self.keys.partitions:
            key = getattr(partition, name)
            kind: Any = self.redis.type(key)  # if nothing is there yet, a moment later it may be either
            lengths: dict[bytes, Callable[[str], Any]] = {b"zset": self.redis.zcard, b"stream": self.redis.xlen}
            found.append(0 if kind == b"none" else int(lengths[kind](key)))
        return found


@pytest.fixture
def scene(server: Server) -> Divided:
    return Divided(server.broker())


# --- how the store is laid out


def test_the_first_process_divides_the_store_and_nobody_after_it(
    server: Server, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"REDIS_URL": server.url}
    made = commands.run("init", "--partitions", "3", **env)
    assert (made.returncode, made.stdout) == (0, "made the store saga, with 3 partitions\n")
    assert commands.run("init", "--partitions", "3", **env).returncode == 0
    other = commands.run("init", "--partitions", "2", **env)
    assert other.returncode == 1
    assert "saga:store has 3 partitions, not 2" in other.stderr
    assert len(layout.check(server.broker()).partitions) == 3
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", "4")
    with pytest.raises(StoreMismatch, match="saga:store has 3 partitions, not 4"):
        layout.check(server.broker())
    for wrong in ("0", "257", "x", "-1"):
        assert commands.run("list", SAGASTREAM_PARTITIONS=wrong, **env).returncode == 2


def test_a_store_that_is_only_looked_at_is_not_made(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    for arguments in (["list"], ["show", "s1"], ["quarantine", "list"], ["doctor"]):
        commands.run(*arguments, **env)
    client = SagaClient(server.broker())
    assert client.get("s1") is None
    assert list(client.list()) == []
    assert server.broker().client.keys() == []


def test_an_emptied_store_is_made_again_as_it_was(scene: Divided) -> None:
    scene.worker.turn(block_ms=1)
    scene.redis.flushall()
    scene.worker._inbox.recover()
    scene.worker.turn(block_ms=1)
    assert layout.look(scene.broker).tags == scene.keys.tags


def test_a_store_whose_layout_was_deleted_is_not_used_until_its_number_is_set_again(
    scene: Divided, commands: Commands
) -> None:
    for saga_id in scene.ids:
        scene.begin(saga_id, do(1))
    scene.worker.turn(block_ms=1)
    scene.redis.delete("saga:store")
    env = {"REDIS_URL": scene.broker.url}
    for arguments in (["worker"], ["list"], ["doctor"]):
        refused = commands.run(*arguments, **env)
        assert refused.returncode != 0
        assert "saga:store is gone" in refused.stderr, arguments
        assert "sagastream init --partitions N" in refused.stderr
    for wrong in ("1", "2", "4"):
        refused = commands.run("init", "--partitions", wrong, **env)
        assert refused.returncode == 1
        assert "saga:store is gone, and " in refused.stderr
        assert f"did not have {wrong} partitions" in refused.stderr or f"which is not {wrong}" in refused.stderr
    assert not scene.redis.exists("saga:store")
    assert commands.run("init", "--partitions", "3", **env).returncode == 0
    assert layout.look(scene.broker).tags == scene.keys.tags


# --- workers, services, clients


def test_sagas_of_all_partitions_run_side_by_side(scene: Divided) -> None:
    answers = scene.client.begin_many(
        {"saga_id": saga_id, "steps": [do(1), do("fail" if number == 1 else 2)]}
        for number, saga_id in enumerate(scene.ids)
    )
    assert [answer.saga_id for answer in answers] == scene.ids
    assert scene.lengths("requests") == [1, 1, 1]
    ends = [scene.play(saga_id).status for saga_id in scene.ids]
    assert ends == [SagaStatus.COMPLETED, SagaStatus.ABORTED, SagaStatus.COMPLETED]
    assert scene.lengths("ended") == [1, 1, 1]
    assert scene.lengths("requests") == scene.lengths("timers") == [0, 0, 0]
    assert Counter(scene.effects.done).most_common(1)[0][1] == 1
    assert scene.effects.undone == [f"{scene.ids[1]}/1/transaction"]
    for one in scene.keys.partitions:
        assert scene.redis.xlen(one.replies("work")) == scene.redis.xlen(one.commands("work")) == 0


def test_a_process_takes_no_more_commands_than_it_has_slots(scene: Divided) -> None:
    for partition in scene.keys.partitions:
        for number in range(4):
            body = {"type": "Do", "saga_id": scene.ids[partition.number], "step": number + 1}
            scene.redis.xadd(partition.commands("work"), {"body": json.dumps(body)})
    taken = [scene.runner._inbox.read(1, count=1) for _ in range(12)]
    assert [len(deliveries) for deliveries in taken] == [1] * 12
    assert Counter(delivery.partition.number for [delivery] in taken) == {0: 4, 1: 4, 2: 4}


def test_where_no_call_may_touch_two_partitions_sagas_run_all_the_same(
    scene: Divided, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster."""
    apart = StoreKeys(scene.keys.prefix, scene.keys.tags, shared="0")
    touched: list[set[int]] = []
    call = Script.call

    def spied(script: Script, keys: Sequence[str], args: Sequence[Any] = ()) -> Exchange[Any]:
        touched.append({one.number for key in keys if (one := apart.partition_of(key)) is not None})
        return call(script, keys, args)

    together = StoreKeys.in_calls
    monkeypatch.setattr(StoreKeys, "in_calls", lambda _, partitions: together(apart, partitions))
    monkeypatch.setattr(Script, "call", spied)
    for saga_id in scene.ids:
        scene.client.begin(saga_id, [do(1), do("fail")])
    scene.turns_until(lambda: sum(scene.lengths("timers")) == 3)
    assert [scene.play(saga_id).status for saga_id in scene.ids] == [SagaStatus.ABORTED] * 3
    assert max(map(len, touched)) == 1


def test_what_is_damaged_in_one_partition_holds_up_no_other(scene: Divided, caplog: pytest.LogCaptureFixture) -> None:
    """The changes of all are written by one call, and so are the answers of a service."""
    first, second, last = scene.keys.partitions
    for saga_id in scene.ids:
        scene.client.begin(saga_id, [do(1), do(2)])
    scene.turns_until(lambda: sum(scene.redis.xlen(one.commands("work")) for one in scene.keys.partitions) == 3)
    kept: Any = scene.redis.dump(second.replies("work"))
    scene.redis.set(second.replies("work"), "in the way")
    until(lambda: scene.hold_more() == 3, what="it holds the commands of all partitions")
    for _ in range(2):
        scene.runner.turn(block_ms=1)
    assert [scene.redis.xlen(one.replies("work")) for one in (first, last)] == [1, 1]
    says = [one for one in caplog.messages if f"{second.replies('work')} is not a stream" in one]
    assert [line.partition(" cannot be sent")[0] for line in says] == ["answers of partition 1"]
    scene.redis.restore(second.replies("work"), 0, kept, replace=True)
    scene.play(scene.ids[1])
    assert "answers of partition 1 can be sent again" in caplog.messages
    assert [scene.play(saga_id).status for saga_id in scene.ids] == [SagaStatus.COMPLETED] * 3
    assert len(scene.effects.done) == 6


@pytest.mark.parametrize("name", ["timers", "ended", "begun", "indexed", "events", "requests", "interventions", "seen"])
def test_a_key_of_the_wrong_type_stops_only_its_partition(
    scene: Divided, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene.worker.turn(block_ms=1)
    second = scene.keys.partitions[1]
    key = getattr(second, name)
    kept: Any = scene.redis.dump(key)
    scene.redis.set(key, "in the way")
    scene.worker._due.at_once()
    scene.worker._inbox.leases.look(scene.worker._inbox.mine)
    scene.worker._upkeep._tidy_at = 0.0
    scene.worker.turn(block_ms=1)
    if name not in ("requests", "seen", "interventions"):
        scene.client.begin(scene.ids[1], [do(1)])
    for saga_id in (scene.ids[0], scene.ids[2]):
        scene.client.begin(saga_id, [do(1)])
        assert scene.play(saga_id).status is SagaStatus.COMPLETED
    if name in ("timers", "ended", "begun", "events"):
        start = f"partition 1 of the store cannot be reached: {key} is a string, not a "
        scene.turns_until(lambda: any(one.startswith(start) for one in caplog.messages))
        assert caplog.text.count("cannot be reached") == 1
        (left_out,) = listing(scene.broker, Filter(), 10, None).reach.told()
        assert left_out.startswith(f"{key} is a string, not a ")
        assert left_out.endswith("partition 1 of 3 is left out")
    scene.redis.delete(key)
    if kept is not None:
        scene.redis.restore(key, 0, kept, replace=True)
    if name not in ("requests", "seen", "interventions"):
        assert scene.play(scene.ids[1]).status is SagaStatus.COMPLETED


def test_a_worker_that_prefers_only_a_damaged_partition_goes_on_too(scene: Divided) -> None:
    scene.worker.turn(block_ms=1)
    second = scene.keys.partitions[1]
    scene.redis.set(second.timers, "in the way")
    scene.worker._due.at_once()
    assert scene.worker._due.look(scene.keys, [second], (), 0) == []
    assert not scene.worker._away.is_empty


def test_a_process_that_has_not_joined_yet_shows_up_without_an_error(scene: Divided) -> None:
    scene.runner._inbox.show_up()
    assert scene.redis.exists(*(one.commands("work") for one in scene.keys.partitions)) == 0


def test_answers_come_in_the_order_of_the_sagas(scene: Divided) -> None:
    ids = [f"many-{number}" for number in range(300)]
    answers = scene.client.begin_many({"saga_id": saga_id, "steps": [do(1)]} for saga_id in ids)
    assert [answer.saga_id for answer in answers if isinstance(answer, Accepted)] == ids
    assert sum(scene.lengths("requests")) == 300
    assert min(scene.lengths("requests")) > 60


def test_whoever_waits_hears_of_the_ends_in_every_partition(scene: Divided, commands: Commands, server: Server) -> None:
    commands.quiet("worker", env={"REDIS_URL": server.url})
    for saga_id in scene.ids:
        scene.client.begin(saga_id, [do(1)])

    def answered() -> bool:
        scene.runner.turn(block_ms=1)
        return sum(scene.lengths("ended")) == 3

    until(answered, what="all have ended")
    ends = list(scene.client.as_completed(scene.ids, 60))
    assert sorted(end.saga_id for end in ends) == sorted(scene.ids)


def test_what_times_out_is_seen_to_in_every_partition(scene: Divided) -> None:
    for saga_id in scene.ids:
        scene.client.begin(saga_id, [do(1, service="nobody", timeout_ms=50, attempts=1, compensation=None)])
    scene.turns_until(lambda: sum(scene.lengths("ended")) == 3)
    assert [state.status for state in map(scene.client.get, scene.ids) if state] == [SagaStatus.ABORTED] * 3


def test_ended_sagas_are_forgotten_in_every_partition(server: Server) -> None:
    scene = Divided(server.broker())
    scene.worker = Orchestrator(scene.broker, scene.stop, retention_ms=1)
    for saga_id in scene.ids:
        scene.client.begin(saga_id, [do(1)])

    def is_forgotten() -> bool:
        scene.worker._upkeep._tidy_at = 0.0
        scene.worker._due.at_once()
        scene.worker.turn(block_ms=1)
        scene.runner.turn(block_ms=1)
        return len(scene.effects.done) == 3 and scene.lengths("ended") == [0, 0, 0]

    until(is_forgotten, what="they are forgotten")


def test_operators_reach_the_sagas_of_every_partition(scene: Divided, commands: Commands, server: Server) -> None:
    commands.quiet("worker", env={"REDIS_URL": server.url})
    for saga_id in scene.ids:
        scene.client.begin(saga_id, [do(1, service="nobody")])
        assert scene.client.cancel(saga_id, "why", 60).cancelling == "Cancelled: why"
    with pytest.raises(RequestRefused, match="there is no saga nobody"):
        scene.client.cancel("nobody", "why", 60)


def test_a_list_merges_the_partitions(scene: Divided, commands: Commands, server: Server) -> None:
    ids = [f"l{number}" for number in range(450)]
    for saga_id in ids:
        scene.client.begin(saga_id, [do(1)])
        if saga_id in ("l99", "l300"):
            scene.turns_until(lambda: sum(scene.lengths("requests")) == 0)

    def all_ended() -> bool:
        scene.worker.turn(block_ms=1)
        scene.runner.turn(block_ms=1)
        return sum(scene.lengths("ended")) == 450

    until(all_ended, what="all have ended")
    found = [state for state in scene.client.list("COMPLETED") if isinstance(state, SagaState)]
    assert sorted(state.saga_id for state in found) == sorted(ids)
    times = [state.begun_ms for state in found]
    assert times == sorted(times, reverse=True)
    listed = commands.run("list", "--limit", "2", "--json", REDIS_URL=server.url)
    assert "0 live and 450 ended in the store" in listed.stderr
    shown = [json.loads(line)["saga_id"] for line in listed.stdout.splitlines()[:-1]]
    assert shown == [state.saga_id for state in found[:2]]


def test_what_is_in_the_wrong_partition_is_set_aside_there(scene: Divided) -> None:
    first, second = scene.keys.partitions[:2]
    body = json.dumps({"type": "saga_begin", "saga_id": scene.ids[1], "steps": [do(1)]})
    scene.redis.xadd(first.requests, {"body": body, "request_id": "me"})
    scene.redis.zadd(first.timers, {scene.ids[1]: 1})
    scene.redis.xadd(second.replies("work"), {"body": f'{{"type":"Do_ok","saga_id":"{scene.ids[0]}","step":1}}'})
    scene.worker._due.at_once()
    scene.turns_until(lambda: scene.lengths("quarantine") == [1, 1, 0])
    scene.turns_until(lambda: scene.lengths("timers") == [0, 0, 0])
    reasons = sorted(message.reason for message in Quarantine(scene.redis, scene.keys).newest_first())
    assert reasons == sorted(
        [f"saga {scene.ids[0]} is in partition 0, not in 1", f"saga {scene.ids[1]} is in partition 1, not in 0"]
    )


def test_the_quarantine_of_every_partition_is_listed_and_put_back(
    scene: Divided, commands: Commands, server: Server
) -> None:
    for partition in scene.keys.partitions:
        scene.redis.xadd(partition.commands("work"), {"body": f"{{{partition.number}"})
        scene.redis.xadd(partition.replies("work"), {"body": f"[{partition.number}"})
    scene.turns_until(lambda: scene.lengths("quarantine") == [1, 1, 1])

    def answered() -> bool:
        scene.runner.turn(block_ms=1)
        return all(scene.redis.xlen(one.quarantine_of("work")) == 1 for one in scene.keys.partitions)

    until(answered, what="the service has set its own aside")
    env = {"REDIS_URL": server.url}
    listed = commands.run("quarantine", "list", **env)
    assert listed.stderr == "6 shown of 6\n"
    ids = [line.split()[0] for line in listed.stdout.splitlines()]
    assert sorted(re.sub(r"\d+-\d+", "N", one) for one in ids) == ["N", "N@1", "N@2", "work/N", "work/N@1", "work/N@2"]
    for one in ids:
        shown = json.loads(commands.run("quarantine", "show", one, **env).stdout)
        number = int(one.partition("@")[2] or 0)
        assert shown["id"] == one
        assert shown["body"].endswith(str(number))
    quarantine = Quarantine(scene.redis, scene.keys)
    for one in ids:
        quarantine.replay(one)
    assert len(quarantine) == 0
    assert [scene.redis.xlen(p.commands("work")) for p in scene.keys.partitions] == [1, 1, 1]
    assert [scene.redis.xlen(p.replies("work")) for p in scene.keys.partitions] == [1, 1, 1]
    for wrong in ("1-1", "1-1@3", "1-1@", "work/1-1@2", "a/b/1-1", "@1"):
        with pytest.raises(QuarantineError, match="the quarantine holds no"):
            quarantine.get(wrong)


def test_why_a_saga_waits_is_found_out_in_every_partition(scene: Divided, commands: Commands, server: Server) -> None:
    env = {"REDIS_URL": server.url}
    for saga_id in scene.ids:
        scene.client.begin(saga_id, [do(1)])
    streams = [partition.commands("work") for partition in scene.keys.partitions]
    scene.turns_until(lambda: all(scene.client.get(saga_id) is not None for saga_id in scene.ids))
    for saga_id in scene.ids:
        assert "no process of service work is listening" in commands.run("show", saga_id, **env).stdout
    for stream in streams:
        scene.redis.xgroup_create(stream, "work", id="$")
    for saga_id in scene.ids:
        assert scene.client.why(saga_id)[-1].kind == "lost"
    assert sum("nobody will read" in one.text for one in Doctor(scene.broker).examine()) == 3
    assert sum("put back: " in one.text for one in Doctor(scene.broker, repair=True).examine()) == 3
    for saga_id in scene.ids:
        assert scene.play(saga_id).ended


def test_doctor_looks_at_every_partition_and_repairs_it(scene: Divided) -> None:
    for saga_id in scene.ids:
        scene.client.begin(saga_id, [do(1, service="nobody")])
    scene.turns_until(lambda: scene.lengths("timers") == [1, 1, 1])
    for partition in scene.keys.partitions:
        scene.redis.delete(partition.timers)
        scene.redis.zadd(partition.timers, {"gone": 9e15})
    found = list(Doctor(scene.broker, repair=True).examine())
    mended = [one.text for one in found if one.level == REPAIRED]
    assert sum("nobody would look at it again" in text for text in mended) == 3
    assert sum("saga gone is waited for" in text for text in mended) == 3
    assert scene.lengths("timers") == [1, 1, 1]
    again = [one for one in Doctor(scene.broker).examine() if one.about == "sagas"]
    assert [one.level for one in again] == [OK]


# --- two stores on one server


def test_stores_with_different_prefixes_do_not_see_each_other(server: Server) -> None:
    blue, green = Scene(Broker(server.url, prefix="blue")), Divided(Broker(server.url, prefix="green-2"))
    try:
        blue.client.begin("s1", [do("blue")])
        green.client.begin("s1", [do("green"), do("fail")])
        assert green.client.get("s1") is None
        _settle(blue, green)
        assert _ends(blue) == ["COMPLETED"]
        assert _ends(green) == ["ABORTED"]
        assert list(SagaClient(server.broker()).list()) == []
        there: Any = server.broker().client.keys()
        prefixes = {key.partition(b":")[0] for key in there}
        assert prefixes == {b"blue", b"green-2"}
    finally:
        blue.broker.close()
        green.broker.close()


def _settle(*scenes: Scene) -> None:
    def ended() -> bool:
        for scene in scenes:
            scene.worker.turn(block_ms=1)
            scene.runner.turn(block_ms=1)
        states = [scene.client.get("s1") for scene in scenes]
        return all(state is not None and state.ended for state in states)

    until(ended, what="both have ended")


def _ends(scene: Scene) -> list[str]:
    return [str(state.status) for state in scene.client.list() if isinstance(state, SagaState)]


def test_commands_use_the_store_that_the_environment_names(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url, "SAGASTREAM_PREFIX": "shop"}
    begin = {"saga_id": "s1", "steps": [do(1)]}
    assert commands.run("begin", "-", given=json.dumps(begin), **env).returncode == 0
    assert "1 requested" in commands.run("list", **env).stderr
    assert "1 requested" not in commands.run("list", REDIS_URL=server.url).stderr
    wrong = commands.run("list", REDIS_URL=server.url, SAGASTREAM_PREFIX="Shop:1")
    assert wrong.returncode == 1
    assert "SAGASTREAM_PREFIX must be 1 to 32 characters of a-z 0-9 _ -, not 'Shop:1'" in wrong.stderr


# --- whole processes


@pytest.mark.slow
def test_no_saga_is_harmed_by_kills(tmp_path: Path, commands: Commands) -> None:
    chance = random.Random(20260301)
    with world_of(Scale(sagas=120, factor=1), tmp_path, commands, partitions=3) as world:
        world.start(workers=2, services=1)
        world.run(lambda: world.kill_one_of([*world.workers, *world.services], chance), every_s=0.25, times=20)
        world.verdict()
        assert world.figures["entries held by the killed"] > 0
        assert min(world.figures["COMPLETED"], world.figures["ABORTED"]) > 10


def test_the_bridge_serves_every_partition(server: Server, commands: Commands) -> None:
    keys = divided(server.broker())
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    ids = in_each(keys)
    bridge = commands.start("bridge", "--outcomes", "--serve", "till", stdin=-1, env=env)
    assert bridge.stdin is not None
    assert bridge.stdout is not None
    for number, saga_id in enumerate(ids, 1):
        steps = [do(1, "Charge", "till")]
        line = {"type": "saga_begin", "msg_id": number, "saga_id": saga_id, "steps": steps}
        bridge.stdin.write(json.dumps({"src": "c1", "dest": "orchestrator", "body": line}).encode() + b"\n")
    bridge.stdin.flush()
    ends: dict[str, str] = {}
    while len(ends) < 3:
        told = json.loads(bridge.stdout.readline())
        if told["dest"] == "till":
            body = {"type": "Charge_ok", "saga_id": told["body"]["saga_id"], "step": 1}
            reply = {"src": "till", "dest": "orchestrator", "body": body}
            bridge.stdin.write(json.dumps(reply).encode() + b"\n")
            bridge.stdin.flush()
        elif told["body"]["type"].startswith("saga_"):
            ends[told["body"]["saga_id"]] = told["body"]["type"]
    bridge.stdin.close()
    assert bridge.wait(60) == 0
    assert ends == dict.fromkeys(ids, "saga_completed")
