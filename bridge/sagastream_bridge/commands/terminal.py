"""What a command writes: harmless, and on a terminal wrapped by words."""

import shutil
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

#: How far the lines of a text after its first one are indented on a terminal.
_INDENT: Final = 4


def safe(text: str) -> str:
    """The text without anything that a terminal could act on."""
    from sagastream.console import printable

    return printable(text)


def counted(number: int, one: str) -> str:
    """A number of things, in words: `one` is what one of them is called."""
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def width(*, err: bool = False) -> int | None:
    """How many columns the terminal has to which this command writes, or with `err` its errors; None: it writes to
    something else."""
    stream = sys.stderr if err else sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else None


def say(text: str, *, err: bool = False) -> None:
    """Write a line that a stranger may have had a part in; on a terminal wrapped by words."""
    from sagastream_bridge.inspection import screen

    for row in screen.wrapped(safe(text), width(err=err), _INDENT):
        click.echo(row, err=err)


class Commands(click.Group):
    """The group of all commands. Their errors are wrapped by words on a terminal, which would cut them anywhere."""

    def __init__(self, *arguments: Any, sections: Mapping[str, Mapping[str, str]], **named: Any) -> None:
        """`sections`: the commands as the help lists them, each with what it does in a few words."""
        super().__init__(*arguments, **named)
        self._sections = sections

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click gives it
        width = max(len(name) for commands in self._sections.values() for name in commands)
        for title, commands in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if (columns := width(err=True)) is not None:
                told = _fitted(error.format_message(), columns)
                error.format_message = lambda: told  # type: ignore[method-assign]
            raise


def _fitted(text: str, columns: int) -> str:
    """A text after `Error: `. Below its first line stand commands, to be copied: they stay as they are."""
    from sagastream_bridge.inspection import screen

    label = "Error: "
    first, parted, more = text.partition("\n")
    return "\n".join(screen.wrapped(label + first, columns, _INDENT)).removeprefix(label) + parted + more
