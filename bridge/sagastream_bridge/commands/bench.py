"""The command `sagastream bench`."""

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from sagastream_bridge.commands.context import opened, orderly

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker


@click.command()
@click.option(
    "--sagas",
    default=5000,
    show_default=True,
    type=click.IntRange(100, 10_000_000),
    help="How many, for each figure.",
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Orchestrator workers.")
@click.option(
    "--partitions",
    type=click.IntRange(1, 256),
    help="Measure on a store with this many partitions.",
)
@click.option(
    "--cluster",
    "nodes",
    type=click.IntRange(1, 32),
    metavar="N",
    help="Measure on a cluster of N nodes, with 2 partitions each if --partitions does not say.",
)
@click.option(
    "--rounds",
    default=5,
    show_default=True,
    type=click.IntRange(1, 100),
    help="How many; the figures are their medians.",
)
@click.option(
    "--shape",
    default="chain",
    show_default=True,
    # The names of services.SHAPES, which are not imported for `--help`; a test compares them.
    type=click.Choice(["chain", "references", "fan-out", "compose-post"]),
    help="Three steps; the same with references; ten in parallel; four in parallel and three more, with references.",
)
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
def bench(
    *, sagas: int, workers: int, partitions: int | None, nodes: int | None, rounds: int, shape: str, as_json: bool
) -> None:
    """Measure how fast sagas run here, against the bare stream traffic on the same server.

    It starts its own workers and services on the broker, which should be idle, and leaves its sagas there until they
    expire. With --partitions it starts an embedded broker too, and deletes it afterwards; with --cluster the nodes of
    a cluster, on loopback. Compare the ratios and the CPU time per saga: on a shared machine, the other figures depend
    on the hour.
    """
    with _broker(partitions, nodes) as broker:
        from sagastream_bridge.bench.measure import Measurement, lines

        with TemporaryDirectory(prefix="sagastream-bench-") as logs:
            measurement = Measurement(
                broker, sagas=sagas, workers=workers, rounds=rounds, log_dir=Path(logs), shape=shape
            )
            with _progress(measurement.total) as tick:
                result = measurement.run(tick)
        if as_json:
            click.echo(json.dumps(result))
            return
        for line in lines(result):
            click.echo(line)


def _broker(partitions: int | None, nodes: int | None) -> "AbstractContextManager[Broker]":
    if nodes is not None:
        return _thrown_away(partitions or 2 * nodes, nodes)
    return opened() if partitions is None else _thrown_away(partitions)


@contextmanager
def _thrown_away(partitions: int, nodes: int = 0) -> "Iterator[Broker]":
    """A broker with a store of this many partitions, in a folder that is deleted afterwards: an embedded one, or a
    cluster of so many nodes."""
    with orderly(), TemporaryDirectory(prefix="sagastream-bench-") as folder, ExitStack() as stack:
        from sagastream.broker import exchange
        from sagastream.broker.connection import Broker
        from sagastream.store.layout import Layout
        from sagastream_bridge.bench.nodes import started

        broker = Broker(stack.enter_context(started(nodes, Path(folder)))) if nodes else Broker(home=folder)
        try:
            exchange.run(broker.client, Layout(broker.prefix, partitions).opened())
            yield broker
        finally:
            broker.close()


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A progress bar, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=total, label="sagas", file=sys.stderr) as bar:
        yield bar.update
