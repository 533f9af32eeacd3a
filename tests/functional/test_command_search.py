"""Where the command of a saga is, found on real servers."""

import json
from typing import Any

import pytest
from msgspec.structs import replace
from rq import Queue

from sagastream.broker.exchange import Exchange, run
from sagastream.broker.leases import HANDED_BACK_MS
from sagastream.client import command_search
from sagastream.client.command_search import find
from sagastream.core.causes import Place, Whereabouts
from sagastream.core.saga import SagaState
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY

pytestmark = pytest.mark.both_in_soak

STREAM = ONLY.commands("work")


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def out(scene: Scene, saga_id: str = "s1") -> SagaState:
    """A saga whose command is out."""
    scene.begin(saga_id, do(1))
    scene.turns_until(lambda: scene.client.get(saga_id) is not None)
    state = scene.client.get(saga_id)
    assert state is not None
    return state


def place(scene: Scene, state: SagaState, **options: Any) -> Place:
    return run(scene.redis, find(KEYS, state, **options)).get(state.current_step, Place())


def add(scene: Scene, number: int, text: str = "") -> None:
    """Commands of others."""
    pipeline = scene.redis.pipeline(transaction=False)
    for at in range(number):
        body = {"type": "Do", "saga_id": f"other-{at}", "step": 1, "params": text}
        pipeline.xadd(STREAM, {"body": json.dumps(body)})
    pipeline.execute()


def read(scene: Scene, number: int, by: str = "one") -> list[bytes]:
    """Let a process of the service read so many."""
    found: Any = scene.redis.xreadgroup("work", by, {STREAM: ">"}, count=number) if number else []
    return [entry_id for entry_id, _ in found[0][1]] if found else []


@pytest.mark.parametrize("before", [0, 1, 137])
def test_it_is_unread_and_those_before_it_are_counted(scene: Scene, before: int) -> None:
    add(scene, before)
    state = out(scene)
    add(scene, 40)
    found = place(scene, state)
    assert (found.where, found.before, found.are_more) == (Whereabouts.UNREAD, before, False)
    scene.redis.xgroup_create(STREAM, "work", id="0")
    read(scene, min(before, 5))
    assert place(scene, state).before == before - min(before, 5)


def test_of_very_many_before_it_only_some_are_looked_at(scene: Scene) -> None:
    add(scene, 2000)
    state = out(scene)
    found = place(scene, state)
    assert found.where is Whereabouts.UNREAD
    assert found.are_more
    assert 1000 <= found.before < 2000
    calls: Any = scene.redis.info("commandstats")
    assert calls["cmdstat_xrange"]["calls"] < 20


def test_large_bodies_are_read_a_few_at_a_time(scene: Scene) -> None:
    state = replace(out(scene), saga_id="another")  # whose command is not there
    add(scene, 60, "x" * 200_000)
    asked: list[Any] = []
    assert run(scene.redis, noted(find(KEYS, state), asked))[1].where is Whereabouts.GONE
    assert max(words[words.index("COUNT") + 1] for words in asked if "COUNT" in words) <= 20


def noted(search: Exchange[dict[int, Place]], asked: list[Any]) -> Exchange[dict[int, Place]]:
    """The same search; what it asks for is added to `asked`."""
    answers: Any = None
    while True:
        try:
            commands = search.send(answers)
        except StopIteration as end:
            found: dict[int, Place] = end.value
            return found
        asked += commands
        answers = yield commands


def test_it_is_held_by_a_process_and_handed_back(scene: Scene) -> None:
    state = out(scene)
    scene.redis.xgroup_create(STREAM, "work", id="0")
    (entry_id,) = read(scene, 1, by="till-7")
    found = place(scene, state)
    assert (found.where, found.holder, found.handed_back, found.deliveries) == (Whereabouts.HELD, "till-7", False, 1)
    scene.redis.xclaim(STREAM, "work", "till-7", 0, [entry_id], idle=HANDED_BACK_MS, justid=True)
    assert place(scene, state).handed_back
    scene.redis.xgroup_delconsumer(STREAM, "work", "till-7")
    assert place(scene, state).where is Whereabouts.SKIPPED


def test_it_is_gone_and_a_reply_waits_or_none_does(scene: Scene) -> None:
    state = out(scene)
    scene.redis.delete(STREAM)
    assert place(scene, state) == Place(where=Whereabouts.GONE)
    scene.redis.xadd(ONLY.replies("work"), {"body": "{}"})
    assert place(scene, state).replies == 1
    for key in (STREAM, ONLY.replies("work")):
        scene.redis.delete(key)
        scene.redis.set(key, "x")
    assert place(scene, state) == Place(where=Whereabouts.GONE)


def test_the_command_of_another_attempt_or_step_is_not_taken_for_it(scene: Scene) -> None:
    state = out(scene)
    scene.redis.delete(STREAM)
    for body in ("[]", "{", '"s1"', '{"type":"Undo","saga_id":"s1","step":1}', '{"type":"Do","saga_id":"s1","step":2}'):
        scene.redis.xadd(STREAM, {"body": body})
    assert place(scene, state).where is Whereabouts.GONE
    scene.redis.xadd(STREAM, {"body": '{"type":"Do","saga_id":"s1","step":1}'})
    assert place(scene, state).before == 5


def test_a_saga_that_has_no_command_out_has_no_place(scene: Scene) -> None:
    scene.begin("s1", do(1))
    assert place(scene, scene.play("s1")) == Place()


def test_rq_names_its_queues_as_is_asked_for() -> None:
    assert Queue.redis_queues_keys == command_search.RQ_QUEUES
