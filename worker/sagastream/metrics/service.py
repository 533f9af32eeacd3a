"""What a process of a service counts, and what an RQ worker does."""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any, Final

import orjson

from sagastream.core.commands import Command
from sagastream.metrics import catalogue
from sagastream.metrics.process import ProcessMetrics
from sagastream.metrics.tally import MOST_SERIES, Sample, Times
from sagastream.telemetry import Outcome

_DIRECTIONS: Final = {False: "transaction", True: "compensation"}


class ServiceMetrics(ProcessMetrics):
    """Counts for the processes of one service or, in an RQ worker, of several. Handlers run in several threads, so
    there is a lock. It is taken once a call."""

    def __init__(self, kind: str = "service") -> None:
        super().__init__(kind)
        self._lock = threading.Lock()
        self._handler_s = self._histogram(catalogue.HANDLER_SECONDS)
        #: Where to count the usual outcome, by service, command and whether it undoes. Not by outcome: to hash a member
        #: of an enum is a call in Python.
        self._ok: dict[tuple[str, str, bool], Times] = {}

    def handler_finished(self, *, command: Command, outcome: Outcome, duration_s: float, **_: object) -> None:
        if outcome is Outcome.OK:
            times = self._ok.get((command.service, command.type, command.compensating))
            if times is not None:
                with self._lock:
                    times.add(duration_s)
                return
        self.count(command.service, command.type, command.compensating, str(outcome), duration_s)

    def count(self, service: str, command: str, compensating: bool, outcome: str, duration_s: float) -> None:
        """Count one call of a handler."""
        with self._lock:
            times = self._handler_s.of(service, command, _DIRECTIONS[compensating], outcome)
            if outcome == Outcome.OK and len(self._ok) < MOST_SERIES:
                self._ok[service, command, compensating] = times
            times.add(duration_s)


class JobMetrics(ServiceMetrics):
    """Counts for an RQ worker. RQ forks a process for each job, which ends with it. Such a process tells of its calls
    through a pipe, and the worker's own process counts them."""

    def __init__(self) -> None:
        super().__init__("rq")
        self._own_pid = os.getpid()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # if the pipe is full, a call is not counted: no job waits for that
        threading.Thread(target=self._hear, daemon=True).start()

    def handler_finished(self, *, command: Command, outcome: Outcome, duration_s: float, **_: object) -> None:
        if os.getpid() == self._own_pid:
            super().handler_finished(command=command, outcome=outcome, duration_s=duration_s)
            return
        # So short a line, about 400 bytes at most, is written whole or not at all.
        told = (command.service, command.type, command.compensating, str(outcome), duration_s)
        with contextlib.suppress(OSError):
            os.write(self._write, orjson.dumps(told) + b"\n")

    def _hear(self) -> None:
        with os.fdopen(self._read, "rb", closefd=False) as lines:
            for line in lines:
                told: list[Any] = orjson.loads(line)
                self.count(*told)


def gauges(service: str, held: int, running: int) -> Iterator[Sample]:
    """What a process of a service holds, and what runs in it."""
    yield Sample(catalogue.HELD, (service,), held)
    yield Sample(catalogue.RUNNING, (service,), running)
