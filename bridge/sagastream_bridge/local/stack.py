"""Workers and services on one machine, as child processes that are restarted when they die."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from sagastream.broker.connection import PREFIX_VARIABLE, Broker
from sagastream.broker.home import open_private
from sagastream.core.backoff import delay
from sagastream.errors import SagastreamError
from sagastream.store import layout, published
from sagastream.telemetry import Log

#: The sample services, by name. They are not imported, but run as any other service.
SAMPLES: Final[Mapping[str, str]] = {
    name: f"sagastream_stubs.{name}:service" for name in ("inventory", "payment", "shipping")
}
#: How long a process may take to finish its work before it is killed, in seconds.
STOP_TIMEOUT_S: Final = 10.0
#: A process that lived at least this long, in seconds, is restarted at once when it dies; else after a growing delay.
_HEALTHY_S: Final = 10.0
_LOG: Final = Log("stack", "sagastream")


@dataclass(slots=True)
class _Child:
    name: str
    arguments: list[str]
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    failures: int = 0
    not_before: float = field(default=0.0)


class Stack:
    """Workers and services as child processes. A child stops when its standard input ends, and so when its parent dies,
    however that dies."""

    def __init__(
        self,
        broker: Broker,
        *,
        workers: int,
        services: Sequence[str],
        on_rq: Sequence[str] = (),
        log_dir: Path | None = None,
        metrics_at: tuple[int, str] | None = None,
    ) -> None:
        """`services`: MODULE:NAME each. `on_rq`: those that also need an RQ worker. `log_dir`: the folder for the
        output of the children; by default it goes to our stderr. `metrics_at`: the host and the first of the ports
        at which metrics are told: those of the store, by the caller, and then those of each child. None: at none."""
        self._broker = broker
        self._log_dir = log_dir
        self._children = [_Child(f"worker-{n}", ["worker"]) for n in range(1, workers + 1)]
        self._children += [_Child(where.replace(":", "-"), ["service", where]) for where in services]
        self._children += [_Child(f"{where.replace(':', '-')}-rq", ["rq-worker", where]) for where in on_rq]
        #: Whose metrics are told, and at which port.
        self.metrics_ports: list[tuple[str, int]] = []
        if metrics_at is not None:
            first, host = metrics_at
            self.metrics_ports.append(("store", first))
            for port, child in enumerate(self._children, first + 1):
                child.arguments += ["--metrics-port", str(port), "--metrics-host", host]
                self.metrics_ports.append((child.name, port))

    def tend(self) -> None:
        """Start what is not running. Call this again and again."""
        for child in self._children:
            if child.process is not None and (code := child.process.poll()) is not None:
                lived = time.monotonic() - child.started
                child.failures = 1 if lived > _HEALTHY_S else child.failures + 1
                child.not_before = time.monotonic() + delay(child.failures, longest_s=10.0)
                child.process = None
                ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                _LOG.warning(f"{' '.join(child.arguments)} {ended}; starting it again")
            if child.process is None and time.monotonic() >= child.not_before:
                self._start(child)

    def pids(self, command: str) -> list[int]:
        """Of the processes that run as `sagastream COMMAND`."""
        return [
            child.process.pid for child in self._children if child.process is not None and child.arguments[0] == command
        ]

    def stop(self) -> None:
        """Let all processes finish their work, and wait for them."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            assert process.stdin is not None
            process.stdin.close()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in running:
            end(process, max(0.0, deadline - time.monotonic()))

    def _start(self, child: _Child) -> None:
        child.started = time.monotonic()
        log = None if self._log_dir is None else _log(self._log_dir / f"{child.name}.log")
        try:
            child.process = spawn(self._broker, child.arguments, log)
        finally:
            if log is not None:
                log.close()


def _log(path: Path) -> IO[bytes]:
    return os.fdopen(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def claim_samples(broker: Broker) -> None:
    """Say in the store that the sample services are samples. Raises SagastreamError if a service there is none. If it
    has the name of a sample, that would take its commands, and answer them with what nobody has done. If not, the
    samples would stay among the services of the store, where nobody wants them."""
    taken = published.claim_for_samples(broker.client, layout.check(broker), SAMPLES)
    if taken is not None:
        sample = "the sample" if taken in SAMPLES else "a sample"
        raise SagastreamError(
            f"service {taken} of this store is not {sample}; for workers alone: sagastream worker; with your own "
            "services: sagastream up --service MODULE:NAME"
        )


def spawn(
    broker: Broker, arguments: Sequence[str], log: IO[bytes] | None = None, **env: str
) -> "subprocess.Popen[bytes]":
    """Start `sagastream ARGUMENTS` on this broker: a command that ends when its standard input ends. Its output goes to
    `log`, by default to our stderr. `env` is added to its environment."""
    said = log or sys.stderr
    # -P: a module of the current folder must not stand in for one of ours, or of those that we use.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "sagastream_bridge.commands.main", *arguments, "--until-eof"],
        stdin=subprocess.PIPE,
        stdout=said,
        stderr=said,
        env=os.environ | {"REDIS_URL": broker.url, PREFIX_VARIABLE: broker.prefix, "PYTHONUNBUFFERED": "1"} | env,
        start_new_session=True,  # Ctrl-C goes to the parent only, which stops its children in order
    )


def end(process: "subprocess.Popen[bytes]", timeout_s: float) -> None:
    """Let a process finish its work, for at most so long; then kill it."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()  # other processes take over what it held
        process.wait()
