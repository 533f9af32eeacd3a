"""Messages of the largest size: many of them fit into little memory, and the dearest hold up nobody for long."""

import itertools
import json
import shlex
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sagastream.client.blocking import SagaClient
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import Begin, Intervene, Verb
from sagastream.core.references import MAX_TOGETHER_BYTES
from sagastream.core.saga import SagaStatus
from sagastream.core.steps import MAX_CARRIED_BYTES
from sagastream.store.quarantine import Quarantine
from support.processes import SAGASTREAM, Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.streams import append_requests
from support.waiting import slowness, takes_less_than, until
from support.worst import INVALID, VALID, least_cpu_ms

pytestmark = pytest.mark.both_in_soak

#: Nearly the largest result, and params with which a begin is of nearly the largest size.
LARGE = "x" * (1_000_000)

ECHO = """
from sagastream import Service

service = Service("work")

@service.command("Do", compensation="Undo")
def do(params, context):
    return params.get("size", 0) * "x" if isinstance(params, dict) else None

@service.compensation("Undo")
def undo(params, context):
    pass
"""


@pytest.fixture
def scene(server: Server, commands: Commands) -> Scene:
    (commands.folder / "shop.py").write_text(ECHO)
    return Scene(server.broker())


def limited(commands: Commands, server: Server, *words: str) -> Any:
    """A process of sagastream with at most 512 MB of memory."""
    line = f"ulimit -v {512 * 1024}; exec {shlex.join([SAGASTREAM, *words])}"
    return commands.quiet(program=("sh", "-c", line), env={"REDIS_URL": server.url, "MALLOC_ARENA_MAX": "2"})


def all_ended(scene: Scene, sagas: list[str], process: Any) -> None:
    left = set(sagas)

    def none_left() -> bool:
        assert process.poll() is None, "it was ended by its limit"
        for saga_id in list(left):
            status: Any = scene.redis.hget(ONLY.saga(saga_id), "status")
            if status != b"COMPLETED":
                return False
            left.discard(saga_id)
        return True

    until(none_left, what="all sagas complete", timeout_s=240)


@pytest.mark.parametrize("small", [0, 600])
def test_a_worker_with_little_memory_survives_a_backlog_of_large_replies(
    scene: Scene, server: Server, commands: Commands, small: int
) -> None:
    sagas = [f"s{number}" for number in range(small + 200)]
    for saga_id in sagas:
        scene.begin(saga_id, do(1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == len(sagas))
    scene.worker._inbox.leave()
    for number, saga_id in enumerate(sagas):  # the small ones first: the worker learns that replies are small
        body = {"type": "Do_ok", "saga_id": saga_id, "step": 1, "result": "y" if number < small else LARGE}
        scene.redis.xadd(ONLY.replies("work"), {"body": json.dumps(body)})
    process = limited(commands, server, "worker")
    all_ended(scene, sagas, process)


def a_fan_out(saga_id: str) -> Begin:
    """A small request that sends as much at once as a saga may: it is about a hundred times as long."""
    size, part = MAX_CARRIED_BYTES // 100, MAX_TOGETHER_BYTES // 100 - 8
    data = {"part": "x" * part, "rest": "y" * (size - part - len('{"part":"","rest":""}'))}
    steps = [do({"$ref": "/input/part"}, after=[]) for _ in range(100)]
    return parse_begin({"saga_id": saga_id, "input": data, "steps": steps}, echo=True)


def test_sagas_that_send_as_much_at_once_as_they_may_are_not_packed_together(
    scene: Scene, server: Server, commands: Commands
) -> None:
    """All commands of these sagas take 350 MB, and in one piece packing them would take several times as much."""
    process = commands.quiet("worker", env={"REDIS_URL": server.url})
    until(lambda: scene.redis.exists(ONLY.requests), what="it joins")
    sagas = [f"s{number}" for number in range(16)]
    append_requests(scene.redis, [a_fan_out(saga_id) for saga_id in sagas])
    until(lambda: scene.redis.xlen(ONLY.commands("work")) == 100 * len(sagas), what="all sagas begin", timeout_s=120)
    until(lambda: scene.redis.xlen(ONLY.requests) == 0, what="all requests are taken")
    assert most_memory_mb(process.pid) < 600


def test_a_saga_with_many_large_results_is_undone_in_several_commits(
    scene: Scene, server: Server, commands: Commands
) -> None:
    env = {"REDIS_URL": server.url}
    service = commands.quiet("service", "shop:service", env=env)
    steps = [do({"size": len(LARGE)}, after=[]) for _ in range(20)]
    wait = {"wait": "go", "timeout_ms": 600_000, "after": list(range(1, 21))}
    append_requests(scene.redis, [parse_begin({"saga_id": "s1", "input": {}, "steps": [*steps, wait]})])
    scene.turns_until(lambda: scene.redis.hget(ONLY.saga("s1"), "step21.phase") == b"AWAITING")
    append_requests(scene.redis, [Intervene(verb=Verb.CANCEL, saga_id="s1", reason="as agreed")])
    sent: set[int] = set()

    def undone() -> bool:
        scene.worker.turn(block_ms=1)
        state = scene.client.get("s1")
        assert state is not None
        sent.add(sum(step.compensation_attempt for step in state.steps))
        return state.ended

    until(undone, what="it is undone", timeout_s=60)
    assert min(sent - {0}) == 9  # in the first commit: a little more than 8 MiB
    assert scene.redis.hget(ONLY.saga("s1"), "status") == b"ABORTED"
    assert service.poll() is None


def most_memory_mb(pid: int) -> float:
    """The most memory that a process has used, in MB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1000


def test_a_saga_that_sends_as_much_at_once_as_it_may_holds_a_worker_up_for_less_than_a_second(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)  # it joins
    append_requests(scene.redis, [a_fan_out("s1")])
    with takes_less_than(1):
        scene.worker.turn(block_ms=1)
    assert scene.redis.xlen(ONLY.commands("work")) == 100
    state = scene.client.get("s1")
    assert state is not None
    assert sum(len(step.built or b"") for step in state.steps) > 0.99 * MAX_TOGETHER_BYTES
    assert scene.play("s1").status is SagaStatus.COMPLETED
    assert len(scene.effects.done) == 100


@pytest.mark.parametrize("params", [{"text": LARGE}, {"size": len(LARGE)}], ids=["large params", "large results"])
def test_a_service_with_little_memory_survives_a_backlog_of_large_messages(
    scene: Scene, server: Server, commands: Commands, params: Any
) -> None:
    sagas = [f"s{number}" for number in range(200)]
    for saga_id in sagas:
        scene.begin(saga_id, do(params))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == len(sagas))
    process = limited(commands, server, "service", "shop:service")
    until(lambda: scene.redis.xlen(ONLY.replies("work")) >= 100 or process.poll() is not None, what="it answers")
    scene.worker._inbox.recover()

    def turned() -> bool:
        assert process.poll() is None, "it was ended by its limit"
        scene.worker.turn(block_ms=1)
        return not scene.redis.zcard(ONLY.timers)

    until(turned, what="all sagas complete", timeout_s=240)
    all_ended(scene, sagas, process)


def cpu_ms(pid: int) -> float:
    """The CPU time of all threads of a process, in milliseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


@pytest.mark.parametrize("what", ["requests", "commands", "replies"])
def test_the_dearest_messages_cost_a_process_little_each(
    scene: Scene, server: Server, commands: Commands, what: str
) -> None:
    """Sent to real processes: each costs its worker, or its service, at most 50 ms of CPU."""
    env = {"REDIS_URL": server.url}
    worker = commands.quiet("worker", env=env)
    service = commands.quiet("service", "shop:service", env=env)
    process, stream = {
        "requests": (worker, ONLY.requests),
        "replies": (worker, ONLY.replies("work")),
        "commands": (service, ONLY.commands("work")),
    }[what]
    client = SagaClient(server.broker())
    client.begin("first", [do({})])
    assert client.wait("first", timeout_s=60).status is SagaStatus.COMPLETED
    body = {
        "requests": '{"saga_id":"%s","steps":[{"transaction":"Do","service":"void","params":%s}]}',
        "replies": '{"type":"Do_ok","saga_id":"%s","step":1,"result":%s}',
        "commands": '{"type":"Do","saga_id":"%s","step":1,"params":%s}',
    }[what]
    numbers = itertools.count()

    def cost_ms(name: str, text: str) -> float:
        before = cpu_ms(process.pid)
        scene.redis.xadd(stream, {"body": body % (f"w{next(numbers)}", text)})
        until(lambda: scene.redis.xlen(stream) == 0, what=f"{name} is taken")
        return cpu_ms(process.pid) - before

    costs = {
        name: round(least_cpu_ms(partial(cost_ms, name, text), enough_ms=50))
        for name, text in (VALID | INVALID).items()
    }
    assert max(costs.values()) < 100, costs  # a busy machine takes twice as long
    assert process.poll() is None


@pytest.mark.parametrize("what", ["requests", "replies"])
def test_64_of_the_dearest_at_once_hold_up_a_small_saga_for_less_than_a_second(
    scene: Scene, server: Server, commands: Commands, tmp_path: Path, what: str
) -> None:
    """And the health file is beaten meanwhile."""
    env = {"REDIS_URL": server.url}
    health = tmp_path / "health"
    commands.quiet("worker", "--health-file", str(health), env=env)
    commands.quiet("service", "shop:service", env=env)
    client = SagaClient(server.broker())
    client.begin("first", [do({})])
    assert client.wait("first", timeout_s=60).status is SagaStatus.COMPLETED
    usual = min(_takes(client, f"usual{number}") for number in range(5))
    texts = list((VALID | INVALID).values())
    pipeline = scene.redis.pipeline(transaction=True)
    for number in range(64):
        text = texts[number % len(texts)]
        if what == "requests":
            step = f'{{"transaction":"Do","service":"void","params":{text}}}'
            pipeline.xadd(ONLY.requests, {"body": f'{{"saga_id":"w{number}","steps":[{step}]}}'})
        else:
            pipeline.xadd(ONLY.replies("work"), {"body": f'{{"type":"Do_ok","saga_id":"x","step":1,"result":{text}}}'})
    pipeline.execute()
    slow = slowness()
    # On an idle machine it is 0.6 s. With the other processes of this test it is not idle.
    with takes_less_than(2 + usual):
        _takes(client, "small")
    age_s = time.time() - health.stat().st_mtime
    assert age_s < 3 * max(slow, slowness())
    until(lambda: not scene.redis.xlen(ONLY.replies("work")), what="all are taken")
    assert len(Quarantine(scene.redis, KEYS)) >= len(INVALID)


def _takes(client: SagaClient, saga_id: str) -> float:
    began = time.monotonic()
    client.begin(saga_id, [do({}), do({}), do({})])
    assert client.wait(saga_id, timeout_s=60).status is SagaStatus.COMPLETED
    return time.monotonic() - began
