"""Reading the steps of a saga_begin, strictly."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Final

from sagastream.core.members import checked_object, flag_in, limit, name_in
from sagastream.core.messages import SERVICE_PATTERN
from sagastream.core.shape_parsing import SHAPE_MEMBERS, ShapeReader, check_graph
from sagastream.core.steps import (
    AS_PUBLISHED,
    GRAPH,
    MAX_ATTEMPTS,
    MAX_BACKOFF_MS,
    MAX_STEPS,
    MAX_TIMEOUT_MS,
    OPTIONS,
    PLAIN,
    PLAIN_SHAPE,
    USUAL_ATTEMPTS,
    StepDefinition,
    StepKind,
    default_attempts,
)
from sagastream.core.strict_json import encode, encode_payload, trimmed, value_of
from sagastream.errors import MalformedMessage

_MEMBERS: Final = {"transaction", "service", "params", *OPTIONS}
_MEMBERS_OF_A_GRAPH: Final = _MEMBERS | SHAPE_MEMBERS
#: Steps of up to this many bytes are read once for all sagas that have them, if the data of these is elsewhere.
_KNOWN_BYTES: Final = 8192


def parse_steps(
    steps: object, *, plain: bool, format_number: int = PLAIN, has_input: bool = False
) -> tuple[StepDefinition, ...]:
    """The value of the member `steps`. Raises MalformedMessage, which says what is wrong and where.

    Args:
        plain: options that a step does not name have the defaults of the plain format; otherwise, those that are usual.
        format_number: the format of the saga.
        has_input: whether the saga has an input.
    """
    if not isinstance(steps, list) or not 1 <= len(steps) <= MAX_STEPS:
        raise MalformedMessage(f"steps must be a list of 1 to {MAX_STEPS}")
    # The data of a saga with an input is there, so the steps of a program's sagas are alike, word for word. Only those
    # that come over the wire are looked up: a program might write the same JSON by values that are refused.
    if plain and has_input and (text := _short_text(steps)) is not None:
        return _known_steps(text, format_number)
    return _parsed_steps(steps, plain=plain, format_number=format_number, has_input=has_input)


def _short_text(steps: list[Any]) -> bytes | None:
    try:
        text = encode(steps)
    except TypeError:  # too deep: that is told where it is found
        return None
    return text if len(text) <= _KNOWN_BYTES else None


@lru_cache(maxsize=256)
def _known_steps(text: bytes, format_number: int) -> tuple[StepDefinition, ...]:
    return _parsed_steps(value_of(text), plain=True, format_number=format_number, has_input=True)


def _parsed_steps(steps: list[Any], *, plain: bool, format_number: int, has_input: bool) -> tuple[StepDefinition, ...]:
    shapes = ShapeReader(has_input=has_input) if format_number >= GRAPH else None
    definitions = tuple([_parse_step(step, number, shapes, plain=plain) for number, step in enumerate(steps, 1)])
    _check_order(definitions)
    if shapes is not None:
        check_graph(definitions, steps)
    return definitions


def _parse_step(step: Any, number: int, shapes: ShapeReader | None, *, plain: bool) -> StepDefinition:
    where = f"step {number}"
    try:
        checked_object(step, where, _MEMBERS if shapes is None else _MEMBERS_OF_A_GRAPH)
    except MalformedMessage:
        _tell_better(step, where)
        raise
    if shapes is not None and (wait := shapes.read_wait(step, number, where)) is not None:
        return wait
    options = {name: _OPTION_READERS[name](step, name, where) for name in _options_among(tuple(step))}
    if not plain:
        options.setdefault("attempts", USUAL_ATTEMPTS)
        if options.get("kind") is not StepKind.RETRIABLE and options.get("compensation", AS_PUBLISHED) is not None:
            options.setdefault("compensation_attempts", USUAL_ATTEMPTS)
    elif "kind" in options:
        options.setdefault("attempts", default_attempts(options["kind"]))
    transaction = name_in(step, "transaction", where)
    if options.get("compensation") == transaction:
        raise MalformedMessage(f"{where}: a transaction cannot be its own compensation")
    return StepDefinition(
        transaction=transaction,
        service=name_in(step, "service", where, SERVICE_PATTERN),
        params=trimmed(encode_payload(step.get("params"))),
        shape=PLAIN_SHAPE if shapes is None else shapes.read(step, number, where),
        **options,
    )


#: What other programs call it.
_CALLED_ELSEWHERE: Final = {"depends_on": "after", "dependsOn": "after", "needs": "after", "if": "when"}


def _tell_better(step: Any, where: str) -> None:
    """Raises MalformedMessage if it can be said what an unknown member was meant as, whatever the format is."""
    members = set(step) if isinstance(step, dict) else set()
    if "each" in members:
        raise MalformedMessage(f"{where}: each is only of the steps of a definition: in one saga, write each step")
    for name in sorted(members - _MEMBERS_OF_A_GRAPH):
        near = get_close_matches(name, sorted(_MEMBERS_OF_A_GRAPH - members), 1)
        if name in _CALLED_ELSEWHERE and _CALLED_ELSEWHERE[name] not in members:
            raise MalformedMessage(f"{where} has an unknown member {name!a}; is it meant as {_CALLED_ELSEWHERE[name]}?")
        if near:
            raise MalformedMessage(f"{where} has an unknown member {name[:128]!a}; is it a misspelling of {near[0]}?")


@lru_cache(maxsize=1024)  # the steps of a program are alike
def _options_among(members: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([name for name in OPTIONS if name in members])


def _undo(step: dict[str, Any], name: str, where: str) -> str | None:
    return None if step[name] is None else name_in(step, name, where)


def _kind(step: dict[str, Any], name: str, where: str) -> StepKind:
    try:
        return StepKind(step[name])
    except ValueError:
        raise MalformedMessage(f"{where}: kind must be one of {', '.join(StepKind)}") from None


def _at_most(most: int) -> Callable[[dict[str, Any], str, str], int]:
    def read(step: dict[str, Any], name: str, where: str) -> int:
        number = step[name]
        # The usual case without a call: each step of each request names two of these.
        return number if type(number) is int and 1 <= number <= most else limit(number, name, where, most)

    return read


#: How each option of a step is read.
_OPTION_READERS: Final[dict[str, Callable[[dict[str, Any], str, str], Any]]] = {
    "compensation": _undo,
    "kind": _kind,
    "timeout_ms": _at_most(MAX_TIMEOUT_MS),
    "attempts": _at_most(MAX_ATTEMPTS),
    "compensation_attempts": _at_most(MAX_ATTEMPTS),
    "backoff_ms": _at_most(MAX_BACKOFF_MS),
    "retry_failed": flag_in,
}


def _check_order(steps: Sequence[StepDefinition]) -> None:
    """Check that the compensatable steps come first, then the pivot, then the retriable steps."""
    pivot = next((number for number, step in enumerate(steps, 1) if step.kind is StepKind.PIVOT), None)
    for number, step in enumerate(steps, 1):
        before = pivot is None or number < pivot
        if step.kind is StepKind.RETRIABLE and before:
            raise MalformedMessage(f"step {number}: a retriable step needs a pivot before it")
        if step.kind is StepKind.RETRIABLE and step.compensation:
            raise MalformedMessage(f"step {number}: a retriable step is never undone, and names no compensation")
        if not before and number != pivot and step.kind is not StepKind.RETRIABLE:
            what = "there is at most one pivot" if step.kind is StepKind.PIVOT else "after the pivot comes no way back"
            raise MalformedMessage(f"step {number}: {what}: the steps after it must be retriable")
