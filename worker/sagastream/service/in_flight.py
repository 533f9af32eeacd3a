"""The commands that a process of a service holds: which may begin now, which run, which are called again later."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from sagastream.broker.entries import BATCH
from sagastream.core import holding_rules
from sagastream.core.commands import Command
from sagastream.core.holding_rules import State
from sagastream.core.service_actions import RUN, Count
from sagastream.service.delivery import Delivery
from sagastream.service.registration import Registration


class Held(Struct, kw_only=True, eq=False):
    """A command that this process holds, and the handler that is to be called for it. Times are seconds by
    time.monotonic."""

    delivery: Delivery
    command: Command  # what the handler is called with: the command or, for an Undo, the compensation that undoes it
    registration: Registration
    record: str  # of the delivered command: no two deliveries with the same record run at once
    alone: bool = False  # it runs only while no other does
    key: str | None = None  # the idempotency key, if it is not the command's own
    state: State = State.WAITING  # in_flight alone changes it
    since_s: float  # when this process got it
    begun_s: float = 0.0  # when its handler was last called
    due_s: float = 0.0  # when it is to be called again
    begins: int = 0  # how often it was called
    counted: Count | None = None  # what was counted when this process began it
    tries: int = 0  # how often it has raised
    outages: int = 0  # how often it could not reach its data
    thread: int = 0  # in which a plain handler was last called, as threading.get_ident tells

    @property
    def undoes(self) -> bool:
        """Whether what may have come of the command is to be undone, rather than the command done."""
        return self.delivery.todo is not RUN

    @property
    def not_after_ms(self) -> int | None:
        """By the broker's clock: from then on nobody waits for it; None: somebody always does."""
        return None if self.undoes else self.command.not_after_ms


class InFlight:
    """What one process holds. Safe for several threads.

    A command that may not begin, because of a limit of its own or because another delivery of it (its *twin*) has
    begun, lets those behind it pass. One that runs alone does not: it would wait forever. It lets them pass only while
    something runs for so long that it may never end.
    """

    def __init__(self, slots: int, patience_s: float) -> None:
        """
        Args:
            slots: how many handlers run at once, at most.
            patience_s: for how long a handler may have run, in seconds, while others wait for it to end.
        """
        self._slots: Final = slots
        self._patience_s: Final = patience_s
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # One place for each state, so that none has to be searched for.
        self._waiting: deque[Held] = deque()
        self._running: dict[str, Held] = {}  # by record
        self._backing_off: dict[str, Held] = {}  # by record
        self._count: dict[str, int] = {}  # how many are held of each record
        self._alone = 0  # how many are held that run alone
        self._changes = 0

    @property
    def changes(self) -> int:
        """How often something has happened that a waiting thread may want to know."""
        return self._changes

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    def active(self) -> list[Held]:
        """Those that run, in the order in which their handlers were called."""
        with self._lock:
            return list(self._running.values())

    @property
    def held(self) -> int:
        """How many the process holds. While others change it, it may be a moment old."""
        return len(self._waiting) + len(self._running) + len(self._backing_off)

    @property
    def is_empty(self) -> bool:
        """Whether the process holds no command."""
        return not self._count

    def add(self, held: list[Held]) -> None:
        """Hold these, except those that are held already: a process may be given again what it has."""
        with self._lock:
            if any(one.delivery.entry.again for one in held):
                known = {one.delivery.entry.at for one in self._all()}
                held = [one for one in held if one.delivery.entry.at not in known]
                self._alone += sum(one.alone for one in held)
                # Those that have killed the fewest processes first: so the innocent are done before the next death.
                held.sort(key=lambda one: one.delivery.begun)
            for one in held:
                self._count[one.record] = self._count.get(one.record, 0) + 1
            self._waiting += held
            self._changes += 1
            self._changed.notify(len(held))

    def begin(self, now_s: float) -> Held | None:
        """The next one whose handler may be called: it is running from now on. None: there is none."""
        with self._lock:
            if len(self._running) >= self._slots or (self._alone and self._is_kept_free(now_s)):
                return None
            if (held := (self._backing_off and self._next_due(now_s)) or self._next_waiting()) is not None:
                self._running[held.record] = held
                held.state = State.RUNNING
                held.begun_s = now_s
                held.begins += 1
            return held

    def not_begun(self, held: Held) -> None:
        """It runs, but its handler was not called: it waits again, before all others."""
        with self._lock:
            del self._running[held.record]
            held.state = State.WAITING
            held.begins -= 1
            self._waiting.appendleft(held)

    def retry(self, held: Held, due_s: float) -> None:
        """It has run, and is to be called again when it is due."""
        with self._lock:
            del self._running[held.record]
            held.state = State.BACKING_OFF
            held.due_s = due_s
            self._backing_off[held.record] = held

    def end(self, held: Held) -> bool:
        """It has run, and is not held any more. Returns whether a twin of it is."""
        with self._lock:
            del self._running[held.record]
            if self._alone:
                self._changes += 1
                self._changed.notify_all()  # the others wait for it
            return self._forget(held)

    def release(self, which: Callable[[Held], bool]) -> list[Held]:
        """Of those that do not run, hold these no longer."""
        with self._lock:
            released = [held for held in (*self._waiting, *self._backing_off.values()) if which(held)]
            for held in released:
                if held.state is State.WAITING:
                    self._waiting.remove(held)
                else:
                    del self._backing_off[held.record]
                self._forget(held)
            return released

    def begun(self) -> list[Held]:
        """Those whose command may have been done here, and which this process has not answered."""
        with self._lock:
            return [held for held in (*self._running.values(), *self._backing_off.values()) if not held.undoes]

    def to_renew(self, now_s: float, time_for: Callable[[Command], int]) -> list[Held]:
        """Those whose lease is to be renewed. `time_for`: by which to judge the deadline of a command, in ms."""
        with self._lock:
            return [held for held in self._all() if _is_renewed(held, now_s, time_for(held.delivery.command))]

    def room(self) -> int:
        """How many more could begin at once. 0 if as many as could run wait for a limit of theirs, since other
        processes may have the time for what this one would collect; if one waits that runs alone; and if very many are
        backing off."""
        with self._lock:
            if (
                (self._alone and any(held.alone for held in (*self._waiting, *self._running.values())))
                or len(self._waiting) >= self._slots
                or len(self._backing_off) >= BATCH
            ):
                return 0
            return self._slots - len(self._running)

    def next_due_s(self) -> float:
        """When the next of those that are backing off is due; infinite if there is none."""
        with self._lock:
            return min((held.due_s for held in self._backing_off.values()), default=float("inf"))

    def wake(self) -> None:
        """Wake a thread that waits: there is something for it to do."""
        with self._lock:
            self._changes += 1
            self._changed.notify()

    def wait(self, changes: int, timeout_s: float) -> None:
        """Wait for the next change, unless there have been more than so many already."""
        with self._lock:
            if self._changes == changes:
                self._changed.wait(timeout_s)

    def _all(self) -> list[Held]:
        return [*self._waiting, *self._running.values(), *self._backing_off.values()]

    def _is_kept_free(self, now_s: float) -> bool:
        """Whether nothing begins since something runs alone, or is to begin as soon as nothing runs."""
        running = self._running.values()
        if any(held.alone for held in running):
            return True
        if not running or now_s - min(held.begun_s for held in running) > self._patience_s:
            return False
        due = (held for held in self._backing_off.values() if held.due_s <= now_s)
        return any(held.alone for held in (*self._waiting, *due))

    def _next_due(self, now_s: float) -> Held | None:
        for held in self._backing_off.values():
            if held.due_s <= now_s and self._may_begin(held):
                return self._backing_off.pop(held.record)
        return None

    def _next_waiting(self) -> Held | None:
        for place, held in enumerate(self._waiting):
            begun = held.record in self._running or held.record in self._backing_off
            if not begun and self._may_begin(held):
                del self._waiting[place]
                return held
        return None

    def _may_begin(self, held: Held) -> bool:
        if self._alone and held.alone and self._running:
            return False
        limit = held.registration.options.get("concurrency")
        return limit is None or limit > sum(one.registration is held.registration for one in self._running.values())

    def _forget(self, held: Held) -> bool:
        """Returns whether another one of the same record is held."""
        self._alone -= held.alone
        if left := self._count[held.record] - 1:
            self._count[held.record] = left
            return True
        del self._count[held.record]
        return False


def _is_renewed(held: Held, now_s: float, now_ms: int) -> bool:
    delivery, running_s = held.delivery, now_s - held.begun_s
    return holding_rules.is_renewed(
        held.state, delivery.command, delivery.todo, alone=held.alone, running_s=running_s, now_ms=now_ms
    )
