"""Why a live saga waits: the one place that says it. Pure.

`why` is told the state of a saga and the evidence that was found in the store (client/evidence.py). `show`, `list`,
`doctor` and both clients use it, so they say the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from sagastream.core.back import quote
from sagastream.core.causes import Cause, CauseKind, Evidence, Place
from sagastream.core.durations import spoken
from sagastream.core.phases import AWAITS, BACKING_OFF
from sagastream.core.saga import SagaState
from sagastream.core.steps import PLAIN
from sagastream.core.why_out import CommandOut, due_of, late
from sagastream.core.why_parked import parked
from sagastream.core.why_service import hangs, nobody, nobody_has
from sagastream.core.why_waits import awaits, not_started, paused, settles

#: Of at most so many steps whose commands are out it is said why they are; of the others, that they are.
MOST_TOLD: Final = 10


def why(state: SagaState, evidence: Evidence, places: Mapping[int, Place] | None = None) -> tuple[Cause, ...]:
    """Why a live saga waits; nothing if it has ended. If there are two causes, both must be mended.

    `places`: where the commands of steps are, by the numbers of the steps, if that was looked for.
    """
    if state.ended:
        return ()
    if state.is_to_start:
        return evidence.broker or (*no_worker(evidence), not_started(state, evidence.now_ms))
    active = state.active_steps or [state.current_step]
    waiting = [number for number in active if state.steps[number - 1].parked is None]
    found: list[Cause] = []
    if waiting and evidence.broker:
        found += evidence.broker
    elif waiting:
        found += no_worker(evidence)
        if state.format != PLAIN and state.cancelling is not None:
            found.append(settles(state, waiting))
        for number in waiting[:MOST_TOLD]:
            place = (places or {}).get(number, Place())
            found += _told_of(state, number, _of_step(state, number, evidence, place, _hung(state, number, evidence)))
        found += _more(state, waiting[MOST_TOLD:])
    for number in active:
        if state.steps[number - 1].parked is not None:
            found += _told_of(
                state,
                number,
                (parked(state, number), *_nobody(state, number, evidence), *_hung(state, number, evidence)),
            )
    return tuple(found)


def _of_step(
    state: SagaState, number: int, evidence: Evidence, place: Place, hung: tuple[Cause, ...]
) -> tuple[Cause, ...]:
    """Why a step is not done that is not parked."""
    step = state.steps[number - 1]
    if step.phase in AWAITS:
        return (awaits(state, number, evidence.now_ms), *hung)
    if step.phase in BACKING_OFF and (cause_paused := paused(state, number, evidence)) is not None:
        return (cause_paused, *hung)
    found: tuple[Cause, ...] = ()
    command = CommandOut(state, number, evidence, place)
    if step.phase in BACKING_OFF:
        found = (_backing_off(state, number, evidence.now_ms, command),)
        cause = command.of_its_service()
    else:
        cause = command.cause()
    if cause is None or (hung and cause.kind is CauseKind.HANGS and step.phase in BACKING_OFF):
        return (*found, *hung)
    if cause.kind is CauseKind.HANGS:
        return (*found, cause)
    return (cause, *found, *hung)  # as long as nobody can answer, the next attempt fails too


def _told_of(state: SagaState, number: int, causes: Iterable[Cause]) -> Iterable[Cause]:
    """The same causes, which say of which step they are if the saga is a graph."""
    if state.format == PLAIN:
        return causes
    # How a step is parked names it.
    said = f"step {state.name_of(number)}: " if len(state.active_steps) > 1 else ""
    return [
        replace(
            cause,
            text=cause.text if cause.kind is CauseKind.PARKED else said + cause.text,
            facts={**cause.facts, "steps": [number]},
        )
        for cause in causes
    ]


def _nobody(state: SagaState, number: int, evidence: Evidence) -> tuple[Cause, ...]:
    """If there never was a service of the name that a parked step has: that. A retry does not help then. What does help
    is told with the step."""
    definition = state.steps[number - 1].definition
    if not definition.shape.sends or not nobody_has(definition.service, None, evidence):
        return ()
    cause = nobody(evidence.of(definition.service), evidence.names, evidence.now_ms)
    return () if cause is None else (replace(cause, do=()),)


def _more(state: SagaState, numbers: Sequence[int]) -> list[Cause]:
    if not numbers:
        return []
    text = f"so do more steps: {', '.join(state.name_of(number) for number in numbers)}"
    return [Cause(kind=CauseKind.SENT, text=text, facts={"steps": list(numbers)})]


def why_absent(evidence: Evidence, unread: int, full: str | None = None) -> tuple[Cause, ...]:
    """Why a saga that was asked for may not be there yet. `unread`: how many requests no worker has read. `full`: what
    a worker says if it leaves them unread, since the store is full."""
    if not unread or evidence.broker:
        return evidence.broker
    waits = Cause(kind=CauseKind.QUEUED, text=f"requests that no worker has read: {unread}", facts={"unread": unread})
    if full is None:
        return (*no_worker(evidence), waits)
    do = ("sagastream doctor  # says what fills it, and what helps",)
    return Cause(kind=CauseKind.BROKER_FULL, text=f"sagas do not begin, the store is full: {full}", do=do), waits


def no_worker(evidence: Evidence) -> tuple[Cause, ...]:
    """If no worker is alive, as far as that can be told: that."""
    if not evidence.hears or any(worker.is_alive for worker in evidence.workers):
        return ()
    if not evidence.workers:
        do = ("sagastream worker  # starts one",)
        return (Cause(kind=CauseKind.NO_WORKER, text="no worker is running", do=do),)
    last = min(evidence.workers, key=lambda worker: worker.silent_ms)
    text = f"no worker is running that answers: {last.name} was last heard {spoken(last.silent_ms)} ago; dead or hung"
    facts = {"process": last.name, "last_heard_ms": evidence.now_ms - last.silent_ms}
    do = ("sagastream worker  # starts another; if the old one goes on, nothing is done twice",)
    return (Cause(kind=CauseKind.NO_WORKER, text=text, do=do, facts=facts),)


def _hung(state: SagaState, number: int, evidence: Evidence) -> tuple[Cause, ...]:
    """Handlers of a step that hang, though the saga does not wait for them any more: they take the place of others.
    Those of steps that wait for nothing are told with the first step that does."""
    active = state.active_steps or [state.current_step]
    return tuple(
        hangs(one, evidence.now_ms)
        for facts in evidence.services.values()
        for one in facts.handlers
        if one.saga_id == state.saga_id and one.overdue and facts.is_alive(one.process)
        if one.step == number or (number == active[0] and one.step not in active)
    )


def headline(causes: Sequence[Cause]) -> str:
    """The causes on one line, without what to do."""
    return "; ".join(f"parked: {cause.text}" if cause.kind is CauseKind.PARKED else cause.text for cause in causes)


def _backing_off(state: SagaState, number: int, now_ms: int, command: CommandOut) -> Cause:
    step = state.steps[number - 1]
    until_ms = step.send_again_ms or 0
    failed = f"attempt {step.current_attempt} of {step.attempts} of {step.command} failed"
    because = f"{failed}: {quote(step.current_error)}"
    if step.current_attempt == 0:
        because = f"{step.command} of step {number} is sent after those of other steps, which are long"
    if cause := late(due_of(state, step), now_ms, because):
        return cause
    facts = {"until_ms": until_ms, "attempt": step.current_attempt, "attempts": step.attempts}
    text = f"it is sent again in {spoken(until_ms - now_ms)}, since {because}" if step.current_attempt else because
    return Cause(kind=CauseKind.BACKING_OFF, text=text, do=command.way_out(), facts=facts)
