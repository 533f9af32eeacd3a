"""Runs a service: reads its commands, calls the handlers, answers. Any number of them share the work."""

import asyncio
import threading
import time
import traceback
from typing import Final

import redis
from msgspec.structs import replace

from sagastream import backoff, dedupe, published
from sagastream.broker import BLOCK_MS, Broker, Outage, is_outage
from sagastream.command_inbox import CommandInbox, Delivery
from sagastream.console import describe, printable, say
from sagastream.errors import MalformedMessage
from sagastream.handlers import call, call_async
from sagastream.messages import Command, Reply, failed, ok, reply_to
from sagastream.service import Handler, Service, context_of, is_async
from sagastream.streams import BATCH, consumer_name
from sagastream.strict_json import encode

#: How often a handler is called that raises something other than Reject, before the reply says `unknown`.
TRIES: Final = 3
#: How much work is taken at once, in seconds: what one process holds, no other can work on.
_BATCH_S: Final = 0.2
#: How often a service says anew which commands it has, in seconds: somebody may have deleted it.
_PUBLISH_EVERY_S: Final = 30.0
#: How long a finished answer may wait for the rest of its batch, in seconds.
_LINGER_S: Final = 0.02


class ServiceRunner:
    """One process of a service. `stop` may be set from anywhere: the commands in hand are answered first."""

    def __init__(self, broker: Broker, service: Service, stop: threading.Event) -> None:
        """Raises ServiceError if the service is declared wrongly."""
        self.name = f"service {service.name} {(consumer := consumer_name())}"
        self._service = service
        self._publishes = service.publishes()
        self._broker = broker
        self._stop = stop
        self._outage = Outage(broker, self.name, stop)
        self._inbox = CommandInbox(
            broker.client, service.name, consumer=consumer, lease_ms=service.lease_ms, on_join=self._join
        )
        self._pace_s = _BATCH_S  # what a command takes, about
        self._publish_at = float("inf")  # when it has joined

    def run(self) -> None:
        """Work until `stop` is set. Raises what waiting cannot mend (BrokerError, redis.AuthenticationError …)."""
        say(self.name, "started")
        self._outage.keep(self.turn, self._inbox.reader.recover)
        self._outage.once(self._inbox.reader.leave)

    def turn(self, block_ms: int = BLOCK_MS) -> None:
        """Read a batch of commands, call their handlers, answer."""
        self._send()  # what an outage left over
        if time.monotonic() >= self._publish_at:
            self._publish()
        deliveries = self._inbox.read(block_ms, count=max(1, min(BATCH, int(_BATCH_S / self._pace_s))))
        began = sent = time.monotonic()
        replies: dict[str, Reply] = {}
        for done, delivery in enumerate(deliveries, 1):
            if delivery.refusal is not None:
                self._overrule(delivery, None, delivery.refusal)
            elif not self._serve(delivery, replies):
                break  # the rest stays pending: others take it over
            now = time.monotonic()
            self._pace_s = 0.8 * self._pace_s + 0.2 * max((now - began) / done, 1e-6)
            if now - sent > _LINGER_S:
                self._send()
                sent = now
            if now - began > self._service.lease_ms / 4000:
                # The rest waits for longer than others may think we live. Reading it again renews the lease, on
                # what is still ours.
                self._inbox.reader.renew()
                break
        self._send()

    def _serve(self, delivery: Delivery, replies: dict[str, Reply]) -> bool:
        """Answer a command; False: the process is to stop, and leaves it to another. `replies`: the last words on
        others of the batch, of which this may be a twin."""
        command = delivery.command
        if (late := dedupe.stale(command, self._inbox.now_ms)) is not None:
            # Where nobody had it before it was certainly not begun, and leaves nothing in doubt.
            self._inbox.reply(delivery, late, final=not delivery.entry.again)
            return True
        reply = replies.get(command.record) or self._inbox.take_up(delivery) or self._handle(command)
        if reply is None:
            return False
        if dedupe.kind(command, reply) != "unknown":
            replies[command.record] = reply  # else a later attempt is one to be made
        self._inbox.reply(delivery, replace(reply, attempt=command.attempt))
        return True

    def _send(self) -> None:
        """Send the answers that are ready. What was overruled meanwhile is undone first, then answered."""
        while overruled := self._inbox.send():
            for delivery, reply in overruled:
                self._overrule(delivery, reply.result, dedupe.refusal(delivery.command))

    def _overrule(self, delivery: Delivery, result: bytes | None, refusal: Reply) -> None:
        """Undo what may have come of a command that must not be done any more, and answer it. Where that does not
        succeed it stays pending, to be undone by whoever takes it over."""
        command = delivery.command
        where = f"{command.type} of saga {command.saga_id}, step {command.step}"
        if (name := self._service.undo_of(command)) is not None:
            say(self.name, f"{where} must not be done: undoing what may have come of it")
            if not self._inbox.take_up_undo(delivery):
                return
            undoing = replace(command, type=name, compensating=True, result=result)
            if (undo := self._service.handler(undoing)) is None:
                say(self.name, f"{where} cannot be undone: the service has no compensation {name}")
                return
            # Under a key of its own: the step's compensation has run under the usual one, and has found nothing.
            undone = self._try(undo, undoing, f"{undoing.key}/{delivery.entry.id.decode()}")
            if undone is None or undone.type != ok(name):
                return
        self._inbox.reply(delivery, refusal, final=True)

    def _join(self) -> None:
        self._broker.check()
        self._publish()

    def _publish(self) -> None:
        published.publish(self._broker.client, self._service.name, self._publishes)
        self._publish_at = time.monotonic() + _PUBLISH_EVERY_S

    def _handle(self, command: Command) -> Reply | None:
        """The reply to a command; None: the process is to stop, and leaves it to another.

        Raises redis.RedisError where the handler could not reach its data: that is an outage like any other, no
        fault of the handler's, and no verdict on the step.
        """
        handler = self._service.handler(command)
        if handler is None:
            known = "compensation" if command.compensating else "command"
            error = f"unknown_command: service {self._service.name} has no {known} {command.type}"
            return reply_to(command, failed(command.type), error=encode(error))
        return self._try(handler, command)

    def _try(self, handler: Handler, command: Command, key: str | None = None) -> Reply | None:
        """Call the handler, more than once if need be; None: the process is to stop."""
        for attempt in range(1, TRIES + 1):
            try:
                context = context_of(command, key)
                if is_async(handler):
                    return asyncio.run(call_async(handler, command, context))
                return call(handler, command, context)
            except (Exception, SystemExit) as error:
                if isinstance(error, redis.RedisError) and is_outage(error):
                    raise
                if isinstance(error, MalformedMessage):
                    return self._give_up(command, f"the result of {command.type} is unusable: {error}")
                self._report(command, error, attempt)
                if attempt == TRIES:
                    for line in "".join(traceback.format_exception(error)).splitlines():
                        say(self.name, line)
                    return self._give_up(command, describe(error))
                if self._stop.wait(backoff.delay(attempt)):
                    break
        return None

    def _report(self, command: Command, error: BaseException, attempt: int) -> None:
        say(
            self.name,
            f"{command.type} of saga {command.saga_id}, step {command.step}, raised {describe(error)} "
            f"(try {attempt} of {TRIES})",
        )

    def _give_up(self, command: Command, why: str) -> Reply:
        """The reply that says that nobody knows whether the step had its effect."""
        say(self.name, f"the outcome of step {command.step} of saga {command.saga_id} is unknown: {why}")
        return reply_to(command, failed(command.type), error=encode(printable(why)), unknown=True)
