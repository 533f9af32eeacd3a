"""Who waits for the end of which saga."""

import threading

import pytest

from sagastream.messages import Begin, StepDefinition
from sagastream_bridge.lines import Caller
from sagastream_bridge.watch import Watch, Watches


def a_begin(saga_id: str, request_id: str) -> Watch:
    """Somebody who began a saga."""
    steps = (StepDefinition(transaction="A", service="s", params=b"null"),)
    begin = Begin(saga_id=saga_id, steps=steps, request_id=request_id)
    return Watch(caller=Caller(src="c1", msg_id=1), saga_id=saga_id, begin=begin)


def an_await(saga_id: str, msg_id: int = 2) -> Watch:
    """Somebody who asked for the end of a saga."""
    return Watch(caller=Caller(src="c2", msg_id=msg_id), saga_id=saga_id)


def test_all_who_wait_for_a_saga_are_taken_together_and_wait_no_more() -> None:
    watches = Watches()
    mine, yours, other = a_begin("saga1", "r1"), an_await("saga1"), an_await("saga2")
    for watch in (mine, other, yours):
        watches.add(watch)
    assert watches.take("saga1") == [mine, yours]
    assert watches.take("saga1") == []
    assert not watches.has("saga1")
    assert watches.saga_ids() == ["saga2"]


def test_nobody_waits_for_a_saga_that_was_never_watched() -> None:
    watches = Watches()
    assert watches.take("saga1") == []
    assert not watches.has("saga1")
    assert watches.begin_of("saga1") is None
    assert watches.saga_ids() == []


def test_the_one_who_sent_a_request_is_taken_and_the_others_wait_on() -> None:
    watches = Watches()
    first, second, waiting = a_begin("saga1", "r1"), a_begin("saga1", "r2"), an_await("saga1")
    for watch in (first, second, waiting):
        watches.add(watch)
    assert watches.take_request("r2") is second
    assert watches.take_request("r2") is None
    assert watches.take("saga1") == [first, waiting]


def test_a_saga_whose_only_request_was_taken_is_watched_no_more() -> None:
    watches = Watches()
    watches.add(a_begin("saga1", "r1"))
    assert watches.take_request("r1") is not None
    assert not watches.has("saga1")
    assert watches.wait_until_empty(0) == []


def test_a_request_of_nobody_takes_nobody() -> None:
    watches = Watches()
    watches.add(an_await("saga1"))
    assert watches.take_request("") is None
    assert watches.has("saga1")


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
    assert watches.wait_until_empty(0) == ["saga1", "saga2"]


@pytest.mark.parametrize("last", ["an answer", "a refusal"])
def test_waiting_ends_when_the_last_one_was_told(last: str) -> None:
    watches = Watches()
    watches.add(a_begin("saga1", "r1"))
    left: list[list[str]] = []
    waiter = threading.Thread(target=lambda: left.append(watches.wait_until_empty(60)), daemon=True)
    waiter.start()
    if last == "an answer":
        watches.take("saga1")
    else:
        watches.take_request("r1")
    waiter.join(30)
    assert left == [[]]
