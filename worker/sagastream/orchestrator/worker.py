"""The orchestrator's worker: it reads requests, replies and due timers, decides, and commits. Any number of workers run
side by side, and share the partitions out among them (core/sharing.py).

Two workers never undo each other's work: a commit names the version of the saga on which it was decided, and is refused
if another worker has changed the saga since. An entry is acknowledged in the commit of its effect. So a worker may die
at any point: another worker claims what it held.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final, get_args

import redis

from sagastream.broker import exchange, partial
from sagastream.broker.clock import own_s
from sagastream.broker.connection import BLOCK_MS, Broker
from sagastream.broker.entries import Entry
from sagastream.broker.group_reader import GroupReader, consumer_name
from sagastream.broker.outage import Outage
from sagastream.core.journal import JOURNAL_BYTES
from sagastream.core.messages import Begin, Due, ToSaga
from sagastream.core.saga import Found
from sagastream.health import HealthFile
from sagastream.orchestrator.aftermath import Aftermath
from sagastream.orchestrator.bulks import Bulks
from sagastream.orchestrator.clock import newest_time
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.compensations import Compensations
from sagastream.orchestrator.damaged import DamagedPartitions
from sagastream.orchestrator.deciding import Deciding
from sagastream.orchestrator.due_sagas import LOOK_EVERY_S, DueSagas
from sagastream.orchestrator.ends import Ends
from sagastream.orchestrator.gate import Gate
from sagastream.orchestrator.last_written import LastWritten
from sagastream.orchestrator.order import Order
from sagastream.orchestrator.out_of_reach import OutOfReach
from sagastream.orchestrator.overdue import Overdue
from sagastream.orchestrator.pauses import Pauses
from sagastream.orchestrator.report import TurnReport
from sagastream.orchestrator.room import MOST_UNREAD, Room
from sagastream.orchestrator.services import KnownServices
from sagastream.orchestrator.setbacks import Setbacks
from sagastream.orchestrator.state_cache import StateCache
from sagastream.orchestrator.streams import Input, Streams
from sagastream.orchestrator.upkeep import Upkeep
from sagastream.store import layout, sagas
from sagastream.store.heartbeat import Heartbeat, Kind
from sagastream.store.keys import ENDED_KEPT_MS, ORCHESTRATOR_GROUP, StoreKeys
from sagastream.store.lineage import Lineage
from sagastream.telemetry import Log, Observer, guarded, runs

#: How long a worker may hold an entry before others take it over, in milliseconds. A turn takes a few milliseconds. If
#: a worker was only slow, its commit loses the comparison, and nothing else happens.
LEASE_MS: Final = 5_000
_TO_SAGA: Final = frozenset(get_args(ToSaga))


class Orchestrator:
    """One worker. Any number of them share the work, in one program or in many.

    `name` is its name in the log, which no other worker has.
    """

    def __init__(
        self,
        broker: Broker,
        stop: threading.Event,
        *,
        retention_ms: int = ENDED_KEPT_MS,
        aborted_retention_ms: int | None = None,
        max_unread: int = MOST_UNREAD,
        health: HealthFile | None = None,
        observer: Observer | None = None,
        history_bytes: int = JOURNAL_BYTES,
    ) -> None:
        """
        Args:
            broker: the worker's own; it is not closed.
            stop: any thread may set it. The running turn is finished, then `run` returns.
            retention_ms: how long a saga is kept after it has ended, in milliseconds.
            aborted_retention_ms: the same of a saga that is ABORTED; None: as long as any other.
            max_unread: if more requests to begin sagas wait in a partition, clients are told to wait: StoreFull.
            health: a file that is touched while the broker answers; None: there is none.
            observer: is told what happens.
            history_bytes: how many bytes each saga has for what its history needs besides its fields; 0: none.

        Raises TypeError if `observer` is not an Observer.
        """
        self._health = health
        self._observer = guarded(observer)
        self.name = f"worker {(consumer := consumer_name())}"
        self._broker = broker
        self._stop = stop
        self._outage = Outage(broker, self.name, stop, observer=self._observer)
        self._report = TurnReport(self.name, self._observer)
        self._store = Store(broker.client, retention_ms=retention_ms, aborted_retention_ms=aborted_retention_ms)
        self._written = LastWritten(self._store.least_kept_ms)
        self._lineage = Lineage(
            self.name,
            area="worker",
            observer=self._observer,
            missing=self._written.missing,
        )
        self._seen_changes = 0  # of the lineage, for which it has begun anew
        self._room = Room(self.name, max_unread)
        self._pauses = Pauses(broker.client, LEASE_MS)
        beat = Heartbeat(consumer, Kind.WORKER, lineage=self._lineage)
        self._bulks = Bulks(broker.client, consumer, self.name)
        self._services = KnownServices(broker.client, beat, self._room, self._pauses, self._bulks)
        self._inbox = GroupReader(
            broker.client,
            group=ORCHESTRATOR_GROUP,
            consumer=consumer,
            who=self.name,
            lease_ms=LEASE_MS,
            on_join=self._join,
            heartbeat=self._services,
            prefers=self._prefers,
        )
        self._keys: StoreKeys | None = None
        self._streams: Streams | None = None  # set when it joins, as the keys
        self._followed: frozenset[str] = frozenset()  # the services whose replies it reads
        self._gate = Gate(broker.client, self._store, self._inbox, consumer=consumer, who=self.name)
        self._order = Order(broker.client, self._inbox)
        self._overdue = Overdue(broker.client, self._store)
        self._compensations = Compensations(broker.client)
        self._away = OutOfReach(self.name, self._observer)
        self._damaged = DamagedPartitions(broker.client)
        self._cache = StateCache()
        self._ends = Ends()
        self._setbacks = Setbacks(
            broker.client, self._inbox, cache=self._cache, ends=self._ends, away=self._away, damaged=self._damaged
        )
        self._deciding = Deciding(
            broker.client,
            self._store,
            self._inbox,
            stop,
            gate=self._gate,
            services=self._services,
            compensations=self._compensations,
            pauses=self._pauses,
            ends=self._ends,
            setbacks=self._setbacks,
            history_bytes=history_bytes,
        )
        self._aftermath = Aftermath(broker.client, self._services, self._ends)
        self._upkeep = Upkeep(broker.client, self._store, self._report, self.name, lease_ms=LEASE_MS)
        self._due = DueSagas(
            broker.client,
            self._store,
            self._inbox,
            gate=self._gate,
            pauses=self._pauses,
            bulks=self._bulks,
            overdue=self._overdue,
            upkeep=self._upkeep,
            away=self._away,
            damaged=self._damaged,
            lease_ms=LEASE_MS,
        )

    def run(self) -> None:
        """Work in this thread until `stop` is set. Outages of the broker are waited out.

        Raises what waiting does not help with, such as BrokerError or redis.AuthenticationError.
        """
        with runs("worker", self.name, self._observer):
            Log("worker", self.name).info("started")
            self._outage.keep(self._turn, self._inbox.recover)
            self._report.parked.tell_rest()
            self._outage.once(self._bulks.leave)
            self._outage.once(self._inbox.leave)

    def _join(self) -> list[str]:
        """Open the store. Returns the streams that are to be read."""
        keys = self._checked()
        self._broker.check_durability()
        self._services.join(keys)
        self._gate.join(keys)
        self._away.join(keys)
        self._overdue.forget()
        self._compensations.learn(keys, self._services.names)
        streams = Streams(keys, self._services.names, self._room)
        self._inbox.clock.saw(newest_time(self._broker.client, keys, streams.names))
        self._keys, self._streams, self._followed = keys, streams, self._services.names
        return streams.names

    def _checked(self) -> StoreKeys:
        """The names of the store's keys. If the node of a cluster is away that tells them, those that are known: they
        never change."""
        try:
            return layout.check(self._broker, self._keys)
        except redis.RedisError as error:
            if self._keys is None or not partial.passes_over(self._broker.client, error):
                raise
            return self._keys

    @property
    def _read_streams(self) -> Streams:
        assert self._streams is not None
        return self._streams

    @property
    def _opened(self) -> StoreKeys:
        assert self._keys is not None  # it is set when the inbox joins
        return self._keys

    def _follow(self) -> None:
        """Read the replies of services that are new."""
        if self._followed is not self._services.names:
            self._compensations.learn(self._opened, self._services.names - self._followed)
            self._followed = self._services.names
            self._streams = self._read_streams.with_services(self._followed)
            self._inbox.follow(self._streams.names)

    def _prefers(self) -> frozenset[str] | None:
        """The streams that this worker prefers; None: all."""
        numbers = self._services.preferred
        if self._read_streams.numbers is not numbers:
            self._streams = self._read_streams.preferring(numbers)
            self._away.are_only(self._streams.partitions)
            # What is known of the partitions that it has now is from when it last had them.
            self._cache.forget()
            self._pauses.look_again()
            self._due.others(self._streams.partitions)
        return self._read_streams.preferred

    def _turn(self) -> None:
        """A turn. If a node of a cluster goes away in the middle of it, what was read is read again; the others go
        on."""
        try:
            self.turn()
        except redis.RedisError as error:
            if not (self._inbox.is_joined and partial.passes_over(self._broker.client, error)):
                raise
            self._inbox.renew()
            self._cache.forget()
            self._stop.wait(LOOK_EVERY_S)

    def turn(self, block_ms: int = BLOCK_MS) -> int:
        """Read, load, decide, commit. Returns how many entries were read."""
        entries = self._read(block_ms)
        if self._lineage.changes != self._seen_changes:
            self._begin_anew()
        if self._aftermath:
            self._aftermath.tell(self._opened)
        inputs = [*map(self._read_streams.opened, entries), *self._looked(entries)]
        states = self._cache.presume(inputs)
        while inputs:
            began = time.monotonic()
            now_ms = self._load(inputs, states)
            if not (inputs := self._ready(inputs, states, now_ms)):
                break
            changes, lost, stuck = self._deciding.committed(inputs, states, now_ms, self._opened, self._read_streams)
            self._cache.keep(changes, [*lost, *stuck])
            self._ends.note(changes, [*lost, *stuck])
            if not (lost or stuck):
                self._written.note(changes, is_apart=self._opened.apart)
            self._report.committed(
                changes, lost=lost, stuck=stuck, messages=len(inputs), duration_s=time.monotonic() - began
            )
            self._due.again_with(changes, now_ms)
            again = {change.saga_id for change in lost}
            inputs = [item for item in inputs if item[1].saga_id in again]
            states = {}
        if self._overdue:
            self._due.soon()
        self._report.parked.look()
        return len(entries)

    def _looked(self, entries: Sequence[Entry]) -> list[Input]:
        """The sagas that are due. While replies may still be unread, none: if no worker ran for a time, those replies
        may be what the sagas wait for."""
        streams = self._read_streams
        if streams.has_more or any(entry.again for entry in entries):
            return []
        return self._due.look(self._opened, streams.partitions, self._services.names, self._room.memory.most)

    def _begin_anew(self) -> None:
        """The store, or partitions of it, go on from another moment than this worker saw last. So forget what it
        remembers of them, and see to it that all stands there where it should."""
        keys, changes = self._opened, self._lineage.changes
        partitions = self._lineage.changed_since(self._seen_changes, keys)
        numbers = {partition.number for partition in partitions}
        self._cache.forget(lambda saga_id: keys.of(saga_id).number in numbers)
        self._written.forget(numbers)
        self._overdue.forget(partitions)
        self._due.at_once()  # what is due may be due for the second time
        self._upkeep.begin_anew(keys, partitions)
        self._aftermath.owes(partitions, self._lineage.taken())
        self._seen_changes = changes

    def _load(self, inputs: Sequence[Input], states: dict[str, Found]) -> int:
        """Read the states that `states` does not have yet, into it, of those that can be reached. Returns the broker's
        time, in ms."""
        asked = {event.saga_id for _, event in inputs if event.saga_id is not None} - states.keys()
        if not asked:
            return self._inbox.now_ms
        asked_s = own_s()
        loaded, away, now_ms = exchange.run(self._broker.client, sagas.load_now(self._opened, asked))
        self._inbox.clock_says(now_ms, asked_s)
        for saga_id, error in away.items():
            self._setbacks.lost(self._opened.of(saga_id), error, self._read_streams)
        states |= loaded
        return now_ms

    def _read(self, block_ms: int) -> list[Entry]:
        """Read replies, and requests; few or none of those if the reads before brought many replies."""
        wait_ms = self._due.wait_ms(block_ms)
        if self._inbox.is_joined:  # else it joins with all services
            self._follow()
            self._read_streams.stopped = self._damaged.numbers
            self._inbox.left_out = self._read_streams.left_unread()
        entries = self._inbox.read(wait_ms, self._wanted)
        if self._health is not None:
            self._health.beat(time.monotonic())
        self._read_streams.read(entries, self._inbox.asked, has_more=self._inbox.has_more)
        return entries

    def _wanted(self, streams: Sequence[str]) -> Mapping[str, int]:
        return self._read_streams.wanted(streams)  # the reader joins before it asks

    def _ready(self, inputs: list[Input], states: Mapping[str, Found], now_ms: int) -> list[Input]:
        """The inputs that are to be decided on now."""
        if not self._away.is_empty:
            inputs = [item for item in inputs if item[1].saga_id is None or item[1].saga_id in states]
        kinds = {type(event) for _, event in inputs}
        if Begin in kinds:
            inputs = self._report.with_traces(self._services.admit(inputs), states)
        if Due in kinds:
            inputs = self._overdue.signals_first(inputs, states, self._read_streams, now_ms)
        return self._order.begins_first(inputs, states, self._read_streams, now_ms) if kinds & _TO_SAGA else inputs
