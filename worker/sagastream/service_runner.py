"""Runs a service: reads its commands, calls the handlers, answers. Any number of them share the work."""

import threading
import time
import traceback
from typing import Final

import orjson
import redis

from sagastream import backoff, keys
from sagastream.answers import Answers
from sagastream.broker import BLOCK_MS, Broker, Outage
from sagastream.console import printable, say
from sagastream.errors import MalformedMessage, Reject
from sagastream.messages import Command, Reply, encode, encode_payload, failed, ok, parse_command
from sagastream.service import Handler, Service, context_of
from sagastream.streams import Entry, GroupReader, consumer_name

#: How often a handler is called that raises something other than Reject, before the reply says `unknown`.
TRIES: Final = 3
#: How long a finished answer may wait for the rest of its batch, in seconds.
_LINGER_S: Final = 0.02


class ServiceRunner:
    """One process of a service. `stop` may be set from anywhere: the commands in hand are answered first."""

    def __init__(self, broker: Broker, service: Service, stop: threading.Event) -> None:
        self.name = f"service {service.name} {consumer_name()}"
        self._service = service
        self._broker = broker
        self._stop = stop
        self._answers = Answers(broker.client, service.name)
        stream = keys.commands(service.name)
        self._inbox = GroupReader(broker.client, [stream], service.name, self.name.split()[-1], service.lease_ms)

    def run(self) -> None:
        """Work until `stop` is set. Raises what waiting cannot mend (ServiceError, BrokerError …)."""
        outage = Outage(self._broker, self.name, self._stop)
        ready = False
        while not self._stop.is_set():
            try:
                if not ready:
                    self._broker.check()
                    self._service.publish(self._broker.client)
                    ready = True
                    say(self.name, "ready")
                self.turn()
                outage.over()
            except redis.RedisError as error:
                outage.wait(error)
                self._inbox.recover()

    def turn(self, block_ms: int = BLOCK_MS) -> None:
        """Read a batch of commands, call their handlers, answer."""
        self._answers.send()  # what an outage left over
        entries = self._inbox.read(block_ms)
        began = sent = time.monotonic()
        for entry in entries:
            self._work(entry)
            now = time.monotonic()
            if now - sent > _LINGER_S:
                self._answers.send()
                sent = now
            if now - began > self._service.lease_ms / 4000:
                # The rest waits for longer than others may think we live. Reading it again renews the lease, on
                # what is still ours.
                self._inbox.recover()
                break
        self._answers.send()

    def _work(self, entry: Entry) -> None:
        try:
            command = parse_command(self._service.name, entry.fields, int(entry.id.split(b"-")[0]))
        except MalformedMessage as error:
            say(self.name, f"quarantined the entry {entry.id.decode()}: {error}")
            self._answers.quarantine(entry, str(error))
            return
        # A first delivery of a first attempt cannot have been done before; anything else may have been.
        if (entry.redelivered or command.attempt > 1) and self._answers.recorded(command) is not None:
            reply = _reply(command, ok(command.type))  # the script sends the recorded one in its place
        else:
            reply = self._handle(command)
        self._answers.reply(entry, command, reply)

    def _handle(self, command: Command) -> Reply:
        handler = self._service.handler(command)
        if handler is None:
            known = "compensation" if command.compensating else "command"
            error = f"unknown_command: service {self._service.name} has no {known} {command.type}"
            return _reply(command, failed(command.type), error=encode(error))
        for attempt in range(1, TRIES + 1):
            try:
                return _call(handler, command)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises, its command is answered
                self._report(command, error, attempt)
                if attempt == TRIES:
                    text = encode(printable(f"{type(error).__name__}: {error}"[:500]))
                    return _reply(command, failed(command.type), error=text, unknown=True)
                self._stop.wait(backoff.delay(attempt))
        raise AssertionError("unreachable")

    def _report(self, command: Command, error: Exception, attempt: int) -> None:
        then = "will be tried again" if attempt < TRIES else "gave up; its outcome is unknown"
        say(
            self.name,
            f"{command.type} of saga {command.saga_id}, step {command.step}, raised {type(error).__name__}: "
            f"{error} (try {attempt} of {TRIES}; {then})",
        )
        if attempt == TRIES:
            for line in "".join(traceback.format_exception(error)).splitlines():
                say(self.name, line)


def _call(handler: Handler, command: Command) -> Reply:
    context = context_of(command)
    try:
        result = handler(orjson.loads(command.params), context)
    except Reject as rejection:
        try:
            error = encode_payload(rejection.error)
        except MalformedMessage:
            error = encode(printable(repr(rejection.error)[:500]))
        return _reply(command, failed(command.type), error=error)
    if command.compensating or result is None:
        return _reply(command, ok(command.type))
    return _reply(command, ok(command.type), result=encode_payload(result))


def _reply(
    command: Command,
    kind: str,
    *,
    result: bytes | None = None,
    error: bytes | None = None,
    unknown: bool = False,
) -> Reply:
    return Reply(type=kind, saga_id=command.saga_id, step=command.step, result=result, error=error, unknown=unknown)
