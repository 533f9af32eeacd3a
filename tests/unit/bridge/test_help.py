"""What `sagastream --help` shows."""

from collections.abc import Iterator

import click
from click.testing import CliRunner

from sagastream_bridge.commands.main import SECTIONS, cli

#: So much of a command is said in the list of all.
MOST_CHARS = 50


def groups(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that name each command that has commands of its own."""
    if isinstance(command, click.Group):
        yield path
        for name, one in command.commands.items():
            yield from groups(one, (*path, name))


def test_the_help_names_each_command_once_with_what_it_does() -> None:
    listed = [name for commands in SECTIONS.values() for name in commands]
    assert sorted(listed) == sorted(cli.commands)
    for commands in SECTIONS.values():
        assert all(len(text) <= MOST_CHARS and text.endswith((".", "?")) for text in commands.values())
        assert all("..." not in text for text in commands.values())


def test_no_list_of_commands_is_cut() -> None:
    paths = list(groups(cli))
    assert paths == [(), ("quarantine",)]
    for path in paths:
        done = CliRunner().invoke(cli, [*path, "--help"], terminal_width=80)
        assert done.exit_code == 0
        rows = done.output.partition("Options:")[2].splitlines()
        assert rows
        assert not [row for row in rows if row.endswith("...")]


def test_acl_names_the_option_that_is_missing() -> None:
    done = CliRunner().invoke(cli, ["acl", "service"])
    told = "Error: the role service belongs to one service: name it with --service NAME\n"
    assert (done.exit_code, done.output) == (2, told)
