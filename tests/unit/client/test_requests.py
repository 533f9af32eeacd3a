"""What clients ask for: its types, its checks."""

import inspect
from typing import Any, get_type_hints

import pytest

from sagastream import Definition, SagaClient, SagaRequest, StepRequest
from sagastream.client.requests import (
    BeginOptions,
    PauseRequest,
    StepsOptions,
    WaitRequest,
    saga,
    to_begin,
    to_intervene,
)
from sagastream.core.messages import Verb
from sagastream.core.shape_parsing import SHAPE_MEMBERS
from sagastream.core.steps import OPTIONS, StepKind
from sagastream.errors import MalformedMessage


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


def test_steps_may_be_a_tuple() -> None:
    body = a_saga("s1")
    assert to_begin({"saga_id": "s1", "steps": tuple(body["steps"])}).steps == to_begin(body).steps


@pytest.mark.parametrize("steps", [None, "abc", 5, {}, []])
def test_steps_that_are_none_are_malformed(steps: Any) -> None:
    with pytest.raises(MalformedMessage, match="steps must be a list of 1 to 100"):
        to_begin({"saga_id": "s1", "steps": steps})


def test_every_request_has_an_id_of_its_own() -> None:
    assert to_begin(a_saga("s1")).request_id != to_begin(a_saga("s1")).request_id


def test_an_operators_request_that_is_malformed_says_where() -> None:
    with pytest.raises(MalformedMessage, match=r"^the request: saga_id must be 1 to 128 characters of "):
        to_intervene(Verb.CANCEL, "not an id", "why")


def test_the_options_of_a_begin_are_those_of_the_saga_that_it_asks_for() -> None:
    own = {"durable"}  # it is about the begin, not about the saga
    taken = inspect.signature(saga).parameters.keys() - {"saga_id", "steps"}
    assert get_type_hints(StepsOptions).keys() - own == taken
    of_a_definition = inspect.signature(Definition.saga).parameters.keys() - {"self", "input", "saga_id"}
    assert get_type_hints(BeginOptions).keys() - own == of_a_definition


def test_a_type_checker_finds_a_misspelt_option_of_a_begin() -> None:
    # As above, with the comments.
    with SagaClient("redis://nowhere.invalid") as client:
        with pytest.raises(MalformedMessage):
            client.begin("s1", [], deadline=5)  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            client.begin("s1", [], start="now")  # type: ignore[call-overload]
