"""Before a worker ends a wait, it looks for a signal that came in time: turn by turn, whatever else the stream holds.
With real processes: test_signals.py."""

import json
from typing import Any, Final

import pytest

from sagastream.client import requests
from sagastream.core.messages import Due, Signal
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.overdue import Overdue
from sagastream.orchestrator.room import Room
from sagastream.orchestrator.streams import Streams
from support.newer import FORMAT
from support.scenes import Scene
from support.servers import Server
from support.stores import KEYS, ONLY, due
from support.streams import append_requests
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

WAIT_MS: Final = 300
HOUR_MS: Final = 3600 * 1000


class Waits(Scene):
    """A worker in the test's process, and sagas that wait for the signal `go`."""

    def now_ms(self) -> int:
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def begin_all(self, *saga_ids: str) -> None:
        bodies: Any = [
            {"saga_id": saga_id, "input": {}, "steps": [{"wait": "go", "timeout_ms": WAIT_MS}]} for saga_id in saga_ids
        ]
        append_requests(self.redis, list(map(requests.to_begin, bodies)))
        self.turns_until(lambda: all(self.state(one).steps[0].phase is Phase.AWAITING for one in saga_ids))

    def state(self, saga_id: str) -> SagaState:
        state = self.client.get(saga_id)
        if state is None:
            self.worker.turn(block_ms=1)
            return self.state(saga_id)
        return state

    def until_over(self, *saga_ids: str) -> None:
        over_ms = max(self.state(one).due_ms or 0 for one in saga_ids)
        until(lambda: self.now_ms() > over_ms, what="the waits are over")

    def signal(self, saga_id: str, **options: Any) -> None:
        self.redis.xadd(ONLY.interventions, Signal(saga_id=saga_id, name="go", payload=b"1").fields(), **options)  # type: ignore[arg-type]

    def add_newer(self, count: int, size: int = 0) -> None:
        """Signals that only a newer release takes: they stay in front of all that comes after them."""
        body = json.dumps({"type": "saga_signal", "format": FORMAT, "saga_id": "n1", "name": "go", "x": "x" * size})
        for first in range(0, count, 100):
            pipeline = self.redis.pipeline(transaction=False)
            for _ in range(min(100, count - first)):
                pipeline.xadd(ONLY.interventions, {"body": body})
            pipeline.execute()


@pytest.fixture
def scene(server: Server) -> Waits:
    return Waits(server.broker())


def test_waits_end_in_time_though_much_stands_in_front_that_only_a_newer_release_takes(scene: Waits) -> None:
    scene.add_newer(1000)
    sagas = [f"s{number}" for number in range(20)]
    scene.begin_all(*sagas)
    scene.until_over(*sagas)
    scene.turns_until(lambda: all(scene.state(one).ended for one in sagas))
    assert {scene.state(one).reason for one in sagas} == {f"Step 1 failed: no signal go within {WAIT_MS} ms"}
    assert scene.redis.xlen(ONLY.interventions) == 1000


def test_a_signal_that_came_in_time_is_found_behind_all_that(scene: Waits) -> None:
    sagas = ["s1", "s2"]
    scene.begin_all(*sagas)
    scene.add_newer(100)
    scene.signal("s2")
    assert scene.now_ms() < (scene.state("s2").due_ms or 0), "this machine is too busy to tell"
    scene.until_over(*sagas)
    scene.add_newer(500)  # these are too late for any wait, and are not looked at
    scene.turns_until(lambda: all(scene.state(one).ended for one in sagas))
    assert [(scene.state(one).status, scene.state(one).results) for one in sagas] == [
        ("ABORTED", [None]),
        ("COMPLETED", [1]),
    ]


def test_a_turn_reads_one_page_for_all_sagas_whatever_the_entries_weigh(scene: Waits) -> None:
    sagas = [f"s{number}" for number in range(50)]
    scene.begin_all(*sagas)
    scene.add_newer(64, size=900_000)
    scene.until_over(*sagas)

    def told() -> tuple[int, int]:
        calls: Any = scene.redis.info("commandstats").get("cmdstat_xrange", {"calls": 0})
        stats: Any = scene.redis.info("stats")
        return calls["calls"], stats["total_net_output_bytes"]

    most_calls = most_bytes = 0
    for _ in range(200):
        calls, size = told()
        scene.worker.turn(block_ms=1)
        now_calls, now_size = told()
        most_calls, most_bytes = max(most_calls, now_calls - calls), max(most_bytes, now_size - size)
    assert all(scene.state(one).ended for one in sagas)
    assert most_calls <= 2
    assert most_bytes < 70 << 20  # the reader itself reads new entries, and claims others; 64 entries have 58 MB


def test_a_signal_with_an_id_ahead_of_the_clock_is_taken_first(scene: Waits) -> None:
    """The clock was set back since the stream's last entry: Redis gives no lower ids."""
    scene.begin_all("s1", "s2", "s3")
    over_ms = scene.state("s3").due_ms or 0
    scene.until_over("s1", "s2", "s3")
    now_ms = scene.now_ms()
    scene.signal("s2", id=f"{over_ms + 1}-0")  # it came too late
    scene.signal("s1", id=f"{now_ms + HOUR_MS}-0")
    store = Store(scene.redis)
    found, _ = due(store, 128, 5000)
    assert sorted(found) == ["s1", "s2", "s3"]
    overdue, streams = Overdue(scene.redis, store), Streams(KEYS, (), Room("w", 1))
    inputs: Any = [(None, Due(saga_id=one)) for one in found]
    left = overdue.signals_first(inputs, {one: scene.state(one) for one in found}, streams, now_ms)
    assert sorted(str(event.saga_id) for _, event in left) == ["s2", "s3"]
    again, _ = due(store, 128, 5000)
    assert again == ["s1"], "it is given back"
    assert not overdue
