"""Which role a command needs, of those that there are."""

import pytest

from sagastream_bridge.commands.acl import ROLES
from sagastream_bridge.commands.main import SECTIONS, cli
from sagastream_bridge.commands.needed_roles import role_of

#: They run everything, also workers and services, or have a broker of their own.
WITHOUT = ("up", "demo")
COMMANDS = [
    name if name != "quarantine" else f"{name} {verb}"
    for section in ("Run", "Begin", "Look", "Act")
    for name in SECTIONS[section]
    for verb in (("list", "show", "replay", "drop") if name == "quarantine" else ("",))
    if name not in WITHOUT
]


def test_each_command_that_uses_the_store_of_others_has_a_role() -> None:
    for command in COMMANDS:
        assert command.split()[0] in cli.commands
        needed = role_of(command, {})
        assert needed is not None, command
        assert needed.split()[0] in ROLES, command


@pytest.mark.parametrize(
    ("command", "option", "role"),
    [("doctor", "repair", "doctor"), ("doctor", "as_json", "inspector"), ("dashboard", "allow_actions", "operator")],
)
def test_an_option_may_need_more(command: str, option: str, role: str) -> None:
    assert role_of(command, {option: True}) == role
    assert role_of(command, {option: False}) == "inspector"
