"""The messages as they are written into entries."""

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from sagastream.core.commands import Command, Reply, failed, ok
from sagastream.core.messages import Begin, Intervene, Verb, is_id
from sagastream.core.notices import done_body
from sagastream.core.steps import OPTIONS, PERSISTENT_ATTEMPTS, StepDefinition, StepKind, unlike_defaults
from sagastream.core.strict_json import MAX_DEPTH, MAX_PAYLOAD_BYTES, decode, encode_payload
from support.values import BAD_IDS, OTHER_TYPES, nested_value


def test_a_payload_at_both_limits_fits_into_every_message() -> None:
    longest = "n" * 128
    deepest = encode_payload(nested_value(MAX_DEPTH - 3))
    largest = encode_payload("x" * (MAX_PAYLOAD_BYTES - 2))
    for payload in (deepest, largest):
        definition = StepDefinition(transaction=longest, service=longest, params=payload, compensation="c" * 128)
        command = Command(service=longest, type=longest, saga_id=longest, step=100, params=payload, begun_ms=0)
        decode(Begin(saga_id=longest, steps=(definition,)).body())
        decode(command.body())
        decode(Reply(type=ok(longest), saga_id=longest, step=100, result=payload).body())
        decode(Reply(type=failed(longest), saga_id=longest, step=100, error=payload).body())


@pytest.mark.parametrize("bad", [*BAD_IDS.values(), *OTHER_TYPES.values()], ids=[*BAD_IDS, *OTHER_TYPES])
def test_what_is_no_id_is_none(bad: object) -> None:
    assert not is_id(bad)


def a_step(**options: Any) -> StepDefinition:
    return StepDefinition(transaction="A", service="s", params=b"7", **options)


#: For each option of a step a value that is not the default.
UNUSUAL = {
    "compensation": "U",
    "kind": StepKind.PIVOT,
    "timeout_ms": 1,
    "attempts": 2,
    "compensation_attempts": 3,
    "backoff_ms": 4,
    "retry_failed": True,
}


def test_a_step_says_in_its_body_what_is_not_as_usual_and_no_more() -> None:
    assert UNUSUAL.keys() == OPTIONS.keys()
    said = {"transaction": "A", "service": "s", "params": 7}
    begin = Begin(saga_id="saga42", steps=(a_step(), a_step(**UNUSUAL)))
    assert orjson.loads(begin.body())["steps"] == [said, said | UNUSUAL]
    for name, value in UNUSUAL.items():
        assert unlike_defaults(a_step(**{name: value}).options) == {name: value}


def test_ten_attempts_are_usual_for_a_retriable_step_alone() -> None:
    assert [*unlike_defaults(a_step(kind=StepKind.RETRIABLE, attempts=PERSISTENT_ATTEMPTS).options)] == ["kind"]
    assert [*unlike_defaults(a_step(kind=StepKind.RETRIABLE).options)] == ["kind", "attempts"]
    assert [*unlike_defaults(a_step(attempts=PERSISTENT_ATTEMPTS).options)] == ["attempts"]


@pytest.mark.parametrize("kind", StepKind)
@pytest.mark.parametrize("retry_failed", [False, True])
def test_a_failure_is_tried_again_where_the_step_says_so_or_is_retriable(kind: StepKind, retry_failed: bool) -> None:
    assert a_step(kind=kind, retry_failed=retry_failed).retried == (retry_failed or kind == "retriable")


def test_a_begin_says_its_deadline_before_its_steps() -> None:
    begin = Begin(saga_id="saga42", steps=(a_step(),), deadline_ms=5000)
    assert begin.body() == (
        b'{"type":"saga_begin","saga_id":"saga42","deadline_ms":5000,'
        b'"steps":[{"transaction":"A","service":"s","params":7}]}'
    )
    assert b"deadline_ms" not in replace(begin, deadline_ms=None).body()


@pytest.mark.parametrize("verb", Verb)
def test_what_an_operator_asks_for_has_a_type_of_its_own_and_is_answered_in_kind(verb: Verb) -> None:
    asked = Intervene(verb=verb, saga_id="saga42", reason="ordered twice")
    assert orjson.loads(asked.body()) == {"type": f"saga_{verb}", "saga_id": "saga42", "reason": "ordered twice"}
    assert asked.fields() == {"body": asked.body()}
    assert replace(asked, request_id="op-1").fields() == {"body": asked.body(), "request_id": "op-1"}
    assert orjson.loads(done_body(verb, "saga42")) == {"type": f"saga_{verb}_ok", "saga_id": "saga42"}


def test_a_begin_names_its_format_where_it_is_not_the_plain_one() -> None:
    begin = Begin(saga_id="s", steps=(StepDefinition(transaction="A", service="b", params=b"1"),))
    assert b"format" not in begin.body()
    assert list(orjson.loads(replace(begin, format=2).body()).items())[:3] == [
        ("type", "saga_begin"),
        ("saga_id", "s"),
        ("format", 2),
    ]
