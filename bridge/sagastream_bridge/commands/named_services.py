"""The services that a command is to run, each named as MODULE:NAME."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker


def check_where(where: str) -> None:
    module, _, name = where.partition(":")
    if not module or not name:
        raise click.BadParameter(f"{where!a} is not MODULE:NAME, like shop.payment:service")


def look_here(services: Sequence[str]) -> None:
    """Let services be found in the current folder: whoever names one of theirs trusts that folder. Who runs only ours
    does not, so no module of that folder must be imported in the place of ours, or of those that we use."""
    if any(where.partition(".")[0] not in ("sagastream_stubs", "sagastream_bridge") for where in services):
        sys.path.insert(0, str(Path.cwd()))


def claim(broker: "Broker", where: str, name: str) -> None:
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
