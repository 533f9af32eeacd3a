"""The commands in hand of a process: which may begin, in what order, and what leaves the hand."""

from typing import Any

import pytest

from sagastream.broker.group_reader import Entry
from sagastream.core.messages import Command
from sagastream.service.declaration import Context, Registration
from sagastream.service.in_flight import Hand, Work
from sagastream.service.inbox import Delivery
from sagastream.store import keys


def handle(params: Any, context: Context) -> None:
    """A handler that does nothing."""


ANY = Registration(name="Do", handler=handle, is_async=False)
NOW = 100.0


def a_work(
    number: int, saga_id: str = "", *, registration: Registration = ANY, again: bool = False, not_after_ms: int = 0
) -> Work:
    command = Command(
        service="work",
        type="Do",
        saga_id=saga_id or f"s{number}",
        step=1,
        params=b"null",
        begun_ms=1,
        not_after_ms=not_after_ms or None,
    )
    entry = Entry(stream=keys.commands("work"), id=b"%d-0" % number, fields={}, again=again)
    return Work(
        delivery=Delivery.of(entry, command),
        command=command,
        registration=registration,
        record=command.record,
        since=NOW,
    )


def a_hand(slots: int, *works: Work) -> Hand:
    hand = Hand(slots)
    hand.add(list(works))
    return hand


def test_commands_begin_in_the_order_in_which_they_came_and_no_more_than_there_are_slots() -> None:
    first, second, third = works = [a_work(number) for number in range(3)]
    hand = a_hand(2, *works)
    assert [hand.take(NOW), hand.take(NOW), hand.take(NOW)] == [first, second, None]
    assert hand.runs == 2
    hand.finish(second)
    assert hand.take(NOW) is third
    assert (third.begins, third.began) == (1, NOW)


def test_one_that_waits_for_a_limit_of_its_own_lets_others_pass() -> None:
    few = Registration(name="Few", handler=handle, concurrency=1, is_async=False)
    works = [a_work(0, registration=few), a_work(1, registration=few), a_work(2)]
    hand = a_hand(3, *works)
    assert [hand.take(NOW), hand.take(NOW), hand.take(NOW)] == [works[0], works[2], None]
    hand.finish(works[0])
    assert hand.take(NOW) is works[1]


def test_a_twin_waits_until_the_first_is_through_also_while_that_rests() -> None:
    first, twin = a_work(0, "s"), a_work(1, "s")
    hand = a_hand(2, first, twin)
    assert [hand.take(NOW), hand.take(NOW)] == [first, None]
    hand.put_back(first, NOW + 1)
    assert hand.take(NOW) is None
    assert hand.take(NOW + 1) is first
    assert hand.finish(first)  # a twin is left
    assert hand.take(NOW + 1) is twin
    assert not hand.finish(twin)


def test_one_that_rests_takes_no_slot_and_goes_first_when_it_is_due() -> None:
    resting, second, third = works = [a_work(number) for number in range(3)]
    hand = a_hand(1, *works)
    assert hand.take(NOW) is resting
    hand.put_back(resting, NOW + 1)
    assert hand.next_due() == NOW + 1
    assert hand.take(NOW) is second
    hand.finish(second)
    assert hand.take(NOW + 1) is resting
    assert (resting.begins, hand.next_due()) == (2, float("inf"))
    hand.finish(resting)
    assert hand.take(NOW + 1) is third


@pytest.mark.parametrize("slots", [1, 3])
def test_there_is_room_for_what_could_begin_at_once(slots: int) -> None:
    hand = a_hand(slots)
    assert hand.room() == slots
    hand.add([work := a_work(0)])
    hand.take(NOW)
    assert hand.room() == slots - 1
    hand.put_back(work, NOW + 1)
    assert hand.room() == slots


def test_there_is_no_room_where_as_many_as_could_run_wait_for_a_limit() -> None:
    few = Registration(name="Few", handler=handle, concurrency=1, is_async=False)
    hand = a_hand(3, *[a_work(number, registration=few) for number in range(3)])
    hand.take(NOW)
    assert hand.room() == 2
    hand.add([a_work(3, registration=few)])
    assert hand.room() == 0


def test_what_is_in_hand_already_is_not_taken_in_hand_again() -> None:
    hand = a_hand(1, a_work(0), a_work(1))
    hand.take(NOW)
    hand.add([a_work(number, again=True) for number in range(3)])
    assert [work.delivery.entry.id for work in hand.put_down(lambda _: True)] == [b"1-0", b"2-0"]


def test_what_runs_is_not_let_go_of() -> None:
    running, resting, waiting = works = [a_work(number) for number in range(3)]
    hand = a_hand(2, *works)
    hand.take(NOW)
    hand.take(NOW)
    hand.put_back(resting, NOW)
    assert hand.put_down(lambda work: work is not waiting) == [resting]
    assert hand.put_down(lambda _: True) == [waiting]
    assert hand.runs == 1
    assert not hand.finish(running)


def test_what_was_begun_is_held_while_its_answer_is_waited_for_or_it_rests() -> None:
    _late, in_time, _without_deadline, resting, _waiting = works = [
        a_work(0, not_after_ms=10), a_work(1, not_after_ms=30), a_work(2), a_work(3), a_work(4, not_after_ms=30)
    ]  # fmt: skip
    hand = a_hand(4, *works)
    for _ in range(4):
        hand.take(NOW)
    hand.put_back(resting, NOW + 1)
    assert hand.begun(20) == [in_time, resting]
