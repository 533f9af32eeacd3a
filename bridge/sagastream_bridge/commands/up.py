"""The commands that run everything on this machine: a whole stack, the demonstration."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from sagastream_bridge.commands.context import opened, orderly, redis_cli
from sagastream_bridge.commands.ending import stop_event
from sagastream_bridge.commands.metrics import check_room, tell_ports, telling_of_store, told_at_a_port
from sagastream_bridge.commands.named_services import check_where, look_here
from sagastream_bridge.commands.process_options import logged, traced
from sagastream_bridge.commands.retention import retention, set_for_workers
from sagastream_bridge.commands.terminal import safe

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker
    from sagastream.core.sealing import Codec

#: At most so many workers are named that are at work already.
_NAMED: Final = 3


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
@retention
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
        check_where(where)
    from sagastream_bridge.local.stack import SAMPLES, Stack

    # Before anything is started. How many more are needed, for RQ workers, is known once the services are loaded.
    check_room(metrics_port, workers + len(services or SAMPLES))
    stop = stop_event()
    with opened(port=port) as broker:
        from sagastream.broker.outage import Outage
        from sagastream.codecs.setting import seals_with

        codec, on_rq = _checked(broker, services)
        set_for_workers(retention_days, aborted_retention_days)
        check_room(metrics_port, workers + len(services or SAMPLES) + len(on_rq))
        outage = Outage(broker, "sagastream up", stop)
        stack = Stack(
            broker,
            workers=workers,
            services=services or tuple(SAMPLES.values()),
            on_rq=on_rq,
            metrics_at=None if metrics_port is None else (metrics_port, metrics_host),
        )
        for line in (*_where(broker), *_at_work(broker)):
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


def _checked(broker: "Broker", services: Sequence[str]) -> "tuple[Codec | None, list[str]]":
    """Report at once what no restart can mend. Returns the codec, and those services that have steps on RQ."""
    from sagastream.codecs.setting import codec_of
    from sagastream.service.loading import load_service
    from sagastream.store import layout
    from sagastream.tracing.setting import watched
    from sagastream_bridge.local.stack import claim_samples

    layout.check(broker)
    watched("sagastream-up")
    look_here(services)
    on_rq = []
    codec = codec_of(None)
    for where in services:
        (loaded := load_service(where)).publishes()
        codec_of(loaded.codec)
        if loaded.queues:
            on_rq.append(where)
    if not services:
        claim_samples(broker)
    return codec, on_rq


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


def _at_work(broker: "Broker") -> Iterator[str]:
    """That workers are there already: a second `up` in a folder may be a mistake, and nothing else tells of it."""
    import redis

    from sagastream.store import heartbeat, layout

    with suppress(redis.RedisError):  # a node of a cluster may be away: that is told where it matters
        processes = heartbeat.processes(broker.client, layout.check(broker))
        if workers := [one.name for one in processes if one.kind == heartbeat.Kind.WORKER and one.is_alive]:
            rest = f" and {len(workers) - _NAMED} more" if len(workers) > _NAMED else ""
            named = f"{'worker' if len(workers) == 1 else 'workers'} {', '.join(sorted(workers)[:_NAMED])}{rest}"
            yield f"at work  already: {named}; what starts now works beside {'it' if len(workers) == 1 else 'them'}"


@click.command()
def demo() -> None:
    """Run four sagas on an embedded broker, and show every message.

    It has its own broker, in `demo` below the home. What an earlier demonstration left there is erased.
    """
    with orderly():
        from sagastream_bridge.local.demo import demonstrate

        demonstrate(click.echo)


#: All of them.
COMMANDS: Final = (up, demo)
