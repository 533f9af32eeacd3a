"""A service's commands: what is read, what is answered. Record, reply and acknowledgement are one script call."""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import redis
from msgspec import Struct
from msgspec.structs import replace

from sagastream.broker import scripting
from sagastream.broker.entries import BATCH, REPLAYED, Entry
from sagastream.broker.exchange import Exchange, run
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.group_reader import Counts, GroupReader
from sagastream.broker.wire import execute, or_raise
from sagastream.core import service_rules
from sagastream.core.messages import Command, Fields, Newer
from sagastream.core.parsing import read_command
from sagastream.core.service_rules import RUN, Answer, Count, Requeue, Run, Undo
from sagastream.service.records import Records
from sagastream.store import published
from sagastream.store.heartbeat import Heartbeat, Kind
from sagastream.store.keys import DONE_KEPT_S, Partition, StoreKeys
from sagastream.store.lineage import Lineage
from sagastream.store.running import Busy
from sagastream.telemetry import Log, Observer, about

#: How many of the last answers are remembered, to see whether the store has lost them.
_LOOKED_AT: Final = 16


class Delivery(Struct, frozen=True, kw_only=True):
    """A command, the entry that it came as, and what is to be done with it."""

    entry: Entry
    command: Command
    partition: Partition  # of its entry
    done: str  # the key of the hash that holds the next two
    record: str  # the field that the answer is recorded under
    tombstone: str  # the field that is there once the step was undone
    seen: bytes = b""  # its record when it was looked up
    begun: int = 0  # if it was delivered before: how often its beginning was counted
    todo: Run | Undo = RUN

    @classmethod
    def of(cls, entry: Entry, command: Command, partition: Partition) -> "Delivery":
        return cls(
            entry=entry,
            command=command,
            partition=partition,
            done=partition.done(command.service, command.begun_ms),
            record=command.record,
            tombstone=command.tombstone,
        )


class _Quarantined(Struct, frozen=True):
    """An entry that is not a command, or that a person has to decide on."""

    entry: Entry
    reason: str


#: What is to be sent: an answer, or an entry that is set aside.
_Ready = tuple[Delivery, Answer] | _Quarantined


class CommandInbox:
    """What one consumer of a service reads and answers, in all partitions. Answers are collected; `send` sends them."""

    def __init__(
        self,
        client: "redis.Redis",
        service: str,
        *,
        consumer: str,
        lease_ms: int,
        on_join: Callable[[], StoreKeys],
        commands: Collection[str] | None = None,
        busy: Callable[[], Busy | None] = lambda: None,
        observer: Observer | None = None,
    ) -> None:
        """
        Args:
            on_join: opens the store, as for GroupReader, and returns the names of its keys.
            commands: the names of all commands and compensations that the process has; None: it does not say.
            busy: what the process has been running for long, for others to see.
        """
        self._client = client
        self._service = service
        self._open = on_join
        self._observer = observer
        self._log = Log("service", f"service {service}")
        lineage = Lineage(
            f"service {service} {consumer}", area="service", service=service, observer=observer, missing=self._missing
        )
        self._sent: Sequence[_Ready] = ()  # the last few answers
        self._heartbeat = Heartbeat(consumer, Kind.SERVICE, service, commands=commands, busy=busy, lineage=lineage)
        self._keys: StoreKeys | None = None  # set when it joins, as the next
        self._partitions: dict[str, Partition] = {}  # by the stream of their commands
        self.reader = GroupReader(
            client,
            group=service,
            consumer=consumer,
            lease_ms=lease_ms,
            on_join=self._join,
            heartbeat=self._heartbeat,
        )
        self._holder = consumer  # of the commands that it answers
        self._records = Records(client)
        self._answer = scripting.Script("answer")
        self._lock = threading.Lock()  # of _ready: one thread may read while others answer
        self._sending = threading.Lock()  # so that no answer is sent twice
        self._ready: list[_Ready] = []  # until the broker has them
        self._oldest_s = 0.0  # since when the first of them waits, by time.monotonic
        self.heard_s = time.monotonic()  # when the broker last answered a reading, by the same clock
        self.left = 0  # how many entries it has left to processes of another release
        self._first = 0  # which partition is read first, if not all are
        self._told: set[int] = set()  # the formats of newer releases that it has told of

    @property
    def streams(self) -> list[str]:
        """The service's commands, of each partition. Opens the store if that was not done yet."""
        self._opened()
        return list(self._partitions)

    def _opened(self) -> StoreKeys:
        if self._keys is None:
            self._join()
            assert self._keys is not None
        return self._keys

    def _join(self) -> list[str]:
        self._keys = keys = self._open()
        self._heartbeat.join(keys)
        self._partitions = {partition.commands(self._service): partition for partition in keys.partitions}
        return list(self._partitions)

    @property
    def now_ms(self) -> int:
        """The time by the broker's clock, as this process computes it since it last looked up a command."""
        return round(self._records.now_s * 1000)

    def clock(self) -> float:
        """The same in seconds."""
        return self._records.now_s

    def read(self, block_ms: int, count: int = BATCH) -> list[Delivery]:
        """The commands that are to be done or undone now. An entry that is not a command is quarantined; a command that
        was done before is answered from its record."""
        entries = self._read(block_ms, count)
        self.heard_s = time.monotonic()
        if any(entry.again for entry in entries):
            ready = self.ready()
            entries = [entry for entry in entries if entry.at not in ready]
        return self.take(entries)

    def take(self, entries: Sequence[Entry]) -> list[Delivery]:
        """As `read`, of entries that were read already."""
        deliveries: list[Delivery] = []
        newer: list[Entry] = []
        for entry in entries:
            command = read_command(self._service, entry.fields, entry.added_ms)
            if isinstance(command, Command):
                deliveries.append(Delivery.of(entry, command, self._partitions[entry.stream]))
            elif isinstance(command, Newer):
                newer.append(entry)
                self._tell_newer(command.format)
            else:
                self.quarantine(entry, command.text)
        if newer:
            self._leave(newer)
        left = self._settle(deliveries) if deliveries else []
        if any(delivery.entry.again for delivery in left):
            left = self._with_begun(left)
        if self._observer is not None:
            for delivery in left:
                self._observer.command_delivered(command=delivery.command, again=delivery.entry.again)
        return left

    def answer(self, delivery: Delivery, answer: Answer) -> None:
        """Have a command answered with the next `send`."""
        self._add((delivery, answer))

    def quarantine(self, entry: Entry, reason: str) -> None:
        """Have an entry quarantined with the next `send`."""
        entry_id = entry.id.decode()
        extra = {"service": self._service, "stream": entry.stream, "entry_id": entry_id}
        self._add(_Quarantined(entry, reason))
        self._log.warning(f"quarantined the entry {entry_id}: {reason}", extra=extra)

    def count(self, delivery: Delivery, what: Count, by: int = 1) -> int:
        """How often this was counted for a command, this time included. `by`: -1 takes back what was counted."""
        # Not the broker's own count of deliveries: that counts every renewal of a lease, and all that was read with it.
        return self._records.count(delivery.done, _counter(delivery, what), by)

    def send(self, ahead: int = 0) -> list[Delivery]:
        """Send the answers that are ready; none is forgotten before the broker has it.

        `ahead`: how many new commands the same round trip may bring, for the next reading; 0 unless it is the caller's
        turn to read.

        Returns the commands that were overruled and are to be undone here: their step has failed, or was undone, while
        the handler ran.
        """
        overruled: list[Delivery] = []
        if not self._ready:
            return overruled
        with self._sending:
            while ready := self._of_one_partition(self._ready[:BATCH]):
                try:
                    numbers = self._answer_all(ready, ahead)
                except redis.ResponseError as error:
                    self._set_aside(ready, error)
                    continue
                if numbers:
                    overruled += self._overruled(ready, numbers)
                else:
                    self._sent = ready[-_LOOKED_AT:]
                with self._lock:
                    self._drop(ready)
                    self._oldest_s = time.monotonic()
                if self._observer is not None:
                    _tell_sent(self._observer, ready, numbers)
        return overruled

    def ready(self) -> set[tuple[str, bytes]]:
        """Where the entries stand that are ready to be sent away."""
        with self._lock:
            return {_entry(one).at for one in self._ready}

    @property
    def unsent(self) -> list[Command]:
        """The commands whose answers the broker does not have yet."""
        with self._lock:
            return [one[0].command for one in self._ready if not isinstance(one, _Quarantined)]

    def lingers(self, longest_s: float) -> bool:
        """Whether an answer has waited to be sent for so long."""
        return bool(self._ready) and time.monotonic() - self._oldest_s >= longest_s

    def renew(self, deliveries: Iterable[Delivery]) -> set[tuple[str, bytes]]:
        """Renew the lease on these. Returns where the entries stand that have meanwhile been taken over."""
        return self.reader.leases.renew([delivery.entry for delivery in deliveries])

    def hand_back(self, deliveries: Iterable[Delivery]) -> set[tuple[str, bytes]]:
        """Have others take these over at once. Returns where the entries stand that this process held no longer."""
        given = list(deliveries)
        lost = self.reader.leases.hand_back([delivery.entry for delivery in given])
        if self._observer is not None:
            for delivery in given:
                self._observer.command_released(command=delivery.command)
        return lost

    def leave(self, deliveries: Sequence[Delivery]) -> None:
        """Hand back what only another release of the service can do. This process comes by it again and again until
        one of that release takes it."""
        self._leave([delivery.entry for delivery in deliveries])
        if self._observer is not None:
            for delivery in deliveries:
                self._observer.command_released(command=delivery.command)

    def published(self) -> dict[str, str]:
        """What all releases of the service publish; see store/published.py."""
        return published.all_of(self._client, self._opened(), self._service)

    def fetch(self, entry_id: bytes, partition: int, *, again: bool) -> Entry | None:
        """An entry that another process holds, of the partition with this number; None: it was answered."""
        if partition >= len(streams := self.streams):
            return None
        stream = streams[partition]
        pipeline = self._client.pipeline(transaction=False)
        pipeline.xrange(stream, entry_id, entry_id)
        pipeline.xpending_range(stream, self._service, entry_id, entry_id, 1)
        found, pending = execute(pipeline)
        if pending:
            self._holder = pending[0]["consumer"].decode()
        return Entry(stream=stream, id=entry_id, fields=found[0][1], again=again) if found else None

    def answered(self, deliveries: Iterable[Delivery]) -> set[tuple[str, bytes]]:
        """Of these, where the entries stand that are no longer pending: somebody has answered them."""
        entries = [delivery.entry for delivery in deliveries]
        pipeline = self._client.pipeline(transaction=False)
        for entry in entries:
            pipeline.xpending_range(entry.stream, self._service, entry.id, entry.id, 1)
        return {entry.at for entry, found in zip(entries, execute(pipeline), strict=True) if not found}

    def show_up(self) -> None:
        """Show that the process is alive, while nothing can be read."""
        try:
            self.reader.show_up()
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):  # the next read creates it again
                raise
        self.heard_s = time.monotonic()

    def _missing(self) -> Exchange[str | None]:
        """Which of the last answers the store no longer has a record of; None: none, as far as can be told."""
        told = [one[0] for one in self._sent if isinstance(one, tuple) and one[1].is_last_word]
        if not told:
            return None
        answers = yield [("HEXISTS", delivery.done, delivery.record) for delivery in told]
        gone = [delivery.record for delivery, there in zip(told, answers, strict=True) if not or_raise(there)]
        return f"the record {gone[0]} is gone" if gone else None

    def _read(self, block_ms: int, count: int) -> list[Entry]:
        """If there are more partitions than commands are wanted, some of them at first, each time others: a process
        must not collect what others have the time for."""

        def some(streams: Sequence[str]) -> Mapping[str, int]:
            if count >= len(streams):
                return self._counts(count)(streams)
            self._first = (self._first + count) % len(streams)
            return dict.fromkeys([*streams, *streams][self._first : self._first + count], 1)

        entries = self.reader.read(block_ms, some)
        if entries or count >= len(self.reader.streams):
            return entries
        return self.reader.read(block_ms, self._counts(count))

    def _counts(self, count: int) -> Counts:
        """At most about so many commands in all, of all partitions."""

        def counts(streams: Sequence[str]) -> Mapping[str, int]:
            return dict.fromkeys(streams, -(-count // len(streams)))

        return counts

    def _of_one_partition(self, ready: Sequence[_Ready]) -> list[_Ready]:
        """Those that one script call can answer: of the partition of the first one."""
        if len(self._partitions) == 1 or not ready:
            return list(ready)
        stream = _entry(ready[0]).stream
        return [one for one in ready if _entry(one).stream == stream]

    def _drop(self, sent: Sequence[_Ready]) -> None:
        """They are no longer ready: they were sent."""
        if len(self._partitions) == 1:
            del self._ready[: len(sent)]
        else:
            gone = {id(one) for one in sent}
            self._ready = [one for one in self._ready if id(one) not in gone]

    def _answer_all(self, ready: Sequence[_Ready], ahead: int) -> list[int]:
        """Send these, all of one partition. Returns the numbers, from 1, of those that were overruled, as answer.lua
        does."""
        stream = _entry(ready[0]).stream
        partition = self._partitions[stream]
        streams = {stream: 1, partition.replies(self._service): 2, partition.quarantine_of(self._service): 3}
        args: list[str | bytes | int] = [self._service, DONE_KEPT_S, self._holder]
        for one in ready:
            if isinstance(one, _Quarantined):
                fields: Fields | dict[str, str | bytes | int] = one.entry.quarantined(one.reason)
                args += (one.entry.id, 3, 0, "", "", "", "final", "", 2 * len(fields))
            else:
                delivery, answer = one
                reply = answer.reply
                fields = reply.fields()
                done = streams.setdefault(delivery.done, len(streams) + 1)
                tombstone = "" if delivery.command.compensating else delivery.tombstone
                args += (delivery.entry.id, 2, done, delivery.record, tombstone, delivery.seen)
                args += (answer.kind, reply.payload or "", 2 * len(fields))
            for pair in fields.items():
                args += pair
        answering: Exchange[list[int]] = self._answer.call(keys=list(streams), args=args)
        if ahead:
            answering = self.reader.read_along(answering, self._counts(ahead))
        return run(self._client, answering)

    def _overruled(self, ready: Sequence[_Ready], numbers: Iterable[int]) -> list[Delivery]:
        """Of the answers that were overruled: the commands that this process undoes. The others are added to their
        stream again, where they stay until a process has undone them."""
        undone_here: list[Delivery] = []
        requeued: list[tuple[Delivery, Requeue]] = []
        for number in numbers:
            one = ready[abs(number) - 1]
            assert not isinstance(one, _Quarantined)  # it has no tombstone
            delivery, answer = one
            todo = service_rules.overruled(delivery.command, answer.reply, is_held=number > 0)
            if isinstance(todo, Requeue):
                requeued.append((delivery, todo))
            else:
                undone_here.append(replace(delivery, todo=todo))
        if requeued:
            pipeline = self._client.pipeline(transaction=False)
            for delivery, todo in requeued:
                # It may be there twice, if the answer is lost: then it is undone twice, which does no harm.
                fields: dict[Any, Any] = delivery.entry.fields | {REPLAYED: b"1"}
                pipeline.xadd(delivery.entry.stream, fields | ({b"result": todo.result} if todo.result else {}))
            execute(pipeline)
            for delivery, _ in requeued:
                command = delivery.command
                text = f"{command.type} of saga {command.saga_id}, step {command.step}, was done after it was refused"
                self._log.warning(f"{text}, and others had answered it: sent again, to be undone", extra=about(command))
        return undone_here

    def _settle(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Answer the commands that need no handler. Returns the others.

        Every command is looked up, also one that comes for the first time: another delivery of it may have been
        answered with a rejection, and the handler might do it now.
        """
        try:
            known = self._records.look_up(deliveries)
        except redis.ResponseError as error:
            usable = self._usable(deliveries, error)
            return self._settle(usable) if usable else []
        if not known:  # then `delivered` says RUN of each
            return deliveries
        left, newer = [], []
        for index, delivery in enumerate(deliveries, 1):
            record, tombstone = known.get(index, (None, 0))
            if (number := service_rules.newer_format(record)) is not None:
                newer.append(delivery.entry)
                self._tell_newer(number)
                continue
            todo = service_rules.delivered(
                delivery.command, record=record, tombstone=bool(tombstone), again=delivery.entry.again
            )
            if isinstance(todo, Answer):
                self.answer(delivery, todo)
            elif todo is RUN and not record:
                left.append(delivery)
            else:
                left.append(replace(delivery, seen=record or b"", todo=todo))
        if newer:
            self._leave(newer)
        return left

    def _with_begun(self, deliveries: list[Delivery]) -> list[Delivery]:
        """The same, with how often the beginning of each was counted."""
        counters = [(delivery.done, [_counter(delivery, what) for what in Count]) for delivery in deliveries]
        return [
            replace(delivery, begun=begun)
            for delivery, begun in zip(deliveries, self._records.counted(counters), strict=True)
        ]

    def _usable(self, deliveries: list[Delivery], error: redis.ResponseError) -> list[Delivery]:
        """Those whose answers can be recorded. The others are quarantined. Raises the error, with which the look-up
        failed, if that is not the reason."""
        unusable = self._unusable(deliveries, error)
        for delivery in deliveries:
            if delivery.done in unusable:
                self.quarantine(delivery.entry, _unrecordable(delivery))
        return [delivery for delivery in deliveries if delivery.done not in unusable]

    def _set_aside(self, ready: Sequence[_Ready], error: redis.ResponseError) -> None:
        """The answers could not be sent: quarantine the commands of those that cannot be recorded. Raises the error if
        that is not the reason."""
        unusable = self._unusable([one[0] for one in ready if not isinstance(one, _Quarantined)], error)
        with self._lock:
            aside = [one[0] for one in self._ready if not isinstance(one, _Quarantined) and one[0].done in unusable]
            self._ready = [one for one in self._ready if isinstance(one, _Quarantined) or one[0].done not in unusable]
        for delivery in aside:
            self.quarantine(delivery.entry, _unrecordable(delivery))
        self.reader.renew()  # what came along with the answer is read again

    def _unusable(self, deliveries: Sequence[Delivery], error: redis.ResponseError) -> set[str]:
        unusable = self._records.unusable({delivery.done for delivery in deliveries}) if is_wrong_type(error) else set()
        if not unusable:
            raise error
        return unusable

    def _add(self, one: _Ready) -> None:
        with self._lock:
            if not self._ready:
                self._oldest_s = time.monotonic()
            self._ready.append(one)

    def _leave(self, entries: Sequence[Entry]) -> None:
        self.left += len(entries)
        self.reader.leases.leave_to_newer(entries)

    def _tell_newer(self, number: int) -> None:
        """Say once for each format that its commands are left to a newer process."""
        if number not in self._told:
            self._told.add(number)
            text = f"met format {number}, which only a newer release knows: leaves all of it to that release"
            self._log.warning(text, extra={"service": self._service})


def _counter(delivery: Delivery, what: Count) -> str:
    """The field of the records in which this is counted. Undos are counted by entry: one that is put back from the
    quarantine is tried as often again."""
    name = f"{what}/{delivery.entry.id.decode()}" if what is Count.UNDOS else what.value
    return f"{delivery.record}/{name}"


def _unrecordable(delivery: Delivery) -> str:
    return f"its answer cannot be recorded: {delivery.done} is not a hash; delete that key, then replay this entry"


def _entry(one: _Ready) -> Entry:
    return one.entry if isinstance(one, _Quarantined) else one[0].entry


def _tell_sent(observer: Observer, sent: Sequence[_Ready], overruled: Collection[int]) -> None:
    """`overruled`: the numbers of those that were not accepted, as answer.lua returns them."""
    for number, one in enumerate(sent, 1):
        if isinstance(one, _Quarantined):
            entry = one.entry
            observer.entry_quarantined(stream=entry.stream, entry_id=entry.id.decode(), reason=one.reason)
        elif number not in overruled and -number not in overruled:
            observer.answer_sent(command=one[0].command, reply=one[1].reply)
