"""The commands that run one process: a worker, a service, a worker of RQ, the bridge."""

import contextlib
import gc
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sagastream_bridge.commands.context import opened
from sagastream_bridge.commands.ending import call_on_signals, stop_event
from sagastream_bridge.commands.given import finite
from sagastream_bridge.commands.metrics import (
    gauges_of,
    job_metrics,
    port_options,
    process_metrics,
    service_metrics,
    telling,
    told_at_a_port,
    worker_metrics,
)
from sagastream_bridge.commands.named_services import check_where, claim, look_here
from sagastream_bridge.commands.process_options import health_file_option, logged, traced, until_eof_option
from sagastream_bridge.commands.retention import milliseconds, retention

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker
    from sagastream.health import HealthFile
    from sagastream.metrics.service import ServiceMetrics
    from sagastream.service.runner import ServiceRunner


@click.command()
@retention
@told_at_a_port
@click.option(
    "--max-unread",
    type=click.IntRange(1),
    envvar="SAGASTREAM_MAX_UNREAD",
    show_envvar=True,
    help="If more requests to begin sagas wait, clients are told to wait.  [default: 100000 a partition]",
)
@click.option(
    "--history-bytes",
    type=click.IntRange(0, 1 << 20),
    envvar="SAGASTREAM_HISTORY_BYTES",
    show_envvar=True,
    help="What a saga keeps of attempts that failed, for show --history; 0: nothing.  [default: 4096]",
)
@health_file_option
@logged
@traced
@until_eof_option
def worker(
    *,
    retention_days: float,
    aborted_retention_days: float | None,
    max_unread: int | None,
    history_bytes: int | None,
    health_file: Path | None,
    metrics_port: int | None,
    metrics_host: str,
    until_eof: bool,
) -> None:
    """Run an orchestrator worker. Any number of them may run side by side."""
    stop = stop_event(until_eof)
    with opened() as broker:
        from sagastream.core.journal import JOURNAL_BYTES
        from sagastream.health import health_file_at
        from sagastream.orchestrator.room import MOST_UNREAD
        from sagastream.orchestrator.worker import Orchestrator
        from sagastream.tracing.setting import watched

        metrics = worker_metrics(metrics_port)
        observer = watched("sagastream-worker", metrics)
        _collect_rarely()
        with health_file_at(health_file) as health, telling(metrics, metrics_port, metrics_host):
            Orchestrator(
                broker,
                stop,
                retention_ms=milliseconds(retention_days),
                aborted_retention_ms=None if aborted_retention_days is None else milliseconds(aborted_retention_days),
                max_unread=MOST_UNREAD if max_unread is None else max_unread,
                health=health,
                observer=observer,
                history_bytes=JOURNAL_BYTES if history_bytes is None else history_bytes,
            ).run()


@click.command()
@click.argument("where", metavar="MODULE:NAME")
@click.option(
    "--reload", is_flag=True, help="For development: start it again when a .py file below this folder changes."
)
@click.option(
    "--grace",
    default=25.0,
    show_default=True,
    type=click.FloatRange(0),
    callback=finite,
    metavar="SECONDS",
    help="How long handlers may still run when the process has to end.",
)
@health_file_option
@told_at_a_port
@logged
@traced
@until_eof_option
def service(
    *,
    where: str,
    reload: bool,
    grace: float,
    health_file: Path | None,
    metrics_port: int | None,
    metrics_host: str,
    until_eof: bool,
) -> None:
    """Run a service, like shop.payment:service. Any number of processes may share its work."""
    check_where(where)
    stop = stop_event(until_eof)
    with opened() as broker:
        look_here([where])
        if reload:
            from sagastream_bridge.local.reload import run_again_when_changed

            more = ["--grace", str(grace), *(["--health-file", str(health_file)] if health_file else [])]
            more += [] if metrics_port is None else port_options(metrics_port, metrics_host)
            run_again_when_changed(broker, where, more, stop, grace_s=grace)
            return
        from sagastream.health import health_file_at

        os.environ |= {
            "REDIS_URL": broker.url,
            "SAGASTREAM_PREFIX": broker.prefix,
        }  # for handlers that keep their data in the same place
        with health_file_at(health_file) as health:
            runner, metrics = _runner(broker, where, stop, grace_s=grace, health=health, metrics_port=metrics_port)
            _collect_rarely()
            with telling(metrics, metrics_port, metrics_host):
                runner.run()


def _runner(
    broker: "Broker",
    where: str,
    stop: threading.Event,
    *,
    grace_s: float,
    health: "HealthFile | None",
    metrics_port: int | None,
) -> "tuple[ServiceRunner, ServiceMetrics | None]":
    """The service that stands there, loaded and ready to run; and its metrics, if they are told."""
    from sagastream.service.loading import load_service
    from sagastream.service.runner import ServiceRunner
    from sagastream.tracing.setting import watched

    loaded, dispatcher = load_service(where), None
    claim(broker, where, loaded.name)
    if loaded.queues:
        from sagastream.rq_steps.dispatcher import on_rq

        dispatcher = on_rq(broker, loaded)
    metrics = service_metrics(metrics_port)
    observer = watched(loaded.name, metrics)  # once the service is loaded: it may set a TracerProvider
    runner = ServiceRunner(
        broker, loaded, stop, grace_s=grace_s, health=health, dispatcher=dispatcher, observer=observer
    )
    if metrics is not None:
        metrics.also(lambda: gauges_of(loaded.name, runner))
    return runner, metrics


def _collect_rarely() -> None:
    """Have the garbage collector look at little, and seldom; otherwise it takes 1/25 of a worker's time.

    Imported objects stay. What a message leaves has no cycles, so it is freed without the collector; but a batch has
    more objects than the usual threshold.
    """
    gc.freeze()
    gc.set_threshold(10_000)


@click.command("rq-worker")
@click.argument("services", nargs=-1, required=True, metavar="MODULE:NAME...")
@told_at_a_port
@logged
@traced
@until_eof_option
def rq_worker(services: tuple[str, ...], metrics_port: int | None, metrics_host: str, until_eof: bool) -> None:
    """Run an RQ worker for the steps of services that run on RQ.

    The same as `rq worker -w sagastream.rq_runner.SagaWorker`, with SAGASTREAM_SERVICES and the queues set; also for an
    embedded broker.
    """
    for where in services:
        check_where(where)
    with opened() as broker:
        from sagastream.rq_steps.worker import run_worker

        look_here(services)
        threading.Thread(target=_tend, args=(broker, until_eof), daemon=True).start()
        metrics = job_metrics(metrics_port)
        with telling(metrics, metrics_port, metrics_host):
            run_worker(broker, services, metrics)


@click.command()
@click.option(
    "--outcomes/--no-outcomes",
    default=None,
    help="Tell how each saga ended [default: on a terminal, and with --trace].",
)
@click.option("--trace", "echo", is_flag=True, help="Also write every command and reply.")
@click.option("--serve", default="", metavar="A,B", help="Services that standard input plays.")
@click.option(
    "--drain-timeout",
    default=4.0,
    show_default=True,
    type=click.FloatRange(0),
    callback=finite,
    metavar="SECONDS",
    help="How long to wait at the end of input for the sagas that were begun.",
)
@click.option("--accept-sealed", is_flag=True, help="Without keys, send on what looks sealed: the sender sealed it.")
@told_at_a_port
@logged
def bridge(
    *,
    outcomes: bool | None,
    echo: bool,
    serve: str,
    drain_timeout: float,
    accept_sealed: bool,
    metrics_port: int | None,
    metrics_host: str,
) -> None:
    """Speak the stdin protocol: one JSON object a line, in and out.

    Without REDIS_URL, and if nothing runs in the home yet, the bridge runs the broker, a worker and the sample services
    while it lives.
    """
    from sagastream.core.messages import is_service

    names = [name.strip() for name in serve.split(",") if name.strip()]
    for name in names:
        if not is_service(name) or name == "orchestrator":
            raise click.BadParameter(f"{name!a} cannot be the name of a service", param_hint="--serve")
    with opened() as broker:
        from sagastream_bridge.stdin.bridge import StdinBridge

        if outcomes is None:
            outcomes = echo or os.isatty(0)
        metrics = process_metrics("bridge", metrics_port)
        run = StdinBridge(
            broker,
            outcomes=outcomes,
            echo=echo,
            serve=names,
            drain_timeout_s=drain_timeout,
            accept_sealed=accept_sealed,
            observer=metrics,
        )
        call_on_signals(run.stop)
        with telling(metrics, metrics_port, metrics_host):
            code = run.run(0)
    sys.exit(code)


def _tend(broker: "Broker", until_eof: bool) -> None:
    """Does for a worker of RQ what it does not do itself: restart an embedded server, and watch standard input."""
    from sagastream.errors import BrokerError

    while True:
        if until_eof and select.select([0], [], [], 1.0)[0] and not os.read(0, 4096):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if not until_eof:
            time.sleep(1.0)
        with contextlib.suppress(BrokerError):
            broker.restore()


#: All of them.
COMMANDS: Final = (worker, service, rq_worker, bridge)
