"""The commands that run something: workers, services, a whole stack, the bridge, the demonstration."""

import contextlib
import gc
import os
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sagastream_bridge.commands.context import (
    call_on_signals,
    finite,
    logged,
    opened,
    orderly,
    redis_cli,
    safe,
    stop_event,
    traced,
)
from sagastream_bridge.commands.metrics import (
    check_room,
    gauges_of,
    job_metrics,
    port_options,
    process_metrics,
    service_metrics,
    tell_ports,
    telling,
    telling_of_store,
    told_at_a_port,
    worker_metrics,
)

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker

_DAY_MS: Final = 24 * 3600 * 1000

#: The environment variables of how long sagas are kept.
_RETENTION_VARIABLE: Final = "SAGASTREAM_RETENTION_DAYS"
_ABORTED_VARIABLE: Final = "SAGASTREAM_ABORTED_RETENTION_DAYS"
_DAYS: Final = click.FloatRange(0, 3650, min_open=True)


def _retention(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say how long sagas are kept."""
    command = click.option(
        "--aborted-retention-days",
        type=_DAYS,
        envvar=_ABORTED_VARIABLE,
        show_envvar=True,
        callback=finite,
        help="The same of a saga that is ABORTED.  [default: as any other]",
    )(command)
    return click.option(
        "--retention-days",
        default=7.0,
        show_default=True,
        type=_DAYS,
        envvar=_RETENTION_VARIABLE,
        show_envvar=True,
        callback=finite,
        help="How long a saga is kept once it has ended.",
    )(command)


def _milliseconds(days: float) -> int:
    return max(1, int(days * _DAY_MS))


def _writable(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """Checks now that the file can be written, not when the process is running."""
    from sagastream.health import HealthFile

    if path is None:
        return None
    if path == Path():
        raise click.BadParameter("'' is not a path")
    try:
        HealthFile(path)
    except OSError as error:
        raise click.ClickException(safe(f"cannot write --health-file {path}: {error.strerror}")) from None
    return path


_HEALTH_FILE = click.option(
    "--health-file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_writable,
    metavar="PATH",
    help="Touch this file every second or two while the broker answers.",
)
_UNTIL_EOF = click.option("--until-eof", is_flag=True, hidden=True, help="Stop when standard input ends.")


@click.command()
@_retention
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
@_HEALTH_FILE
@logged
@traced
@_UNTIL_EOF
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
                retention_ms=_milliseconds(retention_days),
                aborted_retention_ms=None if aborted_retention_days is None else _milliseconds(aborted_retention_days),
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
@_HEALTH_FILE
@told_at_a_port
@logged
@traced
@_UNTIL_EOF
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
    _check_where(where)
    stop = stop_event(until_eof)
    with opened() as broker:
        _look_here([where])
        if reload:
            from sagastream_bridge.local.reload import run_again_when_changed

            more = ["--grace", str(grace), *(["--health-file", str(health_file)] if health_file else [])]
            more += [] if metrics_port is None else port_options(metrics_port, metrics_host)
            run_again_when_changed(broker, where, more, stop, grace_s=grace)
            return
        from sagastream.health import health_file_at
        from sagastream.service.loading import load_service
        from sagastream.service.runner import ServiceRunner
        from sagastream.tracing.setting import watched

        os.environ |= {
            "REDIS_URL": broker.url,
            "SAGASTREAM_PREFIX": broker.prefix,
        }  # for handlers that keep their data in the same place
        with health_file_at(health_file) as health:
            loaded, dispatcher = load_service(where), None
            _claim(broker, where, loaded.name)
            if loaded.queues:
                from sagastream.rq_steps.dispatcher import on_rq

                dispatcher = on_rq(broker, loaded)
            metrics = service_metrics(metrics_port)
            observer = watched(loaded.name, metrics)  # once the service is loaded: it may set a TracerProvider
            runner = ServiceRunner(
                broker, loaded, stop, grace_s=grace, health=health, dispatcher=dispatcher, observer=observer
            )
            if metrics is not None:
                metrics.also(lambda: gauges_of(loaded.name, runner))
            _collect_rarely()
            with telling(metrics, metrics_port, metrics_host):
                runner.run()


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
@_UNTIL_EOF
def rq_worker(services: tuple[str, ...], metrics_port: int | None, metrics_host: str, until_eof: bool) -> None:
    """Run an RQ worker for the steps of services that run on RQ.

    The same as `rq worker -w sagastream.rq_runner.SagaWorker`, with SAGASTREAM_SERVICES and the queues set; also for an
    embedded broker.
    """
    for where in services:
        _check_where(where)
    with opened() as broker:
        from sagastream.rq_steps.worker import run_worker

        _look_here(services)
        threading.Thread(target=_tend, args=(broker, until_eof), daemon=True).start()
        metrics = job_metrics(metrics_port)
        with telling(metrics, metrics_port, metrics_host):
            run_worker(broker, services, metrics)


@click.command()
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Orchestrator workers.")
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="MODULE:NAME",
    help="A service to run instead of the three samples; may be given several times.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Let the embedded broker also listen at this port of 127.0.0.1, with a password.",
)
@told_at_a_port
@logged
@traced
@_retention
def up(
    *,
    workers: int,
    services: tuple[str, ...],
    port: int | None,
    metrics_port: int | None,
    metrics_host: str,
    retention_days: float,
    aborted_retention_days: float | None,
) -> None:
    """Run everything: the broker, workers, services. A process that dies is started again.

    With --metrics-port N, the store's metrics are told at N, and those of the processes at the ports after it.
    """
    for where in services:
        _check_where(where)
    from sagastream_bridge.local.stack import SAMPLES, Stack, claim_samples

    # Before anything is started. How many more are needed, for RQ workers, is known once the services are loaded.
    check_room(metrics_port, workers + len(services or SAMPLES))
    stop = stop_event()
    with opened(port=port) as broker:
        from sagastream.broker.outage import Outage
        from sagastream.codecs.setting import codec_of, seals_with
        from sagastream.service.loading import load_service

        # Report at once what no restart can mend.
        from sagastream.store import layout
        from sagastream.tracing.setting import watched

        layout.check(broker)
        watched("sagastream-up")
        _look_here(services)
        on_rq = []
        codec = codec_of(None)
        for where in services:
            (loaded := load_service(where)).publishes()
            codec_of(loaded.codec)
            if loaded.queues:
                on_rq.append(where)
        if not services:
            claim_samples(broker)
        os.environ[_RETENTION_VARIABLE] = str(retention_days)  # for the workers
        if aborted_retention_days is not None:
            os.environ[_ABORTED_VARIABLE] = str(aborted_retention_days)
        check_room(metrics_port, workers + len(services or SAMPLES) + len(on_rq))
        outage = Outage(broker, "sagastream up", stop)
        stack = Stack(
            broker,
            workers=workers,
            services=services or tuple(SAMPLES.values()),
            on_rq=on_rq,
            metrics_at=None if metrics_port is None else (metrics_port, metrics_host),
        )
        for line in _where(broker):
            click.echo(safe(line))
        tell_ports(stack.metrics_ports, metrics_host)
        if codec is not None:
            click.echo(safe(f"values   {seals_with(codec)}"))
        try:
            with telling_of_store(broker, metrics_port, metrics_host):
                while not stop.is_set():
                    outage.restore()
                    stack.tend()
                    stop.wait(0.2)
        finally:
            stack.stop()


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


@click.command()
def demo() -> None:
    """Run four sagas on an embedded broker, and show every message.

    It has its own broker, in `demo` below the home. What an earlier demonstration left there is erased.
    """
    with orderly():
        from sagastream_bridge.local.demo import demonstrate

        demonstrate(click.echo)


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


def _where(broker: "Broker") -> Iterator[str]:
    """Where the broker of `up` is, and how to look at it and stop it. Its password is named by its file: these lines
    may be kept in a log, and everybody can read the arguments of a command."""
    yield f"broker   {broker.shown_url}"
    if (server := broker.embedded) is not None:
        yield f"home     {server.home}"
        at = server.endpoint
        if at.password:
            file = shlex.quote(str(server.home / "password"))
            yield f"port     127.0.0.1:{at.port}: REDIS_URL=redis://default:$(cat {file})@127.0.0.1:{at.port}"
        yield f"look     {redis_cli(broker)}"
    yield "stop     Ctrl-C"


def _look_here(services: Sequence[str]) -> None:
    """Let services be found in the current folder: whoever names one of theirs trusts that folder. Who runs only ours
    does not, so no module of that folder must be imported in the place of ours, or of those that we use."""
    if any(where.partition(".")[0] not in ("sagastream_stubs", "sagastream_bridge") for where in services):
        sys.path.insert(0, str(Path.cwd()))


def _claim(broker: "Broker", where: str, name: str) -> None:
    """If a service has the name of a sample that was started in this store: say so, and have none started again."""
    import redis

    from sagastream.errors import SagastreamError
    from sagastream.store import layout, published
    from sagastream.telemetry import Log
    from sagastream_bridge.local.stack import SAMPLES

    if where in SAMPLES.values():
        return
    # If the broker is away, or the store is not usable, the process says so itself.
    with contextlib.suppress(redis.RedisError, SagastreamError):
        if published.claim(broker.client, layout.look(broker), name):
            Log("service", f"service {name}").warning(
                "sagastream up has started the sample service of this name in this store; if it still runs, it takes "
                "commands too: stop it"
            )


def _check_where(where: str) -> None:
    module, _, name = where.partition(":")
    if not module or not name:
        raise click.BadParameter(f"{where!a} is not MODULE:NAME, like shop.payment:service")


#: All of them.
COMMANDS: Final = (worker, service, rq_worker, up, bridge, demo)
