"""Bulks on real servers: each saga that is meant is asked once, whoever dies meanwhile, and no other is asked."""

import time
from collections import Counter
from typing import Any

import pytest

from sagastream import Accepted, Reject, Service
from sagastream.broker.exchange import run
from sagastream.core.bulks import Bulk, BulkState
from sagastream.core.filtering import Filter
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store import bulks, published
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY

pytestmark = pytest.mark.both_in_soak
PARKED = Filter(status="PARKED")


class Stage(Scene):
    """A scene whose service `bank` can be broken: then its sagas are parked."""

    def __init__(self, broker: Any) -> None:
        super().__init__(broker)
        self.is_broken = True
        self.calls: Counter[str] = Counter()
        bank = Service("bank")

        @bank.command("Pay", compensation=None)
        def pay(params: Any, context: Any) -> None:
            if context.step == 2:
                if self.is_broken:
                    raise Reject("out of order")
                self.calls[context.saga_id] += 1

        published.publish(broker.client, KEYS, "bank", bank.publishes())
        self.bank = ServiceRunner(broker, bank, self.stop)

    def park(self, count: int, first: int = 0, **options: Any) -> list[str]:
        """Begin so many sagas, and let them be parked."""
        names = [f"p{number:04}" for number in range(first, first + count)]
        steps = [do(0, "Pay", "bank", kind="pivot"), do(0, "Pay", "bank", kind="retriable") | {"attempts": 1}]
        begun = self.client.begin_many([{"saga_id": name, "steps": steps, **options} for name in names])  # type: ignore[typeddict-item]
        assert all(isinstance(one, Accepted) for one in begun)
        self.is_broken = True
        self.turns(lambda: self.parked() >= set(names))
        return names

    def parked(self) -> set[str]:
        found: Any = self.redis.zrange(ONLY.index("status=PARKED"), 0, -1)
        return {saga_id.decode() for saga_id in found}

    def turns(self, condition: Any, *workers: Orchestrator) -> None:
        def turned() -> bool:
            self.bank.turn(block_ms=1)
            return bool(condition())

        self.turns_until(turned, *workers)

    def bulk(self, verb: str = "retry", wanted: Filter = PARKED, **options: Any) -> Bulk:
        return run(self.redis, bulks.begin(KEYS, verb, wanted, reason="mended", actor="ada", **options))

    def now(self, bulk: Bulk) -> Bulk:
        return run(self.redis, bulks.load(KEYS, bulk.bulk_id))

    def ends(self, bulk: Bulk, *workers: Orchestrator) -> Bulk:
        self.turns(lambda: self.now(bulk).ended and not self.redis.zcard(KEYS.bulks_open), *workers)
        return self.now(bulk)


@pytest.fixture
def stage(server: Server) -> Stage:
    return Stage(server.broker())


def test_many_parked_sagas_are_retried_in_seconds_each_once(stage: Stage) -> None:
    names = stage.park(500)
    stage.is_broken = False
    began = time.monotonic()
    bulk = stage.bulk(rate=2000)
    assert (bulk.total, bulk.total_is_exact) == (500, True)
    end = stage.ends(bulk)
    assert (end.state, end.found, end.asked, end.done, end.refused) == (BulkState.DONE, 500, 500, 500, 0)
    stage.turns(lambda: len(stage.calls) == 500)
    print("took", time.monotonic() - began)
    state = stage.client.get(names[7])
    assert state is not None
    assert [(one.verb, one.reason, one.actor) for one in state.interventions] == [("retry", "mended", "ada")]
    assert set(stage.calls.values()) == {1}
    assert sorted(one.saga_id for one in run(stage.redis, bulks.results(KEYS, bulk.bulk_id))) == names
