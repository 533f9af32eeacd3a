"""What clients send: its types, its checks, its batches."""

from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest

from sagastream import (
    RequestRefused,
    SagaClient,
    SagaRequest,
    SagaState,
    SagaStatus,
    StepRequest,
    UnreadableSaga,
)
from sagastream.client.requests import (
    BATCH,
    Accepted,
    PauseRequest,
    Refused,
    WaitRequest,
    _batches,
    begin_many,
    granted,
    to_begin,
    to_intervene,
)
from sagastream.core.messages import Begin, Verb
from sagastream.core.shape_parsing import SHAPE_MEMBERS
from sagastream.core.steps import OPTIONS, StepKind
from sagastream.errors import MalformedMessage
from sagastream.store.layout import Layout


def a_saga(saga_id: str, params: Any = None) -> SagaRequest:
    return {"saga_id": saga_id, "steps": [{"transaction": "Do", "service": "work", "params": params}]}


def test_the_type_of_a_step_has_the_members_that_the_protocol_knows() -> None:
    waits = get_type_hints(WaitRequest).keys() | get_type_hints(PauseRequest).keys()
    members = {"transaction", "service", "params", *OPTIONS}
    assert get_type_hints(StepRequest).keys() == members | (SHAPE_MEMBERS - {"wait", "wait_ms", "on_timeout"})
    assert get_type_hints(StepRequest).keys() | waits == members | SHAPE_MEMBERS
    assert StepRequest.__required_keys__ == {"transaction", "service"}


def test_a_type_checker_finds_what_is_misspelt() -> None:
    # If one of these comments were not needed, mypy would report it: its run over this file is the test.
    right: StepRequest = {"transaction": "Do", "service": "work", "kind": "pivot", "compensation": None}
    assert StepKind(right["kind"]) is StepKind.PIVOT
    misspelt: StepRequest = {"transaction": "Do", "service": "work", "timeout": 5}  # type: ignore[typeddict-unknown-key]
    unknown: StepRequest = {"transaction": "Do", "service": "work", "kind": "perhaps"}  # type: ignore[typeddict-item]
    nobody: StepRequest = {"transaction": "Do"}  # type: ignore[typeddict-item]
    for wrong in (misspelt, unknown, nobody):
        with pytest.raises(MalformedMessage):
            to_begin({"saga_id": "s1", "steps": [wrong]})


def test_a_type_checker_has_what_is_no_saga_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # As above, with the comments: what is yielded has no status before its type was checked.
    def look(client: SagaClient) -> Iterator[str]:
        for ended in client.as_completed(["s1"]):
            yield ended.status  # type: ignore[union-attr]
            yield str(ended.error) if isinstance(ended, Refused) else ended.status
        for found in client.list():
            yield found.status  # type: ignore[union-attr]
            yield str(found) if isinstance(found, UnreadableSaga) else found.status

    saga = SagaState(saga_id="s1", status=SagaStatus.COMPLETED, current_step=1, steps=(), begun_ms=0, updated_ms=0)
    with SagaClient("redis://nowhere.invalid") as client:
        monkeypatch.setattr(client, "as_completed", lambda _: [saga])
        monkeypatch.setattr(client, "list", lambda: [saga])
        assert list(look(client)) == ["COMPLETED"] * 4


def test_steps_may_be_a_tuple() -> None:
    saga = a_saga("s1")
    assert to_begin({"saga_id": "s1", "steps": tuple(saga["steps"])}).steps == to_begin(saga).steps


@pytest.mark.parametrize("steps", [None, "abc", 5, {}, []])
def test_steps_that_are_none_are_malformed(steps: Any) -> None:
    with pytest.raises(MalformedMessage, match="steps must be a list of 1 to 100"):
        to_begin({"saga_id": "s1", "steps": steps})


def test_every_request_has_an_id_of_its_own() -> None:
    assert to_begin(a_saga("s1")).request_id != to_begin(a_saga("s1")).request_id


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


def test_an_operators_request_that_is_malformed_says_where() -> None:
    with pytest.raises(MalformedMessage, match=r"^the request: saga_id must be 1 to 128 characters of "):
        to_intervene(Verb.CANCEL, "not an id", "why")


@pytest.mark.parametrize("wrong", [None, 5, "s1", b"s1", a_saga("s1")])
def test_one_saga_is_not_taken_for_many(wrong: Any) -> None:
    name = type(wrong).__name__
    with pytest.raises(
        TypeError, match=f"^sagas must be a list of SagaRequest, dicts with saga_id and steps, not {name}$"
    ):
        next(begin_many(Layout("saga"), wrong))


def test_what_was_accepted_is_shown_without_its_steps() -> None:
    assert repr(Accepted(begin=to_begin(a_saga("s1", "secret")))) == "Accepted(saga_id='s1')"


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


def test_a_refusal_is_a_value_until_it_is_asked_for() -> None:
    assert granted(5) == 5
    with pytest.raises(RequestRefused, match="why"):
        granted(Refused(saga_id="s1", error=RequestRefused(22, "why")))
