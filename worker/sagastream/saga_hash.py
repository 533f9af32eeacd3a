"""A saga's hash: flat, and meant to be read by people.

`HGETALL` tells where the saga is, why it waits, and when each step was sent and answered. Times in it are ISO 8601 in
UTC with milliseconds. Fields are only ever added or overwritten, so a hash in its compact encoding lists them in the
order in which they came.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import orjson

from sagastream.errors import CorruptSaga
from sagastream.messages import AS_PUBLISHED, MAX_STEPS, StepDefinition, is_id
from sagastream.saga import SagaState, SagaStatus, Step, StepStatus

#: In a hash: the step was declared to need no compensation. No name may contain parentheses.
_NO_COMPENSATION: Final = "(none)"

#: The times of a step: field `stepN.<name>_at`, attribute `<name>_ms`.
_STEP_TIMES: Final = ("sent", "answered", "compensation_sent", "compensation_answered")

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
    return [word for name, value in new.items() if old.get(name) != value for word in (name, value)]


def _saga_fields(state: SagaState) -> dict[str, str | bytes | int]:
    fields: dict[str, str | bytes | int] = {
        "status": state.status,
        "waiting_for": state.waiting_for,
        "current_step": state.current_step,
        "reason": state.reason or "",
        "parked": state.parked or "",
        "compensating_steps": orjson.dumps(state.compensating_steps),
        "begun_at": iso(state.begun_ms),
        "updated_at": iso(state.updated_ms),
        "duplicates": state.duplicates,
    }
    if state.request_id is not None:
        fields["request_id"] = state.request_id
    if state.trace:
        fields["trace"] = 1
    return fields


def _step_fields(number: int, step: Step) -> dict[str, str | bytes | int]:
    definition = step.definition
    fields: dict[str, str | bytes | int | None] = {
        "transaction": definition.transaction,
        "service": definition.service,
        "params": definition.params,
        "compensation": (definition.compensation or None) if definition.compensation is not None else _NO_COMPENSATION,
        "status": step.status,
        "result": step.result,
        "error": step.error,
        "unknown": 1 if step.unknown else None,
        "undone_by": step.compensation,
    }
    for name in _STEP_TIMES:
        ms = getattr(step, f"{name}_ms")
        fields[f"{name}_at"] = None if ms is None else iso(ms)
    return {f"step{number}.{name}": value for name, value in fields.items() if value is not None}


def read(saga_id: str, fields: Mapping[bytes, bytes]) -> SagaState | CorruptSaga | None:
    """The state that HGETALL's answer holds, None where there is no such saga."""
    if not fields:
        return None
    try:
        return _decode({name.decode(): value for name, value in fields.items()}, saga_id)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        return CorruptSaga(f"the hash of saga {saga_id} is damaged: {error!r}")


def _decode(fields: dict[str, bytes], saga_id: str) -> SagaState:
    # Counted by its highest number, so that a step with a hole in it is missed rather than the ones behind it.
    count = max((int(m[1]) for m in map(_STEP_FIELD.match, fields) if m), default=0)
    steps = [_decode_step(fields, f"step{number}.") for number in range(1, min(count, MAX_STEPS) + 1)]
    undone = orjson.loads(fields["compensating_steps"])
    if not isinstance(undone, list) or not all(type(n) is int and 1 <= n <= count for n in undone):
        raise ValueError(f"compensating_steps {undone!a}")
    state = SagaState(
        saga_id=saga_id,
        status=SagaStatus(fields["status"].decode()),
        current_step=int(fields["current_step"]),
        steps=tuple(steps),
        compensating_steps=tuple(undone),
        reason=fields["reason"].decode() or None,
        parked=fields["parked"].decode() or None,
        duplicates=int(fields["duplicates"]),
        begun_ms=_ms(fields["begun_at"].decode()),
        updated_ms=_ms(fields["updated_at"].decode()),
        request_id=fields["request_id"].decode() if "request_id" in fields else None,
        trace="trace" in fields,
        version=int(fields["version"]),
    )
    if str(state.version).encode() != fields["version"]:
        raise ValueError(f"version {fields['version']!a}")  # the commit compares it as text
    if not 1 <= state.current_step <= len(steps):
        raise ValueError(f"current_step {state.current_step} of {len(steps)}")
    return state


def _decode_step(fields: dict[str, bytes], prefix: str) -> Step:
    def text(name: str) -> str | None:
        value = fields.get(prefix + name)
        return None if value is None else value.decode()

    def ms(name: str) -> int | None:
        value = text(f"{name}_at")
        return None if value is None else _ms(value)

    def payload(name: str) -> bytes | None:
        value = fields.get(prefix + name)
        return None if value is None else _json(value)

    compensation = text("compensation") or AS_PUBLISHED
    return Step(
        definition=StepDefinition(
            transaction=_id(fields[prefix + "transaction"].decode()),
            service=_id(fields[prefix + "service"].decode()),
            params=_json(fields[prefix + "params"]),
            compensation=None if compensation == _NO_COMPENSATION else compensation and _id(compensation),
        ),
        status=StepStatus(fields[prefix + "status"].decode()),
        sent_ms=ms("sent"),
        answered_ms=ms("answered"),
        result=payload("result"),
        error=payload("error"),
        unknown=text("unknown") is not None,
        compensation=None if (undone_by := text("undone_by")) is None else _id(undone_by),
        compensation_sent_ms=ms("compensation_sent"),
        compensation_answered_ms=ms("compensation_answered"),
    )


def _id(name: str) -> str:
    if not is_id(name):
        raise ValueError(f"the name {name[:128]!a}")
    return name


def _json(payload: bytes) -> bytes:
    """The payload, seen to be JSON: it is put into messages as it is."""
    orjson.loads(payload)
    return payload
