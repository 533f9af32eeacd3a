"""The indexes by which sagas are found, on real servers: they say what the hashes say, and last as long."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final

import pytest
import redis

from sagastream.core.indexing import index_names
from sagastream.core.saga import SagaState
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.mending import Mending
from sagastream.orchestrator.sweeping import Sweep
from sagastream.orchestrator.worker import LEASE_MS
from sagastream.store import sagas
from sagastream.store.indexes import names_in
from sagastream_bridge.inspection.doctor import Doctor
from sagastream_bridge.inspection.findings import PROBLEM, REPAIRED, WARNING
from sagastream_bridge.transfer.exporting import Export
from sagastream_bridge.transfer.importing import Import
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY

#: Some time, long after all sagas here have ended.
NOW_MS: Final = 2_000_000_000_000


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def places(client: "redis.Redis") -> dict[str, dict[str, float]]:
    """All indexes: which sagas are in each, with their scores."""
    names: Any = client.scan_iter(ONLY.index("*"))
    return {key.decode().removeprefix(ONLY.index("")): scores(client, key.decode()) for key in names}


def scores(client: "redis.Redis", key: str) -> dict[str, float]:
    found: Any = client.zrange(key, 0, -1, withscores=True)
    return {member.decode(): score for member, score in found}


def check(client: "redis.Redis") -> dict[str, set[str]]:
    """Check that the indexes say what the hashes say. Returns the sagas of each."""
    names: Any = client.scan_iter(ONLY.saga("*"))
    found, _ = sagas.read(client, KEYS, [key.decode().removeprefix(ONLY.saga("")) for key in names])
    states = {saga_id: state for saga_id, state in found.items() if isinstance(state, SagaState)}
    assert states.keys() == found.keys()
    expected: dict[str, dict[str, float]] = {}
    for saga_id, state in states.items():
        for name in index_names(state):
            expected.setdefault(name, {})[saga_id] = state.begun_ms
    assert places(client) == expected
    indexed: Any = client.hgetall(ONLY.indexed)
    told = {saga_id.decode(): names_in(of_it) for saga_id, of_it in indexed.items()}
    assert told == {saga_id: index_names(state) for saga_id, state in states.items() if index_names(state)}
    assert scores(client, ONLY.begun) == {saga_id: state.begun_ms for saga_id, state in states.items()}
    return {name: set(those) for name, those in expected.items()}


def begin_some(scene: Scene) -> None:
    """One saga of each sort: plain, with attributes, aborted, parked."""
    scene.client.begin("plain", [do(1)])
    scene.client.begin("marked", [do(1)], attributes={"customer": "c 42=ü", "basket": 815})
    scene.client.begin("aborted", [do(1), do("fail")], attributes={"basket": 815})
    scene.client.begin("parked", [do(1, name="DoForGood", kind="pivot"), do(1, service="nobody", kind="retriable")])
    for saga_id in ("plain", "marked", "aborted"):
        scene.play(saga_id)
    scene.turns_until(lambda: scene.client.get("parked") is not None)


def test_sagas_are_in_the_indexes_that_their_hashes_say_until_they_have_expired(scene: Scene) -> None:
    begin_some(scene)
    assert check(scene.redis) == {
        "customer=c 42=ü": {"marked"},
        "basket=815": {"marked", "aborted"},
        "status=ABORTED": {"aborted"},
    }
    store = Store(scene.redis, retention_ms=0)
    sweep = Sweep(scene.redis, store)
    sweep.sweep(KEYS, KEYS.partitions)
    assert set(check(scene.redis)) == {"customer=c 42=ü", "basket=815", "status=ABORTED"}  # all are there still
    scene.redis.delete(ONLY.saga("marked"), ONLY.saga("plain"))  # as if their time had come
    sweep.sweep(KEYS, KEYS.partitions)
    assert check(scene.redis) == {"basket=815": {"aborted"}, "status=ABORTED": {"aborted"}}
    assert scene.redis.zrange(ONLY.ended, 0, -1) == [b"aborted"]


def test_a_sweep_leaves_a_saga_alone_that_was_begun_again(scene: Scene) -> None:
    scene.client.begin("s1", [do(1)], attributes={"customer": "c1"})
    scene.play("s1")
    scene.redis.delete(ONLY.saga("s1"))
    scene.client.begin("s1", [do(2)], attributes={"customer": "c1"})
    scene.play("s1")
    Sweep(scene.redis, Store(scene.redis, retention_ms=0)).sweep(KEYS, KEYS.partitions)
    assert check(scene.redis) == {"customer=c1": {"s1"}}


#: What a saga may be that is begun with the id of one that has expired: its attributes, its steps, and its indexes.
AGAIN: Any = {
    "other attributes": ({"customer": "c2"}, [do(1)], {"customer=c2"}),
    "some of the same": ({"basket": 7, "customer": "c1"}, [do(1)], {"customer=c1", "basket=7"}),
    "none": (None, [do(1)], set()),
    "none, and it is undone": (None, [do(1), do("fail")], {"status=ABORTED"}),
}


@pytest.mark.parametrize("again", AGAIN)
def test_a_saga_that_was_begun_again_before_the_sweep_leaves_the_indexes_of_the_one_before(
    scene: Scene, again: str
) -> None:
    attributes, steps, names = AGAIN[again]
    scene.client.begin("s1", [do(1), do("fail")], attributes={"customer": "c1", "shop": "berlin"})
    scene.client.begin("other", [do(1)], attributes={"customer": "c1"})
    for saga_id in ("s1", "other"):
        scene.play(saga_id)
    scene.redis.delete(ONLY.saga("s1"))
    scene.client.begin("s1", steps, attributes=attributes)
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    assert scene.redis.zscore(ONLY.ended, "s1") is None  # it lives
    scene.play("s1")
    assert check(scene.redis) == {name: {"s1"} for name in names} | {
        "customer=c1": {"other"} | ({"s1"} if "customer=c1" in names else set())
    }
    assert scene.client.find(where={"shop": "berlin"}).total == 0
    assert scene.redis.zcard(ONLY.ended) == 2


def test_a_saga_that_begins_and_ends_at_once_after_one_that_has_expired_is_among_the_ended(scene: Scene) -> None:
    scene.client.begin("s1", [do(1)], attributes={"customer": "c1"})
    scene.play("s1")
    scene.redis.delete(ONLY.saga("s1"))
    never: Any = do(1, when=False)
    scene.client.begin("s1", [never], input={})
    assert scene.play("s1").status == "COMPLETED"
    assert check(scene.redis) == {}
    assert scene.redis.zcard(ONLY.ended) == 1


def test_a_saga_that_is_not_where_it_should_be_is_set_right_when_it_next_changes_its_places(scene: Scene) -> None:
    """A worker of an earlier release moves sagas, and leaves them where they are in the indexes."""
    scene.client.begin("s1", [do(1), do("fail")], attributes={"customer": "c1"})
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    scene.redis.zadd(ONLY.index("held=work"), {"s1": 1})
    scene.redis.zrem(ONLY.index("customer=c1"), "s1")
    scene.redis.hset(ONLY.indexed, "s1", '["held=work"]')
    assert scene.play("s1").status == "ABORTED"
    assert check(scene.redis) == {"customer=c1": {"s1"}, "status=ABORTED": {"s1"}}


def test_a_live_saga_whose_hash_somebody_has_deleted_leaves_all_indexes(scene: Scene) -> None:
    scene.client.begin("s1", [do(1)], attributes={"customer": "c1"})
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    scene.redis.delete(ONLY.saga("s1"))
    scene.redis.zadd(ONLY.timers, {"s1": 1})  # it is due
    scene.turns_until(lambda: scene.redis.zscore(ONLY.timers, "s1") is None)
    Sweep(scene.redis, Store(scene.redis)).sweep(KEYS, KEYS.partitions)
    assert check(scene.redis) == {}
    assert scene.redis.zcard(ONLY.ended) == 0


def test_sagas_of_an_earlier_release_are_put_in_once(scene: Scene) -> None:
    begin_some(scene)
    expected = check(scene.redis)
    # An earlier release writes no indexes.
    scene.redis.delete(ONLY.begun, ONLY.indexed, *(ONLY.index(name) for name in places(scene.redis)))
    scene.redis.hset(ONLY.saga("damaged"), "version", "1")
    scene.redis.zadd(ONLY.ended, {"damaged": 1})
    mending = Mending(scene.redis, Store(scene.redis), lease_ms=LEASE_MS)
    mending.look(KEYS, KEYS.partitions, NOW_MS)
    steps = 0
    while mending.goes_on:
        mending.step()
        steps += 1
    assert steps > 0
    scene.redis.delete(ONLY.saga("damaged"))
    assert check(scene.redis) == expected
    mending.look(KEYS, KEYS.partitions, NOW_MS)  # the damaged one is still missing, and is not looked for again
    assert not mending.goes_on


def test_a_saga_that_moves_while_it_is_put_in_is_put_in_by_the_next_pass(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_some(scene)
    expected = check(scene.redis)
    scene.redis.delete(ONLY.begun, ONLY.indexed, *(ONLY.index(name) for name in places(scene.redis)))
    store = Store(scene.redis)
    mending, commit = Mending(scene.redis, store, lease_ms=LEASE_MS), store.commit

    def commit_too_late(changes: Sequence[Change], now_ms: int) -> Any:
        scene.redis.hincrby(ONLY.saga("marked"), "version")
        return commit(changes, now_ms)

    for committing in (commit_too_late, commit):
        monkeypatch.setattr(store, "commit", committing)
        mending.look(KEYS, KEYS.partitions, NOW_MS)
        while mending.goes_on:
            mending.step()
    assert check(scene.redis) == expected


def test_what_a_worker_of_an_earlier_release_sweeps_out_of_ended_leaves_all_indexes(scene: Scene) -> None:
    begin_some(scene)
    store = Store(scene.redis, retention_ms=0)
    mending, sweep = Mending(scene.redis, store, lease_ms=LEASE_MS), Sweep(scene.redis, store)
    for saga_id in ("plain", "marked"):
        scene.redis.delete(ONLY.saga(saga_id))
        scene.redis.zrem(ONLY.ended, saga_id)
    mending.look(KEYS, KEYS.partitions, NOW_MS)
    while mending.goes_on:
        mending.step()
    sweep.sweep(KEYS, KEYS.partitions)
    assert set(check(scene.redis)) == {"basket=815", "status=ABORTED"}
    assert scores(scene.redis, ONLY.begun).keys() == {"aborted", "parked"}
    mending.look(KEYS, KEYS.partitions, NOW_MS)
    assert not mending.goes_on


def test_a_worker_fills_and_sweeps_beside_its_turns(scene: Scene) -> None:
    begin_some(scene)
    expected = check(scene.redis)
    scene.redis.delete(ONLY.begun, ONLY.indexed, *(ONLY.index(name) for name in places(scene.redis)))
    worker = scene.another_worker()
    scene.turns_until(lambda: scene.redis.zcard(ONLY.begun) == 4, worker)
    assert check(scene.redis) == expected


def test_an_erasure_takes_a_saga_out_of_the_indexes_of_its_attributes(scene: Scene) -> None:
    begin_some(scene)
    for number in range(2):
        if number:  # as if the first was broken off after the hash
            scene.redis.zadd(ONLY.index("customer=c 42=ü"), {"marked": 1})
            scene.redis.hset(ONLY.indexed, "marked", '["customer=c 42=\\u00fc"]')
        assert scene.client.erase_many(["marked", "aborted", "gone"], "asked for").is_complete
        assert check(scene.redis) == {"status=ABORTED": {"aborted"}}
    assert not [key for key in scene.redis.scan_iter("*") if "ü".encode() in key]


def test_the_doctor_finds_what_is_wrong_in_the_indexes_and_sets_it_right(scene: Scene) -> None:
    begin_some(scene)
    expected = check(scene.redis)
    scene.redis.zadd(ONLY.begun, {"nobody": 1})
    scene.redis.zadd(ONLY.index("customer=c9"), {"nobody": 1, "plain": 1})
    scene.redis.zrem(ONLY.begun, "plain")
    scene.redis.hset(ONLY.indexed, "aborted", '["status=PARKED","basket=815"]')
    scene.redis.zrem(ONLY.index("status=ABORTED"), "aborted")
    scene.redis.zadd(ONLY.index("status=PARKED"), {"aborted": 1})
    told = {finding.text: finding.level for finding in Doctor(scene.broker).examine()}
    for text, level in {
        "sagas that are in no index, since an earlier release has begun them: 1": WARNING,
        "saga aborted is in other indexes than its hash says": PROBLEM,
        "saga:{0}:begun has members that do not belong there: 1 (b'nobody')": PROBLEM,
        "saga:{0}:index:customer=c9 has members that do not belong there: 2 (b'nobody', b'plain')": PROBLEM,
    }.items():
        assert told.get(text) == level, text
    list(Doctor(scene.broker, repair=True).examine())
    assert check(scene.redis) == expected
    levels = {finding.level for finding in Doctor(scene.broker).examine() if finding.about in ("sagas", "indexes")}
    assert not levels & {PROBLEM, REPAIRED}


def test_an_import_puts_sagas_into_the_indexes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("exporting", "importing"):  # the scene's processes do nothing meanwhile
        monkeypatch.setattr(f"sagastream_bridge.transfer.{module}.refuse_at_work", lambda *_: None)
    begin_some(scene)
    expected = check(scene.redis)
    file = BytesIO(b"".join(Export(scene.broker).lines()))
    scene.redis.flushall()
    assert Import(scene.broker, file, "the file").run() == 4
    assert check(scene.redis) == expected
