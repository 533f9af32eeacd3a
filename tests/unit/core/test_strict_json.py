"""The strict decoder and encoder."""

import json
import math
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.core.strict_json import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_OBJECTS,
    MAX_PAYLOAD_BYTES,
    MAX_VALUES,
    decode,
    decode_any,
    encode,
    encode_payload,
)
from sagastream.errors import MalformedMessage
from support.values import JSON_VALUES, complaint, nested_value
from support.worst import INVALID, VALID, cpu_ms


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def string_of(size: int) -> bytes:
    """A JSON string of this many bytes."""
    return b'"' + b"x" * (size - 2) + b'"'


# --- the decoder


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b'{"a":NaN}', id="NaN inside"),
        pytest.param(b"Infinity", id="Infinity"),
        pytest.param(b"-Infinity", id="minus Infinity"),
        pytest.param(b"1e999", id="a number that is infinite"),
        pytest.param(b"[-1e999]", id="a number that is minus infinite"),
        pytest.param(rb'"\ud800"', id="a lone high surrogate"),
        pytest.param(rb'["\udc00x"]', id="a lone low surrogate"),
        pytest.param(rb'{"\ud800":1}', id="a lone surrogate in a key"),
        pytest.param(b'"\xed\xa0\x80"', id="a surrogate in the bytes"),
        pytest.param(b'"\xff"', id="bytes that are no UTF-8"),
        pytest.param(b'"\xc0\xaf"', id="an overlong encoding"),
        pytest.param(b"\xef\xbb\xbf{}", id="a byte order mark"),
        pytest.param('{"a":1}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'"\x00"', id="a NUL in a string"),
        pytest.param(b'"a\nb"', id="a newline in a string"),
        pytest.param(b'"\x1b[2J"', id="an ESC in a string"),
        pytest.param(b"[1,]", id="a trailing comma in a list"),
        pytest.param(b'{"a":1,}', id="a trailing comma in an object"),
        pytest.param(b"", id="nothing"),
        pytest.param(b" \n", id="only white space"),
        pytest.param(b"{} {}", id="two values"),
        pytest.param(b'{"a":1', id="an open object"),
        pytest.param(b"{'a':1}", id="single quotes"),
        pytest.param(b"{a:1}", id="a bare key"),
        pytest.param(b"01", id="a leading zero"),
        pytest.param(b"+1", id="a plus sign"),
        pytest.param(b"1.", id="no digits after the point"),
        pytest.param(b"// no\n1", id="a comment"),
        pytest.param(b"nul", id="half a word"),
        pytest.param(b"[" * 100_000, id="100,000 open brackets"),
        pytest.param(b'{"a":' * 100_000, id="100,000 open braces"),
        pytest.param(b"9" * 5000, id="an integer of 5,000 digits"),
        pytest.param(b"-" + b"9" * 5000, id="a negative integer of 5,000 digits"),
    ],
)
def test_what_is_no_json_is_malformed(text: bytes) -> None:
    assert complaint(decode, text).startswith("not JSON: ")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (b'{"a":1,"a":1}', "'a'"),
        (b'{"a":1,"b":2,"a":3}', "'a'"),
        (b'[{"x":[{"y":{"k":1,"k":2}}]}]', "'k'"),
        (rb'{"k":1,"\u006b":2}', "'k'"),
        (b'{"":0,"":0}', "''"),
        ('{"\u202e":1,"\u202e":2}'.encode(), r"'\u202e'"),
    ],
)
def test_a_key_that_stands_twice_in_one_object_is_malformed(text: bytes, key: str) -> None:
    assert complaint(decode, text) == f"the key {key} occurs twice in one object"


def test_a_long_key_that_stands_twice_is_not_repeated_in_full() -> None:
    key = b'"' + b"k" * 10_000 + b'"'
    assert len(complaint(decode, b"{" + key + b":1," + key + b":2}")) < 200


def test_the_same_key_in_different_objects_is_fine() -> None:
    assert decode(b'{"a": {"a": 1}, "b": [{"a": 2}, {"a": 3}]}') == {"a": {"a": 1}, "b": [{"a": 2}, {"a": 3}]}


@pytest.mark.parametrize("text", ["18446744073709551616", "-9223372036854775809", '[1,{"a":18446744073709551616}]'])
def test_an_integer_just_over_64_bits_is_malformed(text: str) -> None:
    assert complaint(decode, text.encode()).endswith(" does not fit into 64 bits")


def test_a_long_integer_is_not_repeated_in_full() -> None:
    assert complaint(decode, b"1" + b"0" * 300) == f"the integer 1{'0' * 23}… does not fit into 64 bits"


@pytest.mark.parametrize("number", [2**64 - 1, 2**63, 2**53 + 1, -(2**63), -(2**53) - 1, 0])
def test_an_integer_of_64_bits_is_kept_to_the_last_digit(number: int) -> None:
    value = decode(b" " + str(number).encode())  # the space: the slow path reads it too
    assert value == number
    assert type(value) is int
    assert encode(value) == str(number).encode()


def test_a_text_is_accepted_at_the_depth_limit_and_not_one_level_over_it() -> None:
    assert decode(nested(MAX_DEPTH)) == nested_value(MAX_DEPTH)
    assert complaint(decode, nested(MAX_DEPTH + 1)) == f"nested deeper than {MAX_DEPTH} levels"
    assert complaint(decode, b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1)).startswith("nested deeper")


def test_the_depth_limit_is_the_same_where_there_are_more_brackets_than_levels() -> None:
    assert decode(b"[[]," + nested(MAX_DEPTH - 1) + b"]") == [[], nested_value(MAX_DEPTH - 1)]
    assert complaint(decode, b"[[]," + nested(MAX_DEPTH) + b"]").startswith("nested deeper")


def test_many_brackets_next_to_each_other_or_in_strings_are_not_depth() -> None:
    assert len(decode(b"[" + b",".join([b"[]"] * 1000) + b"]")) == 1000
    assert decode(b'"' + b"[{" * 1000 + b'"') == "[{" * 1000


def test_a_body_is_accepted_at_the_size_limit_and_not_one_byte_over_it() -> None:
    assert len(decode(string_of(MAX_BYTES))) == MAX_BYTES - 2
    assert complaint(decode, string_of(MAX_BYTES + 1)) == (f"too large: {MAX_BYTES + 1} bytes, at most {MAX_BYTES}")


@pytest.mark.parametrize("item", [b"1", b'""', b"[]", b"[ ]", b'",[{:"', rb'"\"\\,"'])
def test_as_many_values_are_read_as_are_allowed_and_not_one_more(item: bytes) -> None:
    assert len(decode(b"[" + b",".join([item] * (MAX_VALUES - 1)) + b"]")) == MAX_VALUES - 1
    too_many = b"[" + b", ".join([item] * MAX_VALUES) + b"]"
    assert complaint(decode, too_many) == f"too many values: {MAX_VALUES + 1}, at most {MAX_VALUES}"


def test_members_of_objects_and_objects_in_objects_are_values_too() -> None:
    members = b",".join(b'"%x":1' % number for number in range(MAX_VALUES - 1))
    assert len(decode(b"{" + members + b"}")) == MAX_VALUES - 1
    assert complaint(decode, b'{"":1,' + members + b"}").startswith("too many values: ")
    objects = b",".join([b"{}"] * (MAX_OBJECTS - 1))
    assert len(decode(b'{"a":[' + objects + b"]}")["a"]) == MAX_OBJECTS - 1
    assert complaint(decode, b'{"a":[{},' + objects + b"]}").startswith("too many objects: ")


def test_a_value_with_too_many_values_is_refused_where_it_is_written() -> None:
    assert complaint(encode_payload, [0] * MAX_VALUES).startswith("too many values: ")
    body = b'{"type":"A","saga_id":"x","step":1,"params":%b}' % encode_payload([0] * (MAX_VALUES - 17))
    assert decode(body)["step"] == 1


@pytest.mark.parametrize("name", VALID)
def test_no_text_that_is_read_costs_more_than_50_ms(name: str) -> None:
    text = b'{"params":%b}' % VALID[name].encode()
    assert cpu_ms(lambda: decode(text), enough_ms=45) < 50


@pytest.mark.parametrize("name", INVALID)
def test_no_text_that_is_refused_costs_more_than_50_ms(name: str) -> None:
    text = b'{"params":%b}' % INVALID[name].encode()
    assert cpu_ms(lambda: complaint(decode, text), enough_ms=45) < 50
    assert cpu_ms(lambda: decode_any(text), enough_ms=45) < 50


def test_what_was_refused_is_still_read_to_tell_what_it_was() -> None:
    assert decode_any(b'{"a":1,"a":2}') == {"a": 2}
    assert decode_any(b'{"a"') is None
    assert decode_any(b"[" + b",".join([b"0"] * MAX_VALUES) + b"]") is None


_KEYS = st.text(st.sampled_from('a"\\,:[{ 1\n\u00e9'), max_size=3)


@given(st.lists(st.tuples(_KEYS, _KEYS), max_size=6), st.booleans())
def test_a_key_that_stands_twice_is_found_whatever_signs_it_has(pairs: list[tuple[str, str]], plain: bool) -> None:
    members = ",".join(json.dumps(k, ensure_ascii=plain) + ": " + json.dumps([v]) for k, v in pairs)
    text = b"{" + members.encode() + b"}"
    if len(dict(pairs)) == len(pairs):
        assert decode(text) == {k: [v] for k, v in pairs}
    else:
        assert complaint(decode, text).endswith(" occurs twice in one object")


@given(JSON_VALUES)
def test_what_is_encoded_is_decoded_to_the_same(value: Any) -> None:
    assert decode(encode(value)) == value
    assert encode(decode(encode(value))) == encode(value)  # 1, 1.0 and true are not the same
    assert decode(json.dumps(value, indent=1).encode()) == value  # other spaces and escapes: the slow path


@given(st.binary(max_size=60) | st.text('[]{}":,019.eE+- \\utfnal', max_size=40).map(str.encode))
def test_any_bytes_are_read_as_a_strict_parser_would_or_malformed(text: bytes) -> None:
    try:
        value = decode(text)
    except MalformedMessage:
        return
    assert value == json.loads(text)


# --- payloads of users' code


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(math.nan, id="NaN"),
        pytest.param([1, {"a": (math.inf,)}], id="infinity inside"),
        pytest.param({"a": None, "b": -math.inf}, id="minus infinity next to a null"),
        pytest.param(2**64, id="an integer over 64 bits"),
        pytest.param(-(2**63) - 1, id="a negative integer over 64 bits"),
        pytest.param({1, 2}, id="a set"),
        pytest.param(b"bytes", id="bytes"),
        pytest.param(1j, id="a complex number"),
        pytest.param({1: 2}, id="a key that is no string"),
        pytest.param("\ud800", id="a lone surrogate"),
        pytest.param(object(), id="an object"),
    ],
)
def test_a_payload_that_json_cannot_say_is_refused(value: object) -> None:
    assert complaint(encode_payload, value).startswith("not JSON: ")


def test_a_payload_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    assert complaint(encode_payload, value)


@pytest.mark.parametrize("value", [None, [None], {"a": None}, "null", "NaN", 1.5, "", {}, 2**64 - 1])
def test_a_payload_that_json_can_say_is_written_as_it_is(value: object) -> None:
    assert json.loads(encode_payload(value)) == value


def test_a_payload_is_accepted_at_its_size_limit_and_not_one_byte_over_it() -> None:
    assert len(encode_payload("x" * (MAX_PAYLOAD_BYTES - 2))) == MAX_PAYLOAD_BYTES
    assert complaint(encode_payload, "x" * (MAX_PAYLOAD_BYTES - 1)) == (
        f"too large: {MAX_PAYLOAD_BYTES + 1} bytes, at most {MAX_PAYLOAD_BYTES}"
    )


@dataclass
class Money:
    """What a user's handler might return by mistake."""

    amount: object


class Colour(Enum):
    RED = "red"
    ODD = math.nan


def test_nan_in_a_dataclass_does_not_become_null_in_silence() -> None:
    assert complaint(encode_payload, Money(math.nan))


def test_nan_in_an_enum_does_not_become_null_in_silence() -> None:
    assert complaint(encode_payload, [None, Colour.ODD]) == "not JSON: it has no NaN and no infinities"


def test_dataclasses_nested_too_deep_are_refused() -> None:
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = Money(value)
    assert complaint(encode_payload, value)


def test_a_payload_is_accepted_at_its_depth_limit_and_not_one_level_over_it() -> None:
    assert json.loads(encode_payload(nested_value(MAX_DEPTH - 3))) == nested_value(MAX_DEPTH - 3)
    assert complaint(encode_payload, nested_value(MAX_DEPTH - 2)) == f"nested deeper than {MAX_DEPTH - 3} levels"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Money(1), b'{"amount":1}'),
        (datetime(2026, 1, 1, tzinfo=UTC), b'"2026-01-01T00:00:00+00:00"'),
        (date(2026, 1, 1), b'"2026-01-01"'),
        (time(1, 2), b'"01:02:00"'),
    ],
    ids=["dataclass", "datetime", "date", "time"],
)
def test_a_payload_of_a_type_that_json_does_not_have_is_written_as_is_usual(value: object, text: bytes) -> None:
    assert encode_payload(value) == text
    assert encode_payload({"a": [value]}) == b'{"a":[' + text + b"]}"


def test_a_uuid_and_the_value_of_an_enum_are_let_pass() -> None:
    assert encode_payload([uuid.UUID(int=0), Colour.RED]) == b'["00000000-0000-0000-0000-000000000000","red"]'
