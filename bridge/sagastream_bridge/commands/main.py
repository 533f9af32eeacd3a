"""The command line. Each command imports what it needs when it runs, so that `sagastream --help` is instant."""

import contextlib
import gc
import os
import select
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sagastream_bridge.bench.command import bench
from sagastream_bridge.commands import operate
from sagastream_bridge.commands.context import call_on_signals, finite, opened, orderly, safe, stop_event
from sagastream_bridge.conformance.command import check_service

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker
    from sagastream.client.listing import ListStatus

_STATUSES = ("PENDING", "COMPENSATING", "COMPLETED", "ABORTED", "PARKED")
#: How long `begin` waits for a worker to show up before it says that there is none, in seconds.
_WORKER_GRACE_S = 1.0
_DAY_MS = 24 * 3600 * 1000


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sagastream")
def cli() -> None:
    """Sagas over Redis streams.

    The broker is REDIS_URL or, where that is not set, an embedded Valkey whose data live in SAGASTREAM_HOME (by default
    .sagastream in the current folder). Commands that share a home share its server.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the saga was aborted or is parked.
    """


for command in (*operate.COMMANDS, bench, check_service):
    cli.add_command(command)

_RETENTION = click.option(
    "--retention-days",
    default=7.0,
    show_default=True,
    type=click.FloatRange(0, 3650, min_open=True),
    envvar="SAGASTREAM_RETENTION_DAYS",
    show_envvar=True,
    callback=finite,
    help="How long a saga is kept once it has ended.",
)


def _writable(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """Told now, and not by a process that is up already."""
    from sagastream.health import HealthFile

    if path is None:
        return None
    if path == Path():
        raise click.BadParameter("'' is no path")
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
    help="Touch this file every second or two for as long as the broker answers.",
)
_UNTIL_EOF = click.option("--until-eof", is_flag=True, hidden=True, help="Stop when standard input ends.")


def main() -> NoReturn:
    """The command `sagastream`."""
    if "NO_COLOR" in os.environ:
        cli(color=False)
    cli()
    raise AssertionError("click exits")


@cli.command()
@_RETENTION
@_HEALTH_FILE
@_UNTIL_EOF
def worker(retention_days: float, health_file: Path | None, until_eof: bool) -> None:
    """Run an orchestrator worker. Any number of them may run side by side."""
    stop = stop_event(until_eof)
    with opened() as broker:
        from sagastream.health import health_file_at
        from sagastream.orchestrator.worker import Orchestrator

        gc.freeze()  # what was imported stays: looking at it again and again is one 25th of a worker's time
        with health_file_at(health_file) as health:
            Orchestrator(broker, stop, retention_ms=max(1, int(retention_days * _DAY_MS)), health=health).run()


@cli.command()
@click.argument("where", metavar="MODULE:NAME")
@click.option(
    "--reload", is_flag=True, help="Start it again when a .py file below this folder changes: for development."
)
@click.option(
    "--grace",
    default=25.0,
    show_default=True,
    type=click.FloatRange(0),
    callback=finite,
    metavar="SECONDS",
    help="How long handlers may still run when the process is to end.",
)
@_HEALTH_FILE
@_UNTIL_EOF
def service(where: str, reload: bool, grace: float, health_file: Path | None, until_eof: bool) -> None:
    """Run a service, like shop.payment:service. Any number of processes may share its work."""
    _check_where(where)
    stop = stop_event(until_eof)
    sys.path.insert(0, str(Path.cwd()))
    with opened() as broker:
        if reload:
            from sagastream_bridge.local.reload import run

            more = ["--grace", str(grace), *(["--health-file", str(health_file)] if health_file else [])]
            run(broker, where, more, stop, grace_s=grace)
            return
        from sagastream.health import health_file_at
        from sagastream.service.loading import load_service
        from sagastream.service.runner import ServiceRunner

        os.environ["REDIS_URL"] = broker.url  # for handlers that keep their data in the same place
        with health_file_at(health_file) as health:
            loaded, elsewhere = load_service(where), None
            if loaded.queues:
                from sagastream.rq_steps.dispatcher import on_rq

                elsewhere = on_rq(broker, loaded)
            gc.freeze()  # see `worker`
            ServiceRunner(broker, loaded, stop, grace_s=grace, health=health, elsewhere=elsewhere).run()


@cli.command("rq-worker")
@click.argument("services", nargs=-1, required=True, metavar="MODULE:NAME...")
@_UNTIL_EOF
def rq_worker(services: tuple[str, ...], until_eof: bool) -> None:
    """Run an RQ worker for the steps of services that run on RQ.

    The same as `rq worker -w sagastream.rq_runner.SagaWorker`, with SAGASTREAM_SERVICES and the queues set; also for an
    embedded broker.
    """
    for where in services:
        _check_where(where)
    with opened() as broker:
        from sagastream.rq_steps.worker import run_worker

        sys.path.insert(0, str(Path.cwd()))
        threading.Thread(target=_tend, args=(broker, until_eof), daemon=True).start()
        run_worker(broker, services)


@cli.command()
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Orchestrator workers.")
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="MODULE:NAME",
    help="A service to run in place of the three samples; may be given several times.",
)
@_RETENTION
def up(workers: int, services: tuple[str, ...], retention_days: float) -> None:
    """Run everything: the broker, workers, services. What dies is started again."""
    for where in services:
        _check_where(where)
    stop = stop_event()
    with opened() as broker:
        from sagastream.broker.outage import Outage
        from sagastream.service.loading import load_service

        # What no restart can mend is told at once.
        from sagastream.store import layout
        from sagastream_bridge.local.stack import SAMPLES, Stack

        layout.check(broker)
        sys.path.insert(0, str(Path.cwd()))
        on_rq = []
        for where in services:
            (loaded := load_service(where)).publishes()
            if loaded.queues:
                on_rq.append(where)
        os.environ["SAGASTREAM_RETENTION_DAYS"] = str(retention_days)  # for the workers
        outage = Outage(broker, "sagastream up", stop)
        stack = Stack(broker, workers=workers, services=services or tuple(SAMPLES.values()), on_rq=on_rq)
        click.echo(f"broker   {broker.shown_url}")
        if broker.embedded is not None:
            click.echo(f"look     redis-cli -p {broker.embedded.port}")
        click.echo("stop     Ctrl-C")
        try:
            while not stop.is_set():
                outage.restore()
                stack.tend()
                stop.wait(0.2)
        finally:
            stack.stop()


@cli.command()
@click.option("--outcomes/--no-outcomes", default=None, help="Tell how each saga ended [default: on a terminal].")
@click.option("--trace", "echo", is_flag=True, help="Write out every command and reply too.")
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
def bridge(outcomes: bool | None, echo: bool, serve: str, drain_timeout: float) -> None:
    """Speak the stdin protocol: one JSON object a line, in and out.

    Without REDIS_URL, and where nothing runs in the home yet, the bridge brings up the broker, a worker and the sample
    services for as long as it lives.
    """
    from sagastream.core.messages import is_id

    names = [name.strip() for name in serve.split(",") if name.strip()]
    for name in names:
        if not is_id(name) or name == "orchestrator":
            raise click.BadParameter(f"{name!a} cannot be the name of a service", param_hint="--serve")
    with opened() as broker:
        from sagastream_bridge.stdin.bridge import StdinBridge

        if outcomes is None:
            outcomes = os.isatty(0)
        run = StdinBridge(broker, outcomes=outcomes, echo=echo, serve=names, drain_timeout_s=drain_timeout)
        call_on_signals(run.stop)
        code = run.run(0)
    sys.exit(code)


@cli.command()
@click.argument("file", type=click.File("rb"))
@click.option("--wait", is_flag=True, help="Wait for the end; exit code 3 if the saga was aborted or is parked.")
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    callback=finite,
    metavar="SECONDS",
    help="With --wait: how long at the most.",
)
def begin(file: Any, wait: bool, timeout: float | None) -> None:
    """Begin the saga in FILE (- for standard input): a saga_begin body of the protocol, with saga_id and steps."""
    from sagastream.core.parsing import parse_begin
    from sagastream.core.strict_json import decode
    from sagastream.errors import MalformedMessage

    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    with orderly():
        body = file.read()
    try:
        request = parse_begin(decode(body), request_id=uuid.uuid4().hex)
    except MalformedMessage as error:
        raise click.ClickException(f"{file.name}: {error}") from None
    with opened() as broker:
        from sagastream.broker.outage import Outage
        from sagastream.client.blocking import SagaClient

        outage = Outage(broker, "sagastream begin", threading.Event())
        client = SagaClient(broker)
        from sagastream.store import layout

        layout.check(broker)
        accepted = outage.patiently(lambda: client.begin_request(request))
        if not outage.patiently(lambda: _worker_shows_up(broker)):
            click.echo("no worker is running; the saga waits for one: sagastream up", err=True)
        if not wait:
            click.echo(f"{request.saga_id} accepted")
            return
        try:
            state = client.wait(accepted, timeout)
        except TimeoutError as error:
            raise click.ClickException(str(error)) from None
        why = f"parked: {state.parked}" if state.parked else state.reason
        click.echo(f"{state.saga_id} {state.status}" + (f": {safe(why)}" if why else ""))
    sys.exit(0 if state.status == "COMPLETED" else 3)


@cli.command()
@click.argument("saga_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The SagaState of the protocol, with what else is known.")
def show(saga_id: str, as_json: bool) -> None:
    """Show where a saga is, and why."""
    from sagastream.core.messages import is_id

    if not is_id(saga_id):
        raise click.BadParameter("an id is 1 to 128 characters of A-Z a-z 0-9 . _ : -", param_hint="ID")
    with opened() as broker:
        from sagastream_bridge.inspection import lookup, views

        found = lookup.saga(broker.client, saga_id)
        if found.state is None:
            raise click.ClickException(f"there is no saga {saga_id} in this store{found.hint}")
        if as_json:
            click.echo(lookup.as_json(found))
        else:
            for line in views.saga(found.state, found.now_ms, found.notes):
                click.echo(line)


@cli.command("list")
@click.option("--status", type=click.Choice(_STATUSES, case_sensitive=False), help="Only these.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="How many at the most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_sagas(status: "ListStatus | None", limit: int, as_json: bool) -> None:
    """List sagas: parked ones first, then live ones, then ended ones, the newest first."""
    with opened() as broker:
        from sagastream_bridge.inspection import lookup, views

        listing = lookup.listing(broker, status, limit)
        for state in listing.states:
            click.echo(lookup.row_as_json(state) if as_json else views.row(state, listing.now_ms))
        for problem in listing.damaged:
            click.echo(f"DAMAGED       {safe(problem)}")
        shown = len(listing.states)
        more = " (--limit shows more)" if shown == limit else ""
        unread = f", {listing.unread} requested and not read by a worker yet" if listing.unread else ""
        aside = f", {listing.quarantined} messages quarantined" if listing.quarantined else ""
        counts = f"{listing.live} live and {listing.ended} ended in the store{unread}{aside}"
        click.echo(f"{shown} shown{more}; {counts}", err=True)


@cli.command()
def demo() -> None:
    """Run three sagas on an embedded broker, and show every message.

    The broker is one of its own, in `demo` below the home; what an earlier demonstration left in it is erased.
    """
    with orderly():
        from sagastream_bridge.local.demo import run

        run()


def _tend(broker: "Broker", until_eof: bool) -> None:
    """For a worker of RQ's, which knows nothing of an embedded server that dies, nor of standard input."""
    from sagastream.errors import BrokerError

    while True:
        if until_eof and select.select([0], [], [], 1.0)[0] and not os.read(0, 4096):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if not until_eof:
            time.sleep(1.0)
        with contextlib.suppress(BrokerError):
            broker.restore()


def _check_where(where: str) -> None:
    module, _, name = where.partition(":")
    if not module or not name:
        raise click.BadParameter(f"{where!a} is not MODULE:NAME, like shop.payment:service")


def _worker_shows_up(broker: "Broker") -> bool:
    from sagastream_bridge.inspection import lookup

    deadline = time.monotonic() + _WORKER_GRACE_S
    while not (alive := lookup.worker_is_alive(broker.client)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


if __name__ == "__main__":
    main()
