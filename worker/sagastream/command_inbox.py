"""A service's commands: what is to be done, and the answers; record, reply and acknowledgement in one script call."""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import redis
from msgspec import Struct
from msgspec.structs import replace

from sagastream import dedupe, keys, scripts
from sagastream.broker import execute
from sagastream.console import say
from sagastream.messages import Command, Fields, Reply, Unreadable
from sagastream.parsing import read_command
from sagastream.streams import BATCH, Entry, GroupReader

#: How many processes may begin with a command and die, or hang for longer than the lease, before its outcome is said to
#: be unknown: a command that kills whoever works on it must not do so for ever.
MAX_TAKEOVERS: Final = 10


class Delivery(Struct, frozen=True, kw_only=True):
    """A command, and the entry that it came as."""

    entry: Entry
    command: Command
    seen: bytes = b""  # its record, when it was looked up
    refusal: Reply | None = None  # not to be done: undo what an earlier delivery may have done, then answer this


class _Answer(Struct, frozen=True, kw_only=True):
    """What one entry is answered with. `kind`: as answer.lua has it."""

    entry: Entry
    target: str
    fields: Fields
    delivery: Delivery | None = None
    reply: Reply | None = None
    kind: str = "final"


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
    ) -> None:
        self._client = client
        self._service = service
        self.reader = GroupReader(
            client,
            streams=[keys.commands(service)],
            group=service,
            consumer=consumer,
            lease_ms=lease_ms,
            on_join=on_join,
        )
        self._recall = scripts.load(client, "recall")
        self._answer = scripts.load(client, "answer")
        self._lock = threading.Lock()  # one thread may read while another answers
        self._answers: list[_Answer] = []
        self._ahead_ms = 0.0  # how far the broker's clock is ahead of this process's monotonic one

    @property
    def now_ms(self) -> int:
        """The time by the broker's clock, as this process reckons it since it last looked something up."""
        return round(time.monotonic() * 1000 + self._ahead_ms)

    def read(self, block_ms: int, count: int = BATCH) -> list[Delivery]:
        """The commands that are to be done now, or undone. What is none is quarantined; what was done before is
        answered from its record."""
        deliveries = []
        for entry in self.reader.read(block_ms, count=count):
            command = read_command(self._service, entry.fields, entry.added_ms)
            if isinstance(command, Unreadable):
                self._quarantine(entry, command.text)
            else:
                deliveries.append(Delivery(entry=entry, command=command))
        return self._settle(deliveries) if deliveries else []

    def reply(self, delivery: Delivery, reply: Reply, *, final: bool = False) -> None:
        """Answer a command. What leaves open what happened is not recorded: it may be tried again.

        `final`: the answer is no handler's. It is not recorded, and leaves nothing to be undone; what is recorded is
        sent in its place.
        """
        kind = "final" if final else dedupe.kind(delivery.command, reply)
        self._add(
            _Answer(
                entry=delivery.entry,
                target=keys.REPLIES,
                fields=reply.fields(),
                delivery=delivery,
                reply=reply,
                kind=kind,
            )
        )

    def take_up(self, delivery: Delivery) -> Reply | None:
        """To be called before a handler is: the reply in its place, where too many have died of the command."""
        command = delivery.command
        if not delivery.entry.taken_over or (times := self._count(command, "takeovers")) < MAX_TAKEOVERS:
            return None
        self._say(f"gave up on step {command.step} of saga {command.saga_id}: {times} processes died of it")
        return dedupe.gave_up(command, times)

    def take_up_undo(self, delivery: Delivery) -> bool:
        """To be called before a command that must not be done is undone: whether it is to be tried. Where that has
        failed too often, it is left to a person."""
        # Counted by entry: put back from the quarantine, it is tried as often again.
        undos = f"undos/{delivery.entry.id.decode()}"
        if not delivery.entry.again or (times := self._count(delivery.command, undos)) < MAX_TAKEOVERS:
            return True
        what = f"{delivery.command.type} may have been done after it was refused, and could not be undone {times} times"
        self._quarantine(delivery.entry, what)
        return False

    def send(self) -> list[tuple[Delivery, Reply]]:
        """Send the answers that are ready; none is forgotten before the broker has it.

        Returns those that were overruled: their step has failed, or was undone, while the handler was at it. What they
        may have done is to be undone, and then they are to be answered, for good.
        """
        with self._lock:
            if not self._answers:
                return []
            streams = {keys.commands(self._service): 1, keys.REPLIES: 2, keys.QUARANTINE: 3}
            args: list[str | bytes | int] = [self._service, keys.DONE_KEPT_S]
            for answer in self._answers:
                record, field, tombstone, seen = 0, "", "", b""
                if answer.delivery is not None:
                    command, seen = answer.delivery.command, answer.delivery.seen
                    record = streams.setdefault(keys.done(self._service, command.begun_ms), len(streams) + 1)
                    field, tombstone = command.record, "" if command.compensating else command.tombstone
                words = [word for pair in answer.fields.items() for word in pair]
                args += (answer.entry.id, streams[answer.target], record, field, tombstone, seen, answer.kind)
                args += (len(words), *words)
            overruled = [self._answers[number - 1] for number in self._answer(keys=list(streams), args=args)]
            self._answers = []
            return [
                (one.delivery, one.reply) for one in overruled if one.delivery is not None and one.reply is not None
            ]

    def _settle(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Answer those that need no handler; those that are left.

        Every command is looked up, also one that comes for the first time: its twin may have been answered, and a
        handler that refused it then may do it now.
        """
        left = []
        for delivery, (record, tombstone) in zip(deliveries, self._look_up(deliveries), strict=True):
            verdict = dedupe.verdict(
                delivery.command, record=record, tombstone=bool(tombstone), again=delivery.entry.again
            )
            if verdict.undo:
                left.append(replace(delivery, refusal=verdict.reply))
            elif verdict.reply is None:
                left.append(replace(delivery, seen=record or b""))
            else:
                self.reply(delivery, verdict.reply, final=True)
        return left

    def _look_up(self, deliveries: list[Delivery]) -> list[tuple[bytes | None, int]]:
        """Of each: its record, and whether its step has a tombstone."""
        hashes: dict[str, int] = {}
        args: list[str | int] = [keys.DONE_KEPT_S]
        for delivery in deliveries:
            command = delivery.command
            key = hashes.setdefault(keys.done(self._service, command.begun_ms), len(hashes) + 1)
            args += (key, command.record, command.tombstone, int(command.compensating))
        answer: list[Any] = self._recall(keys=list(hashes), args=args)
        now_ms, *found = answer
        self._ahead_ms = now_ms - time.monotonic() * 1000
        return found

    def _count(self, command: Command, what: str) -> int:
        """How often this was begun of a command that others had in hand before, this time included."""
        # Not the broker's own count of deliveries: that counts every renewal of a lease, and all that was read with it.
        pipeline = self._client.pipeline(transaction=False)
        done = keys.done(self._service, command.begun_ms)
        pipeline.hincrby(done, f"{command.record}/{what}", 1)
        pipeline.expire(done, keys.DONE_KEPT_S)
        times: int = execute(pipeline)[0]
        return times

    def _quarantine(self, entry: Entry, reason: str) -> None:
        self._say(f"quarantined the entry {entry.id.decode()}: {reason}")
        self._add(_Answer(entry=entry, target=keys.QUARANTINE, fields=entry.quarantined(reason)))

    def _add(self, answer: _Answer) -> None:
        with self._lock:
            self._answers.append(answer)

    def _say(self, what: str) -> None:
        say(f"service {self._service}", what)
