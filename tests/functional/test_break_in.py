"""What somebody tries who has the user of a service, or one who may only begin sagas: it changes no other's saga."""

import json
from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from sagastream.core.saga import SagaStatus
from sagastream.store import heartbeat
from sagastream.store.keys import DONE_KEPT_S
from sagastream.store.quarantine import Quarantine
from sagastream.store.roles import Role
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.users import Users
from support.waiting import until


@pytest.fixture
def scene(server: Server) -> Scene:
    """With a saga `v`, whose command the service `work` has not answered yet."""
    scene = Scene(server.broker())
    scene.begin("v", do(1))
    turns(scene)
    return scene


@pytest.fixture
def users(server: Server) -> Users:
    return Users(server)


def turns(scene: Scene) -> None:
    for _ in range(6):
        scene.worker.turn(block_ms=1)


def message(kind: str, **more: Any) -> dict[Any, Any]:
    return {"body": json.dumps({"type": kind, "saga_id": "v", "reason": "x"} | more), "request_id": kind}


def is_untouched(scene: Scene) -> bool:
    turns(scene)
    state = scene.client.get("v")
    assert state is not None
    return (state.status, state.parked, bool(state.cancelling), state.current_step) == (
        SagaStatus.PENDING,
        None,
        False,
        1,
    )


#: What a forger would like to be taken for the answer of `work`, or for the word of an operator.
FORGED = [
    message("Do_ok", step=1, result="stolen"),
    message("Do_failed", step=1, error="x"),
    message("saga_cancel"),
    message("saga_cancel", now=True),
    message("saga_abandon"),
    message("saga_retry"),
    message("saga_skip"),
]


def test_a_service_can_neither_answer_for_another_nor_speak_as_an_operator(scene: Scene, users: Users) -> None:
    evil = users.client(Role.SERVICE, "evil")
    evil.sadd(KEYS.services, "evil")
    for forged in FORGED:
        evil.xadd(ONLY.replies("evil"), forged)

    def all_are_quarantined() -> bool:
        turns(scene)  # the worker hears of the new service along with its next heartbeat, then reads its replies
        return int(scene.redis.xlen(ONLY.quarantine)) == len(FORGED)

    until(all_are_quarantined, what="the worker quarantines the forged replies")
    assert is_untouched(scene)
    quarantine = Quarantine(scene.redis, KEYS)
    for one in list(quarantine.newest_first()):  # … nor if an operator puts it all back
        quarantine.replay(one.id)
    assert is_untouched(scene)
    assert scene.redis.xlen(ONLY.interventions) == 0
    assert scene.play("v").status is SagaStatus.COMPLETED


def test_what_a_service_sets_aside_comes_back_to_its_own_commands_alone(scene: Scene, users: Users) -> None:
    evil = users.client(Role.SERVICE, "evil")
    evil.sadd(KEYS.services, "evil")
    streams = (ONLY.requests, ONLY.interventions, ONLY.commands("work"), ONLY.replies("work"), ONLY.replies("evil"))
    for stream in streams:
        aside = {"reason": "x", "stream": stream, "entry_id": "1-1", "fields": "{}"} | message("saga_abandon")
        evil.xadd(ONLY.quarantine_of("evil"), aside)
    before = [scene.redis.xlen(stream) for stream in streams]
    quarantine = Quarantine(scene.redis, KEYS)
    for one in list(quarantine.newest_first()):
        quarantine.replay(one.id)
    assert [scene.redis.xlen(stream) for stream in streams] == before
    assert scene.redis.xlen(ONLY.commands("evil")) == len(streams)
    assert is_untouched(scene)


def test_a_begin_only_user_can_do_nothing_to_a_saga_that_is_there(scene: Scene, users: Users) -> None:
    mallory = users.client(Role.BEGIN_ONLY)
    for forged in FORGED:
        mallory.xadd(ONLY.requests, forged)
    other = {"type": "saga_begin", "steps": [do(2, service="evil")]}
    mallory.xadd(ONLY.requests, message("saga_begin", **other))
    assert is_untouched(scene)
    for key in (ONLY.interventions, ONLY.replies("work"), ONLY.commands("work"), ONLY.quarantine, ONLY.events):
        with pytest.raises(NoPermissionError):
            mallory.xadd(key, message("saga_abandon"))
    assert scene.play("v").status is SagaStatus.COMPLETED


def test_a_service_cannot_touch_the_records_of_one_whose_name_begins_like_its_own(scene: Scene, users: Users) -> None:
    wor: Any = users.client(Role.SERVICE, "wor")
    record = f"{ONLY.base}done:work:1"
    for name in ("work", "wor.k", "wor-k"):
        for command in (
            ["HSET", f"{ONLY.base}done:{name}:1", "f", "v"],
            ["EXPIRE", f"{ONLY.base}done:{name}:1", str(DONE_KEPT_S)],
            ["XADD", ONLY.replies(name), "*", "body", "{}"],
            ["XADD", ONLY.quarantine_of(name), "*", "body", "{}"],
            ["HSET", KEYS.published(name), "Do", ""],
            ["EVAL", "return 1", "1", ONLY.commands(name)],
        ):
            with pytest.raises(NoPermissionError):
                wor.execute_command(*command)
    for command in (["HSET", KEYS.store, "partitions", "3"], ["HSETNX", KEYS.store, "x", "y"], ["DEL", KEYS.store]):
        with pytest.raises(NoPermissionError):
            wor.execute_command(*command)
    assert not scene.redis.exists(record)


def test_a_heartbeat_that_is_wiped_or_forged_changes_no_saga(scene: Scene, users: Users) -> None:
    evil = users.client(Role.SERVICE, "evil")
    members: Any = evil.zrange(KEYS.alive, 0, -1)
    evil.zrem(KEYS.alive, *members)
    evil.zadd(KEYS.alive, {json.dumps({"name": f"w{n}", "kind": "worker", "formats": []}): 9e15 for n in range(50)})
    evil.hset(KEYS.running, mapping={f"p{n}": "x" * 1000 for n in range(200)})
    scene.worker._services._heartbeat._beat_at = 0.0
    assert is_untouched(scene)
    assert heartbeat.worker_is_alive(scene.redis, KEYS)
    assert scene.play("v").status is SagaStatus.COMPLETED
