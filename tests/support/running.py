"""How the suite is run: which tests, in how many processes, with which markers.

This is a pytest plugin, and tests/conftest.py loads it.
"""

import os
from pathlib import Path
from typing import Final

import pytest

#: What a test needs follows from its fixtures, or from the values of their parameters: the marker of each.
BY_FIXTURE: Final = {"postgres": "postgres", "node_sample": "node", "chromium": "browser"}
BY_PARAMETER: Final = {
    "redis": "redis",
    "psycopg": "postgres",
    "engine on postgresql": "postgres",
    "session on postgresql": "postgres",
}
#: All tests with such a marker run in one process, since `npm ci`, `initdb` and the start of a browser take seconds.
IN_ONE_PROCESS: Final = ("browser", "node", "postgres")

#: Most tests spend most of their time waiting, so more processes than cores help. Unit tests are the exception.
PROCESSES_PER_CORE: Final = 2
MOST_PROCESSES: Final = 8

#: Where the folders of tests are, if there is room in memory. Servers write each command to their file before they
#: answer, so on a disk most of the time of many tests is that of the disk. Tests kill processes, never the machine:
#: what a process has written is there, on a disk or not.
MEMORY: Final = Path("/dev/shm")
ENOUGH_BYTES: Final = 4 << 30


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="rewrite the golden files of tests/unit/core/golden")


def pytest_configure() -> None:
    """Before the first folder is made: pytest makes them where this variable says."""
    if _has_room(MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def _has_room(folder: Path) -> bool:
    """Whether folders of tests can be made there, with programs in them. In a container, there may be only 64 MiB."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    found = os.statvfs(folder)
    return not found.f_flag & os.ST_NOEXEC and found.f_bavail * found.f_frsize >= ENOUGH_BYTES


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """What `-n auto` means. 0: all tests run in this process, so it starts sooner and shows what they print."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it
    names_a_test = any("::" in argument for argument in config.args)
    # Long runs measure, so nothing may run beside them.
    is_long = "soak" in config.option.markexpr.replace("not soak", "")
    if names_a_test or is_long or config.option.collectonly or config.option.capture == "no":
        return 0
    waits = not all("unit" in Path(argument).parts for argument in config.args)
    return min(len(os.sched_getaffinity(0)) * (PROCESSES_PER_CORE if waits else 1), MOST_PROCESSES)


@pytest.hookimpl(tryfirst=True)  # -m, which looks at the markers, comes later
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for marker in needs_of(item):
            item.add_marker(marker)
            if marker in IN_ONE_PROCESS:
                item.add_marker(pytest.mark.xdist_group(marker))
        if item.get_closest_marker("both_in_soak") and item.get_closest_marker("redis"):
            item.add_marker("soak")
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.timeout(0))  # none
    # This is not done with `-m "not soak"` in the options of every run, because a later -m would replace that.
    if "soak" not in config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("soak")])
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    if hasattr(config, "workerinput"):
        # In one of several processes, slow tests begin first, so that no process is still busy alone at the end.
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def needs_of(item: pytest.Item) -> set[str]:
    """The markers for all that a test needs."""
    fixtures = getattr(item, "fixturenames", ())
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {marker for fixture, marker in BY_FIXTURE.items() if fixture in fixtures} | {
        BY_PARAMETER[value] for value in parameters if isinstance(value, str) and value in BY_PARAMETER
    }
