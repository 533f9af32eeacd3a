"""What a process does while it holds a command, and time passes: when it hands it back, whether it renews its lease,
when it tells that a handler is overdue. Pure.

What it does when something happens to the command, service_rules says.
"""

from enum import StrEnum
from typing import Final

from sagastream.core.commands import Command
from sagastream.core.service_actions import RUN, Run, Undo

#: How long the lease is renewed for a handler whose answer is always waited for, in seconds. It may be slow, but one
#: that hangs must not hold its command forever.
LONGEST_S: Final = 24 * 3600.0


class State(StrEnum):
    """Where a command stands in the process that holds it.

        WAITING --> RUNNING --> answered, released or set aside
                     |   ^
                     v   |
                  BACKING_OFF

    A command that answer.lua overrules comes back as WAITING, with an Undo.
    """

    WAITING = "waiting"  # no handler was called for it yet
    RUNNING = "running"  # its handler, or the compensation that undoes it, was called and has not ended
    BACKING_OFF = "backing off"  # that has failed, and is called again after a while


def is_handed_back(state: State, *, stopping: bool, alone: bool, held_s: float, lease_s: float) -> bool:
    """
    Args:
        stopping: whether the process is to end.
        alone: whether the command runs alone. It may have to wait until all others have ended.
        held_s: for how long the process has held the command, in seconds.
        lease_s: the lease of the service, in seconds.
    """
    if stopping:
        return state is not State.RUNNING
    # Other processes may have the time for what waits here.
    return state is State.WAITING and held_s > (lease_s if alone else lease_s / 4)


def is_renewed(state: State, command: Command, todo: Run | Undo, *, alone: bool, running_s: float, now_ms: int) -> bool:
    """
    Args:
        alone: as for `is_handed_back`.
        running_s: for how long the handler has run, in seconds.
        now_ms: the time by the broker's clock.
    """
    if state is not State.RUNNING:
        return state is State.BACKING_OFF or alone
    if todo is RUN and command.not_after_ms is not None:
        return now_ms < command.not_after_ms  # nobody waits for it any longer: its process is given up for dead
    return running_s < LONGEST_S


def is_overdue(*, not_after_ms: int | None, now_ms: int, ran_ms: int, hard_timeout_ms: int | None) -> bool:
    """Whether a running handler should have ended by now.

    Args:
        not_after_ms: its deadline by the broker's clock; None: it has none, since it is a compensation, a retriable
            step or an undo.
        now_ms: the time by the broker's clock.
        ran_ms: for how long it has been running.
        hard_timeout_ms: how long it may run, as its service declares; None: it does not say.
    """
    if not_after_ms is not None and now_ms > not_after_ms:
        return True
    return ran_ms > (LONGEST_S * 1000 if hard_timeout_ms is None else hard_timeout_ms)
