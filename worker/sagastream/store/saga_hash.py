"""A saga's hash: flat, and meant to be read by people.

`HGETALL` shows where the saga is, why it waits, and when each step was sent and answered. All members of the protocol's
SagaState are there, each under its own name; `steps` is their number, since each step has fields of its own. Times are
ISO 8601 in UTC with milliseconds. Fields are added or overwritten, never deleted, so a hash in its compact encoding
lists them in the order in which they were first written: first those that change again and again. An empty
field says that its value no longer holds.

Every change of a saga writes its hash, and many read it, so this module is written for speed: states go through the
tables of columns.py in loops that run in C where possible. Names of fields are built once, and values that come again
and again (times of one turn, names of services) are decoded once.

The phase of a step of a plain saga is not written. It follows from the status of the step and, for the current step,
from what the saga waits for. In a graph, several steps may wait for something, so each has its phase and its time.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import compress
from operator import is_not
from typing import Any, Final

from msgspec import NODEFAULT, Struct
from msgspec.structs import astuple, fields

from sagastream.core.phases import ACTIVE, IN_FLIGHT, LEFT_ALONE, UNDO, Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step, StepStatus
from sagastream.core.steps import (
    FORMATS,
    MAX_STEPS,
    PLAIN,
    PLAIN_SHAPE,
    Shape,
    StepDefinition,
    default_attempts,
    unlike_defaults,
)
from sagastream.errors import CorruptSaga, NewerFormat, UnreadableSaga
from sagastream.store.columns import (
    PLACES,
    SAGA,
    SHAPE,
    STEP_FIELD,
    Column,
    StepFields,
    Word,
    flag,
    iso,
    step_fields,
    step_numbers,
    whole_number,
)

# --- written


#: The attributes that a saga takes from its current step, in the order of `_waits`.
_OF_THE_STEP: Final = ("parked", "times_out_ms", "send_again_ms")


def _waits(step: Step) -> tuple[str | None, int | None, int | None]:
    """What the current step waits for."""
    if step.phase in IN_FLIGHT:
        return step.parked, step.due_ms, None
    return step.parked, None, step.due_ms


def _unsaid(kind: type[Struct]) -> dict[str, Any]:
    """The default of each attribute. Defaults are not written."""
    return {field.name: None if field.default is NODEFAULT else field.default for field in fields(kind)}


#: The columns of SAGA by the attributes of SagaState; None: it has none.
_SAGA_COLUMNS: Final = tuple(map(SAGA.get, SagaState.__struct_fields__))
_UNSAID_SAGA: Final = tuple(_unsaid(SagaState).values())
_WAIT_COLUMNS: Final = tuple([SAGA[attribute] for attribute in _OF_THE_STEP])
_UNSAID_WAITS: Final = (None, None, None)
_TIMES_OUT: Final = SAGA["times_out_ms"].field
#: The same columns without the fields with which `_all_fields` begins.
_FIRST: Final = ("status", "current_step", "updated_ms", "compensating_steps")
_FURTHER_COLUMNS: Final = tuple([None if name in _FIRST else SAGA.get(name) for name in SagaState.__struct_fields__])
#: The values of a step to which nothing has happened. Only its definition is written.
_UNSAID_STEP: Final = tuple(_unsaid(Step).values())
_UNSAID_SHAPE: Final = tuple(_unsaid(Shape).values())
_INDEXES: Final = tuple(range(max(len(_UNSAID_SAGA), len(_UNSAID_STEP))))


def next_version(before: SagaState | None) -> int:
    """The version of a saga after a change is committed. `before`: the saga before that; None: it begins."""
    return 1 if before is None else before.version + 1


def changed_fields(before: SagaState | None, after: SagaState | None) -> list[Word]:
    """The fields and values to write so that the hash of `before` becomes that of `after`.

    The two share the steps that did not change, so those are skipped. A step's definition never changes.
    """
    if after is None or after is before:
        return []
    if before is None:
        return _all_fields(after)
    words: list[Word] = ["version", next_version(before)]
    if before.updated_ms != after.updated_ms or before.waiting_for != after.waiting_for:
        words += ("waiting_for", after.waiting_for)
    _add_changed(words, _SAGA_COLUMNS, astuple(before), astuple(after))
    _add_waits(words, before.step, after.step)
    completed, is_plain = False, after.format == PLAIN
    for number, (earlier, step) in enumerate(zip(before.steps, after.steps, strict=True), 1):
        if step is not earlier:
            _add_changed_step(words, step_fields(number), earlier, step, is_plain=is_plain)
            if step.answered_ms is not earlier.answered_ms or step.late_ms is not earlier.late_ms:
                completed = completed or _has_completed(earlier, step)
    if completed:
        words += ("completed_steps", step_numbers(after.completed_steps))
    return words


def _add_waits(words: list[Word], was: Step, now: Step) -> None:
    """Add what changed of what the current step waits for."""
    if was.phase is now.phase is Phase.OUT:  # the usual case: one command after another is out
        if was.due_ms != now.due_ms:
            words += (_TIMES_OUT, "" if now.due_ms is None else iso(now.due_ms))
    else:
        _add_changed(words, _WAIT_COLUMNS, _waits(was), _waits(now))


def _has_completed(was: Step, now: Step) -> bool:
    """Whether a step is one of `completed_steps` that was not before."""
    # A step may complete and be undone in one change: its phase is not COMPLETED then.
    return now.completed and not was.completed


def _all_fields(state: SagaState) -> list[Word]:
    # First what every commit compares or changes: to find a field of a hash in its compact encoding, the server goes
    # through all fields before it.
    is_plain = state.format == PLAIN
    words: list[Word] = ["version", next_version(None), "updated_at", iso(state.updated_ms), "status", state.status]
    words += ("current_step", state.current_step, "completed_steps", step_numbers(state.completed_steps))
    words += ("waiting_for", state.waiting_for)
    _add_changed(words, _WAIT_COLUMNS, _UNSAID_WAITS, _waits(state.step))
    names = [step_fields(number) for number in range(1, len(state.steps) + 1)]
    for named, step in zip(names, state.steps, strict=True):
        words += (named.status, step.status)
    words += ("saga_id", state.saga_id, "steps", len(state.steps))
    words += ("compensating_steps", step_numbers(state.compensating_steps))
    _add_changed(words, _FURTHER_COLUMNS, _UNSAID_SAGA, astuple(state))
    for number, (named, step) in enumerate(zip(names, state.steps, strict=True), 1):
        definition = step.definition
        transaction, service, params = named.needed
        words += (transaction, definition.transaction)
        if definition.shape.sends:
            words += (service, definition.service)
        words += (params, definition.params.decode())
        words += _option_words(number, definition.options)
        if definition.shape is not PLAIN_SHAPE:
            _add_changed(words, named.shape, _UNSAID_SHAPE, astuple(definition.shape))
        values = astuple(step)
        if values[1:] != _UNSAID_STEP[1:]:
            _add_changed(words, named.stored if is_plain else named.stored_of_graph, _UNSAID_STEP, values)
            if step.skipped:
                words += (named.skipped, 1)
    return words


def data_of_definition(number: int, definition: StepDefinition) -> list[Word]:
    """The fields and values of what people have put into the definition of step `number`. No commit changes them; an
    erasure does."""
    named = step_fields(number)
    words: list[Word] = [named.needed[2], definition.params.decode()]
    if definition.shape is not PLAIN_SHAPE:
        told = zip(Shape.__struct_fields__, named.shape, astuple(definition.shape), strict=True)
        for attribute, column, value in told:
            if attribute in ("when", "compensation_params") and column is not None and value is not None:
                words += (column.field, value.decode())
    return words


@lru_cache(maxsize=1024)  # the steps of a program are alike
def _option_words(number: int, options: tuple[Any, ...]) -> tuple[Word, ...]:
    """The fields and values of the options of step `number` that do not have their defaults. `options`: the values of
    all."""
    columns = step_fields(number).definition
    words: list[Word] = []
    for attribute, value in unlike_defaults(options).items():
        field, _, write = columns[attribute]
        words += (field, value if write is None else write(value))
    return tuple(words)


def _add_changed_step(words: list[Word], named: StepFields, was: Step, now: Step, *, is_plain: bool) -> None:
    """Add the fields of a step that changed."""
    moved = was.phase is not now.phase
    if (moved or was.unknown is not now.unknown) and was.status is not (status := now.status):
        words += (named.status, status)
    _add_changed(words, named.stored if is_plain else named.stored_of_graph, astuple(was), astuple(now))
    if moved and (was.phase in LEFT_ALONE) is not (skipped := now.phase in LEFT_ALONE):
        words += (named.skipped, flag(skipped))


def _add_changed(
    words: list[Word], columns: tuple[Column | None, ...], was: tuple[Any, ...], now: tuple[Any, ...]
) -> None:
    """Add the fields whose values changed. A field that is empty now is added only if it was not empty before."""
    for index in compress(_INDEXES, map(is_not, was, now)):
        old, new, column = was[index], now[index], columns[index]
        if column is not None and old != new:
            field, _, write = column
            word = "" if new is None else new if write is None else write(new)
            # `write` makes "" of a count of 0 too. If the field was empty before, "" need not be written.
            if word or (old is not None and (write is None or write(old))):
                words += (field, word)


# --- read


def read(saga_id: str, fields: Mapping[bytes, bytes]) -> SagaState | UnreadableSaga | None:
    """The state that an answer of HGETALL holds. None: there is no such saga. CorruptSaga: the hash is damaged.
    NewerFormat: only a newer release can read it."""
    if not fields:
        return None
    try:
        if (stored := fields.get(b"format")) and (number := whole_number(stored, least=1)) > max(FORMATS):
            return NewerFormat(saga_id, number)
        return _decode(fields, saga_id)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        return CorruptSaga(f"the hash of saga {saga_id} is damaged: {_damage(error)}")


def _damage(error: Exception) -> str:
    """What is wrong with a hash, by the error that its reading ended with."""
    if isinstance(error, KeyError):
        name = error.args[0]
        text = name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)
        return f"it has no field {text if text.isprintable() else ascii(text)}"
    return str(error)


def _decode(fields: Mapping[bytes, bytes], saga_id: str) -> SagaState:
    count = whole_number(fields.get(b"steps") or b"0", most=MAX_STEPS) or _highest_step(fields)
    parts: list[dict[str, Any]] = [{} for _ in range(1 + 2 * count)]
    last = 2 * count
    for field, value in fields.items():
        if value and (place := PLACES[field]) is not None:
            part, attribute, read = place
            if part <= last:
                parts[part][attribute] = read(value)
    saga, version = parts[0], fields[b"version"]
    at = saga["current_step"]
    if not 1 <= at <= count:
        raise ValueError(f"it has {count} steps, and is at step {at}")
    if saga.get("format", PLAIN) == PLAIN:
        _tell_current_step(saga, parts[2 * at - 1])
        steps = tuple(map(_step, parts[1::2], parts[2::2]))
    else:
        for attribute in _OF_THE_STEP:  # of the current step, for people; each step has its own
            saga.pop(attribute, None)
        steps = tuple(map(_step_of_graph, parts[1::2], parts[2::2]))
        _check_graph(saga["status"], steps, saga.get("failed_step"))
    state = SagaState(saga_id=saga_id, steps=steps, version=whole_number(version), **saga)
    if b"%d" % state.version != version:
        raise ValueError(f"version {version!a}")  # the commit compares it as text
    if not (state.ended or state.is_to_start or any(step.is_active for step in steps)):
        # No time would come for it. A plain saga always waits for its current step.
        raise ValueError(f"it is {state.status}, and no step of it waits for anything")
    _check_steps_named(state)
    return state


def _check_steps_named(state: SagaState) -> None:
    """Check that what the saga says of its steps is about steps that it has."""
    count = len(state.steps)
    if state.compensating_steps and max(state.compensating_steps) > count:
        raise ValueError(f"it has {count} steps, and has compensated {state.compensating_steps}")
    if any(done.step is not None and not 1 <= done.step <= count for done in state.interventions):
        raise ValueError(f"it has {count} steps, and an intervention is about another one")


def _tell_current_step(saga: dict[str, Any], step: dict[str, Any]) -> None:
    """Set the phase of the current step of a live saga, and its `due_ms` or `parked`. The hash keeps these with the
    saga, not with the step."""
    parked, times_out_ms = saga.pop("parked", None), saga.pop("times_out_ms", None)
    send_again_ms = saga.pop("send_again_ms", None)
    statuses, in_flight, backing_off, is_parked = _ACTIVE.get(saga["status"], _ENDED)
    if in_flight is None:
        return
    status = step["status"]
    if status not in statuses or "skipped" in step:
        raise ValueError(f"it is {saga['status']} at a step that is {status}")
    if status is StepStatus.FAILED:
        step["unknown"] = True  # a failed step is undone only if its outcome is unknown
    if parked is not None:
        step["phase"], step["parked"] = is_parked, parked
        return
    # If no time is written, the hash is damaged: the command is sent again at once.
    step["phase"] = backing_off if times_out_ms is None else in_flight
    step["due_ms"] = (send_again_ms or 0) if times_out_ms is None else times_out_ms
    if step["phase"] in UNDO and "compensation" not in step:
        raise ValueError("a step is being undone, and its undone_by is missing")


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


def _step_of_graph(members: dict[str, Any], definition: dict[str, Any]) -> Step:
    shape = {name: definition.pop(name) for name in SHAPE if name in definition}
    if (sends := "wait" not in shape and "wait_ms" not in shape) is False:
        definition["service"] = ""
    if shape:
        definition["shape"] = Shape(sends=sends, **shape)
    members.setdefault("phase", Phase.WAITING)
    members.pop("skipped", None)  # for people: the phase says it
    status = members.get("status")
    step = _step(members, definition)
    if step.status is not status or (step.due_ms is None) is (step.phase in _TIMED):
        raise ValueError(f"a step is {status}, and its phase is {step.phase}, with due_at {step.due_ms}")
    if (step.parked is None) is (step.phase in _PARKED):
        raise ValueError(f"the phase of a step is {step.phase}, and parked is {step.parked!a:.80}")
    _check_shape(step)
    return step


#: The phases of steps that wait for a time, and of those that wait for a person.
_TIMED: Final = ACTIVE - {Phase.PARKED, Phase.UNDO_PARKED}
_PARKED: Final = ACTIVE - _TIMED
#: The phases of steps that wait for something, by the status of the saga.
_FITTING: Final = {SagaStatus.PENDING: ACTIVE - UNDO, SagaStatus.COMPENSATING: UNDO}


def _check_shape(step: Step) -> None:
    """Check that a step of a graph waits for nothing that it cannot wait for, and for nothing without an end."""
    shape, phase = step.definition.shape, step.phase
    if shape.wait_ms is None if not shape.sends else phase is Phase.AWAITING:
        raise ValueError("a step waits for a signal or a time, and its wait_ms is missing")
    if not shape.sends and phase in _OF_COMMANDS:
        raise ValueError(f"a step sends nothing, and its phase is {phase}")
    if (shape.retry_on is None) is not (shape.retry_within_ms is None):
        raise ValueError("of retry_on and retry_within_ms, a step has one")
    if phase is Phase.RETRY_AWAITED and shape.retry_on is None:
        raise ValueError("a retry is awaited, and retry_on is missing")
    if phase in _UNDO_SENT and step.compensation is None:
        raise ValueError("a step is being undone, and its undone_by is missing")


#: The phases that only steps have that send commands.
_OF_COMMANDS: Final = _TIMED - {Phase.AWAITING}
#: A compensation was sent.
_UNDO_SENT: Final = UNDO - {Phase.UNDO_PARKED}


def _check_graph(status: SagaStatus, steps: Sequence[Step], failed_step: int | None) -> None:
    """Check that the steps of a graph fit each other and their saga."""
    fitting = _FITTING.get(status, frozenset())
    for number, step in enumerate(steps, 1):
        if step.phase in ACTIVE and step.phase not in fitting:
            raise ValueError(f"it is {status}, and the phase of step {number} is {step.phase}")
        if any(other >= number for other in step.definition.shape.after or ()):
            raise ValueError(f"step {number} comes after a step that does not stand before it")
    if failed_step is not None and failed_step > len(steps):
        raise ValueError(f"it has {len(steps)} steps, and failed_step is {failed_step}")


def _step(members: dict[str, Any], definition: dict[str, Any]) -> Step:
    status = members.pop("status", None)
    if status is None:
        raise ValueError("a step has no status")
    if "sent_ms" in members:
        members.setdefault("attempt", 1)  # one is not written: sent_at says it
    if "compensation_sent_ms" in members:
        members.setdefault("compensation_attempt", 1)
    if "kind" in definition:
        definition.setdefault("attempts", default_attempts(definition["kind"]))
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
    """How many steps a hash has if it has no field `steps`, as in earlier releases: the highest number of a step. So if
    a step in between is missing, that is noticed, and the steps after it are not dropped."""
    return min(MAX_STEPS, max((int(found[1]) for found in map(STEP_FIELD.match, fields) if found), default=0))
