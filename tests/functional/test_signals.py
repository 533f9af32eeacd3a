"""Whether a signal came in time goes by when it was added to its stream, not by when a worker reads it."""

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import pytest
import redis

from sagastream.broker import exchange
from sagastream.client import requests
from sagastream.client.blocking import SagaClient
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState
from sagastream.errors import RequestRefused
from sagastream.store import keys
from support.processes import Commands
from support.servers import Server
from support.stores import KEYS, ONLY
from support.waiting import until

pytestmark = pytest.mark.both_in_soak


WAIT_MS: Final = 1500
NOT_SIGNALLED: Final = "Step 1 failed: no signal go within 1500 ms"


class Scene:
    """A worker's process, and sagas that wait for a signal."""

    def __init__(self, server: Server, commands: Commands) -> None:
        self.redis: redis.Redis = server.broker().client
        self.client = SagaClient(server.broker())
        self._commands = commands
        self._env = {"REDIS_URL": server.url}
        self.worker = commands.quiet("worker", env=self._env)

    def another_worker(self) -> None:
        self._commands.quiet("worker", env=self._env)

    def waits(self, saga_id: str, *, on_timeout: str = "fail") -> SagaState:
        """A saga that waits for `go`."""
        step = {"wait": "go", "timeout_ms": WAIT_MS, "on_timeout": on_timeout}
        body: Any = {"saga_id": saga_id, "input": {}, "steps": [step]}
        self.client.begin_request(requests.to_begin(body))

        def found() -> SagaState | None:
            state = self.client.get(saga_id)
            return state if state is not None and state.steps[0].phase is Phase.AWAITING else None

        return until(found, what=f"{saga_id} waits")

    def now_ms(self) -> int:
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def until_over(self, state: SagaState) -> None:
        """Wait until the wait of the saga is over, by the broker's clock."""
        due_ms = state.due_ms
        assert due_ms is not None
        until(lambda: self.now_ms() > due_ms, what="the wait is over")

    def send(self, saga_id: str) -> None:
        """Add a signal to the stream, and wait for no answer."""
        request = requests.to_signal(saga_id, "go", {"by": "boss"}, decline=None, actor=None)
        exchange.run(self.redis, requests.append(KEYS, [request]))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.worker.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.worker.send_signal(signal.SIGCONT)


@pytest.fixture
def scene(server: Server, commands: Commands) -> Scene:
    return Scene(server, commands)


def test_a_signal_that_was_added_in_time_is_taken_though_it_is_read_later(scene: Scene) -> None:
    states = [scene.waits(f"s{number}") for number in range(5)]
    with scene.stopped():
        for state in states:
            scene.send(state.saga_id)
        assert scene.now_ms() < min(state.due_ms or 0 for state in states), "this machine is too busy to tell"
        for state in states:
            scene.until_over(state)
    for state in states:
        ended = scene.client.wait(state.saga_id, 60)
        assert (ended.status, ended.results) == ("COMPLETED", [{"by": "boss"}])


def test_a_signal_that_a_worker_has_read_in_time_is_taken_though_that_worker_has_died(scene: Scene) -> None:
    """Until others may take the signal over, the wait goes on; waits for other signals end in time."""
    state, other = scene.waits("s1"), scene.waits("other", on_timeout="continue")
    scene.worker.send_signal(signal.SIGSTOP)
    scene.send("s1")
    scene.redis.xreadgroup(keys.ORCHESTRATOR_GROUP, "dead", {ONLY.interventions: ">"})  # if that worker has not
    summary: Any = scene.redis.xpending(ONLY.interventions, keys.ORCHESTRATOR_GROUP)
    assert summary["pending"] == 1
    scene.until_over(state)
    scene.until_over(other)
    scene.worker.kill()
    scene.another_worker()
    assert scene.client.wait("other", 60).results == [None]
    ended = scene.client.wait("s1", 60)
    assert (ended.status, ended.results) == ("COMPLETED", [{"by": "boss"}])


@pytest.mark.parametrize("on_timeout", ["fail", "continue"])
def test_a_signal_that_was_added_too_late_is_refused(scene: Scene, on_timeout: str) -> None:
    states = [scene.waits(f"s{number}", on_timeout=on_timeout) for number in range(3)]
    with ThreadPoolExecutor() as others:
        with scene.stopped():
            for state in states:
                scene.until_over(state)
            answers = [others.submit(scene.client.signal, state.saga_id, "go", 1, 60) for state in states]
            until(lambda: scene.redis.xlen(ONLY.interventions) == len(states), what="they are added")
        for state, answer in zip(states, answers, strict=True):
            error = answer.exception(60)
            assert isinstance(error, RequestRefused)
            ended = scene.client.wait(state.saga_id, 60)
            if on_timeout == "fail":
                assert (ended.status, ended.reason) == (
                    "ABORTED",
                    NOT_SIGNALLED,
                )
            else:
                assert (ended.status, ended.results) == ("COMPLETED", [None])


def test_a_signal_that_is_too_late_is_refused_though_nobody_has_ended_the_wait_yet(scene: Scene) -> None:
    """A worker had taken the saga, since it was due, and has died: until its lease ends, the saga still waits."""
    state = scene.waits("s1")
    with ThreadPoolExecutor() as others:
        with scene.stopped():
            scene.until_over(state)
            leased_until = scene.now_ms() + 3000
            assert scene.redis.zadd(ONLY.timers, {"s1": leased_until}, xx=True, ch=True) == 1
            answer = others.submit(scene.client.signal, "s1", "go", 1, 60)
            until(lambda: scene.redis.xlen(ONLY.interventions) == 1, what="it is added")
        error = answer.exception(60)
        assert isinstance(error, RequestRefused)
        assert re.search(r"waited for go until \d+ ms before it came", str(error))
        assert scene.now_ms() < leased_until, "this machine is too busy to tell"
    assert scene.client.wait("s1", 60).reason == NOT_SIGNALLED
