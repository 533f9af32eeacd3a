"""The options that say which sagas a command is about, and the filter that they make."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sagastream_bridge.commands.context import safe

if TYPE_CHECKING:
    from sagastream.core.filtering import Filter

_F = TypeVar("_F", bound=Callable[..., Any])

STATUSES: Final = ("PENDING", "COMPENSATING", "COMPLETED", "ABORTED", "PARKED")
_DURATION: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def _duration(_: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """A duration in milliseconds."""
    if text is None:
        return None
    if (found := _DURATION.fullmatch(text)) is None:
        raise click.BadParameter(safe(f"{text!r:.40} is not a duration like 90s, 30m, 1h or 2d"), param=parameter)
    return int(found[1]) * _MS[found[2]]


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
    """The filter that these options make. Raises MalformedMessage, which says what is wrong."""
    from sagastream.core.attributes import named
    from sagastream.core.filtering import parse_filter

    body = {name: value for name, value in options.items() if value is not None}
    return parse_filter(body | {"attributes": dict(named(one, "--where") for one in where)}, "the search")
