"""Workers and processes of services share the partitions out, on real servers."""

import itertools
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sagastream.broker.connection import Broker
from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaStatus
from sagastream.core.sharing import shares
from sagastream.metrics.serving import text
from sagastream.metrics.worker import WorkerMetrics
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store import heartbeat
from sagastream.store.keys import ORCHESTRATOR_GROUP
from sagastream.store.reach import ranges
from sagastream_bridge.inspection import doctor
from sagastream_bridge.inspection.doctor import Doctor
from support.faults import Process, Scale, World, world_of
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import divided, in_each
from support.waiting import takes_less_than, until
from support.worst import least_cpu_ms

pytestmark = pytest.mark.both_in_soak


class Crowd(Scene):
    """A store of 16 partitions, with as many workers and processes of a service as are asked for."""

    def __init__(self, broker: Broker) -> None:
        self.keys = divided(broker, 16)
        self.ids = in_each(self.keys)
        super().__init__(broker)
        self.workers = [self.worker]
        self.runners = [self.runner]

    def joined(self, *, workers: int, runners: int = 1) -> None:
        """Have so many, which know of each other."""
        self.workers += [self.another_worker() for _ in range(workers - 1)]
        self.runners += [self.another_runner() for _ in range(runners - 1)]
        for _ in range(2):
            for process in self.processes:
                hear(process)

    @property
    def processes(self) -> list[Orchestrator | ServiceRunner]:
        return [*self.workers, *self.runners]

    def numbers(self, process: Orchestrator | ServiceRunner) -> set[int]:
        """Of which partitions it reads new entries."""
        reader = process._inbox if isinstance(process, Orchestrator) else process._inbox.reader
        return {one.number for one in self.keys.partitions if any(name.startswith(one.base) for name in reader.mine)}

    def begin_in(self, numbers: set[int]) -> list[str]:
        """Begin a saga in each of these partitions."""
        for number in numbers:
            self.client.begin(self.ids[number], [do(1)])
        return [self.ids[number] for number in numbers]


def hear(process: Orchestrator | ServiceRunner) -> None:
    """Have it hear of the others, and choose its streams."""
    beat = process._services._heartbeat if isinstance(process, Orchestrator) else process._inbox._heartbeat
    beat._beat_at = 0.0
    for _ in range(2):  # one that was alone hears along with its reading
        process.turn(block_ms=1)


def show(crowd: Crowd, *names: str) -> None:
    """Have workers of these names seen in the group of the orchestrator."""
    pipeline = crowd.redis.pipeline(transaction=False)
    for name in names:
        pipeline.xgroup_createconsumer(crowd.keys.partitions[0].requests, ORCHESTRATOR_GROUP, name)
    pipeline.execute()


def fakes(names: Iterable[str], **changes: Any) -> list[str]:
    """Members of the heartbeat of workers that nobody runs."""
    return [
        json.dumps({"name": name, "kind": "worker", "formats": [1, 2]} | changes, separators=(",", ":"))
        for name in names
    ]


@pytest.fixture
def crowd(server: Server) -> Crowd:
    return Crowd(server.broker())


def test_workers_read_their_own_partitions_alone_and_services_their_own_first(crowd: Crowd) -> None:
    crowd.joined(workers=3, runners=2)
    of_workers = [crowd.numbers(worker) for worker in crowd.workers]
    assert sorted(map(len, of_workers)) == [5, 5, 6]
    assert set().union(*of_workers) == set(range(16))
    begun = crowd.begin_in(of_workers[1])
    crowd.workers[0].turn(block_ms=1)
    crowd.workers[2].turn(block_ms=1)
    assert not any(crowd.redis.exists(crowd.keys.saga(saga_id)) for saga_id in begun)
    crowd.turns_until(lambda: all(crowd.redis.exists(crowd.keys.saga(one)) for one in begun), crowd.workers[1])
    of_runners = [crowd.numbers(runner) for runner in crowd.runners]
    assert [len(numbers) for numbers in of_runners] == [8, 8]
    assert of_runners[0] | of_runners[1] == set(range(16))
    # Whoever has nothing to do of its own does what it finds elsewhere.

    def all_done() -> bool:
        crowd.runners[0].turn(block_ms=100)
        return len(crowd.effects.done) == len(begun)

    until(all_done, what="all are done")


def test_whoever_comes_gets_its_share_and_whoever_goes_gives_it_back(crowd: Crowd) -> None:
    crowd.joined(workers=2)
    first, second = crowd.workers
    assert crowd.numbers(first) | crowd.numbers(second) == set(range(16))
    assert not crowd.numbers(first) & crowd.numbers(second)
    second._inbox.leave()
    hear(first)
    assert crowd.numbers(first) == set(range(16))


def test_a_worker_that_finds_no_partition_for_itself_waits_and_does_not_spin(crowd: Crowd) -> None:
    spare, me = crowd.worker, crowd.worker.name.removeprefix("worker ")
    crowds = ([f"p{number}-{other}" for other in range(30)] for number in itertools.count())
    others = next(names for names in crowds if not shares([me, *names], 16, spares=True)[me])
    members = fakes(others)
    now: Any = crowd.redis.time()
    crowd.redis.zadd(crowd.keys.alive, dict.fromkeys(members, now[0] * 1000 + 500))
    hear(spare)
    show(crowd, *others)
    hear(spare)
    assert crowd.numbers(spare) == set()
    before: Any = crowd.redis.info("commandstats")["cmdstat_xreadgroup"]["calls"]
    began = time.monotonic()
    spare.turn(block_ms=200)
    assert time.monotonic() - began >= 0.15
    assert crowd.redis.info("commandstats")["cmdstat_xreadgroup"]["calls"] == before
    crowd.redis.zrem(crowd.keys.alive, *members)
    hear(spare)
    assert crowd.numbers(spare) == set(range(16))


def test_workers_that_nobody_runs_take_no_partition_from_those_that_run(crowd: Crowd) -> None:
    """As a service's user may write them. One has the name of a worker that was killed: its consumer is still there."""
    crowd.joined(workers=2)
    first, second = crowd.workers
    assert len(crowd.numbers(first)) == 8
    dead = second._services._heartbeat._member
    members = [*fakes(["fake-1", "fake-2"]), dead]
    began = time.monotonic()

    def heard_of_all() -> set[int]:
        now: Any = crowd.redis.time()
        crowd.redis.zadd(crowd.keys.alive, dict.fromkeys(members, now[0] * 1000 + now[1] // 1000))
        hear(first)
        return crowd.numbers(first)

    assert len(heard_of_all()) == 8  # the second one may still live
    with takes_less_than(2.0):
        until(lambda: heard_of_all() == set(range(16)), what="it reads what the dead one has left")
    assert time.monotonic() - began > 0.5
    (told,) = [one for one in Doctor(crowd.broker).examine() if "that read nothing" in one.text]
    assert (told.level, told.about) == ("warning", "workers")
    assert told.text.startswith("workers are heard that read nothing, so nobody runs them: fake-1, fake-2; ")
    assert not [one for one in Doctor(crowd.broker).examine() if "prefers" in one.text]


def test_very_many_processes_that_nobody_runs_cost_the_others_little(crowd: Crowd) -> None:
    """Ten thousand workers and as many processes of the service, with new names each time."""
    crowd.joined(workers=1, runners=1)
    for world in range(2):
        names = [f"fake-{world}-{number}" for number in range(5000)]
        members = [*fakes(names), *fakes(names, kind="service", service="work", commands=["Do", "DoForGood", "Undo"])]
        now: Any = crowd.redis.time()
        crowd.redis.delete(crowd.keys.alive)
        crowd.redis.zadd(crowd.keys.alive, dict.fromkeys(members, now[0] * 1000 + 500))
        for process in crowd.processes:
            assert least_cpu_ms(partial(spent, hear, process), enough_ms=40) < 50
            assert crowd.numbers(process) == set(range(16))
    assert crowd.play(crowd.begin_in({3})[0]).status is SagaStatus.COMPLETED


def spent(call: Callable[[Orchestrator | ServiceRunner], object], process: Orchestrator | ServiceRunner) -> float:
    """The CPU time of a call, in milliseconds."""
    began_s = time.process_time()
    call(process)
    return (time.process_time() - began_s) * 1000


def test_where_nobody_can_be_heard_each_prefers_all(crowd: Crowd) -> None:
    crowd.joined(workers=2)
    crowd.redis.delete(crowd.keys.alive)
    crowd.redis.set(crowd.keys.alive, "x")
    for worker in crowd.workers:
        hear(worker)
        assert crowd.numbers(worker) == set(range(16))


def test_two_that_both_take_a_partition_for_theirs_do_no_harm(crowd: Crowd) -> None:
    """Each has only heard of itself."""
    crowd.joined(workers=2)
    for worker in crowd.workers:
        worker._services._heartbeat.preference.forget()
        worker._services._heartbeat._beat_at = time.monotonic() + 3600
    ids = [f"s{number}" for number in range(64)]
    for saga_id in ids:
        crowd.client.begin(saga_id, [do(1), do(2)])
    chance = random.Random(17)

    def all_ended() -> bool:
        chance.choice(crowd.workers).turn(block_ms=1)
        crowd.runner.turn(block_ms=1)
        return sum(crowd.redis.zcard(one.ended) for one in crowd.keys.partitions) == len(ids)

    until(all_ended, what="all have ended")
    assert Counter(crowd.effects.done) == {f"{one}/{step}/transaction": 1 for one in ids for step in (1, 2)}


def test_a_lost_comparison_is_counted_and_no_other_saga_of_the_call_is(server: Server) -> None:
    """So a count of none means that none was lost. One call writes the sagas of all partitions."""
    crowd, metrics = Crowd(server.broker()), WorkerMetrics()
    crowd.worker = worker = Orchestrator(crowd.broker, crowd.stop, observer=metrics)
    other = crowd.another_worker()
    contested, *rest = crowd.ids
    for saga_id in crowd.ids:
        crowd.client.begin(saga_id, [do(1)])
    crowd.turns_until(lambda: all(crowd.client.get(saga_id) is not None for saga_id in crowd.ids))

    def all_done() -> bool:
        crowd.runner.turn(block_ms=1)
        return len(crowd.effects.done) == 16

    until(all_done, what="all are done")
    # The worker remembers the saga as it left it; meanwhile another worker, which takes the partition for its own,
    # changes it.
    interventions = crowd.keys.of(contested).interventions
    crowd.redis.xadd(interventions, {"body": f'{{"type":"saga_cancel","saga_id":"{contested}","reason":"no"}}'})
    assert other._inbox.read(1, lambda _: {interventions: 1})
    other._inbox.recover()
    crowd.turns_until(lambda: bool(crowd.redis.hget(crowd.keys.saga(contested), "cancelling")), other)
    lost = "sagastream_comparisons_lost_total"
    assert f"\n{lost} 0" in text(metrics.samples)
    crowd.turns_until(lambda: sum(crowd.redis.zcard(one.ended) for one in crowd.keys.partitions) == len(rest), worker)
    assert f"\n{lost} 1" in text(metrics.samples)
    assert crowd.play(contested).status == "ABORTED"


def test_a_service_of_one_release_keeps_no_partition_from_another_that_has_more(crowd: Crowd) -> None:
    crowd.joined(workers=1, runners=2)
    newer, older = crowd.runners
    assert len(crowd.numbers(newer)) == 8
    beat = older._inbox._heartbeat
    crowd.redis.zrem(crowd.keys.alive, beat._member)
    beat._commands = ("Do",)
    beat.join(crowd.keys)
    hear(older)
    hear(newer)
    assert crowd.numbers(newer) == set(range(16))


def test_doctor_says_who_prefers_which(crowd: Crowd) -> None:
    crowd.joined(workers=1, runners=1)
    assert not [finding for finding in Doctor(crowd.broker).examine() if "prefer" in finding.text]
    crowd.joined(workers=2, runners=2)
    found = [finding for finding in Doctor(crowd.broker).examine() if "prefer" in finding.text]
    assert [finding.about for finding in found] == ["workers", "service work"]
    for worker in crowd.workers:
        assert worker.name.removeprefix("worker ") in found[0].text


def test_doctor_tells_of_requests_that_those_who_prefer_their_partitions_do_not_read(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_UNREAD_MS", -1)
    crowd.joined(workers=2)
    first, second = crowd.workers

    def told() -> list[str]:
        return [one.text for one in Doctor(crowd.broker).examine() if "were not read for" in one.text]

    assert told() == []
    crowd.begin_in(numbers := crowd.numbers(second))
    first.turn(block_ms=1)
    (text,) = told()
    assert text.startswith(f"requests in partitions {ranges(numbers)} were not read for ")
    assert "the workers that prefer these partitions do not run" in text
    crowd.turns_until(lambda: told() == [], second)


# --- real processes


@pytest.fixture
def world(tmp_path: Path, commands: Commands) -> Iterator[World]:
    with world_of(Scale(sagas=150, factor=1), tmp_path, commands, partitions=16) as made:
        yield made


def owned(world: World, process: Process) -> list[int]:
    """The numbers of the partitions of a worker, as all that are alive see it."""
    processes = heartbeat.processes(world.redis, world.keys)
    mark = f"-{process.now.pid}-"
    found = heartbeat.preferred(processes, 16)
    return next((sorted(numbers) for name, numbers in found.items() if mark in name), [])


def all_share(world: World) -> bool:
    return all(len(owned(world, worker)) in (5, 6) for worker in world.workers)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_what_a_dead_worker_left_unread_is_taken_within_two_seconds(world: World, number: int) -> None:
    world.start(workers=3, services=1)
    until(lambda: all_share(world), what="the workers share")
    victim = world.workers[0]
    numbers = owned(world, victim)
    ids = in_each(world.keys, "left")
    victim.now.send_signal(number)
    steps: list[Any] = [{"transaction": "Do", "service": "nobody", "params": {}, "compensation": None}]

    def is_begun_or_was_read(one: int) -> bool:
        """If it was stopped while it waited, the server gives it one more. That is held for its lease."""
        requests = world.keys.partitions[one].requests
        held: Any = world.redis.xpending(requests, ORCHESTRATOR_GROUP)
        return held["pending"] == 1 or bool(world.redis.exists(world.keys.saga(ids[one])))

    with takes_less_than(2.0):
        client = SagaClient(world.server.broker())
        for one in numbers:
            client.begin(ids[one], steps)
        until(lambda: all(map(is_begun_or_was_read, numbers)), what="all are begun")
    until(lambda: all(world.redis.exists(world.keys.saga(ids[one])) for one in numbers), what="all the rest, too")
    if number == signal.SIGSTOP:
        victim.now.send_signal(signal.SIGCONT)
        until(lambda: all_share(world), what="it shares again")


@pytest.mark.slow
def test_no_saga_is_harmed_by_kills_and_stops_in_a_store_of_sixteen_partitions(world: World) -> None:
    """Workers and processes of services are killed, or stopped for so long that others take their partitions, and go
    on: then two take the same partitions for theirs."""
    chance = random.Random(20261129)
    world.start(workers=3, services=2)

    def kill_or_stop() -> None:
        faults = world.figures["kills"] + world.figures["stops"]
        # Once there were as many as are wanted, no more sagas begin, and soon nobody holds anything.
        if world.figures["kills"] < 8 or faults >= 10 * world.factor:
            world.kill_one_of([*world.workers, *world.services], chance)
        else:
            sleeper = chance.choice(world.workers)
            with world.stopped_while_it_holds_something(sleeper):
                until(lambda: not owned(world, sleeper), what="others have taken its partitions")

    world.run(kill_or_stop, every_s=0.2, times=10)
    world.verdict()
    assert world.figures["stops"] >= 2
    assert world.figures["entries held by the killed"] > 0
    assert min(world.figures["COMPLETED"], world.figures["ABORTED"]) > 10
