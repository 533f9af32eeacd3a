"""A saga's hash: flat, and meant to be read by people.

`HGETALL` tells where the saga is, why it waits, and when each step was sent and answered. Times in it are ISO 8601 in
UTC with milliseconds. Fields are only ever added or overwritten, so a hash in its compact encoding lists them in the
order in which they came; an empty one says that it no longer holds.

Every transition of every saga reads a hash and writes some of it, so this module is written for speed: two tables say
how each attribute is written and read, and a state goes through them in loops that stay in C as far as they can. Names
of fields are put together once, and what comes again and again (times of one turn, names of services) is decoded once.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import compress
from operator import is_not, itemgetter
from typing import Any, Final, NamedTuple

import orjson
from msgspec import NODEFAULT, Struct
from msgspec.structs import astuple, fields

from sagastream.core.messages import is_id
from sagastream.core.phases import IN_FLIGHT, LEFT_ALONE, UNDO, Phase
from sagastream.core.saga import Intervention, SagaState, SagaStatus, Step, StepStatus
from sagastream.core.steps import (
    FORMATS,
    MAX_ATTEMPTS,
    MAX_BACKOFF_MS,
    MAX_STEPS,
    MAX_TIMEOUT_MS,
    PLAIN,
    StepDefinition,
    StepKind,
    usual_attempts,
)
from sagastream.errors import CorruptSaga, NewerFormat, UnreadableSaga

Word = str | int


class _Column(NamedTuple):
    """One field of the hash: its name, how the value of its attribute is read, and how it is written.

    None is written as nothing. `write` gets any other value; without it the value is written as it is.
    """

    field: str
    read: Callable[[bytes], Any]
    write: Callable[[Any], Word] | None = None


#: In a hash: the step was declared to need no compensation. No name may contain parentheses.
_NO_COMPENSATION: Final = "(none)"
#: How often anything can have happened, at the most.
_MOST: Final = 10**9

_STEP_FIELD: Final = re.compile(rb"step([1-9]\d{0,2})\.([a-z_]+)")


# --- how values are written


@lru_cache(maxsize=4096)
def iso(ms: int) -> str:
    """Milliseconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _flag(value: bool) -> Word:
    return 1 if value else ""


def _count(value: int) -> Word:
    return value or ""


def _format(value: int) -> Word:
    return "" if value == PLAIN else value


def _sendings(value: int) -> Word:
    return value if value > 1 else ""  # once is what the time of sending says


def _steps(numbers: tuple[int, ...]) -> str:
    return orjson.dumps(numbers).decode() if numbers else ""


def _interventions(done: tuple[Intervention, ...]) -> str:
    written = [
        {"verb": one.verb, "reason": one.reason, "at": iso(one.at_ms), "request_id": one.request_id} for one in done
    ]
    return orjson.dumps(written).decode() if written else ""


def _undo(name: str | None) -> str:
    return _NO_COMPENSATION if name is None else name


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


@lru_cache(maxsize=4096)
def _id(value: bytes) -> str:
    name = value.decode()
    if not is_id(name):
        raise ValueError(f"the name {name[:128]!a}")
    return name


def _json(payload: bytes) -> bytes:
    """The payload, seen to be JSON: it is put into messages as it is."""
    orjson.loads(payload)
    return payload


def _number(value: bytes, least: int = 0, most: int = _MOST) -> int:
    """A number that makes sense: with any other one, what is reckoned from it could not be reckoned or written."""
    number = int(value)
    if not least <= number <= most:
        raise ValueError(f"the number {number}")
    return number


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
        raise ValueError("interventions are no list")
    return tuple(map(_read_intervention, found))


def _read_intervention(done: Any) -> Intervention:
    verb, reason, request_id = done["verb"], done["reason"], done["request_id"]
    if not (isinstance(verb, str) and isinstance(reason, str) and isinstance(request_id, str | None)):
        raise ValueError("an intervention is not as we write them")
    return Intervention(verb=verb, reason=reason, at_ms=_moment(str(done["at"]).encode()), request_id=request_id)


# --- the fields


#: The fields of a saga, by the attribute of SagaState that each holds, in the order in which they are written. Those
#: that the saga takes from its current step are given to that step when the hash is read.
_SAGA: Final[dict[str, _Column]] = {
    "status": _Column("status", {status.encode(): status for status in SagaStatus}.__getitem__),
    "current_step": _Column("current_step", _number),
    "reason": _Column("reason", _text),
    "parked": _Column("parked", _text),
    "cancelling": _Column("cancelling", _text),
    "compensating_steps": _Column("compensating_steps", _read_steps, _steps),
    "begun_ms": _Column("begun_at", _moment, iso),
    "updated_ms": _Column("updated_at", _moment, iso),
    "times_out_ms": _Column("times_out_at", _moment, iso),
    "send_again_ms": _Column("send_again_at", _moment, iso),
    "deadline_ms": _Column("deadline_at", _moment, iso),
    "interventions": _Column("interventions", _read_interventions, _interventions),
    "duplicates": _Column("duplicates", _number, _count),
    "request_id": _Column("request_id", _text),
    "echo": _Column("trace", _is_set, _flag),
    "format": _Column("format", partial(_number, least=1), _format),
}

#: The fields of a step, likewise, by the attribute of Step; in the hash each begins with `stepN.`. Its phase is not
#: written: `status`, `skipped` and what the saga waits for say it.
_STEP: Final[dict[str, _Column]] = {
    "status": _Column("status", {status.encode(): status for status in StepStatus}.__getitem__),
    "attempt": _Column("attempt", _number, _sendings),
    "sent_ms": _Column("sent_at", _moment, iso),
    "answered_ms": _Column("answered_at", _moment, iso),
    "result": _Column("result", _json, bytes.decode),
    "error": _Column("error", _json, bytes.decode),
    "unknown": _Column("unknown", _is_set, _flag),
    "late_ms": _Column("late_at", _moment, iso),
    "compensation": _Column("undone_by", _id),
    "compensation_attempt": _Column("compensation_attempt", _number, _sendings),
    "compensation_sent_ms": _Column("compensation_sent_at", _moment, iso),
    "compensation_answered_ms": _Column("compensation_answered_at", _moment, iso),
    "compensation_error": _Column("compensation_error", _json, bytes.decode),
    "tried_before": _Column("tried_before", _number, _count),
    "skipped": _Column("skipped", _is_set, _flag),
}

#: The fields of a step's definition, by the attribute of StepDefinition. They are written once, at the begin, and begin
#: with `stepN.` too.
_DEFINITION: Final[dict[str, _Column]] = {
    "transaction": _Column("transaction", _id),
    "service": _Column("service", _id),
    "params": _Column("params", _json, bytes.decode),
    "compensation": _Column("compensation", _read_undo, _undo),
    "kind": _Column("kind", {kind.encode(): kind for kind in StepKind}.__getitem__),
    "timeout_ms": _Column("timeout_ms", partial(_number, least=1, most=MAX_TIMEOUT_MS)),
    "attempts": _Column("attempts", partial(_number, least=1, most=MAX_ATTEMPTS)),
    "compensation_attempts": _Column("compensation_attempts", partial(_number, least=1, most=MAX_ATTEMPTS)),
    "backoff_ms": _Column("backoff_ms", partial(_number, least=1, most=MAX_BACKOFF_MS)),
    "retry_failed": _Column("retry_failed", _is_set, _flag),
}


# --- written


#: What the saga has from its current step, in the order in which `_saga_values` adds it.
_OF_THE_STEP: Final = ("parked", "times_out_ms", "send_again_ms")
#: Puts all that into the order of the columns.
_in_order: Final[Callable[[tuple[Any, ...]], tuple[Any, ...]]] = itemgetter(
    *map((*SagaState.__struct_fields__, *_OF_THE_STEP).index, _SAGA)
)


def _saga_values(state: SagaState) -> tuple[Any, ...]:
    """What the columns of _SAGA hold."""
    step = state.steps[state.current_step - 1]
    due_ms, in_flight = step.due_ms, step.phase in IN_FLIGHT
    times_out_ms, send_again_ms = (due_ms, None) if in_flight else (None, due_ms)
    return _in_order((*astuple(state), step.parked, times_out_ms, send_again_ms))


def _unsaid(kind: type[Struct]) -> dict[str, Any]:
    """The values of attributes for which nothing is written: what holds where nothing is said."""
    return {field.name: None if field.default is NODEFAULT else field.default for field in fields(kind)}


_SAGA_COLUMNS: Final = tuple(_SAGA.values())
_UNSAID_SAGA: Final = tuple(map(_unsaid(SagaState).get, _SAGA))
#: A step that nothing has happened to, but for its definition.
_UNSAID_STEP: Final = tuple(_unsaid(Step).values())
_PLACES: Final = tuple(range(max(len(_SAGA), len(_UNSAID_STEP))))


class _StepFields(NamedTuple):
    """The fields of the step of one number."""

    status: str
    skipped: str
    stored: tuple[_Column | None, ...]  # by the attributes of Step, in their order; None: it has no field of its own
    needed: tuple[str, str, str]  # transaction, service, params
    definition: dict[str, _Column]


@lru_cache(maxsize=MAX_STEPS)
def _step_fields(number: int) -> _StepFields:
    def numbered(column: _Column) -> _Column:
        return column._replace(field=f"step{number}.{column.field}")

    columns = {attribute: numbered(column) for attribute, column in _STEP.items()}
    definition = {attribute: numbered(column) for attribute, column in _DEFINITION.items()}
    return _StepFields(
        status=columns["status"].field,
        skipped=columns["skipped"].field,
        stored=tuple(map(columns.get, Step.__struct_fields__)),
        needed=(definition["transaction"].field, definition["service"].field, definition["params"].field),
        definition=definition,
    )


def next_version(before: SagaState | None) -> int:
    """The version that a saga has once a change of it is committed; `before` is None: it is begun."""
    return 1 if before is None else before.version + 1


def changed_fields(before: SagaState | None, after: SagaState | None) -> list[Word]:
    """The hash's fields and values that turn `before` into `after`.

    Only what changed is looked at: the two share the steps that did not, and a step's definition never does.
    """
    if after is None or after is before:
        return []
    if before is None:
        return _all_fields(after)
    words: list[Word] = ["version", next_version(before)]
    if before.updated_ms != after.updated_ms or before.waiting_for != after.waiting_for:
        words += ("waiting_for", after.waiting_for)
    _add_changed(words, _SAGA_COLUMNS, _saga_values(before), _saga_values(after))
    for number, (earlier, step) in enumerate(zip(before.steps, after.steps, strict=True), 1):
        if step is not earlier:
            _add_changed_step(words, _step_fields(number), earlier, step)
    return words


def _all_fields(state: SagaState) -> list[Word]:
    words: list[Word] = ["version", next_version(None), "steps", len(state.steps), "waiting_for", state.waiting_for]
    _add_changed(words, _SAGA_COLUMNS, _UNSAID_SAGA, _saga_values(state))
    for number, step in enumerate(state.steps, 1):
        named = _step_fields(number)
        definition = step.definition
        transaction, service, params = named.needed
        words += (transaction, definition.transaction, service, definition.service)
        words += (params, definition.params.decode(), named.status, step.status)
        if unusual := definition.unusual_options():
            words[-2:-2] = _option_words(named, definition, unusual)
        values = astuple(step)
        if values[1:] != _UNSAID_STEP[1:]:
            _add_changed(words, named.stored, _UNSAID_STEP, values)
            if step.skipped:
                words += (named.skipped, 1)
    return words


def _option_words(named: _StepFields, definition: StepDefinition, options: list[str]) -> list[Word]:
    """The fields and values of the options in which a step differs from one that says nothing."""
    words: list[Word] = []
    for attribute in options:
        field, _, write = named.definition[attribute]
        value = getattr(definition, attribute)
        words += (field, value if write is None else write(value))
    return words


def _add_changed_step(words: list[Word], named: _StepFields, was: Step, now: Step) -> None:
    """Add the fields of a step that changed."""
    moved = was.phase is not now.phase
    if (moved or was.unknown is not now.unknown) and was.status is not (status := now.status):
        words += (named.status, status)
    _add_changed(words, named.stored, astuple(was), astuple(now))
    if moved and (was.phase in LEFT_ALONE) is not (skipped := now.phase in LEFT_ALONE):
        words += (named.skipped, _flag(skipped))


def _add_changed(
    words: list[Word], columns: tuple[_Column | None, ...], was: tuple[Any, ...], now: tuple[Any, ...]
) -> None:
    """Add the fields whose values changed; a field that is empty now only if it was not before."""
    for place in compress(_PLACES, map(is_not, was, now)):
        old, new, column = was[place], now[place], columns[place]
        if column is not None and old != new:
            field, _, write = column
            word = "" if new is None else new if write is None else write(new)
            # A count of 0 is written as nothing too, and nothing is written where nothing was.
            if word or (old is not None and (write is None or write(old))):
                words += (field, word)


# --- read


def read(saga_id: str, fields: Mapping[bytes, bytes]) -> SagaState | UnreadableSaga | None:
    """The state that HGETALL's answer holds, None where there is no such saga; CorruptSaga where the hash is damaged,
    NewerFormat where only a newer release can read it."""
    if not fields:
        return None
    try:
        if (number := _number(fields.get(b"format") or b"%d" % PLAIN, least=1)) > max(FORMATS):
            return NewerFormat(saga_id, number)
        return _decode(fields, saga_id)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        return CorruptSaga(f"the hash of saga {saga_id} is damaged: {error!r}")


def _decode(fields: Mapping[bytes, bytes], saga_id: str) -> SagaState:
    count = _number(fields.get(b"steps") or b"0", most=MAX_STEPS) or _highest_step(fields)
    parts: list[dict[str, Any]] = [{} for _ in range(1 + 2 * count)]
    for field, value in fields.items():
        if value and (place := _PLACES_OF[field]) is not None and place[0] <= 2 * count:
            part, attribute, read = place
            parts[part][attribute] = read(value)
    saga, version = parts[0], fields[b"version"]
    at = saga["current_step"]
    if not 1 <= at <= count:
        raise ValueError(f"it has {count} steps, and is at {at}")
    _tell_current_step(saga, parts[2 * at - 1])
    steps = tuple(map(_step, parts[1::2], parts[2::2]))
    state = SagaState(saga_id=saga_id, steps=steps, version=_number(version), **saga)
    if b"%d" % state.version != version:
        raise ValueError(f"version {version!a}")  # the commit compares it as text
    if state.compensating_steps and max(state.compensating_steps) > count:
        raise ValueError(f"it has {count} steps, and has compensated {state.compensating_steps}")
    return state


#: Where a field belongs: to which part of the state (0: the saga; 2n-1: step n; 2n: its definition), as which
#: attribute, and how it is read. None: it is not read, or this release does not know it.
_Place = tuple[int, str, Callable[[bytes], Any]] | None


class _PlacesOf(dict[bytes, _Place]):
    """The place of each field. Those that are known are kept, so that they are taken apart once."""

    def __missing__(self, field: bytes) -> _Place:
        part, tables, name = 0, [_SAGA], field
        if (found := _STEP_FIELD.fullmatch(field)) is not None:
            part, tables, name = 2 * int(found[1]) - 1, [_STEP, _DEFINITION], found[2]
        for number, table in enumerate(tables, part):
            for attribute, column in table.items():
                if column.field.encode() == name:
                    self[field] = (number, attribute, column.read)
                    return self[field]
        return None


_PLACES_OF: Final = _PlacesOf({b"version": None, b"steps": None, b"waiting_for": None})


def _tell_current_step(saga: dict[str, Any], step: dict[str, Any]) -> None:
    """Give the current step of a live saga its phase, and the time or the reason that goes with it: the hash keeps them
    with the saga, beside the status of the step."""
    parked, times_out_ms = saga.pop("parked", None), saga.pop("times_out_ms", None)
    send_again_ms = saga.pop("send_again_ms", None)
    statuses, in_flight, backing_off, is_parked = _ACTIVE.get(saga["status"], _ENDED)
    if in_flight is None:
        return
    status = step["status"]
    if status not in statuses or "skipped" in step:
        raise ValueError(f"it is {saga['status']} at a step that is {status}")
    if status is StepStatus.FAILED:
        step["unknown"] = True  # of the steps that failed only those are undone
    if parked is not None:
        step["phase"], step["parked"] = is_parked, parked
        return
    # Without any time the hash is damaged: the command is sent again at once.
    step["phase"] = backing_off if times_out_ms is None else in_flight
    step["due_ms"] = (send_again_ms or 0) if times_out_ms is None else times_out_ms
    if step["phase"] in UNDO and "compensation" not in step:
        raise ValueError("a step is being undone, and nothing says by what")


#: By the status of a live saga: the statuses that its current step may have, and the phases (a command is out, will be
#: sent again, is parked).
_ACTIVE: Final = {
    SagaStatus.PENDING: ((StepStatus.PENDING,), Phase.OUT, Phase.BACKING_OFF, Phase.PARKED),
    SagaStatus.COMPENSATING: (
        (StepStatus.COMPLETED, StepStatus.FAILED),
        Phase.UNDO_OUT,
        Phase.UNDO_BACKING_OFF,
        Phase.UNDO_PARKED,
    ),
}
_ENDED: Final = ((), None, None, None)


def _step(members: dict[str, Any], definition: dict[str, Any]) -> Step:
    status = members.pop("status", None)
    if status is None:
        raise ValueError("a step has no status")
    if "sent_ms" in members:
        members.setdefault("attempt", 1)  # once is what the time of sending says
        if "compensation_sent_ms" in members:
            members.setdefault("compensation_attempt", 1)
    if "kind" in definition:
        definition.setdefault("attempts", usual_attempts(definition["kind"]))
    if "phase" not in members:
        settled = _SETTLED.get(status)
        if settled is None or "skipped" in members:
            settled = _phase_given_up(status, members)
        members["phase"] = settled
    return Step(definition=StepDefinition(**definition), **members)


_SETTLED: Final = {
    StepStatus.PENDING: Phase.WAITING,
    StepStatus.COMPLETED: Phase.COMPLETED,
    StepStatus.COMPENSATED: Phase.COMPENSATED,
}


def _phase_given_up(status: StepStatus, members: dict[str, Any]) -> Phase:
    """The phase of a step that has failed, or that an operator skipped, and that is not being undone."""
    is_failed = status is StepStatus.FAILED
    if not members.pop("skipped", False):
        return Phase.IN_DOUBT if "unknown" in members else Phase.FAILED
    if is_failed and "answered_ms" not in members:
        return Phase.SKIPPED  # its command was skipped, before it was answered
    if not is_failed and status is not StepStatus.COMPLETED:
        raise ValueError(f"a step was skipped, and is {status}")
    members["unknown"] = is_failed  # its undo was skipped
    return Phase.UNDO_SKIPPED


def _highest_step(fields: Mapping[bytes, bytes]) -> int:
    """How many steps there are in a hash that does not say so, as earlier releases wrote them. By the highest number,
    so that a step with a hole in it is missed rather than the ones behind it."""
    return min(MAX_STEPS, max((int(found[1]) for found in map(_STEP_FIELD.match, fields) if found), default=0))
