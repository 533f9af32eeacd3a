"""Real servers and real processes for the tests that need them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.postgres import Postgres, find_binaries
from support.processes import Commands
from support.servers import Server, start_redis, start_valkey

NODE_SAMPLE = Path(__file__).parents[1] / "stubs" / "node-notification"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder of its own for an embedded server."""
    return tmp_path / "home"


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A fresh server: every test that takes it runs against the embedded Valkey and against Redis 7."""
    if request.param == "redis":
        if shutil.which("redis-server") is None:
            message = "redis-server is not on the path: Debian has it in the package redis-server"
            if "CI" in os.environ:
                pytest.fail(message)
            pytest.skip(message)
        started = start_redis(tmp_path)
    else:
        started = start_valkey(tmp_path)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for the whole run."""
    if (binaries := find_binaries()) is None:
        message = "there is no PostgreSQL server here: Debian has it in the package postgresql"
        if "CI" in os.environ:
            pytest.fail(message)
        pytest.skip(message)
    started = Postgres(binaries)
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Starts `sagastream …` processes, and ends whatever is left of them."""
    running = Commands(tmp_path)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture(scope="session")
def node_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's folder, installed as its user would install it."""
    if missing := [name for name in ("node", "npm") if shutil.which(name) is None]:
        message = f"{' and '.join(missing)} not on the path: Debian has the packages nodejs and npm"
        if "CI" in os.environ:
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("node") / "service"
    shutil.copytree(NODE_SAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    installed = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert installed.returncode == 0, installed.stderr
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write the golden files of tests/unit/golden anew")
