"""What a process saw of a store, compared with what is there now."""

from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.store.losses import Loss, Sight, Switch, as_one, compare, has_only_moved

OLD, NEW, OTHER = "a" * 40, "b" * 40, "c" * 40
T = 1_700_000_000_000


def a_sight(at_ms: int = T, **changes: Any) -> Sight:
    values: dict[str, Any] = {"history": OLD, "offset": 1000, "beat_ms": T - 500, "read": {"s": (T, 0)}}
    return Sight(at_ms=at_ms, **values | changes)


def found(now: Sight, *seen: Sight, missing: str | None = None) -> Loss | Switch | None:
    return compare(seen or [a_sight()], now, missing)


def test_a_store_that_only_went_on_has_lost_nothing() -> None:
    assert found(a_sight(T + 1, offset=2000, read={"s": (T + 1, 0)})) is None
    assert found(a_sight(T + 1)) is None


def test_a_heartbeat_that_went_back_is_a_loss_since_then() -> None:
    loss = found(a_sight(history=OTHER, beat_ms=T - 9000))
    assert isinstance(loss, Loss)
    assert loss.since_ms == T - 9000


def test_a_heartbeat_that_is_gone_alone_is_none() -> None:
    """Others remove the heartbeats of the dead; an operator may delete them all."""
    assert found(a_sight(beat_ms=None)) is None


def test_a_stream_that_went_back_is_a_loss_since_its_newest_entry() -> None:
    loss = found(a_sight(history=OTHER, read={"s": (T - 7, 3)}))
    assert isinstance(loss, Loss)
    assert loss.since_ms == T - 7
    assert f"{T - 7}-3" in loss.evidence


def test_a_stream_that_went_back_by_one_entry_of_the_same_millisecond_is_a_loss() -> None:
    assert isinstance(found(a_sight(history=OTHER, read={"s": (T, 0)}), a_sight(read={"s": (T, 1)})), Loss)


def test_what_a_person_has_set_back_on_the_same_server_is_none() -> None:
    """XGROUP SETID, or a ZADD by hand."""
    assert found(a_sight(beat_ms=T - 9000, read={"s": (T - 7, 3)}), missing="it was deleted") is None


def test_a_stream_that_was_deleted_is_none() -> None:
    assert found(a_sight(read={})) is None


def test_an_emptied_store_is_a_loss() -> None:
    loss = found(a_sight(read={}, beat_ms=None))
    assert isinstance(loss, Loss)
    assert loss.since_ms is None


def test_a_new_master_that_has_all_is_a_switch() -> None:
    now = a_sight(T + 9, history=NEW, before=OLD, taken_over_at=1000, offset=5)
    assert found(now) == Switch(since_ms=T)


def test_a_new_master_that_lacks_a_byte_may_have_lost_something_since_the_last_look_that_it_has() -> None:
    """No heartbeat tells how far it went."""
    seen = [a_sight(T - 20, offset=900), a_sight(T - 10, offset=999), a_sight(T, offset=1000, beat_ms=None)]
    loss = found(a_sight(T + 9, history=NEW, before=OLD, taken_over_at=999), *seen)
    assert isinstance(loss, Loss)
    assert loss.since_ms == T - 10
    assert "1 bytes" in loss.evidence
    assert not loss.certain
    assert "the store may have lost what was written after" in loss.text


def test_bytes_that_came_after_a_heartbeat_that_is_there_are_no_loss() -> None:
    """Messages of Sentinels, for example. The new master has all that came before the heartbeat."""
    seen = [a_sight(T - 20, offset=900, beat_ms=T - 600), a_sight(T - 10, offset=1134), a_sight(T + 1000, offset=1402)]
    now = a_sight(T + 1100, history=NEW, before=OLD, taken_over_at=1000)
    assert found(now, *seen) == Switch(since_ms=T - 20, lacking=402)


@pytest.mark.parametrize("beat_ms", [None, T - 400, T - 501])
def test_another_heartbeat_than_the_one_that_was_written_proves_nothing(beat_ms: int | None) -> None:
    """It was removed, or written to the new master, or is an older one."""
    loss = found(a_sight(T + 9, history=NEW, before=OLD, taken_over_at=999, beat_ms=beat_ms))
    assert isinstance(loss, Loss)
    assert loss.certain is (beat_ms == T - 501)


@pytest.mark.parametrize("beat_ms", [T - 60_000, T + 60_000])
def test_a_heartbeat_from_long_before_the_bytes_that_lack_proves_nothing(beat_ms: int) -> None:
    """Others may have written much since; or the clock was set back."""
    now = a_sight(T + 9, history=NEW, before=OLD, taken_over_at=999, beat_ms=beat_ms)
    loss = found(now, a_sight(beat_ms=beat_ms))
    assert isinstance(loss, Loss)
    assert not loss.certain


def test_while_all_writes_are_refused_a_heartbeat_may_grow_old() -> None:
    """As those of a former master are, by min-replicas-to-write. The first look that saw more than the new master has
    counts."""
    seen = [a_sight(T - 9), a_sight(T, offset=1134), a_sight(T + 20_000, offset=9000)]
    now = a_sight(T + 20_009, history=NEW, before=OLD, taken_over_at=1000)
    assert found(now, *seen) == Switch(since_ms=T - 9, lacking=8000)


@pytest.mark.parametrize(
    ("now", "missing"),
    [
        ({"read": {"s": (T - 7, 3)}}, None),
        ({"beat_ms": T - 9000}, None),
        ({}, "saga s-1 was at version 3, and is at 2"),
    ],
)
def test_with_other_evidence_bytes_that_lack_are_a_loss(now: dict[str, Any], missing: str | None) -> None:
    loss = found(a_sight(T + 9, history=NEW, before=OLD, taken_over_at=999, **now), missing=missing)
    assert isinstance(loss, Loss)
    assert loss.certain
    assert "1 bytes" in loss.evidence
    assert "the store has lost what was written" in loss.text


def test_the_latest_moment_that_is_whole_counts() -> None:
    seen = [a_sight(T - 20, offset=900), a_sight(T, offset=1000)]
    now = a_sight(T + 9, history=NEW, before=OLD, taken_over_at=950, beat_ms=T - 5000, read={"s": (T - 15, 0)})
    loss = found(now, *seen)
    assert isinstance(loss, Loss)
    assert loss.since_ms == T - 15


def test_what_was_written_last_and_is_missing_is_a_loss() -> None:
    now = a_sight(history=OTHER)
    assert isinstance(found(now, missing="saga s-1 was at version 3, and is at 2"), Loss)


@pytest.mark.parametrize("before", ["", OTHER])
def test_a_restart_is_no_loss_by_itself(before: str) -> None:
    """A server that has loaded its append-only file has a new replication id, and continues none."""
    assert found(a_sight(history=NEW, before=before, offset=0)) is None


def test_two_servers_that_tell_no_replication_id_are_the_same() -> None:
    assert found(a_sight(history="", before=""), a_sight(history="")) is None


# --- on a cluster


@pytest.mark.parametrize(
    ("changes", "has_moved"),
    [
        ({}, True),
        ({"beat_ms": T}, True),  # another look has written it there
        ({"node": "one"}, False),  # a restart
        ({"node": ""}, False),  # this user may not ask
        ({"before": OLD}, False),  # a replica has taken over
        ({"beat_ms": T - 501}, False),
        ({"beat_ms": None}, False),
    ],
)
def test_a_partition_has_only_moved_if_all_that_was_seen_is_at_another_node(
    changes: dict[str, Any], has_moved: bool
) -> None:
    now = a_sight(T + 9, **({"history": OTHER, "node": "two"} | changes))
    assert has_only_moved(a_sight(node="one"), now) is has_moved
    assert found(now, a_sight(node="one")) is None or not has_moved


def test_what_a_node_has_lost_is_told_as_one() -> None:
    first = Loss(since_ms=T, evidence="a", found_ms=T + 1)
    assert as_one({4: first}) == [replace(first, evidence="partition 4: a", partitions=(4,))]
    others = {number: Loss(since_ms=T - number, evidence="b", found_ms=T + 2, certain=False) for number in (5, 6, 7)}
    (loss,) = as_one({4: first, **others})
    assert loss == Loss(
        since_ms=T - 7,
        evidence="partition 4: a; partition 5: b; partition 6: b; and the like of 1 more",
        found_ms=T + 2,
        partitions=(4, 5, 6, 7),
    )
    assert isinstance(loss, Loss)
    assert loss.text.startswith("the store has lost what was written in partitions 4, 5, 6, 7 after 2023")
    assert [loss.is_of(number) for number in (3, 4)] == [False, True]
    unknown = replace(first, since_ms=None)
    assert [one.since_ms for one in as_one({1: first, 2: unknown})] == [None]


def test_a_node_that_has_lost_nothing_of_some_partitions_has_only_taken_them_over() -> None:
    loss, switch = as_one(
        {1: Switch(since_ms=T), 2: Loss(since_ms=T, evidence="a", found_ms=T), 3: Switch(since_ms=T - 9)}
    )
    assert isinstance(loss, Loss)
    assert switch == Switch(since_ms=T - 9, partitions=(1, 3))
    assert switch.text.startswith("partitions 1, 3 have a new master; it has all that this process saw until 2023")
    assert Switch(since_ms=T, partitions=(1,)).text.startswith("partition 1 has a new master")


HUGE = 2**64 - 1


@pytest.mark.parametrize("since_ms", [None, 0, -1, HUGE, -HUGE])
def test_a_loss_can_be_told_whatever_somebody_has_written_as_its_times(since_ms: int | None) -> None:
    assert "lost" in Loss(since_ms=since_ms, evidence="", found_ms=since_ms or 0).text
