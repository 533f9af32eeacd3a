"""The options of commands that run processes: what they log, whether they write spans, how they are watched."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from sagastream import log_output
from sagastream_bridge.commands.terminal import safe

_Command = TypeVar("_Command", bound=Callable[..., object])


def _keep(_: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Keep it where `orderly` finds it, and child processes too."""
    if value is not None:
        assert isinstance(parameter, click.Option)
        os.environ[str(parameter.envvar)] = value


def logged(command: _Command) -> _Command:
    """Give a command that runs processes the options of what it logs, and how."""
    for name, variable, choices, default, text in (
        ("--log-level", log_output.LEVEL_VARIABLE, log_output.LEVELS, "info", "Log nothing below this level."),
        ("--log-format", log_output.FORMAT_VARIABLE, log_output.FORMATS, "text", "How a line on stderr is written."),
    ):
        option = click.option(
            name,
            type=click.Choice(choices, case_sensitive=False),
            default=default,
            show_default=True,
            envvar=variable,
            show_envvar=True,
            expose_value=False,
            callback=_keep,
            help=text,
        )
        command = option(command)
    return command


def traced(command: _Command) -> _Command:
    """Give a command that runs workers or services the option to write spans."""
    return click.option(
        "--traces",
        is_flag=True,
        envvar="SAGASTREAM_TRACES",
        show_envvar=True,
        expose_value=False,
        callback=_keep_flag,
        help="Write OpenTelemetry spans of handlers and sagas, where the variables OTEL_... say.",
    )(command)


def _keep_flag(_: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        assert isinstance(parameter, click.Option)
        os.environ[str(parameter.envvar)] = "1"


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


health_file_option = click.option(
    "--health-file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_writable,
    metavar="PATH",
    help="Touch this file every second or two while the broker answers.",
)
until_eof_option = click.option("--until-eof", is_flag=True, hidden=True, help="Stop when standard input ends.")
