"""The commands that a process holds: which may begin, in what order, and which are released."""

from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.broker.entries import Entry
from sagastream.core.commands import Command
from sagastream.core.holding_rules import State
from sagastream.service.context import Context
from sagastream.service.delivery import Delivery
from sagastream.service.in_flight import Held, InFlight
from sagastream.service.registration import Registration
from support.stores import ONLY


def handle(params: Any, context: Context) -> None:
    """A handler that does nothing."""


ANY = Registration(name="Do", handler=handle, is_async=False)
NOW = 100.0
PATIENCE_S = 30.0


def a_held(
    number: int,
    saga_id: str = "",
    *,
    registration: Registration = ANY,
    again: bool = False,
    begun: int = 0,
    not_after_ms: int = 0,
) -> Held:
    command = Command(
        service="work",
        type="Do",
        saga_id=saga_id or f"s{number}",
        step=1,
        params=b"null",
        begun_ms=1,
        not_after_ms=not_after_ms or None,
    )
    entry = Entry(stream=ONLY.commands("work"), id=b"%d-0" % number, fields={}, again=again or begun > 0)
    return Held(
        delivery=replace(Delivery.of(entry, command, ONLY), begun=begun),
        command=command,
        registration=registration,
        record=command.record,
        alone=begun > 0,
        since_s=NOW,
    )


def in_flight_of(slots: int, *held: Held) -> InFlight:
    in_flight = InFlight(slots, PATIENCE_S)
    in_flight.add(list(held))
    return in_flight


def test_commands_begin_in_the_order_in_which_they_came_and_no_more_than_there_are_slots() -> None:
    first, second, third = commands = [a_held(number) for number in range(3)]
    in_flight = in_flight_of(2, *commands)
    assert [in_flight.begin(NOW), in_flight.begin(NOW), in_flight.begin(NOW)] == [first, second, None]
    assert in_flight.running == 2
    in_flight.end(second)
    assert in_flight.begin(NOW) is third
    assert (third.state, third.begins, third.begun_s) == (State.RUNNING, 1, NOW)


def test_one_that_waits_for_a_limit_of_its_own_lets_others_pass() -> None:
    few = Registration(name="Few", handler=handle, options={"concurrency": 1})
    commands = [a_held(0, registration=few), a_held(1, registration=few), a_held(2)]
    in_flight = in_flight_of(3, *commands)
    assert [in_flight.begin(NOW), in_flight.begin(NOW), in_flight.begin(NOW)] == [commands[0], commands[2], None]
    in_flight.end(commands[0])
    assert in_flight.begin(NOW) is commands[1]


def test_a_twin_waits_until_the_first_has_ended_also_while_that_backs_off() -> None:
    first, twin = a_held(0, "s"), a_held(1, "s")
    in_flight = in_flight_of(2, first, twin)
    assert [in_flight.begin(NOW), in_flight.begin(NOW)] == [first, None]
    in_flight.retry(first, NOW + 1)
    assert in_flight.begin(NOW) is None
    assert in_flight.begin(NOW + 1) is first
    assert in_flight.end(first)  # a twin is left
    assert in_flight.begin(NOW + 1) is twin
    assert not in_flight.end(twin)


def test_one_that_backs_off_takes_no_slot_and_goes_first_when_it_is_due() -> None:
    backing_off, second, third = commands = [a_held(number) for number in range(3)]
    in_flight = in_flight_of(1, *commands)
    assert in_flight.begin(NOW) is backing_off
    in_flight.retry(backing_off, NOW + 1)
    assert (backing_off.state, in_flight.next_due_s()) == (State.BACKING_OFF, NOW + 1)
    assert in_flight.begin(NOW) is second
    in_flight.end(second)
    assert in_flight.begin(NOW + 1) is backing_off
    assert (backing_off.begins, in_flight.next_due_s()) == (2, float("inf"))
    in_flight.end(backing_off)
    assert in_flight.begin(NOW + 1) is third


@pytest.mark.parametrize("slots", [1, 3])
def test_there_is_room_for_what_could_begin_at_once(slots: int) -> None:
    in_flight = in_flight_of(slots)
    assert in_flight.room() == slots
    in_flight.add([held := a_held(0)])
    in_flight.begin(NOW)
    assert in_flight.room() == slots - 1
    in_flight.retry(held, NOW + 1)
    assert in_flight.room() == slots


def test_there_is_no_room_where_as_many_as_could_run_wait_for_a_limit() -> None:
    few = Registration(name="Few", handler=handle, options={"concurrency": 1})
    in_flight = in_flight_of(3, *[a_held(number, registration=few) for number in range(3)])
    in_flight.begin(NOW)
    assert in_flight.room() == 2
    in_flight.add([a_held(3, registration=few)])
    assert in_flight.room() == 0


def test_what_is_held_already_is_not_held_twice() -> None:
    in_flight = in_flight_of(1, a_held(0), a_held(1))
    in_flight.begin(NOW)
    in_flight.add([a_held(number, again=True) for number in range(3)])
    assert [held.delivery.entry.id for held in in_flight.release(lambda _: True)] == [b"1-0", b"2-0"]


def test_what_runs_is_not_released() -> None:
    running, backing_off, waiting = commands = [a_held(number) for number in range(3)]
    in_flight = in_flight_of(2, *commands)
    in_flight.begin(NOW)
    in_flight.begin(NOW)
    in_flight.retry(backing_off, NOW)
    assert in_flight.release(lambda held: held is not waiting) == [backing_off]
    assert in_flight.release(lambda _: True) == [waiting]
    assert in_flight.running == 1
    assert not in_flight.end(running)


def test_the_lease_of_what_was_begun_is_renewed_while_its_answer_is_waited_for_or_it_backs_off() -> None:
    _late, in_time, without_deadline, backing_off, _waiting = commands = [
        a_held(0, not_after_ms=10), a_held(1, not_after_ms=30), a_held(2), a_held(3), a_held(4, not_after_ms=30)
    ]  # fmt: skip
    in_flight = in_flight_of(4, *commands)
    for _ in range(4):
        in_flight.begin(NOW)
    in_flight.retry(backing_off, NOW + 1)
    assert in_flight.to_renew(NOW, lambda _: 20) == [in_time, without_deadline, backing_off]


def test_one_whose_handler_was_not_called_waits_again_before_all_others() -> None:
    first, second = commands = [a_held(number) for number in range(2)]
    in_flight = in_flight_of(1, *commands)
    assert in_flight.begin(NOW) is first
    in_flight.not_begun(first)
    assert (first.state, first.begins, in_flight.running) == (State.WAITING, 0, 0)
    assert in_flight.begin(NOW) is first
    in_flight.end(first)
    assert in_flight.begin(NOW) is second


# --- what runs alone


def test_one_that_runs_alone_waits_until_nothing_runs_and_nothing_begins_meanwhile() -> None:
    first, second, alone, behind = commands = [a_held(0), a_held(1), a_held(2, begun=1), a_held(3)]
    in_flight = InFlight(3, PATIENCE_S)
    in_flight.add(commands[:2])
    assert [in_flight.begin(NOW), in_flight.begin(NOW)] == [first, second]
    in_flight.add([alone])
    in_flight.add([behind])
    assert in_flight.begin(NOW) is None
    in_flight.end(first)
    assert in_flight.begin(NOW) is None
    in_flight.end(second)
    assert in_flight.begin(NOW) is alone
    assert in_flight.begin(NOW) is None
    assert in_flight.room() == 0
    in_flight.end(alone)
    assert in_flight.begin(NOW) is behind
    assert in_flight.room() == 2


def test_those_that_have_killed_the_fewest_processes_begin_first() -> None:
    commands = [a_held(0, begun=3), a_held(1, begun=1), a_held(2, again=True)]
    in_flight = in_flight_of(3, *commands)
    for held in reversed(commands):
        assert in_flight.begin(NOW) is held
        assert in_flight.begin(NOW) is None
        in_flight.end(held)


def test_one_that_runs_alone_does_not_wait_for_what_may_never_end() -> None:
    hangs, alone, behind = commands = [a_held(0), a_held(1, begun=1), a_held(2)]
    in_flight = in_flight_of(2, hangs)
    assert in_flight.begin(NOW) is hangs
    in_flight.add(commands[1:2])
    in_flight.add(commands[2:])
    assert in_flight.begin(NOW + PATIENCE_S) is None
    assert in_flight.begin(NOW + PATIENCE_S + 1) is behind
    assert in_flight.release(lambda _: True) == [alone]
    assert in_flight.room() == 0


def test_one_that_runs_alone_and_backs_off_holds_up_others_only_once_it_is_due() -> None:
    alone, other, another = a_held(0, begun=1), a_held(1), a_held(2)
    in_flight = in_flight_of(2, alone)
    assert in_flight.begin(NOW) is alone
    in_flight.retry(alone, NOW + 1)
    assert in_flight.room() == 2
    in_flight.add([other, another])
    assert in_flight.begin(NOW) is other
    assert in_flight.begin(NOW + 2) is None
    in_flight.end(other)
    assert in_flight.begin(NOW + 2) is alone
    in_flight.end(alone)
    assert in_flight.begin(NOW + 2) is another


def test_what_ends_alone_wakes_the_threads_that_wait_for_it() -> None:
    in_flight = in_flight_of(2, alone := a_held(0, begun=1))
    assert in_flight.begin(NOW) is alone
    changes = in_flight.changes
    in_flight.end(alone)
    assert in_flight.changes > changes
