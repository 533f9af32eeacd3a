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
from operator import is_not
from typing import Any, Final, NamedTuple

import orjson
from msgspec.structs import astuple

from sagastream.core.messages import is_id
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
    """One field of the hash: which attribute it holds, how that is written (empty: there is none) and read."""

    attribute: str
    field: str
    write: Callable[[Any], Word]
    read: Callable[[bytes], Any]


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


def _plain(value: Word | None) -> Word:
    return "" if value is None else value


def _time(ms: int | None) -> str:
    return "" if ms is None else iso(ms)


def _flag(value: bool) -> Word:
    return 1 if value else ""


def _count(value: int) -> Word:
    return value or ""


def _format(value: int) -> Word:
    return "" if value == PLAIN else value


def _sendings(value: int) -> Word:
    return value if value > 1 else ""  # once is what the time of sending says


def _payload(value: bytes | None) -> str:
    return "" if value is None else value.decode()  # JSON is text


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


#: The fields of a saga, in the order in which its attributes stand in SagaState, and in which they are first written.
_SAGA: Final[tuple[_Column, ...]] = (
    _Column("status", "status", _plain, {status.encode(): status for status in SagaStatus}.__getitem__),
    _Column("current_step", "current_step", _plain, _number),
    _Column("reason", "reason", _plain, _text),
    _Column("parked", "parked", _plain, _text),
    _Column("cancelling", "cancelling", _plain, _text),
    _Column("compensating_steps", "compensating_steps", _steps, _read_steps),
    _Column("begun_ms", "begun_at", _time, _moment),
    _Column("updated_ms", "updated_at", _time, _moment),
    _Column("times_out_ms", "times_out_at", _time, _moment),
    _Column("send_again_ms", "send_again_at", _time, _moment),
    _Column("deadline_ms", "deadline_at", _time, _moment),
    _Column("interventions", "interventions", _interventions, _read_interventions),
    _Column("duplicates", "duplicates", _count, _number),
    _Column("request_id", "request_id", _plain, _text),
    _Column("echo", "trace", _flag, _is_set),
    _Column("format", "format", _format, partial(_number, least=1)),
)

#: The fields of a step, likewise; in the hash each begins with `stepN.`.
_STEP: Final[tuple[_Column, ...]] = (
    _Column("status", "status", _plain, {status.encode(): status for status in StepStatus}.__getitem__),
    _Column("attempt", "attempt", _sendings, _number),
    _Column("sent_ms", "sent_at", _time, _moment),
    _Column("answered_ms", "answered_at", _time, _moment),
    _Column("result", "result", _payload, _json),
    _Column("error", "error", _payload, _json),
    _Column("unknown", "unknown", _flag, _is_set),
    _Column("late_ms", "late_at", _time, _moment),
    _Column("compensation", "undone_by", _plain, _id),
    _Column("compensation_attempt", "compensation_attempt", _sendings, _number),
    _Column("compensation_sent_ms", "compensation_sent_at", _time, _moment),
    _Column("compensation_answered_ms", "compensation_answered_at", _time, _moment),
    _Column("compensation_error", "compensation_error", _payload, _json),
    _Column("tried_before", "tried_before", _count, _number),
    _Column("skipped", "skipped", _flag, _is_set),
)

#: The fields of a step's definition, written once, at the begin. They begin with `stepN.` too.
_DEFINITION: Final[tuple[_Column, ...]] = (
    _Column("transaction", "transaction", _plain, _id),
    _Column("service", "service", _plain, _id),
    _Column("params", "params", _payload, _json),
    _Column("compensation", "compensation", _undo, _read_undo),
    _Column("kind", "kind", _plain, {kind.encode(): kind for kind in StepKind}.__getitem__),
    _Column("timeout_ms", "timeout_ms", _plain, partial(_number, least=1, most=MAX_TIMEOUT_MS)),
    _Column("attempts", "attempts", _plain, partial(_number, least=1, most=MAX_ATTEMPTS)),
    _Column("compensation_attempts", "compensation_attempts", _plain, partial(_number, least=1, most=MAX_ATTEMPTS)),
    _Column("backoff_ms", "backoff_ms", _plain, partial(_number, least=1, most=MAX_BACKOFF_MS)),
    _Column("retry_failed", "retry_failed", _flag, _is_set),
)


# --- written


def _saga_values(state: SagaState) -> tuple[Any, ...]:
    """What the columns of _SAGA hold: all but its id and its steps, which come first, and its version, the last."""
    return astuple(state)[2:-1]


def _step_values(step: Step) -> tuple[Any, ...]:
    """What the columns of _STEP hold: all but its definition, which comes first."""
    return astuple(step)[1:]


#: What nothing is written for, but for the status, which comes first.
_NO_SAGA: Final = (None, None, None, None, None, (), None, None, None, None, None, (), 0, None, False, PLAIN)
_NO_STEP: Final = (None, 0, None, None, None, None, False, None, None, 0, None, None, None, 0, False)
_PLACES: Final = tuple(range(max(len(_SAGA), len(_STEP))))


@lru_cache(maxsize=MAX_STEPS)
def _step_columns(number: int) -> tuple[_Column, ...]:
    return tuple(column._replace(field=f"step{number}.{column.field}") for column in _STEP)


@lru_cache(maxsize=MAX_STEPS)
def _definition_columns(number: int) -> tuple[_Column, ...]:
    return tuple(column._replace(field=f"step{number}.{column.field}") for column in _DEFINITION)


def next_version(before: SagaState | None) -> int:
    """The version that a saga has once a change of it is committed; None: it is begun."""
    return 1 if before is None else before.version + 1


def changed_fields(before: SagaState | None, after: SagaState | None) -> list[Word]:
    """The hash's fields and values that turn `before` into `after`, where only what changed need be looked at: states
    share the steps that did not, and a step's definition never does."""
    if after is None or after is before:
        return []
    if before is None:
        return _all_fields(after)
    words: list[Word] = ["version", next_version(before)]
    if before.updated_ms != after.updated_ms or before.waiting_for != after.waiting_for:
        words += ("waiting_for", after.waiting_for)
    _add_changed(words, _SAGA, _saga_values(before), _saga_values(after))
    for number, (earlier, step) in enumerate(zip(before.steps, after.steps, strict=True), 1):
        if step is not earlier:
            _add_changed(words, _step_columns(number), _step_values(earlier), _step_values(step))
    return words


def _all_fields(state: SagaState) -> list[Word]:
    words: list[Word] = ["version", next_version(None), "steps", len(state.steps), "waiting_for", state.waiting_for]
    _add_changed(words, _SAGA, _NO_SAGA, _saga_values(state))
    for number, step in enumerate(state.steps, 1):
        definition = step.definition
        transaction, service, params, *options = _definition_columns(number)
        words += (transaction.field, definition.transaction, service.field, definition.service)
        words += (params.field, params.write(definition.params))
        if unusual := definition.unusual_options():
            for attribute, field, write, _ in options:
                if attribute in unusual:
                    words += (field, write(getattr(definition, attribute)))
        _add_changed(words, _step_columns(number), _NO_STEP, _step_values(step))
    return words


def _add_changed(words: list[Word], columns: tuple[_Column, ...], was: tuple[Any, ...], now: tuple[Any, ...]) -> None:
    """Add the fields whose values are others now; those that are empty only where there was something before."""
    for place in compress(_PLACES, map(is_not, was, now)):
        old, new = was[place], now[place]
        if old != new:
            _, field, write, _ = columns[place]
            word = write(new)
            if word or write(old):  # a count of 0 is written as nothing
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
        if value and (place := _place(field)) is not None and place[0] < len(parts):
            part, attribute, read = place
            parts[part][attribute] = read(value)
    version = fields[b"version"]
    steps = tuple(map(_step, parts[1::2], parts[2::2]))
    state = SagaState(saga_id=saga_id, steps=steps, version=_number(version), **parts[0])
    if b"%d" % state.version != version:
        raise ValueError(f"version {version!a}")  # the commit compares it as text
    if not 1 <= state.current_step <= count or max(state.compensating_steps, default=0) > count:
        raise ValueError(f"it has {count} steps, and is at {state.current_step}, {state.compensating_steps}")
    return state


@lru_cache(maxsize=32 * MAX_STEPS)
def _place(field: bytes) -> tuple[int, str, Callable[[bytes], Any]] | None:
    """Where a field belongs: to which part of the state (0: the saga; 2n-1: step n; 2n: its definition), as which
    attribute, and how it is read. None: it is none of ours."""
    number, columns = 0, [_SAGA]
    name = field
    if (found := _STEP_FIELD.fullmatch(field)) is not None:
        number, name, columns = 2 * int(found[1]) - 1, found[2], [_STEP, _DEFINITION]
    for part, table in enumerate(columns, number):
        for column in table:
            if column.field.encode() == name:
                return part, column.attribute, column.read
    return None


def _step(members: dict[str, Any], definition: dict[str, Any]) -> Step:
    if "status" not in members:
        raise ValueError("a step has no status")
    if "sent_ms" in members:
        members.setdefault("attempt", 1)  # once is what the time of sending says
    if "compensation_sent_ms" in members:
        members.setdefault("compensation_attempt", 1)
    if "kind" in definition:
        definition.setdefault("attempts", usual_attempts(definition["kind"]))
    return Step(definition=StepDefinition(**definition), **members)


def _highest_step(fields: Mapping[bytes, bytes]) -> int:
    """How many steps there are in a hash that does not say so, as earlier releases wrote them. By the highest number,
    so that a step with a hole in it is missed rather than the ones behind it."""
    return min(MAX_STEPS, max((int(found[1]) for found in map(_STEP_FIELD.match, fields) if found), default=0))
