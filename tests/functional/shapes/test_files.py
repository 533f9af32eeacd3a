"""The files of the shapes are what the docs say that files are: lint finds nothing wrong with them, with the services
that they are for, and explore tries each in every way."""

import json
import re
from pathlib import Path
from typing import Final

import pytest

from support.processes import Commands

HERE: Final = Path(__file__).parent
#: The services of each file.
SERVICES: Final = {
    "approved_trip": ("bookings:transport", "bookings:rooms", "bookings:desk"),
    "compose_post": ("compose_post:parts", "compose_post:storage"),
    "holiday": ("bookings:transport", "bookings:rooms", "bookings:desk"),
    "instance": ("instance:cloud",),
    "loan": ("loan:bank",),
    "order_credit": ("order_credit:orders", "order_credit:customers"),
    "order_payment": ("order_payment:orders", "order_payment:payment", "order_payment:inventory"),
    "picking": ("picking:warehouse",),
    "shipping": ("shipping:shop", "shipping:carrier"),
    "ticket": ("ticket:kitchen", "ticket:accounting", "ticket:orders"),
    "transfers": ("transfers:north", "transfers:south"),
    "trip_at_once": ("bookings:transport", "bookings:rooms"),
}


def test_each_file_is_known() -> None:
    assert {file.stem for file in HERE.glob("*.json")} == {*SERVICES}
    page = (HERE.parents[2] / "docs" / "graphs.md").read_text()
    assert {*re.findall(r"^\| `(\w+)` \|", page.partition("## Shapes to start from")[2], re.MULTILINE)} == {*SERVICES}


@pytest.mark.parametrize("name", SERVICES)
def test_lint_and_explore_take_each_file(commands: Commands, name: str) -> None:
    options = [word for service in SERVICES[name] for word in ("--services", service)]
    file, env = str(HERE / f"{name}.json"), {"PYTHONPATH": str(HERE)}
    linted = commands.run("lint", file, *options, **env)
    assert (linted.returncode, linted.stdout) == (0, "")
    # No store was asked.
    not_checked = "not checked: whether its content has changed and its version has not (--store tells it)\n"
    is_definition = "version" in json.loads((HERE / f"{name}.json").read_text())
    assert linted.stderr == f"0 problems in {file}\n" + (not_checked if is_definition else "")
    explored = commands.run("explore", file, *options, "--json", **env)
    assert explored.returncode == 0, explored.stderr
    assert json.loads(explored.stdout)
