"""The messages of the protocol: what each says, and how it is written into a stream entry.

Bodies are exact JSON objects, in the field `body`. What the engine needs besides (attempt, request id, trace) travels
as fields of the entry next to it. Payloads (params, result, error) are kept as JSON bytes and put into messages as they
are; `parsing` read and wrote them once, where they came in.
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import orjson

from sagastream.strict_json import encode

#: The most steps that one saga may have.
MAX_STEPS: Final = 100
#: What saga ids and the names of transactions, compensations and services are made of.
ID_PATTERN: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: The type of a reply: the name of a command and `_ok` or `_failed`.
REPLY_PATTERN: Final = re.compile(r"[A-Za-z0-9._:-]{1,135}")

#: In `StepDefinition.compensation`: the step is undone by whatever its service publishes.
AS_PUBLISHED: Final = ""


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


def is_id(text: object) -> bool:
    """Whether this can be a saga id, or the name of a service, transaction or compensation."""
    return isinstance(text, str) and ID_PATTERN.fullmatch(text) is not None
