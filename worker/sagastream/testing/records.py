"""What recall.lua and answer.lua do to a service's records, in Python, without a server. Pure.

The explorer in tests/exploration uses these functions too. Its test_mirror.py makes the same calls to the scripts on
real servers and to these functions, and compares the results.
"""

from collections.abc import Mapping

from msgspec import Struct

from sagastream.core.commands import Reply
from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage

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
    """What answer.lua does with the answer to one command. `sent`: the body of the reply; None: the answer was
    overruled, and nothing was written."""

    sent: bytes | None
    records: Records
    in_doubt: bool = False  # a failure that is sent as unknown


def answer(
    records: Records, *, record: str, tombstone: str, seen: bytes, kind: str, payload: bytes, body: bytes
) -> Answered:
    """
    Args:
        tombstone: "" for a compensation.
        seen: the record when it was looked up; b"" if there was none.
        kind: as in service_actions.Answer.
        payload: what is recorded besides the kind: the result or the error that is in `body`.
    """
    there = records.get(record, b"")
    before, blank, rest = there.partition(b" ")
    recorded = _body(record, before.decode(), rest) if before in (b"ok", b"failed") and blank else None
    times = int(rest) if before == b"unknown" and rest.isdigit() else 0
    has_failed = before == b"failed" and recorded is not None
    if tombstone and kind in ("ok", "unknown") and (has_failed or tombstone in records):
        return Answered(sent=None, records=records)
    if recorded is not None:
        return Answered(sent=recorded, records=records)
    if kind == "unknown" and tombstone:
        return Answered(sent=body, records={**records, record: b"unknown %d" % (times + 1)})
    if kind == "failed" and times and there != seen:
        return Answered(sent=body, records=records, in_doubt=True)
    if kind in ("ok", "failed"):
        return Answered(sent=body, records={**records, record: kind.encode() + b" " + payload})
    return Answered(sent=body, records=records)


def _body(record: str, kind: str, payload: bytes) -> bytes | None:
    """The body of the reply that a record stands for; None: the record is garbled, and stands for none."""
    saga_id, step, _, name = record.split("/")
    try:
        decode(payload or b"null")
    except MalformedMessage:
        return None
    result, error = (payload, b"") if kind == "ok" else (b"", payload)
    reply = Reply(type=f"{name}_{kind}", saga_id=saga_id, step=int(step), result=result or None, error=error or None)
    return reply.body()
