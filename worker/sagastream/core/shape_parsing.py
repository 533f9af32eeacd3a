"""Reading what only a saga of format GRAPH may say of its steps, strictly; and checking its graph as a whole."""

import re
from collections.abc import Sequence
from typing import Any, Final

from sagastream.core import conditions, graph, references
from sagastream.core.members import limit, name_in
from sagastream.core.pointers import kind_of
from sagastream.core.references import Known, Roots
from sagastream.core.steps import (
    FAILS,
    GOES_ON,
    MAX_WAIT_MS,
    PAUSE,
    PLAIN_SHAPE,
    Shape,
    StepDefinition,
    StepKind,
)
from sagastream.core.strict_json import encode_payload, trimmed
from sagastream.errors import MalformedMessage

#: The id of a step. A definition that repeats a step for each item of a list adds a dot and a number.
STEP_ID_PATTERN: Final = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9_-]{1,64}(\.[0-9]{1,3})?")
#: The members of a step that only the format GRAPH has.
SHAPE_MEMBERS: Final = frozenset(
    {
        "id",
        "after",
        "when",
        "compensation_params",
        "wait",
        "wait_ms",
        "on_timeout",
        "retry_on",
        "retry_within_ms",
    }
)
_OF_A_WAIT: Final = {"id", "after", "when", "wait", "timeout_ms", "on_timeout"}
_OF_A_PAUSE: Final = {"id", "after", "when", "wait_ms"}
_IN_ORDER: Final = ("id", "after", "when", "wait", "timeout_ms", "on_timeout", "wait_ms")


class ShapeReader:
    """Reads the steps of one saga, in order: it knows the ids of those before."""

    def __init__(self, *, has_input: bool) -> None:
        """`has_input`: whether the saga has an input. Only then its params may refer to something."""
        self._has_input = has_input
        self._numbers: dict[str, int] = {}  # by id
        self._has_pivot = False

    def read(self, step: dict[str, Any], number: int, where: str) -> Shape:
        """What a step says that only this format may say."""
        if "on_timeout" in step and "wait" not in step:
            raise MalformedMessage(f"{where}: on_timeout is of a wait: leave it out of a step that sends a command")
        step_id = self._id(step, number, where)
        after = self._after(step, number, where) if "after" in step else None
        shape = Shape(
            id=step_id,
            after=None if after == graph.before(_PLAIN, number) else after,
            when=self._template(step, "when", where),
            has_references=self._has_input and references.has_references(step.get("params")),
            compensation_params=self._template(step, "compensation_params", where),
            **_retry_on(step, where),
        )
        if step.get("kind") == StepKind.PIVOT:
            self._has_pivot = True
            if shape.when is not None:
                raise MalformedMessage(f"{where}: a pivot cannot have a condition: put it on the steps around it")
        return PLAIN_SHAPE if shape == PLAIN_SHAPE else shape

    def read_wait(self, step: dict[str, Any], number: int, where: str) -> StepDefinition | None:
        """The step if it is a wait or a pause; None: it is not."""
        if "wait" in step:
            _check_members(step, where, "a wait", _OF_A_WAIT)
            name, member = name_in(step, "wait", where), "timeout_ms"
        elif "wait_ms" in step:
            _check_members(step, where, "a pause", _OF_A_PAUSE)
            name, member = PAUSE, "wait_ms"
        else:
            return None
        if member not in step:
            raise MalformedMessage(f"{where}: {member} is missing: for how long it waits for {name} at most")
        shape = self.read({key: value for key, value in step.items() if key in SHAPE_MEMBERS}, number, where)
        return StepDefinition(
            transaction=name,
            service="",
            params=b"null",
            compensation=None,
            # It sends nothing, so its kind only says what happens if its signal does not come.
            kind=StepKind.RETRIABLE if self._has_pivot else StepKind.COMPENSATABLE,
            shape=_with_wait(shape, step, member, where),
        )

    def _id(self, step: dict[str, Any], number: int, where: str) -> str | None:
        if "id" not in step:
            return None
        found = step["id"]
        if not isinstance(found, str) or not STEP_ID_PATTERN.fullmatch(found):
            raise MalformedMessage(f"{where}: id must be 1 to 64 characters of A-Z a-z 0-9 _ -, and not a number")
        if (other := self._numbers.setdefault(found, number)) != number:
            raise MalformedMessage(f"{where}: the id {found} is that of step {other} already")
        return found

    def _after(self, step: dict[str, Any], number: int, where: str) -> tuple[int, ...]:
        names = step["after"]
        if not isinstance(names, list):
            raise MalformedMessage(f"{where}: after must be a list of ids or numbers of steps before it")
        return tuple(sorted({self._earlier(name, number, f"{where}: after/{at}") for at, name in enumerate(names)}))

    def _earlier(self, name: object, number: int, where: str) -> int:
        found = self._numbers.get(name, 0) if isinstance(name, str) else name
        if type(found) is not int or not 1 <= found < number:
            what = f"{name!a:.80}" if isinstance(name, str) or type(name) is int else kind_of(name)
            raise MalformedMessage(f"{where}: {what} is not the id or number of a step before it in the list")
        return found

    def _template(self, step: dict[str, Any], member: str, where: str) -> bytes | None:
        if member not in step:
            return None
        if not self._has_input:
            raise MalformedMessage(f"{where}: {member} needs a saga with an input; it may be empty: {{}}")
        return trimmed(encode_payload(step[member]))


def _check_members(step: dict[str, Any], where: str, what: str, known: set[str]) -> None:
    """Check that a wait or a pause has no other members. `what`: which of them it is."""
    if (more := min(step.keys() - known, default=None)) is not None:
        names = ", ".join(name for name in _IN_ORDER if name in known)
        raise MalformedMessage(f"{where}: {what} cannot have {more}, only {names}")


_PLAIN: Final = StepDefinition(transaction="", service="", params=b"")


def _retry_on(step: dict[str, Any], where: str) -> dict[str, Any]:
    if ("retry_on" in step) is not ("retry_within_ms" in step):
        raise MalformedMessage(f"{where}: retry_on and retry_within_ms belong together, and one of them is missing")
    if "retry_on" not in step:
        return {}
    if step.get("kind") == StepKind.RETRIABLE:
        raise MalformedMessage(f"{where}: a retriable step has no last failure to wait after: leave retry_on out")
    within_ms = limit(step["retry_within_ms"], "retry_within_ms", where, MAX_WAIT_MS)
    return {"retry_on": name_in(step, "retry_on", where), "retry_within_ms": within_ms}


def _with_wait(shape: Shape, step: dict[str, Any], member: str, where: str) -> Shape:
    on_timeout = step.get("on_timeout", FAILS)
    if on_timeout not in (FAILS, GOES_ON):
        raise MalformedMessage(f"{where}: on_timeout must be one of {FAILS}, {GOES_ON}")
    return Shape(
        id=shape.id,
        after=shape.after,
        when=shape.when,
        sends=False,
        wait=step.get("wait"),
        wait_ms=limit(step[member], member, where, MAX_WAIT_MS),
        goes_on=on_timeout == GOES_ON,
    )


def check_graph(definitions: Sequence[StepDefinition], steps: Sequence[Any]) -> None:
    """Check what no step shows by itself: what runs beside the pivot, and what references may find. `steps`: the same
    steps, as decoded JSON."""
    for number, pivot in graph.beside_pivot(definitions):
        side = "before" if number < pivot else "after"
        raise MalformedMessage(
            f"step {number}: it might run beside the pivot, step {pivot}, which is the point of no return: "
            f"each step {side} it in the list must come {side} it by `after`, too"
        )
    ancestors = graph.ancestors(definitions)
    for number, (definition, step) in enumerate(zip(definitions, steps, strict=True), 1):
        shape = definition.shape
        if shape.when is not None:
            roots = roots_of(definitions, number, ancestors[number - 1])
            _raise_first(number, "when", conditions.problems(step["when"], roots))
        if shape.has_references:
            roots = roots_of(definitions, number, ancestors[number - 1])
            _raise_first(number, "params", references.problems(step["params"], roots))
        if shape.compensation_params is not None:
            roots = roots_of(definitions, number, ancestors[number - 1], undoes=True)
            _raise_first(number, "compensation_params", references.problems(step["compensation_params"], roots))


def roots_of(
    definitions: Sequence[StepDefinition], number: int, ancestors: frozenset[int], *, undoes: bool = False
) -> Roots:
    """What the references of step `number` may name. `undoes`: those of its `compensation_params`."""
    own = definitions[number - 1].shape
    steps: dict[str, Known] = {}
    for at, definition in enumerate(definitions, 1):
        shape = definition.shape
        is_a_pause = not shape.sends and shape.wait is None
        if at == number:
            known = Known.ITSELF
        elif at not in ancestors:
            known = Known.OTHER
        elif is_a_pause:
            known = Known.PAUSE
        elif shape.goes_on or (shape.when is not None and shape.when != own.when):
            known = Known.MAY_BE_BYPASSED
        else:
            known = Known.ANCESTOR
        steps[str(at)] = known
        if shape.id is not None:
            steps[shape.id] = known
    return Roots(steps=steps, failure=undoes, own=undoes)


def _raise_first(number: int, member: str, problems: Any) -> None:
    for path, text in problems:
        raise MalformedMessage(f"step {number}: {member}{path}: {text}")
