"""What the pages name exists: commands with their options, files, sections."""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import click
import pytest

import sagastream
from sagastream import Definition, testing
from sagastream.client.expressions import Expression
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.phases import Phase
from sagastream.core.references import Sources, build
from sagastream.core.strict_json import encode
from sagastream.errors import MalformedMessage
from sagastream_bridge.commands.main import cli

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(text: str) -> Iterator[str]:
    """The command lines of a page: texts in backticks, or on lines of their own, that begin with `sagastream`."""
    for code in [*re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text), *re.findall(r"^    (.+)$", text, re.MULTILINE)]:
        yield from re.findall(r"(?:^|[|&(;] ?|[A-Z_]+=\S+ )sagastream ([a-z].*?)(?=$|[|&;)]| #)", code)


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@named
def test_every_command_and_option_that_a_page_names_is_there(page: Path) -> None:
    for line in commands(page.read_text().replace("\\|", "/")):  # in a table, | is escaped
        name, *words = line.split()
        for alternative in name.split("/"):
            command: click.Command | None = cli.commands.get(alternative)
            assert command is not None, f"{page.name}: sagastream {line}"
            if isinstance(command, click.Group) and words and words[0].islower():
                command = command.commands.get(words[0].split("/")[0])
                assert command is not None, f"{page.name}: sagastream {line}"
            options = {option for parameter in command.params for option in parameter.opts}
            for word in words:
                if word.startswith("--"):
                    assert word.partition("=")[0] in options | {"--help"}, f"{page.name}: sagastream {line}"


def test_the_commands_of_a_page_are_found() -> None:
    text = "`sagastream show ID`, `A=b sagastream begin -`:\n\n    sagastream list  # all\n    x | sagastream up &\n"
    assert [line.split()[0] for line in commands(text)] == ["show", "begin", "list", "up"]


@named
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, section = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if section:
            titles = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert section in map(anchor, titles), target


def test_every_page_stands_in_the_navigation_of_the_site() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    there = [str(page.relative_to(ROOT)).removeprefix("docs/") for page in PAGES]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("package", [sagastream, testing], ids=lambda package: package.__name__)
def test_every_public_name_stands_in_the_reference(package: ModuleType) -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    listed = re.findall(rf"^::: {re.escape(package.__name__)}\.(\w+)$", pages, re.MULTILINE)
    assert sorted(listed) == sorted(package.__all__)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "reference").glob("*.md")), ids=lambda page: page.name)
def test_every_name_of_the_reference_can_be_imported(page: Path) -> None:
    listed = re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    assert listed
    for name in listed:
        module, _, attribute = name.rpartition(".")
        assert resolve_name(f"{module}:{attribute}") is not None, name


def test_what_the_page_on_compatibility_says_of_embedding_is_so() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text()
    found = re.findall(r"`(sagastream\.[\w.]+)\(([^)`]*)\)`", page)
    assert {name.rpartition(".")[2] for name, _ in found} >= {"Orchestrator", "ServiceRunner", "HealthFile"}
    for name, listed in found:
        module, _, attribute = name.rpartition(".")
        positional, _, options = listed.partition(", *, ")
        parameters = inspect.signature(resolve_name(f"{module}:{attribute}")).parameters
        by_place = [one for one, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        by_name = {one for one, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
        assert positional.split(", ") == by_place, name
        # Of the keyword options, `dispatcher` alone is private: it is given and gets what is private.
        assert {option for option in options.split(", ") if option} == by_name - {"dispatcher"}, name


def test_what_the_page_on_references_says_of_templates_is_so() -> None:
    page = (ROOT / "docs" / "references.md").read_text()
    saga, data = map(json.loads, re.findall(r"```json\n(.+?)```", page, re.DOTALL))
    assert parse_begin(saga).steps
    results = {"reserve": encode(data["reserve"])}
    sources = Sources(saga_id="order-17", input=encode(data["input"]), result_of=results.get)
    (table,) = re.findall(r"templates become this:\n\n(?:.+\n){2}((?:\|.+\n)+)", page)
    rows = re.findall(r"^\| `(.+)` \| `(.+)` \|$", table, re.MULTILINE)
    assert len(rows) == len(table.splitlines())
    for template, built in rows:
        assert build(encode(json.loads(template)), sources).decode() == built


@named
def test_every_test_file_that_a_page_names_is_there(page: Path) -> None:
    for path in re.findall(r"\btests/[\w/]+(?:\.py)?", page.read_text()):
        assert (ROOT / path).exists(), path


def test_the_definition_in_a_file_is_one_and_has_a_step_for_each_item() -> None:
    page = (ROOT / "docs" / "definitions.md").read_text()
    (text,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    definition = Definition.from_json(text)
    example = definition.parsed.example
    assert definition.json() == Definition.from_json(definition.json()).json()
    steps = definition.saga(example, saga_id="order-17")["steps"]
    assert [step["id"] for step in steps] == ["pick.0", "charge"]
    (given,) = re.findall(r"--input '(.*?)'", page)
    assert json.loads(given) == example
    told = re.findall(r"`(input/\S+: .*?)`", page)
    assert told == ["input/lines/1/count: expected int, got str"]


def test_the_attributes_on_the_page_of_definitions_are_those_of_a_definition() -> None:
    page = (ROOT / "docs" / "definitions.md").read_text()
    (text,) = re.findall(r'^    "attributes": ({.*?}})$', page, re.DOTALL | re.MULTILINE)
    order = Definition("order", version=1, attributes=json.loads(text))
    order.step("Pick", service="stock")
    assert order.saga({"customer": "c42"}, saga_id="o-1")["attributes"] == {"customer": "c42", "kind": "order"}
    (told,) = re.findall(r"`(attributes/.*?)`", page)
    with pytest.raises(MalformedMessage, match=told):
        order.saga({"customer": True}, saga_id="o-1")


def test_what_the_page_of_definitions_writes_in_python_is_there() -> None:
    page = (ROOT / "docs" / "definitions.md").read_text()
    order = Definition("order", version=1)
    flight = order.step("BookFlight", service="flights")
    known = {name: getattr(sagastream, name) for name in sagastream.__all__} | {"order": order, "flight": flight}
    known |= {"approval": order.wait("approval", timeout_ms=1), "a": order.input.a, "b": order.input.b, "value": 5}
    rows = re.findall(
        r"^\| (`.*?`) \| .* \|$", page[page.index("## In Python") : page.index("## In a file")], re.MULTILINE
    )
    assert len(rows) == 13
    for row in rows:
        for code in re.findall(r"`([^`]+)`", row.replace("\\|", "|")):
            if not code.startswith(("after=", "when=")):
                assert isinstance(eval(code, known), Expression), code
    for wrong in (
        "1 if order.input.total > 100 else 2",
        'f"order {order.input.id}"',
        "[line for line in order.input.lines]",
    ):
        with pytest.raises(TypeError):
            eval(wrong, known)


def test_the_page_of_the_client_names_all_phases() -> None:
    page = (ROOT / "docs" / "client.md").read_text()
    rows = re.findall(r"^\| (`[A-Z_]+`.*?) \|", page.partition("### Phases of a step")[2], re.MULTILINE)
    assert re.findall(r"`([A-Z_]+)`", " ".join(rows)) == [str(phase) for phase in Phase]
