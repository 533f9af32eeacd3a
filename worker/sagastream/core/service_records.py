"""What a record of a service says of a command. Pure.

A service keeps one *record* for each idempotency key and type of command: the answer that it gave, `ok <result>` or
`failed <error>`, in JSON, with nothing after the blank if there is none; or, for a transaction that may have been done,
`unknown <how often>`, which answers nothing. A record of a newer release, which begins with its format, is neither read
nor replaced: a process of that release takes the command.
"""

import re
from typing import Final

from sagastream.core.commands import Command, Reply, failed, ok, reply_to
from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage

#: The format of the records that this release knows. It is not written; a higher one stands before a record: `v2 ok …`.
RECORD_FORMAT: Final = 1
_FORMAT: Final = re.compile(rb"v([1-9][0-9]{0,8}) ")
_RECORD: Final = re.compile(rb"(ok|failed) (.*)", re.DOTALL)


def newer_format(record: bytes | None) -> int | None:
    """The format of a record that only a newer release can read; None: there is none, or this release can. Then nothing
    may be said of the command, and nothing done: it is handed back, whatever it is."""
    found = _FORMAT.match(record) if record is not None else None
    return int(found[1]) if found is not None and int(found[1]) > RECORD_FORMAT else None


def recorded(command: Command, record: bytes | None) -> Reply | None:
    """The reply that a record repeats; None: it answers nothing."""
    if record is None:
        return None
    match = _RECORD.fullmatch(record)
    if match is None:
        return None
    if payload := match[2] or None:
        try:
            decode(payload)
        except MalformedMessage:  # a garbled record answers nothing
            return None
    if match[1] == b"ok":
        return reply_to(command, ok(command.type), result=payload)
    return reply_to(command, failed(command.type), error=payload)
