"""What still stands of a saga that went back, since an operator skipped an undo, or abandoned the saga. Pure."""

from collections.abc import Iterator

from msgspec import Struct

from sagastream.core.messages import Verb
from sagastream.core.phases import Phase
from sagastream.core.saga import Intervention, SagaState, SagaStatus


class NotUndone(Struct, frozen=True, kw_only=True):
    """A step whose effect stands, or may stand."""

    step: int
    transaction: str
    how: str  # "skipped": its undo was skipped; "abandoned": its saga was abandoned
    actor: str | None  # who did that, in their own words; None: they did not say, or it is not known any more
    unknown: bool  # whether nobody knows if it was done at all


def not_undone(state: SagaState) -> list[NotUndone]:
    """The steps whose effect stands for one of these reasons. A step that needs no undo is among them only if the saga
    was abandoned."""
    return sorted([*_skipped(state), *_abandoned(state)], key=lambda one: one.step)


def told(state: SagaState) -> str:
    """The same for people; nothing if there is nothing to say."""
    names = []
    for one in not_undone(state):
        name = f"{one.transaction} of step {state.told(one.step)}"
        if one.unknown:
            name += ", which may have been done"
        names.append(f"{name}, {one.how}" + (f" by {one.actor}" if one.actor else ""))
    return f"not undone: {'; '.join(names)}" if names else ""


def _skipped(state: SagaState) -> Iterator[NotUndone]:
    those = [number for number, step in enumerate(state.steps, 1) if step.phase is Phase.UNDO_SKIPPED]
    skips = [done for done in state.interventions if done.verb == Verb.SKIP]
    by = {done.step: done for done in skips if done.step is not None}
    if len(skips) >= len(those):  # a plain saga is undone from its last step to its first, so it names none of them
        last = [done for done in skips if done.step is None][-len(those) :]
        by |= dict(zip(reversed(those), last, strict=False))
    for number in those:
        if state.steps[number - 1].compensation_answered_ms is None:  # otherwise it was undone after all
            yield _of(state, number, "skipped", by.get(number))


def _abandoned(state: SagaState) -> Iterator[NotUndone]:
    if state.status is not SagaStatus.ABORTED:
        return
    done = next((done for done in reversed(state.interventions) if done.verb in (Verb.SKIP, Verb.ABANDON)), None)
    if done is None or done.verb != Verb.ABANDON:
        return
    for number, step in enumerate(state.steps, 1):
        if step.would_stay and step.compensation_answered_ms is None:
            yield _of(state, number, "abandoned", done)


def _of(state: SagaState, number: int, how: str, done: Intervention | None) -> NotUndone:
    step = state.steps[number - 1]
    return NotUndone(
        step=number,
        transaction=step.definition.transaction,
        how=how,
        actor=None if done is None else done.actor,
        unknown=step.unknown and step.late_ms is None,
    )
