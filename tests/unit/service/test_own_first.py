"""Where a process of a service looks for commands, and for how long."""

from collections.abc import Iterator

import pytest

from sagastream.service import own_first
from sagastream.service.own_first import PATIENCE_MS, Look, OwnFirst


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(own_first, "time", made)
    return made


def waited(looks: Iterator[Look], clock: Clock) -> list[Look]:
    """All of them, each waited for in vain."""
    found = []
    for look in looks:
        found.append(look)
        clock.now_s += (look.wait_ms or 0) / 1000
    return found


def own(wait_ms: int | None) -> Look:
    return Look(everywhere=False, wait_ms=wait_ms)


def everywhere(wait_ms: int | None) -> Look:
    return Look(everywhere=True, wait_ms=wait_ms)


def test_it_waits_for_its_own_for_a_moment_and_then_for_all(clock: Clock) -> None:
    looking = OwnFirst()
    assert waited(looking.looks(500), clock) == [own(PATIENCE_MS), everywhere(500 - PATIENCE_MS)]
    assert waited(looking.looks(500), clock) == [everywhere(500)]


def test_once_it_has_found_one_of_its_own_it_waits_for_its_own_again(clock: Clock) -> None:
    looking = OwnFirst()
    waited(looking.looks(500), clock)
    looking.found(elsewhere=False)
    assert next(looking.looks(500)) == own(PATIENCE_MS)


def test_behind_one_of_anothers_it_looks_for_more_at_once_its_own_first(clock: Clock) -> None:
    looking = OwnFirst()
    waited(looking.looks(500), clock)
    looking.found(elsewhere=True)
    assert waited(looking.looks(500), clock) == [
        own(None),
        everywhere(None),
        own(PATIENCE_MS),
        everywhere(500 - PATIENCE_MS),
    ]


def test_readings_that_may_wait_only_shortly_come_to_all_as_well(clock: Clock) -> None:
    looking = OwnFirst()
    found = [look for _ in range(PATIENCE_MS) for look in waited(looking.looks(2), clock)]
    assert everywhere(2) in found
    assert own(2) in found
