"""A cluster, one of whose nodes has another clock than the others: what waits for a time ends in time, in all
partitions."""

import time
from pathlib import Path
from typing import Any

import pytest

from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaStatus
from sagastream.store import layout
from support.clock import ServerClock
from support.clusters import Cluster
from support.processes import Commands

#: A pause, and then a command that nobody answers.
STEPS: list[Any] = [
    {"id": "pause", "wait_ms": 1500},
    {"transaction": "Do", "service": "nobody", "timeout_ms": 1500, "attempts": 1, "compensation": None},
]


@pytest.mark.own_server
@pytest.mark.parametrize(("number", "behind_ms"), [(0, 300_000), (0, -5_000), (1, 5_000), (1, -300_000)])
def test_what_waits_for_a_time_ends_in_time_whatever_the_clock_of_one_node(
    number: int, behind_ms: int, tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`number`: of the partition whose node has that clock. That of partition 0 has the keys of the whole store."""
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", "3")
    cluster = Cluster("valkey", tmp_path, 3, 0)
    try:
        keys = layout.check(cluster.broker())
        ServerClock(cluster.node_of(keys.partitions[number].timers), behind_ms=behind_ms)
        cluster.wait_ok()
        with (tmp_path / "log").open("wb") as log:
            for _ in range(2):
                commands.start("worker", env={"REDIS_URL": cluster.url}, stderr=log)
        with SagaClient(cluster.url) as client:
            ids = [next(name for name in map(str, range(999)) if keys.of(name) is one) for one in keys.partitions]
            client.begin("first", [{"wait_ms": 1}])  # the workers are there
            assert client.wait("first", 30).status is SagaStatus.COMPLETED
            began_s = time.monotonic()
            for saga_id in ids:
                client.begin(saga_id, STEPS)
            for saga_id in ids:
                assert client.wait(saga_id, 20).status is SagaStatus.ABORTED
            assert 3 <= time.monotonic() - began_s < 10
        said = (tmp_path / "log").read_text()
        assert "clock" not in said, said
    finally:
        cluster.stop()
