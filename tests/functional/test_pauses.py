"""Pauses on a real server: what is paused is held, and sent once it is resumed, whoever dies meanwhile."""

import asyncio
import json
import socket
import time
from typing import Any

import pytest

from sagastream import AsyncSagaClient
from sagastream.broker.exchange import all_of, run
from sagastream.core.step_state import HELD_MS
from sagastream.errors import MalformedMessage, QuarantineError, RequestRefused
from sagastream.store import pauses
from sagastream.store.columns import iso
from sagastream.store.quarantine import Quarantine
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS
from support.waiting import until

pytestmark = pytest.mark.both_in_soak
FIRST = KEYS.partitions[0]


class Paused(Scene):
    """A scene in which services are paused and resumed."""

    def pause(self, service: str = "work", command: str | None = None) -> None:
        run(self.redis, pauses.pause(KEYS, service, command, "maintenance", "ada"))
        self.read()

    def resume(self, service: str = "work", command: str | None = None) -> None:
        run(self.redis, pauses.resume(KEYS, service, command, "done", "ada"))
        self.read()

    def read(self) -> None:
        """The worker has read what is paused."""
        there = frozenset([one.name for one in run(self.redis, pauses.read(KEYS))])
        self.turns_until(lambda: self.worker._pauses.names == there)

    def is_held(self, *saga_ids: str) -> bool:
        states = [self.client.get(saga_id) for saga_id in saga_ids]
        return all(state is not None and any(step.is_held for step in state.steps) for state in states)

    def held(self, service: str = "work") -> set[str]:
        """The sagas in the index of what is held."""
        found: Any = self.redis.zrange(FIRST.index(f"held={service}"), 0, -1)
        return {saga_id.decode() for saga_id in found}

    def timer(self, saga_id: str) -> float | None:
        return self.redis.zscore(FIRST.timers, saga_id)


@pytest.fixture
def scene(server: Server) -> Paused:
    return Paused(server.broker())


def test_a_saga_is_held_while_its_service_is_paused_and_goes_on_when_it_is_resumed(scene: Paused) -> None:
    scene.pause()
    scene.begin("s1", do(1), do(2))
    scene.turns_until(lambda: scene.is_held("s1"))
    assert (scene.redis.xlen(FIRST.commands("work")), scene.held(), scene.timer("s1")) == (0, {"s1"}, HELD_MS)
    (pause,) = scene.client.paused()
    assert (pause.name, pause.reason, pause.actor) == ("work", "maintenance", "ada")
    (cause,) = scene.client.why("s1")
    assert cause.kind == "paused"
    assert cause.text.startswith("service work has been paused for ")
    assert cause.text.endswith(" by ada: maintenance; Do is sent once it is resumed")
    assert cause.do == ("sagastream resume work --reason TEXT  # has it sent, and all else that is held",)
    scene.resume()
    assert scene.play("s1").status == "COMPLETED"
    told = [event.text for event in scene.client.history("s1")]
    assert told[1:4] == [
        "Do held: service work is paused by ada: maintenance",
        "Do goes on: service work was resumed by ada: done",
        "Do sent to work",
    ]
    assert (scene.effects.done, scene.held()) == (["s1/1/transaction", "s1/2/transaction"], set())


def test_what_is_out_is_answered_and_an_undo_waits_for_the_end_of_the_pause(scene: Paused) -> None:
    scene.begin("s1", do(1), do("fail"))
    scene.turns_until(lambda: scene.redis.xlen(FIRST.commands("work")) == 1)
    scene.pause("work", "Undo")

    def undo_is_held() -> bool:
        scene.runner.turn(block_ms=1)
        return scene.is_held("s1")

    scene.turns_until(undo_is_held)
    state = scene.client.get("s1")
    assert state is not None
    assert (state.status, state.waiting_for) == ("COMPENSATING", "work to be resumed, to send Undo, step 1")
    assert (scene.effects.done, scene.effects.undone) == (["s1/1/transaction"], [])
    scene.resume("work", "Undo")
    assert scene.play("s1").status == "ABORTED"
    assert scene.effects.undone == ["s1/1/transaction"]


def test_a_deadline_comes_while_a_saga_is_held(scene: Paused) -> None:
    scene.pause()
    scene.begin("s1", do(1), deadline_ms=300)
    scene.turns_until(lambda: (state := scene.client.get("s1")) is not None and state.ended)
    state = scene.client.get("s1")
    assert state is not None
    assert (state.status, scene.held()) == ("ABORTED", set())
    assert "The deadline, 300 ms after the begin, has passed" in str(state.reason)


def test_many_sagas_are_released_page_by_page_by_several_workers_each_once(scene: Paused) -> None:
    names = {f"s{number}" for number in range(400)}
    scene.pause()
    for name in names:
        scene.begin(name, do(1))
    scene.turns_until(lambda: scene.held() == names)
    other = scene.another_worker()
    scene.turns_until(lambda: other._pauses.names == {"work"}, other)
    run(scene.redis, pauses.resume(KEYS, "work", None, "done", None))
    scene.turns_until(lambda: not scene.held(), scene.worker, other)
    assert scene.redis.xlen(FIRST.commands("work")) == len(names)


def test_a_worker_that_starts_sends_what_was_resumed_while_none_ran(scene: Paused) -> None:
    scene.pause()
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.is_held("s1"))
    run(scene.redis, pauses.resume(KEYS, "work", None, "done", "bob"))
    scene.worker = scene.another_worker()
    assert scene.play("s1").status == "COMPLETED"
    [resumed] = [event for event in scene.client.history("s1") if event.kind == "RESUMED"]
    assert (resumed.step, resumed.actor, resumed.reason) == (1, "bob", "done")


def test_what_another_pause_holds_stays_held_and_its_timer_is_as_before(scene: Paused) -> None:
    scene.pause("work", "Do")
    scene.pause("work", "DoForGood")
    scene.begin("s1", do(1))
    scene.begin("s2", do(1, name="DoForGood", compensation=None))
    scene.turns_until(lambda: scene.held() == {"s1", "s2"})
    scene.resume("work", "Do")
    assert scene.play("s1").status == "COMPLETED"
    scene.turns_until(lambda: scene.timer("s2") == HELD_MS)
    assert (scene.held(), scene.is_held("s2")) == ({"s2"}, True)
    (cause,) = scene.client.why("s2")
    assert "DoForGood of service work has been paused" in cause.text
    scene.resume("work", "DoForGood")
    assert scene.play("s2").status == "COMPLETED"


def test_a_saga_that_is_held_and_not_known_to_be_paused_is_found_by_a_worker_that_starts(scene: Paused) -> None:
    """A worker held it just before it heard that the pause was over, and died."""
    scene.pause()
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.is_held("s1"))
    scene.redis.delete(KEYS.paused)
    (cause,) = scene.client.why("s1")
    assert cause.text == "Do was held, and is no longer paused: a worker sends it within some seconds"
    other = scene.another_worker()
    scene.turns_until(lambda: not scene.held(), other)


def test_a_saga_that_a_worker_held_before_it_heard_and_died_goes_on_while_another_command_is_paused(
    scene: Paused, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.pause("work", "Do")
    scene.pause("work", "DoForGood")
    late = scene.another_worker()
    scene.turns_until(lambda: late._pauses.names == {"work/Do", "work/DoForGood"}, late)
    scene.resume("work", "Do")
    scene.begin("s1", do(1))
    monkeypatch.setattr(late._pauses, "read", lambda: all_of([]))  # it will not hear
    scene.turns_until(lambda: scene.is_held("s1"), late)
    monkeypatch.setattr("sagastream.orchestrator.pauses._LOOK_EVERY_S", 0.1)
    scene.worker._pauses._look_at = 0.1  # the time of the next look
    assert scene.play("s1").status == "COMPLETED"
    scene.turns_until(lambda: not scene.worker._pauses._resumed_before)


@pytest.mark.parametrize("waits_for", ["an answer", "a person"])
def test_a_saga_that_is_no_longer_held_and_is_still_among_the_held_is_looked_at_once(
    scene: Paused, waits_for: str
) -> None:
    """A worker of an earlier release has moved it."""
    parks = do(1, service="nobody", kind="pivot", compensation=None, attempts=1, timeout_ms=1)
    scene.begin("s1", do(1) if waits_for == "an answer" else parks)
    scene.turns_until(
        lambda: scene.timer("s1") == float("inf") if waits_for == "a person" else scene.timer("s1") is not None
    )
    before, state = scene.timer("s1"), scene.client.get("s1")
    indexed = json.loads(scene.redis.hget(FIRST.indexed, "s1") or b"[]")
    scene.redis.zadd(FIRST.index("held=work"), {"s1": 1})
    scene.redis.hset(FIRST.indexed, "s1", json.dumps(["held=work", *indexed]))
    scene.turns_until(lambda: not scene.held(), scene.another_worker())
    assert (scene.timer("s1"), scene.client.get("s1")) == (before, state)
    assert json.loads(scene.redis.hget(FIRST.indexed, "s1") or b"[]") == indexed


def test_what_makes_no_sense_as_a_pause_is_refused_or_left_out(scene: Paused) -> None:
    for service, command, reason in (("wo rk", None, "r"), ("work", "a/b", "r"), ("work", None, "")):
        with pytest.raises(MalformedMessage):
            scene.client.pause(service, command, reason=reason)
    with pytest.raises(RequestRefused, match=r"^service work is not paused$"):
        scene.client.resume("work", reason="r")
    scene.redis.hset(
        KEYS.paused, mapping={"work/": "x", "a b": "x", "other/Do": b"\xff", "work/Do": '{"since_ms":"x"}'}
    )
    assert [(one.name, one.reason, one.since_ms) for one in scene.client.paused()] == [
        ("other/Do", "", 0),
        ("work/Do", "", 0),
    ]
    with pytest.raises(RequestRefused, match=r"^service work is not paused; paused of it: Do of service work$"):
        scene.client.resume("work", reason="r")
    scene.redis.delete(KEYS.paused)
    scene.redis.set(KEYS.paused, "x")
    assert scene.client.paused() == []
    scene.begin("s1", do(1))
    assert scene.play("s1").status == "COMPLETED"


def test_a_pause_that_comes_again_has_its_new_reason_and_its_old_time(scene: Paused) -> None:
    first = scene.client.pause("work", reason="one", actor="ada")
    again = scene.client.pause("work", reason="two")
    assert (again.pause.reason, again.pause.actor, again.pause.since_ms) == ("two", None, first.pause.since_ms)
    assert (first.known, first.late, first.ignorant) == ((), (), ())
    assert (first.before, again.before) == (None, first.pause)
    other = scene.client.pause("work", "Do", reason="three")
    resumed = scene.client.resume("work", reason="r")
    assert (resumed.pause, resumed.left) == (again.pause, (other.pause,))


def test_a_program_in_an_event_loop_pauses_too(scene: Paused) -> None:
    async def paused_and_resumed() -> list[str]:
        async with AsyncSagaClient(scene.broker) as client:
            await client.pause("work", "Do", reason="one", actor="ada")
            names = [one.name for one in await client.paused()]
            heard = await client.resume("work", "Do", reason="two")
            return [*names, heard.pause.told, *(one.name for one in await client.paused())]

    assert asyncio.run(paused_and_resumed()) == ["work/Do", "Do of service work"]


def test_a_pause_returns_when_the_workers_have_read_it(scene: Paused) -> None:
    import threading

    thread = threading.Thread(target=scene.worker.run)
    thread.start()
    try:
        until(lambda: scene.redis.zcard(KEYS.alive), what="the worker is alive")
        began = time.monotonic()
        heard = scene.client.pause("work", reason="r")
        assert time.monotonic() - began < 4
        assert (len(heard.known), heard.late, heard.ignorant) == (1, (), ())
        scene.begin("s1", do(1))
        until(lambda: scene.is_held("s1"), what="it is held")
        assert iso(HELD_MS).startswith("5000-01-01")
        scene.client.resume("work", reason="r")
        until(lambda: scene.redis.xlen(FIRST.commands("work")) == 1, what="it is sent")
    finally:
        scene.stop.set()
        thread.join()


def test_who_paused_put_back_and_dropped_what_is_kept(scene: Paused, commands: Commands) -> None:
    env = {"REDIS_URL": scene.broker.url}
    told = "no operations are noted\n"
    assert [commands.run("operations", *options, **env).stdout for options in ((), ("--json",))] == [told, ""]
    scene.client.pause("work", reason="maintenance", actor="ada")
    scene.client.resume("work", reason="done")
    for _ in range(2):
        scene.redis.xadd(FIRST.replies("work"), {"body": "{"})
    scene.turns_until(lambda: scene.redis.xlen(FIRST.quarantine) == 2)
    messages = [message.id for message in Quarantine(scene.redis, KEYS).newest_first()]
    assert (
        commands.run("quarantine", "drop", messages[0], "--actor", "bob", "--reason", "no\x1buse", **env).returncode
        == 0
    )
    assert commands.run("quarantine", "replay", messages[1], **env).returncode == 0
    shown = commands.run("operations", "--limit", "4", **env).stdout.splitlines()
    assert [line.partition("  ")[2] for line in shown[1:]] == [
        f"quarantine drop {messages[0]}  by bob: no\\x1buse",
        "resume work  by somebody: done",
        "pause work  by ada: maintenance",
    ]
    newest = json.loads(commands.run("operations", "--json", "--limit", "1", **env).stdout)
    assert (newest["verb"], newest["what"]) == ("quarantine replay", messages[1])
    assert newest["actor"].endswith(socket.gethostname())


def test_clients_put_back_and_drop_what_was_set_aside(scene: Paused) -> None:
    client = scene.client
    for body in ("{", "[", "]"):
        scene.redis.xadd(FIRST.replies("work"), {"body": body})
        scene.turns_until(lambda: scene.redis.xlen(FIRST.replies("work")) == 0)
    newest = client.quarantined()
    assert [one.body for one in newest] == [b"]", b"[", b"{"]
    assert [one.id for one in newest] == [one.id for one in Quarantine(scene.redis, KEYS).newest_first()]
    assert client.quarantined(limit=1) == newest[:1]
    assert client.drop_quarantined(newest[0].id, reason="no use", actor="bob") == newest[0]
    with pytest.raises(QuarantineError, match="holds no"):
        client.replay_quarantined(newest[0].id)
    with pytest.raises(MalformedMessage, match="reason must be a text of 1 to 500 characters"):
        client.replay_quarantined(newest[1].id, reason="")

    async def in_a_loop() -> list[str]:
        async with AsyncSagaClient(scene.broker) as other:
            assert await other.quarantined() == newest[1:]
            await other.drop_quarantined(newest[1].id)
            await other.replay_quarantined(newest[2].id, actor="ada")
            return [f"{one.verb} {one.what} {one.actor} {one.reason}" for one in await other.operations(3)]

    assert asyncio.run(in_a_loop()) == [
        f"quarantine replay {newest[2].id} ada ",
        f"quarantine drop {newest[1].id}  ",
        f"quarantine drop {newest[0].id} bob no use",
    ]
    assert client.quarantined() == []
    assert client.operations(1)[0].actor == "ada"
