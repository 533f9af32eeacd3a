"""Sealed values: what they look like, where they open, and what a codec may do wrong."""

import json
import traceback
from typing import Any

import pytest

from sagastream.codecs.keyring import Keyring
from sagastream.core.messages import Begin
from sagastream.core.sealed_messages import open_command, opened_message, sealed_begin
from sagastream.core.sealed_values import is_sealed, keys_of
from sagastream.core.sealing import MAX_SEALED, CodecContext, Place, open_value, seal
from sagastream.core.steps import STANDING, StepDefinition
from sagastream.errors import CannotOpen, MalformedMessage
from support.values import a_command
from support.worst import cpu_ms

RING = Keyring({"k": Keyring.new_key()})
RESULT = Place("s", 1, "result")
PARAMS = Place("s", 3, "params")


def test_equal_values_of_one_place_are_equal_bytes_and_of_no_two_places() -> None:
    places = [RESULT, PARAMS, Place("s", 1, "params"), Place("t", 1, "result")]
    sealed = [seal(RING, b'"x"', place) for place in places]
    assert sealed == [seal(RING, b'"x"', place) for place in places]
    assert len({json.loads(one)["$sealed"]["data"] for one in sealed}) == len(places)


def test_a_result_opens_in_the_params_of_another_step_wherever_it_stands() -> None:
    sealed = seal(RING, b'{"a":1}', RESULT)
    assert open_value(RING, b'{"order":[1,%s],"n":2}' % sealed, PARAMS) == b'{"order":[1,{"a":1}],"n":2}'
    for place in (Place("s", 1, "params"), Place("s", 2, "result"), Place("t", 3, "params")):
        with pytest.raises(CannotOpen):
            open_value(RING, sealed, place)


@pytest.mark.parametrize(
    "value",
    [
        {"$sealed": "k"},
        {"$sealed": {"key": "k", "from": "1/params"}},
        {"$sealed": {"key": "k", "from": "1/params", "data": 1}},
        {"$sealed": {"key": "k", "from": "1/params", "data": ""}, "more": 1},
        {"$sealed": {"key": "k", "from": "1/params", "data": "", "more": 1}},
        {"$sealed": {"key": "no id", "from": "1/params", "data": ""}},
        ["$sealed"],
        '{"$sealed":',
    ],
    ids=str,
)
def test_what_only_resembles_a_sealed_value_is_a_value(value: Any) -> None:
    data = json.dumps(value).encode()
    assert open_value(None, data, PARAMS) is data
    assert keys_of(data) == []
    assert not is_sealed(data)
    assert open_value(RING, seal(RING, data, PARAMS), PARAMS) == json.dumps(value, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "source", ["", "1", "0/result", "-1/result", "1/error", "1/", "/result", "9999999/result", "²/x"]
)
def test_a_strange_source_does_not_open(source: str) -> None:
    wrong = json.loads(seal(RING, b"1", RESULT))
    wrong["$sealed"]["from"] = source
    with pytest.raises(CannotOpen):
        open_value(RING, json.dumps(wrong).encode(), PARAMS)


@pytest.mark.parametrize("data", ["", "!", "AAAA", "A" * 100])
def test_strange_data_does_not_open(data: str) -> None:
    wrong = json.loads(seal(RING, b"1", RESULT))
    wrong["$sealed"]["data"] = data
    with pytest.raises(CannotOpen):
        open_value(RING, json.dumps(wrong).encode(), PARAMS)


class Broken:
    """A codec that goes wrong."""

    key = "k"

    def __init__(self, opened: bytes | Exception) -> None:
        self._opened = opened

    def encode(self, data: bytes, context: CodecContext) -> bytes:
        return data

    def decode(self, data: bytes, context: CodecContext) -> bytes:
        if isinstance(self._opened, Exception):
            raise self._opened
        return self._opened


@pytest.mark.parametrize(
    "opened", [KeyError("k"), OSError("the vault is away"), b"not JSON", b'{"a":1,"a":2}'], ids=str
)
def test_a_codec_that_fails_opens_nothing(opened: bytes | Exception) -> None:
    with pytest.raises(CannotOpen, match="the codec failed at key k") as error:
        open_value(Broken(opened), seal(RING, b"1", RESULT), RESULT)
    assert error.value.key == "k"


@pytest.mark.parametrize(
    "opened",
    [
        b'{"card":411111111111111111111111}',
        b'{"Jane 4111":1,"Jane 4111":2}',
        b'["Jane 4111',
        b"\xff4111",
        b'"Jane 4111"' * 2,
        b"[" * 99 + b"4111" + b"]" * 99,
        UnicodeDecodeError("utf-8", b"\xffJane 4111", 0, 1, "Jane 4111"),
        ValueError("Jane 4111"),
        KeyError("Jane 4111"),
    ],
    ids=str,
)
def test_no_text_tells_what_was_in_a_seal(opened: bytes | Exception) -> None:
    with pytest.raises(CannotOpen, match="the codec failed at key k") as error:
        open_value(Broken(opened), seal(RING, b"1", RESULT), RESULT)
    told = "".join(traceback.format_exception(error.value))
    assert "4111" not in told
    assert "Jane" not in told


def begun(params: Any) -> bytes:
    """The params of a saga that is begun with these, as they are sent."""
    step = StepDefinition(transaction="Do", service="work", params=json.dumps(params, separators=(",", ":")).encode())
    return sealed_begin(RING, Begin(saga_id="s", steps=(step,))).steps[0].params


def test_what_is_sealed_in_params_is_sealed_once_with_them() -> None:
    place = Place("s", 1, "params")
    inner = json.loads(seal(RING, b'{"a":1}', place))
    sent = begun({"n": [inner, 2]})
    assert is_sealed(sent)
    assert sent == begun({"n": [{"a": 1}, 2]})
    assert open_value(RING, sent, place) == b'{"n":[{"a":1},2]}'
    assert begun(inner) == json.dumps(inner, separators=(",", ":")).encode()


def test_what_is_sealed_in_params_and_cannot_be_opened_is_refused() -> None:
    other = json.loads(seal(Keyring({"other": Keyring.new_key()}), b"1", Place("s", 1, "params")))
    with pytest.raises(MalformedMessage, match=r"params of step 1: .* key other"):
        begun([other])


def test_what_would_be_too_deep_when_it_is_opened_is_refused() -> None:
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    sealed = json.loads(seal(RING, json.dumps(deep).encode(), Place("s", 1, "params")))
    with pytest.raises(MalformedMessage, match=r"params of step 1: .* opened, it is nested deeper"):
        begun([[[[[[sealed]]]]]])


def test_what_was_sealed_is_taken_as_it_is() -> None:
    like = json.dumps({"$sealed": {"key": "k", "from": "1/result", "data": "AAAA"}}, separators=(",", ":")).encode()
    assert open_value(RING, seal(RING, like, RESULT), RESULT) == like


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[" * 50 + b"%s" + b"]" * 50, "nested deeper than 61 levels"),
        (b"[" + b",".join([b"%s"] * 4) + b"]", "too many values: 240005, at most"),
    ],
    ids=["deep", "many"],
)
def test_what_opens_into_more_than_a_payload_may_be_cannot_be_opened(data: bytes, says: str) -> None:
    part = b"[" * 60 + b"]" * 60 if says.startswith("nested") else b"[" + b",".join([b"1"] * 60_000) + b"]"
    whole = data.replace(b"%s", seal(RING, part, RESULT))
    with pytest.raises(CannotOpen, match=f"opened, it is {says}") as error:
        open_value(RING, whole, PARAMS)
    assert error.value.key == "k"


def test_as_many_sealed_values_as_there_may_be_cost_little() -> None:
    sealed = seal(RING, b"1", RESULT)
    most = b"[" + b",".join([sealed] * MAX_SEALED) + b"]"
    assert open_value(RING, most, PARAMS) == json.dumps([1] * MAX_SEALED, separators=(",", ":")).encode()
    with pytest.raises(CannotOpen, match=f"more than {MAX_SEALED}"):
        open_value(RING, b"[" + b",".join([sealed] * 10_000) + b"]", PARAMS)
    assert cpu_ms(lambda: open_value(RING, most, PARAMS), enough_ms=45) < 50


def test_a_command_without_sealed_values_stays_the_same_object() -> None:
    command = a_command()
    assert open_command(RING, command) is command
    assert command.type != STANDING


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {"saga_id": "s", "steps": None},
        {"saga_id": "s", "steps": [None, 1, {"params": 1}, {"params": {"$sealed": 1}}]},
        {"saga_id": 1, "steps": [{"params": {"$sealed": {"key": "k", "from": "1/params", "data": ""}}}]},
        {"saga_id": "s", "step": "1", "params": {"$sealed": {"key": "k", "from": "1/params", "data": ""}}},
        {"saga_id": "s", "step": 1, "params": json.loads("[" * 300 + "]" * 300)},
    ],
    ids=range(7),
)
def test_a_message_of_any_form_is_shown_as_it_is_if_nothing_in_it_opens(message: Any) -> None:
    assert opened_message(RING, message) is message
