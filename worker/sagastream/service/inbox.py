"""A service's commands: what is to be done, and the answers; record, reply and acknowledgement in one script call."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import redis
from msgspec import Struct
from msgspec.structs import replace

from sagastream.broker import scripting
from sagastream.broker.exchange import Exchange, run
from sagastream.broker.group_reader import BATCH, Entry, GroupReader
from sagastream.broker.wire import execute
from sagastream.console import say
from sagastream.core import service_rules
from sagastream.core.messages import Command, Fields, Reply, Unreadable
from sagastream.core.parsing import read_command
from sagastream.store import keys

#: Of how many entries a script call renews the lease: far below what it can take, and no long wait for others.
_HELD_AT_ONCE: Final = 1000
#: For how long what is handed back is made to look held, in milliseconds: longer than any lease.
_LONG_MS: Final = 24 * 3600 * 1000


class Delivery(Struct, frozen=True, kw_only=True):
    """A command, and the entry that it came as."""

    entry: Entry
    command: Command
    done: str  # the key of the hash with the next two
    record: str  # the field that the answer is filed under, as the command has it
    tombstone: str  # … and the one that is there once the step was undone
    seen: bytes = b""  # its record, when it was looked up
    refusal: Reply | None = None  # not to be done: undo what an earlier delivery may have done, then answer this

    @classmethod
    def of(cls, entry: Entry, command: Command) -> "Delivery":
        return cls(
            entry=entry,
            command=command,
            done=keys.done(command.service, command.begun_ms),
            record=command.record,
            tombstone=command.tombstone,
        )


class _Answer(Struct, frozen=True):
    """The reply to a command. `kind`: as answer.lua has it."""

    entry: Entry
    delivery: Delivery
    reply: Reply
    kind: str


class _SetAside(Struct, frozen=True):
    """An entry that is no command, or is left to a person; and its fields in the quarantine."""

    entry: Entry
    fields: Fields


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
        self._consumer = consumer
        self.reader = GroupReader(
            client,
            streams=[keys.commands(service)],
            group=service,
            consumer=consumer,
            lease_ms=lease_ms,
            on_join=on_join,
        )
        self._recall = scripting.load(client, "recall")
        self._answer = scripting.Script("answer")
        self._hold = scripting.load(client, "hold")
        self._lock = threading.Lock()  # of the answers: one thread may read while others answer
        self._sending = threading.Lock()  # no answer is sent twice
        self._answers: list[_Answer | _SetAside] = []  # until the broker has them
        self._oldest = 0.0  # since when the first of them waits, by time.monotonic
        self.heard = time.monotonic()  # when the broker last answered a reading, by the same clock
        self._ahead_ms = 0.0  # how far the broker's clock is ahead of this process's monotonic one

    @property
    def now_ms(self) -> int:
        """The time by the broker's clock, as this process reckons it since it last looked something up."""
        return round(time.monotonic() * 1000 + self._ahead_ms)

    def read(self, block_ms: int, count: int = BATCH) -> list[Delivery]:
        """The commands that are to be done now, or undone. What is none is quarantined; what was done before is
        answered from its record."""
        entries = self.reader.read(block_ms, dict.fromkeys(self.reader.streams, count))
        self.heard = time.monotonic()
        if any(entry.again for entry in entries):
            answered = self._answered()
            entries = [entry for entry in entries if entry.id not in answered]
        return self.take(entries)

    def take(self, entries: Sequence[Entry]) -> list[Delivery]:
        """Of entries that were read, the commands that are to be done now, or undone; the others as `read` has it."""
        deliveries = []
        for entry in entries:
            command = read_command(self._service, entry.fields, entry.added_ms)
            if isinstance(command, Unreadable):
                self._quarantine(entry, command.text)
            else:
                deliveries.append(Delivery.of(entry, command))
        return self._settle(deliveries) if deliveries else []

    def reply(self, delivery: Delivery, reply: Reply, *, final: bool = False) -> None:
        """Answer a command. What leaves open what happened is not recorded: it may be tried again.

        `final`: the answer is no handler's. It is not recorded, and leaves nothing to be undone; what is recorded is
        sent in its place.
        """
        kind = "final" if final else service_rules.kind(delivery.command, reply)
        self._add(_Answer(delivery.entry, delivery, reply, kind))

    def take_up(self, delivery: Delivery) -> Reply | None:
        """To be called before a handler is: the reply in its place, where too many have died of the command."""
        if not delivery.entry.taken_over or (times := self._count(delivery, "takeovers")) < service_rules.MAX_TAKEOVERS:
            return None
        command = delivery.command
        self._say(f"gave up on step {command.step} of saga {command.saga_id}: {times} processes died of it")
        return service_rules.gave_up(command, times)

    def take_up_undo(self, delivery: Delivery) -> bool:
        """To be called before a command that must not be done is undone: whether it is to be tried. Where that has
        failed too often, it is left to a person."""
        # Counted by entry: put back from the quarantine, it is tried as often again.
        undos = f"undos/{delivery.entry.id.decode()}"
        if not delivery.entry.again or (times := self._count(delivery, undos)) < service_rules.MAX_TAKEOVERS:
            return True
        what = f"{delivery.command.type} may have been done after it was refused, and could not be undone {times} times"
        self._quarantine(delivery.entry, what)
        return False

    def send(self, ahead: int = 0) -> list[tuple[Delivery, Reply]]:
        """Send the answers that are ready; none is forgotten before the broker has it.

        `ahead`: how many new commands are to come along, if they are there, for the next reading; none unless it is
        the caller's turn to read.

        Returns those that were overruled: their step has failed, or was undone, while the handler was at it. What they
        may have done is to be undone, and then they are to be answered, for good.
        """
        overruled: list[tuple[Delivery, Reply]] = []
        if not self._answers:
            return overruled
        with self._sending:
            while answers := self._answers[:BATCH]:
                for number in self._answer_all(answers, ahead):
                    answer = answers[number - 1]
                    if isinstance(answer, _Answer):
                        overruled.append((answer.delivery, answer.reply))
                with self._lock:
                    del self._answers[: len(answers)]
                    self._oldest = time.monotonic()
        return overruled

    def lingers(self, longest_s: float) -> bool:
        """Whether an answer has waited for so long to be sent."""
        return bool(self._answers) and time.monotonic() - self._oldest >= longest_s

    def renew(self, deliveries: Iterable[Delivery]) -> set[bytes]:
        """Renew the lease on these. Returns the ids of the entries that have meanwhile been taken over."""
        ids = [delivery.entry.id for delivery in deliveries]
        return set(ids).difference(self._held_for(ids, 0))

    def hand_back(self, deliveries: Iterable[Delivery]) -> None:
        """Have others take these over at once."""
        self._held_for([delivery.entry.id for delivery in deliveries], _LONG_MS)

    def fetch(self, entry_id: bytes, *, again: bool) -> Entry | None:
        """An entry that another process holds; None: it was answered."""
        stream = keys.commands(self._service)
        found: Any = self._client.xrange(stream, entry_id, entry_id)
        return Entry(stream=stream, id=entry_id, fields=found[0][1], again=again) if found else None

    def answered(self, deliveries: Iterable[Delivery]) -> set[bytes]:
        """Of these, the ids of the entries that are no longer pending: somebody has answered them."""
        ids = [delivery.entry.id for delivery in deliveries]
        pipeline = self._client.pipeline(transaction=False)
        for entry_id in ids:
            pipeline.xpending_range(keys.commands(self._service), self._service, entry_id, entry_id, 1)
        return {entry_id for entry_id, found in zip(ids, execute(pipeline), strict=True) if not found}

    def show_up(self) -> None:
        """Be seen to be alive, while nothing can be read."""
        try:
            self.reader.show_up()
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):  # the next reading makes it anew
                raise
        self.heard = time.monotonic()

    def _held_for(self, ids: Sequence[bytes], idle_ms: int) -> list[bytes]:
        held: list[bytes] = []
        for at in range(0, len(ids), _HELD_AT_ONCE):
            args = [self._service, self._consumer, idle_ms, *ids[at : at + _HELD_AT_ONCE]]
            held += self._hold(keys=[keys.commands(self._service)], args=args)
        return held

    def _answered(self) -> set[bytes]:
        """The ids of the entries whose answers wait to be sent."""
        with self._lock:
            return {answer.entry.id for answer in self._answers}

    def _answer_all(self, answers: Sequence[_Answer | _SetAside], ahead: int) -> list[int]:
        """Send these. Returns the numbers, from 1, of those that were overruled."""
        streams = {keys.commands(self._service): 1, keys.REPLIES: 2, keys.QUARANTINE: 3}
        args: list[str | bytes | int] = [self._service, keys.DONE_KEPT_S]
        for answer in answers:
            if isinstance(answer, _SetAside):
                fields = answer.fields
                args += (answer.entry.id, 3, 0, "", "", "", "final", "", 2 * len(fields))
            else:
                delivery, reply = answer.delivery, answer.reply
                fields = reply.fields()
                done = streams.setdefault(delivery.done, len(streams) + 1)
                tombstone = "" if delivery.command.compensating else delivery.tombstone
                args += (answer.entry.id, 2, done, delivery.record, tombstone, delivery.seen)
                args += (answer.kind, reply.payload or "", 2 * len(fields))
            for pair in fields.items():
                args += pair
        answering: Exchange[list[int]] = self._answer.call(keys=list(streams), args=args)
        if ahead:
            answering = self.reader.read_along(answering, dict.fromkeys(self.reader.streams, ahead))
        return run(self._client, answering)

    def _settle(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Answer those that need no handler; those that are left.

        Every command is looked up, also one that comes for the first time: its twin may have been answered, and a
        handler that refused it then may do it now.
        """
        known = self._look_up(deliveries)
        if not known:
            return deliveries
        left = []
        for number, delivery in enumerate(deliveries, 1):
            record, tombstone = known.get(number, (None, 0))
            verdict = service_rules.verdict(
                delivery.command, record=record, tombstone=bool(tombstone), again=delivery.entry.again
            )
            if verdict.undo:
                left.append(replace(delivery, refusal=verdict.reply))
            elif verdict.reply is None:
                left.append(replace(delivery, seen=record) if record else delivery)
            else:
                self.reply(delivery, verdict.reply, final=True)
        return left

    def _look_up(self, deliveries: list[Delivery]) -> dict[int, tuple[bytes | None, int]]:
        """Of those of which something is known, by number, from 1: the record, and whether there is a tombstone."""
        hashes: dict[str, int] = {}
        args: list[str | int] = [keys.DONE_KEPT_S]
        for delivery in deliveries:
            index = hashes.setdefault(delivery.done, len(hashes) + 1)
            args += (index, delivery.record, delivery.tombstone, int(delivery.command.compensating))
        answer: list[Any] = self._recall(keys=list(hashes), args=args)
        now_ms, *known = answer
        self._ahead_ms = now_ms - time.monotonic() * 1000
        return {number: (record, tombstone) for number, record, tombstone in known}

    def _count(self, delivery: Delivery, what: str) -> int:
        """How often this was begun of a command that others had in hand before, this time included."""
        # Not the broker's own count of deliveries: that counts every renewal of a lease, and all that was read with it.
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hincrby(delivery.done, f"{delivery.record}/{what}", 1)
        pipeline.expire(delivery.done, keys.DONE_KEPT_S)
        times: int = execute(pipeline)[0]
        return times

    def _quarantine(self, entry: Entry, reason: str) -> None:
        self._say(f"quarantined the entry {entry.id.decode()}: {reason}")
        self._add(_SetAside(entry, entry.quarantined(reason)))

    def _add(self, answer: _Answer | _SetAside) -> None:
        with self._lock:
            if not self._answers:
                self._oldest = time.monotonic()
            self._answers.append(answer)

    def _say(self, what: str) -> None:
        say(f"service {self._service}", what)
