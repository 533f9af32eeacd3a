"""A saga as it is explored: the same graph, of which all is left out that no decision of the core depends on.

Steps that the core treats alike, and that come between the same steps, are one group: which of them has failed makes no
difference. So a state is kept with the steps of each group sorted, and ten steps at once make tens of states, not
millions.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import orjson
from msgspec.structs import replace

from sagastream.core import graph
from sagastream.core.messages import Begin
from sagastream.core.phases import TO_UNDO, Phase
from sagastream.core.saga import SagaState
from sagastream.core.sending import NOBODY_KNOWS, Published, undo_of
from sagastream.core.step_state import Step
from sagastream.core.steps import AS_PUBLISHED, PLAIN, Shape, StepDefinition, StepKind

SAGA_ID: Final = "explored"
#: The time of every event. A time that comes later is set back to this one when it is to come.
NOW_MS: Final = 1
_SERVICE: Final = "service"
#: No attempt is made twice: what comes after the last attempt is the same, however many there were.
_ONCE: Final = {"attempts": 1, "compensation_attempts": 1, "timeout_ms": 1000, "backoff_ms": 1000}


class Guard(NamedTuple):
    """The condition of a step: a question that other steps may ask, too."""

    variable: str
    holds_if: bool  # the answer with which the step is done


class Model:
    """The groups of a saga, and the saga_begin that is explored in its place."""

    def __init__(self, begin: Begin, published: Published | None) -> None:
        """`published`: what the services publish; None: each step that names no compensation has one."""
        self.definitions = begin.steps
        self._format = begin.format
        self.undos = [_undo(one, published) for one in begin.steps]
        self.guards = [_guard(one) for one in begin.steps]
        self.groups = self._grouped()
        self.groups_of = {number: at for at, group in enumerate(self.groups) for number in group}
        asked = [guard.variable for guard in self.guards if guard is not None]
        self.variables = frozenset(asked)
        #: The questions that only one step asks: which of a group are bypassed makes no difference either.
        self.private = frozenset(variable for variable in asked if asked.count(variable) == 1)
        self._asked: dict[bytes | None, str] = {
            _question(guard): guard.variable for guard in self.guards if guard is not None
        }
        steps = tuple([self._explored(number, one) for number, one in enumerate(begin.steps, 1)])
        has_input = any(guard is not None for guard in self.guards)
        self.begin = Begin(saga_id=SAGA_ID, steps=steps, format=begin.format, input=b"{}" if has_input else None)
        #: A step that names no compensation has none that anybody knows.
        self.published: Published = {}

    def _grouped(self) -> tuple[tuple[int, ...], ...]:
        after = [graph.before(one, number) for number, one in enumerate(self.definitions, 1)]
        followers: list[list[int]] = [[] for _ in self.definitions]
        for number, direct in enumerate(after, 1):
            for other in direct:
                followers[other - 1].append(number)
        asked = [guard and guard.variable for guard in self.guards]
        found: dict[Any, list[int]] = {}
        for number, one in enumerate(self.definitions, 1):
            guard = self.guards[number - 1]
            is_shared = guard is not None and asked.count(guard.variable) > 1
            undo = self.undos[number - 1]
            alike = (after[number - 1], tuple(followers[number - 1]), _facts(one), undo is None, undo == NOBODY_KNOWS)
            found.setdefault((alike, guard if is_shared else guard is not None), []).append(number)
        return tuple(sorted(map(tuple, found.values())))

    def _explored(self, number: int, definition: StepDefinition) -> StepDefinition:
        group, undo, guard = self.groups_of[number], self.undos[number - 1], self.guards[number - 1]
        changes: dict[str, Any] = {"transaction": f"T{group}", "params": b"null"}
        if definition.shape.sends:
            changes |= _ONCE | {"service": _SERVICE, "retry_failed": definition.retry_failed}
            changes["compensation"] = AS_PUBLISHED if undo == NOBODY_KNOWS else undo and f"U{group}"
        if self._format != PLAIN:
            shape = definition.shape
            changes["shape"] = Shape(
                after=graph.before(definition, number),
                when=shape.when if guard is None else _question(guard),
                sends=shape.sends,
                wait=shape.wait and f"W{group}",
                wait_ms=shape.wait_ms and 1000,
                goes_on=shape.goes_on,
                retry_on=shape.retry_on and f"R{group}",
                retry_within_ms=shape.retry_within_ms and 1000,
            )
        return replace(definition, **changes)

    def canonical(self, state: SagaState) -> SagaState:
        """The state without what no decision depends on, and with the steps of each group in one order."""
        steps = [_canonical(step) for step in state.steps]
        for group in self.groups:
            if len(group) > 1:
                ordered = sorted((steps[number - 1] for number in group), key=_order)
                for number, step in zip(group, ordered, strict=True):
                    steps[number - 1] = step
        return replace(
            state,
            steps=tuple(steps),
            current_step=1,
            reason=state.reason and "reason",
            cancelling=state.cancelling and "reason",
            failed_step=None,
            compensating_steps=(),
            interventions=(),
            input=self.begin.input,
        )

    def to_undo(self, state: SagaState) -> tuple[int, ...]:
        """Of each group how many steps have, or may have, an effect that is to be undone."""
        return tuple([sum(self.needs_undo(state, number) for number in group) for group in self.groups])

    def needs_undo(self, state: SagaState, number: int) -> bool:
        """Whether this step has, or may have, an effect that is to be undone."""
        return state.steps[number - 1].phase in TO_UNDO and self.undos[number - 1] is not None

    def alike(self, number: int) -> tuple[int, ...]:
        """The group of a step."""
        return self.groups[self.groups_of[number]]

    def open_questions(self, state: SagaState) -> set[str]:
        """What the steps will ask that were not begun yet."""
        shapes = [step.definition.shape for step in state.steps if step.phase is Phase.WAITING]
        return {self._asked[shape.when] for shape in shapes if shape.when in self._asked}

    def asked(self, before: SagaState | None, after: SagaState) -> Iterator[tuple[int, str]]:
        """The questions that were answered in between, each with the group of a step that asked it."""
        steps = [Step(definition=one) for one in self.begin.steps] if before is None else before.steps
        for number, step in enumerate(steps, 1):
            has_begun = step.phase is Phase.WAITING and after.steps[number - 1].phase is not Phase.WAITING
            if has_begun and (variable := self._asked.get(step.definition.shape.when)) is not None:
                yield self.groups_of[number], variable


def _undo(definition: StepDefinition, published: Published | None) -> str | None:
    """What undoes a step; None: nothing is to be undone; or NOBODY_KNOWS."""
    if definition.kind is StepKind.RETRIABLE or not definition.shape.sends:
        return None
    if published is None:
        return "undo" if definition.compensation == AS_PUBLISHED else definition.compensation
    return undo_of(definition, published)


def _guard(definition: StepDefinition) -> Guard | None:
    if definition.shape.when is None:
        return None
    condition, holds_if = orjson.loads(definition.shape.when), True
    while isinstance(condition, dict) and condition.keys() == {"not"}:
        condition, holds_if = condition["not"], not holds_if
    if isinstance(condition, bool):
        return None  # it is known
    return Guard(orjson.dumps(condition, option=orjson.OPT_SORT_KEYS).decode(), holds_if)


def _facts(definition: StepDefinition) -> tuple[Any, ...]:
    """What the core's decisions depend on, of one step."""
    shape = definition.shape
    waits = (shape.sends, shape.wait is None, shape.goes_on, shape.retry_on is None)
    return (definition.kind, definition.retry_failed, *waits, shape.when in (None, b"true"))


def _question(guard: Guard) -> bytes:
    reference = {"$ref": f"/input/{guard.variable.replace('~', '~0').replace('/', '~1')}"}
    return orjson.dumps({"eq": [reference, guard.holds_if]})


def answers(known: Mapping[str, bool], variables: Iterable[str]) -> bytes:
    """The input of a saga in which the questions have these answers; those that are not known yet are answered yes."""
    return orjson.dumps(dict.fromkeys(variables, True) | dict(known))


def _canonical(step: Step) -> Step:
    is_waiting = step.phase is Phase.WAITING
    definition = step.definition
    if not is_waiting and definition.shape.when is not None:  # it is not asked again
        definition = replace(definition, shape=replace(definition.shape, when=b"true"))
    return Step(
        definition=definition,
        phase=step.phase,
        attempt=0 if step.attempt == 0 else 1,
        unknown=step.unknown,
        sent_ms=None if step.sent_ms is None else NOW_MS,
        compensation=step.compensation,
        compensation_attempt=0 if step.compensation_attempt == 0 else 1,
        due_ms=step.due_ms,
        parked=step.parked and "parked",
    )


def _order(step: Step) -> tuple[str, bool, bytes]:
    return step.phase, step.unknown, step.definition.shape.when or b""
