"""What the commands for definitions are given, and where it stands in its file."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from sagastream.core.pointers import below
from sagastream_bridge.commands.main import cli
from sagastream_bridge.definitions.documents import CannotRead, read
from sagastream_bridge.definitions.positions import Position, positions

#: The shape of a journey: three bookings at once, of which one is for each extra; then a person, and the pivot.
JOURNEY: dict[str, Any] = {
    "name": "journey",
    "version": 1,
    "steps": [
        {"id": "later", "wait_ms": 60_000},
        {"id": "flight", "transaction": "BookFlight", "service": "flights"},
        {"id": "hotel", "transaction": "BookHotel", "service": "hotels", "after": ["later"], "when": {"eq": [1, 1]}},
        {"id": "extras", "each": {"$ref": "/input/extras"}, "transaction": "BookExtra", "service": "all", "after": [1]},
        {"id": "approve", "wait": "approval", "timeout_ms": 1, "after": ["flight", "hotel", "extras"]},
        {"id": "pay", "transaction": "Charge", "service": "payment", "kind": "pivot"},
        {"transaction": "Mail", "service": "mail", "kind": "retriable"},
    ],
}  # fmt: skip


def run(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, words, input=stdin)


def written(folder: Path, body: object) -> str:
    path = folder / "definition.json"
    path.write_text(json.dumps(body, indent=2))
    return str(path)


# --- where things stand in a file

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda some: st.lists(some, max_size=4) | st.dictionaries(st.text(max_size=5), some, max_size=4),
)


def pointers(value: Any, pointer: str = "") -> dict[str, Any]:
    """What stands at each pointer: of a member its key."""
    found = {pointer: value}
    members = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for name, inner in members:
        found |= pointers(inner, below(pointer, name))
        if isinstance(value, dict):
            found[below(pointer, name)] = name
    return found


@given(_JSON, st.sampled_from([None, 0, 3]), st.booleans())
def test_at_each_position_stands_what_the_pointer_finds(value: Any, indent: int | None, escaped: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=escaped)
    lines = text.split("\n")
    found = positions(text.encode())
    there = pointers(value)
    assert found.keys() == there.keys()
    for pointer, (line, column) in found.items():
        rest = "\n".join([lines[line - 1][column - 1 :], *lines[line:]])
        assert json.JSONDecoder().raw_decode(rest)[0] == there[pointer]


def test_what_is_not_there_stands_where_it_should_be(tmp_path: Path) -> None:
    document = read(written(tmp_path, JOURNEY))
    assert document.position("/steps/1/service") == Position(12, 7)
    assert document.position("/steps/1/after/0") == Position(9, 5)
    assert document.position("/deadline_ms") == Position(1, 1)


# --- what is read


def test_a_definition_in_python_has_no_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_journeys.py").write_text(
        "from sagastream import Definition\n"
        f"journey = Definition.from_json({json.dumps(JOURNEY)!r})\n"
        "nothing_yet = Definition('empty', version=1)\n"
        "other = 1\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    document = read("my_journeys:journey")
    assert document.body == JOURNEY
    assert document.position("/steps/0") is None
    assert document.is_definition
    assert sys.path == before
    for name, why in {
        "other": r"my_journeys:other is not a sagastream\.Definition",
        "nothing": "my_journeys has no nothing",
        "nothing_yet": "my_journeys:nothing_yet: the definition empty has no steps yet",
    }.items():
        with pytest.raises(CannotRead, match=why):
            read(f"my_journeys:{name}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON: unexpected end of data"),
        ("[]", "it is not a JSON object"),
        ('{"steps": 1}', "steps must be a list of objects"),
        ('{"steps": []}', "steps is empty, and there must be at least one"),
        ('{"steps": [], "steps": [{}]}', "the key 'steps' occurs twice"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_exit_code_2(text: str, why: str) -> None:
    result = run("graph", "-", stdin=text)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: standard input: ")
    assert why in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_of_python_is_named_as_a_module(tmp_path: Path) -> None:
    (tmp_path / "sagas.py").write_text("order = 1")
    result = run("lint", str(tmp_path / "sagas.py"))
    assert result.exit_code == 2
    assert result.stderr.endswith("sagas.py is Python: name the definition in it, as in sagas:NAME\n")


def test_a_file_that_is_not_there_and_a_module_that_is_not_there() -> None:
    assert run("graph", "not-there.json").stderr == "Error: not-there.json: No such file or directory\n"
    assert run("graph", "no_such_module:x").exit_code == 2
    assert "cannot import no_such_module: No module named" in run("graph", "no_such_module:x").stderr
    for where in ("shop:", ":order", "shop/sagas:order"):
        told = f"Error: {where} is neither a file nor MODULE:NAME, like shop.sagas:order\n"
        assert run("graph", where).stderr == told


def test_what_a_module_prints_is_not_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud_sagas.py").write_text(
        "print('hello')\nfrom sagastream import Definition\no = Definition('o', version=1)\no.step('A', service='a')\n"
    )
    monkeypatch.chdir(tmp_path)
    result = run("lint", "loud_sagas:o", "--json")
    assert (result.stdout, result.stderr.splitlines()[0]) == ("", "hello")


# --- graph


def test_the_graph_of_a_definition(tmp_path: Path) -> None:
    result = run("graph", written(tmp_path, JOURNEY))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "○       1  later    pause for 60 s",
        "├─┬─╮",
        "● │ │   2  flight   BookFlight         flights",
        "│ ● │   3  hotel    BookHotel          hotels   with a condition",
        "│ │ ●   4  extras   BookExtra          all      for each of /input/extras",
        "├─┴─╯",
        "○       5  approve  wait for approval",
        "◆       6  pay      Charge             payment  pivot",
        "●       7           Mail               mail     retriable",
    ]


def test_the_graph_of_a_plain_body_is_a_list(tmp_path: Path) -> None:
    steps = [{"transaction": name, "service": "all", "params": 1} for name in ("Reserve", "Pay", "Ship")]
    result = run("graph", written(tmp_path, {"saga_id": "s1", "steps": steps}))
    assert result.stdout.splitlines() == ["1  Reserve  all", "2  Pay      all", "3  Ship     all"]


def test_a_wrong_document_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    steps: list[Any] = [{"id": 7, "after": "x"}, {"id": "b\x1b[31m", "after": [9, "zz", {}, 1]}, {"wait_ms": "long"}]
    result = run("graph", written(tmp_path, {"steps": steps}))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["1  7", "2  b\\x1b[31m", "3             pause for long ms"]


def test_the_flowchart_of_a_definition(tmp_path: Path) -> None:
    lines = run("graph", "--mermaid", written(tmp_path, JOURNEY)).stdout.splitlines()
    assert lines[0] == "flowchart TD"
    assert '    s6{{"6: pay<br>Charge<br>payment<br>pivot"}}' in lines
    assert [line.strip() for line in lines if "-->" in line][-3:] == ["s4 --> s5", "s5 --> s6", "s6 --> s7"]
