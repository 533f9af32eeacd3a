"""Metrics for Prometheus: those of a process at a port of its own, and those of a store."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

import click

from sagastream_bridge.commands.context import WrongUsage, opened
from sagastream_bridge.commands.ending import stop_event
from sagastream_bridge.commands.process_options import logged
from sagastream_bridge.commands.terminal import safe

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker
    from sagastream.metrics.process import ProcessMetrics
    from sagastream.metrics.service import JobMetrics, ServiceMetrics
    from sagastream.metrics.tally import Sample
    from sagastream.metrics.worker import WorkerMetrics
    from sagastream.service.runner import ServiceRunner

_HOST: Final = "127.0.0.1"
_LAST_PORT: Final = 65535
_PORT: Final = click.IntRange(1, _LAST_PORT)


def told_at_a_port(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that runs a process the options that say where it tells its metrics."""

    @wraps(command)
    def checked(*, metrics_port: int | None, metrics_host: str | None, **others: Any) -> None:
        if metrics_host is not None and metrics_port is None:
            raise WrongUsage("--metrics-host needs --metrics-port N: without it, no metrics are told")
        command(metrics_port=metrics_port, metrics_host=metrics_host or _HOST, **others)

    text = f"The address of that port.  [default: {_HOST}]"
    with_host = click.option("--metrics-host", metavar="ADDRESS", help=text)(checked)
    return click.option(
        "--metrics-port", type=_PORT, metavar="N", help="Tell figures to Prometheus at this port, at /metrics."
    )(with_host)


def check_room(first: int | None, number: int) -> None:
    """Raises WrongUsage if there are not so many ports after the first one."""
    if first is not None and first + number > _LAST_PORT:
        text = (
            f"--metrics-port {first}: the ports up to {first + number} are needed, one for the store and one for each"
        )
        raise WrongUsage(f"{text} process, and {_LAST_PORT} is the last there is")


def port_options(port: int, host: str) -> list[str]:
    """These options, for a child process."""
    return ["--metrics-port", str(port), "--metrics-host", host]


def url_of(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"


# Each is None without a port. Then nothing is counted, and nothing of it is imported.


def worker_metrics(port: int | None) -> "WorkerMetrics | None":
    if port is None:
        return None
    from sagastream.metrics.worker import WorkerMetrics

    return WorkerMetrics()


def service_metrics(port: int | None) -> "ServiceMetrics | None":
    if port is None:
        return None
    from sagastream.metrics.service import ServiceMetrics

    return ServiceMetrics()


def job_metrics(port: int | None) -> "JobMetrics | None":
    if port is None:
        return None
    from sagastream.metrics.service import JobMetrics

    return JobMetrics()


def process_metrics(kind: str, port: int | None) -> "ProcessMetrics | None":
    if port is None:
        return None
    from sagastream.metrics.process import ProcessMetrics

    return ProcessMetrics(kind)


def gauges_of(service: str, runner: "ServiceRunner") -> "Iterator[Sample]":
    """What a process of a service has in flight."""
    from sagastream.metrics.service import gauges

    return gauges(service, runner.held, runner.running)


def tell_ports(names: Sequence[tuple[str, int]], host: str) -> None:
    """Write whose metrics are told at which port. Raises SagastreamError if one is taken: a child process would only
    tell so again and again."""
    from sagastream.metrics.serving import check_free

    for name, port in names:
        check_free(port, host, of=name)
    for name, port in names:
        click.echo(safe(f"metrics  {url_of(host, port)}  {name}"))


@contextmanager
def telling(metrics: "ProcessMetrics | None", port: int | None, host: str) -> Iterator[None]:
    """While this goes on, the metrics are told at this port."""
    if metrics is None:
        yield
        return
    from sagastream.metrics.serving import told_at

    with told_at(port, host, metrics.samples):
        yield


def telling_of_store(broker: "Broker", port: int | None, host: str) -> AbstractContextManager[None]:
    """While this goes on, the metrics of the store are told at this port."""
    return telling(None if port is None else _of_store(broker), port, host)


def _of_store(broker: "Broker") -> "ProcessMetrics":
    from sagastream_bridge.inspection.store_metrics import StoreMetrics

    return StoreMetrics(broker)


@click.command()
@click.option("--once", is_flag=True, help="Write them to standard output, and end.")
@click.option("--port", type=_PORT, metavar="N", help="Tell them at this port, at /metrics, until stopped.")
@click.option("--host", default=_HOST, show_default=True, metavar="ADDRESS", help="The address of that port.")
@logged
def metrics(once: bool, port: int | None, host: str) -> None:
    """Tell the figures of the store to Prometheus: live and parked sagas, what waits, who works, memory.

    One such process a store is enough. What the processes themselves count, they tell with --metrics-port.
    """
    if once == (port is not None):
        raise WrongUsage("give either --once or --port N")
    if once:
        with opened(create=False) as broker:
            from sagastream.metrics.serving import text
            from sagastream_bridge.inspection.store_metrics import StoreMetrics

            click.echo(text(StoreMetrics(broker, waits=False).samples_or_raise), nl=False)
        return
    stop = stop_event()
    with opened(create=False) as broker, telling_of_store(broker, port, host):
        assert port is not None
        click.echo(safe(f"metrics  {url_of(host, port)}"))
        stop.wait()
