"""The commands that look at a definition, or the body of a saga, before it runs: graph, lint, explore."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sagastream_bridge.commands.context import WrongUsage, opened, orderly
from sagastream_bridge.commands.given import document_at
from sagastream_bridge.commands.terminal import counted, say, width
from sagastream_bridge.commands.to_begin import is_place

if TYPE_CHECKING:
    from sagastream_bridge.definitions.documents import Document
    from sagastream_bridge.definitions.known import Known

_Command = TypeVar("_Command", bound=Callable[..., object])

_SOURCE: Final = click.argument("source", metavar="FILE|MODULE:NAME|NAME")


def _with_services(command: _Command) -> _Command:
    """Give a command the options that tell it what services publish."""
    services = click.option(
        "--services",
        "places",
        multiple=True,
        metavar="FILE|MODULE:NAME",
        help="What services publish: a sagastream.Service, or a file that says "
        '{"SERVICE": {"COMMAND": "COMPENSATION"}}. May be repeated.',
    )
    store = click.option("--store", "in_store", is_flag=True, help="Ask the store for that.")
    return services(store(command))


class _CannotRead(click.ClickException):
    """Exit code 1 is for what is wrong with a document."""

    exit_code = click.UsageError.exit_code


@contextmanager
def _document(source: str) -> "Iterator[Document]":
    """The document that a person names, while a command looks at it: if it can be no file, one of the store."""
    try:
        with orderly():
            yield _deployed(source) if _is_name(source) else document_at(source)
    except click.UsageError:
        raise
    except click.ClickException as error:
        raise _CannotRead(error.message) from None


def _is_name(source: str) -> bool:
    """Whether this can only be the name of a definition of the store, as for `begin`."""
    from sagastream.core.messages import is_service

    return is_service(source) and not is_place(source)


def _deployed(name: str) -> "Document":
    """The current version of a definition of the store."""
    from sagastream_bridge.definitions.documents import Document

    try:
        with opened(create=False) as broker:
            from sagastream.client.blocking import SagaClient

            found = SagaClient(broker).definition(name)
    except click.ClickException as error:
        told = f"{name} is not a file, and is not found as a definition either: {error.message}"
        raise WrongUsage(told) from None
    return Document(f"{name} version {found.version}", found.parsed.body, made=found)


def _known(options: dict[str, Any], document: "Document", source: str) -> "Known":
    """What services publish, and what the store has of this document, as far as the options say where to ask. Of a
    definition of the store, the store is asked."""
    places = options["places"]
    if options["in_store"] and places:
        raise WrongUsage("give --services or --store, not both")
    in_store = options["in_store"] or (_is_name(source) and not places)
    from sagastream_bridge.definitions import known

    if not in_store:
        return known.Known(known.services_at(places) if places else None)
    with opened(create=False) as broker:
        return known.in_store(broker, document)


@click.command()
@_SOURCE
@click.option("--mermaid", "as_mermaid", is_flag=True, help="A Mermaid flowchart, for a page that draws it.")
def graph(source: str, as_mermaid: bool) -> None:
    """Draw the steps of a definition or a saga: which come after which.

    - is standard input. A definition in Python is MODULE:NAME, one that was deployed is NAME. `sagastream show` draws a
    saga that has begun.
    """
    with _document(source) as document:
        from sagastream_bridge.definitions import drawing, mermaid, outline

        nodes = outline.nodes(document.steps)
        for line in mermaid.lines(nodes) if as_mermaid else drawing.lines(nodes, width()):
            click.echo(line)


@click.command()
@_SOURCE
@_with_services
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def lint(source: str, as_json: bool, **options: Any) -> None:
    """Find what is wrong in a definition or a saga, before it runs.

    Exit code 1 if something is wrong, 2 if it cannot be read.
    """
    with _document(source) as document:
        from sagastream_bridge.definitions import findings, linting

        found, notes, not_checked = linting.lint(document, _known(options, document, source))
        for problem in found:
            if as_json:
                click.echo(findings.as_json(document, problem))
            else:
                say(findings.line(document, problem))
        say(f"{counted(len(found), 'problem')} in {document.where}", err=True)
        for text in notes:
            say(f"note: {text}", err=True)
        for text in not_checked:
            say(f"not checked: {text}", err=True)
    sys.exit(1 if found else 0)


@click.command()
@_SOURCE
@_with_services
@click.option(
    "--items",
    type=click.IntRange(0, 100),
    metavar="COUNT",
    help="How many items the list of each step with `each` has.  [default: as in the example or, without one, 2]",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="COUNT",
    help="Look at no more than this many states.  [default: 100000]",
)
@click.option(
    "--seconds",
    type=click.IntRange(1),
    metavar="COUNT",
    help="Look for no longer than this many seconds.  [default: 120]",
)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, to compare with another version.")
def explore(source: str, items: int | None, as_json: bool, **options: Any) -> None:
    """Try a definition or a saga in every way that it can go: what is undone, and where it can be parked.

    Nothing is sent: this asks the code by which workers decide. Each step is done, fails or stays unknown; each
    condition holds or does not; each wait is signalled, declined or over; the saga is cancelled at any time; each undo
    is done or parked.
    """
    with _document(source) as document:
        from sagastream_bridge.definitions import begins, lasting
        from sagastream_bridge.definitions.exploring import MOST_S, MOST_WORLDS
        from sagastream_bridge.definitions.exploring import explore as explore_begin
        from sagastream_bridge.definitions.model import Model
        from sagastream_bridge.definitions.telling import Teller
        from sagastream_bridge.inspection import screen

        published = _known(options, document, source).published
        begin, note = begins.begin_of(document, items)
        found = explore_begin(begin, published, options["limit"] or MOST_WORLDS, options["seconds"] or MOST_S)
        longest = lasting.longest(begin, Model(begin, published))
        notes = []
        if published is None and any(step.compensation == "" for step in begin.steps):
            notes.append("each step that names no compensation has one that its service publishes (see --services)")
        if note is not None:
            notes.append(note)
        teller = Teller([step.shape.id or step.transaction for step in begin.steps])
        if as_json:
            click.echo(teller.json(found, longest, notes))
        else:
            for line in teller.lines(found, longest, notes):
                for row in screen.wrapped(line, width(), 8):
                    click.echo(row)


#: All of them.
COMMANDS: Final = (explore, graph, lint)
