"""A service's commands, as one process reads them, and looks up what is known of each."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import redis
from msgspec.structs import replace

from sagastream.broker.clock import own_s
from sagastream.broker.entries import BATCH, Entry
from sagastream.broker.group_reader import GroupReader
from sagastream.broker.partial import passes_over
from sagastream.broker.portions import InTurn, in_all
from sagastream.broker.wire import Words, execute, or_raise, round_trip
from sagastream.core import service_records, service_rules
from sagastream.core.clock import for_deadline
from sagastream.core.commands import Command
from sagastream.core.messages import Newer
from sagastream.core.parsing import read_command
from sagastream.core.service_actions import RUN, Answer, Count
from sagastream.service.delivery import Delivery
from sagastream.service.outbox import Outbox
from sagastream.service.own_first import Look, OwnFirst
from sagastream.service.records import Records
from sagastream.service.taken import Taken
from sagastream.store import published
from sagastream.store.heartbeat import Heartbeat, Kind
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.lineage import Lineage
from sagastream.store.running import Busy
from sagastream.telemetry import Log, Observer, guarded


class CommandInbox:
    """What one consumer of a service reads; its answers go into `outbox`."""

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
        self._observer = watching = guarded(observer)
        self._tells_deliveries = watching is not None and watching.watches("command_delivered")
        self._log = Log("service", who := f"service {service} {consumer}")
        self._lineage = lineage = Lineage(
            who,
            area="service",
            service=service,
            observer=observer,
            missing=lambda *asked: self.outbox.missing(*asked),  # noqa: PLW0108 - there is no outbox yet
        )
        self._heartbeat = Heartbeat(consumer, Kind.SERVICE, service, commands=commands, busy=busy, lineage=lineage)
        self._keys: StoreKeys | None = None  # set when it joins, as the next
        self._partitions: dict[str, Partition] = {}  # by the stream of their commands
        self.reader = GroupReader(
            client,
            group=service,
            consumer=consumer,
            who=who,
            lease_ms=lease_ms,
            on_join=self._join,
            heartbeat=self._heartbeat,
            reached=lambda: lineage.reached,
            prefers=self._prefers,
            helps=True,
        )
        self._own_first = OwnFirst()
        self._preferred: tuple[frozenset[int] | None, frozenset[str] | None] = (None, None)
        self._records = Records(client)
        self._taken = Taken()
        self.outbox = Outbox(
            client,
            service,
            consumer=consumer,
            reader=self.reader,
            records=self._records,
            observer=observer,
            log=self._log,
        )
        self.heard_s = time.monotonic()  # when the broker last answered a reading, by time.monotonic
        self._came_s = 0.0  # when commands came last, by `own_s`
        self.left = 0  # how many entries it has left to processes of another release
        self.times_put_off = 0  # how often it has put off what it could do nothing about
        self._in_turn = InTurn()  # if not all partitions are read
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
        self.outbox.join(keys)
        self._records.join(keys)
        return list(self._partitions)

    @property
    def changes(self) -> int:
        """How often the store was found to have changed, see Lineage.changes."""
        return self._lineage.changes

    @property
    def now_ms(self) -> int:
        """The time by the broker's clock, as this process computes it since it was last told."""
        return round(self._records.now_s * 1000)

    def time_for(self, command: Command) -> int:
        """The time by which to judge the deadline of this command, in ms, as this process knows it: if the clock has
        jumped over the deadline, the jump does not count."""
        now_ms, deadline_ms = self.now_ms, command.not_after_ms
        return now_ms if deadline_ms is None else for_deadline(deadline_ms, now_ms, self._records.watch)

    def fresh_time_for(self, command: Command) -> int:
        """The same before a command is refused. Raises redis.RedisError.

        A command is too late only by a time that was asked for since it came: the clock may have been set back, and the
        worker that has sent the command may have heard of that before this process.
        """
        now_ms = self.time_for(command)
        if service_rules.may_be_late(command, now_ms) and not self._records.has_asked_since(self._came_s):
            self._records.ask()
            now_ms = self.time_for(command)
        return now_ms

    def read(self, block_ms: int, count: int = BATCH) -> list[Delivery]:
        """The commands that are to be done or undone now. An entry that is not a command is quarantined; a command that
        was done before is answered from its record."""
        entries = self._read(block_ms, count)
        self._records.set_clock(self.reader.now_ms, *self.reader.between_s)
        self.heard_s = time.monotonic()
        if any(entry.again for entry in entries):
            ready = self.outbox.ready()
            entries = [entry for entry in entries if entry.at not in ready]
        return self.take(entries)

    def take(self, entries: Sequence[Entry]) -> list[Delivery]:
        """As `read`, of entries that were read already."""
        deliveries: list[Delivery] = []
        newer: list[Entry] = []
        if entries:
            self._came_s = own_s()
        for entry in entries:
            command = read_command(self._service, entry.fields, entry.added_ms)
            if isinstance(command, Command):
                deliveries.append(Delivery.of(entry, command, self._partitions[entry.stream]))
            elif isinstance(command, Newer):
                newer.append(entry)
                self._tell_newer(command.format)
            else:
                self.outbox.quarantine(entry, command.text)
        if newer:
            self._leave(newer)
        left = self._settle(deliveries) if deliveries else []
        if any(delivery.entry.again for delivery in left):
            left = self._with_begun(left)
        if self._tells_deliveries and self._observer is not None:
            for delivery in left:
                self._observer.command_delivered(command=delivery.command, again=delivery.entry.again)
        return left

    def count(self, delivery: Delivery, what: Count, by: int = 1) -> int:
        """How often this was counted for a command, this time included. `by`: -1 takes back what was counted."""
        # Not the broker's own count of deliveries: that counts every renewal of a lease, and all that was read with it.
        return self._records.count(delivery.done, delivery.counter(what), by)

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

    def passes_over(self, error: redis.RedisError) -> bool:
        """Whether only some nodes of a cluster are away: commands of other partitions need not wait for them."""
        return passes_over(self._client, error)

    def put_off(self, deliveries: Iterable[Delivery]) -> None:
        """Nothing can be done about these for now, since their node of a cluster is away: they are read again."""
        if streams := {delivery.entry.stream for delivery in deliveries}:
            self.times_put_off += 1
            self.reader.renew_later(streams)

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
            self.outbox.answer_for(pending[0]["consumer"].decode())
        return Entry(stream=stream, id=entry_id, fields=found[0][1], again=again) if found else None

    def answered(self, deliveries: Iterable[Delivery]) -> set[tuple[str, bytes]]:
        """Of these, where the entries stand that are no longer pending: somebody has answered them. Where that cannot
        be asked, since a node of a cluster is away, they count as pending."""
        entries = [delivery.entry for delivery in deliveries]
        asked: list[Words] = [("XPENDING", one.stream, self._service, one.id, one.id, 1) for one in entries]
        answers = zip(entries, round_trip(self._client, asked), strict=True)
        known = [(entry, found) for entry, found in answers if not passes_over(self._client, found)]
        return {entry.at for entry, found in known if not or_raise(found)}

    def show_up(self) -> None:
        """Show that the process is alive, while nothing can be read."""
        try:
            self.reader.show_up()
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):  # the next read creates it again
                raise
        self.heard_s = time.monotonic()

    def _prefers(self) -> frozenset[str] | None:
        """The streams that this process prefers; None: all."""
        numbers = self._heartbeat.preference.numbers
        if self._preferred[0] is not numbers:
            names = [name for name, one in self._partitions.items() if numbers is None or one.number in numbers]
            self._preferred = numbers, None if numbers is None else frozenset(names)
        return self._preferred[1]

    def _read(self, block_ms: int, count: int) -> list[Entry]:
        if self._heartbeat.is_alone:
            return self._look(Look(everywhere=True, wait_ms=block_ms), count)
        for look in self._own_first.looks(block_ms):
            if entries := self._look(look, count):
                own = self._prefers()
                self._own_first.found(elsewhere=own is not None and own.isdisjoint(entry.stream for entry in entries))
                return entries
        return []

    def _look(self, look: Look, count: int) -> list[Entry]:
        """If there are more partitions than commands are wanted, it reads some of them at first, each time others: a
        process must not collect what others have the time for."""

        damaged = self.reader.left_out = frozenset(self.outbox.damaged.until_s)

        def whole(streams: Sequence[str]) -> Mapping[str, int]:
            left = [one for one in streams if one not in damaged] if damaged else streams
            return in_all(count)(left) if left else {}

        def some(streams: Sequence[str]) -> Mapping[str, int]:
            if damaged or count >= len(streams):
                return whole(streams)
            return self._in_turn.of(streams, count)

        entries = self.reader.read(look.wait_ms, some, everywhere=look.everywhere)
        if entries or count >= len(self.reader.streams if look.everywhere else self.reader.mine):
            return entries
        return self.reader.read(look.wait_ms, whole, everywhere=look.everywhere)

    def _settle(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Answer the commands that need no handler. Returns the others, in order.

        A command that comes for the first time is looked up, too, unless a worker did so a moment ago: another delivery
        of it may have been answered with a rejection, and the handler might do it now.
        """
        now_ms = self.now_ms if self._records.knows_time else None
        left, asked = {}, []
        for one in deliveries:
            entry = one.entry
            again = not self._taken.is_first(entry) or entry.again
            if service_rules.is_new(one.command, added_ms=entry.added_ms, again=again, now_ms=now_ms):
                left[entry.at] = one
            else:
                asked.append(one)
        if not asked:
            return deliveries
        left |= {one.entry.at: one for one in self._looked_up(asked)}
        return [left[one.entry.at] for one in deliveries if one.entry.at in left]

    def _looked_up(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Those of these that need a handler, by what is known of each. The others are answered."""
        try:
            known, away = self._records.look_up(deliveries)
        except redis.ResponseError as error:
            usable = self._usable(deliveries, error)
            return self._looked_up(usable) if usable else []
        if not (known or away):  # then `delivered` says RUN of each
            return deliveries
        self.put_off([deliveries[index - 1] for index in away])
        left, newer = [], []
        for index, delivery in enumerate(deliveries, 1):
            if index in away:
                continue
            record, tombstone = known.get(index, (None, 0))
            if (number := service_records.newer_format(record)) is not None:
                newer.append(delivery.entry)
                self._tell_newer(number)
                continue
            todo = service_rules.delivered(
                delivery.command, record=record, tombstone=bool(tombstone), again=delivery.entry.again
            )
            if isinstance(todo, Answer):
                self.outbox.answer(delivery, todo)
            elif todo is RUN and not record:
                left.append(delivery)
            else:
                left.append(replace(delivery, seen=record or b"", todo=todo))
        if newer:
            self._leave(newer)
        return left

    def _with_begun(self, deliveries: list[Delivery]) -> list[Delivery]:
        """The same, with how often the beginning of each was counted."""
        counters = [(delivery.done, [delivery.counter(what) for what in Count]) for delivery in deliveries]
        counted = list(zip(deliveries, self._records.counted(counters), strict=True))
        self.put_off([delivery for delivery, begun in counted if begun is None])
        return [replace(delivery, begun=begun) for delivery, begun in counted if begun is not None]

    def _usable(self, deliveries: list[Delivery], error: redis.ResponseError) -> list[Delivery]:
        """Those whose answers can be recorded. The others are quarantined. Raises the error, with which the look-up
        failed, if that is not the reason."""
        unusable = self._records.unusable(deliveries, error)
        for delivery in deliveries:
            if delivery.done in unusable:
                self.outbox.quarantine_unrecordable(delivery)
        return [delivery for delivery in deliveries if delivery.done not in unusable]

    def _leave(self, entries: Sequence[Entry]) -> None:
        self.left += len(entries)
        self.reader.leases.leave_to_newer(entries)

    def _tell_newer(self, number: int) -> None:
        """Say once for each format that its commands are left to a newer process."""
        if number not in self._told:
            self._told.add(number)
            text = f"met format {number}, which only a newer release knows: leaves all of it to that release"
            self._log.warning(text, extra={"service": self._service})
