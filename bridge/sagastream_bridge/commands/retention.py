"""How long sagas are kept: the options for commands that run workers."""

import os
from collections.abc import Callable
from typing import Final

import click

from sagastream_bridge.commands.given import finite

_DAY_MS: Final = 24 * 3600 * 1000
_DAYS: Final = click.FloatRange(0, 3650, min_open=True)
#: Their environment variables.
_VARIABLE: Final = "SAGASTREAM_RETENTION_DAYS"
_ABORTED_VARIABLE: Final = "SAGASTREAM_ABORTED_RETENTION_DAYS"


def retention(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options."""
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
        envvar=_VARIABLE,
        show_envvar=True,
        callback=finite,
        help="How long a saga is kept once it has ended.",
    )(command)


def milliseconds(days: float) -> int:
    return max(1, int(days * _DAY_MS))


def set_for_workers(retention_days: float, aborted_retention_days: float | None) -> None:
    """Have the workers that this process starts keep sagas for so long."""
    os.environ[_VARIABLE] = str(retention_days)
    if aborted_retention_days is not None:
        os.environ[_ABORTED_VARIABLE] = str(aborted_retention_days)
