"""Commands for services, and their replies: what each says, and how it is written into a stream entry.

As with requests, bodies are exact JSON objects, and payloads (params, result, error) are put into them as they are.
What the engine needs besides (attempt, when the saga began) travels as fields of the entry next to the body.
"""

import re
from typing import Any, Final

import orjson
from msgspec import Struct

from sagastream.core import trace_context
from sagastream.core.messages import Fields
from sagastream.core.steps import AS_PUBLISHED
from sagastream.core.strict_json import encode

#: The type of a reply: the name of a command and `_ok` or `_failed`.
REPLY_PATTERN: Final = re.compile(r"[A-Za-z0-9._:-]{1,135}")
#: The longest name of a process that is kept, in characters.
MAX_PROCESS_CHARS: Final = 128


class Command(Struct, frozen=True, kw_only=True, gc=False):
    """A command for a service; with `compensating`, the one that undoes the step."""

    service: str
    type: str
    saga_id: str
    step: int  # counts from 1
    params: bytes  # JSON; of the step, for its compensation too
    result: bytes | None = None  # JSON; of a compensation: what the step returned
    compensating: bool = False
    attempt: int = 1
    begun_ms: int  # when the saga began; services file their dedupe records by it
    not_after_ms: int | None = None  # by the broker's clock: it must not be started later, since nobody waits then
    retried: bool = False  # if it fails it is tried again, so the failure is not recorded
    compensation: str | None = AS_PUBLISHED  # of a transaction: what undoes it, if the step says so (None: nothing)
    undo: bytes | None = None  # JSON; of a compensation: what the saga tells it besides, its `compensation_params`
    input: bytes | None = None  # JSON; of the saga
    definition: str | None = None  # the name of the definition of the saga
    traceparent: str | None = None  # of the stream entry: the span of the saga, if it was begun within a trace
    tracestate: str | None = None  # of the stream entry: what tracing systems add to that
    unrecorded_ms: int | None = None  # of the stream entry, by commit.lua: its own time; nothing is recorded yet

    @property
    def told(self) -> str:
        """How texts for people name it."""
        return f"{self.type} of saga {self.saga_id}, step {self.step}, attempt {self.attempt}"

    @property
    def is_first(self) -> bool:
        """Whether it is the first attempt of a transaction with a time limit. Within that limit no second attempt is
        sent for a timeout."""
        return self.attempt == 1 and not self.compensating and self.not_after_ms is not None

    @property
    def trace_id(self) -> str | None:
        """The id of the trace that the saga belongs to."""
        return None if self.traceparent is None else trace_context.trace_id(self.traceparent)

    @property
    def key(self) -> str:
        """The idempotency key: the same for every attempt."""
        return f"{self.saga_id}/{self.step}/{'compensation' if self.compensating else 'transaction'}"

    @property
    def transaction_key(self) -> str:
        """The idempotency key of the step's transaction, which a compensation undoes."""
        return f"{self.saga_id}/{self.step}/transaction"

    @property
    def record(self) -> str:
        """The key of the service's record. A stray command with another name has a record of its own."""
        return f"{self.key}/{self.type}"

    @property
    def tombstone(self) -> str:
        """The key of the tombstone that a compensation leaves for its transaction. No command has such a name."""
        return f"{self.transaction_key}/(void)"

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return sum([len(one) for one in (self.params, self.result, self.undo, self.input) if one is not None])

    def body(self) -> bytes:
        members: dict[str, Any] = {"type": self.type, "saga_id": self.saga_id, "step": self.step}
        if self.compensating:
            members["compensating"] = True
        else:
            members["params"] = orjson.Fragment(self.params)
        return encode(members)

    def fields(self) -> Fields:
        fields: Fields = {"body": self.body(), "attempt": self.attempt, "begun_ms": self.begun_ms}
        if self.not_after_ms is not None:
            fields["not_after_ms"] = self.not_after_ms
        if self.retried:
            fields["retried"] = 1
        if self.compensation != AS_PUBLISHED:
            fields["compensation"] = self.compensation or ""
        if self.compensating:
            fields["params"] = self.params
            if self.result is not None:
                fields["result"] = self.result
            if self.undo is not None:
                fields["undo"] = self.undo
        if self.input is not None:
            fields["input"] = self.input
        if self.definition is not None:
            fields["definition"] = self.definition
        if self.traceparent is not None:
            trace_context.add(fields, self.traceparent, self.tracestate)
        return fields


class Reply(Struct, frozen=True, kw_only=True, gc=False):
    """A service's answer to a command."""

    type: str
    saga_id: str
    step: int
    result: bytes | None = None  # JSON
    error: bytes | None = None  # JSON
    unknown: bool = False  # of the stream entry: the service cannot say whether the step had its effect
    attempt: int | None = None  # of the stream entry: which attempt it answers; None: the last one
    process: str | None = None  # of the stream entry: which process of the service answers; None: it does not say
    service: str | None = None  # whose stream it came on; None: that is not known
    traceparent: str | None = None  # of the stream entry, as in the command; workers do not read it
    tracestate: str | None = None  # the same

    @property
    def payload(self) -> bytes | None:
        """The result or, if it failed, the error. A service records it besides how the command ended."""
        return self.error if self.type.endswith("_failed") else self.result

    def body(self) -> bytes:
        members: dict[str, Any] = {"type": self.type, "saga_id": self.saga_id, "step": self.step}
        if self.result is not None:
            members["result"] = orjson.Fragment(self.result)
        if self.error is not None:
            members["error"] = orjson.Fragment(self.error)
        return encode(members)

    def fields(self) -> Fields:
        fields: Fields = {"body": self.body()}
        if self.attempt is not None:
            fields["attempt"] = self.attempt
        if self.unknown:
            fields["unknown"] = 1
        if self.traceparent is not None:
            trace_context.add(fields, self.traceparent, self.tracestate)
        if self.process is not None:
            fields["process"] = self.process
        return fields


def ok(name: str) -> str:
    """The type of the reply that says that `name` was done."""
    return f"{name}_ok"


def failed(name: str) -> str:
    """The type of the reply that says that `name` was not done and nothing of it remains; or that this is `unknown`."""
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
    return Reply(
        type=kind,
        saga_id=command.saga_id,
        step=command.step,
        result=result,
        error=error,
        unknown=unknown,
        attempt=command.attempt,
        traceparent=command.traceparent,
        tracestate=command.tracestate,
    )
