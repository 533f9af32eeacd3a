"""lint and explore ask a store what services publish, and what is deployed."""

import json
from typing import Any

import pytest

from sagastream.store import published
from support.processes import Commands
from support.servers import Server
from support.stores import KEYS

pytestmark = pytest.mark.both_in_soak


ORDER: dict[str, Any] = {
    "name": "order",
    "version": 1,
    "steps": [
        {"id": "reserve", "transaction": "Reserve", "service": "stock"},
        {"id": "charge", "transaction": "Charge", "service": "till"},
        {"id": "tell", "transaction": "Tell", "service": "mail", "compensation": "Untell"},
    ],
}


@pytest.fixture
def services(server: Server) -> None:
    client = server.broker().client
    published.publish(client, KEYS, "stock", {"Reserve": "Release"})
    published.publish(client, KEYS, "till", {}, commands=["Charge"])
    published.publish(client, KEYS, "mail", {"Tell": None}, compensations=["Untell"])


def codes(printed: str) -> list[tuple[str, str]]:
    return [(found["code"], found["pointer"]) for found in map(json.loads, printed.splitlines())]


@pytest.mark.usefixtures("services")
def test_lint_compares_with_a_store(server: Server, commands: Commands) -> None:
    def lint(body: dict[str, Any]) -> tuple[int, list[tuple[str, str]]]:
        (commands.folder / "order.json").write_text(json.dumps(body))
        done = commands.run("lint", "order.json", "--store", "--json", REDIS_URL=server.url)
        assert "not checked" not in done.stderr
        return done.returncode, codes(done.stdout)

    assert lint(ORDER) == (1, [("no-undo", "/steps/1")])
    sound = json.loads(json.dumps(ORDER))
    sound["steps"][1]["compensation"] = None
    assert lint(sound) == (0, [])
    deployed = commands.run("deploy", "order.json", REDIS_URL=server.url)
    assert deployed.returncode == 0, deployed.stderr
    assert lint(sound) == (0, [])
    sound["steps"][0]["timeout_ms"] = 5
    assert lint(sound) == (1, [("same-version", "/version")])
    assert lint(sound | {"version": 2}) == (0, [])
    wrong = json.loads(json.dumps(sound | {"version": 2}))
    wrong["steps"][0]["service"], wrong["steps"][2]["compensation"] = "stocks", "Tell"
    wrong["steps"][1]["transaction"] = "Release"
    assert lint(wrong) == (1, [
        ("unknown-service", "/steps/0/service"),
        ("unknown-command", "/steps/1/transaction"),
        ("malformed", "/steps/2"),
    ])  # fmt: skip


@pytest.mark.usefixtures("services")
def test_explore_asks_a_store(server: Server, commands: Commands) -> None:
    (commands.folder / "order.json").write_text(json.dumps(ORDER))
    done = commands.run("explore", "order.json", "--store", REDIS_URL=server.url)
    assert done.returncode == 0, done.stderr
    assert "  2 charge: nobody knows its undo; waiting for that: 1 reserve" in done.stdout.splitlines()
    assert "names no compensation" not in done.stdout


@pytest.mark.usefixtures("services")
def test_a_definition_of_the_store_is_looked_at_by_its_name(server: Server, commands: Commands) -> None:
    def said(*arguments: str, code: int = 0, given: str = "") -> str:
        done = commands.run(*arguments, given=given, REDIS_URL=server.url)
        assert done.returncode == code, done.stderr
        return done.stderr if code == 2 else done.stdout

    name = ORDER["name"]
    (commands.folder / "file.json").write_text(json.dumps(ORDER))
    (commands.folder / "newer.json").write_text(json.dumps(ORDER | {"version": 2, "steps": ORDER["steps"][:1]}))
    said("deploy", "file.json")
    assert said("graph", name) == said("graph", "file.json")
    assert said("explore", name) == said("explore", "file.json", "--store")
    assert codes(said("lint", name, "--json", code=1)) == codes(said("lint", "file.json", "--store", "--json", code=1))
    said("deploy", "newer.json")
    assert said("graph", name) == said("graph", "newer.json")
    first = said("definitions", name, "--version", "1")
    assert json.loads(first) == ORDER
    assert said("deploy", "-", given=first) == f"{name} version 1 is current; before, version 2 was\n"
    assert json.loads(said("definitions", name)) == ORDER
    assert "--version is for one definition: say its NAME" in said("definitions", "--version", "1", code=2)
    for command in ("graph", "lint", "explore"):
        assert said(command, "trip", code=2) == (
            "Error: trip is not a file, and is not found as a definition either: the store has no definition trip: "
            "sagastream deploy FILE brings one\n"
        )


def test_a_store_that_cannot_be_asked_is_exit_code_2(commands: Commands) -> None:
    (commands.folder / "order.json").write_text(json.dumps(ORDER))
    done = commands.run("lint", "order.json", "--store", REDIS_URL="redis://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
