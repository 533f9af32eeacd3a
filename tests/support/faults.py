"""Faults on real processes: workers and services run sagas, the test does something to them, then comes the verdict.

A `World` has a server, processes of workers and services, and a feeder. The feeder begins sagas all the time, as a
client would: if a saga was refused or lost, it begins it again with the same id. The services write down their effects
outside the broker (support/oracle.py). The verdict compares these with what the sagas say.
"""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import redis

from sagastream.broker.connection import Broker, connect
from sagastream.broker.failures import is_outage
from sagastream.client.blocking import SagaClient
from sagastream.client.requests import StepRequest
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import StepStatus
from sagastream.errors import StoreFull
from sagastream.store import keys
from sagastream.store.quarantine import Quarantine
from support import oracle
from support.processes import Commands
from support.releases import THIS, Release
from support.servers import OwnServer, start_server
from support.stores import KEYS, ONLY, divided
from support.waiting import until

#: How many sagas may be under way at once: enough that there always are some, and so few that none waits for long.
IN_FLIGHT: Final = 32
#: The lease of the services. No handler takes that long, and no process is kept waiting for so long by a busy machine.
SERVICE_LEASE_MS: Final = 1_500
#: How many of the killed may still be starting when the next fault comes. If a machine is so busy that starting takes
#: longer than the time between two faults, nobody would ever work.
STARTING: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One saga to begin, and how it ends if every message arrives in time."""

    saga_id: str
    steps: list[StepRequest]
    expected: SagaStatus


def plan(number: int, *, late: float = 0.0, **options: Any) -> Plan:
    """The saga with this number: always the same one. `options` go into every step. `late`: with which probability a
    step that may fail is one whose first attempt comes late."""
    chance = random.Random(number)
    count = chance.randint(1, 4)
    pivot = chance.randint(1, count + 2)  # beyond the last step: none fails
    fails_at = chance.randint(1, min(pivot, count)) if chance.random() < 0.4 else None
    steps: list[Any] = []
    for at in range(1, count + 1):
        working = (*oracle.WORKING, "ok", "ok", "ok", "refuse once") if at > pivot else (*oracle.WORKING, "ok", "ok")
        how = chance.choice(oracle.FAILING if at == fails_at else working)
        if late and at <= pivot and chance.random() < late:
            how = oracle.LATE
        kind = "compensatable" if at < pivot else "pivot" if at == pivot else "retriable"
        params = {"how": how, "undo": chance.choice((*oracle.UNDOING, "ok", "ok"))}
        step = {"transaction": "Do", "service": chance.choice(oracle.NAMES), "params": params, "kind": kind}
        # If a command always raises, the service tries it three times each time; so one more attempt is enough.
        attempts = {"attempts": 2} if how in oracle.FAILING else {}
        steps.append(step | {"backoff_ms": 20} | attempts | options)
    expected = SagaStatus.ABORTED if fails_at is not None else SagaStatus.COMPLETED
    return Plan(saga_id=f"s{number}", steps=steps, expected=expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How long a run is."""

    sagas: int  # at least
    factor: int  # how many times as many faults as in a short run


@dataclass(slots=True)
class Process:
    """A worker or a service: how it is started, and its present process."""

    arguments: tuple[str, ...]
    release: Release
    now: "subprocess.Popen[bytes]"


class World:
    def __init__(self, server: OwnServer, commands: Commands, scale: "Scale", *, partitions: int = 1) -> None:
        self.server = server
        self.keys = KEYS if partitions == 1 else divided(server.broker(), partitions)
        self.sagas = scale.sagas  # how many are begun at least
        self.factor = scale.factor
        self.redis = connect(server.url)
        self.url = server.url  # where processes and the feeder find the server
        self.service_url = server.url  # … and services
        self.service_redis = self.redis
        self.workers: list[Process] = []
        self.services: list[Process] = []
        self.figures: Counter[str] = Counter()  # what was done to them
        self.expect_as_planned = True  # … and not only COMPLETED or ABORTED, whichever comes about
        self.store_forgets = False  # sagas may say less than what was done, never more
        self.options: dict[str, Any] = {}  # of every step
        self.late = 0.0  # how many steps are late, of those that may fail
        self.nobody_begins = threading.Lock()  # held while nothing may begin
        self._commands = commands
        self.oracle = commands.folder / "oracle.sqlite"
        self._plans: dict[str, Plan] = {}
        self._starting: list[Process] = []  # that were killed, and may not be at work again yet
        oracle.prepare(self.oracle)

    # --- processes

    def start(
        self, workers: int = 2, services: int = 1, release: Release = THIS, module: str = "support.oracle"
    ) -> None:
        """Start so many workers, and so many processes of each service of the module."""
        self.workers += [self._process(release, "worker") for _ in range(workers)]
        self.services += [
            self._process(release, "service", f"{module}:{name}") for name in oracle.NAMES for _ in range(services)
        ]

    def end(self, process: Process, number: int = signal.SIGTERM) -> None:
        """End the process, and start no other in its place."""
        process.now.send_signal(number)
        process.now.wait()
        self._commands.running.remove(process.now)
        (self.workers if process in self.workers else self.services).remove(process)

    def _process(self, release: Release, *arguments: str) -> Process:
        return Process(arguments, release, self._spawn(release, arguments))

    def _spawn(self, release: Release, arguments: tuple[str, ...]) -> "subprocess.Popen[bytes]":
        url = self.url if arguments[0] == "worker" else self.service_url
        env = {
            "REDIS_URL": url,
            "PYTHONPATH": os.pathsep.join(map(str, (*release.path, Path(__file__).parents[1]))),
            "ORACLE_FILE": str(self.oracle),
            "ORACLE_LEASE_MS": str(SERVICE_LEASE_MS),
        }
        log = (self._commands.folder / "stderr.log").open("ab")
        with log:
            devnull = subprocess.DEVNULL
            return self._commands.start(
                *arguments, program=release.program, env=env, stdin=devnull, stdout=devnull, stderr=log
            )

    def kill(self, process: Process) -> None:
        """SIGKILL the process, count what it held, and start another in its place."""
        process.now.kill()
        process.now.wait()
        self.figures["kills"] += 1
        self.figures["entries held by the killed"] += sum(self.held_by(process).values())
        self._commands.running.remove(process.now)
        process.now = self._spawn(process.release, process.arguments)
        if process not in self._starting:
            self._starting.append(process)

    def kill_one_of(self, processes: Sequence[Process], chance: random.Random) -> None:
        """SIGKILL one of these. Turns are short, so one in twelve is killed inside of one, and not only by chance."""
        victim = chance.choice(processes)
        if self.figures["kills"] % 12:
            self.kill(victim)
        else:
            with self.stopped_while_it_holds_something(victim):
                self.kill(victim)

    def replace(self, process: Process) -> None:
        """Tell a service's process to end, as a deploy does, and start another in its place once it has."""
        # Until then a signal ends it at once.
        until(lambda: self._is_at_work(process), what="a process that was just started is at work")
        process.now.send_signal(signal.SIGTERM)
        assert process.now.wait(60) == 0, self.tail()
        self.figures["deploys"] += 1
        self._commands.running.remove(process.now)
        process.now = self._spawn(process.release, process.arguments)

    def held_by(self, process: Process) -> dict[str, int]:
        """How many entries a process has taken and not answered, by stream."""
        return {stream: sum(one["pending"] for one in found) for stream, found in self._consumers(process)}

    def _is_at_work(self, process: Process) -> bool:
        """Whether it reads, or has ended."""
        return process.now.poll() is not None or any(found for _, found in self._consumers(process))

    def _consumers(self, process: Process) -> Iterator[tuple[str, list[Any]]]:
        """The streams that it reads, and what each knows of it as a consumer."""
        if process.arguments[0] == "worker":
            groups = [(stream, keys.ORCHESTRATOR_GROUP) for stream in self._read_by_workers()]
        else:
            name = process.arguments[1].partition(":")[2]
            groups = [(partition.commands(name), name) for partition in self.keys.partitions]
        for stream, group in groups:
            consumers: Any = []
            with contextlib.suppress(redis.ResponseError):  # nobody has made the group yet
                consumers = self.redis.xinfo_consumers(stream, group)
            yield stream, [one for one in consumers if f"-{process.now.pid}-".encode() in one["name"]]

    def _most_are_at_work(self) -> bool:
        self._starting = [process for process in self._starting if not self._is_at_work(process)]
        return len(self._starting) <= STARTING

    @contextlib.contextmanager
    def stopped_while_it_holds_something(self, process: Process) -> Iterator[None]:
        """Within this, a process is stopped at a moment when it has taken entries and not answered them, and when no
        other process has to wait for it, since it has begun a transaction in the oracle."""

        def is_stopped() -> bool:
            self.assert_all_live()
            if not sum(self.held_by(process).values()):
                return False  # let it run: one that is stopped again and again comes to nothing on a busy machine
            process.now.send_signal(signal.SIGSTOP)
            if sum(self.held_by(process).values()) and oracle.is_free(self.oracle):
                return True
            process.now.send_signal(signal.SIGCONT)
            return False

        until(is_stopped, what="a process was stopped while it held entries")
        self.figures["stops"] += 1
        self.figures["entries held by the stopped"] += sum(self.held_by(process).values())
        try:
            yield
        finally:
            process.now.send_signal(signal.SIGCONT)

    def assert_all_live(self) -> None:
        for process in (*self.workers, *self.services):
            assert process.now.poll() is None, f"{process.arguments} has ended\n{self.tail()}"

    # --- sagas

    def feed(self, enough: Callable[[], bool], sagas: int | None = None) -> "Feeder":
        """Begin sagas, a few at a time, until there are as many as wanted (which may grow) and `enough` says so."""
        return Feeder(self, enough, self.sagas if sagas is None else sagas)

    def run(self, fault: Callable[[], object], *, every_s: float, times: int) -> None:
        """Begin sagas. Meanwhile let the fault happen until all have begun, at least `times` times (more often in a
        long run)."""
        done = 0
        give_up = time.monotonic() + 240 * self.factor
        with self.feed(lambda: done >= times * self.factor) as feeder:
            while feeder.is_busy:
                self.assert_all_live()
                assert time.monotonic() < give_up, f"too few sagas get on\n{self.tail()}"
                fault()
                done += 1
                feeder.wait(every_s)
                until(self._most_are_at_work, what="those that were killed are started again")

    def begin(self, number: int, client: SagaClient, stop: threading.Event) -> None:
        """Begin a saga as a careful client does: again and again, with the same id, until the broker has accepted
        it."""
        wanted = plan(number, late=self.late, **self.options)
        while not stop.is_set():
            try:
                with self.nobody_begins:
                    client.begin(wanted.saga_id, wanted.steps)
            except (redis.RedisError, StoreFull) as error:
                if isinstance(error, redis.RedisError) and not is_outage(error):
                    raise
                self.figures["begins sent again"] += 1
                stop.wait(0.02)
            else:
                self._plans[wanted.saga_id] = wanted
                return

    def begin_again(self, client: SagaClient) -> None:
        """Begin those sagas again that the store has forgotten."""
        for wanted in list(self._plans.values()):
            if client.get(wanted.saga_id) is None:
                client.begin(wanted.saga_id, wanted.steps)
                self.figures["forgotten and begun again"] += 1

    def may_end_otherwise(self) -> None:
        """Sagas that are planned to complete may also be aborted, because their attempts may be used up."""
        self.expect_as_planned = False

    def accepted(self) -> int:
        return len(self._plans)

    def settle(self, timeout_s: float = 200.0) -> None:
        """Wait until every saga has ended or is parked, and nothing is left to be read."""

        def is_settled() -> bool:
            self.assert_all_live()
            moving = sum(self.redis.zcount(one.timers, "-inf", "(+inf") for one in self.keys.partitions)
            stores = (self.redis, self.service_redis)
            return not moving and not any(store.xlen(stream) for store in stores for stream in self.streams())

        try:
            until(is_settled, what="all sagas settle", timeout_s=timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None

    def streams(self) -> list[str]:
        sent = [partition.commands(name) for partition in self.keys.partitions for name in oracle.NAMES]
        return [*self._read_by_workers(), *sent]

    def _read_by_workers(self) -> list[str]:
        found: list[str] = []
        for partition in self.keys.partitions:
            found += [partition.requests, partition.interventions, *map(partition.replies, oracle.NAMES)]
        return found

    def tail(self) -> str:
        """The sagas that do not move, and the last output of the processes: for the message of a failure."""
        waiting: Any = [self.redis.zrange(one.timers, 0, 4, withscores=True) for one in self.keys.partitions]
        lengths = {stream: self.redis.xlen(stream) for stream in self.streams()}
        groups = [self.redis.xinfo_groups(stream) for stream, length in lengths.items() if length]
        log = (self._commands.folder / "stderr.log").read_text(errors="replace")
        return f"timers {waiting}\nstreams {lengths}, {groups}\n{log[-4000:]}"

    def retry_parked(self, client: SagaClient) -> None:
        """Retry every parked saga, as an operator would."""
        parked: Any = [self.redis.zrangebyscore(one.timers, "+inf", "+inf") for one in self.keys.partitions]
        for saga_id in itertools.chain.from_iterable(parked):
            client.retry(saga_id.decode(), "the fault is over", 60)
            self.figures["parked and retried"] += 1

    # --- the verdict

    def verdict(self, *, unfit: tuple[str, ...] = ()) -> None:
        """Every saga that was accepted has ended, and what it says is what happened; nothing is left over.

        `unfit`: texts in the reasons of those quarantined replies that the fault explains.
        """
        self.settle()
        found = oracle.records(self.oracle)
        assert set(found) <= set(self._plans), "effects of sagas that nobody was told are accepted"
        pipeline = self.redis.pipeline(transaction=False)
        for saga_id in self._plans:
            pipeline.pttl(self.keys.saga(saga_id))
        lives = dict(zip(self._plans, pipeline.execute(), strict=True))
        client = SagaClient(self.server.broker())
        for saga_id, wanted in self._plans.items():
            state = client.get(saga_id)
            assert state is not None, f"{saga_id} was accepted, and is not there"
            assert state.ended, f"{saga_id} has not ended: {state}"
            assert lives[saga_id] > 0, f"{saga_id} has ended, and is kept forever"
            self._judge(wanted, state, found.get(saga_id, oracle.Record()))
            self.figures[str(state.status)] += 1
        self._judge_store(unfit)
        self.figures["sagas"] = len(self._plans)
        self.figures["handlers called again"] = sum(
            sum(record.calls.values()) - len(record.calls) for record in found.values()
        )

    def _judge(self, wanted: Plan, state: SagaState, record: oracle.Record) -> None:
        told = f"{state.saga_id} {state.status}, {record}, {state}"
        if self.expect_as_planned:
            assert state.status is wanted.expected, told
        assert len(record.did) == len(set(record.did)), f"an effect was there twice: {told}"
        assert record.did == sorted(record.did), f"steps out of order: {told}"
        if state.status is SagaStatus.COMPLETED:
            numbers = list(range(1, len(state.steps) + 1))
            assert record.did == numbers, told
            assert record.effects == set(numbers), told
            assert record.undid == [], told
            assert all(step.status is StepStatus.COMPLETED for step in state.steps), told
        else:
            assert record.effects == set(), f"an effect remains: {told}"
            assert record.undid == record.did[::-1], f"not undone once each, in reverse order: {told}"
            assert not any(step.may_have_effect for step in state.steps), told
            undone = [n for n, step in enumerate(state.steps, 1) if step.status is StepStatus.COMPENSATED]
            assert self.store_forgets or set(record.did) <= set(undone), told
            assert list(state.compensating_steps) == undone[::-1], told

    def _judge_store(self, unfit: tuple[str, ...]) -> None:
        """No entry waits, none is held, and the indexes name exactly the sagas that exist."""
        for partition in self.keys.partitions:
            waiting: Any = self.redis.zrange(partition.timers, 0, -1, withscores=True)
            assert not waiting, waiting
            ids = {saga_id.encode() for saga_id in self._plans if self.keys.of(saga_id) is partition}
            ended: Any = self.redis.zrange(partition.ended, 0, -1)
            assert set(ended) == ids, set(ended) ^ ids
            prefix = partition.saga("").encode()
            there = {key.removeprefix(prefix) for key in self.redis.scan_iter(prefix + b"*", count=1000)}
            assert there == ids, there ^ ids
        for store in (self.redis, self.service_redis):
            for stream in self.streams():
                assert store.xlen(stream) == 0, stream
                groups: Any = store.xinfo_groups(stream) if store.exists(stream) else []
                assert [group["pending"] for group in groups] in ([], [0]), (stream, groups)
        strange = list(Quarantine(self.redis, self.keys).newest_first())
        others = [message for message in strange if not any(text in message.reason for text in unfit)]
        assert not others, others
        self.figures["replies quarantined"] = len(strange)

    def close(self) -> None:
        for process in (*self.workers, *self.services):
            process.now.kill()  # other tests show that they end in order
        self.redis.close()
        self.service_redis.close()

    def through(self, url: str) -> None:
        """Let all processes and the feeder reach the server through this address."""
        self.url = self.service_url = url

    def takeovers(self) -> int:
        """How often the services have counted that a command was taken over from a process that did not answer it."""
        total = 0
        for key in self.redis.scan_iter("saga:{*}:done:*"):
            record: Any = self.redis.hgetall(key)
            total += sum(int(value) for name, value in record.items() if name.endswith(b"/takeovers"))
        return total


@contextlib.contextmanager
def world_of(
    scale: Scale, folder: Path, commands: Commands, *, kind: str = "valkey", partitions: int = 1
) -> Iterator[World]:
    """A world on a server of its own, in this folder. All of it has ended afterwards."""
    server = start_server(kind, folder, OwnServer)
    try:
        made = World(server, commands, scale, partitions=partitions)
        yield made
        made.close()
    finally:
        commands.end()
        server.stop()


class Feeder:
    """Begins sagas in a thread of its own."""

    def __init__(self, world: World, enough: Callable[[], bool], sagas: int) -> None:
        self._world = world
        self._sagas = sagas
        self._enough = enough
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    @property
    def is_busy(self) -> bool:
        return not self._ready.is_set()

    def wait(self, timeout_s: float) -> None:
        """Wait this long, or until all have begun."""
        self._ready.wait(timeout_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stop.set()
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            broker = Broker(self._world.url)
            with contextlib.closing(broker):
                self._feed(SagaClient(broker), broker.client)
        except BaseException as error:  # noqa: BLE001 - raised again where the feeder is left
            self._error = error
        finally:
            self._ready.set()

    def _feed(self, client: SagaClient, store: redis.Redis) -> None:
        while not self._stop.is_set():
            begun = self._world.accepted()
            if begun >= self._sagas and self._enough():
                return
            with contextlib.suppress(redis.RedisError):  # the feeder gets the error when it next begins a saga
                partitions = self._world.keys.partitions
                ended = sum(store.zcard(one.ended) for one in partitions)
                parked = sum(store.zcount(one.timers, "+inf", "+inf") for one in partitions)
                if begun - ended - parked >= IN_FLIGHT:
                    self._stop.wait(0.005)
                    continue
            self._world.begin(begun, client, self._stop)


class Relay:
    """Carries commands and replies between two halves of a world, workers here and services there. On the way it does
    to them what a network and a careless retry can do."""

    def __init__(self, world: World, mangle: Callable[[list[Any], str], list[Any]]) -> None:
        """`mangle`: gets some entries of `commands` or `replies`, and returns those that are delivered."""
        world.service_url = world.server.url + "?db=1"
        self._near = connect(world.server.url)
        self._far = world.service_redis = connect(world.service_url)
        self._mangle = mangle
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._near.close()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for name in oracle.NAMES:  # what services publish: the compensation of each command; it is written once
                    published: Any = self._far.hgetall(KEYS.published(name))
                    if published:
                        self._near.hset(KEYS.published(name), mapping=published)
                moved = self._move(self._near, self._far, list(map(ONLY.commands, oracle.NAMES)), "commands")
                moved += self._move(self._far, self._near, list(map(ONLY.replies, oracle.NAMES)), "replies")
                self._stop.wait(0.0 if moved else 0.005)
        except BaseException as error:  # noqa: BLE001 - raised again where the relay is left
            self._error = error

    def _move(self, source: redis.Redis, target: redis.Redis, streams: list[str], what: str) -> int:
        wanted: dict[Any, Any] = dict.fromkeys(streams, "0")
        answer: Any = source.xread(wanted, count=100)
        entries = [(stream, entry_id, fields) for stream, page in answer or () for entry_id, fields in page]
        pipeline = target.pipeline(transaction=False)
        for stream, _, fields in self._mangle(entries, what):
            pipeline.xadd(stream, fields)
        pipeline.execute()
        for stream, entry_id, _ in entries:
            source.xdel(stream, entry_id)
        return len(entries)


def errors_of(client: redis.Redis, code: str) -> int:
    """How many errors of this code the server has answered."""
    stats: Any = client.info("errorstats")
    counted = stats.get(f"errorstat_{code}", 0)
    return int(counted["count"] if isinstance(counted, dict) else str(counted or "count=0").removeprefix("count="))
