"""What the doctor says of replicas and of Sentinels."""

from typing import Any

import pytest

from sagastream.broker import sentinel
from sagastream.broker.urls import Address
from sagastream_bridge.inspection.findings import OK, PROBLEM, WARNING, Finding
from sagastream_bridge.inspection.succession_check import Told, asked, of_replicas, of_sentinels

MASTER, OTHER = Address("10.0.0.1", 6379), Address("10.0.0.2", 6379)
ONE, TWO, THREE = (Address(f"s{n}", 26379) for n in (1, 2, 3))
WELL = Told(master=MASTER, sentinels=3, quorum=2)


def replica(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A replica, as redis-py reads it from INFO."""
    usual = {"ip": f"10.0.1.{number}", "port": 6379, "state": "online", "offset": 990, "lag": 1}
    return {f"slave{number}": usual | changes}


def info(*replicas: dict[str, Any], wants: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {"role": "master", "slave_repl_offset": 7, "master_repl_offset": 1000}
    if wants:
        found["min_slaves_good_slaves"] = len(replicas)
    for one in replicas:
        found |= one
    return found


def lines(findings: Any) -> list[tuple[str, str]]:
    found: list[Finding] = list(findings)
    return [(one.level, one.line) for one in found]


@pytest.mark.parametrize("watched", [True, False])
def test_replicas_that_are_in_step_are_told_with_how_far_they_are_behind(watched: bool) -> None:
    found = lines(of_replicas(info(replica(0), replica(1, offset=1000)), watched=watched))
    assert found == [(OK, "in step: 10.0.1.0:6379, 10 bytes behind; 10.0.1.1:6379, 0 bytes behind")]


def test_replicas_that_are_not_in_step_are_told_one_by_one() -> None:
    found = lines(of_replicas(info(replica(0, state="wait_bgsave"), replica(1, lag=11)), watched=False))
    assert found == [
        (WARNING, "10.0.1.0:6379 has not all of the data yet: wait_bgsave"),
        (WARNING, "10.0.1.1:6379 was not heard for 11 s, and is 10 bytes behind"),
    ]


def test_without_a_replica_sentinels_have_nothing_to_choose() -> None:
    assert lines(of_replicas(info(), watched=False)) == []
    ((level, text),) = lines(of_replicas(info(), watched=True))
    assert level == PROBLEM
    assert text.startswith("none is in step: if the master dies, nothing takes its place")


def test_where_there_are_replicas_the_master_should_want_some() -> None:
    (_, (level, text)) = lines(of_replicas(info(replica(), wants=False), watched=False))
    assert level == WARNING
    assert "set min-replicas-to-write 1 and min-replicas-max-lag 10" in text
    assert text.endswith("if there is only one replica, writes stop while that is away: have two")


def test_a_master_that_wants_a_replica_should_have_two() -> None:
    (_, (level, text)) = lines(of_replicas(info(replica()), watched=False))
    assert (level, text) == (
        WARNING,
        (
            "there is only one, and min-replicas-to-write is set: while that one is away, and after it has become the "
            "master, no writes are taken; add a second replica"
        ),
    )


def test_three_sentinels_that_agree_are_well() -> None:
    text = "3 of 3 that the url names answer: the master is at 10.0.0.1:6379; 3 watch it, quorum 2"
    assert lines(of_sentinels(dict.fromkeys((ONE, TWO, THREE), WELL))) == [(OK, text)]


def test_what_is_wrong_with_each_sentinel_is_told() -> None:
    away = Told(trouble="could not be asked: nobody listens there")
    alone = Told(master=MASTER, sentinels=3, quorum=2, cannot_act="NOQUORUM 1 usable Sentinels")
    assert lines(of_sentinels({ONE: away, TWO: away, THREE: alone})) == [
        (WARNING, "s1:26379 could not be asked: nobody listens there"),
        (WARNING, "s2:26379 could not be asked: nobody listens there"),
        (PROBLEM, "s3:26379 would make no replica the master: NOQUORUM 1 usable Sentinels"),
        (OK, "1 of 3 that the url names answer: the master is at 10.0.0.1:6379; 3 watch it, quorum 2"),
    ]
    assert {level for level, _ in lines(of_sentinels(dict.fromkeys((ONE, TWO, THREE), away)))} == {WARNING}


def test_sentinels_that_do_not_agree_and_those_that_are_too_few_are_told() -> None:
    behind = Told(master=OTHER, sentinels=2, quorum=1)
    found = lines(of_sentinels({ONE: Told(master=MASTER, sentinels=2, quorum=1), TWO: behind}))
    assert (found[0][0], found[0][1].removesuffix("; look again in a minute")) == (
        PROBLEM,
        "they do not agree where the master is: s1:26379 names 10.0.0.1:6379; s2:26379 names 10.0.0.2:6379",
    )
    assert found[1][0] == WARNING
    assert found[1][1].startswith("only 2 watch the master: if one of them dies, the others are no majority; run at")


@pytest.mark.parametrize("answer", [b"OK", [], [b"ip", b"10.0.0.1"]])
def test_what_no_sentinel_answers_ends_no_examination(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.setattr(sentinel, "ask", lambda _: answer)
    found = lines(of_sentinels({ONE: asked("redis://s1:26379", "mymaster")}))
    assert found == [(WARNING, f"{ONE} gave an answer that names no address: is it a Sentinel?")]
