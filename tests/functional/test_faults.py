"""Faults in workers, services, messages, connections and the server: every accepted saga still ends as it should, its
effects are there once or not at all, and nothing is left over.

Short runs belong to the suite. Long ones (`pytest -m soak tests/functional/test_faults.py`) are the same tests with
SAGASTREAM_SOAK_SAGAS sagas each, by default 3000. `--junitxml` writes down what was done to how many sagas.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from sagastream.client.blocking import SagaClient
from sagastream.store import keys
from support.faults import Relay, Scale, World, errors_of, world_of
from support.processes import Commands
from support.proxy import CuttingProxy
from support.servers import KINDS
from support.stores import ONLY
from support.waiting import until

SHORT: Final = Scale(sagas=60, factor=1)
_SOAK_SAGAS: Final = int(os.environ.get("SAGASTREAM_SOAK_SAGAS", "3000"))
LONG: Final = Scale(sagas=_SOAK_SAGAS, factor=max(1, _SOAK_SAGAS // 100))


pytestmark = pytest.mark.slow


def _each(short_on: tuple[str, ...], partitions: int = 1) -> pytest.MarkDecorator:
    """Parameters for `world`: short runs on these servers, long runs on both. `partitions`: of the store."""
    needs = {"valkey": (), "redis": (pytest.mark.redis,)}
    short = [pytest.param((name, SHORT, partitions), id=name, marks=needs[name]) for name in short_on]
    long = [
        pytest.param((name, LONG, partitions), id=f"{name}-long", marks=(*needs[name], pytest.mark.soak))
        for name in KINDS
    ]
    return pytest.mark.parametrize("world", short + long, indirect=True)


#: Why a reply is quarantined that came after its step was given up.
TOO_LATE: Final = "too late"

#: Tests that depend on how the server does things run on both servers, even the short ones.
on_both = _each(("valkey", "redis"))
on_valkey = _each(("valkey",))


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, commands: Commands) -> Iterator[World]:
    name, scale, partitions = request.param
    with world_of(scale, tmp_path, commands, kind=name, partitions=partitions) as made:
        began = time.monotonic()
        yield made
        seconds = round(time.monotonic() - began, 1)
        request.node.user_properties.extend([*made.figures.items(), ("seconds", seconds)])


@pytest.fixture
def chance() -> random.Random:
    return random.Random(20240607)


# --- processes


@on_valkey
def test_workers_are_killed_every_200_ms(world: World, chance: random.Random) -> None:
    world.start(workers=3)
    world.run(lambda: world.kill_one_of(world.workers, chance), every_s=0.2, times=12)
    world.verdict()
    assert world.figures["kills"] >= 12
    assert world.figures["entries held by the killed"] > 0


@on_both
def test_services_are_killed_every_200_ms(world: World, chance: random.Random) -> None:
    world.start(services=2)
    world.run(lambda: world.kill_one_of(world.services, chance), every_s=0.2, times=12)
    world.verdict()
    assert world.figures["kills"] >= 12
    assert world.figures["entries held by the killed"] > 0
    world.figures["commands taken over"] = world.takeovers()
    assert world.figures["commands taken over"] > 0


@on_valkey
def test_workers_sleep_beyond_their_lease_and_wake_up_as_if_nothing_was(world: World, chance: random.Random) -> None:
    world.start(workers=3)

    def stop_one() -> None:
        sleeper = chance.choice(world.workers)
        with world.stopped_while_it_holds_something(sleeper):
            until(lambda: not sum(world.held_by(sleeper).values()), what="others have taken over what it held")

    world.run(stop_one, every_s=0.1, times=1)
    world.verdict()
    assert world.figures["entries held by the stopped"] > 0


@on_valkey
def test_services_sleep_beyond_their_lease_and_wake_up_as_if_nothing_was(world: World, chance: random.Random) -> None:
    world.start(services=2)

    def stop_one() -> None:
        sleeper = chance.choice(world.services)
        with world.stopped_while_it_holds_something(sleeper):
            until(lambda: not sum(world.held_by(sleeper).values()), what="others have taken over what it held")

    world.run(stop_one, every_s=0.1, times=3)
    world.verdict()
    assert world.figures["stops"] >= 3
    world.figures["commands taken over"] = world.takeovers()
    assert world.figures["commands taken over"] > 0


@on_valkey
def test_services_are_told_to_end_every_200_ms(world: World, chance: random.Random) -> None:
    world.start(services=2)
    world.run(lambda: world.replace(chance.choice(world.services)), every_s=0.2, times=12)
    world.verdict()
    assert world.figures["deploys"] >= 12


@on_valkey
def test_services_sleep_beyond_their_lease_and_are_told_to_end_when_they_wake_up(
    world: World, chance: random.Random
) -> None:
    world.start(services=2)

    def stop_one() -> None:
        sleeper = chance.choice(world.services)
        with world.stopped_while_it_holds_something(sleeper):
            until(lambda: not sum(world.held_by(sleeper).values()), what="others have taken over what it held")
            sleeper.now.send_signal(signal.SIGTERM)
        world.replace(sleeper)

    world.run(stop_one, every_s=0.1, times=3)
    world.verdict()
    assert world.figures["deploys"] >= 3
    world.figures["commands taken over"] = world.takeovers()
    assert world.figures["commands taken over"] > 0


@_each(("valkey",), partitions=3)
def test_all_processes_are_killed_stopped_and_told_to_end_while_steps_time_out(
    world: World, chance: random.Random
) -> None:
    """Attempts come to their end after others have been rejected, amid the undo of earlier steps."""
    world.options = {"timeout_ms": 400, "attempts": 4, "compensation_attempts": 6, "backoff_ms": 20}
    world.late = 0.2
    world.may_end_otherwise()
    world.start(workers=2, services=2)

    def any_fault() -> None:
        sleeper = chance.choice([*world.workers, *world.services])
        sleeper.now.send_signal(signal.SIGSTOP)
        world.figures["stops"] += 1
        others = [process for process in (*world.workers, *world.services) if process is not sleeper]
        world.kill(chance.choice(others))
        served = [process for process in world.services if process is not sleeper]
        world.replace(chance.choice(served))  # it takes longer than a lease
        sleeper.now.send_signal(signal.SIGCONT)

    world.run(any_fault, every_s=0.2, times=6)
    world.settle()
    world.retry_parked(SagaClient(world.server.broker()))
    world.verdict()
    world.figures["commands taken over"] = world.takeovers()
    assert world.figures["commands taken over"] > 0


# --- messages


@on_valkey
def test_every_message_comes_three_times(world: World) -> None:
    def thrice(entries: list[Any], what: str) -> list[Any]:
        world.figures[f"{what} delivered"] += 3 * len(entries)
        world.figures[what] += len(entries)
        return entries * 3

    with Relay(world, thrice):
        world.start(services=2)
        world.run(lambda: None, every_s=0.1, times=1)
        world.verdict()
    assert world.figures["commands delivered"] == 3 * world.figures["commands"] > 0
    # Three commands are answered three times each, and each answer is delivered three times.
    assert world.figures["replies delivered"] >= 9 * world.figures["commands"]


@on_valkey
def test_replies_and_commands_come_in_any_order(world: World, chance: random.Random) -> None:
    """Some come at once, some after messages that were sent later, some again when their saga has moved on."""
    kept: dict[str, list[Any]] = {"commands": [], "replies": []}

    def shuffled(entries: list[Any], what: str) -> list[Any]:
        again = [entry for entry in entries if chance.random() < 0.3]
        world.figures[f"{what} delivered again, later"] += len(again)
        kept[what] += again
        now, kept[what] = _some_of(kept[what], chance)
        together = entries + now
        mixed = chance.sample(together, len(together))
        world.figures[f"{what} out of order"] += sum(a is not b for a, b in zip(together, mixed, strict=True))
        return mixed

    with Relay(world, shuffled):
        world.start(services=2)
        world.run(lambda: None, every_s=0.1, times=1)
        until(lambda: not any(kept.values()), what="all was delivered")
        world.verdict()
    assert world.figures["replies out of order"] > 0
    assert world.figures["replies delivered again, later"] > 0


def _some_of(entries: list[Any], chance: random.Random) -> tuple[list[Any], list[Any]]:
    """Some of these, and the others."""
    taken = {n for n in range(len(entries)) if chance.random() < 0.05}
    return [entries[n] for n in sorted(taken)], [entry for n, entry in enumerate(entries) if n not in taken]


@on_valkey
def test_every_fifth_message_is_lost(world: World, chance: random.Random) -> None:
    def lossy(entries: list[Any], what: str) -> list[Any]:
        left = [entry for entry in entries if not loses[0] or chance.random() >= 0.2]
        world.figures[f"{what} lost"] += len(entries) - len(left)
        world.figures[what] += len(entries)
        return left

    loses = [True]
    world.options = {"timeout_ms": 800, "attempts": 4, "compensation_attempts": 3, "backoff_ms": 20}
    world.may_end_otherwise()
    with Relay(world, lossy):
        world.start()
        world.run(lambda: None, every_s=0.1, times=1)
        world.settle()
        loses[0] = False
        world.retry_parked(SagaClient(world.server.broker()))
        world.verdict(unfit=(TOO_LATE,))
    assert world.figures["commands lost"] > world.figures["commands"] * 0.1
    assert world.figures["replies lost"] > world.figures["replies"] * 0.1
    assert world.figures["COMPLETED"] > 0


# --- connections


@on_both
def test_connections_are_cut_in_the_middle_of_everything(world: World) -> None:
    with CuttingProxy(world.server.url.removeprefix("unix://"), seed=1) as proxy:
        world.through(proxy.url)
        world.start()
        proxy.cut = 0.05
        with world.feed(lambda: sum(proxy.cuts.values()) >= 60 * world.factor):
            pass
        proxy.cut = 0.0
        world.verdict()
    assert min(proxy.cuts.values()) > 0
    assert len(proxy.cuts) == 4
    world.figures.update({f"cuts {where}": count for where, count in proxy.cuts.items()})


@on_valkey
def test_a_begin_whose_answer_is_lost_is_sent_again(world: World) -> None:
    world.start()
    with CuttingProxy(world.server.url.removeprefix("unix://"), seed=2) as proxy:
        proxy.cut = 0.3
        proxy.where = ("before the answer",)
        world.through(proxy.url)  # the feeder alone: all processes run already
        with world.feed(lambda: True):
            pass
        world.verdict()
    assert world.figures["begins sent again"] > 0
    world.figures["answers lost"] = proxy.cuts["before the answer"]


@on_valkey
def test_all_connections_are_closed_by_the_server_again_and_again(world: World) -> None:
    world.start()

    def storm() -> None:
        world.figures["connections closed"] += int(world.redis.client_kill_filter(_type="normal", skipme=True))

    world.run(storm, every_s=0.1, times=20)
    world.verdict()
    assert world.figures["connections closed"] > 20


# --- the server


@on_valkey
def test_the_server_forgets_its_scripts_again_and_again(world: World) -> None:
    world.start()

    def forget() -> None:
        world.redis.script_flush()
        world.figures["flushes"] += 1

    world.run(forget, every_s=0.01, times=100)
    world.verdict()
    world.figures["unknown scripts"] = errors_of(world.redis, "NOSCRIPT")
    assert world.figures["unknown scripts"] > 50


@on_both
def test_the_server_is_out_of_memory_now_and_then(world: World) -> None:
    world.start()

    def is_drained() -> bool:
        """A worker has said that the store is full, and all that had begun has ended all the same."""
        (partition,) = world.keys.partitions
        live = world.redis.zcard(partition.timers) - world.redis.zcount(partition.timers, "+inf", "+inf")
        return bool(world.redis.exists(partition.full)) and not live

    def fill_up() -> None:
        before = errors_of(world.redis, "OOM")
        world.redis.config_set("maxmemory", 1)
        until(
            lambda: errors_of(world.redis, "OOM") >= before + 3 or is_drained(),
            what="begins were refused, or nothing is under way",
        )
        world.redis.config_set("maxmemory", 0)
        world.figures["times full"] += 1

    world.run(fill_up, every_s=0.5, times=5)
    world.verdict()
    world.figures["writes refused"] = errors_of(world.redis, "OOM")
    assert world.figures["times full"] >= 5


@on_both
def test_the_server_is_killed_and_comes_back(world: World) -> None:
    world.start()

    def kill() -> None:
        world.server.kill()
        world.server.start()
        world.figures["kills of the server"] += 1

    world.run(kill, every_s=0.5, times=4)
    world.verdict()
    assert world.figures["kills of the server"] >= 4
    assert world.figures["begins sent again"] > 0


@on_valkey
def test_the_server_stands_still_for_10_seconds(world: World) -> None:
    world.start()

    for number in range(1, world.factor + 1):
        with world.feed(lambda: True, world.sagas * number // world.factor) as feeder:
            feeder.wait(0.3)
            assert feeder.is_busy, "the pause comes too late to matter"
            world.server.pause()
            # A sleep is right here: the server must be away for longer than any client waits for an answer.
            threading.Event().wait(10)
            world.server.resume()
            world.figures["stands still"] += 1
    world.verdict()
    assert world.figures["stands still"] >= 1


@on_both
def test_groups_are_destroyed_under_their_readers(world: World, chance: random.Random) -> None:
    """What was not answered yet is delivered again, from the beginning of the stream."""
    world.start()
    names = ("alpha", "beta", "gamma")
    groups = [(stream, keys.ORCHESTRATOR_GROUP) for stream in (ONLY.requests, *map(ONLY.replies, names))]
    groups += [(ONLY.commands(name), name) for name in names]

    def destroy() -> None:
        # Any that is there: one that was destroyed a moment ago may not have been made again yet.
        for stream, group in chance.sample(groups, len(groups)):
            if world.redis.exists(stream) and world.redis.xgroup_destroy(stream, group):
                world.figures["groups destroyed"] += 1
                return

    world.run(destroy, every_s=0.05, times=30)
    world.verdict()
    assert world.figures["groups destroyed"] > 10


@on_valkey
def test_streams_are_deleted_with_all_that_is_in_them(world: World, chance: random.Random) -> None:
    """Lost commands and replies are sent again after their timeout."""
    world.options = {"timeout_ms": 500, "attempts": 5, "backoff_ms": 20}
    world.may_end_otherwise()
    world.start()
    names = ("alpha", "beta", "gamma")
    streams = [*map(ONLY.replies, names), *map(ONLY.commands, names)]

    def delete() -> None:
        stream = chance.choice(streams)
        with world.redis.pipeline() as both:
            both.xlen(stream)
            both.delete(stream)
            length, deleted = both.execute()
        world.figures["streams deleted"] += deleted
        world.figures["messages deleted"] += length

    world.run(delete, every_s=0.05, times=40)
    world.settle()
    world.retry_parked(SagaClient(world.server.broker()))
    world.verdict(unfit=(TOO_LATE,))
    assert world.figures["streams deleted"] > 10
    assert world.figures["messages deleted"] > 0


# --- power


@on_both
def test_power_fails_in_the_middle_of_a_write(world: World) -> None:
    """The disk has all that was acknowledged, and a part of the write that was not."""
    world.start()

    def power_cut() -> None:
        with world.nobody_begins:
            tear()

    def tear() -> None:
        processes = [process.now for process in (*world.workers, *world.services)]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        log = _append_only_file(world)
        acknowledged = _size_at_rest(world)
        # Nobody waits for what is written now: no answer to it may reach a process. Several writes in one.
        world.redis.eval("redis.call('SET', 'torn:1', '') redis.call('SET', 'torn:2', '')", 0)
        world.server.kill()
        data = log.read_bytes()
        reached = data.index(b"torn:2", acknowledged)
        os.truncate(log, reached)
        _power_returns(world)
        assert not world.redis.exists("torn:1", "torn:2")
        for process in processes:
            process.send_signal(signal.SIGCONT)
        world.figures["power cuts"] += 1
        world.figures["bytes lost"] += len(data) - reached

    world.run(power_cut, every_s=0.5, times=4)
    world.verdict()
    assert world.figures["power cuts"] >= 4


@on_both
def test_power_fails_and_the_last_second_is_lost_but_for_what_services_keep(
    world: World, chance: random.Random
) -> None:
    """As with `appendfsync everysec`. Sagas fall back, and services know of steps that sagas do not know of: nothing is
    done twice. Clients begin again what the store has forgotten."""
    world.store_forgets = True
    world.start()

    def power_cut() -> None:
        log = _append_only_file(world)
        kept = log.stat().st_size
        before = world.redis.zcard(ONLY.ended)
        until(lambda: world.redis.zcard(ONLY.ended) > before + 5, what="sagas have ended meanwhile")
        world.server.kill()
        written = log.stat().st_size
        at = chance.randint(kept, written - 1)
        os.truncate(log, at)
        _power_returns(world)
        world.figures["power cuts"] += 1
        world.figures["bytes lost"] += written - at
        world.begin_again(SagaClient(world.server.broker()))

    world.run(power_cut, every_s=0.3, times=4)
    world.verdict(unfit=(TOO_LATE, "was not sent yet", "there is no saga", "does not answer it"))
    assert world.figures["bytes lost"] > 0


def _power_returns(world: World) -> None:
    """Start the server and let it rewrite its data. Redis 7.0 leaves half a transaction at the end of the file and,
    when it starts the next time, executes that half: https://github.com/valkey-io/valkey/pull/4342"""
    world.server.start()
    before = _append_only_file(world)
    world.redis.bgrewriteaof()

    def is_rewritten() -> bool:
        info: Any = world.redis.info("persistence")
        return not info["aof_rewrite_in_progress"] and len(_append_only_files(world)) == 1 and not before.exists()

    until(is_rewritten, what="the append-only file is rewritten")


def _append_only_files(world: World) -> list[Path]:
    return list((world.server.folder / "appendonlydir").glob("*.incr.aof"))


def _append_only_file(world: World) -> Path:
    [log] = _append_only_files(world)
    return log


def _size_at_rest(world: World) -> int:
    """The size of the append-only file once nobody writes any more."""
    sizes = [-1, _append_only_file(world).stat().st_size]
    while sizes[-1] != sizes[-2]:
        world.redis.set("marker", len(sizes))  # answered after all that came before it
        sizes.append(_append_only_file(world).stat().st_size)
        world.redis.ping()
        sizes.append(_append_only_file(world).stat().st_size)
    return sizes[-1]
