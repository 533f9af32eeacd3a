"""The messages of the protocol, and the one strict decoder and encoder for them.

Bodies are exact JSON objects. What the engine needs besides (attempt, request id, trace) travels as fields of
the stream entry next to `body`. Payloads (params, result, error) stay JSON *bytes* from end to end: nothing here
looks into them, so nothing here can change them.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Final

import orjson

from sagastream.errors import MalformedMessage

#: The largest body accepted, in bytes.
MAX_BODY_BYTES: Final = 1 << 20
#: The largest params, result or error that fits into a body with the rest of it.
MAX_PAYLOAD_BYTES: Final = MAX_BODY_BYTES - 1024
#: How deep a body may nest arrays and objects.
MAX_DEPTH: Final = 64
#: The most steps that one saga may have.
MAX_STEPS: Final = 100
#: What saga ids and the names of transactions, compensations and services are made of.
ID_PATTERN: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: The type of a reply: the name of a command and `_ok` or `_failed`.
REPLY_PATTERN: Final = re.compile(r"[A-Za-z0-9._:-]{1,135}")

#: In `StepDefinition.compensation`: the step is undone by whatever its service publishes.
AS_PUBLISHED: Final = ""


class Code(IntEnum):
    """The error codes of the protocol that are in use (Maelstrom's)."""

    NOT_SUPPORTED = 10
    MALFORMED = 12
    NO_SUCH_SAGA = 20
    PRECONDITION_FAILED = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDefinition:
    """What a saga_begin says of one step."""

    transaction: str
    service: str
    params: bytes  # JSON
    compensation: str | None = AS_PUBLISHED  # None: declared to need none

    def canonical(self) -> tuple[object, ...]:
        """What two definitions are compared by: the order of keys and white space do not count."""
        params = orjson.dumps(orjson.loads(self.params), option=orjson.OPT_SORT_KEYS)
        return (self.transaction, self.service, params, self.compensation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """A request to run a saga."""

    saga_id: str
    steps: tuple[StepDefinition, ...]
    request_id: str | None = None  # of the stream entry: who asked; the answer is addressed to it
    trace: bool = False  # of the stream entry: report every command and reply on the events stream

    def body(self) -> bytes:
        steps = []
        for step in self.steps:
            members: dict[str, Any] = {
                "transaction": step.transaction,
                "service": step.service,
                "params": orjson.Fragment(step.params),
            }
            if step.compensation != AS_PUBLISHED:
                members["compensation"] = step.compensation
            steps.append(members)
        return encode({"type": "saga_begin", "saga_id": self.saga_id, "steps": steps})


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command for a service; with `compensating`, the one that undoes the step."""

    service: str
    type: str
    saga_id: str
    step: int  # counts from 1
    params: bytes  # JSON; of the step, for its compensation too
    result: bytes | None = None  # JSON; what the step returned, told to its compensation
    compensating: bool = False
    attempt: int = 1
    begun_ms: int  # when the saga began; services file their dedupe records by it

    @property
    def key(self) -> str:
        """The idempotency key: the same for every attempt."""
        return f"{self.saga_id}/{self.step}/{'compensation' if self.compensating else 'transaction'}"

    def body(self) -> bytes:
        members: dict[str, Any] = {"type": self.type, "saga_id": self.saga_id, "step": self.step}
        if self.compensating:
            members["compensating"] = True
        else:
            members["params"] = orjson.Fragment(self.params)
        return encode(members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A service's answer to a command."""

    type: str
    saga_id: str
    step: int
    result: bytes | None = None  # JSON
    error: bytes | None = None  # JSON
    unknown: bool = False  # of the stream entry: the service cannot say whether the step had its effect

    def body(self) -> bytes:
        members: dict[str, Any] = {"type": self.type, "saga_id": self.saga_id, "step": self.step}
        if self.result is not None:
            members["result"] = orjson.Fragment(self.result)
        if self.error is not None:
            members["error"] = orjson.Fragment(self.error)
        return encode(members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One entry of the events stream: what the orchestrator tells whoever follows it."""

    kind: str  # outcome, refused, command, reply
    body: bytes  # the message itself, JSON
    saga_id: str | None = None
    service: str | None = None  # of command and reply
    request_id: str | None = None  # of the request that it answers


def ok(name: str) -> str:
    """The type of the reply that says `name` was done."""
    return f"{name}_ok"


def failed(name: str) -> str:
    """The type of the reply that says `name` was not done, and that nothing of it remains."""
    return f"{name}_failed"


def outcome_body(saga_id: str, status: str, reason: str | None) -> bytes:
    members = {"type": f"saga_{status.lower()}", "saga_id": saga_id, "status": status}
    if reason is not None:
        members["reason"] = reason
    return encode(members)


def error_body(code: int, text: str) -> bytes:
    return encode({"type": "error", "code": code, "text": text})


def encode(value: object) -> bytes:
    """A message, or a value that was decoded, as compact JSON."""
    return orjson.dumps(value)


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


def decode(data: bytes) -> Any:
    """The value of a JSON text, or MalformedMessage with what is wrong and where.

    Stricter than its parser: no duplicate keys, no integers outside 64 bits, no more than MAX_DEPTH levels and
    MAX_BODY_BYTES bytes.
    """
    if len(data) > MAX_BODY_BYTES:
        raise MalformedMessage(f"too large: {len(data)} bytes, at most {MAX_BODY_BYTES}")
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


def type_of(body: Any) -> str:
    """The type of a decoded body, checked."""
    _object(body, "the body", None)
    return _name(body, "type", "the body", REPLY_PATTERN)


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
    return Begin(saga_id=saga_id, steps=definitions, request_id=request_id, trace=trace)


def parse_command(service: str, fields: Mapping[bytes, bytes], sent_ms: int) -> Command:
    """The entry of a service's commands stream, checked. `sent_ms`: when it was added, for entries made by hand."""
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
        params=fields.get(b"params", b"null") if compensating else encode(body.get("params")),
        result=fields.get(b"result"),
        compensating=compensating,
        attempt=attempt,
        begun_ms=begun_ms,
    )


def parse_reply(body: Any, *, unknown: bool = False) -> Reply:
    """A decoded reply body, checked. Members that the protocol does not name are ignored: the effect has happened
    whatever else a service likes to add."""
    return Reply(
        type=type_of(body),
        saga_id=_name(body, "saga_id", "the body"),
        step=_step_number(body),
        result=encode(body["result"]) if "result" in body else None,
        error=encode(body["error"]) if "error" in body else None,
        unknown=unknown,
    )


def is_id(text: object) -> bool:
    """Whether this can be a saga id, or the name of a service, transaction or compensation."""
    return isinstance(text, str) and ID_PATTERN.fullmatch(text) is not None


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
