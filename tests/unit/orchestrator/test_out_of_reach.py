"""What a worker says of partitions that it cannot reach."""

import pytest
import redis

from sagastream.broker.failures import NodeAway, name_node
from sagastream.orchestrator import out_of_reach
from sagastream.orchestrator.out_of_reach import OutOfReach
from sagastream.store.keys import StoreKeys
from sagastream.telemetry import Observer

FIRST, SECOND, THIRD = PARTITIONS = StoreKeys("saga", ["0", "1a", "2b"], "0").partitions


class Told(Observer):
    def __init__(self) -> None:
        self.away: list[tuple[int, ...]] = []

    def partitions_away(self, *, numbers: tuple[int, ...], **_: object) -> None:
        self.away.append(numbers)


def away(why: str = "refused") -> redis.RedisError:
    return NodeAway(f"the node one is away ({why})", was_sent=False)


def made(told: Told, of: int = 3) -> OutOfReach:
    those = OutOfReach("worker w", told)
    those.join(StoreKeys("saga", ["0", "1a", "2b"][:of], "0"))
    return those


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(out_of_reach, "_QUIET_S", 0.0)
    return Told()


def test_it_is_said_once_which_are_away_and_once_that_they_are_back(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    those = made(told)
    those.answered(PARTITIONS)
    whole = [those.is_empty]
    those.lost(SECOND, away())
    those.lost(THIRD, away("reset"))
    for _ in range(2):
        those.answered([FIRST])
        those.lost(SECOND, away())
    whole.append(those.is_empty)
    those.answered(PARTITIONS)
    those.answered(PARTITIONS)
    assert [record.getMessage() for record in caplog.records] == [
        "partitions 1-2 of the store cannot be reached: the node one is away (refused). The others go on",
        "partitions 1-2 of the store can be reached again, after 0.0 s",
    ]
    assert (told.away, [*whole, those.is_empty]) == ([(1, 2), ()], [True, False, True])


def test_no_others_go_on_if_the_cluster_is_down(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    those = made(told)
    for number, one in enumerate((FIRST, SECOND)):  # the worker has no need of the third
        down = redis.exceptions.ClusterDownError("The cluster is down")
        name_node(down, f"10.0.0.{number}:1")
        those.lost(one, down)
    those.answered([])
    assert caplog.messages == ["partitions 0-1 of the store cannot be reached: the cluster is down"]


@pytest.mark.parametrize(("of", "what"), [(1, "the store"), (3, "partitions 0-2 of the store")])
def test_if_nothing_can_be_reached_no_others_go_on(
    told: Told, caplog: pytest.LogCaptureFixture, of: int, what: str
) -> None:
    those = made(told, of)
    for one in PARTITIONS[:of]:
        those.lost(one, away())
    those.answered([])
    those.answered(PARTITIONS[:of])
    assert caplog.messages == [
        f"{what} cannot be reached: the node one is away (refused)",
        f"{what} can be reached again, after 0.0 s",
    ]


def test_one_that_answers_a_part_of_what_is_asked_is_not_back(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_reach, "_QUIET_S", 60.0)
    those = made(told)
    those.lost(FIRST, redis.exceptions.TryAgainError("TRYAGAIN"))
    for _ in range(3):
        those.answered(PARTITIONS)
    assert told.away == [(0,)]


def test_one_that_others_look_after_by_now_is_forgotten(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    those = made(told)
    those.lost(FIRST, away())
    those.lost(SECOND, away())
    those.answered([])
    those.are_only([SECOND])
    those.are_only([THIRD])
    assert those.is_empty
    assert told.away == [(0, 1), (1,), ()]
    then = "Another worker has it now, so this one will not report when it is back"
    assert caplog.messages[1:] == [
        f"this worker could not reach partition 0 of the store. {then}",
        f"this worker could not reach partition 1 of the store. {then}",
    ]


def test_one_that_is_not_told_of_yet_is_told_of_if_the_worker_keeps_it(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    those = made(told)
    those.lost(FIRST, away())
    those.lost(SECOND, away())
    those.are_only([SECOND])
    those.answered([])
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("partition 1 of the store cannot be reached")
