"""A saga as it is explored: the same graph, with only what the decisions of the core depend on.

Of branches that are alike (see symmetry.py), it makes no difference which is where. So their steps have the same names
here, and a state is kept with such branches in one order: ten steps at once make tens of states, not millions.
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
from sagastream_bridge.definitions.symmetry import symmetry

SAGA_ID: Final = "explored"
#: The time of every event. A time that comes later is set back to this one when it is to come.
NOW_MS: Final = 1
_SERVICE: Final = "service"
#: No attempt is made twice: what comes after the last attempt is the same, however many there were.
_ONCE: Final = {"attempts": 1, "compensation_attempts": 1, "timeout_ms": 1000, "backoff_ms": 1000}
#: It finds nothing: the input of a saga that is explored has only the answers to its questions.
_NOTHING: Final = b'{"$ref":"/input/?"}'
_UNDECIDABLE: Final = b'{"eq":[{"$ref":"/input/?"},true]}'

#: What tells a state from others.
Key = tuple[Any, ...]


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
        asked = [guard.variable for guard in self.guards if guard is not None]
        self.variables = frozenset(asked)
        #: The questions that only one step asks.
        self.private = frozenset(variable for variable in asked if asked.count(variable) == 1)
        # Those may as well be asked the other way round: then yes lets each step of a group begin.
        self.guards = [
            guard._replace(holds_if=True) if guard is not None and guard.variable in self.private else guard
            for guard in self.guards
        ]
        #: The steps that may fail before they begin. That is not as if they fail later: nothing begins beside them, and
        #: they wait for no signal to be sent again.
        self._may_not_begin = frozenset(number for number, one in enumerate(begin.steps, 1) if _is_built(one))
        self._before = [graph.before(one, number) for number, one in enumerate(begin.steps, 1)]
        self._alike, self.groups = symmetry(self._before, [self._facts(number) for number in range(len(begin.steps))])
        self._branches_of = {
            number: [one for branches in self._alike for one in branches if number in one]
            for number in range(1, len(begin.steps) + 1)
        }
        self._moments: dict[tuple[Any, ...], int] = {}  # each state of a step, as a number
        self.groups_of = {number: at for at, group in enumerate(self.groups) for number in group}
        self._asked: dict[bytes | None, str] = {
            _question(guard): guard.variable for guard in self.guards if guard is not None
        }
        steps = tuple([self._explored(number, one) for number, one in enumerate(begin.steps, 1)])
        has_input = any(guard is not None for guard in self.guards)
        self.begin = Begin(saga_id=SAGA_ID, steps=steps, format=begin.format, input=b"{}" if has_input else None)
        #: A step that names no compensation has none that anybody knows.
        self.published: Published = {}

    def _explored(self, number: int, definition: StepDefinition) -> StepDefinition:
        group, undo, guard = self.groups_of[number], self.undos[number - 1], self.guards[number - 1]
        changes: dict[str, Any] = {"transaction": f"T{group}", "params": b"null"}
        if definition.shape.sends:
            changes |= _ONCE | {"service": _SERVICE, "retry_failed": definition.retry_failed}
            changes["compensation"] = AS_PUBLISHED if undo == NOBODY_KNOWS else undo and f"U{group}"
        if self._format != PLAIN:
            shape = definition.shape
            changes["shape"] = Shape(
                after=self._before[number - 1],
                when=shape.when if guard is None else _question(guard),
                sends=shape.sends,
                wait=shape.wait and f"W{number}",
                wait_ms=shape.wait_ms and 1000,
                goes_on=shape.goes_on,
                retry_on=shape.retry_on and f"R{number}",
                retry_within_ms=shape.retry_within_ms and 1000,
            )
        return replace(definition, **changes)

    def _facts(self, at: int) -> tuple[Any, ...]:
        """What the core's decisions on a step depend on, besides its place in the graph."""
        definition, guard, undo = self.definitions[at], self.guards[at], self.undos[at]
        shape = definition.shape
        condition = guard if guard is not None and guard.variable not in self.private else guard is not None
        waits = (shape.sends, shape.wait is None, shape.goes_on, shape.retry_on is None)
        known = (condition, guard is not None or shape.when in (None, b"true"), at + 1 in self._may_not_begin)
        return definition.kind, definition.retry_failed, undo is None, undo == NOBODY_KNOWS, waits, known

    def canonical(self, state: SagaState) -> tuple[Key, SagaState]:
        """The state with branches that are alike in one order, and without what no decision depends on; and what tells
        it from all others."""
        key = [self._moments.setdefault(_moment(step), len(self._moments)) for step in state.steps]
        sources = list(range(len(key)))
        for branches in self._alike:
            ordered = sorted(([(key[n - 1], sources[n - 1]) for n in branch] for branch in branches), key=_by_moments)
            for branch, parts in zip(branches, ordered, strict=True):
                for number, (moment, source) in zip(branch, parts, strict=True):
                    key[number - 1], sources[number - 1] = moment, source
        steps = [_plain(state.steps[at], one) for at, one in zip(sources, self.begin.steps, strict=True)]
        plain = replace(
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
        return (state.status, state.cancelling is None, *key), plain

    def places(self, state: SagaState, group: int) -> list[int]:
        """Of the steps of a group, one for each of the states in which they and the branches around them are."""
        found: dict[Key, int] = {}
        for number in self.groups[group]:
            found.setdefault(self._around(state, number), number)
        return list(found.values())

    def _around(self, state: SagaState | None, number: int) -> Key:
        """The state of a step and of the branches that it is in. If two steps of a group have the same, they can change
        places."""
        if state is None:
            return ()
        branches = [(number,), *self._branches_of[number]]
        return tuple([tuple([_moment(state.steps[one - 1]) for one in branch]) for branch in branches])

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

    def may_not_have_begun(self, before: SagaState | None, after: SagaState, answered: Iterable[str]) -> Iterator[int]:
        """The numbers of the steps that have begun in between, but might have failed instead. `answered`: the questions
        that were answered before: each has the same answer for every step."""
        known = set(answered)
        for number, (was, step) in enumerate(zip(self._steps(before), after.steps, strict=True), 1):
            if was.phase is not Phase.WAITING or step.phase is Phase.WAITING:
                continue
            question = self._asked.get(was.definition.shape.when)
            may_fail = self.definitions[number - 1].shape.has_references or question not in known
            if number in self._may_not_begin and may_fail and step.phase is not Phase.BYPASSED:
                yield number
            if question is not None:
                known.add(question)

    def unbuildable(self, number: int) -> StepDefinition:
        """The same step, but it asks for what is not there."""
        definition = self.begin.steps[number - 1]
        changes: dict[str, Any] = {"when": _UNDECIDABLE}
        if definition.shape.sends:
            changes = {"has_references": True}
        return replace(definition, params=_NOTHING, shape=replace(definition.shape, **changes))

    def _steps(self, state: SagaState | None) -> tuple[Step, ...]:
        return tuple([Step(definition=one) for one in self.begin.steps]) if state is None else state.steps

    def asked(self, before: SagaState | None, after: SagaState) -> list[tuple[str, Key]]:
        """The questions that were answered in between; each with what is the same for those of which it makes no
        difference which are answered yes."""
        found = []
        for number, step in enumerate(self._steps(before), 1):
            has_begun = step.phase is Phase.WAITING and after.steps[number - 1].phase is not Phase.WAITING
            if has_begun and (variable := self._asked.get(step.definition.shape.when)) is not None:
                alike = (
                    (self.groups_of[number], self._around(before, number)) if variable in self.private else (variable,)
                )
                found.append((variable, alike))
        return found


def _undo(definition: StepDefinition, published: Published | None) -> str | None:
    """What undoes a step; None: nothing is to be undone; or NOBODY_KNOWS."""
    if definition.kind is StepKind.RETRIABLE or not definition.shape.sends:
        return None
    if published is None:
        return "undo" if definition.compensation == AS_PUBLISHED else definition.compensation
    return undo_of(definition, published)


def _is_built(definition: StepDefinition) -> bool:
    """Whether a step can only begin if its references find something."""
    shape = definition.shape
    return shape.has_references or shape.when not in (None, b"true", b"false")


def _guard(definition: StepDefinition) -> Guard | None:
    if definition.shape.when is None:
        return None
    condition, holds_if = orjson.loads(definition.shape.when), True
    while isinstance(condition, dict) and condition.keys() == {"not"}:
        condition, holds_if = condition["not"], not holds_if
    if isinstance(condition, bool):
        return None  # it is known
    return Guard(orjson.dumps(condition, option=orjson.OPT_SORT_KEYS).decode(), holds_if)


def _question(guard: Guard) -> bytes:
    reference = {"$ref": f"/input/{guard.variable.replace('~', '~0').replace('/', '~1')}"}
    return orjson.dumps({"eq": [reference, guard.holds_if]})


def answers(known: Mapping[str, bool], variables: Iterable[str]) -> bytes:
    """The input of a saga in which the questions have these answers; those that are not known yet are answered yes."""
    return orjson.dumps(dict.fromkeys(variables, True) | dict(known))


def _moment(step: Step) -> tuple[Any, ...]:
    """All of a step's state that a decision depends on."""
    has_been_sent, is_parked = step.sent_ms is not None, step.parked is not None
    return step.phase, step.unknown, step.attempt > 0, has_been_sent, step.compensation, step.due_ms, is_parked


def _plain(step: Step, definition: StepDefinition) -> Step:
    """A step with this definition and the state of another one."""
    return Step(
        definition=definition,
        phase=step.phase,
        attempt=min(step.attempt, 1),
        unknown=step.unknown,
        sent_ms=step.sent_ms and NOW_MS,
        compensation=step.compensation,
        compensation_attempt=min(step.compensation_attempt, 1),
        due_ms=step.due_ms,
        parked=step.parked and "parked",
    )


def _by_moments(steps: list[tuple[int, int]]) -> list[int]:
    return [moment for moment, _ in steps]
