"""What CI installs is pinned, with hashes, and is what pyproject.toml asks for; .ci/lock writes the pins."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def pins(name: str) -> dict[str, list[Requirement]]:
    """The pinned packages of a file: one pin for each, or one for each kind of machine. Each has hashes."""
    found: dict[str, list[Requirement]] = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / ".ci" / f"{name}.txt").read_text().strip()):
        pin, *hashes = entry.replace("\\\n", "").split("--hash=")
        assert hashes, f"{pin} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes), pin
        requirement = Requirement(pin)
        assert re.fullmatch(r"==[^*]+", str(requirement.specifier)), pin
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


#: The file of pins, the extras that it is for, and whether the project is built with it.
FILES = [
    ("embedded", ("embedded",), True),
    ("all", ("embedded", "lint", "docs"), True),
    ("deploy", ("crypto", "dashboard", "metrics", "otel"), False),
]
#: What sends spans from the image, of which no test makes use; tests have an exporter of their own.
EXPORTER = re.compile(r"opentelemetry-(proto|exporter-[a-z-]+)|googleapis-common-protos|protobuf")


def needs(*extras: str, built: bool = True) -> list[Requirement]:
    """What the project needs with these extras, and to be built, but for what other packages bring along."""
    texts = [*(PROJECT["build-system"]["requires"] if built else []), *PROJECT["project"]["dependencies"]]
    for extra in extras:
        texts += EXTRAS[extra]
    wanted = [Requirement(text) for text in texts]
    own = {extra for one in wanted if one.name == "sagastream" for extra in one.extras} - {*extras}
    return needs(*extras, *own, built=built) if own else [one for one in wanted if one.name != "sagastream"]


@pytest.mark.parametrize(("name", "extras", "built"), FILES)
def test_all_that_is_needed_is_pinned_to_a_version_that_is_allowed(
    name: str, extras: tuple[str, ...], built: bool
) -> None:
    pinned = pins(name)
    for need in needs(*extras, built=built):
        there = pinned.get(canonicalize_name(need.name), [])
        assert there, f"{need} is not pinned: run .ci/lock"
        for pin in there:
            (version,) = (one.version for one in pin.specifier)
            assert need.specifier.contains(version, prereleases=True), f"{pin} is not {need}: run .ci/lock"


@pytest.mark.parametrize("name", ["embedded", "deploy"])
def test_all_files_pin_the_same_versions(name: str) -> None:
    few, many = pins(name), pins("all")
    alone = few.keys() - many.keys()
    assert not [one for one in alone if name != "deploy" or not EXPORTER.fullmatch(one)]
    assert {name: [str(pin) for pin in few[name]] for name in few.keys() - alone} == {
        name: [str(pin) for pin in many[name]] for name in few.keys() - alone
    }


def test_ci_installs_nothing_else() -> None:
    """Each `pip install` of a package index names a file of pins and wants hashes; the others have no index."""
    for path in (".ci/run", ".github/workflows/ci.yml"):
        text = (ROOT / path).read_text()
        lines = [line for line in text.splitlines() if "pip install" in line and "echo" not in line]
        assert lines
        for line in lines:
            without_index = "PIP_NO_INDEX" in line or "PIP_NO_INDEX" in text.split(line, 1)[1].splitlines()[1]
            assert "--require-hashes --only-binary :all:" in line or without_index, line
