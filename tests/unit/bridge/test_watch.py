"""Who waits for what of which saga."""

import threading

import pytest

from sagastream.core.messages import Begin, Intervene, Verb
from sagastream.core.steps import StepDefinition
from sagastream_bridge.stdin.lines import Caller
from sagastream_bridge.stdin.watch import Watch, Watches


def a_begin(saga_id: str, request_id: str, *, echo: bool = False) -> Watch:
    """Somebody who began a saga."""
    steps = (StepDefinition(transaction="A", service="s", params=b"null"),)
    begin = Begin(saga_id=saga_id, steps=steps, request_id=request_id, echo=echo)
    return Watch(caller=Caller(src="c1", msg_id=1), saga_id=saga_id, request=begin)


def an_await(saga_id: str, msg_id: int = 2) -> Watch:
    """Somebody who asked for the end of a saga."""
    return Watch(caller=Caller(src="c2", msg_id=msg_id), saga_id=saga_id)


def an_asking(saga_id: str, request_id: str) -> Watch:
    """An operator who asked for something."""
    asked = Intervene(verb=Verb.RETRY, saga_id=saga_id, reason="as agreed", request_id=request_id)
    return Watch(caller=Caller(src="c3", msg_id=3), saga_id=saga_id, request=asked)


def watches_of(*watches: Watch) -> Watches:
    found = Watches()
    for watch in watches:
        found.add(watch)
    return found


def test_all_who_wait_for_a_saga_are_taken_together_and_wait_no_more() -> None:
    mine, yours, other = a_begin("saga1", "r1"), an_await("saga1"), an_await("saga2")
    watches = watches_of(mine, other, yours)
    assert watches.take("saga1") == [mine, yours]
    assert watches.take("saga1") == []
    assert watches.of("saga1") == []
    assert watches.some(9) == ["saga2"]


def test_who_asked_for_something_is_not_answered_with_the_end_and_waits_on() -> None:
    begun, waiting = a_begin("saga1", "r1"), an_await("saga1")
    asked, also = an_asking("saga1", "r2"), an_asking("saga1", "r3")
    watches = watches_of(begun, asked, waiting, also)
    assert watches.take("saga1") == [begun, waiting]
    assert watches.of("saga1") == [asked, also]
    assert watches.take("saga1") == []
    assert watches.some(9) == ["saga1"]
    assert watches.take_one(asked)
    assert watches.of("saga1") == [also]
    assert watches.take_one(also)
    assert watches.wait_until_empty(0, threading.Event()) == []


def test_what_an_operator_asked_for_is_no_begin() -> None:
    watches = watches_of(an_asking("saga1", "r1"))
    assert watches.begin_of("saga1") is None
    assert an_asking("saga1", "r1").begin is None
    assert not watches.echoes("saga1")


def test_nobody_waits_for_a_saga_that_was_never_watched() -> None:
    watches = Watches()
    assert watches.take("saga1") == []
    assert watches.of("saga1") == []
    assert watches.begin_of("saga1") is None
    assert watches.some(9) == []
    assert not watches.echoes("saga1")
    assert not watches.take_one(an_await("saga1"))


def test_who_is_only_looked_at_waits_on() -> None:
    mine, yours = a_begin("saga1", "r1"), an_await("saga1")
    watches = watches_of(mine, yours)
    found = watches.of("saga1")
    assert found == [mine, yours]
    found.clear()  # a list of the caller's own
    assert watches.of("saga1") == [mine, yours]


def test_one_of_several_is_taken_once_and_the_others_wait_on() -> None:
    first, second, waiting = a_begin("saga1", "r1"), a_begin("saga1", "r2"), an_await("saga1")
    watches = watches_of(first, second, waiting)
    assert watches.take_one(second)
    assert not watches.take_one(second)
    assert watches.take("saga1") == [first, waiting]


def test_two_who_wait_in_the_same_way_are_two() -> None:
    watches = watches_of(an_await("saga1"), an_await("saga1"))
    assert watches.take_one(an_await("saga1"))
    assert watches.of("saga1") == [an_await("saga1")]


def test_a_saga_whose_only_watch_was_taken_is_watched_no_more() -> None:
    watches = watches_of(watch := a_begin("saga1", "r1"))
    assert watches.take_one(watch)
    assert watches.of("saga1") == []
    assert watches.some(9) == []
    assert watches.wait_until_empty(0, threading.Event()) == []


def test_somebody_who_does_not_wait_cannot_be_taken() -> None:
    watches = watches_of(an_await("saga1"))
    assert not watches.take_one(an_await("saga1", msg_id=3))
    assert not watches.take_one(a_begin("saga1", "r1"))
    assert watches.of("saga1") == [an_await("saga1")]


def test_some_of_the_sagas_come_and_others_the_next_time() -> None:
    watches = watches_of(*(an_await(f"saga{n}") for n in range(5)))
    assert watches.some(2) == ["saga0", "saga1"]
    assert watches.some(2) == ["saga2", "saga3"]
    watches.take("saga0")
    assert watches.some(2) == ["saga4", "saga1"]
    assert sorted(watches.some(99)) == ["saga1", "saga2", "saga3", "saga4"]
    assert watches.some(0) == []


def test_a_saga_is_echoed_until_its_last_message_was_told_whoever_waits() -> None:
    watches = watches_of(a_begin("saga1", "r1", echo=True), a_begin("saga2", "r2"), an_await("saga3"))
    assert [watches.echoes(f"saga{n}") for n in (1, 2, 3)] == [True, False, False]
    watches.take("saga1")
    assert watches.echoes("saga1")
    watches.end_echo("saga1")
    watches.end_echo("saga1")
    assert not watches.echoes("saga1")


def test_one_echoed_begin_is_enough_for_a_saga() -> None:
    watches = watches_of(a_begin("saga1", "r1"), a_begin("saga1", "r2", echo=True), an_await("saga1"))
    assert watches.echoes("saga1")


def test_the_first_begin_of_a_saga_is_the_one_that_is_told() -> None:
    watches = Watches()
    first, second = a_begin("saga1", "r1"), a_begin("saga1", "r2")
    watches.add(an_await("saga1"))
    assert watches.begin_of("saga1") is None
    watches.add(first)
    watches.add(second)
    assert watches.begin_of("saga1") is first.begin


def test_waiting_ends_with_the_time_and_tells_what_is_still_waited_for() -> None:
    watches = Watches()
    watches.add(an_await("saga1"))
    watches.add(an_await("saga2"))
    assert watches.wait_until_empty(0, threading.Event()) == ["saga1", "saga2"]


def test_waiting_ends_when_it_is_to_stop() -> None:
    watches = Watches()
    watches.add(an_await("saga1"))
    stop = threading.Event()
    stop.set()
    assert watches.wait_until_empty(60, stop) == ["saga1"]


@pytest.mark.parametrize("last", ["an answer", "a refusal"])
def test_waiting_ends_when_the_last_one_was_told(last: str) -> None:
    watches = Watches()
    watches.add(watch := a_begin("saga1", "r1"))
    left: list[list[str]] = []
    waiter = threading.Thread(target=lambda: left.append(watches.wait_until_empty(60, threading.Event())), daemon=True)
    waiter.start()
    if last == "an answer":
        watches.take("saga1")
    else:
        watches.take_one(watch)
    waiter.join(30)
    assert left == [[]]
