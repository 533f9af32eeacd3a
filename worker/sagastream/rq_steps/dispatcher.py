"""Has the commands of a service's process run as RQ jobs, and answers for jobs that end without an answer.

While its job is out, a command's entry stays pending, and this process renews its lease. If this process dies, another
takes the entry over, finds that the job exists, and looks after it.

RQ's server may be another one than the broker. If it is away, only the commands wait that run there, and their leases
are renewed meanwhile.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from typing import Final

import redis
from msgspec import Struct
from msgspec.structs import replace

from sagastream.broker.connection import Broker
from sagastream.broker.entries import BATCH
from sagastream.console import printable
from sagastream.core import backoff, service_rules
from sagastream.core.commands import Command
from sagastream.core.service_actions import RUN, Answer
from sagastream.rq_steps.jobs import Jobs, JobState
from sagastream.rq_steps.queues import START_WORKER, if_set, start_worker
from sagastream.rq_steps.server import RqAway, RqServer
from sagastream.service.declaration import Service
from sagastream.service.delivery import Delivery
from sagastream.service.inbox import CommandInbox
from sagastream.service.registration import Registration
from sagastream.telemetry import Log, about

#: How many jobs of one command a process has out at once, unless the command says otherwise.
JOBS_OUT: Final = 64
#: How often the jobs that are out are looked at, in seconds; and how often while commands wait for room.
_LOOK_EVERY_S: Final = 1.0
_LOOK_EVERY_WHEN_FULL_S: Final = 0.05
#: How often jobs that were not begun are looked for in their queue, in seconds: a worker that dies while it takes a job
#: from the queue loses it.
_SEARCH_EVERY_S: Final = 10.0
#: How long a job that was left to another release waits until it is enqueued again, in seconds, at most.
_LONGEST_LEFT_S: Final = 16.0
#: How often it is said that no worker runs for a queue, in seconds.
_SAY_EVERY_S: Final = 60.0
#: While RQ's server is away, a process holds at most so many commands that wait for it. It goes on with others.
_HELD_WHILE_AWAY: Final = 4 * BATCH
#: … and tries again after this long, in seconds, at most.
_LONGEST_AWAY_S: Final = 5.0


class _Out(Struct, kw_only=True):
    """A command whose job is out."""

    delivery: Delivery
    missed: bool = False  # the job was not in its queue when it was last looked for
    lefts: int = 0  # how often a worker left it to another release
    again_at_s: float = 0.0  # … and when it is enqueued again, by time.monotonic


class JobDispatcher:
    """The jobs that one process of a service has out. Safe for several threads. `send` and `turn` raise
    redis.RedisError, after which the entries are to be read again."""

    def __init__(self, server: RqServer, prefix: str, service: Service, inbox: CommandInbox, who: str) -> None:
        self._service = service
        self._inbox = inbox
        self._log = Log("rq", who)
        self._server = server
        self._jobs = Jobs(server, service, prefix)
        self._lock = threading.Lock()
        self._out: dict[tuple[str, bytes], _Out] = {}  # by where the entry stands
        self._waiting: list[Delivery] = []
        self._look_at_s = self._renew_at_s = self._search_at_s = self._say_at_s = 0.0  # by time.monotonic
        self._without_worker: set[str] = set()  # the queues that had no worker when that was last looked up
        self._failures = 0  # how often RQ's server was tried in vain since it answered last

    def takes(self, command: Command) -> bool:
        """Whether this command runs as a job."""
        registration = self._service.registration(command)
        return registration is not None and registration.queue is not None

    def room(self) -> int:
        """How many more commands may be read: none while some wait for others to end. While RQ's server is away, those
        after them may be commands that do not run there."""
        most = _HELD_WHILE_AWAY if self._failures else 1
        return BATCH if len(self._waiting) < most else 0

    def send(self, delivery: Delivery) -> None:
        """Have a command run or undone by a job, as soon as there is room. May be called again for the same entry."""
        with self._lock:
            at = delivery.entry.at
            if at in self._out or any(one.entry.at == at for one in self._waiting):
                return
            if self._failures or not self._has_room(delivery):
                self._waiting.append(delivery)
            else:
                self._reach(lambda: self._enqueue(delivery))

    def turn(self) -> None:
        """If it is time: look at the jobs that are out, answer for those that ended without an answer, send more."""
        if not self._lock.acquire(blocking=False):
            return  # another thread is at it, or waits for RQ's server
        try:
            if not (self._out or self._waiting) or time.monotonic() < self._look_at_s:
                return
            if self._reach(self._look_and_send):
                every_s = _LOOK_EVERY_WHEN_FULL_S if self._waiting else _LOOK_EVERY_S
            else:
                every_s = backoff.delay(self._failures, longest_s=_LONGEST_AWAY_S)
                for at in self._let_go([*(out.delivery for out in self._out.values()), *self._waiting]):
                    self._out.pop(at, None)
            self._look_at_s = time.monotonic() + min(every_s, self._service.lease_ms / 4000)
        finally:
            self._lock.release()

    def _look_and_send(self) -> None:
        self._look()
        for delivery in list(self._waiting):
            if self._has_room(delivery):
                self._enqueue(delivery)
                self._waiting.remove(delivery)

    def _reach(self, call: Callable[[], None]) -> bool:
        """Whether RQ's server was there for this call. That it is away, and back, is said once."""
        try:
            call()
        except RqAway as error:
            self._failures += 1
            if self._failures == 1:
                text = f"RQ's server {self._server.shown} is away ({error}); the steps that run on RQ wait for it"
                self._log.warning(text, extra={"service": self._service.name})
            return False
        if self._failures:
            self._failures = 0
            self._log.warning(f"RQ's server {self._server.shown} is back", extra={"service": self._service.name})
        return True

    def _job_id(self, delivery: Delivery) -> str:
        return self._jobs.id_of(delivery.command, delivery.partition.number)

    def _has_room(self, delivery: Delivery) -> bool:
        limit = self._registration(delivery.command).options.get("concurrency") or JOBS_OUT
        return sum(one.delivery.command.type == delivery.command.type for one in self._out.values()) < limit

    def _registration(self, command: Command) -> Registration:
        registration = self._service.registration(command)
        assert registration is not None
        return registration

    def _enqueue(self, delivery: Delivery, dead: JobState | None = None, lefts: int = 0) -> None:
        try:
            self._jobs.enqueue(
                delivery.command,
                delivery.entry.id.decode(),
                delivery.partition.number,
                time_limit_s=self._time_limit_s(delivery),
                undoing=delivery.todo is not RUN,
                again=delivery.entry.again,
                dead=dead,
            )
        except RqAway:
            # Perhaps it is enqueued: then it is found there when it is sent again. So is a dead one, as it was found.
            self._out.pop(delivery.entry.at, None)
            if all(one.entry.at != delivery.entry.at for one in self._waiting):
                self._waiting.append(delivery)
            raise
        self._out[delivery.entry.at] = _Out(delivery=delivery, lefts=lefts)

    def _time_limit_s(self, delivery: Delivery) -> int:
        """How long the job may take: as declared and, unless it undoes the command, not after its answer is waited
        for."""
        command, limits = delivery.command, list[float]()
        if (declared := self._registration(command).options.get("timeout_s")) is not None:
            limits.append(declared)
        if delivery.todo is RUN and command.not_after_ms is not None:
            limits.append((command.not_after_ms - self._inbox.fresh_time_for(command)) / 1000)
        return max(1, math.ceil(min(limits, default=self._service.lease_ms / 1000)))

    def _look(self) -> None:
        """Look at every job that is out, and renew the lease on its entry."""
        outs = list(self._out.values())
        states = self._jobs.look([self._job_id(out.delivery) for out in outs])
        # Looked up after the jobs: so a job that has ended while its entry is pending has not answered it.
        done = self._let_go([out.delivery for out in outs] + self._waiting)
        if searching := time.monotonic() >= self._search_at_s:
            self._search_at_s = time.monotonic() + _SEARCH_EVERY_S
        for out, state in zip(outs, states, strict=True):
            if out.delivery.entry.at in done:
                del self._out[out.delivery.entry.at]
            elif state.left and not state.is_live:
                self._look_at_left(out, state)
            elif not state.is_live:
                self._ended(out, state)
            elif state.status == b"queued":
                self._look_at_queued(out, state, searching=searching)
        if searching:
            self._look_for_workers()

    def _let_go(self, held: list[Delivery]) -> set[tuple[str, bytes]]:
        """Where the entries stand that were answered or taken over; on the others the lease is renewed."""
        if time.monotonic() >= self._renew_at_s:
            self._renew_at_s = time.monotonic() + self._service.lease_ms / 4000
            done = self._inbox.renew(held)
        else:  # to renew is a write, which a durable broker syncs, so it is not done at every look
            done = self._inbox.answered(held)
        self._waiting = [one for one in self._waiting if one.entry.at not in done]
        return done

    def _look_at_left(self, out: _Out, state: JobState) -> None:
        """A job whose worker has another release of the service, which does not have the command: after a while, let
        whichever worker takes it run it; unless nobody waits for it any more."""
        delivery, now_s = out.delivery, time.monotonic()
        if (late := self._too_late(delivery)) is not None:
            del self._out[delivery.entry.at]
            self._inbox.outbox.answer(delivery, late)
        elif out.again_at_s == 0.0:
            out.lefts += 1
            out.again_at_s = now_s + min(2.0**out.lefts, _LONGEST_LEFT_S) - 1.0
        elif now_s >= out.again_at_s:
            out.again_at_s = 0.0
            self._enqueue(delivery, dead=state, lefts=out.lefts)

    def _too_late(self, delivery: Delivery) -> Answer | None:
        not_begun, now_ms = not delivery.entry.again, self._inbox.fresh_time_for(delivery.command)
        return service_rules.too_late(delivery.command, delivery.todo, not_begun=not_begun, now_ms=now_ms)

    def _look_at_queued(self, out: _Out, state: JobState, *, searching: bool) -> None:
        """A job that was not begun: take it back if nobody waits for it any more; see whether it was lost."""
        delivery = out.delivery
        command = delivery.command
        if (late := self._too_late(delivery)) is not None:
            if self._jobs.take_back(command, self._job_id(delivery)):
                del self._out[delivery.entry.at]
                self._inbox.outbox.answer(delivery, late)
        elif searching:
            missing = not self._jobs.is_in_queue(command, self._job_id(delivery))
            if missing and out.missed:
                self._ended(out, state)
            out.missed = missing

    def _look_for_workers(self) -> None:
        """Say in which queues jobs wait and no worker runs. It has to be so twice in a row, since both may have been
        started just now."""
        waiting = self._jobs.without_worker()
        missed = sorted(self._without_worker & waiting.keys())
        self._without_worker = set(waiting)
        if not missed or time.monotonic() < self._say_at_s:
            return
        self._say_at_s = time.monotonic() + _SAY_EVERY_S
        for queue in missed:
            what = f"jobs that wait: {waiting[queue]}; start {START_WORKER} or, {if_set()}, {start_worker(queue)}"
            self._log.warning(f"no RQ worker works on queue {queue}: {what}", extra={"service": self._service.name})

    def _ended(self, out: _Out, state: JobState) -> None:
        """A job will not answer, and the entry is pending."""
        delivery = out.delivery
        if state.entry not in (None, delivery.entry.id.decode()):
            # The job was for an earlier attempt. Now it is this one's turn, unless the result of that one is recorded.
            del self._out[delivery.entry.at]
            for left in self._inbox.take([replace(delivery.entry, again=True)]):
                self._enqueue(left, dead=state)
            return
        command = delivery.command
        why = f"the RQ job {self._job_id(delivery)} {self._what_became(delivery, state)}"
        del self._out[delivery.entry.at]
        # An undo is released: another process takes it over when the lease has ended.
        if isinstance(step := service_rules.in_doubt(delivery.todo, command, printable(why)), Answer):
            text = f"{command.told}, may have been done or not: {why}"
            self._log.warning(text, extra=about(command))
            self._inbox.outbox.answer(delivery, step)

    def _what_became(self, delivery: Delivery, state: JobState) -> str:
        if state.status is None:
            return "is gone: it was deleted"
        if state.abandoned:
            return "was abandoned: its worker is not heard of any more"
        if state.status == b"queued":
            return "was lost: it is not in its queue, and was not begun"
        words = self._jobs.last_words(self._job_id(delivery))
        return f"{state.status.decode(errors='backslashreplace')}: {words or 'it ended without an answer'}"


def on_rq(broker: Broker, service: Service) -> Callable[[CommandInbox, str], JobDispatcher]:
    """The `dispatcher` of a ServiceRunner that has commands run as RQ jobs, if they are declared so. Raises BrokerError
    if RQ cannot work with the server that it is to use, as far as that answers now."""
    server = RqServer(broker)
    with contextlib.suppress(redis.RedisError, RqAway), server.asking():  # if it is away, that is told when it matters
        server.check()
    return lambda inbox, who: JobDispatcher(server, broker.prefix, service, inbox, who)
