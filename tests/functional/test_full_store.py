"""A store near its maxmemory drains: what is under way ends, and no saga begins until there is room."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from sagastream.broker import exchange
from sagastream.client import requests
from sagastream.core.messages import Verb
from sagastream.core.saga import SagaStatus
from sagastream.service.runner import ServiceRunner
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY


@pytest.fixture
def scene(server: Server) -> Iterator[Scene]:
    scene = Scene(server.broker())
    yield scene
    scene.redis.config_set("maxmemory", 0)


def fill(scene: Scene) -> None:
    """From now on the server refuses every plain command that needs memory."""
    scene.redis.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        scene.redis.set("more", "x")


def test_in_a_full_store_what_is_under_way_ends(scene: Scene) -> None:
    scene.begin("good", do(1), do(2))
    scene.begin("bad", do(1), do(2), do("fail"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 2)
    fill(scene)
    assert scene.play("good").status is SagaStatus.COMPLETED
    assert scene.play("bad").status is SagaStatus.ABORTED
    assert sorted(scene.effects.undone) == ["bad/1/transaction", "bad/2/transaction"]


def test_in_a_full_store_processes_can_start_and_stop(scene: Scene) -> None:
    """A deploy must not be what stops a store from draining. The processes are new, and so is a group that is gone."""
    scene.begin("s1", do(1), do("fail"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.worker._inbox.leave()
    scene.redis.xgroup_destroy(ONLY.commands("work"), "work")
    fill(scene)
    scene.worker, scene.runner = scene.another_worker(), scene.another_runner()
    assert scene.play("s1").status is SagaStatus.ABORTED
    assert scene.effects.undone == ["s1/1/transaction"]


def test_in_a_full_store_an_operator_can_act(scene: Scene) -> None:
    scene.begin("s1", do(1, service="elsewhere", compensation=None))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("elsewhere")) == 1)
    fill(scene)
    request = requests.to_intervene(Verb.CANCEL, "s1", "the store is full", now=True)
    exchange.run(scene.redis, requests.append(KEYS, [request]))
    assert scene.play("s1").status is SagaStatus.ABORTED


def test_in_a_full_store_a_command_that_others_held_is_counted_and_done(scene: Scene) -> None:
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.redis.xgroup_create(ONLY.commands("work"), "work", id="0")
    found: Any = scene.redis.xreadgroup("work", "dead", {ONLY.commands("work"): ">"})
    entry_id = found[0][1][0][0]
    scene.redis.xclaim(ONLY.commands("work"), "work", "dead", 0, [entry_id], idle=86_400_000)
    fill(scene)
    scene.runner = ServiceRunner(scene.broker, scene.effects.service, scene.stop)
    assert scene.play("s1").status is SagaStatus.COMPLETED
