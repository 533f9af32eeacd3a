"""What a process holds no longer: it hands commands back, or other processes have taken them over."""

import time
from collections.abc import Callable

import redis

from sagastream.core import service_rules
from sagastream.core.holding_rules import State
from sagastream.service.in_flight import Held, InFlight
from sagastream.service.inbox import CommandInbox


class HandingOver:
    """Safe for several threads."""

    def __init__(self, inbox: CommandInbox, in_flight: InFlight) -> None:
        self._inbox = inbox
        self._outbox = inbox.outbox
        self._in_flight = in_flight

    def hand_back(self, which: Callable[[Held], bool]) -> None:
        """Have others take these over at once, except those that run. May be called again after a redis.RedisError."""
        begun = self._backing_off(which)
        self.let_go(self._inbox.hand_back([held.delivery for held in begun]))
        released = self._in_flight.release(which)
        self._inbox.hand_back([held.delivery for held in released if held not in begun])
        self._not_died_of(released)

    def renew(self) -> None:
        """Renew the leases, and do not begin again what other processes have taken over meanwhile."""
        to_renew = self._in_flight.to_renew(time.monotonic(), self._inbox.time_for)
        self.let_go(self._inbox.renew([held.delivery for held in to_renew]))

    def look_up_again(self) -> None:
        """After an outage: hold nothing that does not run, so that it is read and looked up again. Other processes may
        have it by now. May be called again after a redis.RedisError."""
        begun = self._backing_off(lambda _: True)
        self.let_go(self._inbox.renew([held.delivery for held in begun]))
        self._in_flight.release(lambda _: True)

    def give_up(self, fatal: Held | None = None) -> None:
        """The process ends: leave to others all that was begun. May be called again after a redis.RedisError.

        `fatal`: the one because of which it ends; that is as if it had died of it.
        """
        lost = self._inbox.hand_back([held.delivery for held in self._in_flight.begun()])
        self._tell_lost([held for held in self._in_flight.begun() if held.delivery.entry.at in lost])
        self._not_died_of([held for held in self._in_flight.begun() if held is not fatal])

    def let_go(self, lost: set[tuple[str, bytes]]) -> None:
        """Other processes have the entries that stand there: hold them no longer, except those that run."""
        if lost:
            self._tell_lost(self._in_flight.release(lambda held: held.delivery.entry.at in lost))

    def _backing_off(self, which: Callable[[Held], bool]) -> list[Held]:
        """What was begun stays held until the broker has said whose it is: what came of it may be known to nobody
        else."""
        return [held for held in self._in_flight.begun() if held.state is State.BACKING_OFF and which(held)]

    def _not_died_of(self, handed_back: list[Held]) -> None:
        """This process did not die of these: take back what was counted when it began them."""
        for held in handed_back:
            if held.counted is not None:
                try:
                    self._inbox.count(held.delivery, held.counted, -1)
                except redis.RedisError as error:
                    if not self._inbox.passes_over(error):
                        raise  # else it stays counted: nobody waits for one node
                held.counted = None

    def _tell_lost(self, lost: list[Held]) -> None:
        ready = self._outbox.ready()
        for held in lost:
            step = service_rules.lost(held.delivery.command, held.delivery.todo, begun=held.begins > 0)
            if step is not None and held.delivery.entry.at not in ready:
                self._outbox.answer(held.delivery, step)
