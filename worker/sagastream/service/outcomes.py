"""What comes of the commands in hand: whether a handler is called, and what its reply, or what it raised, leads to."""

import traceback

import redis
from msgspec.structs import replace

from sagastream.broker.outage import is_outage
from sagastream.console import describe, printable, say
from sagastream.core import backoff, service_rules
from sagastream.core.messages import Command, Reply, failed, ok, reply_to
from sagastream.core.strict_json import encode
from sagastream.errors import MalformedMessage
from sagastream.service.in_flight import Hand, Work
from sagastream.service.inbox import CommandInbox


class Outcomes:
    """Sees to it that every command that was begun is answered, called again, or left to others; and leaves the hand.
    Safe to be used by several threads."""

    def __init__(self, inbox: CommandInbox, hand: Hand, who: str) -> None:
        """`who`: of whom is spoken on stderr."""
        self._inbox = inbox
        self._hand = hand
        self._who = who
        self._data_away = False  # handlers cannot reach their data, which was said

    def may_begin(self, work: Work) -> bool:
        """Whether the handler is to be called; where it is not, the command is seen to. Raises redis.RedisError."""
        delivery, is_first = work.delivery, work.begins == 1
        if work.undoes:
            if not is_first or self._inbox.take_up_undo(delivery):
                return True
            self._hand.finish(work)
            return False
        if (late := service_rules.stale(work.command, self._inbox.now_ms)) is not None:
            # Where nobody had it before it was certainly not begun, and leaves nothing in doubt.
            self._inbox.reply(delivery, late, final=is_first and not delivery.entry.again)
            self._hand.finish(work)
            return False
        if is_first and (reply := self._inbox.take_up(delivery)) is not None:
            self._through(work, reply)
            return False
        return True

    def settle(self, work: Work, outcome: Reply | BaseException, now: float) -> None:
        """What came of a handler: its reply, or what it raised. `now`: by time.monotonic."""
        if isinstance(outcome, Reply):
            self._data_away = False
            self._through(work, outcome)
        elif (reply := self._raised(work, outcome, now)) is not None:
            self._through(work, reply)

    def _raised(self, work: Work, failure: BaseException, now: float) -> Reply | None:
        """The reply to a command whose handler has raised; None: it is called again after a while, others meanwhile."""
        where = described(work.command)
        if isinstance(failure, redis.RedisError) and is_outage(failure):
            # An outage like any other: no fault of the handler's, and no verdict on the step.
            if not self._data_away:
                self._data_away = True
                say(self._who, f"{where} cannot reach its data ({describe(failure)}); waiting, nothing is lost")
            work.outages += 1
            self._hand.put_back(work, now + backoff.delay(work.outages))
            return None
        if isinstance(failure, MalformedMessage):
            return self._give_up(work.command, f"the result of {work.command.type} is unusable: {failure}")
        work.tries += 1
        tries = work.registration.tries
        say(self._who, f"{where}, raised {describe(failure)} (try {work.tries} of {tries})")
        if work.tries < tries:
            self._hand.put_back(work, now + backoff.delay(work.tries))
            return None
        for line in "".join(traceback.format_exception(failure)).splitlines():
            say(self._who, line)
        return self._give_up(work.command, describe(failure))

    def _give_up(self, command: Command, why: str) -> Reply:
        """The reply that says that nobody knows whether the step had its effect."""
        say(self._who, f"the outcome of step {command.step} of saga {command.saga_id} is unknown: {why}")
        return reply_to(command, failed(command.type), error=encode(printable(why)), unknown=True)

    def _through(self, work: Work, reply: Reply) -> None:
        """Answer a command, and its twins in hand with it; where that is no last word, they are still to be done."""
        if work.delivery.refusal is None:
            self._inbox.reply(work.delivery, reply)
            if self._hand.finish(work) and service_rules.kind(work.command, reply) != "unknown":
                for twin in self._hand.put_down(lambda other: other.record == work.record and not other.undoes):
                    self._inbox.reply(twin.delivery, replace(reply, attempt=twin.command.attempt))
            return
        if reply.type == ok(work.command.type):
            self._inbox.reply(work.delivery, work.delivery.refusal, final=True)
        # Else it stays pending, to be undone by whoever takes it over.
        self._hand.finish(work)


def described(command: Command) -> str:
    """A command, as it is spoken of on stderr."""
    return f"{command.type} of saga {command.saga_id}, step {command.step}"
