"""The commands that look at a definition, or the body of a saga, before it runs: graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from sagastream_bridge.commands.context import orderly, safe, width

if TYPE_CHECKING:
    from sagastream_bridge.definitions.documents import Document

_SOURCE: Final = click.argument("source", metavar="FILE|MODULE:NAME")


class _CannotRead(click.ClickException):
    exit_code = 2


@contextmanager
def _document(source: str) -> "Iterator[Document]":
    """The document that a person names, while a command looks at it."""
    from sagastream_bridge.definitions.documents import CannotRead, read

    with orderly():
        try:
            document = read(source)
        except OSError as error:
            raise _CannotRead(safe(f"{source}: {error.strerror or error}")) from None
        except CannotRead as error:
            raise _CannotRead(safe(str(error))) from None
        try:
            yield document
        except CannotRead as error:
            raise _CannotRead(safe(str(error))) from None


@click.command()
@_SOURCE
@click.option("--mermaid", "as_mermaid", is_flag=True, help="A Mermaid flowchart, for a page that draws it.")
def graph(source: str, as_mermaid: bool) -> None:
    """Draw the steps of a definition, or of a saga_begin body: which come after which.

    - is standard input. A definition in Python is MODULE:NAME.
    """
    with _document(source) as document:
        from sagastream_bridge.definitions import drawing, mermaid, outline

        nodes = outline.nodes(document.steps)
        for line in mermaid.lines(nodes) if as_mermaid else drawing.lines(nodes, width()):
            click.echo(line)


#: All of them.
COMMANDS: Final = (graph,)
