"""Reads the steps of a saga's hash.

The phase of a step of a plain saga is not written. It follows from the status of the step and, for the current step,
from what the saga waits for. In a graph, several steps may wait for something, so each has its phase and its time.

Reading is strict: steps that a saga cannot have raise ValueError.
"""

from collections.abc import Sequence
from typing import Any, Final

from sagastream.core.phases import ACTIVE, UNDO, Phase
from sagastream.core.saga import SagaStatus
from sagastream.core.step_state import Step, StepStatus
from sagastream.core.steps import Shape, StepDefinition, default_attempts
from sagastream.store.columns import SHAPE


def tell_current_step(saga: dict[str, Any], step: dict[str, Any]) -> None:
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


def step_of_graph(members: dict[str, Any], definition: dict[str, Any]) -> Step:
    """A step of a graph. Its own fields say its phase, and for what it waits. The arguments are as for `step_of`."""
    shape = {name: definition.pop(name) for name in SHAPE if name in definition}
    if (sends := "wait" not in shape and "wait_ms" not in shape) is False:
        definition["service"] = ""
    if shape:
        definition["shape"] = Shape(sends=sends, **shape)
    members.setdefault("phase", Phase.WAITING)
    members.pop("skipped", None)  # for people: the phase says it
    status = members.get("status")
    step = step_of(members, definition)
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


def check_graph(status: SagaStatus, steps: Sequence[Step], failed_step: int | None) -> None:
    """Check that the steps of a graph fit each other and their saga."""
    fitting = _FITTING.get(status, frozenset())
    for number, step in enumerate(steps, 1):
        if step.phase in ACTIVE and step.phase not in fitting:
            raise ValueError(f"it is {status}, and the phase of step {number} is {step.phase}")
        if any(other >= number for other in step.definition.shape.after or ()):
            raise ValueError(f"step {number} comes after a step that does not stand before it")
    if failed_step is not None and failed_step > len(steps):
        raise ValueError(f"it has {len(steps)} steps, and failed_step is {failed_step}")


def step_of(members: dict[str, Any], definition: dict[str, Any]) -> Step:
    """A step with these members, some of which need not be written, and with this definition."""
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
