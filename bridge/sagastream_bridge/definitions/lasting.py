"""How long a saga can take from its start, if each command is answered at the last moment of its last attempt.

How long it stays parked is not counted. How often a signal sends a step anew has no limit, so it is told what each time
adds.
"""

from typing import NamedTuple

from sagastream.core import graph
from sagastream.core.backoff import step_delay_ms
from sagastream.core.messages import Begin
from sagastream.core.steps import StepDefinition, StepKind
from sagastream_bridge.definitions.model import Model


class Longest(NamedTuple):
    """The longest times from the start of a saga, in milliseconds."""

    completed_ms: int  # until it is completed
    undone_ms: int  # until all is undone
    each_retry: tuple[tuple[int, int], ...]  # numbers of steps: what each signal adds after which the step is sent anew


def longest(begin: Begin, model: Model) -> Longest:
    """How long this saga can take."""
    steps = begin.steps
    done = _ends([_lasts(step) for step in steps], [graph.before(step, number) for number, step in enumerate(steps, 1)])
    pivot = next((number for number, step in enumerate(steps, 1) if step.kind is StepKind.PIVOT), None)
    completed = max(done)
    turn = completed if pivot is None else done[pivot - 1]  # until then it can go back
    cut = None  # by when it goes back if its deadline passes
    if begin.deadline_ms is not None:
        cut = begin.deadline_ms + max(_one_attempt(step) for step in steps[: pivot or len(steps)])
    retries = ((number, step.shape.retry_within_ms) for number, step in enumerate(steps, 1))
    return Longest(
        (turn if cut is None else min(turn, cut)) + completed - turn,
        _undone_ms(steps, done, model, cut),
        tuple((number, within + _lasts(steps[number - 1])) for number, within in retries if within is not None),
    )


def shortest_safe_deadline_ms(begin: Begin) -> int:
    """How long the longest way takes to the point of no return, if each command is answered at the last moment of its
    first attempt. A shorter deadline may cut off a saga in which nothing has failed."""
    lasts = [step.timeout_ms if step.shape.sends else step.shape.wait_ms or 0 for step in begin.steps]
    done = _ends(lasts, [graph.before(step, number) for number, step in enumerate(begin.steps, 1)])
    pivot = next((number for number, step in enumerate(begin.steps, 1) if step.kind is StepKind.PIVOT), None)
    return max(done) if pivot is None else done[pivot - 1]


def _undone_ms(steps: tuple[StepDefinition, ...], done: list[int], model: Model, cut: int | None) -> int:
    """Until all is undone, if any step fails as late as it can: after it has waited in vain for the signal to be sent
    anew. `cut`: it does so by then."""
    ancestors = graph.ancestors(steps)
    found = 0
    for number, step in enumerate(steps, 1):
        if step.kind is StepKind.RETRIABLE:
            continue
        after = {other for other, above in enumerate(ancestors, 1) if number in above}
        to_undo = set(range(1, len(steps) + 1)) - after
        others = (done[other - 1] for other in to_undo if steps[other - 1].kind is not StepKind.RETRIABLE)
        settled = max(done[number - 1] + (step.shape.retry_within_ms or 0), *others)
        if cut is not None:
            settled = min(settled, cut)
        lasts = [_undo_lasts(one) if at in to_undo and model.undos[at - 1] else 0 for at, one in enumerate(steps, 1)]
        found = max(found, settled + max(_ends(lasts, [graph.before(one, at) for at, one in enumerate(steps, 1)])))
    return found


def _ends(lasts: list[int], before: list[tuple[int, ...]]) -> list[int]:
    """When each step ends, if each begins when those before it have ended. Backwards, the longest way is as long."""
    ends: list[int] = []
    for own, direct in zip(lasts, before, strict=True):
        ends.append(own + max((ends[number - 1] for number in direct), default=0))
    return ends


def _lasts(step: StepDefinition) -> int:
    shape = step.shape
    if not shape.sends:
        return shape.wait_ms or 0
    return _attempts(step, step.attempts)


def _undo_lasts(step: StepDefinition) -> int:
    return _attempts(step, step.compensation_attempts)


def _attempts(step: StepDefinition, count: int) -> int:
    pauses = sum(step_delay_ms(attempt, first_ms=step.backoff_ms, jitter=1.0) for attempt in range(1, count))
    return count * step.timeout_ms + pauses


def _one_attempt(step: StepDefinition) -> int:
    """For how long a cancel may have to wait for this step."""
    return step.timeout_ms if step.shape.sends else 0
