"""What a person gives a command: numbers, JSON, files, definitions."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from sagastream import files
from sagastream_bridge.commands.context import WrongUsage
from sagastream_bridge.commands.terminal import safe

if TYPE_CHECKING:
    from sagastream_bridge.definitions.documents import Document


def finite(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """Checks a number of seconds or days: click accepts nan and inf."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("must be a number")
    return value


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Raises WrongUsage if what a person named cannot be read."""
    try:
        yield
    except OSError as error:
        called = "standard input" if file == files.STDIN else file
        raise WrongUsage(safe(f"{called}: {error.strerror or error}")) from None


def content(file: str) -> bytes:
    """What stands in a file that a person names; - is standard input. Raises WrongUsage if it cannot be read."""
    with naming(file):
        return files.given(file)


def json_or_file(text: str, option: str) -> Any:
    """The value of an option that is JSON or, as @FILE, a file that holds it. Raises WrongUsage."""
    from sagastream.core.strict_json import decode
    from sagastream.errors import MalformedMessage

    if text == "@":
        raise WrongUsage(f"{option}: the name of a file is missing behind @")
    try:
        return decode(content(text[1:]) if text.startswith("@") else text.encode())
    except MalformedMessage as error:
        raise WrongUsage(safe(f"{option}: {error}")) from None


def document_at(where: str) -> "Document":
    """The definition or the saga that a person names: a file, - for standard input, or MODULE:NAME. Raises WrongUsage
    if nothing is there, and CannotRead if it is something else."""
    from sagastream_bridge.definitions.documents import NothingThere, read

    try:
        return read(where)
    except NothingThere as error:
        raise WrongUsage(safe(str(error))) from None
