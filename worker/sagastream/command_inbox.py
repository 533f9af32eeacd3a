"""A service's commands: what is to be done, and the answers; record, reply and acknowledgement in one script call."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Final

import redis

from sagastream import keys, scripts
from sagastream.broker import execute
from sagastream.console import say
from sagastream.messages import Command, Fields, Reply, Unreadable, failed, ok, reply_to
from sagastream.parsing import read_command, read_reply
from sagastream.streams import BATCH, Entry, GroupReader
from sagastream.strict_json import encode

#: How many processes may take a command and die, or hang for longer than the lease, before its outcome is said to be
#: unknown: a command that kills whoever works on it must not do so for ever.
MAX_TAKEOVERS: Final = 10

_RECORD: Final = re.compile(rb"(?P<kind>ok|failed) (?P<attempt>\d{1,18}) (?P<body>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A command, and the entry that it came as."""

    entry: Entry
    command: Command


class CommandInbox:
    """What one consumer of a service reads and answers. Answers are collected; `send` sends them."""

    def __init__(
        self,
        client: "redis.Redis",
        service: str,
        *,
        consumer: str,
        lease_ms: int,
        on_join: Callable[[], None],
        max_takeovers: int | None = MAX_TAKEOVERS,
    ) -> None:
        self._client = client
        self._service = service
        self._max_takeovers = max_takeovers
        self.reader = GroupReader(
            client,
            streams=[keys.commands(service)],
            group=service,
            consumer=consumer,
            lease_ms=lease_ms,
            on_join=on_join,
        )
        self._script = scripts.load(client, "answer")
        self._lock = threading.Lock()  # one thread may read while another answers
        self._clear()

    def read(self, block_ms: int, count: int = BATCH) -> list[Delivery]:
        """The commands that are to be done now. What is none is quarantined; what was done before is answered from
        its record."""
        deliveries = []
        for entry in self.reader.read(block_ms, count=count):
            command = read_command(self._service, entry.fields, entry.added_ms)
            if isinstance(command, Unreadable):
                say(f"service {self._service}", f"quarantined the entry {entry.id.decode()}: {command.text}")
                self._answer(entry, keys.QUARANTINE, entry.quarantined(command.text))
            else:
                deliveries.append(Delivery(entry=entry, command=command))
        settled = self._settle(deliveries) if deliveries else set()
        return [delivery for delivery in deliveries if delivery.entry.id not in settled]

    def reply(self, delivery: Delivery, reply: Reply) -> None:
        """Answer a command. An answer that leaves open what happened is not recorded: it may be tried again."""
        command = delivery.command
        kind = "unknown" if reply.unknown else "ok" if reply.type == ok(command.type) else "failed"
        self._answer(delivery.entry, keys.REPLIES, reply.fields(), command, kind)

    def send(self) -> None:
        """Send the answers that are ready; none is forgotten before the broker has it."""
        with self._lock:
            if len(self._args) > 2:
                self._script(keys=list(self._keys), args=self._args)
                self._clear()

    def _settle(self, deliveries: list[Delivery]) -> set[bytes]:
        """Answer those that were done before, and those that no process has lived to answer; their entry ids.

        Every command is looked up, also one that comes for the first time: its twin may have been answered, and a
        handler that refused it then may do it now.
        """
        pipeline = self._client.pipeline(transaction=False)
        fields: dict[str, list[str]] = {}
        for delivery in deliveries:
            fields.setdefault(self._done(delivery.command), []).append(delivery.command.record)
        for done, names in fields.items():
            pipeline.hmget(done, names)
        orphans = [delivery for delivery in deliveries if delivery.entry.taken_over]
        for delivery in orphans:
            # Not the broker's own count of deliveries: that counts every renewal of a lease, too.
            pipeline.hincrby(self._done(delivery.command), f"{delivery.command.record}/takeovers", 1)
        answers = execute(pipeline)
        places = ((done, name) for done, names in fields.items() for name in names)
        records = dict(zip(places, chain(*answers[: len(fields)]), strict=True))
        takeovers = {
            delivery.entry.id: int(times) for delivery, times in zip(orphans, answers[len(fields) :], strict=True)
        }
        settled = set()
        for delivery in deliveries:
            command = delivery.command
            reply = _recorded(records[self._done(command), command.record], command.attempt)
            reply = reply or self._given_up(command, takeovers.get(delivery.entry.id, 0))
            if reply is not None:
                self.reply(delivery, reply)
                settled.add(delivery.entry.id)
        return settled

    def _done(self, command: Command) -> str:
        return keys.done(self._service, command.begun_ms)

    def _given_up(self, command: Command, takeovers: int) -> Reply | None:
        if self._max_takeovers is None or takeovers < self._max_takeovers:
            return None
        text = f"{takeovers} processes took {command.type} and did not live to answer it"
        say(f"service {self._service}", f"gave up on step {command.step} of saga {command.saga_id}: {text}")
        return reply_to(command, failed(command.type), error=encode(text), unknown=True)

    def _clear(self) -> None:
        self._keys = {keys.commands(self._service): 1, keys.REPLIES: 2, keys.QUARANTINE: 3}
        self._args: list[str | bytes | int] = [self._service, keys.DONE_KEPT_S]

    def _answer(
        self, entry: Entry, target: str, fields: Fields, command: Command | None = None, kind: str = "unknown"
    ) -> None:
        words = [word for field in fields.items() for word in field]
        field, attempt = (command.record, command.attempt) if command else ("", 0)
        with self._lock:
            record = 0
            if command is not None:
                record = self._keys.setdefault(self._done(command), len(self._keys) + 1)
            self._args += (entry.id, self._keys[target], record, field, kind, attempt, len(words), *words)


def _recorded(record: bytes | None, attempt: int) -> Reply | None:
    """The recorded reply that answers this attempt; answer.lua has the same rule."""
    match = _RECORD.fullmatch(record or b"")
    if match is None or (match["kind"] == b"failed" and int(match["attempt"]) < attempt):
        return None
    reply = read_reply({b"body": match["body"]})
    return reply if isinstance(reply, Reply) else None
