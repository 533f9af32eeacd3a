"""Workers of this release and of one without indexes, on one store: what that one leaves wrong in the indexes is set
right, and nothing is looked at for ever."""

import os
from typing import Any

import pytest

from sagastream import Definition
from sagastream.broker.exchange import run
from sagastream.core.indexing import index_names
from sagastream.core.saga import SagaState
from sagastream.store import heartbeat, pauses, sagas
from sagastream.store.heartbeat import Kind
from support.processes import Commands
from support.releases import WITHOUT_INDEXES, Release, former_release
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.both_in_soak]


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return former_release(tmp_path_factory.mktemp("earlier"), WITHOUT_INDEXES)


class Beside(Scene):
    """A scene with a worker of the earlier release beside it."""

    def __init__(self, server: Server, commands: Commands, release: Release) -> None:
        super().__init__(server.broker())
        self._commands = commands
        self._release = release

    def start_earlier(self) -> Any:
        """Start the worker of the earlier release. Returns its process, once it is heard."""
        env = {"REDIS_URL": self.broker.url, "PYTHONPATH": os.pathsep.join(map(str, self._release.path))}
        process = self._commands.quiet("worker", program=self._release.program, env=env)
        until(lambda: self.earlier_ones() == 1, what="it is heard")
        return process

    def earlier_ones(self) -> int:
        """How many workers of the earlier release are heard."""
        found = heartbeat.processes(self.redis, KEYS)
        return sum(one.kind == Kind.WORKER and not one.writes_indexes for one in found)

    def wrong(self) -> dict[str, set[str]]:
        """The sagas that are in an index and should not be, or should be and are not, by its name."""
        should: dict[str, set[str]] = {}
        there = {"": self._members(ONLY.begun)}
        ids = [key.decode().removeprefix(ONLY.saga("")) for key in self.redis.scan_iter(ONLY.saga("*"))]
        states, _ = sagas.read(self.redis, KEYS, ids)
        for saga_id, state in states.items():
            assert isinstance(state, SagaState)
            for name in ("", *index_names(state)):
                should.setdefault(name, set()).add(saga_id)
        for key in self.redis.scan_iter(ONLY.index("*")):
            there[key.decode().removeprefix(ONLY.index(""))] = self._members(key)
        return {
            name: differ for name in {*should, *there} if (differ := should.get(name, set()) ^ there.get(name, set()))
        }

    def _members(self, key: str | bytes) -> set[str]:
        found: Any = self.redis.zrange(key, 0, -1)
        return {one.decode() for one in found}

    def until_right(self) -> None:
        self.turns_until(lambda: not self.wrong())


@pytest.fixture
def scene(server: Server, commands: Commands, earlier: Release, monkeypatch: pytest.MonkeyPatch) -> Beside:
    for name, seconds in {"_TIDY_EVERY_S": 0.2, "_MEND_EVERY_S": 0.0}.items():
        monkeypatch.setattr(f"sagastream.orchestrator.upkeep.{name}", seconds)
    return Beside(server, commands, earlier)


def test_what_a_worker_without_indexes_leaves_wrong_is_set_right(scene: Beside) -> None:
    order = Definition("order", version=1)
    order.step("Do", service="work", id="first", params=1, after=[])
    order.step("Do", service="work", id="second", params=order.input.how, after=["first"])
    old = scene.start_earlier()
    scene.worker._upkeep._tidy_at = float("inf")  # nothing is set right yet
    ids = []
    for number in range(12):
        ids += [f"plain-{number}", f"order-{number}", f"parked-{number}"]
        scene.client.begin(f"plain-{number}", [do(1), do("fail")])
        scene.client.begin(order, {"how": "fail" if number % 2 else 1}, saga_id=f"order-{number}")
        parks = do(1, service="nobody", kind="pivot", compensation=None, attempts=1, timeout_ms=1)
        scene.client.begin(f"parked-{number}", [do(1), parks])
        scene.worker.turn(block_ms=1)
        scene.runner.turn(block_ms=1)

    def all_have_ended_or_are_parked() -> bool:
        scene.runner.turn(block_ms=1)
        states = [scene.client.get(saga_id) for saga_id in ids]
        return all(state is not None and (state.ended or state.parked) for state in states)

    scene.turns_until(all_have_ended_or_are_parked)
    wrong = scene.wrong()
    assert {"", "status=ABORTED", "status=PARKED", "definition=order"} <= wrong.keys()
    scene.worker._upkeep._tidy_at = 0.0
    scene.until_right()
    old.terminate()
    old.wait()
    scene.turns_until(lambda: not (scene.worker._upkeep._mending._unsure or scene.worker._upkeep._mending.goes_on))


def test_a_saga_that_was_held_and_that_a_worker_without_pauses_has_moved_is_looked_at_once(scene: Beside) -> None:
    run(scene.redis, pauses.pause(KEYS, "other", None, "maintenance", "ada"))
    scene.turns_until(lambda: bool(scene.worker._pauses.names))
    scene.client.begin("s1", [do(1), do(2, service="other")])
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.runner.turn(block_ms=1)
    scene.turns_until(lambda: scene.redis.zcard(ONLY.index("held=other")) == 1)
    old = scene.start_earlier()
    scene.client.cancel("s1", "no longer wanted")
    until(lambda: (state := scene.client.get("s1")) is not None and state.status == "COMPENSATING", what="it goes back")
    old.kill()
    assert scene.wrong() == {"held=other": {"s1"}, "status=COMPENSATING": {"s1"}}
    timer = scene.redis.zscore(ONLY.timers, "s1")
    run(scene.redis, pauses.resume(KEYS, "other", None, "done", "ada"))
    scene.worker._upkeep._tidy_at = float("inf")  # only the wake sees to it
    scene.until_right()
    assert scene.redis.zscore(ONLY.timers, "s1") == timer
    assert scene.play("s1").status == "ABORTED"
