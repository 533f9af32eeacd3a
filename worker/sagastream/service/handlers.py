"""Calls a handler once, and makes the reply of what it returns or rejects.

A Reject becomes a reply. Every other exception propagates, and is a failure of the handler, whatever its class: its
process must not end by what one command does. MalformedMessage says that the result is not JSON: to call
the handler again would not help.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sagastream.console import printable
from sagastream.core.commands import Command, Reply, failed, ok, reply_to
from sagastream.core.strict_json import encode, encode_payload, value_of
from sagastream.core.typed_values import Model
from sagastream.errors import MalformedMessage, Reject
from sagastream.service import typed_params
from sagastream.service.context import Context, Handler
from sagastream.telemetry import handled, handling


class Interrupted(BaseException):
    """Raised into a handler from outside, to end it. It is the one thing that comes out of a handler and is not a
    failure of it."""


def call(handler: Handler, command: Command, context: Context, model: Model | None = None) -> Reply:
    """Call a plain handler. `model`: the class that it names for its params."""
    try:
        token = handling(command)
        try:
            result = handler(_params(command, model), context)
        finally:
            handled(token)
    except Reject as rejection:
        return _rejected(command, rejection)
    return _returned(command, result)


async def call_async(handler: Handler, command: Command, context: Context, model: Model | None = None) -> Reply:
    """Call a handler that is declared with async def. `model`: as for `call`."""
    try:
        token = handling(command)
        try:
            result = await handler(_params(command, model), context)
        finally:
            handled(token)
    except Reject as rejection:
        return _rejected(command, rejection)
    return _returned(command, result)


def context_of(command: Command, clock: Callable[[], float] = time.time, key: str | None = None) -> Context:
    """What a handler is told of this command.

    Args:
        clock: the time in seconds since the epoch, by the broker's clock.
        key: the idempotency key, if it is not the command's own.
    """
    transaction_key = command.transaction_key
    return Context(
        saga_id=command.saga_id,
        step=command.step,
        key=key or (command.key if command.compensating else transaction_key),
        transaction_key=transaction_key,
        attempt=command.attempt,
        deadline=_moment(command.not_after_ms),
        result=_value(command.result),
        undo=_value(command.undo),
        input=_value(command.input),
        definition=command.definition,
        retried=command.retried,
        clock=clock,
    )


def _value(data: bytes | None) -> Any:
    return None if data is None else value_of(data)


def _params(command: Command, model: Model | None) -> Any:
    """The params as the handler takes them. Raises Reject if they do not fit."""
    return value_of(command.params) if model is None else typed_params.read(model, command.params)


def _moment(ms: int | None) -> datetime | None:
    if ms is None:
        return None
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError):  # a stray message may name a year that a datetime cannot hold
        return None


def _returned(command: Command, result: Any) -> Reply:
    if command.compensating or result is None:
        return reply_to(command, ok(command.type))
    return reply_to(command, ok(command.type), result=encode_payload(result))


def error_of(rejection: Reject) -> bytes:
    """The error of a Reject, as JSON; if it cannot be written as JSON, its repr."""
    try:
        return encode_payload(rejection.error)
    except MalformedMessage:
        return encode(printable(repr(rejection.error)[:500]))


def _rejected(command: Command, rejection: Reject) -> Reply:
    return reply_to(command, failed(command.type), error=error_of(rejection))
