"""A saga's hash: flat, and meant to be read by people.

`HGETALL` tells where the saga is, why it waits, and when each step was sent and answered. Times in it are ISO 8601 in
UTC with milliseconds. Fields are only ever added or overwritten, so a hash in its compact encoding lists them in the
order in which they came; an empty one says that it no longer holds.

Every transition of every saga reads a hash and writes some of it, so this module is written for speed: names of fields
are put together once, and what comes again and again (times of one turn, names of services) is decoded once.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

import orjson

from sagastream.errors import CorruptSaga
from sagastream.messages import (
    AS_PUBLISHED,
    MAX_ATTEMPTS,
    MAX_BACKOFF_MS,
    MAX_STEPS,
    MAX_TIMEOUT_MS,
    OPTIONS,
    StepDefinition,
    StepKind,
    is_id,
    usual_attempts,
)
from sagastream.saga import Intervention, SagaState, SagaStatus, Step, StepStatus

Word = str | bytes | int
#: Attribute, field, how the attribute's value is written; empty: it has none.
_Columns = tuple[tuple[str, str, Callable[[Any], Word]], ...]

#: In a hash: the step was declared to need no compensation. No name may contain parentheses.
_NO_COMPENSATION: Final = "(none)"
#: How often anything can have happened, at the most.
_MOST: Final = 10**9

_STEP_FIELD: Final = re.compile(rb"step([1-9]\d{0,2})\.")


@lru_cache(maxsize=4096)
def iso(ms: int) -> str:
    """Milliseconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- written


def _plain(value: Word | None) -> Word:
    return "" if value is None else value


def _time(ms: int | None) -> str:
    return "" if ms is None else iso(ms)


def _flag(value: bool) -> Word:
    return 1 if value else ""


def _count(value: int) -> Word:
    return value or ""


def _sendings(value: int) -> Word:
    return value if value > 1 else ""  # once is what the time of sending says


def _steps(numbers: tuple[int, ...]) -> bytes:
    return orjson.dumps(numbers) if numbers else b""


def _interventions(done: tuple[Intervention, ...]) -> bytes:
    written = [
        {"verb": one.verb, "reason": one.reason, "at": iso(one.at_ms), "request_id": one.request_id} for one in done
    ]
    return orjson.dumps(written) if written else b""


#: The fields of a saga, in the order in which they are first written.
_SAGA: Final[_Columns] = (
    ("status", "status", _plain),
    ("current_step", "current_step", _plain),
    ("reason", "reason", _plain),
    ("parked", "parked", _plain),
    ("cancelling", "cancelling", _plain),
    ("compensating_steps", "compensating_steps", _steps),
    ("begun_ms", "begun_at", _time),
    ("updated_ms", "updated_at", _time),
    ("times_out_ms", "times_out_at", _time),
    ("send_again_ms", "send_again_at", _time),
    ("deadline_ms", "deadline_at", _time),
    ("interventions", "interventions", _interventions),
    ("duplicates", "duplicates", _count),
    ("request_id", "request_id", _plain),
    ("trace", "trace", _flag),
)

#: The fields of a step, likewise; in the hash each begins with `stepN.`.
_STEP: Final[_Columns] = (
    ("status", "status", _plain),
    ("attempt", "attempt", _sendings),
    ("sent_ms", "sent_at", _time),
    ("answered_ms", "answered_at", _time),
    ("result", "result", _plain),
    ("error", "error", _plain),
    ("unknown", "unknown", _flag),
    ("late_ms", "late_at", _time),
    ("compensation", "undone_by", _plain),
    ("compensation_attempt", "compensation_attempt", _sendings),
    ("compensation_sent_ms", "compensation_sent_at", _time),
    ("compensation_answered_ms", "compensation_answered_at", _time),
    ("compensation_error", "compensation_error", _plain),
    ("tried_before", "tried_before", _count),
    ("skipped", "skipped", _flag),
)

_saga_values = attrgetter(*(attribute for attribute, _, _ in _SAGA))
_step_values = attrgetter(*(attribute for attribute, _, _ in _STEP))
_NO_NAMES: Final[Mapping[str, str]] = {}
_DEFINITION: Final = ("transaction", "service", "params", *OPTIONS)


@lru_cache(maxsize=MAX_STEPS)
def _names(number: int) -> dict[str, str]:
    """The names of the fields of this step."""
    return {name: f"step{number}.{name}" for name in (*_DEFINITION, *(field for _, field, _ in _STEP))}


def changed_fields(before: SagaState | None, after: SagaState | None) -> list[Word]:
    """The hash's fields and values that turn `before` into `after`, where only what changed need be looked at: states
    share the steps that did not, and a step's definition never does."""
    if after is None or after is before:
        return []
    words: list[Word] = ["version", (before.version if before else 0) + 1]
    if before is None:
        words += ("steps", len(after.steps))
    if before is None or before.waiting_for != after.waiting_for:
        words += ("waiting_for", after.waiting_for)
    was = _saga_values(before) if before else None
    words += _changed(_SAGA, _NO_NAMES, was, _saga_values(after))
    for number, step in enumerate(after.steps, 1):
        earlier = before.steps[number - 1] if before else None
        if step is earlier:
            continue
        names = _names(number)
        if earlier is None:
            words += _definition_words(step.definition, names)
        was = None if earlier is None else _step_values(earlier)
        words += _changed(_STEP, names, was, _step_values(step))
    return words


def _changed(
    columns: _Columns, names: Mapping[str, str], was: tuple[Any, ...] | None, now: tuple[Any, ...]
) -> list[Word]:
    """The fields whose values are others now; those that are empty only where there was something before."""
    words: list[Word] = []
    for (_, field, write), old, new in zip(columns, was or (None,) * len(now), now, strict=True):
        if old is new or old == new:
            continue
        word = write(new)
        if word not in ("", b"") or (was is not None and write(old) not in ("", b"")):
            words += (names.get(field, field), word)
    return words


def _definition_words(definition: StepDefinition, names: Mapping[str, str]) -> list[Word]:
    words: list[Word] = [
        names["transaction"],
        definition.transaction,
        names["service"],
        definition.service,
        names["params"],
        definition.params,
    ]
    for name in definition.unusual_options():
        value = getattr(definition, name)
        if name == "compensation":
            value = _NO_COMPENSATION if value is None else value
        words += (names[name], int(value) if isinstance(value, bool) else value)
    return words


# --- read


def read(saga_id: str, fields: Mapping[bytes, bytes]) -> SagaState | CorruptSaga | None:
    """The state that HGETALL's answer holds, None where there is no such saga."""
    if not fields:
        return None
    try:
        return _decode({name: value for name, value in fields.items() if value}, saga_id)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        return CorruptSaga(f"the hash of saga {saga_id} is damaged: {error!r}")


def _decode(fields: dict[bytes, bytes], saga_id: str) -> SagaState:
    count = _number(fields, b"steps", 0, 1, MAX_STEPS) or _highest_step(fields)
    steps = tuple([_decode_step(fields, _raw_names(number)) for number in range(1, count + 1)])
    undone = orjson.loads(fields.get(b"compensating_steps", b"[]"))
    if not isinstance(undone, list) or not all(type(n) is int and 1 <= n <= count for n in undone):
        raise ValueError(f"compensating_steps {undone!a}")
    version = fields[b"version"]
    state = SagaState(
        saga_id=saga_id,
        status=_SAGA_STATUSES[fields[b"status"]],
        current_step=int(fields[b"current_step"]),
        steps=steps,
        compensating_steps=tuple(undone),
        reason=_text(fields.get(b"reason")),
        parked=_text(fields.get(b"parked")),
        cancelling=_text(fields.get(b"cancelling")),
        times_out_ms=_ms(fields.get(b"times_out_at")),
        send_again_ms=_ms(fields.get(b"send_again_at")),
        deadline_ms=_ms(fields.get(b"deadline_at")),
        interventions=_read_interventions(fields[b"interventions"]) if b"interventions" in fields else (),
        duplicates=_number(fields, b"duplicates", 0),
        begun_ms=_moment(fields[b"begun_at"]),
        updated_ms=_moment(fields[b"updated_at"]),
        request_id=_text(fields.get(b"request_id")),
        trace=b"trace" in fields,
        version=int(version),
    )
    if b"%d" % state.version != version:
        raise ValueError(f"version {version!a}")  # the commit compares it as text
    if not 1 <= state.current_step <= len(steps):
        raise ValueError(f"current_step {state.current_step} of {len(steps)}")
    return state


def _highest_step(fields: Mapping[bytes, bytes]) -> int:
    """How many steps there are in a hash that does not say so, as earlier releases wrote them. By the highest number,
    so that a step with a hole in it is missed rather than the ones behind it."""
    return min(MAX_STEPS, max((int(found[1]) for found in map(_STEP_FIELD.match, fields) if found), default=0))


def _decode_step(fields: dict[bytes, bytes], names: Mapping[str, bytes]) -> Step:
    get = fields.get
    sent_ms, compensation_sent_ms = _ms(get(names["sent_at"])), _ms(get(names["compensation_sent_at"]))
    return Step(
        definition=_decode_definition(fields, names),
        status=_STEP_STATUSES[fields[names["status"]]],
        attempt=_number(fields, names["attempt"], 0 if sent_ms is None else 1),
        sent_ms=sent_ms,
        answered_ms=_ms(get(names["answered_at"])),
        result=_json(get(names["result"])),
        error=_json(get(names["error"])),
        unknown=names["unknown"] in fields,
        late_ms=_ms(get(names["late_at"])),
        compensation=_name(get(names["undone_by"])),
        compensation_attempt=_number(fields, names["compensation_attempt"], 0 if compensation_sent_ms is None else 1),
        compensation_sent_ms=compensation_sent_ms,
        compensation_answered_ms=_ms(get(names["compensation_answered_at"])),
        compensation_error=_json(get(names["compensation_error"])),
        tried_before=_number(fields, names["tried_before"], 0),
        skipped=names["skipped"] in fields,
    )


def _decode_definition(fields: dict[bytes, bytes], names: Mapping[str, bytes]) -> StepDefinition:
    kind = _KINDS[fields.get(names["kind"], b"compensatable")]
    params = fields[names["params"]]
    orjson.loads(params)
    undo = fields.get(names["compensation"])
    return StepDefinition(
        transaction=_id(fields[names["transaction"]]),
        service=_id(fields[names["service"]]),
        params=params,
        compensation=AS_PUBLISHED if undo is None else None if undo == _NO_COMPENSATION.encode() else _id(undo),
        kind=kind,
        timeout_ms=_number(fields, names["timeout_ms"], OPTIONS["timeout_ms"], 1, MAX_TIMEOUT_MS),
        attempts=_number(fields, names["attempts"], usual_attempts(kind), 1, MAX_ATTEMPTS),
        compensation_attempts=_number(
            fields, names["compensation_attempts"], OPTIONS["compensation_attempts"], 1, MAX_ATTEMPTS
        ),
        backoff_ms=_number(fields, names["backoff_ms"], OPTIONS["backoff_ms"], 1, MAX_BACKOFF_MS),
        retry_failed=names["retry_failed"] in fields,
    )


_SAGA_STATUSES: Final = {status.encode(): status for status in SagaStatus}
_STEP_STATUSES: Final = {status.encode(): status for status in StepStatus}
_KINDS: Final = {kind.encode(): kind for kind in StepKind}


@lru_cache(maxsize=MAX_STEPS)
def _raw_names(number: int) -> dict[str, bytes]:
    return {name: field.encode() for name, field in _names(number).items()}


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


def _number(fields: dict[bytes, bytes], name: bytes, default: int, least: int = 0, most: int = _MOST) -> int:
    """A number that makes sense: with any other one, what is reckoned from it could not be reckoned or written."""
    value = fields.get(name)
    if value is None:
        return default
    number = int(value)
    if not least <= number <= most:
        raise ValueError(f"{name!a} {number}")
    return number


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _ms(value: bytes | None) -> int | None:
    return None if value is None else _moment(value)


@lru_cache(maxsize=4096)
def _moment(value: bytes) -> int:
    text = value.decode()
    ms = round(datetime.fromisoformat(text).timestamp() * 1000)
    if iso(ms) != text:
        raise ValueError(f"the time {text!a} is not as we write times")
    return ms


def _name(value: bytes | None) -> str | None:
    return None if value is None else _id(value)


@lru_cache(maxsize=4096)
def _id(value: bytes) -> str:
    name = value.decode()
    if not is_id(name):
        raise ValueError(f"the name {name[:128]!a}")
    return name


def _json(payload: bytes | None) -> bytes | None:
    """The payload, seen to be JSON: it is put into messages as it is."""
    if payload is not None:
        orjson.loads(payload)
    return payload
