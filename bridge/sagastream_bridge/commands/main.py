"""The command line. Each command imports what it needs when it runs, so that `sagastream --help` is instant."""

import io
import os
import sys
from typing import NoReturn

import click

from sagastream_bridge.commands import ask, definitions, deploy, operate, pause, run, sagas, store, transfer, up
from sagastream_bridge.commands.acl import acl
from sagastream_bridge.commands.bench import bench
from sagastream_bridge.commands.bulk import bulk
from sagastream_bridge.commands.check_service import check_service
from sagastream_bridge.commands.dashboard import dashboard
from sagastream_bridge.commands.erase import erase
from sagastream_bridge.commands.metrics import metrics
from sagastream_bridge.commands.terminal import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sagastream")
def cli() -> None:
    """Sagas over Redis streams.

    The broker is REDIS_URL or, if that is not set, an embedded Valkey whose data live in SAGASTREAM_HOME. By default
    that is a folder in ~/.local/state/sagastream, one for each folder in which you work. Commands that share a home
    share its server.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the saga was aborted or is parked.
    """


for command in (
    *run.COMMANDS,
    *up.COMMANDS,
    *sagas.COMMANDS,
    *ask.COMMANDS,
    *pause.COMMANDS,
    *operate.COMMANDS,
    *deploy.COMMANDS,
    *store.COMMANDS,
    *transfer.COMMANDS,
    *definitions.COMMANDS,
    acl,
    bench,
    bulk,
    check_service,
    dashboard,
    erase,
    metrics,
):
    cli.add_command(command)


def main() -> NoReturn:
    """The command `sagastream`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # if its encoding lacks a character of a drawing, `?` stands for it
            stream.reconfigure(errors="replace")
    if "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb":
        cli(color=False)
    cli()
    raise AssertionError("click exits")


if __name__ == "__main__":
    main()
