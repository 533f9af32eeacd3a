"""The workflow file: every Python that the package names, few rights, and actions that cannot change."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())


def test_every_matrix_has_the_pythons_that_the_package_names() -> None:
    matrices = re.findall(r"^ +python: \[(.*)\]$", WORKFLOW, re.MULTILINE)
    assert len(matrices) == 2
    for matrix in matrices:
        assert re.findall(r'"(.+?)"', matrix) == PYTHONS


def test_the_script_looks_for_the_same_pythons() -> None:
    [listed] = re.findall(r"for version in (.*); do", (ROOT / ".ci" / "run").read_text())
    assert listed.split() == PYTHONS


def test_the_workflow_may_read_and_nothing_else() -> None:
    assert re.findall(r"^permissions:\n((?: +.+\n)+)", WORKFLOW, re.MULTILINE) == ["  contents: read\n"]
    assert len(re.findall("permissions", WORKFLOW)) == 1


@pytest.mark.parametrize("action", re.findall(r"uses: (.+)", WORKFLOW))
def test_an_action_is_pinned_by_its_commit_and_tells_its_version(action: str) -> None:
    assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)


@pytest.mark.xdist_group("together")
def test_groups_of_tests_are_seen(request: pytest.FixtureRequest) -> None:
    """Else each process starts a browser and an `npm ci` of its own, and nothing tells of it but the time."""
    assert "PYTEST_XDIST_WORKER" not in os.environ or request.node.nodeid.endswith("@together")
