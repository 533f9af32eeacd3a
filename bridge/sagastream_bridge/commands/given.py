"""What a person gives a command: numbers, JSON, files, definitions."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sagastream_bridge.commands.context import WrongUsage
from sagastream_bridge.commands.terminal import safe

if TYPE_CHECKING:
    from sagastream_bridge.definitions.documents import Document


def finite(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """Checks a number of seconds or days: click accepts nan and inf."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("must be a number")
    return value


def content(file: str) -> bytes:
    """What stands in a file that a person names; - is standard input. Raises WrongUsage if it cannot be read."""
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise WrongUsage(safe(f"{file}: {error.strerror or error}")) from None


def json_or_file(text: str, option: str) -> Any:
    """The value of an option that is JSON or, as @FILE, a file that holds it. Raises WrongUsage, and UsageError."""
    from sagastream.core.strict_json import decode
    from sagastream.errors import MalformedMessage

    if text == "@":
        raise click.UsageError(f"{option}: the name of a file is missing behind @")
    try:
        return decode(content(text[1:]) if text.startswith("@") else text.encode())
    except MalformedMessage as error:
        raise click.UsageError(safe(f"{option}: {error}")) from None


def document_at(where: str) -> "Document":
    """The definition or the saga that a person names: a file, - for standard input, or MODULE:NAME. Raises WrongUsage
    if nothing is there, and CannotRead if it is something else."""
    from sagastream_bridge.definitions.documents import NothingThere, read

    try:
        return read(where)
    except NothingThere as error:
        raise WrongUsage(safe(str(error))) from None
