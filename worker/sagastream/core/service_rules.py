"""What a service does with a command that it may have seen before, or that was undone before it came. Pure.

A service keeps, by idempotency key and type of the command, a *record* of the answer that it gave: `ok <result>` or
`failed <error>`, in JSON, with nothing after the blank where there is none; or, of a transaction that may have been
done, `unknown <how often>`, which answers nothing. Before it undoes a step it leaves a *tombstone* for the step's
transaction: from then on that is refused, and whoever was at it meanwhile has to undo what came of it. answer.lua has
the same rules for the moment in which an answer is given.
"""

import re
from typing import Final

from msgspec import Struct

from sagastream.core.messages import Command, Reply, failed, ok, reply_to
from sagastream.core.strict_json import decode, encode
from sagastream.errors import MalformedMessage

#: How often a handler is called that raises something other than Reject, before the reply says `unknown`.
TRIES: Final = 3
#: How many processes may begin with a command and die, or hang for longer than the lease, before its outcome is said to
#: be unknown: a command that kills whoever works on it must not do so for ever.
MAX_TAKEOVERS: Final = 10

_RECORD: Final = re.compile(rb"(ok|failed) (.*)", re.DOTALL)


class Verdict(Struct, frozen=True, kw_only=True):
    """What is to be done with a command that was delivered: without a reply, call its handler."""

    reply: Reply | None = None  # the answer, without the handler …
    undo: bool = False  # … once what an earlier delivery may have done is undone


def verdict(command: Command, *, record: bytes | None, tombstone: bool, again: bool) -> Verdict:
    """What is to be done with a command.

    Args:
        record: what is recorded under `command.record`.
        tombstone: whether the step's compensation has come already.
        again: whether it was delivered before: somebody may have been at it.
    """
    reply = _recorded(command, record)
    if reply is None and tombstone and not command.compensating:
        reply = refusal(command)
    # Also where an ok is recorded: that was of another delivery, and this one may have been done after the undo.
    undo = reply is not None and not command.compensating and (tombstone or reply.type == failed(command.type))
    return Verdict(reply=reply, undo=undo and again)


def stale(command: Command, now_ms: int) -> Reply | None:
    """The reply to a command that nobody waits for any more, by the broker's clock; None: it is in time."""
    if command.not_after_ms is None or now_ms <= command.not_after_ms:
        return None
    text = f"{command.type} came {now_ms - command.not_after_ms} ms too late, and was not begun"
    return reply_to(command, failed(command.type), error=encode(text), unknown=True)


def gave_up(command: Command, takeovers: int) -> Reply:
    """The reply to a command that kills whoever works on it."""
    text = f"{takeovers} processes took {command.type} and did not live to answer it"
    return reply_to(command, failed(command.type), error=encode(text), unknown=True)


def refusal(command: Command) -> Reply:
    """The reply to a command whose step was undone before it came."""
    text = f"cancelled: {command.type} came after its compensation"
    return reply_to(command, failed(command.type), error=encode(text))


def kind(command: Command, reply: Reply) -> str:
    """What answer.lua makes of a handler's reply: what is recorded is the last word."""
    if reply.type == ok(command.type):
        return "ok"
    return "unknown" if reply.unknown or command.retried else "failed"


def _recorded(command: Command, record: bytes | None) -> Reply | None:
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
