"""A saga's hash: flat, and meant to be read by people.

`HGETALL` tells where the saga is, why it waits, and when each step was sent and answered. Times in it are ISO 8601 in
UTC with milliseconds. Fields are only ever added or overwritten, so a hash in its compact encoding lists them in the
order in which they came; an empty one says that it no longer holds.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
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
    PERSISTENT_ATTEMPTS,
    StepDefinition,
    StepKind,
    is_id,
)
from sagastream.saga import Intervention, SagaState, SagaStatus, Step, StepStatus

#: In a hash: the step was declared to need no compensation. No name may contain parentheses.
_NO_COMPENSATION: Final = "(none)"

#: The times of a saga that come and go: field `<name>_at`, attribute `<name>_ms`.
_SAGA_TIMES: Final = ("times_out", "send_again", "deadline")
#: The times of a step: field `stepN.<name>_at`, attribute `<name>_ms`.
_STEP_TIMES: Final = ("sent", "answered", "late", "compensation_sent", "compensation_answered")

#: The numbers of a step's definition, and the largest that each may be.
_LIMITS: Final = {
    "timeout_ms": MAX_TIMEOUT_MS,
    "attempts": MAX_ATTEMPTS,
    "compensation_attempts": MAX_ATTEMPTS,
    "backoff_ms": MAX_BACKOFF_MS,
}
#: How often anything can have happened, at the most.
_MOST: Final = 10**9

_STEP_FIELD: Final = re.compile(r"step([1-9]\d{0,2})\.")


@lru_cache(maxsize=4096)
def iso(ms: int) -> str:
    """Milliseconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ms(text: str) -> int:
    ms = round(datetime.fromisoformat(text).timestamp() * 1000)
    if iso(ms) != text:
        raise ValueError(f"the time {text!a} is not as we write times")
    return ms


def changed_fields(before: SagaState | None, after: SagaState | None) -> list[str | bytes | int]:
    """The hash's fields and values that turn `before` into `after`; states share the steps that did not change."""
    if after is None or after is before:
        return []
    old, new = _saga_fields(before) if before else {}, _saga_fields(after)
    new["version"] = (before.version if before else 0) + 1
    for number, step in enumerate(after.steps, 1):
        earlier = before.steps[number - 1] if before else None
        if step is not earlier:
            old |= _step_fields(number, earlier) if earlier else {}
            new |= _step_fields(number, step)
    new |= dict.fromkeys(old.keys() - new.keys(), "")
    return [word for name, value in new.items() if old.get(name) != value for word in (name, value)]


def _saga_fields(state: SagaState) -> dict[str, str | bytes | int]:
    fields: dict[str, str | bytes | int | None] = {
        "status": state.status,
        "waiting_for": state.waiting_for,
        "current_step": state.current_step,
        "reason": state.reason,
        "parked": state.parked,
        "cancelling": state.cancelling,
        "compensating_steps": orjson.dumps(state.compensating_steps) if state.compensating_steps else None,
        "begun_at": iso(state.begun_ms),
        "updated_at": iso(state.updated_ms),
        "interventions": orjson.dumps([_written(done) for done in state.interventions])
        if state.interventions
        else None,
        "duplicates": state.duplicates or None,
        "request_id": state.request_id,
        "trace": 1 if state.trace else None,
    }
    for name in _SAGA_TIMES:
        ms = getattr(state, f"{name}_ms")
        fields[f"{name}_at"] = None if ms is None else iso(ms)
    return {name: value for name, value in fields.items() if value is not None}


def _written(done: Intervention) -> dict[str, str | None]:
    return {"verb": done.verb, "reason": done.reason, "at": iso(done.at_ms), "request_id": done.request_id}


def _step_fields(number: int, step: Step) -> dict[str, str | bytes | int]:
    definition = step.definition
    fields: dict[str, str | bytes | int | None] = {
        "transaction": definition.transaction,
        "service": definition.service,
        "params": definition.params,
        "compensation": (definition.compensation or None) if definition.compensation is not None else _NO_COMPENSATION,
        "status": step.status,
        "attempt": step.attempt if step.attempt > 1 else None,
        "result": step.result,
        "error": step.error,
        "unknown": 1 if step.unknown else None,
        "undone_by": step.compensation,
        "compensation_attempt": step.compensation_attempt if step.compensation_attempt > 1 else None,
        "compensation_error": step.compensation_error,
        "tried_before": step.tried_before or None,
        "skipped": 1 if step.skipped else None,
    }
    for name in definition.unusual_options():
        if name != "compensation":
            fields[name] = definition.kind if name == "kind" else int(getattr(definition, name))
    for name in _STEP_TIMES:
        ms = getattr(step, f"{name}_ms")
        fields[f"{name}_at"] = None if ms is None else iso(ms)
    return {f"step{number}.{name}": value for name, value in fields.items() if value is not None}


def read(saga_id: str, fields: Mapping[bytes, bytes]) -> SagaState | CorruptSaga | None:
    """The state that HGETALL's answer holds, None where there is no such saga."""
    if not fields:
        return None
    try:
        return _decode({name.decode(): value for name, value in fields.items() if value}, saga_id)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        return CorruptSaga(f"the hash of saga {saga_id} is damaged: {error!r}")


def _decode(fields: dict[str, bytes], saga_id: str) -> SagaState:
    # Counted by its highest number, so that a step with a hole in it is missed rather than the ones behind it.
    count = max((int(m[1]) for m in map(_STEP_FIELD.match, fields) if m), default=0)
    steps = [_decode_step(fields, f"step{number}.") for number in range(1, min(count, MAX_STEPS) + 1)]
    undone = orjson.loads(fields.get("compensating_steps", b"[]"))
    if not isinstance(undone, list) or not all(type(n) is int and 1 <= n <= count for n in undone):
        raise ValueError(f"compensating_steps {undone!a}")
    state = SagaState(
        saga_id=saga_id,
        status=SagaStatus(fields["status"].decode()),
        current_step=int(fields["current_step"]),
        steps=tuple(steps),
        compensating_steps=tuple(undone),
        reason=_text(fields, "reason"),
        parked=_text(fields, "parked"),
        cancelling=_text(fields, "cancelling"),
        interventions=_read_interventions(fields.get("interventions", b"[]")),
        duplicates=_number(fields, "duplicates", 0),
        begun_ms=_ms(fields["begun_at"].decode()),
        updated_ms=_ms(fields["updated_at"].decode()),
        request_id=_text(fields, "request_id"),
        trace="trace" in fields,
        version=int(fields["version"]),
        **{f"{name}_ms": _time(fields, f"{name}_at") for name in _SAGA_TIMES},
    )
    if str(state.version).encode() != fields["version"]:
        raise ValueError(f"version {fields['version']!a}")  # the commit compares it as text
    if not 1 <= state.current_step <= len(steps):
        raise ValueError(f"current_step {state.current_step} of {len(steps)}")
    return state


def _decode_step(fields: dict[str, bytes], prefix: str) -> Step:
    def text(name: str) -> str | None:
        return _text(fields, prefix + name)

    def number(name: str, default: int) -> int:
        return _number(fields, prefix + name, default)

    def payload(name: str) -> bytes | None:
        value = fields.get(prefix + name)
        return None if value is None else _json(value)

    times = {f"{name}_ms": _time(fields, f"{prefix}{name}_at") for name in _STEP_TIMES}
    return Step(
        definition=_decode_definition(fields, prefix),
        status=StepStatus(fields[prefix + "status"].decode()),
        attempt=number("attempt", 0 if times["sent_ms"] is None else 1),
        result=payload("result"),
        error=payload("error"),
        unknown=text("unknown") is not None,
        compensation=None if (undone_by := text("undone_by")) is None else _id(undone_by),
        compensation_attempt=number("compensation_attempt", 0 if times["compensation_sent_ms"] is None else 1),
        compensation_error=payload("compensation_error"),
        tried_before=number("tried_before", 0),
        skipped=text("skipped") is not None,
        **times,
    )


def _decode_definition(fields: dict[str, bytes], prefix: str) -> StepDefinition:
    kind = StepKind(fields.get(prefix + "kind", StepKind.COMPENSATABLE.encode()).decode())
    usual = OPTIONS | ({"attempts": PERSISTENT_ATTEMPTS} if kind is StepKind.RETRIABLE else {})
    compensation = _text(fields, prefix + "compensation") or AS_PUBLISHED
    return StepDefinition(
        transaction=_id(fields[prefix + "transaction"].decode()),
        service=_id(fields[prefix + "service"].decode()),
        params=_json(fields[prefix + "params"]),
        compensation=None if compensation == _NO_COMPENSATION else compensation and _id(compensation),
        kind=kind,
        retry_failed=prefix + "retry_failed" in fields,
        **{name: _number(fields, prefix + name, usual[name], 1, most) for name, most in _LIMITS.items()},
    )


def _read_interventions(value: bytes) -> tuple[Intervention, ...]:
    found = orjson.loads(value)
    if not isinstance(found, list):
        raise ValueError("interventions are no list")
    return tuple(map(_read_intervention, found))


def _read_intervention(done: Any) -> Intervention:
    verb, reason, request_id = done["verb"], done["reason"], done["request_id"]
    if not (isinstance(verb, str) and isinstance(reason, str) and isinstance(request_id, str | None)):
        raise ValueError("an intervention is not as we write them")
    return Intervention(verb=verb, reason=reason, at_ms=_ms(done["at"]), request_id=request_id)


def _number(fields: dict[str, bytes], name: str, default: int, least: int = 0, most: int = _MOST) -> int:
    """A number that makes sense: with any other one, what is reckoned from it could not be reckoned or written."""
    number = int(fields.get(name, default))
    if not least <= number <= most:
        raise ValueError(f"{name} {number}")
    return number


def _text(fields: dict[str, bytes], name: str) -> str | None:
    value = fields.get(name)
    return None if value is None else value.decode()


def _time(fields: dict[str, bytes], name: str) -> int | None:
    value = fields.get(name)
    return None if value is None else _ms(value.decode())


def _id(name: str) -> str:
    if not is_id(name):
        raise ValueError(f"the name {name[:128]!a}")
    return name


def _json(payload: bytes) -> bytes:
    """The payload, seen to be JSON: it is put into messages as it is."""
    orjson.loads(payload)
    return payload
