"""Much work for one saga, service or client does not hold up the others."""

from pathlib import Path

import pytest

from sagastream.broker import wire
from sagastream.client.blocking import SagaClient
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import Begin
from sagastream.core.saga import SagaStatus
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import ONLY
from support.streams import append_requests
from support.waiting import until


def begin(saga_id: str, name: str = "Do", service: str = "work") -> Begin:
    return parse_begin({"saga_id": saga_id, "steps": [do(name=name, service=service)]}, request_id=saga_id)


def begin_many(scene: Scene, name: str, count: int) -> None:
    append_requests(scene.redis, [begin(f"{name}{n}") for n in range(count)])


def answer_all(scene: Scene) -> None:
    while scene.redis.xlen(ONLY.commands("work")):
        scene.runner.turn(block_ms=1)


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def test_a_flood_of_begins_does_not_hold_up_a_saga_that_is_under_way(scene: Scene) -> None:
    """The reply is read along with the commit of the current turn, and each turn takes few entries of the flood."""
    scene.begin("s1", do(1), do(2), do(3))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.runner.turn(block_ms=1)
    begin_many(scene, "flood", 1000)
    for step in (2, 3):
        scene.worker.turn(block_ms=1)
        scene.worker.turn(block_ms=1)
        state = scene.client.get("s1")
        assert state is not None
        assert state.current_step == step
        answer_all(scene)
    assert scene.redis.xlen(ONLY.requests) >= 1000 - 4 * 64


def test_where_many_replies_wait_they_come_before_requests(scene: Scene) -> None:
    """A turn takes requests only if the turn before it read few replies."""
    begin_many(scene, "early", 160)
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 160)
    answer_all(scene)
    begin_many(scene, "late", 100)
    scene.worker.turn(block_ms=1)
    assert (scene.redis.xlen(ONLY.replies("work")), scene.redis.xlen(ONLY.requests)) == (160 - 128, 100 - 64)
    scene.worker.turn(block_ms=1)
    assert (scene.redis.xlen(ONLY.replies("work")), scene.redis.xlen(ONLY.requests)) == (0, 100 - 64)  # it took no more
    scene.turns_until(lambda: scene.redis.xlen(ONLY.requests) == 0)


def test_a_turn_of_some_replies_sees_to_what_is_due_and_is_followed_by_one_without_requests(scene: Scene) -> None:
    begin_many(scene, "early", 40)
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 40)
    scene.begin("timed", do(service="nobody", timeout_ms=50, attempts=1))
    scene.turns_until(lambda: scene.client.get("timed") is not None)
    answer_all(scene)  # the worker does not move meanwhile, so the step cannot time out before, however long this takes
    timed = scene.client.get("timed")
    assert timed is not None
    due_ms = timed.due_ms
    assert due_ms is not None
    until(lambda: wire.milliseconds(scene.redis.time()) > due_ms + 100, what="it is due")
    scene.worker.turn(block_ms=1)
    assert scene.redis.xlen(ONLY.replies("work")) == 0
    timed = scene.client.get("timed")
    assert timed is not None
    assert timed.steps[0].unknown
    begin_many(scene, "late", 10)
    scene.worker.turn(block_ms=1)
    assert scene.redis.xlen(ONLY.requests) == 10
    scene.worker.turn(block_ms=1)
    assert scene.redis.xlen(ONLY.requests) == 0


def test_however_many_replies_come_a_request_is_taken_in_the_end(scene: Scene) -> None:
    """The request is, for instance, an operator's. Here a service repeats replies for which nobody waits."""
    scene.begin("old", do(1))
    scene.play("old")

    def a_turn_of_replies() -> None:
        for _ in range(40):
            scene.redis.xadd(ONLY.replies("work"), {"body": '{"type":"Do_ok","saga_id":"old","step":1}'})
        scene.worker.turn(block_ms=1)

    a_turn_of_replies()
    scene.begin("new", do(1))
    turns = 0
    while scene.client.get("new") is None and turns < 20:
        a_turn_of_replies()
        turns += 1
    assert 1 < turns < 10


SLOW_AND_FAST = """
import time
from pathlib import Path
from sagastream import Service

slow, fast = Service("slow"), Service("fast")

@slow.command("Wait", compensation=None)
def wait(params, context):
    while not Path("go").exists():
        time.sleep(0.01)

@fast.command("Do", compensation=None)
def do(params, context):
    pass
"""


def test_the_backlog_of_a_slow_service_does_not_hold_up_the_others(server: Server, commands: Commands) -> None:
    (commands.folder / "shop.py").write_text(SLOW_AND_FAST)
    for arguments in (("worker",), ("service", "shop:slow"), ("service", "shop:fast")):
        commands.quiet(*arguments, env={"REDIS_URL": server.url})
    broker = server.broker()
    append_requests(broker.client, [begin(f"slow{n}", "Wait", "slow") for n in range(300)])
    append_requests(broker.client, [begin(f"fast{n}", "Do", "fast") for n in range(300)])
    client = SagaClient(broker)
    assert {client.wait(f"fast{n}", timeout_s=60).status for n in range(300)} == {SagaStatus.COMPLETED}
    assert broker.client.zcard(ONLY.timers) == 300  # not one of the slow ones
    Path(commands.folder / "go").touch()
    assert {client.wait(f"slow{n}", timeout_s=60).status for n in range(300)} == {SagaStatus.COMPLETED}
