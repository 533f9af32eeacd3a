"""Bulks on real servers: each saga that is meant is asked once, whoever dies meanwhile, and no other is asked."""

import asyncio
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
import redis

from sagastream import Accepted, AsyncSagaClient, Reject, Service
from sagastream.broker.exchange import run
from sagastream.core.bulks import Bulk, BulkState
from sagastream.core.filtering import Filter
from sagastream.errors import MalformedMessage, RequestRefused
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store import bulks, operations, published
from sagastream.store.keys import BULK_KEPT_MS
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY, divided, in_each

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
            if context.step > 1:
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
    bulk = stage.bulk(rate=2000)
    assert (bulk.total, bulk.total_is_exact) == (500, True)
    end = stage.ends(bulk)
    assert (end.state, end.found, end.asked, end.done, end.refused) == (BulkState.DONE, 500, 500, 500, 0)
    stage.turns(lambda: len(stage.calls) == 500)
    state = stage.client.get(names[7])
    assert state is not None
    assert [(one.verb, one.reason, one.actor) for one in state.interventions] == [("retry", "mended", "ada")]
    assert set(stage.calls.values()) == {1}
    assert sorted(one.saga_id for one in run(stage.redis, bulks.results(KEYS, bulk.bulk_id))) == names


def test_a_worker_that_dies_is_followed_by_another_and_no_saga_is_asked_twice(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagastream.orchestrator.bulks._LEASE_MS", 300)
    names = stage.park(60)
    stage.is_broken = False
    bulk = stage.bulk(rate=80)  # 20 sagas a part
    first = stage.worker

    def dies() -> Any:
        raise redis.ConnectionError("killed")

    # It dies after it has noted its second part, and before it has sent it.
    sends = first._bulks._send

    def sends_once(carried: Any) -> Any:
        return sends(carried) if carried.bulk.asked <= 20 else dies()

    monkeypatch.setattr(first._bulks, "_send", sends_once)
    with pytest.raises(redis.ConnectionError):
        stage.turns(lambda: False)
    left = stage.now(bulk)
    assert (len(left.open), left.asked, left.done) == (20, 40, 20)
    end = stage.ends(bulk, stage.another_worker())
    assert (end.state, end.found, end.asked, end.done, end.refused) == (BulkState.DONE, 60, 60, 60, 0)
    stage.turns(lambda: len(stage.calls) == 60, stage.another_worker())
    assert set(stage.calls.values()) == {1}
    for name in names:
        state = stage.client.get(name)
        assert state is not None
        assert len(state.interventions) == 1


def test_after_an_outage_a_worker_goes_on_from_what_was_noted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.park(6)
    stage.is_broken = False
    bulk = stage.bulk(rate=12)  # 3 sagas a part
    notes, failures = stage.worker._bulks._note, [False, True]

    def note(carried: Any, *args: Any, **options: Any) -> Any:
        """Once the note does not arrive, once only its answer does not."""
        if carried.bulk.open and not carried.times and failures:
            if failures.pop(0):
                yield from notes(carried, *args, **options)
            raise redis.ConnectionError("away")
        return (yield from notes(carried, *args, **options))

    monkeypatch.setattr(stage.worker._bulks, "_note", note)
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            stage.turns(lambda: False)
    end = stage.ends(bulk)
    assert (end.state, end.found, end.asked, end.done, end.refused) == (BulkState.DONE, 6, 6, 6, 0)
    stage.turns(lambda: len(stage.calls) == 6)
    assert set(stage.calls.values()) == {1}
    assert len(stage.client.bulk_results(bulk.bulk_id)) == 6


def test_one_that_only_seems_dead_sends_the_same_requests_and_they_are_done_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagastream.orchestrator.bulks._LEASE_MS", 1)
    stage.park(10)
    stage.is_broken = False
    bulk = stage.bulk(rate=8)
    workers = [stage.worker, stage.another_worker(), stage.another_worker()]
    end = stage.ends(bulk, *workers)  # each takes it from the other all the time
    assert (end.state, end.found, end.asked, end.done + end.refused) == (BulkState.DONE, 10, 10, 10)
    stage.turns(lambda: len(stage.calls) == 10, *workers)
    assert set(stage.calls.values()) == {1}


def test_a_bulk_is_paused_resumed_and_stopped(stage: Stage) -> None:
    stage.park(12)
    bulk = stage.client.begin_bulk("retry", "mended", status="PARKED", rate=4)
    stage.turns(lambda: stage.now(bulk).done >= 2)
    paused = stage.client.pause_bulk(bulk.bulk_id, actor="ada", reason="lunch")
    assert paused.state is BulkState.PAUSED
    with pytest.raises(RequestRefused, match=r"is PAUSED: there is nothing to pause$"):
        stage.client.pause_bulk(bulk.bulk_id)
    stage.turns(lambda: not stage.redis.zcard(KEYS.bulks_open))
    rests = stage.client.bulk(bulk.bulk_id)
    assert (rests.state, rests.open, rests.asked < 12) == (BulkState.PAUSED, (), True)
    assert stage.client.resume_bulk(bulk.bulk_id).state is BulkState.RUNNING
    stage.turns(lambda: stage.now(bulk).done > rests.done)
    stopped = stage.client.stop_bulk(bulk.bulk_id)
    assert (stopped.state, stopped.ended) == (BulkState.STOPPED, True)
    end = stage.ends(bulk)
    assert (end.state, end.asked < 12, end.done) == (BulkState.STOPPED, True, end.asked)
    with pytest.raises(RequestRefused, match=r"is STOPPED: there is nothing to resume$"):
        stage.client.resume_bulk(bulk.bulk_id)
    noted = [(one.verb, one.what.partition(":")[0], one.actor) for one in run(stage.redis, operations.newest(KEYS, 4))]
    assert noted == [
        ("bulk stop", bulk.bulk_id, ""),
        ("bulk resume", bulk.bulk_id, ""),
        ("bulk pause", bulk.bulk_id, "ada"),
        ("bulk begin", bulk.bulk_id, ""),
    ]


def test_what_does_not_allow_it_is_refused_and_listed_and_later_sagas_are_not_meant(stage: Stage) -> None:
    names = stage.park(3, attributes={"customer": "c1"})
    bulk = stage.client.begin_bulk("cancel", "over", where={"customer": "c1"}, actor="ada")
    late = stage.park(1, first=100, attributes={"customer": "c1"})
    end = stage.ends(bulk)
    assert (end.found, end.asked, end.done, end.refused) == (3, 3, 0, 3)
    results = stage.client.bulk_results(bulk.bulk_id)
    assert sorted(one.saga_id for one in results) == names
    assert {str(one.refused).partition(" is ")[2] for one in results} == {"past its pivot: there is no way back"}
    ended = stage.ends(stage.client.begin_bulk("abandon", "over", parked="bank/Pay", newer=timedelta(hours=1)))
    assert (ended.found, ended.done, stage.parked()) == (4, 4, set())
    assert stage.client.get(late[0]).status == "ABORTED"  # type: ignore[union-attr]


def test_of_those_that_took_a_retry_it_is_known_which_are_parked_again(stage: Stage) -> None:
    names = stage.park(3)
    bulk = stage.bulk()
    assert stage.ends(bulk).done == 3
    stage.turns(lambda: stage.parked() == set(names))
    taken = [one.saga_id for one in run(stage.redis, bulks.results(KEYS, bulk.bulk_id))]
    assert sorted(run(stage.redis, bulks.parked_now(KEYS, taken))) == names
    stage.is_broken = False
    stage.ends(stage.bulk())
    stage.turns(lambda: not stage.parked())
    assert run(stage.redis, bulks.parked_now(KEYS, taken)) == []


def test_each_step_that_is_parked_is_retried_once_and_only_where_it_is_meant(stage: Stage) -> None:
    pivot = do(0, "Pay", "bank", kind="pivot") | {"id": "pivot"}
    retriable = do(0, "Pay", "bank", kind="retriable") | {"after": ["pivot"], "attempts": 1}
    parts = [retriable | {"id": "one"}, retriable | {"id": "other"}]
    stage.client.begin("g1", [pivot, *parts])
    stage.turns(lambda: (state := stage.client.get("g1")) and len(state.parked_steps) == 2)
    end = stage.ends(stage.client.begin_bulk("retry", "mended", parked="Pay"))
    assert (end.found, end.asked, end.done, end.refused) == (1, 2, 2, 0)


def test_what_cannot_be_a_bulk_is_refused(stage: Stage) -> None:
    begin: Any = stage.client.begin_bulk
    for arguments, told in (
        (("explode", "r"), r"^a bulk can cancel, retry, skip, abandon, not 'explode'$"),
        (("retry", ""), r"^reason must be"),
    ):
        with pytest.raises(MalformedMessage, match=told):
            begin(*arguments, status="PARKED")
    with pytest.raises(MalformedMessage, match=r"^a bulk needs a search"):
        begin("retry", "r")
    with pytest.raises(MalformedMessage, match=r"^rate must be a whole number from 1 to 2000"):
        begin("retry", "r", status="PARKED", rate=0)
    with pytest.raises(MalformedMessage, match=r"COMPLETED, takes no retry$"):
        begin("retry", "r", status="COMPLETED")
    with pytest.raises(MalformedMessage, match=r"^now is for cancel and abandon"):
        begin("retry", "r", status="PARKED", now=True)
    for bulk_id in ("nobody", "../saga:{0}:saga:s1", "0" * 12, "\x1b[2J"):
        with pytest.raises(RequestRefused, match=r"^there is no bulk '"):
            stage.client.bulk(bulk_id)


def test_damaged_bulks_are_left_out_and_hold_up_nothing(stage: Stage) -> None:
    stage.park(1)
    good = stage.bulk()
    names = ["a" * 12, "b" * 12, "c" * 12, "no id!"]
    stage.redis.hset(KEYS.bulk(names[0]), mapping={"state": "RUNNING", "verb": "\x1b[2J", "filter": "{"})
    stage.redis.set(KEYS.bulk(names[1]), "x")
    for name in names:  # the third one has expired
        stage.redis.zadd(KEYS.bulks, {name: 1})
        stage.redis.zadd(KEYS.bulks_open, {name: 1})
    stage.turns(lambda: stage.now(good).ended)
    assert [one.bulk_id for one in stage.client.bulks()] == [good.bulk_id]
    assert stage.redis.zscore(KEYS.bulks_open, names[2]) is None
    stage.redis.delete(KEYS.bulks_open, KEYS.bulks)
    stage.redis.set(KEYS.bulks_open, "x")
    stage.redis.set(KEYS.bulks, "x")
    stage.begin("s1", do(1))
    assert stage.play("s1").status == "COMPLETED"


def test_a_bulk_that_the_broker_refuses_says_so_and_the_worker_goes_on(stage: Stage) -> None:
    bulk = stage.bulk()
    stage.redis.hset(KEYS.bulk(bulk.bulk_id), "cursor", "\x1b[2J")
    stage.turns(lambda: stage.now(bulk).last_error)
    assert stage.now(bulk).last_error == r"this is no cursor that a page has had: '\x1b[2J'"
    stage.begin("s1", do(1))
    assert stage.play("s1").status == "COMPLETED"


def test_a_worker_that_ends_gives_back_what_it_carries(stage: Stage) -> None:
    stage.park(3)
    bulk = stage.bulk(rate=1)
    stage.turns(lambda: stage.now(bulk).done)
    stage.worker._bulks.leave()
    seconds, _ = stage.redis.time()
    until_ms: Any = stage.redis.hget(KEYS.bulk(bulk.bulk_id), "leased_until_ms")
    assert int(until_ms) <= (seconds + 1) * 1000
    assert stage.ends(bulk, stage.another_worker()).done == 3


def test_sagas_of_all_partitions_are_meant(server: Server) -> None:
    broker = server.broker()
    keys = divided(broker)
    scene = Scene(broker)
    names = [*in_each(keys), *in_each(keys, "t")]
    scene.client.begin_many([{"saga_id": name, "steps": [do(1, service="nobody")]} for name in names])
    scene.turns_until(lambda: len(scene.client.find(at="nobody/Do").sagas) == len(names))
    bulk = scene.client.begin_bulk("cancel", "never mind", at="nobody/Do", now=True, rate=2000)
    scene.turns_until(lambda: scene.client.bulk(bulk.bulk_id).ended)
    end = scene.client.bulk(bulk.bulk_id)
    assert (end.found, end.done, end.refused) == (6, 6, 0)
    for name in names:
        state = scene.client.get(name)
        assert state is not None
        assert [one.verb for one in state.interventions] == ["cancel now"]


def test_the_oldest_that_have_ended_make_room(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulks, "MOST", 2)
    done = stage.ends(stage.bulk())
    second = stage.bulk()
    stage.ends(second)
    third = stage.bulk()
    assert {one.bulk_id for one in stage.client.bulks()} == {third.bulk_id, second.bulk_id}
    assert not stage.redis.exists(KEYS.bulk(done.bulk_id))
    fourth = stage.bulk()
    with pytest.raises(RequestRefused, match=r"^there are 2 bulks, the most that may be"):
        stage.bulk()
    assert {one.bulk_id for one in stage.client.bulks()} == {fourth.bulk_id, third.bulk_id}
    assert 0 < stage.redis.pttl(KEYS.bulk(fourth.bulk_id)) <= BULK_KEPT_MS


def test_a_worker_without_bulks_pays_one_command_with_its_heartbeat(stage: Stage) -> None:
    def calls() -> dict[str, int]:
        stats: Any = stage.redis.info("commandstats")
        return {name: one["calls"] for name, one in stats.items()}

    stage.turns_until(lambda: stage.redis.zcard(KEYS.alive) == 1)
    before, until_s = calls(), time.monotonic() + 1.5
    stage.turns_until(lambda: time.monotonic() > until_s)
    after = calls()
    beats = after["cmdstat_zadd"] - before["cmdstat_zadd"]  # beat.lua
    reads = after["cmdstat_zrange"] - before["cmdstat_zrange"]
    assert 1 <= beats <= 4
    assert reads <= beats


def test_the_event_loop_has_the_same(stage: Stage) -> None:
    stage.park(1)

    async def story() -> None:
        async with AsyncSagaClient(stage.broker) as client:
            bulk = await client.begin_bulk("retry", "mended", status="PARKED", rate=1)
            assert (await client.bulks())[0] == await client.bulk(bulk.bulk_id) == bulk
            assert (await client.pause_bulk(bulk.bulk_id)).state is BulkState.PAUSED
            assert (await client.resume_bulk(bulk.bulk_id)).state is BulkState.RUNNING
            assert (await client.stop_bulk(bulk.bulk_id)).state is BulkState.STOPPED
            assert await client.bulk_results(bulk.bulk_id) == []

    asyncio.run(story())
