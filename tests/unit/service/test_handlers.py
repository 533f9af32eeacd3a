"""What a handler is told, and what becomes of its result or its rejection."""

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from sagastream.core.commands import Reply
from sagastream.core.strict_json import MAX_PAYLOAD_BYTES, decode
from sagastream.errors import MalformedMessage, Reject
from sagastream.service.context import Context, Handler
from sagastream.service.handlers import call, call_async, context_of
from support.values import a_charge

# --- what a handler is told


def test_a_handler_is_told_the_same_key_at_every_attempt() -> None:
    assert context_of(a_charge(), time.time) == Context(
        saga_id="saga42",
        step=2,
        key="saga42/2/transaction",
        transaction_key="saga42/2/transaction",
        attempt=3,
        result=None,
    )


def test_a_handler_is_told_until_when_its_answer_is_waited_for() -> None:
    assert context_of(a_charge(), time.time).deadline is None
    command = replace(a_charge(), not_after_ms=1_700_000_000_250)
    assert context_of(command, time.time).deadline == datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)


def test_the_time_that_remains_goes_by_the_clock_of_the_broker_and_runs_out() -> None:
    now_s = 1_700_000_000.0
    context = context_of(a_charge(not_after_ms=1_700_000_060_000), lambda: now_s)
    assert context.remaining_s == 60.0
    now_s += 59.5
    assert context.remaining_s == 0.5
    now_s += 3600
    assert context.remaining_s == 0.0
    assert context_of(a_charge(not_after_ms=None), lambda: now_s).remaining_s is None


def test_a_context_that_a_test_makes_goes_by_the_clock_of_the_machine() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=60)
    context = Context(saga_id="s", step=1, key="k", transaction_key="k", attempt=1, deadline=soon)
    assert context.remaining_s == pytest.approx(60, abs=5)


def test_a_deadline_that_no_calendar_has_is_none() -> None:
    assert context_of(replace(a_charge(), not_after_ms=2**62), time.time).deadline is None


def test_a_compensation_is_told_the_key_and_the_result_of_what_it_undoes() -> None:
    context = context_of(replace(a_charge(compensating=True), result=b'{"payment_id":"p1"}'), time.time)
    assert context.key == "saga42/2/compensation"
    assert context.transaction_key == context_of(a_charge(), time.time).key
    assert context.result == {"payment_id": "p1"}


def test_a_handler_is_told_the_input_of_its_saga_and_the_name_of_its_definition() -> None:
    context = context_of(replace(a_charge(), input=b'{"user":"u1"}', definition="order"), time.time)
    assert (context.input, context.definition, context.undo) == ({"user": "u1"}, "order", None)
    context = context_of(a_charge(), time.time)
    assert (context.input, context.definition) == (None, None)


def test_a_compensation_is_told_what_the_saga_tells_it() -> None:
    context = context_of(replace(a_charge(compensating=True), undo=b'{"why":"full"}'), time.time)
    assert context.undo == {"why": "full"}


# --- what becomes of it


def called(handler: Handler, *, compensating: bool = False) -> Reply:
    """The reply of a plain handler, and of an async one that does the same: the two must not differ."""
    command = a_charge(compensating=compensating)
    context = context_of(command, time.time)

    async def handle(params: Any, context: Context) -> Any:
        return handler(params, context)

    reply = call(handler, command, context)
    assert asyncio.run(call_async(handle, command, context)) == reply
    return reply


def rejecting(error: object) -> Reply:
    def handle(params: Any, context: Context) -> None:
        raise Reject(error)

    return called(handle)


def test_what_a_handler_returns_is_the_result() -> None:
    reply = called(lambda params, context: {"got": params, "key": context.key})
    assert (reply.type, reply.saga_id, reply.step, reply.error, reply.unknown) == (
        "Charge_ok",
        "saga42",
        2,
        None,
        False,
    )
    assert orjson.loads(reply.result or b"") == {"got": {"n": 2**64 - 1}, "key": "saga42/2/transaction"}


def test_a_handler_that_returns_nothing_gives_no_result() -> None:
    assert called(lambda params, context: None).body() == (b'{"type":"Charge_ok","saga_id":"saga42","step":2}')


@pytest.mark.parametrize("value", [False, 0, "", [], {}])
def test_what_is_empty_is_a_result_all_the_same(value: object) -> None:
    assert orjson.loads(called(lambda params, context: value).result or b"") == value


def test_the_result_of_a_compensation_is_not_told() -> None:
    assert called(lambda params, context: {"a": 1}, compensating=True).body() == (
        b'{"type":"Refund_ok","saga_id":"saga42","step":2}'
    )


def test_a_rejection_is_a_failed_reply_with_its_error() -> None:
    assert rejecting("insufficient_funds").body() == (
        b'{"type":"Charge_failed","saga_id":"saga42","step":2,"error":"insufficient_funds"}'
    )
    assert rejecting({"code": 7}).error == b'{"code":7}'
    assert not rejecting("no").unknown


@pytest.mark.parametrize("error", [math.nan, {1, 2}, "x" * (MAX_PAYLOAD_BYTES + 1), ValueError("bad"), 2**64])
def test_a_rejection_whose_error_no_message_can_carry_is_still_one(error: object) -> None:
    reply = rejecting(error)
    assert reply.type == "Charge_failed"
    assert decode(reply.body())["error"].startswith(repr(error)[:100])


def test_a_rejection_with_a_lone_surrogate_is_still_one() -> None:
    class Odd:
        def __repr__(self) -> str:
            return "\ud800"

    assert rejecting(Odd()).type == "Charge_failed"


def test_a_result_that_no_message_can_carry_is_no_result() -> None:
    command = a_charge()

    async def handle(params: Any, context: Context) -> object:
        return math.nan

    with pytest.raises(MalformedMessage):
        call(lambda params, context: {"amount": math.nan}, command, context_of(command, time.time))
    with pytest.raises(MalformedMessage):
        asyncio.run(call_async(handle, command, context_of(command, time.time)))


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt()])
def test_what_else_a_handler_raises_is_the_callers(error: BaseException) -> None:
    command = a_charge()

    def handle(params: Any, context: Context) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        call(handle, command, context_of(command, time.time))
    assert caught.value is error
