"""Who is alive: each process that reads the store's streams writes itself into one zset, about once a second.

    redis-cli ZRANGE saga:alive 0 -1 WITHSCORES

A process writes its heartbeat along with its reads, so it costs no round trip. A process that is killed is no longer
heard; one that ends in order removes itself. `ALIVE_WITHIN` is the one table that says when a process counts as alive:
`show`, `doctor`, `begin`, the gate of formats and the sharing of partitions all use it.

Not every reader writes a heartbeat: earlier releases do not, and services in other languages need not. Such a reader is
known by its consumer in the group, and was last heard when that consumer last asked for entries.
"""

import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec
import redis
from msgspec import Struct

from sagastream.broker import exchange, wire
from sagastream.broker.exchange import Exchange, together
from sagastream.broker.failures import NodeAway, is_wrong_type
from sagastream.broker.scripting import Script
from sagastream.broker.wire import or_raise
from sagastream.core import sharing
from sagastream.core.sharing import Sharer
from sagastream.core.steps import FORMATS, PLAIN
from sagastream.store import presence, running
from sagastream.store.keys import ALIVE_KEPT, ALIVE_KEPT_MS, ORCHESTRATOR_GROUP, StoreKeys
from sagastream.store.lineage import Lineage
from sagastream.store.preference import MOST_SHARERS, Preference
from sagastream.store.running import Busy


class Kind(StrEnum):
    """What a process is. A newer release may have more kinds."""

    WORKER = "worker"
    SERVICE = "service"
    LEFT = "left"  # it has ended, and its consumer still holds entries that others are to take over


class Within(NamedTuple):
    """A process counts as alive if it was heard at most this many milliseconds ago."""

    beat_ms: int  # if it writes a heartbeat
    asked_ms: int  # if it does not: by the idle time of its consumer
    shares_ms: int  # it keeps the partitions that it prefers, if it was heard at most so many milliseconds ago


#: The one table of who is alive. A worker is silent for at most half a second, during its blocking read. A service in
#: another language may be silent for as long as docs/protocol.md allows. Redis 7.0 does not count a read that finds
#: nothing, so a worker without a heartbeat is heard only every 2.5 s.
#: Processes that share partitions are heard every 0.75 s, and those whose threads all run handlers every 1.5 s. Nobody
#: else reads the partitions that a worker prefers, so others have to notice soon that it is dead.
ALIVE_WITHIN: Final = {
    Kind.WORKER: Within(beat_ms=2_000, asked_ms=5_000, shares_ms=1_500),
    Kind.SERVICE: Within(beat_ms=15_000, asked_ms=15_000, shares_ms=2_500),
}

#: For how long people are told of a process that is no longer heard, in milliseconds. After that it is only remembered,
#: so that its consumer is not taken for a process without a heartbeat.
_TOLD_MS: Final = 60_000

#: A process of this runtime that works writes its heartbeat at least this often, in milliseconds.
_BEATS_WITHIN_MS: Final = 4_000

#: How often a process writes its heartbeat, in seconds, at most.
_BEAT_EVERY_S: Final = 0.75

#: For how long the partitions stay shared out as they were while nobody can be heard, since a node of a cluster is
#: away, in seconds. After that each process prefers all. They then do some work twice, but those of one that has died
#: meanwhile do not stand still until the node is back.
_STANDS_S: Final = 10.0

_BEAT: Final = Script("beat")


class _Member(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A member of the zset, in JSON. Members that only a newer release writes are ignored."""

    name: str  # of its consumer: unique
    kind: str  # one of Kind, or one that only a newer release knows
    service: str | None = None  # the name of the service that it is a process of
    commands: tuple[str, ...] | None = None  # … and the names of all commands and compensations that it has
    formats: tuple[int, ...] = ()  # that it knows
    partitions: tuple[int, ...] = ()  # that it reads
    pauses: bool = False  # whether it is a worker that sends nothing of what is paused
    started: str | None = None  # by its own clock


class Process(Struct, frozen=True, kw_only=True):
    """A process that reads the store's streams, dead or alive."""

    name: str
    kind: str
    service: str | None = None
    commands: tuple[str, ...] | None = None  # that it has, compensations too; None: it does not say
    formats: tuple[int, ...] = (PLAIN,)
    partitions: tuple[int, ...] = (0,)
    pauses: bool = False  # whether it is a worker that sends nothing of what is paused
    started: str | None = None  # None: it does not say
    silent_ms: int  # how long ago it was heard, by the broker's clock
    beats: bool  # whether it writes a heartbeat
    beat_ms: int | None = None  # … and when it wrote the last one, by the broker's clock
    #: If it is a worker: how long ago it was seen as a consumer in the first partition, in ms; None: there is none of
    #: its name.
    unseen_ms: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it was heard a moment ago; ALIVE_WITHIN says what a moment is."""
        if self.kind == Kind.LEFT:
            return False
        kind = Kind.WORKER if self.kind == Kind.WORKER else Kind.SERVICE
        within = ALIVE_WITHIN[kind]
        # A time in the future was written before the clock was set back: the process was not heard since.
        return abs(self.silent_ms) <= (within.beat_ms if self.beats else within.asked_ms)

    @property
    def writes_indexes(self) -> bool:
        """Whether it is a worker that keeps the indexes of sagas: they came with the pauses."""
        return self.pauses

    @property
    def shares(self) -> bool:
        """Whether it shares the partitions with others of its kind, as they see it."""
        within = next((within for kind, within in ALIVE_WITHIN.items() if kind == self.kind), None)
        if not self.beats or within is None or abs(self.silent_ms) > within.shares_ms:
            return False
        return self.kind != Kind.WORKER or (self.unseen_ms is not None and self.unseen_ms <= within.shares_ms)

    @property
    def is_at_work(self) -> bool:
        """Whether it is alive and, if it writes a heartbeat, was heard as lately as processes of this runtime always
        are. A process that died a moment ago still counts as alive; it must not be counted beside its successor."""
        return self.is_alive and (not self.beats or abs(self.silent_ms) <= _BEATS_WITHIN_MS)


class Heartbeat:
    """Writes one process into the heartbeat."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        service: str | None = None,
        *,
        commands: Collection[str] | None = None,
        busy: Callable[[], Busy | None] = lambda: None,
        lineage: Lineage | None = None,
    ) -> None:
        """
        Args:
            name: of its consumer, in each group for which it reads.
            service: the name of the service, if it is a service's process.
            commands: … and the names of all commands and compensations that it has; None: it does not say.
            busy: what it has been running for long; None: nothing.
            lineage: looks, before each heartbeat, whether the store has lost writes.
        """
        self._name = name
        self._kind = kind
        self._service = service
        self._commands = None if commands is None else tuple(sorted(commands))
        self._busy = busy
        self._lineage = lineage
        self._written_ms: int | None = None  # the time of the last one, by the broker's clock
        self._started = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        #: Which partitions the process prefers.
        self.preference = Preference(
            Sharer(name=name, formats=frozenset(FORMATS), commands=_names(self._commands)),
            kind=kind,
            service=service,
            spares=kind is Kind.WORKER,
            within_ms=ALIVE_WITHIN[kind].shares_ms,
        )
        self._keys: StoreKeys | None = None  # of the store that it has joined
        self._member = b""
        self._beat_at = 0.0
        self._heard_at = 0.0  # when it last heard of others

    def join(self, keys: StoreKeys) -> None:
        """Write it into this store from now on."""
        self._keys = keys
        self.preference.join(len(keys.partitions))
        self._member = msgspec.json.encode(
            _Member(
                name=self._name,
                kind=self._kind,
                service=self._service,
                commands=self._commands,
                formats=tuple(sorted(FORMATS)),
                partitions=tuple(partition.number for partition in keys.partitions),
                pauses=self._kind is Kind.WORKER,
                started=self._started,
            )
        )

    @property
    def due_s(self) -> float:
        """In how many seconds it is time to write it again; 0: it is time."""
        return max(0.0, self._beat_at - time.monotonic())

    @property
    def is_alone(self) -> bool:
        """Whether the process shares the partitions with nobody."""
        return self.preference.is_alone

    def beat(self) -> Exchange[None]:
        """Write the process into the heartbeat, and hear who else is there. Raises redis.ResponseError if the broker
        refuses it. Then it prefers all partitions. Raises NodeAway or ClusterDownError if the node of a cluster is away
        that keeps it. Then what it last heard counts for a while."""
        self._beat_at = time.monotonic() + _BEAT_EVERY_S
        beat = self._beaten(self._member, running.encode(self._busy()))
        try:
            if self._lineage is None:
                yield from beat
            else:
                assert self._keys is not None
                look = self._lineage.look(self._keys, self._member, self._written_ms)
                yield from together(look, beat)
        except (NodeAway, redis.exceptions.ClusterDownError):
            if time.monotonic() - self._heard_at > _STANDS_S:
                self.preference.forget()  # who shared the partitions with it may be dead by now
            raise
        except redis.ResponseError:
            self.preference.forget()
            raise
        if (soon_ms := self.preference.look_in_ms) is not None:
            self._beat_at = min(self._beat_at, time.monotonic() + soon_ms / 1000)

    def end(self, *, holds: bool) -> Exchange[None]:
        """Remove the process, which ends now. `holds`: its consumer stays in a group, with entries that others must
        take over. Then `LEFT` is written; otherwise the consumer would look like a process without a heartbeat."""
        if self._keys is None:
            return
        if holds:
            yield from self._written(msgspec.json.encode(_Member(name=self._name, kind=Kind.LEFT)))
        # If running is not a hash, or may not be written, there is nothing of this process in it.
        removed, _ = yield [("ZREM", self._keys.alive, self._member), ("HDEL", self._keys.running, self._name)]
        or_raise(removed)

    def _beaten(self, member: bytes, busy: bytes) -> Exchange[None]:
        if not (asked := self.preference.asks):
            self._written_ms = yield from self._written(member, busy)
            return
        written, reading = self._written(member, busy, *asked), None
        if self._kind is Kind.WORKER:
            assert self._keys is not None
            shown = presence.shown(self._keys, self._name, ALIVE_WITHIN[self._kind].shares_ms)
            found, reading = yield from together(written, shown)
        else:
            found = yield from written
        self._written_ms, *heard = found
        self._heard_at = time.monotonic()
        self.preference.heard(self._written_ms, heard, reading)

    def _written(self, member: bytes, busy: bytes = b"", *asked: bytes | int) -> Exchange[Any]:
        """Write a member; returns what the script returns."""
        assert self._keys is not None
        args: list[bytes | str | int] = [member, ALIVE_KEPT_MS, ALIVE_KEPT, self._name, busy, *asked]
        return (yield from _BEAT.call([self._keys.alive, self._keys.running], args))


def preferred(among: Collection[Process], partitions: int) -> dict[str, frozenset[int]]:
    """Which partitions each of these processes prefers, by its name; of those that share the partitions with others.
    It is computed as each of them does, from what is known of them at this moment."""
    found: dict[str, frozenset[int]] = {}
    groups: dict[tuple[str, str | None], list[Process]] = {}
    for process in among:
        if process.shares:
            groups.setdefault((process.kind, process.service), []).append(process)
    for (kind, _), those in groups.items():
        if len(those) > MOST_SHARERS:
            continue
        sharers = [
            Sharer(name=one.name, formats=frozenset(one.formats), commands=_names(one.commands)) for one in those
        ]
        found |= sharing.all_preferred(sharers, partitions, spares=kind == Kind.WORKER)
    return found


def processes(client: "redis.Redis", keys: StoreKeys, services: Collection[str] = ()) -> list[Process]:
    """All workers and processes of services that are alive, or were a minute ago. One round trip.

    Those that write no heartbeat are found too if they are workers, or processes of one of `services`.
    """
    return exchange.run(client, look(keys, services))


def worker_is_alive(client: "redis.Redis", keys: StoreKeys) -> bool:
    """Whether at least one worker is alive."""
    return any(process.kind == Kind.WORKER and process.is_alive for process in processes(client, keys))


def look(keys: StoreKeys, services: Collection[str]) -> Exchange[list[Process]]:
    """See `processes`."""
    first = keys.partitions[0]  # a process without a heartbeat reads all of them
    groups: list[tuple[Kind, str | None, str, str]] = [(Kind.WORKER, None, first.requests, ORCHESTRATOR_GROUP)]
    groups += [(Kind.SERVICE, service, first.commands(service), service) for service in services]
    asked: list[wire.Words] = [("XINFO", "CONSUMERS", stream, group) for _, _, stream, group in groups]
    clock, beats, *answers = yield [("TIME",), ("ZRANGE", keys.alive, 0, -1, "WITHSCORES"), *asked]
    remembered = _with_heartbeat(beats, wire.milliseconds(or_raise(clock)))
    known = {process.name for process in remembered}
    # If the heartbeat cannot be read, nobody can tell who writes none. So all count as processes of this release.
    formats = tuple(sorted(FORMATS)) if is_wrong_type(beats) else (PLAIN,)
    seen = dict(presence.consumers(answers[0]))
    found = [
        msgspec.structs.replace(process, unseen_ms=seen.get(process.name)) if process.kind == Kind.WORKER else process
        for process in remembered
        if abs(process.silent_ms) <= _TOLD_MS
    ]
    for (kind, service, _, _), consumers in zip(groups, answers, strict=True):
        found += [
            Process(name=name, kind=kind, service=service, formats=formats, silent_ms=idle_ms, beats=False)
            for name, idle_ms in presence.consumers(consumers)
            if name not in known
        ]
    return found


def _with_heartbeat(answer: Any, now_ms: int) -> list[Process]:
    """The processes in the heartbeat; none if its key is not a zset, which `doctor` reports."""
    if is_wrong_type(answer):
        return []
    words = iter(or_raise(answer))
    found = []
    for data, score in zip(words, words, strict=True):
        try:
            member = msgspec.json.decode(data, type=_Member)
            beat_ms = int(float(score))
        except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
            continue  # sagastream did not write it
        about = msgspec.structs.asdict(member)
        found.append(Process(**about, silent_ms=now_ms - beat_ms, beats=True, beat_ms=beat_ms))
    return found


def _names(commands: Collection[str] | None) -> frozenset[str] | None:
    return None if commands is None else frozenset(commands)
