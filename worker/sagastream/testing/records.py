"""What recall.lua and answer.lua do to a service's records, in Python, without a server. Pure.

The explorer of tests/exploration stands on it too, and its test_mirror.py has the same calls made to the scripts on
real servers and to these functions, and compares.
"""

from collections.abc import Mapping

import orjson
from msgspec import Struct

#: One hash of a service's records: field -> value.
Records = Mapping[str, bytes]


class Recalled(Struct, frozen=True):
    """What recall.lua answers of one command, and the hash after it."""

    record: bytes | None
    tombstone: bool
    records: Records


def recall(records: Records, *, record: str, tombstone: str, compensating: bool) -> Recalled:
    after = dict(records)
    if compensating:
        after.setdefault(tombstone, b"1")
    return Recalled(record=after.get(record), tombstone=tombstone in after, records=after)


class Answered(Struct, frozen=True):
    """What answer.lua does about one command. `sent`: the body of the reply; None: overruled, nothing was written."""

    sent: bytes | None
    records: Records
    in_doubt: bool = False  # a failure that is sent as unknown


def answer(records: Records, *, record: str, tombstone: str, seen: bytes, kind: str, body: bytes) -> Answered:
    """`tombstone`: "" for a compensation. `seen`: the record when it was looked up. `kind`: ok, failed, unknown or
    final."""
    there = records.get(record, b"")
    before, _, rest = there.partition(b" ")
    recorded = rest if before in (b"ok", b"failed") and _is_reply(rest) else b""
    times = int(rest) if before == b"unknown" and rest.isdigit() else 0
    has_failed = before == b"failed" and recorded
    if tombstone and kind in ("ok", "unknown") and (has_failed or tombstone in records):
        return Answered(sent=None, records=records)
    if recorded:
        return Answered(sent=recorded, records=records)
    if kind == "unknown" and tombstone:
        return Answered(sent=body, records={**records, record: b"unknown %d" % (times + 1)})
    if kind == "failed" and times and there != seen:
        return Answered(sent=body, records=records, in_doubt=True)
    if kind in ("ok", "failed"):
        return Answered(sent=body, records={**records, record: kind.encode() + b" " + body})
    return Answered(sent=body, records=records)


def _is_reply(body: bytes) -> bool:
    """Whether the body of a record is one: a garbled one answers nothing."""
    try:
        reply = orjson.loads(body)
    except ValueError:
        return False
    return isinstance(reply, dict) and isinstance(reply.get("type"), str)
