"""States of sagas, whatever they are, and their hashes: what the tests of the store write and read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core.messages import DefinedBy
from sagastream.core.phases import ACTIVE, AWAITS, BACKING_OFF, IN_FLIGHT, UNDO, Phase
from sagastream.core.saga import Intervention, KeptSignal, SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.core.steps import (
    AS_PUBLISHED,
    ATTEMPTS,
    GRAPH,
    MAX_ATTEMPTS,
    MAX_BACKOFF_MS,
    MAX_TIMEOUT_MS,
    MAX_WAIT_MS,
    PERSISTENT_ATTEMPTS,
    PLAIN_SHAPE,
    Shape,
    StepDefinition,
    StepKind,
)
from support.values import TRACEPARENT

NAMES = st.from_regex(r"[A-Za-z0-9._:-]{1,20}", fullmatch=True)
#: From 1970 to 2096, in milliseconds.
TIMES = st.integers(0, 4_000_000_000_000)
PAYLOADS = st.sampled_from([b"null", b"1", b"18446744073709551615", b'"\xc3\xbc"', b'{"a":[1.5,true,{}]}', b'""'])
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)

DEFINITIONS = st.builds(
    StepDefinition,
    transaction=NAMES,
    service=NAMES,
    params=PAYLOADS,
    compensation=st.just(AS_PUBLISHED) | st.none() | NAMES,
    kind=st.sampled_from(StepKind),
    timeout_ms=st.just(60_000) | st.integers(1, MAX_TIMEOUT_MS),
    attempts=st.sampled_from([ATTEMPTS, PERSISTENT_ATTEMPTS]) | st.integers(1, MAX_ATTEMPTS),
    compensation_attempts=st.sampled_from([ATTEMPTS, PERSISTENT_ATTEMPTS]) | st.integers(1, MAX_ATTEMPTS),
    backoff_ms=st.just(1000) | st.integers(1, MAX_BACKOFF_MS),
    retry_failed=st.booleans(),
)


COUNTS = st.integers(0, 3) | st.integers(0, 10**6)
#: The phases that no step of a plain saga has.
OF_GRAPHS = AWAITS | {Phase.BYPASSED}
#: The phases of a step for which nothing is awaited, and those that wait, by the status of the saga.
SETTLED = sorted(set(Phase) - ACTIVE - OF_GRAPHS)
AWAITED = {
    SagaStatus.PENDING: [Phase.OUT, Phase.BACKING_OFF, Phase.PARKED],
    SagaStatus.COMPENSATING: [Phase.UNDO_OUT, Phase.UNDO_BACKING_OFF, Phase.UNDO_PARKED],
}


ANY_STEPS = st.builds(
    Step,
    definition=DEFINITIONS,
    attempt=COUNTS,
    sent_ms=st.none() | TIMES,
    answered_ms=st.none() | TIMES,
    result=st.none() | PAYLOADS,
    error=st.none() | PAYLOADS,
    unknown=st.booleans(),
    late_ms=st.none() | TIMES,
    compensation=st.none() | NAMES,
    compensation_attempt=COUNTS,
    compensation_sent_ms=st.none() | TIMES,
    compensation_answered_ms=st.none() | TIMES,
    compensation_error=st.none() | PAYLOADS,
    done_by=st.none() | TEXTS,
    compensation_done_by=st.none() | TEXTS,
    tried_before=COUNTS,
)


def in_phase(step: Step, phase: Phase, due_ms: int, why: str) -> Step:
    """The step in this phase, with the fields that belong to the phase and to commands that were sent."""
    changes: dict[str, Any] = {"phase": phase}
    # A command that was sent has a time, and the other way round. A compensation is sent after the transaction.
    undo_sent_ms = None if step.sent_ms is None else step.compensation_sent_ms
    changes["attempt"] = 0 if step.sent_ms is None else max(1, step.attempt)
    changes["compensation_sent_ms"] = undo_sent_ms
    changes["compensation_attempt"] = 0 if undo_sent_ms is None else max(1, step.compensation_attempt)
    if phase in IN_FLIGHT | BACKING_OFF:
        changes |= {"due_ms": due_ms, "compensation": step.compensation or "Undo"}
    if phase in AWAITS:
        changes["due_ms"] = due_ms
    if phase in (Phase.PARKED, Phase.UNDO_PARKED):
        changes["parked"] = why
    if phase in (Phase.FAILED, Phase.IN_DOUBT):
        changes["unknown"] = phase is Phase.IN_DOUBT
    if phase is Phase.SKIPPED:
        changes["answered_ms"] = None
    if phase is Phase.UNDO_SKIPPED:
        changes["answered_ms"] = step.answered_ms or 1
    return replace(step, **changes)


#: A step in each phase.
STEPS = {phase: st.builds(in_phase, step=ANY_STEPS, phase=st.just(phase), due_ms=TIMES, why=TEXTS) for phase in Phase}
INTERVENTIONS = st.builds(
    Intervention,
    verb=st.sampled_from(["cancel", "retry"]),
    reason=TEXTS,
    at_ms=TIMES,
    actor=st.none() | TEXTS,
    request_id=st.none() | NAMES,
)


SAGAS = st.builds(
    SagaState,
    saga_id=st.just("saga42"),
    status=st.sampled_from(SagaStatus),
    current_step=st.just(0),
    steps=st.just(()),
    compensating_steps=st.lists(st.integers(1, 4), unique=True).map(tuple),
    reason=st.none() | TEXTS,
    cancelling=st.none() | TEXTS,
    deadline_ms=st.none() | TIMES,
    hard_deadline=st.booleans(),
    set_back_ms=st.integers(0, 10**12),
    set_forward_ms=st.integers(0, 10**12),
    interventions=st.lists(INTERVENTIONS, max_size=3).map(tuple),
    duplicates=st.integers(0, 10**6),
    begun_ms=TIMES,
    updated_ms=TIMES,
    request_id=st.none() | NAMES,
    echo=st.booleans(),
    traceparent=st.sampled_from([None, TRACEPARENT]),
    tracestate=st.sampled_from([None, "a=1,b=2"]),
    journal=st.none() | TEXTS.map(str.encode),
)


@st.composite
def states(draw: st.DrawFn, like: Sequence[Step] = ()) -> SagaState:
    """Any state, also one that no saga can reach, because the hash must keep values whatever they mean. Only what is
    awaited fits the status of the saga. `like`: steps with the same definitions, some of which it may share."""
    saga = draw(SAGAS)
    count = len(like) or draw(st.integers(1, 4))
    current = draw(st.integers(1, count))
    steps = []
    for number in range(1, count + 1):
        awaited = AWAITED.get(saga.status) if number == current else None
        phases = awaited or SETTLED
        if like and like[number - 1].phase in phases and draw(st.booleans()):
            steps.append(like[number - 1])
            continue
        step = draw(STEPS[draw(st.sampled_from(phases))])
        steps.append(replace(step, definition=like[number - 1].definition) if like else step)
    undone = tuple(number for number in saga.compensating_steps if number <= count)
    return replace(saga, current_step=current, steps=tuple(steps), compensating_steps=undone)


@st.composite
def successors(draw: st.DrawFn) -> tuple[SagaState, SagaState]:
    """A state and one that may follow it: with the same steps, of which some have changed."""
    before = replace(draw(states()), version=7)
    return before, replace(draw(states(before.steps)), version=7)


# --- graphs

STEP_IDS = st.from_regex(r"[A-Za-z_-][A-Za-z0-9_-]{0,20}(\.[0-9]{1,3})?", fullmatch=True)
WAIT_MS = st.integers(1, MAX_WAIT_MS)
_OF_ANY_STEP: dict[str, Any] = {"id": st.none() | STEP_IDS, "when": st.none() | PAYLOADS}
_SENDS_NOTHING: dict[str, Any] = _OF_ANY_STEP | {"sends": st.sampled_from([False]), "wait_ms": WAIT_MS}
SENDING = st.builds(
    Shape,
    **_OF_ANY_STEP,
    has_references=st.booleans(),
    compensation_params=st.none() | PAYLOADS,
) | st.builds(Shape, **_OF_ANY_STEP, retry_on=NAMES, retry_within_ms=WAIT_MS)
PAUSES = st.builds(Shape, **_SENDS_NOTHING)
WAITS = st.builds(Shape, **_SENDS_NOTHING, wait=NAMES, goes_on=st.booleans())

DEFINED_BY = st.builds(
    DefinedBy, name=NAMES, version=st.integers(1, 10**9), sha256=st.from_regex("[0-9a-f]{64}", fullmatch=True)
)
KEPT = st.builds(KeptSignal, name=NAMES, payload=PAYLOADS, at_ms=TIMES) | st.builds(
    KeptSignal, name=NAMES, declined=TEXTS, at_ms=TIMES
)
SAGA_OF_GRAPH: dict[str, Any] = {
    "input": st.none() | st.sampled_from([b"{}", b'{"a":{"$ref":"/input/a"}}']),
    "definition": st.none() | DEFINED_BY,
    "start_ms": st.none() | TIMES,
    "signals": st.lists(KEPT, max_size=3).map(tuple),
}


@st.composite
def shaped(draw: st.DrawFn, definition: StepDefinition, number: int) -> StepDefinition:
    """The definition as one of step `number` of a graph: it sends a command, or is a wait or a pause."""
    shape = draw(SENDING | PAUSES | WAITS)
    after = draw(st.none() | st.sets(st.integers(1, number - 1)).map(sorted).map(tuple)) if number > 1 else None
    shape = replace(shape, after=after)
    if shape == PLAIN_SHAPE:
        return definition
    if shape.sends:
        return replace(definition, shape=shape)
    return replace(definition, shape=shape, service="", params=b"null", compensation=None)


def can_be(definition: StepDefinition, phase: Phase, status: SagaStatus) -> bool:
    """Whether a step of a graph that is so may be in this phase."""
    if phase in ACTIVE and (status not in AWAITED or (phase in UNDO) is (status is SagaStatus.PENDING)):
        return False
    if not definition.shape.sends:
        return phase not in IN_FLIGHT | BACKING_OFF | {Phase.RETRY_AWAITED}
    if phase is Phase.AWAITING:
        return False
    if phase is Phase.RETRY_AWAITED:
        return definition.shape.retry_on is not None
    return True


@st.composite
def graphs(draw: st.DrawFn, like: SagaState | None = None) -> SagaState:
    """Any state of a graph: any of its steps may be in any phase that fits the status of the saga. `like`: a state of
    the same saga."""
    saga = replace(draw(SAGAS), format=GRAPH, **{name: draw(value) for name, value in SAGA_OF_GRAPH.items()})
    count = draw(st.integers(1, 4)) if like is None else len(like.steps)
    steps: list[Step] = []
    for number in range(1, count + 1):
        if like is None:
            definition = draw(shaped(draw(DEFINITIONS), number))
        else:
            earlier = like.steps[number - 1]
            definition = earlier.definition
            if can_be(definition, earlier.phase, saga.status) and draw(st.booleans()):
                steps.append(earlier)
                continue
        steps.append(draw(in_a_phase(definition, saga.status, Phase)))
    saga = replace(
        saga,
        current_step=draw(st.integers(1, count)),
        steps=tuple(steps),
        compensating_steps=tuple(number for number in saga.compensating_steps if number <= count),
        failed_step=draw(st.none() | st.integers(1, count)),
    )
    if saga.ended or saga.is_to_start or saga.active_steps:
        return saga
    number = draw(st.integers(1, count))  # of a live saga, some step waits for something
    return saga.with_step(number, draw(in_a_phase(steps[number - 1].definition, saga.status, sorted(ACTIVE))))


@st.composite
def in_a_phase(draw: st.DrawFn, definition: StepDefinition, status: SagaStatus, phases: Iterable[Phase]) -> Step:
    """A step of a graph that is so, in one of these phases."""
    phase = draw(st.sampled_from([phase for phase in phases if can_be(definition, phase, status)]))
    built: dict[str, Any] = {name: draw(st.none() | PAYLOADS) for name in ("built", "built_undo")}
    built["unsent_retries"] = draw(st.integers(0, 3))
    return replace(draw(STEPS[phase]), definition=definition, **built)


@st.composite
def graph_successors(draw: st.DrawFn) -> tuple[SagaState, SagaState]:
    """A state of a graph and one that may follow it."""
    before = replace(draw(graphs()), version=7)
    return before, replace(draw(graphs(before)), version=7)


def written(words: Sequence[str | bytes | int], onto: Mapping[bytes, bytes] | None = None) -> dict[bytes, bytes]:
    """The hash after HSET with these words, as HGETALL returns it."""
    raw = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return dict(onto or {}) | dict(zip(raw[::2], raw[1::2], strict=True))
