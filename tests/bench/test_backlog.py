"""Many waiting sagas: they slow nobody down, and cost only their room in the broker.

`SAGASTREAM_SOAK_SAGAS=1000000 pytest -m soak tests/bench/test_backlog.py -s` is the long run; it prints its figures.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import Begin
from sagastream.orchestrator import commit
from sagastream.orchestrator.sweeping import Sweep
from sagastream_bridge.bench import services
from sagastream_bridge.bench.accounts import memory_of, used_memory
from sagastream_bridge.local.stack import Stack
from support.servers import Server
from support.stores import KEYS, ONLY
from support.streams import append_requests
from support.waiting import until

#: The server's memory is measured, so no other test may have used the server before.
pytestmark = [pytest.mark.own_server, pytest.mark.slow, pytest.mark.both_in_soak]

#: Sagas that are begun in one round trip.
BATCH = 500
#: Differences in memory that mean nothing, in bytes: of the broker's data, and of the worker.
NOISE = 8 << 20


class Sagas:
    """The sagas of one run on one server."""

    def __init__(self, server: Server, log_dir: Path) -> None:
        self.broker = server.broker()
        self.client: redis.Redis = self.broker.client
        self._log_dir = log_dir
        self._begun = self._forgotten = 0

    @contextmanager
    def running(self, *, workers: int = 1, with_services: bool = True) -> Iterator[Stack]:
        where = services.WHERE if with_services else ()
        stack = Stack(self.broker, workers=workers, services=where, log_dir=self._log_dir)
        stack.tend()
        try:
            yield stack
        finally:
            stack.stop()

    def begin(self, count: int) -> None:
        for _ in range(count // BATCH):
            append_requests(self.client, [self._next() for _ in range(BATCH)])

    def _next(self) -> Begin:
        self._begun += 1
        return parse_begin({"saga_id": f"s{self._begun}"} | services.saga("chain"), request_id=f"r{self._begun}")

    @property
    def live(self) -> int:
        return self.client.zcard(ONLY.timers)

    @property
    def are_over(self) -> bool:
        """Whether no saga is live, and none will begin. Between those that end and those that begin there may be a
        moment without a live saga."""
        return self.client.xlen(ONLY.requests) == 0 and self.live == 0

    @property
    def ended(self) -> int:
        return self.client.zcard(ONLY.ended)

    def ended_per_s(self, count: int, *, meanwhile: Callable[[], object] = lambda: None) -> float:
        """How many sagas end in a second, while `count` more of them end, or all that are left."""
        first, start = self.ended, time.monotonic()

        def are_ended() -> bool:
            meanwhile()
            return self.ended >= min(first + count, self._begun - self._forgotten)

        until(are_ended, what=f"{count} sagas end", timeout_s=count / 20 + 120)
        return (self.ended - first) / (time.monotonic() - start)

    @property
    def memory(self) -> int:
        """Bytes of data, without the events: their newest 100,000 are always kept."""
        return used_memory([self.client]) - int(self.client.memory_usage(ONLY.events, samples=0) or 0)

    def expire(self) -> None:
        """Delete what expires, as if its time had come."""
        for key in self.client.scan_iter(count=1000):
            if self.client.ttl(key) > 0:
                self.client.unlink(key)
        Sweep(self.client, commit.Store(self.client, retention_ms=0)).sweep(KEYS, KEYS.partitions)
        self._forgotten = self._begun


@pytest.fixture
def sagas(server: Server, tmp_path: Path) -> Sagas:
    return Sagas(server, tmp_path)


def test_sagas_that_wait_to_be_begun_slow_nobody_and_take_no_worker_memory(sagas: Sagas) -> None:
    """So few show that nothing is left, and that the measurement itself works. What a backlog costs shows in the long
    run, on both servers."""
    measure_backlog(sagas, waiting=1_500, window=500)


@pytest.mark.soak
def test_a_million_sagas_that_wait_to_be_begun(sagas: Sagas) -> None:
    waiting = int(os.environ.get("SAGASTREAM_SOAK_SAGAS", "1000000"))
    figures = measure_backlog(sagas, waiting=waiting, window=20_000)
    assert figures["drain rate / rate of the empty store"] > 0.8


def measure_backlog(sagas: Sagas, *, waiting: int, window: int) -> dict[str, float]:
    """Figures for sagas on an empty store, for the same beside many that wait, for all of these, and for what is left
    in the end.

    The rate on the empty store is measured with a backlog of three windows, so that the worker never waits for
    requests.
    """
    with sagas.running():
        sagas.begin(BATCH)
        sagas.ended_per_s(BATCH)  # everything is warmed up
    sagas.expire()
    empty = sagas.memory
    sagas.begin(3 * window)
    with sagas.running() as stack:
        alone = sagas.ended_per_s(window)
        until(lambda: sagas.are_over, what="all have ended", timeout_s=600)
        memory_before = memory_of(stack.pids("worker"))
    sagas.expire()
    before = sagas.memory
    sagas.begin(waiting)
    a_waiting_saga = (sagas.memory - before) / waiting
    with sagas.running() as stack:
        memory: list[int] = []
        rate = sagas.ended_per_s(window, meanwhile=lambda: memory.append(memory_of(stack.pids("worker"))))
        rest = sagas.ended_per_s(waiting - window, meanwhile=lambda: memory.append(memory_of(stack.pids("worker"))))
    an_ended_saga = (sagas.memory - before) / waiting
    sagas.expire()
    figures = {
        "sagas": waiting,
        "sagas/s, empty store": alone,
        "sagas/s, with all waiting": rate,
        "sagas/s, the rest": rest,
        "drain rate / rate of the empty store": rate / alone,
        "bytes of a waiting saga": a_waiting_saga,
        "bytes of an ended saga": an_ended_saga,
        "bytes left in the end": sagas.memory - empty,
        "worker memory grew by": max(memory) - memory_before,
    }
    print(*(f"{name}: {value:.2f}" for name, value in figures.items()), sep="\n")
    assert max(memory) - memory_before < NOISE
    assert sagas.memory - empty < NOISE
    assert sagas.live == 0
    assert sum(sagas.client.xlen(stream) for stream in (ONLY.requests, ONLY.quarantine)) == 0
    return figures


def test_a_live_saga_takes_little_room(sagas: Sagas) -> None:
    """Measured on sagas that have begun and wait for a service: no other saga in flight takes more room."""
    with sagas.running(with_services=False):
        sagas.begin(BATCH)
        until(lambda: sagas.live == BATCH, what="all are begun")
        before = sagas.memory
        sagas.begin(2 * BATCH)
        until(lambda: sagas.live == 3 * BATCH, what="all are begun")
        a_live_saga = (sagas.memory - before) / (2 * BATCH)
    print(f"bytes of a live saga, with its command: {a_live_saga:.0f}")
    assert a_live_saga < 2500
    with sagas.running():
        until(lambda: sagas.ended == 3 * BATCH, what="all have ended", timeout_s=400)
