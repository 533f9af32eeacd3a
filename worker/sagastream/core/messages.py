"""The requests of the protocol: what each says, and how it is written into a stream entry.

Bodies are exact JSON objects, in the field `body`. What the engine needs besides (request id, echo) travels as fields
of the entry next to it. Payloads are kept as JSON bytes and put into messages as they are; `parsing` read and wrote
them once, where they came in.
"""

import re
from enum import IntEnum, StrEnum
from typing import Any, Final, Literal

import orjson
from msgspec import Struct

from sagastream.core import trace_context
from sagastream.core.attributes import Attributes
from sagastream.core.steps import GRAPH, PLAIN, StepDefinition
from sagastream.core.strict_json import encode

#: Saga ids, and the names of transactions and compensations.
ID_PATTERN: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: The name of a service: without a colon, which ends it in the names of keys.
SERVICE_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
#: Where a saga is parked: step, transaction or compensation, and how often that was sent.
PARKED_AT_PATTERN: Final = re.compile(r"[1-9][0-9]{0,2}/(transaction|compensation)/[0-9]{1,15}")

#: The longest reason that an operator may give, and the longest name of an operator, in characters.
MAX_REASON_CHARS: Final = 500
MAX_ACTOR_CHARS: Final = 128


#: What happens to a command that is out at the deadline of its saga. "soft": it is waited for, as with a cancel.
#: "hard": it counts as unknown from then on, as with a cancel that says `now`.
DeadlineKind = Literal["soft", "hard"]
HARD: Final = "hard"

#: The type of a request that signals.
SIGNAL: Final = "saga_signal"

#: The fields of an entry that will be written.
Fields = dict[str, str | bytes | int]


class Code(IntEnum):
    """The error codes of the protocol that are used. They are Maelstrom's."""

    NOT_SUPPORTED = 10
    UNAVAILABLE = 11
    MALFORMED = 12
    CRASH = 13
    NO_SUCH_SAGA = 20
    PRECONDITION_FAILED = 22


class Verb(StrEnum):
    """What an operator may ask for; the request is `saga_<verb>`."""

    CANCEL = "cancel"
    RETRY = "retry"
    SKIP = "skip"
    ABANDON = "abandon"


class DefinedBy(Struct, frozen=True, kw_only=True, gc=False):
    """The definition from which the steps of a saga were made."""

    name: str
    version: int  # from 1
    sha256: str  # of the definition in its canonical form, in hexadecimal

    def body(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "sha256": self.sha256}


class Begin(Struct, frozen=True, kw_only=True, gc=False):
    """A request to run a saga."""

    saga_id: str
    steps: tuple[StepDefinition, ...]
    deadline_ms: int | None = None  # it is cancelled this long after its begin
    hard_deadline: bool = False  # what is out at its deadline is not waited for
    request_id: str | None = None  # of the stream entry: who asked; the answer is addressed to it
    echo: bool = False  # the entry's field `trace`: report every command and reply on the events stream
    format: int = PLAIN  # one of FORMATS
    input: bytes | None = None  # what its steps may refer to, a JSON object; None: nothing in its steps is a reference
    definition: DefinedBy | None = None  # which definition its steps were made from
    start_ms: int | None = None  # it does nothing before this time, in ms since the epoch by the broker's clock
    attributes: Attributes | None = None  # by which people find it; None: it has none
    traceparent: str | None = None  # of the stream entry: the span within which it is begun, see trace_context
    tracestate: str | None = None  # of the stream entry: what tracing systems add to that

    @property
    def payload_bytes(self) -> int:
        """How many bytes those of its members take that may be long."""
        size = sum([len(step.params) for step in self.steps])
        if self.format != PLAIN:
            size += len(self.input or b"")
            for step in self.steps:
                size += len(step.shape.when or b"") + len(step.shape.compensation_params or b"")
        return size

    def body(self) -> bytes:
        members: dict[str, Any] = {"type": "saga_begin", "saga_id": self.saga_id}
        if self.format != PLAIN:
            members["format"] = self.format
        if self.definition is not None:
            members["definition"] = self.definition.body()
        if self.attributes is not None:
            members["attributes"] = self.attributes
        if self.input is not None:
            members["input"] = orjson.Fragment(self.input)
        if self.start_ms is not None:
            members["start_at_ms"] = self.start_ms
        if self.deadline_ms is not None:
            members["deadline_ms"] = self.deadline_ms
        if self.hard_deadline:
            members["deadline"] = HARD
        return encode(members | {"steps": [step.body() for step in self.steps]})

    def fields(self) -> Fields:
        fields = _addressed(self.body(), self.request_id)
        if self.echo:
            fields["trace"] = 1
        if self.traceparent is not None:
            trace_context.add(fields, self.traceparent, self.tracestate)
        return fields


class Intervene(Struct, frozen=True, kw_only=True, gc=False):
    """A request of an operator: cancel a saga, or say how a parked one goes on."""

    verb: Verb
    saga_id: str
    reason: str  # why; it stays with the saga
    now: bool = False  # of a cancel: do not wait for the command that is out; it counts as unknown from now on
    actor: str | None = None  # who asks, for people; it stays with the saga
    parked_at: str | None = None  # where the sender saw it parked: SagaState.parked_at; it is refused at another place
    step: int | str | None = None  # which parked step is meant, by its number or id; None: the one that is parked
    request_id: str | None = None  # of the stream entry: the answer is addressed to it

    def body(self) -> bytes:
        members: dict[str, Any] = {"type": f"saga_{self.verb}", "saga_id": self.saga_id, "reason": self.reason}
        if self.step is not None:
            members["step"] = self.step
        if self.step is not None or (self.now and self.verb is Verb.ABANDON):
            members["format"] = GRAPH  # releases that know only plain sagas leave it to others
        if self.now:
            members["now"] = True
        if self.actor is not None:
            members["actor"] = self.actor
        if self.parked_at is not None:
            members["parked_at"] = self.parked_at
        return encode(members)

    def fields(self) -> Fields:
        return _addressed(self.body(), self.request_id)


class Signal(Struct, frozen=True, kw_only=True, gc=False):
    """Something has happened outside of the saga, for which one of its steps waits or will wait."""

    saga_id: str
    name: str  # of the signal, as the step names it
    payload: bytes = b"null"  # JSON; the result of the step that waits
    declined: str | None = None  # why the step fails, as whoever signals says; None: it does not
    actor: str | None = None  # who signals, for people; it stays with the saga
    request_id: str | None = None  # of the stream entry: the answer is addressed to it
    added_ms: int | None = None  # when it was added to its stream: by this it is in time or not

    @property
    def verb(self) -> str:
        """What is asked for, in a word: the answer to it is `saga_signal_ok`."""
        return "signal"

    def body(self) -> bytes:
        members: dict[str, Any] = {"type": SIGNAL, "format": GRAPH, "saga_id": self.saga_id, "name": self.name}
        if self.declined is not None:
            members["decline"] = self.declined
        else:
            members["payload"] = orjson.Fragment(self.payload)
        if self.actor is not None:
            members["actor"] = self.actor
        return encode(members)

    def fields(self) -> Fields:
        return _addressed(self.body(), self.request_id)


#: A request about a saga that is there, or that will be as soon as a worker reads the request to begin it.
ToSaga = Intervene | Signal


class Due(Struct, frozen=True, kw_only=True, gc=False):
    """The time of a saga has come: what it waited for has not happened, or something must be done now."""

    saga_id: str
    leased: bool = False  # whether its timer said so, and is now at the end of a worker's lease


class Unreadable(Struct, frozen=True, kw_only=True, gc=False):
    """An entry that is not a message, or not one that its reader knows."""

    code: Code
    text: str
    request_id: str | None = None  # who asked, if that could be read
    saga_id: str | None = None  # of a request that was understood, and is refused


class Newer(Struct, frozen=True, kw_only=True, gc=False):
    """A request or a command of a format that only a newer release knows. Its other members are not read."""

    format: int
    saga_id: str | None = None  # of a request
    request_id: str | None = None  # of the stream entry: who asked


def _addressed(body: bytes, request_id: str | None) -> Fields:
    """The fields of a request. `request_id`: to which the answer is addressed."""
    return {"body": body} if request_id is None else {"body": body, "request_id": request_id}


def is_id(text: object) -> bool:
    """Whether this can be a saga id, or the name of a transaction or compensation."""
    return isinstance(text, str) and ID_PATTERN.fullmatch(text) is not None


def is_service(text: object) -> bool:
    """Whether this can be the name of a service."""
    return isinstance(text, str) and SERVICE_PATTERN.fullmatch(text) is not None
