"""Real servers and real processes for the tests that need them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.clusters import Cluster
from support.needs import missing
from support.postgres import Postgres, find_binaries
from support.processes import Commands
from support.replicas import Pair
from support.servers import KINDS, OwnServer, Server, start_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest_plugins = ["support.running"]

NODE_SAMPLE = Path(__file__).parents[1] / "stubs" / "node-notification"


@pytest.fixture(scope="session", autouse=True)
def _state_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The homes of embedded servers that a test does not name: not in the folder of the person who runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


# --- servers


@pytest.fixture(scope="session")
def shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Valkey for the whole run. Tests take `server`, which clears it for them."""
    started = start_server("valkey", tmp_path_factory.mktemp("valkey"), Server)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis for the whole run. Tests take `server`, which clears it for them."""
    started = start_server("redis", tmp_path_factory.mktemp("redis"), Server)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes for the whole run. Tests take `cluster`, which clears it for them."""
    started = Cluster("valkey", tmp_path_factory.mktemp("valkey-cluster"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes for the whole run. Tests take `cluster`, which clears it for them."""
    started = Cluster("redis", tmp_path_factory.mktemp("redis-cluster"))
    yield started
    started.stop()


@pytest.fixture(params=KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """An empty cluster of three nodes without replicas. Tests share it, so its nodes and slots stay as they are; a test
    that changes them makes a `Cluster` of its own."""
    shared: Cluster = request.getfixturevalue(f"{request.param}_cluster")
    shared.clear()
    yield shared
    shared.close_brokers()


@pytest.fixture(scope="module")
def mortal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of the tests of one module, whose nodes may die and come back: on Valkey, or as a test says."""
    made = Cluster(getattr(request, "param", "valkey"), tmp_path_factory.mktemp("cluster"))
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.redis] if kind == "redis" else []) for kind in KINDS])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """A master and its replica."""
    made = Pair(request.param, tmp_path)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """An empty server. A test that takes it runs twice: on the embedded Valkey and on Redis 7.

    Tests share one server of each kind. A test that is marked `own_server` gets an `OwnServer`, which it may kill.
    """
    if request.node.get_closest_marker("own_server"):
        own = start_server(request.param, tmp_path, OwnServer)
        yield own
        own.stop()
    else:
        # Two fixtures and not one: pytest would start a session's fixture again each time its parameter changes.
        shared: Server = request.getfixturevalue(f"shared_{request.param}")
        shared.clear()
        yield shared
        shared.close_brokers()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for the whole run; each test makes a database of its own on it."""
    if (binaries := find_binaries()) is None:
        missing("there is no PostgreSQL server here: Debian has it in the package postgresql")
    started = Postgres(binaries)
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """A browser for the tests of a file. Not for the whole run: while it is there, no other event loop may begin in
    this process."""
    from support.browsers import started_browser

    with started_browser() as browser:
        yield browser


# --- processes


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder of its own for an embedded server."""
    return tmp_path / "home"


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
    if absent := [name for name in ("node", "npm") if shutil.which(name) is None]:
        missing(f"{' and '.join(absent)} not on the path: Debian has the packages nodejs and npm")
    folder = tmp_path_factory.mktemp("node") / "service"
    shutil.copytree(NODE_SAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    installed = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert installed.returncode == 0, installed.stderr
    return folder
