"""Why a live saga waits: the one place that says it. Pure.

`why` is told the state of a saga and the evidence that was found in the store (client/evidence.py). `show`, `list`,
`doctor` and both clients use it, so they say the same.
"""

from collections.abc import Sequence

from sagastream.core.back import quote
from sagastream.core.causes import Cause, CauseKind, Evidence, Place
from sagastream.core.durations import spoken
from sagastream.core.phases import BACKING_OFF
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.why_out import CommandOut, hangs, late


def why(state: SagaState, evidence: Evidence, place: Place | None = None) -> tuple[Cause, ...]:
    """Why a live saga waits; nothing if it has ended. If there are two causes, both must be mended.

    `place`: where its command is, if that was looked for.
    """
    if state.ended:
        return ()
    if state.step.parked is not None:
        return (_parked(state), *_hung(state, evidence))
    if evidence.broker:
        return evidence.broker
    found, hung = no_worker(evidence), _hung(state, evidence)
    command = CommandOut(state, evidence, place or Place())
    if state.step.phase in BACKING_OFF:
        found += (_backing_off(state, evidence.now_ms, command),)
        cause = command.of_its_service()
    else:
        cause = command.cause()
    if cause is None or (hung and cause.kind is CauseKind.HANGS and state.step.phase in BACKING_OFF):
        return (*found, *hung)
    return (*found, cause, *(() if cause.kind is CauseKind.HANGS else hung))


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


def _hung(state: SagaState, evidence: Evidence) -> tuple[Cause, ...]:
    """Handlers of the saga that hang, though it does not wait for them any more: they take the place of others."""
    return tuple(
        hangs(one, evidence.now_ms)
        for facts in evidence.services.values()
        for one in facts.handlers
        if one.saga_id == state.saga_id and one.overdue and facts.is_alive(one.process)
    )


def headline(causes: Sequence[Cause]) -> str:
    """The causes on one line, without what to do."""
    return "; ".join(cause.text for cause in causes)


def _backing_off(state: SagaState, now_ms: int, command: CommandOut) -> Cause:
    step, until_ms = state.step, state.send_again_ms or 0
    failed = f"attempt {step.current_attempt} of {step.attempts} of {step.command} failed"
    because = f"{failed}: {quote(step.current_error)}"
    if cause := late(state, now_ms, because):
        return cause
    facts = {"until_ms": until_ms, "attempt": step.current_attempt, "attempts": step.attempts}
    text = f"it is sent again in {spoken(until_ms - now_ms)}, since {because}"
    return Cause(kind=CauseKind.BACKING_OFF, text=text, do=command.way_out(), facts=facts)


def _parked(state: SagaState) -> Cause:
    return Cause(kind=CauseKind.PARKED, text=str(state.parked), do=tuple(_verbs(state)))


def _verbs(state: SagaState) -> list[str]:
    """What each verb would do about a parked saga."""
    step, number = state.step, state.current_step
    if state.status is SagaStatus.COMPENSATING:
        again = f"send {step.command} again" if step.compensation else "look again for what undoes it"
        times = step.definition.compensation_attempts
        skip = f"go on as if step {number} were undone"
    else:
        again, times = f"send {step.command} again", step.definition.attempts
        then = "end COMPLETED" if number == len(state.steps) else f"go on with step {number + 1}"
        skip = f"{then} as if step {number} were done"
    stays = [at for at, one in enumerate(state.steps, 1) if one.may_have_effect or one.unknown]
    left = f"; what these steps did stays: {', '.join(map(str, stays))}" if stays else ""
    meanings = {
        "retry": f"{again}, at most {times} times",
        "skip": skip,
        "abandon": f"end ABORTED as it is{left}",
    }
    if state.may_be_cancelled:
        meanings["cancel"] = f"go back as if step {number} were not done"
    ask = f"{state.saga_id} --reason TEXT --parked-at {state.parked_at}"
    return [f"sagastream {verb} {ask}  # {meaning}" for verb, meaning in meanings.items()]
