"""How the modules may depend on each other, and what each may contain; read from the sources."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from sagastream.core.phases import STEP
from sagastream.core.transitions import TRANSITIONS

#: In one process, since reading all sources takes seconds. For the same reason, one test looks at all modules and tells
#: all that it finds, and nothing is read until a test needs it.
pytestmark = pytest.mark.xdist_group("architecture")

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "sagastream": ROOT / "worker" / "sagastream",
    "sagastream_bridge": ROOT / "bridge" / "sagastream_bridge",
    "sagastream_stubs": ROOT / "stubs" / "sagastream_stubs",
}
#: What a pure module must not use: the broker, clocks, chance, the machine.
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
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
SCRIPTS = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.lua"))


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


@cache
def _nodes(name: str) -> list[ast.AST]:
    return list(ast.walk(_tree(name)))


@cache
def _imports(name: str) -> frozenset[str]:
    """All imports of a module, wherever they are: also inside functions, and those for type checkers only."""
    return frozenset(_imported(name))


def _imported(name: str) -> Iterator[str]:
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in _nodes(name):
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


def _edges(name: str) -> frozenset[str]:
    """The modules of the project that a module imports."""
    return _imports(name) & MODULES.keys()


def _top(module: str) -> str:
    return module.partition(".")[0]


def _wrong(found: Mapping[str, object]) -> dict[str, object]:
    """Of what was found in each module, that of those in which something was."""
    return {name: what for name, what in found.items() if what}


@cache
def _reached(name: str) -> frozenset[str]:
    """A module, and all modules of the project that it imports, directly or not."""
    reached, rest = set(), [name]
    while rest:
        module = rest.pop()
        if module not in reached:
            reached.add(module)
            rest += _edges(module)
    return frozenset(reached)


def _docstrings(name: str) -> set[ast.Constant]:
    found = set()
    for node in _nodes(name):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(first.value)
    return found


def _strings(name: str) -> list[str]:
    """The strings in a module's code; those of f-strings with {0} for what is filled in, as keys are written."""
    skipped = _docstrings(name)
    strings = []
    for node in _nodes(name):
        if isinstance(node, ast.JoinedStr):
            strings.append("".join(str(v.value) if isinstance(v, ast.Constant) else "{0}" for v in node.values))
        elif isinstance(node, ast.Constant) and node not in skipped and isinstance(node.value, str | bytes):
            strings.append(node.value if isinstance(node.value, str) else node.value.decode(errors="replace"))
    return strings


def test_the_sources_are_found() -> None:
    assert {"sagastream.core.decision", "sagastream.scripts", "sagastream_bridge.commands.main"} <= MODULES.keys()
    assert {"commit.lua", "answer.lua"} <= {path.name for path in SCRIPTS}
    assert "sagastream.core.messages" in _edges("sagastream.core.decision")
    assert "sagastream_bridge.inspection.lookup" in _edges("sagastream_bridge.commands.sagas")  # a lazy one


def test_no_module_imports_itself_in_a_circle() -> None:
    # A module that only stands behind the front door does not import what the door offers lazily.
    assert _wrong({name: [module for module in _edges(name) if name in _reached(module)] for name in MODULES}) == {}


#: Which of the packages each must not import.
FOREIGN = {
    "sagastream": {"sagastream_bridge", "sagastream_stubs"},
    "sagastream_bridge": {"sagastream_stubs"},
    "sagastream_stubs": {"sagastream_bridge"},
}


def test_the_library_imports_neither_the_bridge_nor_the_stubs_and_these_never_each_other() -> None:
    assert _wrong({name: set(map(_top, _imports(name))) & FOREIGN[_top(name)] for name in MODULES}) == {}


#: The wings of the library, each above those that import it, and what each may import of the others. A wing is a folder
#: or, at the top, a module. The front door, sagastream itself, offers what stands in all of them.
WINGS = {
    "errors": set(),
    "console": set(),
    "files": set(),
    "core": {"errors"},
    "codecs": {"core", "files", "errors"},
    "telemetry": {"core", "console"},
    "log_output": {"telemetry", "console", "errors"},
    "tracing": {"core", "telemetry", "console", "errors"},
    "health": {"telemetry"},
    "metrics": {"core", "telemetry", "console", "errors"},
    "broker": {"core", "telemetry", "files", "errors"},
    "scripts": {"broker"},
    "store": {"broker", "core", "telemetry", "errors"},
    "orchestrator": {"store", "broker", "core", "health", "telemetry", "errors"},
    "service": {"store", "broker", "core", "codecs", "health", "telemetry", "console", "errors"},
    "effects": {"service", "core", "console", "errors"},
    "rq_steps": {
        "service",
        "store",
        "broker",
        "core",
        "codecs",
        "log_output",
        "telemetry",
        "tracing",
        "console",
        "errors",
    },
    "rq_runner": {"rq_steps"},
    "client": {"rq_steps", "store", "broker", "core", "codecs", "telemetry", "tracing", "errors"},
    "testing": {"client", "service", "broker", "core", "tracing", "console", "errors"},
    "pytest_plugin": {"testing"},
    "__main__": set(),
}
#: The wings of the bridge, in the same way; each may import all of the library.
BRIDGE_WINGS = {
    "inspection": {"definitions"},
    "local": {"inspection"},
    "stdin": {"local"},
    "bench": {"local"},
    "conformance": {"inspection"},
    "transfer": set(),
    "definitions": set(),
    "dashboard": {"inspection", "definitions"},
    "commands": {"local", "inspection", "stdin", "bench", "conformance", "transfer", "definitions", "dashboard"},
    "entry": {"commands"},
    "__main__": {"commands"},
}


def _wing(module: str) -> str:
    """The wing of a module; None for the front door."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize(
    ("package", "wings"), [("sagastream", WINGS), ("sagastream_bridge", BRIDGE_WINGS)], ids=["library", "bridge"]
)
def test_every_wing_imports_only_those_that_the_table_allows(package: str, wings: dict[str, set[str]]) -> None:
    found: dict[str, set[str]] = {wing: set() for wing in wings}
    for name in MODULES:
        if _top(name) == package and (wing := _wing(name)):
            found[wing] |= {_wing(module) for module in _edges(name) if _top(module) == package} - {wing, ""}
    assert found == wings


def test_a_wing_of_the_library_stands_in_the_table_below_those_that_it_imports() -> None:
    places = {wing: place for place, wing in enumerate(WINGS)}
    for wing, imported in WINGS.items():
        assert all(places[below] < places[wing] for below in imported), wing


CORE = [name for name in MODULES if _wing(name) == "core"]


def test_the_core_and_all_that_it_imports_are_pure() -> None:
    reached = {module for name in CORE for module in _reached(name)}
    assert _wrong({module: set(map(_top, _imports(module))) & IMPURE for module in reached}) == {}


def test_the_core_is_there() -> None:
    assert {"sagastream.core.decision", "sagastream.core.service_rules"} <= set(CORE)


TEST_KIT = [name for name in MODULES if f"{name}.".startswith("sagastream.testing.")]


def test_nothing_that_runs_in_production_imports_the_test_kit() -> None:
    importing = {name for name in MODULES if _edges(name) & set(TEST_KIT)} - set(TEST_KIT)
    assert importing == {"sagastream.pytest_plugin"}


def test_the_test_kit_knows_no_clock_but_its_own() -> None:
    clocks = {"time", "threading", "redis", "os"}
    assert _wrong({name: set(map(_top, _imports(name))) & clocks for name in TEST_KIT}) == {}


def test_the_errors_import_nothing() -> None:
    assert _imports("sagastream.errors") == set()


def test_one_wing_imports_rq() -> None:
    importing = {name for name in MODULES if "rq" in map(_top, _imports(name))}
    assert {_wing(name) for name in importing} == {"rq_steps"}


#: It tries what the core would decide on a saga that is not there.
EXPLORER = "sagastream_bridge.definitions.exploring"


def test_nothing_at_the_edge_decides_on_sagas() -> None:
    deciding = {"sagastream.core.decision", "sagastream.core.moves"}
    edge = [name for name in MODULES if _top(name) == "sagastream_bridge" and name != EXPLORER]
    assert _wrong({name: _imports(name) & deciding for name in edge}) == {}


def test_one_module_uses_the_connection_pool_of_a_client() -> None:
    # Elsewhere nobody would see that a connection leads to a cluster.
    using = {
        name
        for name in MODULES
        for node in _nodes(name)
        if isinstance(node, ast.Attribute) and node.attr == "connection_pool"
    }
    assert using == {"sagastream.broker.wire"}


def test_one_wing_imports_click() -> None:
    importing = {name for name in MODULES if "click" in map(_top, _imports(name))}
    assert {name.rpartition(".")[0] for name in importing} == {"sagastream_bridge.commands"}


def test_only_keys_puts_key_names_together() -> None:
    names = re.compile(r"saga:(\{|services|store)")
    found = {name: [text for text in _strings(name) if names.search(text)] for name in MODULES}
    assert found.pop("sagastream.store.keys")
    assert _wrong(found) == {}


def test_no_script_names_a_key() -> None:
    assert [path.name for path in SCRIPTS if "saga:" in path.read_text()] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_begins_with_its_contract(path: Path) -> None:
    first, *lines = path.read_text().splitlines()
    # Without the flag, a full store refuses a script before its first write: requests to begin sagas, and copies of
    # whole streams. The scripts of sample services write their own data.
    if path.name == "sight.lua":  # it only reads
        assert first == "#!lua flags=no-writes"
        first = "#!lua flags=allow-oom"
    is_refused = path.name in ("begin.lua", "rewrite.lua") or not path.is_relative_to(ROOT / "worker")
    assert first == ("#!lua" if is_refused else "#!lua flags=allow-oom")
    header = []
    for line in lines:
        if not line.startswith("--"):
            break
        header.append(line)
    for part in ("KEYS", "ARGV", "RETURNS"):
        assert any(re.match(rf"-- {part}\b", line) for line in header), part


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name in MODULES if not ast.get_docstring(_tree(name))] == []


# --- ARCHITECTURE.md


def _drawn(picture: int) -> list[tuple[str | None, str, str]]:
    """The edges of a state diagram: from, label, to; None for [*]."""
    diagrams = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", ARCHITECTURE, flags=re.DOTALL)
    assert len(diagrams) == 2
    edges = []
    for line in diagrams[picture].strip().splitlines():
        found = re.fullmatch(r" *(\S+) --> (\S+): (.+)", line)
        assert found, line
        before, after, label = found.groups()
        edges.append((None if before == "[*]" else before, label, after))
    return edges


def test_the_picture_of_the_states_has_exactly_the_edges_of_the_state_machine() -> None:
    edges = [(None if before is None else str(before), label, str(after))
             for (before, label), after in TRANSITIONS.items()]  # fmt: skip
    assert sorted(_drawn(0), key=str) == sorted(edges, key=str)


def test_the_picture_of_the_phases_of_a_step_has_exactly_the_edges_of_its_table() -> None:
    edges = [(None, "begun", "WAITING"), *((str(before), label, str(after)) for (before, label), after in STEP.items())]
    assert sorted(_drawn(1), key=str) == sorted(edges, key=str)


def _listed_files() -> dict[str, list[str]]:
    """The modules of each package, in the order in which ARCHITECTURE.md lists them."""
    folders = {str(path.relative_to(ROOT)): package for package, path in PACKAGES.items()}
    listed: dict[str, list[str]] = {package: [] for package in PACKAGES}
    package, wing = None, ""
    for line in ARCHITECTURE.splitlines():
        if found := re.match(r" {4}(\S+)/(?: |$)", line):
            package, wing = folders.get(found[1]), ""
        elif package is not None and (found := re.match(r" {6}(\w+)/(?: |$)", line)):
            wing = found[1] + "."
        elif package is not None and (found := re.match(r"( {6}| {8})(\w+)\.py(?: |$)", line)):
            listed[package].append(found[2] if len(found[1]) == 6 else wing + found[2])
    return listed


#: Folders that are listed without their modules.
_BY_FOLDER = re.compile(r"(testing|bench|conformance)\.")


@pytest.mark.parametrize("package", ["sagastream", "sagastream_bridge"])
def test_every_module_that_there_is_and_no_other_stands_in_the_list(package: str) -> None:
    there = [
        name.removeprefix(f"{package}.")
        for name, path in MODULES.items()
        if _top(name) == package and not path.name.startswith("__")
    ]
    assert sorted(_listed_files()[package]) == sorted(name for name in there if not _BY_FOLDER.match(name))


def test_every_sample_service_stands_in_the_list() -> None:
    (line,) = re.findall(r"stubs/sagastream_stubs/ .*", ARCHITECTURE)
    for name in ("inventory", "payment", "shipping"):
        assert name in line
        assert f"sagastream_stubs.{name}" in MODULES


def test_the_list_of_the_library_has_each_module_above_those_that_import_it() -> None:
    names = [f"sagastream.{name}" for name in _listed_files()["sagastream"]]
    order = {name: place for place, name in enumerate(names)}
    listed = order.keys() & MODULES.keys()
    later = {name: {below for below in _edges(name) & listed if order[below] > order[name]} for name in listed}
    assert _wrong(later) == {}


# What is drawn as the way of the data, from a line to the requests and from the events to a line.
_WAY = re.findall(r"## The way of the data\n\n(.*?)\n\n", ARCHITECTURE, flags=re.DOTALL)[0]


def _passed(way: str) -> list[str]:
    """The modules that a part of the way names, in order."""
    found = [name.replace("/", ".") for name in re.findall(r"\b[a-z_]+/[a-z_]+\b", way)]
    return [next((f"{top}.{name}" for top in PACKAGES if f"{top}.{name}" in MODULES), name) for name in found]


def test_the_way_of_the_data_names_modules_that_are_there() -> None:
    assert [name for name in _passed(_WAY) if name not in MODULES] == []


def test_a_line_passes_at_most_five_modules_to_the_requests_each_of_which_knows_the_next() -> None:
    passed = _passed(_WAY.partition("saga:{0}:requests")[0])
    assert passed[0] == "sagastream_bridge.stdin.lines"
    assert passed[-1] == "sagastream.broker.wire"
    assert len(passed) <= 5
    for one, other in pairwise(passed):
        assert other in _edges(one) or one in _edges(other), (one, other)


def test_a_command_passes_at_most_six_modules_in_the_process_of_its_service() -> None:
    passed = _passed(_WAY.partition("saga:{0}:commands:<service>")[2].partition("answer.lua")[0])
    assert (passed[0], passed[-1]) == ("sagastream.service.inbox", "sagastream.service.outbox")
    assert {"sagastream.core.service_rules", "sagastream.service.handlers"} <= set(passed)
    assert len(set(passed)) <= 6
    for module in set(passed):
        assert module in _reached("sagastream.service.runner")
