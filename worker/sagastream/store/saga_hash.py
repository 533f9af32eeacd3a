"""A saga's hash: flat, and meant to be read by people.

`HGETALL` shows where the saga is, why it waits, and when each step was sent and answered. All members of the protocol's
SagaState are there, each under its own name; `steps` is their number, since each step has fields of its own. Times are
ISO 8601 in UTC with milliseconds. Fields are added or overwritten, never deleted, so a hash in its compact encoding
lists them in the order in which they were first written: first those that change again and again. An empty
field says that its value no longer holds. stored_steps.py reads the steps.

Every change of a saga writes its hash, and many read it, so this module is written for speed: states go through the
tables of columns.py in loops that run in C where possible. Names of fields are built once, and values that come again
and again (times of one turn, names of services) are decoded once.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import compress
from operator import is_not
from typing import Any, Final

from msgspec import NODEFAULT, Struct
from msgspec.structs import astuple, fields

from sagastream.core.phases import IN_FLIGHT, LEFT_ALONE, Phase
from sagastream.core.saga import SagaState
from sagastream.core.step_state import Step
from sagastream.core.steps import (
    FORMATS,
    MAX_STEPS,
    PLAIN,
    PLAIN_SHAPE,
    Shape,
    StepDefinition,
    unlike_defaults,
)
from sagastream.errors import CorruptSaga, NewerFormat, UnreadableSaga
from sagastream.store.columns import (
    PLACES,
    SAGA,
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
from sagastream.store.stored_steps import check_graph, step_of, step_of_graph, tell_current_step

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
        tell_current_step(saga, parts[2 * at - 1])
        steps = tuple(map(step_of, parts[1::2], parts[2::2]))
    else:
        for attribute in _OF_THE_STEP:  # of the current step, for people; each step has its own
            saga.pop(attribute, None)
        steps = tuple(map(step_of_graph, parts[1::2], parts[2::2]))
        check_graph(saga["status"], steps, saga.get("failed_step"))
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


def _highest_step(fields: Mapping[bytes, bytes]) -> int:
    """How many steps a hash has if it has no field `steps`, as in earlier releases: the highest number of a step. So if
    a step in between is missing, that is noticed, and the steps after it are not dropped."""
    return min(MAX_STEPS, max((int(found[1]) for found in map(STEP_FIELD.match, fields) if found), default=0))
