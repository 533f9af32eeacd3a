"""How the modules may depend on each other, and what may stand where; read from the sources."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagastream.core.moves import TRANSITIONS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "sagastream": ROOT / "worker" / "sagastream",
    "sagastream_bridge": ROOT / "bridge" / "sagastream_bridge",
    "sagastream_stubs": ROOT / "stubs" / "sagastream_stubs",
}
#: What a pure module does without: the broker, clocks, chance, the machine.
IMPURE = {
    "redis",
    "time",
    "datetime",
    "random",
    "secrets",
    "uuid",
    "os",
    "socket",
    "threading",
    "subprocess",
    "asyncio",
}


def _modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = _modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
SCRIPTS = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.lua"))


def _imports(name: str) -> Iterator[str]:
    """All that a module imports, wherever in it: also inside functions, and for type checkers alone."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield submodule if submodule in MODULES else base


IMPORTS = {name: set(_imports(name)) for name in MODULES}
EDGES = {name: imported & MODULES.keys() for name, imported in IMPORTS.items()}


def _top(module: str) -> str:
    return module.partition(".")[0]


def _reached(name: str) -> set[str]:
    """A module, and all that it imports of the project, directly or not."""
    reached, rest = set(), [name]
    while rest:
        module = rest.pop()
        if module not in reached:
            reached.add(module)
            rest += EDGES[module]
    return reached


def _docstrings(tree: ast.Module) -> set[ast.Constant]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(first.value)
    return found


def _strings(name: str) -> list[str]:
    """The strings in a module's code; those of f-strings with {0} for what is filled in, as keys are written."""
    tree = TREES[name]
    skipped = _docstrings(tree)
    strings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            strings.append("".join(str(v.value) if isinstance(v, ast.Constant) else "{0}" for v in node.values))
        elif isinstance(node, ast.Constant) and node not in skipped and isinstance(node.value, str | bytes):
            strings.append(node.value if isinstance(node.value, str) else node.value.decode(errors="replace"))
    return strings


def test_the_sources_are_found() -> None:
    assert {"sagastream.decision", "sagastream.scripts", "sagastream_bridge.cli"} <= MODULES.keys()
    assert {"commit.lua", "answer.lua"} <= {path.name for path in SCRIPTS}
    assert "sagastream.messages" in EDGES["sagastream.decision"]
    assert "sagastream_bridge.views" in EDGES["sagastream_bridge.cli"]  # a lazy one


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_itself_in_a_circle(name: str) -> None:
    # What the front door offers lazily is not imported by those who merely stand behind it.
    circle = [module for module in EDGES[name] if name in _reached(module)]
    assert circle == []


@pytest.mark.parametrize("name", [name for name in MODULES if _top(name) == "sagastream"])
def test_the_library_imports_neither_the_bridge_nor_the_stubs(name: str) -> None:
    assert {_top(module) for module in IMPORTS[name]} & {"sagastream_bridge", "sagastream_stubs"} == set()


@pytest.mark.parametrize("name", [name for name in MODULES if _top(name) != "sagastream"])
def test_bridge_and_stubs_never_import_each_other(name: str) -> None:
    other = {"sagastream_bridge": "sagastream_stubs", "sagastream_stubs": "sagastream_bridge"}[_top(name)]
    assert other not in {_top(module) for module in IMPORTS[name]}


#: The design's order of imports: each module, and those below it that it may import; nothing else of the project.
MAY_IMPORT = {
    "errors": set(),
    "console": set(),
    "backoff": set(),
    "keys": set(),
    "strict_json": {"errors"},
    "messages": {"strict_json", "errors"},
    "saga": {"messages", "strict_json", "errors"},
    "moves": {"saga", "backoff", "messages", "strict_json", "errors"},
    "decision": {"moves", "saga", "backoff", "messages", "strict_json", "errors"},
    "parsing": {"messages", "strict_json", "errors"},
    "dedupe": {"parsing", "messages", "strict_json", "errors"},
}


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_the_core_imports_only_what_stands_below_it(name: str) -> None:
    assert EDGES[f"sagastream.{name}"] <= {f"sagastream.{below}" for below in MAY_IMPORT[name]}


@pytest.mark.parametrize(
    ("upper", "lower"),
    [
        ("orchestrator", "store"),
        ("orchestrator", "streams"),
        ("orchestrator", "decision"),
        ("orchestrator", "keys"),
        ("store", "moves"),
        ("store", "scripts"),
        ("store", "keys"),
        ("streams", "scripts"),
        ("decision", "moves"),
        ("moves", "saga"),
        ("saga", "messages"),
        ("messages", "strict_json"),
        ("strict_json", "errors"),
    ],
)
def test_imports_point_from_the_orchestrator_down_to_the_errors(upper: str, lower: str) -> None:
    above, below = f"sagastream.{upper}", f"sagastream.{lower}"
    assert below in EDGES[above]
    assert above not in _reached(below)


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("scripts", {"sagastream.exchange"}),
        ("exchange", {"sagastream.wire"}),
        ("wire", set()),
        ("keys", set()),
    ],
)
def test_what_streams_and_store_rest_on_imports_next_to_nothing_of_the_project(name: str, below: set[str]) -> None:
    assert EDGES[f"sagastream.{name}"] == below


@pytest.mark.parametrize("name", sorted(_reached("sagastream.decision") | _reached("sagastream.dedupe")))
def test_what_decides_and_all_below_it_are_pure(name: str) -> None:
    assert {_top(module) for module in IMPORTS[name]} & IMPURE == set()


TEST_KIT = [name for name in MODULES if f"{name}.".startswith("sagastream.testing.")]


def test_nothing_that_runs_in_production_imports_the_test_kit() -> None:
    importing = {name for name in MODULES if EDGES[name] & set(TEST_KIT)} - set(TEST_KIT)
    assert importing == {"sagastream.pytest_plugin"}


@pytest.mark.parametrize("name", TEST_KIT)
def test_the_test_kit_knows_no_clock_but_its_own(name: str) -> None:
    assert {_top(module) for module in IMPORTS[name]} & {"time", "threading", "redis", "os"} == set()


def test_the_errors_import_nothing() -> None:
    assert IMPORTS["sagastream.errors"] == set()


def test_at_most_one_module_imports_rq() -> None:
    assert len([name for name, imported in IMPORTS.items() if "rq" in map(_top, imported)]) <= 1


@pytest.mark.parametrize("name", [name for name in MODULES if name != "sagastream.keys"])
def test_only_keys_puts_key_names_together(name: str) -> None:
    for text in _strings(name):
        assert not re.search(r"saga:(\{|services|store)", text), text


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_names_a_key(path: Path) -> None:
    assert "saga:" not in path.read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_begins_with_its_contract(path: Path) -> None:
    first, *lines = path.read_text().splitlines()
    assert first == "#!lua"
    header = []
    for line in lines:
        if not line.startswith("--"):
            break
        header.append(line)
    for part in ("KEYS", "ARGV", "RETURNS"):
        assert any(re.match(rf"-- {part}\b", line) for line in header), part


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(TREES[name])


# --- ARCHITECTURE.md


def _drawn_edges() -> list[tuple[str | None, str, str]]:
    """The edges of the state diagram: from, label, to; None for [*]."""
    (diagram,) = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", ARCHITECTURE, flags=re.DOTALL)
    edges = []
    for line in diagram.strip().splitlines():
        found = re.fullmatch(r" *(\S+) --> (\S+): (.+)", line)
        assert found, line
        before, after, label = found.groups()
        edges.append((None if before == "[*]" else before, label, after))
    return edges


def test_the_picture_of_the_states_has_exactly_the_edges_of_the_state_machine() -> None:
    edges = [(None if before is None else str(before), label, str(after))
             for (before, label), after in TRANSITIONS.items()]  # fmt: skip
    assert sorted(_drawn_edges(), key=str) == sorted(edges, key=str)


def _listed_files() -> dict[str, list[str]]:
    """The files of each package, in the order of the list of where things live."""
    folders = {str(path.relative_to(ROOT)): package for package, path in PACKAGES.items()}
    listed: dict[str, list[str]] = {package: [] for package in PACKAGES}
    package = None
    for line in ARCHITECTURE.splitlines():
        if found := re.match(r" {4}(\S+)/ ", line):
            package = folders.get(found[1])
        elif package is not None and (found := re.match(r" {6}(\S+\.py(?:, \S+\.py)*)", line)):
            listed[package] += found[1].split(", ")
    return listed


@pytest.mark.parametrize("package", ["sagastream", "sagastream_bridge"])
def test_every_module_that_there_is_and_no_other_stands_in_the_list(package: str) -> None:
    there = [path.name for path in PACKAGES[package].glob("*.py") if not path.name.startswith("__")]
    assert sorted(_listed_files()[package]) == sorted(there)


def test_every_sample_service_stands_in_the_list() -> None:
    (line,) = re.findall(r"stubs/sagastream_stubs/ .*", ARCHITECTURE)
    for name in ("inventory", "payment", "shipping"):
        assert name in line
        assert f"sagastream_stubs.{name}" in MODULES


def test_the_list_of_the_library_has_each_module_above_those_that_import_it() -> None:
    names = [f"sagastream.{name.removesuffix('.py')}" for name in _listed_files()["sagastream"]]
    order = {name: place for place, name in enumerate(names)}
    for name in order.keys() & EDGES.keys():
        assert {below for below in EDGES[name] & order.keys() if order[below] > order[name]} == set(), name
