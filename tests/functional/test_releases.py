"""Releases side by side on one store, as real processes that are killed: this release and the one before it, and this
one and a stand-in for a newer one (support/releases.py)."""

import itertools
import json
import random
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from sagastream.broker import exchange
from sagastream.client import requests
from sagastream.client.blocking import SagaClient
from sagastream.core.messages import Code, Verb
from sagastream.errors import RequestRefused
from sagastream.store import heartbeat
from sagastream.store.heartbeat import Kind
from support import oracle
from support.faults import Process, Scale, World, world_of
from support.newer import FORMAT, newer
from support.processes import Commands
from support.releases import NEWER, THIS, Release, former_release
from support.stores import KEYS, ONLY
from support.values import TRACEPARENT
from support.waiting import takes_less_than, until

pytestmark = pytest.mark.slow

#: How often a process is killed, at least.
KILLS: Final = 16


@pytest.fixture(scope="session")
def former(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return former_release(tmp_path_factory.mktemp("former"))


@pytest.fixture
def world(tmp_path: Path, commands: Commands) -> Iterator[World]:
    with world_of(Scale(sagas=80, factor=1), tmp_path, commands) as made:
        yield made


# --- the release before this one


@pytest.mark.parametrize("times_out", [False, True], ids=["answered", "timing out"])
def test_no_saga_is_harmed_by_workers_and_services_of_two_releases(
    world: World, former: Release, times_out: bool
) -> None:
    chance = random.Random(20260101)
    for release in (THIS, former):
        world.start(workers=1, services=1, release=release)
    if times_out:  # … as entries that a killed service holds are, long before its lease ends
        world.options = {"timeout_ms": 700, "attempts": 4, "compensation_attempts": 4, "backoff_ms": 20}
        world.may_end_otherwise()
    # A worker and a service of each release are surely killed in the middle of their work, not only by chance.
    busy = [*world.workers, *world.services[:: len(oracle.NAMES)]]
    assert {victim.release for victim in busy} == {THIS, former}

    def kill_one() -> None:
        if busy and world.figures["kills"] % 2:
            victim = busy.pop()
            with world.stopped_while_it_holds_something(victim):
                world.kill(victim)
        else:
            victim = chance.choice([*world.workers, *world.services])
            world.kill(victim)
        world.figures[f"kills of the {victim.release.name} release"] += 1

    world.run(kill_one, every_s=0.2, times=KILLS)
    if times_out:
        world.settle()
        world.retry_parked(SagaClient(world.server.broker()))
    world.verdict(unfit=("too late",) if times_out else ())
    assert not busy
    assert min(world.figures[f"kills of the {release.name} release"] for release in (THIS, former)) > 0
    assert min(world.figures["COMPLETED"], world.figures["ABORTED"]) > 0
    if times_out:
        assert world.figures["handlers called again"] > 0


def test_processes_of_both_releases_are_told_of(world: World, former: Release) -> None:
    for release in (THIS, former):
        world.start(workers=1, services=1, release=release)

    def alive() -> list[tuple[str, str | None, bool]]:
        found = heartbeat.processes(world.redis, KEYS, oracle.NAMES)
        return sorted((one.kind, one.service, one.beats) for one in found if one.is_alive)

    services = [(Kind.SERVICE, name, True) for name in oracle.NAMES for _ in range(2)]
    until(lambda: alive() == [*services, *[(Kind.WORKER, None, True)] * 2], what="all are heard")


def test_sagas_that_belong_to_a_trace_end_whichever_release_moves_them(world: World, former: Release) -> None:
    for release in (THIS, former):
        world.start(workers=1, services=1, release=release)
    client = SagaClient(world.server.broker())
    asked: list[Any] = [
        {"saga_id": f"t{number}", "steps": [a_step(name) for name in oracle.NAMES]} for number in range(24)
    ]
    for saga in asked:
        client.begin_request(replace(requests.to_begin(saga), traceparent=TRACEPARENT))
    ended = [client.wait(saga["saga_id"], 60) for saga in asked]
    assert {str(state.status) for state in ended} == {"COMPLETED"}
    # The release before this one begins a saga without its trace, and leaves the trace of one that this one began.
    assert {state.traceparent for state in ended} <= {TRACEPARENT, None}
    assert world.redis.xlen(ONLY.quarantine) == 0


# --- sagas of a format that the release before this one does not know


def graph_of(saga_id: str, *, fails: bool = False) -> Any:
    """Two steps at once, a wait for `go`, and a last step."""
    last = a_step("gamma", "reject" if fails else "ok", id="last")
    last["params"]["of"] = [{"$ref": "/steps/one/result/key"}, {"$ref": "/steps/go/result/by"}]
    steps: list[Any] = [
        a_step("alpha", id="one", after=[]),
        a_step("beta", id="two", after=[]),
        {"id": "go", "after": ["one", "two"], "wait": "go", "timeout_ms": 600_000},
        last,
    ]
    return requests.to_begin({"saga_id": saga_id, "input": {"note": saga_id}, "steps": steps})


def refusal_of(world: World, request_id: str | None) -> Any:
    """The body with which a request was refused; None: it was not."""
    events: Any = world.redis.xrange(ONLY.events)
    for _, fields in events:
        if fields[b"kind"] == b"refused" and fields[b"request_id"].decode() == request_id:
            return json.loads(fields[b"body"])
    return None


def test_a_graph_is_refused_while_a_former_worker_lives_and_begins_once_it_is_gone(
    world: World, former: Release
) -> None:
    world.start(workers=2, services=1)
    world.start(workers=1, services=0, release=former)
    old = world.workers[-1]
    name = until(partial(name_of, world, old), what="the old worker is heard")
    client = SagaClient(world.server.broker())
    for number in range(6):  # whichever worker reads the request
        asked = graph_of(f"g{number}")
        accepted = client.begin_request(asked)
        until(partial(refusal_of, world, asked.request_id), what="it is refused", timeout_s=60)
        with pytest.raises(RequestRefused) as refused:  # a wait that begins after the refusal hears of it, too
            client.wait(accepted, 60)
        told = f"worker {name} does not know format 2: stop it or update it, then begin the saga again"
        assert (refused.value.code, str(refused.value)) == (Code.PRECONDITION_FAILED, told)
    assert hashes(world) == {}
    plain = client.wait(client.begin("plain", [a_step("alpha")]), 60)  # type: ignore[list-item]
    assert plain.status == "COMPLETED"
    world.end(old)
    client.begin_request(graph_of("g0"))
    client.signal("g0", "go", {"by": "boss"}, 60)
    assert client.wait("g0", 60).status == "COMPLETED"


def test_a_graph_under_way_is_left_alone_by_a_former_worker(world: World, former: Release) -> None:
    world.start(workers=1, services=0)
    client = SagaClient(world.server.broker())
    ids = [f"g{number}" for number in range(12)]
    for number, saga_id in enumerate(ids):
        client.begin_request(graph_of(saga_id, fails=bool(number % 2)))
    pause: Any = {"saga_id": "pause", "input": {}, "steps": [{"wait_ms": 2000}, a_step("alpha")]}
    client.begin_request(requests.to_begin(pause))
    until(lambda: world.redis.zcard(ONLY.timers) == len(ids) + 1, what="they have begun")
    world.end(world.workers[0], signal.SIGKILL)

    # A worker of the release before this one meets replies, signals, a request about a step, and a saga that is due.
    before = hashes(world)
    world.start(workers=1, services=0, release=former)
    world.start(workers=0, services=1)
    asked = [requests.to_signal(saga_id, "go", {"by": "boss"}, decline=None, actor=None) for saga_id in ids]
    skip = requests.to_intervene(Verb.SKIP, ids[0], "it is not parked", step="one")
    exchange.run(world.redis, requests.append(KEYS, [*asked, skip]))
    [old] = world.workers
    until(lambda: sum(world.held_by(old).values()) == 3 * len(ids) + 1, what="it has met all of it")
    with world.feed(lambda: True, 20):
        pass
    until(lambda: world.redis.zcard(ONLY.ended) == 20, what="it goes on with the sagas that it knows")
    now_ms = int(world.redis.time()[0]) * 1000
    until(lambda: int(world.redis.time()[0]) * 1000 > now_ms + 3000, what="the pause is over")
    assert {saga_id: found for saga_id, found in hashes(world).items() if saga_id in before} == before
    assert world.redis.xlen(ONLY.quarantine) == 0

    world.start(workers=1, services=0)
    until(lambda: world.redis.zcard(ONLY.timers) == 0, what="this release goes on with them")
    ended = [client.wait(saga_id, 60) for saga_id in [*ids, "pause"]]
    assert [str(state.status) for state in ended] == ["COMPLETED", "ABORTED"] * 6 + ["COMPLETED"]
    effects = oracle.records(world.oracle)
    for number, saga_id in enumerate(ids):
        record = effects[saga_id]
        assert sorted(record.did) == ([1, 2] if number % 2 else [1, 2, 4])
        assert sorted(record.undid) == ([1, 2] if number % 2 else [])
    log = (world.oracle.parent / "stderr.log").read_text().splitlines()
    assert sum(f"-{old.now.pid}-" in line and "met format 2" in line for line in log) == 1


def test_services_of_the_former_release_take_part_in_a_graph(world: World, former: Release) -> None:
    world.start(workers=1, services=0)
    world.start(workers=0, services=1, release=former)
    client = SagaClient(world.server.broker())
    for number in range(8):
        client.begin_request(graph_of(f"g{number}", fails=bool(number % 2)))
        client.signal(f"g{number}", "go", {"by": "boss"}, 60)
    ended = [client.wait(f"g{number}", 60) for number in range(8)]
    assert [str(state.status) for state in ended] == ["COMPLETED", "ABORTED"] * 4
    effects = oracle.records(world.oracle)
    for number in range(8):
        record = effects[f"g{number}"]
        assert sorted(record.did) == ([1, 2] if number % 2 else [1, 2, 4])
        assert sorted(record.undid) == ([1, 2] if number % 2 else [])
    assert world.redis.xlen(ONLY.quarantine) == 0


# --- a newer release


def test_what_a_newer_release_has_begun_is_left_to_it_and_ends_as_it_should(world: World) -> None:
    world.start(workers=1, services=0, release=NEWER)
    for number in range(20):
        begin(world, f"n{number}", a_step("alpha"), a_step("beta"), a_step("gamma", "reject" if number % 2 else "ok"))
    begin(world, "due", a_step("nobody", timeout_ms=1, attempts=2, compensation=None))
    until(lambda: world.redis.zcard(ONLY.timers) == 21, what="the newer worker has begun them")
    world.end(world.workers[0], signal.SIGKILL)

    # A worker and services of this release meet all of it.
    begin(world, "unread", a_step("alpha"))
    before = hashes(world)
    world.start(workers=1)
    [worker] = world.workers
    until(lambda: sum(world.held_by(worker).values()) == 21, what="it has met 20 replies and a request")
    with world.feed(lambda: True, 20):
        pass
    until(lambda: world.redis.zcard(ONLY.ended) == 20, what="it goes on with the sagas that it knows")
    assert {saga_id: found for saga_id, found in hashes(world).items() if saga_id in before} == before
    assert world.redis.xlen(ONLY.quarantine) == 0
    assert sum(world.held_by(worker).values()) == 21

    # The newer release is started again.
    world.start(workers=1, services=0, release=NEWER)
    until(lambda: world.redis.zcard(ONLY.timers) == 0, what="it goes on with them")
    with newer():
        client = SagaClient(world.server.broker())
        ended = [client.get(f"n{number}") for number in range(20)]
        assert [state and str(state.status) for state in ended] == ["COMPLETED", "ABORTED"] * 10
        due = client.get("due")
    assert due is not None
    assert due.steps[0].attempt == 2
    effects = oracle.records(world.oracle)
    for number in range(20):
        record = effects[f"n{number}"]
        done = [1, 2] if number % 2 else [1, 2, 3]
        assert (record.did, record.undid) == (done, done[::-1] if number % 2 else [])
    log = (world.oracle.parent / "stderr.log").read_text().splitlines()
    assert sum(f"-{worker.now.pid}-" in line and "met format 9" in line for line in log) == 1


def test_a_newer_saga_is_refused_while_an_old_worker_lives_and_begins_once_it_is_gone(
    world: World, former: Release
) -> None:
    world.start(workers=1, services=1, release=NEWER)
    for release in (THIS, former):
        world.start(workers=1, services=0, release=release)
        old = world.workers[-1]
        name = until(partial(name_of, world, old), what="the old worker is heard")
        # Both releases answer the request: the former one takes it for malformed.
        answers = (answer(world, f"{release.name}-{number}") for number in itertools.count())
        refusal = next(found for found in answers if release is THIS or found.get("code") != Code.MALFORMED)
        assert refusal == {
            "type": "error",
            "code": Code.PRECONDITION_FAILED,
            "text": f"worker {name} does not know format 9: stop it or update it, then begin the saga again",
        }
        assert hashes(world) == {}
        world.end(old)
    assert answer(world, "taken")["status"] == "COMPLETED"


def test_a_newer_saga_begins_soon_after_the_last_old_worker_was_killed(world: World, former: Release) -> None:
    world.start(workers=1, services=1, release=NEWER)
    for release in (THIS, former):
        world.start(workers=1, services=0, release=release)
        old = world.workers[-1]
        until(partial(name_of, world, old), what="the old worker is heard")
        world.end(old, signal.SIGKILL)
    with takes_less_than(10.0):
        answers = (answer(world, f"n{number}") for number in itertools.count())
        assert next(found for found in answers if found["type"] != "error")["status"] == "COMPLETED"


def a_step(service: str, how: str = "ok", **options: Any) -> dict[str, Any]:
    return {"transaction": "Do", "service": service, "params": {"how": how, "undo": "ok"}} | options


def begin(world: World, saga_id: str, *steps: dict[str, Any]) -> None:
    """Ask for a saga of the newer format, as a client of that release does."""
    body = {"type": "saga_begin", "format": FORMAT, "saga_id": saga_id, "steps": steps}
    world.redis.xadd(ONLY.requests, {"body": json.dumps(body), "request_id": saga_id})


def answer(world: World, saga_id: str) -> dict[str, Any]:
    """Begin such a saga of one step. Returns how it ended, or why it was refused."""
    begin(world, saga_id, a_step("alpha"))

    def told() -> Any:
        events: Any = world.redis.xrevrange(ONLY.events, count=100)
        return [fields[b"body"] for _, fields in events if fields.get(b"request_id") == saga_id.encode()]

    body: dict[str, Any] = json.loads(until(told, what=f"{saga_id} is answered")[0])
    return body


def hashes(world: World) -> dict[str, Any]:
    """The hashes of all sagas."""
    found = [key.decode() for key in world.redis.scan_iter(ONLY.saga("*"))]
    return {ONLY.saga_id(key): world.redis.hgetall(key) for key in found}


def name_of(world: World, process: Process) -> str:
    """The name under which a worker is known, once it is alive; None before that."""
    known = heartbeat.processes(world.redis, KEYS)
    names = [one.name for one in known if one.is_alive and f"-{process.now.pid}-" in one.name]
    return names[0] if names else ""
