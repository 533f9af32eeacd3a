"""From JSON to values and back, strictly. External input is parsed here, once, at the boundary."""

import json
import math
from enum import Enum
from typing import Any, Final

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
    is too large or too deep for a message.
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
    if len(data) > MAX_PAYLOAD_BYTES:
        raise MalformedMessage(f"too large: {len(data)} bytes, at most {MAX_PAYLOAD_BYTES}")
    if _too_deep(data, value, MAX_DEPTH - 3):
        raise MalformedMessage(f"nested deeper than {MAX_DEPTH - 3} levels")
    return data


def decode(data: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text. Raises MalformedMessage, which says what is wrong and where.

    This is stricter than JSON: no duplicate keys, no integers over 64 bits, at most MAX_DEPTH levels and `max_bytes`
    bytes.
    """
    if len(data) > max_bytes:
        raise MalformedMessage(f"too large: {len(data)} bytes, at most {max_bytes}")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise MalformedMessage(f"not JSON: {error if data.strip() else 'the input is empty'}") from None
    if _too_deep(data, value, MAX_DEPTH):
        raise MalformedMessage(f"nested deeper than {MAX_DEPTH} levels")
    # If writing the value gives the same text, reading it lost nothing. sagastream's own services write such texts, so
    # the slow checks are only needed for texts of others.
    if orjson.dumps(value) != data:
        json.loads(data, object_pairs_hook=_unique, parse_int=_int64)
    return value


def _too_deep(data: bytes, value: object, levels: int) -> bool:
    if data.count(b"[") + data.count(b"{") <= levels:
        return False
    rest = [(value, 1)]
    while rest:
        item, depth = rest.pop()
        if isinstance(item, dict | list | tuple):
            if depth > levels:
                return True
            rest.extend((child, depth + 1) for child in (item.values() if isinstance(item, dict) else item))
    return False


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Enum):
        return _is_finite(value.value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list | tuple) else True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise MalformedMessage(f"the key {twice[:128]!a} occurs twice in one object")
    return members


def _int64(digits: str) -> int:
    if len(digits) <= 20 and -(1 << 63) <= (number := int(digits)) < (1 << 64):
        return number
    raise MalformedMessage(f"the integer {digits[:24]}{'…' if len(digits) > 24 else ''} does not fit into 64 bits")
