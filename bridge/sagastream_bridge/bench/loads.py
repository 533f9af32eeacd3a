"""The loads: how sagas are begun, and what is measured."""

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import redis

from sagastream.broker import exchange
from sagastream.client import requests
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import Begin
from sagastream.errors import SagastreamError
from sagastream.store import events
from sagastream.store.keys import StoreKeys
from sagastream_bridge.bench import services

#: How many sagas are begun in one round trip.
BATCH = 128
#: After this time without the end of any saga, in seconds, a load is given up.
_PATIENCE_S = 60.0
#: How long before the first begin of an open loop all is ready, in seconds.
_LEAD_S = 0.05


@dataclass(slots=True)
class Run:
    """What one load measured."""

    sagas: int
    wall_s: float = 0.0
    begin_cpu_s: float = 0.0  # of this process, for the begins
    latencies_s: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return self.sagas / self.wall_s


class Loads:
    """Begins sagas on a broker, and follows their ends. `tick` is told how many more have ended; `shape`: which of
    services.SHAPES they have."""

    def __init__(
        self, client: "redis.Redis", keys: StoreKeys, tick: Callable[[int], object], shape: str = "chain"
    ) -> None:
        self._shape = shape
        self._client = client
        self._keys = keys
        self._tick = tick
        self._run_id = uuid.uuid4().hex[:8]
        self._next = 0

    def begins(self, count: int, *, failing: bool = False) -> list[Begin]:
        """Requests for `count` new sagas."""
        saga = services.saga(self._shape, failing=failing)
        found = []
        for _ in range(count):
            self._next += 1
            saga_id = f"bench-{self._run_id}-{self._next}"
            found.append(parse_begin({"saga_id": saga_id} | saga, request_id=saga_id))
        return found

    def throughput(self, count: int, *, failing: bool = False) -> Run:
        """All sagas at once."""
        run = Run(sagas=count)
        after = exchange.run(self._client, events.newest(self._keys.partitions))
        cpu = time.process_time()
        begins = self.begins(count, failing=failing)
        cpu = time.process_time() - cpu
        start = time.perf_counter()
        for batch in _batches(begins):
            began = time.process_time()
            exchange.run(self._client, requests.append(self._keys, batch))
            run.begin_cpu_s += time.process_time() - began
        run.begin_cpu_s += cpu
        left = {begin.saga_id.encode() for begin in begins}
        self._follow(left, after, lambda _: None)
        run.wall_s = time.perf_counter() - start
        return run

    def closed_loop(self, count: int, concurrency: int) -> Run:
        """`concurrency` sagas at any time: when one has ended, the next one begins."""
        run = Run(sagas=count)
        waiting = iter(self.begins(count))
        began: dict[bytes, float] = {}
        after = exchange.run(self._client, events.newest(self._keys.partitions))

        def begin(batch: Iterable[Begin]) -> None:
            sent = list(batch)
            now = time.perf_counter()
            began.update((one.saga_id.encode(), now) for one in sent)
            if sent:
                exchange.run(self._client, requests.append(self._keys, sent))

        def ended(saga_ids: Sequence[bytes]) -> None:
            now = time.perf_counter()
            run.latencies_s += [now - began.pop(saga_id) for saga_id in saga_ids]
            begin(islice(waiting, len(saga_ids)))

        start = time.perf_counter()
        begin(islice(waiting, concurrency))
        self._follow(began, after, ended)
        run.wall_s = time.perf_counter() - start
        return run

    def open_loop(self, count: int, per_s: float) -> Run:
        """A saga every 1/`per_s` seconds, whether or not earlier ones have ended. Latencies count from that time, so
        that a stall counts for all sagas that should have begun in it. A thread of its own begins them: one
        that waits for ends would be late, since an idle server notices only ten times a second that a wait is over."""
        run = Run(sagas=count)
        begins = self.begins(count)
        after = exchange.run(self._client, events.newest(self._keys.partitions))
        start = time.perf_counter() + _LEAD_S
        intended = {one.saga_id.encode(): start + number / per_s for number, one in enumerate(begins)}

        def ended(saga_ids: Sequence[bytes]) -> None:
            now = time.perf_counter()
            run.latencies_s += [now - intended.pop(saga_id) for saga_id in saga_ids]

        with ThreadPoolExecutor(1) as beginner:
            beginning = beginner.submit(self._begin_in_time, begins, start, per_s)
            self._follow(intended, after, ended)
            beginning.result()
        run.wall_s = time.perf_counter() - start
        return run

    def _begin_in_time(self, begins: Sequence[Begin], start: float, per_s: float) -> None:
        """Begin each of these 1/`per_s` seconds after the one before. Those that are late are begun together."""
        sent = 0
        while sent < len(begins):
            time.sleep(max(0.0, start + sent / per_s - time.perf_counter()))
            due = max(sent + 1, int((time.perf_counter() - start) * per_s) + 1)
            exchange.run(self._client, requests.append(self._keys, begins[sent:due]))
            sent = due

    def _follow(
        self, left: set[bytes] | dict[bytes, float], after: events.Place, ended: Callable[[Sequence[bytes]], None]
    ) -> None:
        """Until none is left, tell `ended` which have ended; if `left` is a set, remove them."""
        heard = time.perf_counter()
        while left:
            saga_ids, after = self._ended(left, after, 1000)
            if saga_ids:
                heard = time.perf_counter()
            _check_patience(heard, len(left))
            if isinstance(left, set):
                left.difference_update(saga_ids)
            ended(saga_ids)

    def _ended(
        self, among: set[bytes] | dict[bytes, float], after: events.Place, block_ms: int
    ) -> tuple[list[bytes], events.Place]:
        entries = exchange.run(self._client, events.after(self._keys.partitions, after, block_ms))
        saga_ids = [
            saga_id
            for entry in entries
            if entry.fields[b"kind"] == b"outcome" and (saga_id := entry.fields[b"saga_id"]) in among
        ]
        self._tick(len(saga_ids))
        return saga_ids, events.moved(self._keys.partitions, after, entries)


def _check_patience(heard: float, left: int) -> None:
    if time.perf_counter() - heard > _PATIENCE_S:
        raise SagastreamError(f"no saga has ended for {_PATIENCE_S:g} s, {left} are under way; do the processes run?")


def _batches(begins: Sequence[Begin]) -> Iterable[Sequence[Begin]]:
    for first in range(0, len(begins), BATCH):
        yield begins[first : first + BATCH]
