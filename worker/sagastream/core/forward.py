"""What may begin now: which steps are bypassed, which wait for a signal or a time, which send their commands. Pure.

What a step sends is made of its references once, when it is first sent, and kept with the step. So every attempt
carries the same bytes, whatever becomes of the steps before it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from sagastream.core import conditions, plan, references
from sagastream.core.commands import Command
from sagastream.core.pauses import is_paused
from sagastream.core.phases import DONE, Phase
from sagastream.core.references import Failure, Sources
from sagastream.core.saga import KeptSignal, SagaState
from sagastream.core.sending import hold, send_transaction
from sagastream.core.step_state import Step
from sagastream.core.steps import PLAIN, PLAIN_SHAPE, StepKind
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Moment, put
from sagastream.errors import CannotBuild


class Unbuilt(NamedTuple):
    """A step that cannot begin: what it asks for cannot be made of the input and the results, or was declined."""

    number: int
    why: str


class Advance(NamedTuple):
    """What has begun."""

    steps: tuple[Step, ...]
    signals: tuple[KeptSignal, ...]  # those that no step has taken
    commands: list[Command]  # in the order of the steps
    failed: Unbuilt | None = None  # a step that cannot begin, and is not behind the pivot: nothing else has begun


def advance(state: SagaState, steps: tuple[Step, ...], moment: Moment) -> Advance:
    """Begin all of these steps of the saga that may begin now."""
    to_send, signals = plan.ready(steps), state.signals
    if to_send and state.format != PLAIN:  # steps of a plain saga only send their commands
        beginning = _Beginning(state, steps, moment.now_ms)
        try:
            to_send = beginning.begin_all(to_send)
        except _Unbuildable as unbuilt:
            return Advance(beginning.only_bypassed(steps), signals, [], unbuilt.step)
        steps, signals = beginning.steps, beginning.signals
    commands = []
    for number in to_send:
        step = steps[number - 1]
        if moment.paused and is_paused(step.definition.service, step.command, moment.paused):
            steps = put(steps, number, hold(step))
            continue
        step, command = send_transaction(state, number, step, moment.now_ms)
        steps = put(steps, number, step)
        commands.append(command)
    return Advance(steps, signals, commands)


class _Unbuildable(Exception):
    """A step cannot begin, and is not behind the pivot."""

    def __init__(self, step: Unbuilt) -> None:
        super().__init__(step.why)
        self.step = step


class _Beginning:
    """The steps of a saga while some of them begin."""

    def __init__(self, state: SagaState, steps: tuple[Step, ...], now_ms: int) -> None:
        self._now_ms = now_ms
        self.steps = steps
        self.signals = state.signals
        # A result is there or is not: what was parsed once stays true while steps begin.
        self._sources = sources_of(state, lambda: self.steps)
        self._room: int | None = None  # how many bytes of params may still be built; None: that was not needed yet

    def begin_all(self, ready: Sequence[int]) -> list[int]:
        """Begin all that is ready, and what is ready after that. Returns the numbers of the steps whose commands are
        left to be sent, ascending. Raises _Unbuildable."""
        to_send: list[int] = []
        while ready:
            are_done = False
            for number in ready:
                phase = self.begin(number)
                if phase is Phase.WAITING:
                    to_send.append(number)
                elif phase in DONE:
                    are_done = True
            ready = [number for number in plan.ready(self.steps) if number not in to_send] if are_done else ()
        to_send.sort()
        return to_send

    def only_bypassed(self, before: Sequence[Step]) -> tuple[Step, ...]:
        """The steps as they were before, but for those that were bypassed: what fails may come after them."""
        pairs = zip(before, self.steps, strict=True)
        return tuple([after if after.phase is Phase.BYPASSED else old for old, after in pairs])

    def begin(self, number: int) -> Phase:
        """Begin a step that is ready. Returns its phase: if it still waits, its command is left to be sent."""
        step = self.steps[number - 1]
        shape = step.definition.shape
        if shape is PLAIN_SHAPE:
            return step.phase
        try:
            if shape.when is not None and not self._holds(shape.when):
                step = step.moved("bypassed")
            elif not shape.sends:
                step = self._awaiting(step)
            elif shape.has_references and step.built is None:
                if self._room is None:
                    before = [len(one.built) for one in self.steps if one.built is not None]
                    self._room = references.MAX_TOGETHER_BYTES - sum(before)
                params = references.build(step.definition.params, self._sources, self._room)
                self._room -= len(params)
                step = replace(step, built=params)
        except CannotBuild as error:
            if step.definition.kind is not StepKind.RETRIABLE:
                raise _Unbuildable(Unbuilt(number, str(error))) from None
            step = step.moved("parked", parked=str(error), error=encode(str(error)))
        self.steps = put(self.steps, number, step)
        return step.phase

    def _holds(self, condition: bytes) -> bool:
        try:
            return conditions.holds(condition, self._sources)
        except CannotBuild as error:
            raise CannotBuild(f"when: {error}") from None

    def _awaiting(self, step: Step) -> Step:
        shape = step.definition.shape
        assert shape.wait_ms is not None  # every wait and every pause has one
        step = step.moved("awaits", attempt=step.attempt + 1, sent_ms=self._now_ms, due_ms=self._now_ms + shape.wait_ms)
        signal = next((one for one in self.signals if one.name == shape.wait), None)
        if signal is None:
            return step
        self.signals = tuple([one for one in self.signals if one is not signal])
        if signal.declined is not None:
            raise CannotBuild(declined(signal.name, signal.declined))
        return step.moved("completed", answered_ms=self._now_ms, result=signal.payload)


def can_begin(state: SagaState, number: int) -> bool:
    """Whether a step that is parked, since it could not begin, could begin now."""
    steps = put(state.steps, number, state.steps[number - 1].moved("waits again"))
    try:
        return _Beginning(state, steps, state.updated_ms).begin(number) is not Phase.PARKED
    except _Unbuildable:
        return False


def wanted(signals: tuple[KeptSignal, ...], steps: Sequence[Step]) -> tuple[KeptSignal, ...]:
    """Those of the signals that steps may still take: one for each step, the oldest first. The very same object if it
    is all of them.

    A signal that comes while a command is out, to send it again, is not needed if the command is done. It must not send
    another step again, for which nobody has done anything.
    """
    left: list[KeptSignal] = []
    for one in signals:
        if sum(other.name == one.name for other in left) < sum(step.may_take(one.name) for step in steps):
            left.append(one)
    return signals if len(left) == len(signals) else tuple(left)


def declined(name: str, why: str) -> str:
    """Why a step fails that waited for a signal."""
    return f"{name} was declined: {why}"


def sources_of(state: SagaState, steps: Callable[[], Sequence[Step]], failure: Failure | None = None) -> Sources:
    """What the references of the saga's steps may find. `steps`: as they are when something is looked for; `failure`:
    why it goes back, if it does."""

    def result_of(name: str) -> bytes | None:
        number = state.number_of(int(name) if name.isdecimal() else name)
        return None if number is None else steps()[number - 1].result

    return Sources(saga_id=state.saga_id, input=state.input or b"{}", result_of=result_of, failure=failure)
