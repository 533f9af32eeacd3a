"""The times of a saga, if the broker's clock was set back, or jumped forward, since the saga last changed.

A saga waits for as long as it would have waited. If nobody knows what the clock did, it waits for longer, never for
less. Its start is another matter: that is a time of the calendar, and comes when the clock gets there.
"""

from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from sagastream.core.saga import MAX_SET_BACK_MS, SagaState
from sagastream.core.step_state import Step

#: If a saga changed more than this long after now, in milliseconds, the broker's clock was set back since. Less than
#: this may come of a worker that was slow, and decides by an earlier time than another one did.
SET_BACK_MS: Final = 5_000


#: On a cluster a worker may hear of a jump so much later than another one, in milliseconds. What it changes until then
#: has times of before the jump.
HEARD_LATER_MS: Final = 3_000


class Jump(NamedTuple):
    """The clock went forward, all at once."""

    until_ms: int  # a saga that changed later than this by the clock, changed after it
    by_ms: int


class Watch(Struct, frozen=True, kw_only=True, gc=False):
    """What a process has seen of the broker's clock."""

    since_ms: int = 0  # it was not there before this time, by the clock
    jumps: tuple[Jump, ...] = ()  # those that no later change of the clock has undone, oldest first


#: Of a clock that nobody sets.
STEADY: Final = Watch()


def by_the_clock(state: SagaState, now_ms: int, watch: Watch) -> SagaState:
    """The saga with the times at which it comes by the clock as it is now; the very same object if the clock just went
    on. Whoever changes a saga asks for this first: afterwards, nothing tells that it last changed before.

    Its begin stays as it is, since services file their records by it, and so does the deadline that was asked for.
    """
    back_ms = state.updated_ms - now_ms
    if back_ms > SET_BACK_MS:
        if state.is_to_start:  # its deadline counts from its start, and both come when the clock gets there
            return replace(state, updated_ms=now_ms)
        # It waits from now on for as long as after its last change. Otherwise it would wait until that time came again.
        steps = tuple([_moved(step, -back_ms, now_ms) for step in state.steps])
        set_back_ms = min(state.set_back_ms + back_ms, MAX_SET_BACK_MS)
        return replace(state, steps=steps, set_back_ms=set_back_ms, updated_ms=now_ms)
    # Of nearly all sagas and clocks, this look says all.
    if (watch.jumps or state.set_back_ms) and (forward_ms := _forward_ms(state, watch)):
        if state.start_ms is not None and state.is_to_start:
            forward_ms = min(forward_ms, max(now_ms - state.start_ms, 0))  # as far as the clock went past its start
        steps = tuple([_moved(step, forward_ms, now_ms) for step in state.steps])
        set_forward_ms = min(state.set_forward_ms + forward_ms, MAX_SET_BACK_MS)
        return replace(state, steps=steps, set_forward_ms=set_forward_ms, updated_ms=now_ms)
    return state


def for_deadline(deadline_ms: int, now_ms: int, watch: Watch) -> int:
    """The time by which to judge a deadline that somebody else has set, and that nobody has moved since.

    The clock may have jumped forward since it was set. A deadline that lies within a jump, or before it, was set before
    the jump: then the jump does not count. A later deadline counts as set after it.
    """
    jumped = sum(by_ms for until_ms, by_ms in watch.jumps if deadline_ms <= until_ms + by_ms) if watch.jumps else 0
    return now_ms - jumped


def _forward_ms(state: SagaState, watch: Watch) -> int:
    """By how much the clock went forward since the saga last changed, in ms, as far as it matters."""
    # The clock has jumped over the times that come next. So a saga with such a time was changed before, too.
    until = [(until_ms + min(HEARD_LATER_MS, by_ms // 2), by_ms) for until_ms, by_ms in watch.jumps]
    forward_ms = sum(by_ms for until_ms, by_ms in until if state.updated_ms <= until_ms)
    left_ms = state.set_back_ms - state.set_forward_ms - forward_ms
    if left_ms > 0 and state.updated_ms < watch.since_ms:
        # Nobody has told this process whether the clock was set right before it came. At most all of that time.
        forward_ms += min(left_ms, watch.since_ms - state.updated_ms)
    return forward_ms


def _moved(step: Step, by_ms: int, now_ms: int) -> Step:
    """The step, if it waits for a time, with that time, and when its command was sent, so much later."""
    if step.due_ms is None or step.is_held:
        return step
    # In a damaged hash, the last change may be centuries ahead, and the other times not.
    changes: dict[str, Any] = {"due_ms": max(step.due_ms + by_ms, now_ms)}
    sent = "compensation_sent_ms" if step.being_undone else "sent_ms"
    if (sent_ms := getattr(step, sent)) is not None:
        changes[sent] = max(sent_ms + by_ms, 0)
    return replace(step, **changes)
