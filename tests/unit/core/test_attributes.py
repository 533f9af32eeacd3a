"""The attributes of a saga: what they may be, and where they are and are not told."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core.attributes import MAX_NUMBER, RESERVED, named, parse_attributes
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.decision import decide
from sagastream.core.erasure import without_data
from sagastream.core.messages import Begin, Code, Unreadable
from sagastream.core.parsing import read_request
from sagastream.core.saga import SagaState, protocol_view
from sagastream.core.same_saga import conflict
from sagastream.core.transitions import Moment
from sagastream.errors import CorruptSaga, MalformedMessage
from sagastream.store import saga_hash
from support.states import written

STEPS = [{"transaction": "Charge", "service": "till", "params": {"amount": 5}}]
#: The widest that there may be.
WIDE = {"a": "", "b" * 32: "é" * 32, "c_1": MAX_NUMBER, "d": -MAX_NUMBER, "e": " = {}", "f": 0, "g": "815", "h": 815}


def a_begin(attributes: Any, **more: Any) -> Begin:
    return parse_begin({"saga_id": "saga42", "steps": STEPS, "attributes": attributes} | more)


def begun(begin: Begin) -> SagaState:
    state = decide(None, begin, Moment(now_ms=1_700_000_000_000, published={})).state
    assert isinstance(state, SagaState)
    return state


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ([], "must be an object of names and values"),
        ({f"n{number}": 1 for number in range(9)}, "9 are too many, a saga may have 8"),
        ({"Customer": "c"}, "'Customer' is no name of an attribute: a name is 1 to 32 characters of a-z 0-9 _"),
        ({"a" * 33: "c"}, "is no name of an attribute"),
        ({"": "c"}, "is no name of an attribute"),
        ({"1st": "c"}, "is no name of an attribute"),
        ({"n": 1.5}, "n must be a text or a whole number"),
        ({"n": True}, "n must be a text or a whole number"),
        ({"n": None}, "n must be a text or a whole number"),
        ({"n": ["c"]}, "n must be a text or a whole number"),
        ({"n": MAX_NUMBER + 1}, "n must be a whole number between -2^53 and 2^53"),
        ({"n": -MAX_NUMBER - 1}, "n must be a whole number between -2^53 and 2^53"),
        ({"n": "é" * 33}, "n has 66 bytes of UTF-8, at most 64 are allowed"),
        ({"n": "a\n"}, "n has a control character"),
        ({"n": "\x7f"}, "n has a control character"),
        ({"n": "\u2028"}, "n has a control character"),
        *[({name: "c"}, f"{name} is taken") for name in sorted(RESERVED)],
    ],
)
def test_wrong_attributes_are_refused_with_code_12_and_the_path(attributes: Any, text: str) -> None:
    with pytest.raises(MalformedMessage) as refused:
        a_begin(attributes)
    assert str(refused.value).startswith("the body: attributes")
    assert text in str(refused.value)
    body = orjson.dumps({"type": "saga_begin", "saga_id": "s", "steps": STEPS, "attributes": attributes})
    expected = Unreadable(code=Code.MALFORMED, text=str(refused.value), request_id="r")
    assert read_request({b"body": body, b"request_id": b"r"}) == expected


def test_half_a_character_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="half a character"):
        parse_attributes({"n": "\ud800"}, "attributes")


def test_they_travel_in_the_request_and_stay_in_the_hash() -> None:
    begin = a_begin(WIDE)
    assert begin.attributes == WIDE
    assert read_request({b"body": begin.body()}) == begin
    state = begun(begin)
    assert state.attributes == WIDE
    fields = written(saga_hash.changed_fields(None, state))
    assert orjson.loads(fields[b"attributes"]) == WIDE
    assert saga_hash.read("saga42", fields) == replace(state, version=1)
    assert protocol_view(state)["attributes"] == WIDE


def test_a_saga_without_any_has_no_such_member_anywhere() -> None:
    for begin in (parse_begin({"saga_id": "saga42", "steps": STEPS}), a_begin({})):
        assert b"attributes" not in begin.body()
        assert b"attributes" not in written(saga_hash.changed_fields(None, begun(begin)))
        assert "attributes" not in protocol_view(begun(begin))


def test_they_are_in_no_command() -> None:
    decision = decide(None, a_begin({"customer": "c42"}), Moment(now_ms=1, published={}))
    assert decision.commands
    assert all(b"c42" not in repr(command.fields()).encode() for command in decision.commands)


@pytest.mark.parametrize("value", [b"[]", b"{", b'{"A":1}', b'{"n":1.5}'])
def test_a_damaged_field_is_recognised(value: bytes) -> None:
    fields = written(saga_hash.changed_fields(None, begun(a_begin({"n": 1}))))
    assert isinstance(saga_hash.read("saga42", fields | {b"attributes": value}), CorruptSaga)


@pytest.mark.parametrize(
    ("there", "here", "told"),
    [
        ({"n": 1}, {"n": 2}, "with 1 as attributes.n; this request has 2"),
        ({"n": 1}, {"n": "1"}, 'with 1 as attributes.n; this request has "1"'),
        ({"n": 1}, {}, 'with {"n": 1} as attributes; this request has none'),
        ({}, {"n": 1}, 'without attributes; this request has {"n": 1}'),
        ({"n": 1, "m": 2}, {"n": 1}, "with 2 as attributes.m; this request has none"),
    ],
)
def test_to_begin_it_again_with_others_is_another_saga(there: Any, here: Any, told: str) -> None:
    assert conflict(begun(a_begin(there)), a_begin(here)) == f"another saga has the id saga42: it began {told}"
    assert conflict(begun(a_begin(there)), a_begin(dict(reversed(there.items())))) is None


def test_an_erasure_takes_them_away() -> None:
    bare = without_data(begun(a_begin({"customer": "c42"})))
    assert bare.attributes is None
    assert "attributes" in saga_hash.changed_fields(begun(a_begin({"customer": "c42"})), bare)


@given(st.text(max_size=40))
def test_what_is_accepted_can_be_written_and_read(value: str) -> None:
    try:
        begin = a_begin({"n": value})
    except MalformedMessage:
        return
    assert read_request({b"body": begin.body()}) == begin


def test_people_write_them_as_name_and_value() -> None:
    assert named(["customer=c42", "formula=a=b"], "--attribute") == {"customer": "c42", "formula": "a=b"}
    assert named([], "--attribute") == {}
    with pytest.raises(MalformedMessage, match="--attribute names n twice"):
        named(["n=1", "m=1", "n=1"], "--attribute")
    for text, why in (("c42", "is not NAME=VALUE"), ("C=1", "no name of an attribute"), ("n=\n", "control")):
        with pytest.raises(MalformedMessage, match=why):
            named([text], "--attribute")
