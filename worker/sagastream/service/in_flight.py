"""The commands that a process of a service has in hand: which may begin now, which run, which are to be tried again."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from sagastream.broker.group_reader import BATCH
from sagastream.core.messages import Command
from sagastream.service.declaration import Registration
from sagastream.service.inbox import Delivery


class Work(Struct, kw_only=True, eq=False):
    """A command in hand, and the handler that is to be called for it. Times are seconds of time.monotonic."""

    delivery: Delivery
    command: Command  # what the handler is told: the one delivered or, where that must not be done, what undoes it
    registration: Registration
    record: str  # of the command delivered: no two of the same record run at once
    key: str | None = None  # the idempotency key, where it is not the command's own
    since: float  # when it came
    begins: int = 0  # how often it was begun
    began: float = 0.0  # when it was last
    due: float = 0.0  # when it is to be called again
    tries: int = 0  # how often it has raised
    outages: int = 0  # how often in a row it could not reach its data

    @property
    def undoes(self) -> bool:
        """Whether what may have come of the command is to be undone, rather than the command done."""
        return self.delivery.refusal is not None


class Hand:
    """What one process has in hand. Safe to be used by several threads.

    A command *waits* until it may begin, then *runs*; where its handler failed it *rests* before it runs again. One
    that may not begin, for a limit of its own or as the twin of one that was begun, lets those behind it pass.
    """

    def __init__(self, slots: int) -> None:
        """`slots`: how many run at once at the most."""
        self._slots: Final = slots
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._waiting: deque[Work] = deque()
        self._running: dict[str, Work] = {}  # by record
        self._resting: dict[str, Work] = {}  # by record
        self._in_hand: dict[str, int] = {}  # how many of each record
        self._changes = 0

    @property
    def changes(self) -> int:
        """How often something has happened that may be news to a thread that waits."""
        return self._changes

    @property
    def runs(self) -> int:
        """How many run."""
        return len(self._running)

    @property
    def is_empty(self) -> bool:
        """Whether none is in hand."""
        return not self._in_hand

    def add(self, works: list[Work]) -> None:
        """Take these in hand, but for those that are already: a process may be given again what it has."""
        with self._lock:
            if any(work.delivery.entry.again for work in works):
                known = {work.delivery.entry.id for work in (*self._waiting, *self._begun())}
                works = [work for work in works if work.delivery.entry.id not in known]
            for work in works:
                self._in_hand[work.record] = self._in_hand.get(work.record, 0) + 1
            self._waiting += works
            self._changes += 1
            self._news.notify(len(works))

    def take(self, now: float) -> Work | None:
        """The next one that may begin, or begin again, which runs from now on; None: there is none."""
        with self._lock:
            if len(self._running) >= self._slots:
                return None
            if (work := (self._resting and self._rested(now)) or self._next()) is not None:
                self._running[work.record] = work
                work.began = now
                work.begins += 1
            return work

    def finish(self, work: Work) -> bool:
        """This one is through, and leaves the hand. Returns whether a twin of it is still there."""
        with self._lock:
            del self._running[work.record]
            return self._forget(work)

    def put_back(self, work: Work, due: float) -> None:
        """This one has run, and is to run again when it is `due`."""
        with self._lock:
            del self._running[work.record]
            work.due = due
            self._resting[work.record] = work

    def put_down(self, which: Callable[[Work], bool]) -> list[Work]:
        """Of those that do not run, let go of these."""
        with self._lock:
            down = [work for work in (*self._waiting, *self._resting.values()) if which(work)]
            for work in down:
                if self._resting.get(work.record) is work:
                    del self._resting[work.record]
                else:
                    self._waiting.remove(work)
                self._forget(work)
            return down

    def begun(self, now_ms: int) -> list[Work]:
        """Those that rest, and those that run and whose answer is still waited for, by the broker's clock."""
        with self._lock:
            return [
                work
                for work in self._begun()
                if work.record in self._resting or (work.delivery.command.not_after_ms or 0) > now_ms
            ]

    def room(self) -> int:
        """How many more could begin at once. None where as many as could run wait for a limit of theirs: this process
        would hoard what others may have the time for. Nor where very many rest."""
        with self._lock:
            if len(self._waiting) >= self._slots or len(self._resting) >= BATCH:
                return 0
            return self._slots - len(self._running)

    def next_due(self) -> float:
        """When the next of those that rest is due; infinite: none rests."""
        with self._lock:
            return min((work.due for work in self._resting.values()), default=float("inf"))

    def wake(self) -> None:
        """Wake a thread that waits: there is something for it to do."""
        with self._lock:
            self._changes += 1
            self._news.notify()

    def wait(self, changes: int, timeout_s: float) -> None:
        """Wait for the next change; not where there have been more than so many already."""
        with self._lock:
            if self._changes == changes:
                self._news.wait(timeout_s)

    def _begun(self) -> list[Work]:
        return [*self._running.values(), *self._resting.values()]

    def _rested(self, now: float) -> Work | None:
        for work in self._resting.values():
            if work.due <= now and self._is_within_limit(work.registration):
                return self._resting.pop(work.record)
        return None

    def _next(self) -> Work | None:
        for place, work in enumerate(self._waiting):
            record = work.record
            if record not in self._running and record not in self._resting and self._is_within_limit(work.registration):
                del self._waiting[place]
                return work
        return None

    def _is_within_limit(self, registration: Registration) -> bool:
        limit = registration.concurrency
        return limit is None or limit > sum(other.registration is registration for other in self._running.values())

    def _forget(self, work: Work) -> bool:
        """Returns whether another of the same record is in hand."""
        if left := self._in_hand[work.record] - 1:
            self._in_hand[work.record] = left
            return True
        del self._in_hand[work.record]
        return False
