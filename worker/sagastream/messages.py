"""The messages of the protocol: what each says, how it is written into a stream entry and read out of one.

Bodies are exact JSON objects, in the field `body`. What the engine needs besides (attempt, request id, trace) travels
as fields of the entry next to it. Payloads (params, result, error) are kept as JSON bytes and put into messages as they
are; what an entry holds was read and written once, by `strict_json`, where it came in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar

import orjson

from sagastream.errors import MalformedMessage
from sagastream.strict_json import MAX_BYTES, MAX_REWRITTEN_BYTES, decode, encode, encode_payload

#: The most steps that one saga may have.
MAX_STEPS: Final = 100
#: What saga ids and the names of transactions, compensations and services are made of.
ID_PATTERN: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: The type of a reply: the name of a command and `_ok` or `_failed`.
REPLY_PATTERN: Final = re.compile(r"[A-Za-z0-9._:-]{1,135}")

#: In `StepDefinition.compensation`: the step is undone by whatever its service publishes.
AS_PUBLISHED: Final = ""


_D = TypeVar("_D", None, bytes)

#: The fields of an entry that is to be written.
Fields = dict[str, str | bytes | int]


class Code(IntEnum):
    """The error codes of the protocol that are in use (Maelstrom's)."""

    NOT_SUPPORTED = 10
    MALFORMED = 12
    CRASH = 13
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

    def fields(self) -> Fields:
        fields: Fields = {"body": self.body()}
        if self.request_id is not None:
            fields["request_id"] = self.request_id
        if self.trace:
            fields["trace"] = 1
        return fields


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

    @property
    def record(self) -> str:
        """What the service files its answer under: a stray command of another name has a record of its own."""
        return f"{self.key}/{self.type}"

    def body(self) -> bytes:
        members: dict[str, Any] = {"type": self.type, "saga_id": self.saga_id, "step": self.step}
        if self.compensating:
            members["compensating"] = True
        else:
            members["params"] = orjson.Fragment(self.params)
        return encode(members)

    def fields(self) -> Fields:
        fields: Fields = {"body": self.body(), "attempt": self.attempt, "begun_ms": self.begun_ms}
        if self.compensating:
            fields["params"] = self.params
            if self.result is not None:
                fields["result"] = self.result
        return fields


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

    def fields(self) -> Fields:
        fields: Fields = {"body": self.body()}
        if self.unknown:
            fields["unknown"] = 1
        return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """An entry that is no message, or none that its reader knows."""

    code: Code
    text: str
    request_id: str | None = None  # who asked, if that could be read
    saga_id: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One entry of the events stream: what the orchestrator tells whoever follows it."""

    kind: str  # outcome, refused, command, reply
    body: bytes  # the message itself, JSON
    saga_id: str | None = None
    service: str | None = None  # of command and reply
    request_id: str | None = None  # of the request that it answers

    def fields(self) -> Fields:
        fields: Fields = {"kind": self.kind, "body": self.body}
        for name in ("saga_id", "service", "request_id"):
            if (value := getattr(self, name)) is not None:
                fields[name] = value
        return fields


def ok(name: str) -> str:
    """The type of the reply that says `name` was done."""
    return f"{name}_ok"


def failed(name: str) -> str:
    """The type of the reply that says `name` was not done, and that nothing of it remains."""
    return f"{name}_failed"


def reply_to(
    command: Command,
    kind: str,
    *,
    result: bytes | None = None,
    error: bytes | None = None,
    unknown: bool = False,
) -> Reply:
    """The reply of this type to a command."""
    return Reply(type=kind, saga_id=command.saga_id, step=command.step, result=result, error=error, unknown=unknown)


def outcome_body(saga_id: str, status: str, reason: str | None) -> bytes:
    members = {"type": f"saga_{status.lower()}", "saga_id": saga_id, "status": status}
    if reason is not None:
        members["reason"] = reason
    return encode(members)


def error_body(code: int, text: str) -> bytes:
    return encode({"type": "error", "code": code, "text": text})


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
    begin = Begin(saga_id=saga_id, steps=definitions, request_id=request_id, trace=trace)
    if sum(len(step.params) for step in definitions) > MAX_BYTES // 2 and len(begin.body()) > MAX_BYTES:
        # A number may be longer in the one way in which we write it.
        raise MalformedMessage(f"too large: {len(begin.body())} bytes, at most {MAX_BYTES}")
    return begin


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


def read_request(fields: Mapping[bytes, bytes]) -> Begin | Unreadable:
    """The entry of the requests stream."""
    request_id = None
    try:
        request_id = _request_id(fields)
        body = decode(fields.get(b"body", b""))
        if (kind := type_of(body)) != "saga_begin":
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


def is_id(text: object) -> bool:
    """Whether this can be a saga id, or the name of a service, transaction or compensation."""
    return isinstance(text, str) and ID_PATTERN.fullmatch(text) is not None


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
