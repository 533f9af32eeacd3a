"""A service's commands: what is to be done, and the answers; record, reply and acknowledgement in one script call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import redis

from sagastream import keys, scripts
from sagastream.broker import execute
from sagastream.console import say
from sagastream.messages import Command, Fields, Reply, Unreadable, failed, ok, read_command, reply_to
from sagastream.streams import BATCH, Entry, GroupReader
from sagastream.strict_json import encode

#: How many processes may take a command and die, or hang for longer than the lease, before its outcome is said to be
#: unknown: a command that kills whoever works on it must not do so for ever.
MAX_DELIVERIES: Final = 10


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
        max_deliveries: int | None = MAX_DELIVERIES,
    ) -> None:
        self._client = client
        self._service = service
        self._max_deliveries = max_deliveries
        self.reader = GroupReader(
            client,
            streams=[keys.commands(service)],
            group=service,
            consumer=consumer,
            lease_ms=lease_ms,
            on_join=on_join,
        )
        self._script = scripts.load(client, "answer")
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
        # A first delivery of a first attempt cannot have been done before; anything else may have been.
        doubtful = [delivery for delivery in deliveries if delivery.entry.redelivered or delivery.command.attempt > 1]
        if not doubtful:
            return deliveries
        settled = self._settle(doubtful)
        return [delivery for delivery in deliveries if delivery.entry.id not in settled]

    def reply(self, delivery: Delivery, reply: Reply) -> None:
        """Answer a command. An answer that leaves open what happened is not recorded: it may be tried again."""
        command = delivery.command
        kind = "unknown" if reply.unknown else "ok" if reply.type == ok(command.type) else "failed"
        self._answer(delivery.entry, keys.REPLIES, reply.fields(), command, kind)

    def send(self) -> None:
        """Send the answers that are ready; none is forgotten before the broker has it."""
        if len(self._args) > 2:
            self._script(keys=list(self._keys), args=self._args)
            self._clear()

    def _settle(self, deliveries: list[Delivery]) -> set[bytes]:
        """Answer those that were done before, and those that no process has lived to answer; their entry ids."""
        pipeline = self._client.pipeline(transaction=False)
        for entry, command in ((delivery.entry, delivery.command) for delivery in deliveries):
            pipeline.hget(keys.done(self._service, command.begun_ms), command.key)
            pipeline.xpending_range(entry.stream, self._service, entry.id, entry.id, 1)
        answers = iter(execute(pipeline))
        settled = set()
        for delivery, record, pending in zip(deliveries, answers, answers, strict=True):
            command = delivery.command
            times = pending[0]["times_delivered"] if pending else 0
            if _stands(record, command.attempt):
                reply = reply_to(command, ok(command.type), unknown=True)
                # The script sends the recorded reply in the place of this one.
            elif self._max_deliveries and times > self._max_deliveries:
                text = f"{times - 1} processes took {command.type} and did not live to answer it"
                say(f"service {self._service}", f"gave up on step {command.step} of saga {command.saga_id}: {text}")
                reply = reply_to(command, failed(command.type), error=encode(text), unknown=True)
            else:
                continue
            self.reply(delivery, reply)
            settled.add(delivery.entry.id)
        return settled

    def _clear(self) -> None:
        self._keys = {keys.commands(self._service): 1, keys.REPLIES: 2, keys.QUARANTINE: 3}
        self._args: list[str | bytes | int] = [self._service, keys.DONE_KEPT_S]

    def _answer(
        self, entry: Entry, target: str, fields: Fields, command: Command | None = None, kind: str = "unknown"
    ) -> None:
        record = 0
        if command is not None:
            record = self._keys.setdefault(keys.done(self._service, command.begun_ms), len(self._keys) + 1)
        words = [word for field in fields.items() for word in field]
        field, attempt = (command.key, command.attempt) if command else ("", 0)
        self._args += (entry.id, self._keys[target], record, field, kind, attempt, len(words), *words)


def _stands(record: bytes | None, attempt: int) -> bool:
    """Whether a record answers this attempt; answer.lua has the same rule."""
    if record is None:
        return False
    kind, before, _ = record.split(b" ", 2)
    return kind == b"ok" or (kind == b"failed" and int(before) >= attempt)
