"""The examples of docs/lint-and-explore.md, word for word."""

import re
from pathlib import Path

import pytest

from sagastream_bridge.definitions.problems import Code
from unit.bridge.test_definitions import run

PAGE = (Path(__file__).parents[3] / "docs" / "lint-and-explore.md").read_text()
#: A command, and what it prints.
EXAMPLES = re.findall(r"^    sagastream ([^\n]+)\n\n```(?:text|mermaid)\n(.*?)```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    Path("journey.json").write_text(text)
    for right, wrong in {
        '{"eq"': '{"equals"',
        "/input/price": "/input/prize",
        '["flight", "hotel"]': '["hotel"]',
    }.items():
        assert text.count(right) == 1
        text = text.replace(right, wrong)
    Path("draft.json").write_text(text)


@pytest.mark.parametrize(("command", "printed"), EXAMPLES, ids=[command for command, _ in EXAMPLES])
def test_a_command_prints_what_the_page_shows(command: str, printed: str) -> None:
    result = run(*command.split())
    assert result.stdout + result.stderr == printed


def test_all_commands_are_shown() -> None:
    assert [command.split()[0] for command, _ in EXAMPLES] == ["graph", "graph", "lint", "explore"]


def test_the_table_of_the_codes_is_whole() -> None:
    assert re.findall(r"^\| ([a-z-]+) \|", PAGE, re.MULTILINE) == ["code", *Code]


def test_a_service_may_be_told_by_such_a_file() -> None:
    (text,) = re.findall(r'`(\{"payment".*?\})`', PAGE)
    Path("services.json").write_text(text)
    result = run("lint", "journey.json", "--services", "services.json")
    assert [line.split(": ")[1] for line in result.stdout.splitlines()] == ["unknown-service"] * 3


def test_two_versions_are_compared_by_lines() -> None:
    before = run("explore", "--json", "journey.json").stdout.splitlines()
    text = Path("journey.json").read_text()
    Path("journey.json").write_text(text.replace('"after": []', '"after": ["flight"]'))
    after = run("explore", "--json", "journey.json").stdout.splitlines()
    changed = [line for line in after if line not in before]
    assert changed
    assert len(changed) < len(after) - 8
    assert any('"step": [2], "what": "fails", "order": [[{"steps": [1], "least": 1' in line for line in changed)
