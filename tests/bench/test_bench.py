"""`sagastream bench`, as a user runs it, but small: every figure is there and plausible."""

import json
import re
import sys
from pathlib import Path

import pytest

from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaState, SagaStatus
from sagastream_bridge.bench.services import SHAPES, saga
from support.processes import Commands
from support.servers import Server
from support.waiting import until


def test_it_measures_against_the_floor(server: Server, commands: Commands) -> None:
    done = commands.run("bench", "--sagas", "200", "--rounds", "1", "--json", REDIS_URL=server.url)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    figures = result["figures"]
    assert result["settings"] | {"server": ""} == {
        "server": "",
        "nodes": 1,
        "appendfsync": "always",
        "workers": 1,
        "partitions": 1,
        "shape": "chain",
        "steps": 3,
        "sagas": 200,
        "rounds": 1,
    }
    for name in ("completed", "aborted"):
        ratio = figures[f"{name}_per_s"] / figures["floor_per_s"]
        assert figures[f"ratio_{name}"] == pytest.approx(ratio, rel=0.01, abs=0.0006)  # it has three decimals
        for who in ("server", "workers", "services", "begin"):
            assert 0 <= figures[f"{name}_cpu_us_{who}"] < 1e6  # of a process, in steps of 10 ms
        assert figures[f"{name}_cpu_us_server"] > 0
        assert 1 <= figures[f"{name}_batch_script"] <= 128
        assert 1 <= figures[f"{name}_batch_read"] <= 512
    for name in ("alone", "at_an_eighth", "at_a_third", "at_half", "64_at_once"):
        assert 0 < figures[f"{name}_p50_ms"] <= figures[f"{name}_p99_ms"]
        assert f"{name}_p99.9_ms" not in figures  # of a hundred sagas, none is one of a thousand
    assert 200 < figures["bytes_an_ended_saga"] < 20_000


@pytest.mark.both_in_soak
def test_for_people_it_says_the_ratios(commands: Commands, server: Server) -> None:
    done = commands.run("bench", "--sagas", "100", "--rounds", "2", REDIS_URL=server.url)
    assert done.returncode == 0, done.stderr
    assert "medians of 2 rounds of 100 sagas" in done.stdout
    ratio = r"of the floor: \d\.\d\d \(\d\.\d\d to \d\.\d\d in the rounds\)"
    assert re.search(rf"completed +\d+ sagas/s, {ratio}", done.stdout)
    assert "CPU, us a saga" in done.stdout
    assert "at a third of what it can do" in done.stdout


def test_it_measures_several_workers_on_a_store_that_is_thrown_away(commands: Commands) -> None:
    options = ("--sagas", "100", "--rounds", "1", "--partitions", "4", "--workers", "2", "--json")
    done = commands.run("bench", *options)
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert (settings["workers"], settings["partitions"]) == (2, 4)


def test_it_measures_a_cluster_that_it_starts_itself(commands: Commands) -> None:
    done = commands.run("bench", "--sagas", "100", "--rounds", "1", "--cluster", "2", "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    settings, figures = result["settings"], result["figures"]
    assert (settings["nodes"], settings["partitions"], settings["appendfsync"]) == (2, 4, "always")
    assert figures["completed_cpu_us_server"] > 0
    assert figures["bytes_an_ended_saga"] > 200


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_nodes_end_with_a_bench_that_is_killed(commands: Commands) -> None:
    process = commands.quiet("bench", "--sagas", "100000", "--cluster", "2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def nodes() -> list[Path] | None:
        found = [Path("/proc", pid) for pid in children.read_text().split()]
        servers = [one for one in found if is_live(one) and b"-server" in (one / "cmdline").read_bytes()]
        return servers if len(servers) == 2 else None

    def is_live(one: Path) -> bool:
        try:
            return (one / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    started = until(nodes, what="its nodes run")
    process.kill()
    until(lambda: not any(map(is_live, started)), what="its nodes have ended")


@pytest.mark.both_in_soak
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "chain"])
def test_sagas_of_other_shapes_complete_and_are_undone(commands: Commands, server: Server, shape: str) -> None:
    options = ("--sagas", "100", "--rounds", "1", "--shape", shape, "--json")
    done = commands.run("bench", *options, REDIS_URL=server.url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["shape"] == shape
    client = SagaClient(server.broker())
    steps = len(saga(shape)["steps"])
    [completed] = client.list(SagaStatus.COMPLETED, limit=1)
    [aborted] = client.list(SagaStatus.ABORTED, limit=1)
    assert isinstance(completed, SagaState)
    assert isinstance(aborted, SagaState)
    assert [str(step.phase) for step in completed.steps] == ["COMPLETED"] * steps
    assert [str(step.phase) for step in aborted.steps] == ["COMPENSATED"] * (steps - 1) + ["FAILED"]


@pytest.mark.parametrize("options", [["--sagas", "0"], ["--shape", "ring"], ["--workers", "0"], ["--rounds", "x"]])
def test_wrong_usage(commands: Commands, options: list[str]) -> None:
    assert commands.run("bench", *options).returncode == 2
