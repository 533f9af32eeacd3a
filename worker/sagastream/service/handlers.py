"""Calling a handler once, and what its return or rejection becomes: the reply.

Both forms raise what the handler raises but for Reject, and MalformedMessage where its result is no JSON: to call it
again would not mend that.
"""

from typing import Any

import orjson

from sagastream.console import printable
from sagastream.core.messages import Command, Reply, failed, ok, reply_to
from sagastream.core.strict_json import encode, encode_payload
from sagastream.errors import MalformedMessage, Reject
from sagastream.service.declaration import Context, Handler


def call(handler: Handler, command: Command, context: Context) -> Reply:
    """Call a plain handler."""
    try:
        result = handler(orjson.loads(command.params), context)
    except Reject as rejection:
        return _rejected(command, rejection)
    return _returned(command, result)


async def call_async(handler: Handler, command: Command, context: Context) -> Reply:
    """Call a handler that is declared with async def."""
    try:
        result = await handler(orjson.loads(command.params), context)
    except Reject as rejection:
        return _rejected(command, rejection)
    return _returned(command, result)


def _returned(command: Command, result: Any) -> Reply:
    if command.compensating or result is None:
        return reply_to(command, ok(command.type))
    return reply_to(command, ok(command.type), result=encode_payload(result))


def error_of(rejection: Reject) -> bytes:
    """What a Reject tells, as JSON; where it is no JSON, what it looks like."""
    try:
        return encode_payload(rejection.error)
    except MalformedMessage:
        return encode(printable(repr(rejection.error)[:500]))


def _rejected(command: Command, rejection: Reject) -> Reply:
    return reply_to(command, failed(command.type), error=error_of(rejection))
