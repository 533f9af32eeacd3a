"""How many sagas are begun: what is refused, and in which batches the others go."""

from typing import Any

import pytest

from sagastream import SagaRequest
from sagastream.client.answers import Refused
from sagastream.client.beginning import BATCH, _batches, begin_many
from sagastream.core.messages import Begin
from sagastream.store.layout import Layout


def a_saga(saga_id: str, params: Any = None) -> SagaRequest:
    return {"saga_id": saga_id, "steps": [{"transaction": "Do", "service": "work", "params": params}]}


def test_batches_are_bounded_in_number_and_in_bytes_and_keep_the_order() -> None:
    many = list(_batches(a_saga(f"s{n}") for n in range(2 * BATCH + 1)))
    assert [len(batch) for batch in many] == [BATCH, BATCH, 1]
    assert [one.saga_id for batch in many for one in batch] == [f"s{n}" for n in range(2 * BATCH + 1)]
    large = list(_batches(a_saga(f"s{n}", "x" * 400_000) for n in range(5)))
    assert [len(batch) for batch in large] == [2, 2, 1]


def test_what_is_no_request_keeps_its_place_and_says_why() -> None:
    strange: Any = [a_saga("s1"), a_saga("not an id"), "no saga", {"saga_id": 5}, a_saga("s2")]
    [batch] = _batches(strange)
    assert [isinstance(one, Begin) for one in batch] == [True, False, False, False, True]
    told = [(one.saga_id, str(one.error)) for one in batch if isinstance(one, Refused)]
    allowed = "1 to 128 characters of A-Z a-z 0-9 . _ : -"
    assert told == [
        ("not an id", f"the saga: saga_id must be {allowed}"),
        ("", "the saga is not a JSON object"),
        ("", f"the saga: saga_id must be {allowed}"),
    ]


@pytest.mark.parametrize("wrong", [None, 5, "s1", b"s1", a_saga("s1")])
def test_one_saga_is_not_taken_for_many(wrong: Any) -> None:
    name = type(wrong).__name__
    with pytest.raises(
        TypeError, match=f"^sagas must be a list of SagaRequest, dicts with saga_id and steps, not {name}$"
    ):
        next(begin_many(Layout("saga"), wrong))


def test_all_that_may_be_long_counts_for_a_batch() -> None:
    for member in ("params", "compensation_params"):
        step: Any = {"transaction": "Do", "service": "work", member: "x" * 400_000}
        many = list(_batches({"saga_id": f"s{n}", "input": {}, "steps": [step]} for n in range(5)))
        assert [len(batch) for batch in many] == [2, 2, 1]


def test_batches_are_made_as_they_are_sent() -> None:
    taken = 0

    def sagas() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield a_saga(f"s{taken}")

    assert len(next(_batches(sagas()))) == BATCH
    assert taken == BATCH + 1
