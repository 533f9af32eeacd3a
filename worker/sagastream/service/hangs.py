"""Handlers that run for too long: told, written where others see them, and in the end the end of their process.

A thread cannot be ended from outside. So a handler that does not return takes its slot for good, and a process all of
whose slots are taken does nothing more: only a new process helps.
"""

import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

from sagastream.core import holding_rules
from sagastream.core.commands import Command
from sagastream.service.in_flight import Held, InFlight
from sagastream.service.report import ServiceReport
from sagastream.store.running import LONG_S, OLDEST, Busy, LongRun

#: A handler without a deadline is told of once it has run for so long, in seconds.
_TELL_S: Final = 60.0
#: Where code is that is not the user's: the standard library, and this package.
_NOT_THE_USERS: Final = (os.path.dirname(threading.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120 - as frames name files


class Hangs:
    """Looks at the handlers that one process runs. Safe for several threads."""

    def __init__(
        self,
        in_flight: InFlight,
        *,
        slots: int,
        now_ms: Callable[[], int],
        time_for: Callable[[Command], int],
        report: ServiceReport,
    ) -> None:
        """
        Args:
            slots: how many handlers run at once, at most.
            now_ms: the time by the broker's clock.
            time_for: the time by which to judge the deadline of a command, in ms.
        """
        self._in_flight = in_flight
        self._slots = slots
        self._now_ms = now_ms
        self._time_for = time_for
        self._report = report
        #: By where its entry stands: when the handler was called of which it was told. Ids repeat between partitions.
        self._told: dict[tuple[str, bytes], float] = {}
        self._blocked = False
        self.expired: Held | None = None  # the first one that ran for longer than its hard timeout

    @property
    def blocked(self) -> bool:
        """Whether the process can do nothing more: each of its slots is taken by a handler that should have ended."""
        return self._blocked

    def busy(self, now_s: float) -> Busy | None:
        """What it has been running for long; None: nothing. `now_s`: by time.monotonic."""
        long = [held for held in self._in_flight.active() if now_s - held.begun_s >= LONG_S]
        if not long:
            return None
        now_ms = self._now_ms()
        overdue = [self._is_overdue(held, now_s) for held in long]
        return Busy(
            slots=self._slots,
            long=len(long),
            overdue=sum(overdue),
            oldest=tuple(
                LongRun(
                    saga_id=held.command.saga_id,
                    step=held.command.step,
                    command=held.command.type,
                    compensating=held.command.compensating,
                    attempt=held.command.attempt,
                    since_ms=now_ms - round((now_s - held.begun_s) * 1000),
                    not_after_ms=held.not_after_ms,
                    overdue=late,
                )
                for held, late in list(zip(long, overdue, strict=True))[:OLDEST]
            ),
        )

    def look(self, now_s: float) -> None:
        """Tell of what is overdue by now, each once, and find out what has run for longer than its hard timeout."""
        active = self._in_flight.active()
        overdue = [held for held in active if self._is_overdue(held, now_s)]
        for held in active:
            late = held in overdue
            if late or (held.not_after_ms is None and now_s - held.begun_s >= _TELL_S):
                late_ms = None if held.not_after_ms is None else self._time_for(held.command) - held.not_after_ms
                self._tell(held, now_s, late_ms=late_ms if late_ms is not None and late_ms > 0 else None)
            hard_ms = held.registration.hard_timeout_ms
            if self.expired is None and hard_ms is not None and (now_s - held.begun_s) * 1000 > hard_ms:
                self.expired = held
                self._report.expired(held.command, held.registration, hard_ms, _place(held))
        if self._told:
            running = {held.delivery.entry.at for held in active}
            self._told = {at: begun_s for at, begun_s in self._told.items() if at in running}
        blocked = len(overdue) >= self._slots
        if blocked and not self._blocked:
            self._report.blocked(self._slots)
        self._blocked = blocked

    def only_hangs(self, now_s: float) -> bool:
        """Whether all that runs should have ended by now: nothing is left to wait for."""
        return all(held is self.expired or self._is_overdue(held, now_s) for held in self._in_flight.active())

    def _tell(self, held: Held, now_s: float, *, late_ms: int | None) -> None:
        if self._told.get(held.delivery.entry.at) == held.begun_s:
            return
        self._told[held.delivery.entry.at] = held.begun_s
        self._report.overdue(held.command, held.registration, now_s - held.begun_s, late_ms, _place(held))

    def _is_overdue(self, held: Held, now_s: float) -> bool:
        return holding_rules.is_overdue(
            not_after_ms=held.not_after_ms,
            now_ms=self._time_for(held.command),
            ran_ms=round((now_s - held.begun_s) * 1000),
            hard_timeout_ms=held.registration.hard_timeout_ms,
        )


def _place(held: Held) -> str | None:
    """Where in the user's code a plain handler is now, as FILE:LINE; None: that cannot be found out."""
    frame: FrameType | None = sys._current_frames().get(held.thread)  # noqa: SLF001 - there is no other way
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
