"""The command line. Each command imports what it needs when it runs, so that `sagastream --help` is instant."""

import io
import os
import sys
from collections.abc import Mapping
from typing import Final, NoReturn

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

#: The commands as `--help` lists them: by what a person wants, each in a few words.
SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Run": {
        "up": "Run everything: broker, workers, services.",
        "worker": "Run an orchestrator worker.",
        "service": "Run a service, like shop.payment:service.",
        "rq-worker": "Run steps that are jobs of RQ.",
        "bridge": "Speak the stdin protocol: JSON lines in and out.",
        "demo": "Run four sagas, and show every message.",
    },
    "Begin": {
        "begin": "Begin a saga.",
        "signal": "Tell a saga that what it waits for has happened.",
        "deploy": "Keep a definition in the store.",
        "definitions": "List the definitions of the store.",
        "graph": "Draw a definition or a saga.",
        "lint": "Find what is wrong with it.",
        "explore": "Try all that can happen to it.",
    },
    "Look": {
        "show": "Show where a saga is, why, and what you can do.",
        "list": "List sagas, or those that you look for.",
        "dashboard": "Show all of that on pages, for a browser.",
        "doctor": "Is all well? Examine the store, and repair it.",
        "metrics": "Tell figures of the store to Prometheus.",
        "operations": "List who paused, put back or dropped what.",
        "paused": "List what is paused.",
    },
    "Act": {
        "cancel": "Have sagas go back.",
        "retry": "Have parked sagas try again.",
        "skip": "Have parked sagas go on without a step.",
        "abandon": "End parked sagas as they are.",
        "bulk": "Follow, pause or stop what many were asked.",
        "pause": "Send nothing of a service or a command.",
        "resume": "Send it again.",
        "quarantine": "Look at what was set aside, put it back, drop it.",
        "drop-commands": "Drop the commands of a service that is gone.",
        "erase": "Erase what ended sagas hold.",
    },
    "Set up, measure, move": {
        "init": "Make a store.",
        "acl": "Print the lines that make users of Redis.",
        "new-key": "Print a new key for sealed values.",
        "export": "Write a whole store into a file.",
        "import": "Read such a file into an empty store.",
        "bench": "Measure how fast sagas run here.",
        "check-service": "Does a service keep the promises?",
    },
}


@click.group(cls=Commands, sections=SECTIONS, context_settings={"help_option_names": ["-h", "--help"]})
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
