"""The one strict way from JSON to values and back. Whatever comes from outside is read here."""

import json
import math
from enum import Enum
from typing import Any, Final

import orjson

from sagastream.errors import MalformedMessage

#: The largest text that is read, in bytes.
MAX_BYTES: Final = 1 << 20
#: The largest text that it may become when it is written again: 1e15 is written as 1000000000000000.0.
MAX_REWRITTEN_BYTES: Final = 4 * MAX_BYTES
#: The largest params, result or error, so that it fits into a body with the rest of it, in bytes.
MAX_PAYLOAD_BYTES: Final = MAX_BYTES - 1024
#: How deep arrays and objects may nest.
MAX_DEPTH: Final = 64


def encode(value: object) -> bytes:
    """A message, or a value that was decoded, as compact JSON."""
    return orjson.dumps(value)


def trimmed(text: bytes) -> bytes:
    """A text that was encoded, to be kept: orjson gives each 4 kB of memory, however short it is."""
    return b"".join((text, b""))


def encode_payload(value: object) -> bytes:
    """A value that a user's code gave (params, result, error) as compact JSON.

    Raises MalformedMessage for what JSON cannot say (NaN and infinities, integers over 64 bits, other types; a UUID
    and the value of an Enum are let pass) and for what no message could carry.
    """
    try:
        data = orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME)
    except orjson.JSONEncodeError as error:
        raise MalformedMessage(f"not JSON: {error}") from None
    # orjson writes NaN as null, which would change a payload in silence.
    if b"null" in data and not _is_finite(value):
        raise MalformedMessage("not JSON: NaN and infinities have no place in it")
    if len(data) > MAX_PAYLOAD_BYTES:
        raise MalformedMessage(f"too large: {len(data)} bytes, at most {MAX_PAYLOAD_BYTES}")
    if _too_deep(data, value, MAX_DEPTH - 3):
        raise MalformedMessage(f"nested deeper than {MAX_DEPTH - 3} levels")
    return data


def decode(data: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text, or MalformedMessage with what is wrong and where.

    Stricter than its parser: no duplicate keys, no integers outside 64 bits, no more than MAX_DEPTH levels and
    `max_bytes` bytes.
    """
    if len(data) > max_bytes:
        raise MalformedMessage(f"too large: {len(data)} bytes, at most {max_bytes}")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise MalformedMessage(f"not JSON: {error}") from None
    if _too_deep(data, value, MAX_DEPTH):
        raise MalformedMessage(f"nested deeper than {MAX_DEPTH} levels")
    # A text that is written back the same has lost nothing in reading. Our own services write such texts, so the
    # slow, careful reading is for strangers.
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
        raise MalformedMessage(f"the key {twice[:128]!a} stands twice in one object")
    return members


def _int64(digits: str) -> int:
    if len(digits) <= 20 and -(1 << 63) <= (number := int(digits)) < (1 << 64):
        return number
    raise MalformedMessage(f"the integer {digits[:24]}{'…' if len(digits) > 24 else ''} does not fit into 64 bits")
