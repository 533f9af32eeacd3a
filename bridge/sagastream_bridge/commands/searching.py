"""The options that say which sagas a command is about, and the filter that they make."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sagastream_bridge.commands.context import WrongUsage
from sagastream_bridge.commands.terminal import safe

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker
    from sagastream.core.filtering import Filter
    from sagastream_bridge.inspection.lookup import Listing

_F = TypeVar("_F", bound=Callable[..., Any])

STATUSES: Final = ("PENDING", "COMPENSATING", "COMPLETED", "ABORTED", "PARKED")


def _duration(_: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """A duration in milliseconds."""
    if text is None:
        return None
    from sagastream.core.durations import written

    try:
        return written(text)
    except ValueError as error:
        raise click.BadParameter(safe(str(error)), param=parameter) from None


_OPTIONS: Final = (
    click.option("--where", multiple=True, metavar="NAME=VALUE", help="With this attribute. Several may be given."),
    click.option("--status", type=click.Choice(STATUSES, case_sensitive=False), help="With this status."),
    click.option("--definition", metavar="NAME", help="Of this definition."),
    click.option("--at", metavar="[SERVICE/]COMMAND", help="That wait for this command."),
    click.option("--parked", metavar="[SERVICE/]COMMAND", help="That are parked at this command."),
    click.option("--older", "older_ms", metavar="DURATION", callback=_duration, help="Begun at least so long ago: 1h."),
    click.option("--newer", "newer_ms", metavar="DURATION", callback=_duration, help="Begun at most so long ago: 2d."),
    click.option("--error", metavar="TEXT", help="With this text in an error, or in why they are undone or parked."),
)


def search_options(command: _F) -> _F:
    """Gives a command these options. `wanted` reads what they were given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


#: The names of the arguments that these options become.
_NAMES: Final = ("where", "status", "definition", "at", "parked", "older_ms", "newer_ms", "error")


def taken(options: dict[str, Any]) -> dict[str, Any]:
    """Takes what these options were given out of the arguments of a command."""
    return {name: options.pop(name) for name in _NAMES}


def wanted(*, where: tuple[str, ...], **options: Any) -> "Filter":
    """The filter that these options make. Raises WrongUsage, which says what is wrong."""
    from sagastream.core.attributes import named
    from sagastream.core.filtering import parse_filter
    from sagastream.errors import MalformedMessage

    body = {name: value for name, value in options.items() if value is not None}
    try:
        _no_options(where)
        return parse_filter(body | {"where": named(where, "--where")}, "the search")
    except MalformedMessage as error:
        raise WrongUsage(safe(_in_options(str(error)))) from None


def refuse_services(broker: "Broker", found: "Listing") -> None:
    """Raises WrongUsage if no saga was found since a service was named in place of a command."""
    from sagastream_bridge.inspection import lookup

    if not found.page.sagas and (named := lookup.service_in_place_of_command(broker, found.wanted)) is not None:
        option, service = named
        raise WrongUsage(f"{service} is a service: --{option} {service}/COMMAND")


def _no_options(where: tuple[str, ...]) -> None:
    """Raises WrongUsage if what has an option of its own is asked for as an attribute."""
    from sagastream.core.attributes import RESERVED

    for text in where:
        name, equals, value = text.partition("=")
        if equals and name in RESERVED:
            has_option = name in _NAMES or f"{name}_ms" in _NAMES
            use = f"use --{name} {value}" if has_option else "no attribute has this name"
            raise WrongUsage(safe(f"--where: {name} is no attribute; {use}"))


def _in_options(text: str) -> str:
    """A text that names members of a filter, with the names of their options instead."""
    text = re.sub(r"^the search: (status|definition|at|parked|error) must", r"--\1 must", text)
    return re.sub(
        r"^the search: older than (.+) and newer than (.+) together", r"--older \1 and --newer \2 together", text
    )
