"""`sagastream bench`: takes the measurements one after the other, and computes the figures."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sagastream.broker.connection import Broker
from sagastream.errors import SagastreamError
from sagastream.store import heartbeat, layout
from sagastream.store.heartbeat import Kind
from sagastream_bridge.bench import services
from sagastream_bridge.bench.accounts import Account, account, used_memory
from sagastream_bridge.bench.floor import Floor
from sagastream_bridge.bench.loads import BATCH, Loads, Run
from sagastream_bridge.local.stack import Stack

#: Within which time the workers must have started, in seconds; and how long each takes at most to hear of the others.
_STARTS_WITHIN_S: Final = 60.0
_HEARS_WITHIN_S: Final = 2.0

#: How much of what it can do it is asked to do, by the name of the figure: sagas begin at that rate.
_LOADS: Final = {"at_an_eighth": 1 / 8, "at_a_third": 1 / 3, "at_half": 1 / 2}

#: p99.9 is told if there are at least so many sagas: of fewer, none is one of a thousand.
_FOR_A_THOUSANDTH: Final = 1000

#: Is told how many more sagas have ended, for a progress bar.
Tick = Callable[[int], object]


class Measurement:
    """One whole measurement on one broker."""

    def __init__(
        self, broker: Broker, *, sagas: int, workers: int, rounds: int, log_dir: Path, shape: str = "chain"
    ) -> None:
        """
        Args:
            sagas: how many for each figure of throughput; other figures take a fraction of them.
            workers: orchestrator workers.
            rounds: how often to take each figure; the result is the median.
            log_dir: the folder for the output of the processes.
            shape: the name of one of services.SHAPES.
        """
        self._broker = broker
        self._client = broker.client
        self._keys = layout.check(broker)
        self._servers = list(broker.servers().values())
        self._sagas = sagas
        self._workers = workers
        self._rounds = rounds
        self._log_dir = log_dir
        self._shape = shape
        self._steps = len(services.saga(shape)["steps"])

    @property
    def total(self) -> int:
        """How many sagas it runs, besides those of the floor."""
        alone, crowd = self._few
        rounds = self._rounds * (2 * self._sagas + alone + (1 + len(_LOADS)) * crowd)
        return self._to_warm_up + rounds + self._for_memory

    @property
    def _to_warm_up(self) -> int:
        return min(self._sagas, 256)

    @property
    def _for_memory(self) -> int:
        return max(500, self._sagas // 2)

    @property
    def _few(self) -> tuple[int, int]:
        """How many sagas a measurement of latency takes: one at a time, and many at a time."""
        return max(20, self._sagas // 20), max(200, self._sagas // 2)

    def run(self, tick: Tick) -> dict[str, Any]:
        """All figures, as JSON values: seconds, bytes and counts, unless a name says otherwise."""
        loads = Loads(self._client, self._keys, tick, self._shape)
        with self._processes() as pids, Floor(self._broker, self._steps) as floor:
            loads.throughput(self._to_warm_up)
            found: dict[str, list[float]] = {}
            for _ in range(self._rounds):
                for name, value in self._round(loads, floor, pids):
                    found.setdefault(name, []).append(value)
            figures = {name: statistics.median(values) for name, values in found.items()}
            figures |= self._memory(loads)
        figures |= _ratio("completed", found["completed_per_s"], found["floor_per_s"])
        figures |= _ratio("aborted", found["aborted_per_s"], found["floor_per_s"])
        figures |= _ratio("alone", found["alone_p50_ms"], found["floor_alone_p50_ms"])
        return {"settings": self._settings(), "figures": {name: round(value, 3) for name, value in figures.items()}}

    @contextmanager
    def _processes(self) -> Iterator[Mapping[str, Sequence[int]]]:
        stack = Stack(self._broker, workers=self._workers, services=services.WHERE, log_dir=self._log_dir)
        try:
            stack.tend()
            self._wait_for_sharing()
            yield {"workers": stack.pids("worker"), "services": stack.pids("service")}
        finally:
            stack.stop()

    def _wait_for_sharing(self) -> None:
        """If there are several workers and partitions, wait until the workers share them: they are measured so."""
        deadline = time.monotonic() + _STARTS_WITHIN_S
        if min(self._workers, len(self._keys.partitions)) > 1:
            while self._heard() < self._workers:
                if time.monotonic() > deadline:
                    raise SagastreamError(f"the workers were not heard within {_STARTS_WITHIN_S:g} s; do they run?")
                time.sleep(0.1)
            time.sleep(_HEARS_WITHIN_S)

    def _heard(self) -> int:
        """How many workers are heard."""
        found = heartbeat.processes(self._client, self._keys)
        return sum(one.kind == Kind.WORKER and one.shares for one in found)

    def _round(self, loads: Loads, floor: Floor, pids: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, float]]:
        alone, crowd = self._few
        completed = 0.0  # sagas a second
        yield "floor_per_s", floor.sagas_per_s(self._sagas, BATCH)
        for name, failing in (("completed", False), ("aborted", True)):
            before = account(self._servers, pids)
            run = loads.throughput(self._sagas, failing=failing)
            if not failing:
                completed = run.per_s
            yield f"{name}_per_s", run.per_s
            yield from _cpu(name, run, account(self._servers, pids).since(before))
        bare = floor.latencies_s(alone)
        yield "floor_alone_p50_ms", statistics.median(bare) * 1000
        yield from _latencies("alone", loads.closed_loop(alone, 1))
        yield from _latencies("64_at_once", loads.closed_loop(crowd, 64))
        for name, share in _LOADS.items():
            rate = max(10.0, completed * share)
            yield f"{name}_rate_per_s", rate
            yield from _latencies(name, loads.open_loop(crowd, rate))

    def _memory(self, loads: Loads) -> dict[str, float]:
        """The bytes of an ended saga, with the records of its services."""
        before = used_memory(self._servers)
        loads.throughput(self._for_memory)
        return {"bytes_an_ended_saga": (used_memory(self._servers) - before) / self._for_memory}

    def _settings(self) -> dict[str, Any]:
        info: Any = self._servers[0].info("server")
        return {
            "server": f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}",
            "appendfsync": self._broker.appendfsync(),
            "nodes": len(self._servers),
            "workers": self._workers,
            "partitions": len(self._keys.partitions),
            "shape": self._shape,
            "steps": self._steps,
            "sagas": self._sagas,
            "rounds": self._rounds,
        }


def _cpu(name: str, run: Run, used: Account) -> Iterator[tuple[str, float]]:
    """CPU microseconds per saga, of each kind of process; and how many messages they worked on at once, on average."""
    for who, seconds in (
        ("server", used.server),
        ("workers", used.workers),
        ("services", used.services),
        ("begin", run.begin_cpu_s),
    ):
        yield f"{name}_cpu_us_{who}", seconds / run.sagas * 1e6
    messages = used.entries - run.sagas  # each saga adds an event, too: its outcome
    yield f"{name}_batch_read", messages / max(1, used.readings)
    yield f"{name}_batch_script", messages / max(1, used.scripts)


def _latencies(name: str, run: Run) -> Iterator[tuple[str, float]]:
    ordered = sorted(run.latencies_s)
    for percent in (50, 99, 99.9) if len(ordered) >= _FOR_A_THOUSANDTH else (50, 99):
        yield f"{name}_p{percent:g}_ms", ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000


def _ratio(name: str, ours: Sequence[float], bare: Sequence[float]) -> dict[str, float]:
    """The median of the ratios of all rounds, and the least and the greatest of them. It differs from the ratio of the
    medians: what disturbs a round disturbs both of its figures."""
    each = [one / other for one, other in zip(ours, bare, strict=True)]
    return {
        f"ratio_{name}": statistics.median(each),
        f"ratio_{name}_least": min(each),
        f"ratio_{name}_most": max(each),
    }


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The figures for people."""
    settings, f = result["settings"], result["figures"]
    yield (
        f"{settings['server']}, nodes: {settings['nodes']}, appendfsync {settings['appendfsync']}, "
        f"workers: {settings['workers']}, "
        f"partitions: {settings['partitions']}; "
        f"{_rounds(settings['rounds'])} of {settings['sagas']} sagas of {settings['steps']} steps ({settings['shape']})"
    )
    yield ""
    yield f"the floor      {f['floor_per_s']:>8.0f} sagas/s of bare stream traffic, in batches of {BATCH}"
    yield f"completed      {f['completed_per_s']:>8.0f} sagas/s, of the floor: {_compared(f, 'completed')}"
    yield f"aborted        {f['aborted_per_s']:>8.0f} sagas/s, of the floor: {_compared(f, 'aborted')}"
    yield ""
    yield "latency, ms       p50      p99    p99.9"
    for name, what in (
        ("alone", "one at a time"),
        *((name, f"{f[f'{name}_rate_per_s']:.0f} a second") for name in _LOADS),
        ("64_at_once", "64 at a time"),
    ):
        load = f"   {name.replace('_', ' ')} of what it can do" if name in _LOADS else ""
        rare = f"{f[f'{name}_p99.9_ms']:>8.2f}" if f"{name}_p99.9_ms" in f else f"{'-':>8}"
        yield f"{what:<14} {f[f'{name}_p50_ms']:>6.2f} {f[f'{name}_p99_ms']:>8.2f} {rare}{load}"
    bare, alone = f"{f['floor_alone_p50_ms']:>6.2f}", _compared(f, "alone")
    yield f"the floor      {bare}   for one saga, a round trip a message; ratio {alone}"
    yield ""
    yield "CPU, us a saga  server  workers  services  begin   messages a reading  a script call"
    for name in ("completed", "aborted"):
        used = [f[f"{name}_cpu_us_{who}"] for who in ("server", "workers", "services", "begin")]
        batches = f"{f[f'{name}_batch_read']:>20.1f} {f[f'{name}_batch_script']:>14.1f}"
        yield f"{name:<14} {used[0]:>7.0f} {used[1]:>8.0f} {used[2]:>9.0f} {used[3]:>6.0f} {batches}"
    yield f"memory of an ended saga, with what its services recorded: {f['bytes_an_ended_saga']:.0f} bytes"


def _rounds(count: int) -> str:
    return "one round" if count == 1 else f"medians of {count} rounds"


def _compared(figures: Mapping[str, float], name: str) -> str:
    """A ratio, with the least and the greatest of the rounds."""
    least, most = figures[f"ratio_{name}_least"], figures[f"ratio_{name}_most"]
    between = "" if least == most else f" ({least:.2f} to {most:.2f} in the rounds)"
    return f"{figures[f'ratio_{name}']:.2f}{between}"
