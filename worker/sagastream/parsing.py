"""Reading messages strictly: out of the entries of streams, and out of decoded bodies.

Whoever reads an entry gets the message that it holds or, where it holds none, an Unreadable that says what is wrong,
and where.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from sagastream.errors import MalformedMessage
from sagastream.messages import (
    AS_PUBLISHED,
    ID_PATTERN,
    MAX_STEPS,
    REPLY_PATTERN,
    Begin,
    Code,
    Command,
    Reply,
    StepDefinition,
    Unreadable,
    is_id,
)
from sagastream.strict_json import MAX_BYTES, MAX_REWRITTEN_BYTES, decode, encode, encode_payload

_D = TypeVar("_D", None, bytes)


def read_request(fields: Mapping[bytes, bytes]) -> Begin | Unreadable:
    """The entry of the requests stream."""
    request_id = None
    try:
        request_id = _request_id(fields)
        body = decode(fields.get(b"body", b""))
        if (kind := _type_of(body)) != "saga_begin":
            text = f"the orchestrator knows no request {kind}"
            return Unreadable(code=Code.NOT_SUPPORTED, text=text, request_id=request_id)
        return parse_begin(body, request_id=request_id, trace=b"trace" in fields)
    except MalformedMessage as error:
        return Unreadable(code=Code.MALFORMED, text=str(error), request_id=request_id)


def read_reply(fields: Mapping[bytes, bytes]) -> Reply | Unreadable:
    """The entry of the replies stream."""
    try:
        return parse_reply(decode(fields.get(b"body", b"")), unknown=b"unknown" in fields)
    except MalformedMessage as error:
        return Unreadable(code=Code.MALFORMED, text=str(error))


def read_command(service: str, fields: Mapping[bytes, bytes], sent_ms: int) -> Command | Unreadable:
    """The entry of a service's commands stream. `sent_ms`: when it was added, for entries made by hand."""
    try:
        return _parse_command(service, fields, sent_ms)
    except MalformedMessage as error:
        return Unreadable(code=Code.MALFORMED, text=str(error))


def parse_begin(body: Any, *, request_id: str | None = None, trace: bool = False) -> Begin:
    """A decoded saga_begin body, checked; MalformedMessage says what is wrong and where."""
    _object(body, "the body", {"type", "msg_id", "saga_id", "steps"})
    if body.get("type", "saga_begin") != "saga_begin":
        raise MalformedMessage("type is not saga_begin")
    saga_id = _name(body, "saga_id", "the body")
    steps = body.get("steps")
    if not isinstance(steps, list) or not 1 <= len(steps) <= MAX_STEPS:
        raise MalformedMessage(f"steps must be a list of 1 to {MAX_STEPS}")
    definitions = tuple(_parse_step(step, f"steps[{index}]") for index, step in enumerate(steps))
    begin = Begin(saga_id=saga_id, steps=definitions, request_id=request_id, trace=trace)
    if sum(len(step.params) for step in definitions) > MAX_BYTES // 2 and len(begin.body()) > MAX_BYTES:
        # A number may be longer in the one way in which we write it.
        raise MalformedMessage(f"too large: {len(begin.body())} bytes, at most {MAX_BYTES}")
    return begin


def parse_reply(body: Any, *, unknown: bool = False) -> Reply:
    """A decoded reply body, checked. Members that the protocol does not name are ignored: the effect has happened
    whatever else a service likes to add."""
    return Reply(
        type=_type_of(body),
        saga_id=_name(body, "saga_id", "the body"),
        step=_step_number(body),
        result=encode(body["result"]) if "result" in body else None,
        error=encode(body["error"]) if "error" in body else None,
        unknown=unknown,
    )


def _parse_command(service: str, fields: Mapping[bytes, bytes], sent_ms: int) -> Command:
    body = decode(fields.get(b"body", b""))
    _object(body, "the body", None)
    compensating = body.get("compensating", False)
    if not isinstance(compensating, bool):
        raise MalformedMessage("compensating must be true or false")
    try:
        attempt, begun_ms = int(fields.get(b"attempt", 1)), int(fields.get(b"begun_ms", sent_ms))
    except ValueError:
        raise MalformedMessage("attempt and begun_ms must be whole numbers") from None
    return Command(
        service=service,
        type=_name(body, "type", "the body"),
        saga_id=_name(body, "saga_id", "the body"),
        step=_step_number(body),
        params=_payload(fields, b"params", b"null") if compensating else encode(body.get("params")),
        result=_payload(fields, b"result", None),
        compensating=compensating,
        attempt=attempt,
        begun_ms=begun_ms,
    )


def _payload(fields: Mapping[bytes, bytes], name: bytes, default: _D) -> bytes | _D:
    if name not in fields:
        return default
    decode(fields[name], MAX_REWRITTEN_BYTES)
    return fields[name]


def _request_id(fields: Mapping[bytes, bytes]) -> str | None:
    if b"request_id" not in fields:
        return None
    request_id = fields[b"request_id"].decode(errors="replace")
    if not is_id(request_id):
        raise MalformedMessage("request_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    return request_id


def _parse_step(step: Any, where: str) -> StepDefinition:
    _object(step, where, {"transaction", "service", "params", "compensation"})
    transaction = _name(step, "transaction", where)
    compensation: str | None = AS_PUBLISHED
    if "compensation" in step:
        compensation = None if step["compensation"] is None else _name(step, "compensation", where)
        if compensation == transaction:
            raise MalformedMessage(f"{where}: a transaction cannot be its own compensation")
    return StepDefinition(
        transaction=transaction,
        service=_name(step, "service", where),
        params=encode_payload(step.get("params")),
        compensation=compensation,
    )


def _object(value: Any, where: str, known: set[str] | None) -> None:
    if not isinstance(value, dict):
        raise MalformedMessage(f"{where} is not a JSON object")
    if known is not None and (strange := sorted(value.keys() - known)):
        raise MalformedMessage(f"{where} has an unknown member {strange[0][:128]!a}")


def _name(value: dict[str, Any], key: str, where: str, pattern: re.Pattern[str] = ID_PATTERN) -> str:
    name = value.get(key)
    if not isinstance(name, str) or not pattern.fullmatch(name):
        allowed = f"1 to {135 if pattern is REPLY_PATTERN else 128} characters of A-Z a-z 0-9 . _ : -"
        raise MalformedMessage(f"{where}: {key} " + (f"must be {allowed}" if key in value else "is missing"))
    return name


def _step_number(body: dict[str, Any]) -> int:
    step = body.get("step")
    if type(step) is not int or not 1 <= step <= MAX_STEPS:
        raise MalformedMessage(f"step must be a whole number from 1 to {MAX_STEPS}")
    return step


def _type_of(body: Any) -> str:
    """The type of a decoded body, checked."""
    _object(body, "the body", None)
    return _name(body, "type", "the body", REPLY_PATTERN)
