"""The lines of an exported store: one JSON object each. A name or value is a text or, if it is not UTF-8,
`{"base64": …}`.

    {"type": "store", "protocol": 2, "prefix": …, "tags": […]}                    the first line
    {"type": "service", "service": …, "fields": [[name, value], …]}               what a service publishes
    {"type": "definition", "name": …, "fields": …}                                 all versions of a definition
    {"type": "saga", "saga_id": …, "fields": …, "timer": …, "ended": …, "ttl_ms": …}
    {"type": "records", "service": …, "hour": …, "fields": …, "ttl_ms": …}        of what a service did
    {"type": "entry", "what": …, "service": …, "partition": …, "id": …, "again": …, "fields": …}
    {"type": "end", "lines": …, "sha256": …}                    the last line; how many are before it, and their hash

`timer` and `ended` are scores, "inf" or null; `ttl_ms` is null if the key does not expire. `what` is the kind of the
stream: requests, interventions, replies, commands, quarantine. `again`: a reader holds the entry, and may have begun
with it.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage, TransferError

#: The kinds of streams, in the order in which their entries are written: an intervention comes after the begin that it
#: is about.
KINDS: Final = ("requests", "interventions", "replies", "commands", "quarantine")
#: The members of each type of line, and the types of their values.
_MEMBERS: Final[Mapping[str, Mapping[str, tuple[type, ...]]]] = {
    "store": {"protocol": (int,), "prefix": (str,), "tags": (list,)},
    "service": {"service": (str,), "fields": (list,)},
    "definition": {"name": (str,), "fields": (list,)},
    "saga": {
        "saga_id": (str,),
        "fields": (list,),
        "timer": (int, float, str, type(None)),
        "ended": (int, float, type(None)),
        "ttl_ms": (int, type(None)),
    },
    "records": {"service": (str,), "hour": (int,), "fields": (list,), "ttl_ms": (int, type(None))},
    "entry": {
        "what": (str,),
        "service": (str,),
        "partition": (int,),
        "id": (str,),
        "again": (bool,),
        "fields": (list,),
    },
    "end": {"lines": (int,), "sha256": (str,)},
}

Fields = list[tuple[bytes, bytes]]


def written(kind: str, **members: Any) -> bytes:
    """A line. `fields` is a list of pairs of bytes."""
    if "fields" in members:
        members["fields"] = [[_told(name), _told(value)] for name, value in members["fields"]]
    return orjson.dumps({"type": kind, **members}) + b"\n"


def read(line: bytes, number: int) -> dict[str, Any]:
    """A line, whose `fields` are a list of pairs of bytes again. Raises TransferError, which names the line."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise TransferError(f"line {number} is not JSON, so this is no file of sagastream export: {error}") from None
    if not isinstance(value, dict) or (members := _MEMBERS.get(str(value.get("type")))) is None:
        raise TransferError(f"line {number} is not a line of an exported store")
    for name, types in members.items():
        found = value.get(name)
        if name not in value or not isinstance(found, types) or (isinstance(found, bool) and bool not in types):
            raise TransferError(
                f"line {number}, of type {value['type']}: {name} is missing, or is not what it should be"
            )
    if value.get("what", KINDS[0]) not in KINDS:
        raise TransferError(f"line {number}: what is not one of {', '.join(KINDS)}")
    if "fields" in members:
        try:
            value["fields"] = [(_bytes(name), _bytes(content)) for name, content in value["fields"]]
        except (TypeError, ValueError, KeyError):
            raise TransferError(f"line {number}: fields is not a list of pairs of texts") from None
    return value


def saga_id_of(fields: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The saga that an entry with these fields is about; None: its body does not say."""
    try:
        body = decode(dict(fields).get(b"body", b""))
    except MalformedMessage:
        return None
    saga_id = body.get("saga_id") if isinstance(body, dict) else None
    return saga_id if isinstance(saga_id, str) else None


def _told(word: bytes) -> str | dict[str, str]:
    try:
        return word.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(word).decode()}


def _bytes(told: Any) -> bytes:
    if isinstance(told, str):
        return told.encode()
    return b64decode(told["base64"], validate=True)
