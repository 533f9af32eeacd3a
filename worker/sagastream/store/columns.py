"""The fields of a saga's hash: which attribute each holds, how it is written, and how it is read.

Each attribute is declared once, in a table, by its name. Reading is strict: a value that a saga cannot have raises
ValueError, so that a damaged hash is recognised.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import orjson

from sagastream.core import trace_context
from sagastream.core.attributes import Attributes, parse_attributes
from sagastream.core.messages import HARD, DefinedBy, is_id
from sagastream.core.phases import Phase
from sagastream.core.saga import MAX_SET_BACK_MS, Intervention, KeptSignal, SagaStatus
from sagastream.core.step_state import Step, StepStatus
from sagastream.core.steps import (
    GOES_ON,
    MAX_ATTEMPTS,
    MAX_BACKOFF_MS,
    MAX_STEPS,
    MAX_TIMEOUT_MS,
    MAX_WAIT_MS,
    PLAIN,
    Shape,
    StepKind,
)
from sagastream.core.strict_json import check_syntax
from sagastream.errors import MalformedMessage

Word = str | int


class Column(NamedTuple):
    """One field of the hash: its name, how it is read into its attribute, and how the attribute is written.

    None is written as "". Any other value is written as `write` returns it, or as it is if there is no `write`.
    """

    field: str
    read: Callable[[bytes], Any]
    write: Callable[[Any], Word] | None = None


#: Written if a step was declared to need no compensation. It cannot be a name, since names contain no parentheses.
_NO_COMPENSATION: Final = "(none)"
#: The largest number that is read.
_MOST: Final = 10**9


# --- how values are written


@lru_cache(maxsize=4096)
def iso(ms: int) -> str:
    """Milliseconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def flag(value: bool) -> Word:
    return 1 if value else ""


def _count(value: int) -> Word:
    return value or ""


def _hard(value: bool) -> Word:
    return HARD if value else ""


def _format(value: int) -> Word:
    return "" if value == PLAIN else value


def _sendings(value: int) -> Word:
    return value if value > 1 else ""  # one is not written: sent_at says it


@lru_cache(maxsize=4096)
def step_numbers(numbers: tuple[int, ...]) -> str:
    """Numbers of steps as JSON."""
    return orjson.dumps(numbers).decode()


def _interventions(done: tuple[Intervention, ...]) -> str:
    written = [
        {"verb": one.verb, "reason": one.reason, "at": iso(one.at_ms), "request_id": one.request_id}
        | ({} if one.actor is None else {"actor": one.actor})
        | ({} if one.step is None else {"step": one.step})
        for one in done
    ]
    return orjson.dumps(written).decode() if written else ""


def _undo(name: str | None) -> str:
    return _NO_COMPENSATION if name is None else name


def _definition(defined: DefinedBy) -> str:
    return orjson.dumps(defined.body()).decode()


def _attributes(attributes: Attributes) -> str:
    return orjson.dumps(attributes).decode()


def _signals(kept: tuple[KeptSignal, ...]) -> str:
    written = [
        {"name": one.name, "at": iso(one.at_ms)}
        | ({"payload": orjson.Fragment(one.payload)} if one.declined is None else {"decline": one.declined})
        for one in kept
    ]
    return orjson.dumps(written).decode() if written else ""


def _goes_on(value: bool) -> Word:
    return GOES_ON if value else ""


def _readable(journal: bytes) -> str:
    return journal.decode(errors="replace")  # whatever a process has put there, the saga goes on


# --- how they are read


def _text(value: bytes) -> str:
    return value.decode()


def _is_set(_: bytes) -> bool:
    return True


@lru_cache(maxsize=4096)
def _moment(value: bytes) -> int:
    text = value.decode()
    ms = round(datetime.fromisoformat(text).timestamp() * 1000)
    if iso(ms) != text:
        raise ValueError(f"the time {text!a} is not as we write times")
    return ms


def _name(value: bytes) -> str:
    """A name that only people read."""
    return value.decode(errors="replace")


@lru_cache(maxsize=4096)
def _id(value: bytes) -> str:
    name = value.decode()
    if not is_id(name):
        raise ValueError(f"the name {name[:128]!a}")
    return name


def _json(payload: bytes) -> bytes:
    """The payload, checked to be JSON, because it is put into messages as it is."""
    check_syntax(payload)
    return payload


def whole_number(value: bytes, least: int = 0, most: int = _MOST) -> int:
    """A number in these limits. Times and counts that are computed from a larger one could not be written."""
    found = int(value)
    if not least <= found <= most:
        raise ValueError(f"the number {found}")
    return found


def _read_undo(value: bytes) -> str | None:
    return None if value == _NO_COMPENSATION.encode() else _id(value)


def _read_steps(value: bytes) -> tuple[int, ...]:
    numbers = orjson.loads(value)
    if not isinstance(numbers, list) or not all(type(n) is int and 1 <= n <= MAX_STEPS for n in numbers):
        raise ValueError(f"compensating_steps {numbers!a}")
    return tuple(numbers)


def _read_interventions(value: bytes) -> tuple[Intervention, ...]:
    found = orjson.loads(value)
    if not isinstance(found, list):
        raise ValueError("interventions are not a list")
    return tuple(map(_read_intervention, found))


def _read_intervention(done: Any) -> Intervention:
    verb, reason, request_id, actor = done["verb"], done["reason"], done["request_id"], done.get("actor")
    step = done.get("step")
    texts, optional = isinstance(verb, str) and isinstance(reason, str), isinstance(request_id, str | None)
    if not (texts and optional and isinstance(actor, str | None) and (step is None or type(step) is int)):
        raise ValueError("an intervention is not as we write them")
    at_ms = _moment(str(done["at"]).encode())
    return Intervention(verb=verb, reason=reason, at_ms=at_ms, actor=actor, request_id=request_id, step=step)


def _read_definition(value: bytes) -> DefinedBy:
    found = orjson.loads(value)
    defined = DefinedBy(name=found["name"], version=found["version"], sha256=found["sha256"])
    if not (is_id(defined.name) and type(defined.version) is int and isinstance(defined.sha256, str)):
        raise ValueError("the definition is not as we write it")
    return defined


def _read_attributes(value: bytes) -> Attributes | None:
    try:
        return parse_attributes(orjson.loads(value), "attributes")
    except MalformedMessage as error:
        raise ValueError(str(error)) from None


def _read_signals(value: bytes) -> tuple[KeptSignal, ...]:
    found = orjson.loads(value)
    if not isinstance(found, list):
        raise ValueError("signals are not a list")
    return tuple(map(_read_signal, found))


def _read_signal(kept: Any) -> KeptSignal:
    name, declined = kept["name"], kept.get("decline")
    if not is_id(name) or not isinstance(declined, str | None):
        raise ValueError("a signal is not as we write them")
    at_ms = _moment(str(kept["at"]).encode())
    return KeptSignal(name=name, payload=orjson.dumps(kept.get("payload")), declined=declined, at_ms=at_ms)


# --- the fields


#: The fields of a saga, by the attribute of SagaState that each holds, in the order in which they are written. The
#: values of some come from its current step; when the hash is read, they go back to that step.
SAGA: Final[dict[str, Column]] = {
    "status": Column("status", {status.encode(): status for status in SagaStatus}.__getitem__),
    "current_step": Column("current_step", whole_number),
    "reason": Column("reason", _text),
    "parked": Column("parked", _text),
    "cancelling": Column("cancelling", _text),
    "compensating_steps": Column("compensating_steps", _read_steps, step_numbers),
    "begun_ms": Column("begun_at", _moment, iso),
    "updated_ms": Column("updated_at", _moment, iso),
    "times_out_ms": Column("times_out_at", _moment, iso),
    "send_again_ms": Column("send_again_at", _moment, iso),
    "deadline_ms": Column("deadline_at", _moment, iso),
    "hard_deadline": Column("deadline", {HARD.encode(): True}.__getitem__, _hard),
    "set_back_ms": Column("clock_set_back_ms", partial(whole_number, most=MAX_SET_BACK_MS), _count),
    "set_forward_ms": Column("clock_set_forward_ms", partial(whole_number, most=MAX_SET_BACK_MS), _count),
    "interventions": Column("interventions", _read_interventions, _interventions),
    "duplicates": Column("duplicates", whole_number, _count),
    "request_id": Column("request_id", _text),
    "echo": Column("trace", _is_set, flag),
    "format": Column("format", partial(whole_number, least=1), _format),
    "input": Column("input", _json, bytes.decode),
    "definition": Column("definition", _read_definition, _definition),
    "start_ms": Column("start_at", _moment, iso),
    "signals": Column("signals", _read_signals, _signals),
    "failed_step": Column("failed_step", partial(whole_number, least=1, most=MAX_STEPS)),
    "attributes": Column("attributes", _read_attributes, _attributes),
    "traceparent": Column("traceparent", trace_context.read),
    "tracestate": Column("tracestate", trace_context.read_state),
    "journal": Column("journal", bytes, _readable),
}

#: The fields of a step, in the same way, by the attribute of Step; in the hash each begins with `stepN.`.
STEP: Final[dict[str, Column]] = {
    "status": Column("status", {status.encode(): status for status in StepStatus}.__getitem__),
    "attempt": Column("attempt", whole_number, _sendings),
    "sent_ms": Column("sent_at", _moment, iso),
    "answered_ms": Column("answered_at", _moment, iso),
    "result": Column("result", _json, bytes.decode),
    "error": Column("error", _json, bytes.decode),
    "unknown": Column("unknown", _is_set, flag),
    "late_ms": Column("late_at", _moment, iso),
    "compensation": Column("undone_by", _id),
    "compensation_attempt": Column("compensation_attempt", whole_number, _sendings),
    "compensation_sent_ms": Column("compensation_sent_at", _moment, iso),
    "compensation_answered_ms": Column("compensation_answered_at", _moment, iso),
    "compensation_error": Column("compensation_error", _json, bytes.decode),
    "tried_before": Column("tried_before", whole_number, _count),
    "skipped": Column("skipped", _is_set, flag),
    "done_by": Column("done_by", _name),
    "compensation_done_by": Column("compensation_done_by", _name),
}

#: The fields that a step of a graph has besides. The plain format does not need them: of a plain saga, one step at a
#: time waits for something, and the saga's own fields say for what.
STEP_OF_GRAPH: Final[dict[str, Column]] = STEP | {
    "phase": Column("phase", {phase.encode(): phase for phase in Phase}.__getitem__),
    "due_ms": Column("due_at", _moment, iso),
    "parked": Column("parked", _text),
    "unsent_retries": Column("unsent_retries", whole_number, _count),
    "built": Column("params_sent", _json, bytes.decode),
    "built_undo": Column("undo_sent", _json, bytes.decode),
}

#: The fields of what only a saga of format GRAPH says of a step, by the attribute of Shape. They are written once, too.
SHAPE: Final[dict[str, Column]] = {
    "id": Column("id", _text),
    "after": Column("after", _read_steps, step_numbers),
    "when": Column("when", _json, bytes.decode),
    "has_references": Column("references", _is_set, flag),
    "compensation_params": Column("compensation_params", _json, bytes.decode),
    "wait": Column("wait", _id),
    "wait_ms": Column("wait_ms", partial(whole_number, least=1, most=MAX_WAIT_MS)),
    "goes_on": Column("on_timeout", {GOES_ON.encode(): True}.__getitem__, _goes_on),
    "retry_on": Column("retry_on", _id),
    "retry_within_ms": Column("retry_within_ms", partial(whole_number, least=1, most=MAX_WAIT_MS)),
}

#: The fields of a step's definition, by the attribute of StepDefinition. They are written once, when the saga begins;
#: each begins with `stepN.` too.
DEFINITION: Final[dict[str, Column]] = {
    "transaction": Column("transaction", _id),
    "service": Column("service", _id),
    "params": Column("params", _json, bytes.decode),
    "compensation": Column("compensation", _read_undo, _undo),
    "kind": Column("kind", {kind.encode(): kind for kind in StepKind}.__getitem__),
    "timeout_ms": Column("timeout_ms", partial(whole_number, least=1, most=MAX_TIMEOUT_MS)),
    "attempts": Column("attempts", partial(whole_number, least=1, most=MAX_ATTEMPTS)),
    "compensation_attempts": Column("compensation_attempts", partial(whole_number, least=1, most=MAX_ATTEMPTS)),
    "backoff_ms": Column("backoff_ms", partial(whole_number, least=1, most=MAX_BACKOFF_MS)),
    "retry_failed": Column("retry_failed", _is_set, flag),
}


# --- the fields of one step, and where a field belongs

#: The name of a field of a step.
STEP_FIELD: Final = re.compile(rb"step([1-9]\d{0,2})\.([a-z_]+)")


class StepFields(NamedTuple):
    """The names of the fields of one step, with its number in them."""

    status: str
    skipped: str
    stored: tuple[Column | None, ...]  # one for each attribute of Step, in order; None: it has no field of its own
    stored_of_graph: tuple[Column | None, ...]  # the same, of a step of a graph
    needed: tuple[str, str, str]  # transaction, service, params
    definition: dict[str, Column]
    shape: tuple[Column | None, ...]  # one for each attribute of Shape, in order


@lru_cache(maxsize=MAX_STEPS)
def step_fields(number: int) -> StepFields:
    """The names of the fields of step `number`, from 1."""

    def numbered(column: Column) -> Column:
        return column._replace(field=f"step{number}.{column.field}")

    columns = {attribute: numbered(column) for attribute, column in STEP_OF_GRAPH.items()}
    shape = {attribute: numbered(column) for attribute, column in SHAPE.items()}
    definition = {attribute: numbered(column) for attribute, column in DEFINITION.items()}
    return StepFields(
        status=columns["status"].field,
        skipped=columns["skipped"].field,
        stored=tuple([columns[name] if name in STEP else None for name in Step.__struct_fields__]),
        stored_of_graph=tuple(map(columns.get, Step.__struct_fields__)),
        needed=(definition["transaction"].field, definition["service"].field, definition["params"].field),
        definition=definition,
        shape=tuple(map(shape.get, Shape.__struct_fields__)),
    )


#: Where the value of a field goes: to which part of the state (0: the saga; 2n-1: step n; 2n: its definition), to which
#: attribute, and how it is read. None: it is not read, or this release does not know it.
_Place = tuple[int, str, Callable[[bytes], Any]] | None


class _Places(dict[bytes, _Place]):
    """The place of each field. The known fields are cached, so that each name is parsed once."""

    def __missing__(self, field: bytes) -> _Place:
        part, tables, name = 0, [SAGA], field
        if (found := STEP_FIELD.fullmatch(field)) is not None:
            part, tables, name = 2 * int(found[1]) - 1, [STEP_OF_GRAPH, DEFINITION | SHAPE], found[2]
        for number, table in enumerate(tables, part):
            for attribute, column in table.items():
                if column.field.encode() == name:
                    self[field] = (number, attribute, column.read)
                    return self[field]
        return None


PLACES: Final = _Places(dict.fromkeys((b"saga_id", b"completed_steps", b"steps", b"version", b"waiting_for")))
