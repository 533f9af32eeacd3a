"""From JSON to values and back, strictly. External input is parsed here, once, at the boundary."""

import gc
import json
import math
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import accumulate
from typing import Any, Final

import msgspec
import orjson

from sagastream.core.json_values import plain
from sagastream.errors import MalformedMessage

#: The largest text that is read, in bytes.
MAX_BYTES: Final = 1 << 20
#: The largest text that it may become when it is written again, in bytes: 1e15 is written as 1000000000000000.0.
MAX_REWRITTEN_BYTES: Final = 4 * MAX_BYTES
#: The largest params, result or error, in bytes, so that a body with the other members is still small enough.
MAX_PAYLOAD_BYTES: Final = MAX_BYTES - 1024
#: How deep arrays and objects may nest.
MAX_DEPTH: Final = 64
#: How many values a text may hold, and how many of them may be objects. A text of the largest size can hold 500,000
#: values, and nested objects are the dearest: reading those would hold a process up for half a second.
MAX_VALUES: Final = 100_000
MAX_OBJECTS: Final = 50_000
#: … besides a payload, the members of a body.
_OTHER_MEMBERS: Final = 16
#: A text that is longer than this may hold so many values that it pays to think of them. Of such a text it is not said
#: which key occurs twice: finding it costs more than reading the text.
_LONG_BYTES: Final = 1 << 15
_BLANKS: Final = b" \t\n\r"
#: Brackets as steps up and down, and everything else.
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[{]}"))
#: Checks the syntax of a text, and builds nothing.
_SYNTAX: Final = msgspec.json.Decoder(msgspec.Raw)
#: Only with so many digits in a row can there be an integer over 64 bits. Any digit counts as a zero: a search for one
#: text is ten times as fast as a search for a pattern.
_MANY_DIGITS: Final = b"0" * 19
_ZEROS: Final = bytes.maketrans(b"123456789", b"000000000")
#: Such integers, outside of strings.
_LONG_INTEGER: Final = re.compile(rb"(?<![0-9.eE+-])(?:-[0-9]{19,}|[0-9]{20,})(?![0-9.eE])")


def encode(value: object) -> bytes:
    """A message, or a value that was decoded before, as compact JSON."""
    return orjson.dumps(value)


def trimmed(text: bytes) -> bytes:
    """A copy of encoded text, for what is kept: orjson allocates 4 kB for each text, however short it is."""
    return b"".join((text, b""))


def encode_payload(value: object) -> bytes:
    """A value that a user's code gave (params, result, error) as compact JSON.

    Other types than JSON's are written where that is usual and loses nothing: dataclasses, attrs classes, Structs and
    pydantic models as objects, datetime, date and time in ISO form, Decimals and UUIDs as texts, Enums as their values.

    Raises MalformedMessage for what JSON cannot hold (NaN, infinities, integers over 64 bits, other types) and for what
    is too large or too deep for a message, or holds too many values.
    """
    try:
        data = orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME)
    except orjson.JSONEncodeError:  # only now: this costs nothing where a value is of JSON's own types
        value = plain(value, MAX_DEPTH - 3)
        try:
            data = orjson.dumps(value)
        except orjson.JSONEncodeError as error:
            raise MalformedMessage(f"not JSON: {error}") from None
    # orjson writes NaN as null, which would change a payload silently.
    if b"null" in data and not _is_finite(value):
        raise MalformedMessage("not JSON: it has no NaN and no infinities")
    check_payload(data)
    return data


def check_payload(data: bytes) -> None:
    """Check that a JSON text may be a payload: that a body holds it, with the other members. Raises MalformedMessage if
    it is too large or too deep, or holds too many values."""
    if len(data) > MAX_PAYLOAD_BYTES:
        raise MalformedMessage(f"too large: {len(data)} bytes, at most {MAX_PAYLOAD_BYTES}")
    if (complaint := _too_many(data, MAX_VALUES - _OTHER_MEMBERS)) is not None:
        raise MalformedMessage(complaint)
    _check_depth(data, MAX_DEPTH - 3)


def decode(data: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text. Raises MalformedMessage, which says what is wrong and where.

    This is stricter than JSON: no duplicate keys, no integers over 64 bits, at most MAX_DEPTH levels, MAX_VALUES
    values, MAX_OBJECTS objects and `max_bytes` bytes. The time is linear in the size, whatever the text says.
    """
    if len(data) > max_bytes:
        raise MalformedMessage(f"too large: {len(data)} bytes, at most {max_bytes}")
    if (complaint := _too_many(data, MAX_VALUES)) is not None:
        raise MalformedMessage(_complaint_about_syntax(data) or complaint)
    try:
        value = value_of(data)
    except orjson.JSONDecodeError as error:
        raise MalformedMessage(f"not JSON: {error if data.strip() else 'the input is empty'}") from None
    _check_depth(data, MAX_DEPTH)
    # If writing the value gives the same text, reading it lost nothing. sagastream's own services write such texts, so
    # the slow checks are only needed for texts of others.
    if (written := orjson.dumps(value)) != data:
        _check_lossless(data, written)
    return value


def value_of(data: bytes) -> Any:
    """The value of a text that was checked before, a new one each time."""
    if len(data) <= _LONG_BYTES:
        return orjson.loads(data)
    with collector_paused():
        return orjson.loads(data)


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage is collected within. After each few hundred containers the collector would look for garbage, in the
    end in all objects of the process. For a long text that takes longer than the reading, and finds nothing."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def decode_any(data: bytes) -> Any:
    """The value of a text that was refused, to tell what it was: of two equal keys, the last one counts. None: it is
    not JSON, or would take too long to read."""
    try:
        return None if _too_many(data, MAX_VALUES) else value_of(data)
    except orjson.JSONDecodeError:
        return None


def _too_many(data: bytes, most_values: int) -> str | None:
    """The complaint about a text that holds too many values to be read. In a text that is not JSON, all up to the fault
    is counted right."""
    # Each value but the first comes after one of these. They stand in strings too.
    if len(data) <= _LONG_BYTES or data.count(b",") + data.count(b"[") + data.count(b"{") < MAX_OBJECTS:
        return None
    text = outside_strings(data)
    objects = text.count(b"{")
    empty = text.count(b"[]") + text.count(b"{}")
    values = 1 + text.count(b",") + text.count(b"[") + objects - empty
    if values > most_values:
        return f"too many values: {values}, at most {most_values}"
    return f"too many objects: {objects}, at most {MAX_OBJECTS}" if objects > MAX_OBJECTS else None


def check_syntax(data: bytes) -> None:
    """Raises ValueError if this is not JSON. A long text is not read for that."""
    if len(data) <= _LONG_BYTES:
        orjson.loads(data)
        return
    data.decode()
    try:
        _SYNTAX.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _complaint_about_syntax(data: bytes) -> str | None:
    try:
        check_syntax(data)
    except ValueError as error:
        return f"not JSON: {error}"
    return None


def _check_depth(data: bytes, levels: int) -> None:
    """Of a text that is JSON."""
    if data.count(b"[") + data.count(b"{") <= levels:
        return
    steps = array("b", outside_strings(data).translate(_STEPS, _NO_BRACKETS))
    if max(accumulate(steps), default=0) > levels:
        raise MalformedMessage(f"nested deeper than {levels} levels")


def _check_lossless(data: bytes, written: bytes) -> None:
    """Whether a text that is JSON lost nothing when it was read and written again."""
    # Of two equal keys only the last is written, so strings are missing.
    if _without_escapes(data).count(b'"') != _without_escapes(written).count(b'"'):
        if len(data) <= _LONG_BYTES:
            json.loads(data, object_pairs_hook=_unique, parse_int=str)
        raise MalformedMessage("a key occurs twice in one object")
    if _MANY_DIGITS in data.translate(_ZEROS):
        for digits in _LONG_INTEGER.finditer(outside_strings(data)):
            _check_64_bits(digits[0].decode())


def _without_escapes(text: bytes) -> bytes:
    """A JSON text without the escapes in which a quote stands for itself."""
    return text.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in text else text


def outside_strings(text: bytes) -> bytes:
    """A JSON text without blanks, and with a 0 in place of each string."""
    return b"0".join(_without_escapes(text).split(b'"')[::2]).translate(None, _BLANKS)


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Enum):
        return _is_finite(value.value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list | tuple) else True


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise MalformedMessage(f"the key {key[:128]!a} occurs twice in one object")
        seen.add(key)


def _check_64_bits(digits: str) -> None:
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < (1 << 64):
        raise MalformedMessage(f"the integer {digits[:24]}{'…' if len(digits) > 24 else ''} does not fit into 64 bits")
