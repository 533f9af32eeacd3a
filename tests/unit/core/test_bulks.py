"""Bulks: which sagas are meant, what is asked of each, what comes next, and that every order of deaths asks once."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.bulks import (
    Bulk,
    BulkState,
    Next,
    after_answers,
    after_search,
    asks_of,
    checked,
    filter_of,
    next_of,
    request_of,
)
from sagastream.core.decision import decide
from sagastream.core.filtering import Filter, matches
from sagastream.core.messages import Verb
from sagastream.core.parsing import read_request
from sagastream.core.saga import SagaState
from sagastream.core.transitions import Moment
from sagastream.errors import MalformedMessage

PARKED = Filter(status="PARKED")


def bulk(verb: str = "retry", wanted: Filter = PARKED, **changes: Any) -> Bulk:
    made = checked(verb, wanted, "mended", "ada", rate=200, now=False)
    return replace(made, **({"bulk_id": "0123456789ab"} | changes))


def saga(saga_id: str = "s" * 128) -> SagaState:
    """A saga that has begun."""
    body = {"saga_id": saga_id, "steps": [{"transaction": "Do", "service": "work", "params": 1}]}
    state = decide(None, parse_begin(body), Moment(now_ms=1000, published={})).state
    assert isinstance(state, SagaState)
    return state


def parked(saga_id: str = "s" * 128) -> SagaState:
    """The same, parked at its step."""
    state = saga(saga_id)
    return replace(state, steps=(replace(state.steps[0], parked="why", phase="PARKED"),))


@pytest.mark.parametrize(
    ("verb", "given_filter", "status"),
    [
        ("cancel", Filter(definition="order"), "PENDING"),
        ("cancel", Filter(parked="Do"), "PENDING"),
        ("retry", Filter(definition="order"), "PARKED"),
        ("retry", Filter(parked="Do"), None),
        ("skip", Filter(status="COMPENSATING"), "COMPENSATING"),
    ],
)
def test_a_bulk_is_for_the_sagas_for_which_its_verb_is(verb: str, given_filter: Filter, status: str | None) -> None:
    assert filter_of(Verb(verb), given_filter).status == status


def test_only_sagas_are_meant_that_began_before_the_bulk() -> None:
    wanted = bulk("cancel", Filter(status="PENDING"), begun_ms=1000).wanted
    assert matches(saga(), wanted, 1000)
    assert not matches(saga(), wanted, 999)


def test_what_comes_next() -> None:
    one = bulk()
    assert next_of(one) is Next.SEARCH
    assert next_of(replace(one, searched=True)) is Next.END
    asked, results = after_search(one, [saga("s1"), saga("s2")], ["saga s3 is damaged"], "1.5.0.0e.s2")
    assert next_of(asked) is (Next.SEARCH if not asked.open else Next.SETTLE)
    assert (asked.found, asked.asked, asked.refused) == (3, 0, 3)  # none of them is parked
    assert [one.saga_id for one in results] == ["", "s1", "s2"]
    for state in (BulkState.PAUSED, BulkState.STOPPED):
        assert next_of(replace(one, state=state)) is Next.REST


def test_what_was_asked_is_answered_first_even_if_it_is_paused() -> None:
    one = bulk("cancel", Filter(status="PENDING"))
    asked, _ = after_search(one, [saga("s1"), saga("s2")], [], None)
    assert (asked.asked, asked.searched, [ask.saga_id for ask in asked.open]) == (2, True, ["s1", "s2"])
    assert next_of(replace(asked, state=BulkState.STOPPED)) is Next.SETTLE
    first, second = asked.open
    some, results = after_answers(asked, {first: None})
    assert (some.done, some.refused, some.open, [one.refused for one in results]) == (1, 0, (second,), [None])
    rest, results = after_answers(some, {first: None, second: "x" * 1000})
    assert (rest.done, rest.refused, rest.open) == (1, 1, ())
    assert [len(str(one.refused)) for one in results] == [500]
    assert next_of(rest) is Next.END


def test_a_request_is_the_same_whoever_sends_it_and_a_saga_does_it_once() -> None:
    one = bulk("cancel", Filter(status="PENDING"))
    state = saga()
    asks = asks_of(one, state)
    assert isinstance(asks, list)
    sent = [request_of(one, ask) for ask in asks] * 2
    assert sent[0] == sent[1]
    fields = {str(name).encode(): value if isinstance(value, bytes) else str(value).encode()
              for name, value in sent[0].fields().items()}  # fmt: skip
    assert read_request(fields) == sent[0]  # its id is not too long, whatever the id of the saga is
    moment = Moment(now_ms=2000, published={})
    first = decide(state, sent[0], moment)
    assert first.notices[0].kind == "done"
    second = decide(first.state, sent[1], moment)
    assert second.state == first.state
    assert [notice.kind for notice in second.notices] == ["done"]


def test_a_cancel_names_no_place_for_that_would_say_that_the_step_was_not_done() -> None:
    asks = asks_of(bulk("cancel", PARKED), parked())
    assert isinstance(asks, list)
    assert [ask.place for ask in asks] == [None]


def test_what_is_parked_elsewhere_or_not_at_all_is_told() -> None:
    assert asks_of(bulk(), saga()) == "it is not parked: it waits for work to answer Do, step 1"


@given(st.integers(1, 2000))
def test_a_part_has_bounded_size_and_the_rate_is_kept(rate: int) -> None:
    one = bulk(rate=rate)
    assert 1 <= one.part <= 50
    assert one.part <= max(1, rate // 4)


@pytest.mark.parametrize("state", ["COMPLETED", "ABORTED"])
def test_what_has_ended_takes_no_verb(state: str) -> None:
    for verb in Verb:
        with pytest.raises(MalformedMessage, match=f"{state}, takes no {verb}"):
            checked(verb, Filter(status=state), "r", None, rate=1, now=False)
