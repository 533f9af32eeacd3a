"""The figures of a store: how many sagas, what waits, who works, how much memory. For metrics and for the dashboard. On
a cluster, the memory is that of the node that is fullest.

They are read with bounded work, whatever the store holds, and only reading is done. What the user of the broker may not
read, or what is of another type than it should be, counts as nothing: `sagastream doctor` tells of it.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import redis
from msgspec import Struct
from msgspec.structs import replace

from sagastream.broker import wire
from sagastream.broker.connection import Broker
from sagastream.broker.entries import time_of
from sagastream.broker.exchange import Exchange, all_of, run, together
from sagastream.broker.failures import is_outage
from sagastream.broker.wire import Words, milliseconds, or_raise, unless_refused
from sagastream.core.indexing import of_held
from sagastream.core.pauses import Pause
from sagastream.store import heartbeat, layout, pauses, published, reach, running
from sagastream.store.heartbeat import Kind
from sagastream.store.keys import StoreKeys
from sagastream.store.reach import Reach
from sagastream_bridge.inspection import live_sagas
from sagastream_bridge.inspection.live_sagas import LiveSagas, ParkedAt

__all__ = ["Figures", "FiguresReader", "LiveSagas", "ParkedAt", "ServiceFigures", "look"]

#: For how long figures are used again, in seconds.
KEPT_S: Final = 5.0
#: At so many parked sagas, and at so many other live ones, it looks.
_LOOKED_AT: Final = 1000
#: The streams of at most so many services are asked for in one round trip, so that others are not kept waiting.
_SERVICES_AT_ONCE: Final = 32


class ServiceFigures(Struct, frozen=True, kw_only=True):
    """What waits for one service, and who works for it."""

    name: str
    processes: int  # that are alive
    unread: int  # commands that no process has read
    held: int  # commands that a process has, or that wait as jobs of RQ, and that are not answered
    oldest_command_ms: int | None  # how long ago the oldest of both was sent; None: there is none
    replies: int  # answers that no worker has taken yet
    overdue: int  # handlers that should have ended
    quarantined: int  # messages that it has set aside


class Figures(Struct, frozen=True, kw_only=True):
    """A store at one moment. Durations and times are in milliseconds, by the broker's clock."""

    at_ms: int  # when it was
    live: LiveSagas
    ended: int  # sagas that have ended and are still kept
    requests: int  # to begin sagas, that no worker has taken yet
    interventions: int  # the same of operators' requests and signals
    timer_lag_ms: int  # for how long the saga that is due first has been due; 0: none is due
    workers: int  # that are alive
    services: tuple[ServiceFigures, ...]
    pauses: tuple[Pause, ...]
    held_sagas: Mapping[str, int]  # sagas held since it is paused: by service, those of `services` and of `pauses`
    quarantined: int  # messages that workers have set aside
    losses: int  # whether writes were lost, as far as nobody has said that it is settled: how often that was found
    memory_bytes: int
    memory_limit_bytes: int | None  # None: the server has none
    partitions_away: int = 0  # how many could not be reached: of them, nothing is counted

    @property
    def oldest_live_ms(self) -> int | None:
        """For how long the oldest live saga has lived, of those that were looked at; None: there is none."""
        return None if self.live.oldest_ms is None else max(0, self.at_ms - self.live.oldest_ms)

    @property
    def all_quarantined(self) -> int:
        """The messages that anybody has set aside."""
        return self.quarantined + sum(one.quarantined for one in self.services)


class FiguresReader:
    """The figures of a store, read when somebody asks, and used again for KEPT_S. Safe for several threads."""

    def __init__(self, broker: Broker, *, kept_s: float = KEPT_S) -> None:
        self._broker = broker
        self._keys: StoreKeys | None = None
        self._kept_s = kept_s
        self._lock = threading.Lock()
        self._last: tuple[float, Figures] | None = None

    def find_store(self) -> StoreKeys:
        """Raises StoreMismatch, and redis.RedisError if the broker is away."""
        if self._keys is None:
            self._keys = layout.look(self._broker)
        return self._keys

    def now(self) -> Figures:
        """The figures as they are, or were a moment ago. Raises as find_store."""
        with self._lock:  # whoever comes meanwhile gets the same ones
            if self._last is None or time.monotonic() - self._last[0] >= self._kept_s:
                self._last = time.monotonic(), of_broker(self._broker, self.find_store())
            return self._last[1]


def of_broker(broker: Broker, keys: StoreKeys) -> Figures:
    """The figures of what can be reached of a store. Raises redis.RedisError; also if what is known of the whole store
    cannot be read, such as who is at work."""
    found = run(broker.client, reach.look(keys))
    return reach.despite_refusals(broker.client, found, lambda there: of_reached(broker, there))


def of_reached(broker: Broker, found: Reach) -> Figures:
    """See of_broker. `found`: what can be reached of the store."""
    keys = found.keys
    if found.shared is not None:
        raise found.shared
    figures = run(broker.client, look(keys))
    if not broker.is_cluster:
        return figures
    used, most = max(_memory_of_nodes(broker), key=_fullness, default=(0, None))
    away = len(keys.tags) - len(keys.partitions)
    return replace(figures, partitions_away=away, memory_bytes=used, memory_limit_bytes=most)


def _memory_of_nodes(broker: Broker) -> Iterator[tuple[int, int | None]]:
    """How much memory each node of a cluster uses that can be reached, and its limit."""
    for client in broker.servers(answering=True).values():
        try:
            (answer,) = wire.round_trip(client, [("INFO", "memory")])
        except redis.RedisError as error:
            if not (is_outage(error) or isinstance(error, redis.AuthenticationError)):
                raise
            continue
        memory = _facts(unless_refused(answer, b""))
        yield int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0)) or None


def _fullness(memory: tuple[int, int | None]) -> tuple[float, int]:
    used, most = memory
    return used / most if most else 0.0, used


def look(keys: StoreKeys) -> Exchange[Figures]:
    """The figures of a store."""
    names = (yield from published.services(keys))[: published.MAX_SERVICES]
    streams: list[_Waiting] = []
    for at in range(0, len(names), _SERVICES_AT_ONCE):
        streams += yield from all_of([_waiting(keys, name) for name in names[at : at + _SERVICES_AT_ONCE]])
    readable = [name for name, waiting in zip(names, streams, strict=True) if waiting.are_streams]
    (central, live), ((processes, busy), paused) = yield from together(
        together(_central(keys), live_sagas.look(keys, _LOOKED_AT)),
        together(together(heartbeat.look(keys, readable), running.look(keys)), _paused(keys)),
    )
    held_at = sorted({*names, *(one.service for one in paused)})
    held_sagas: dict[str, int] = {}
    for at in range(0, len(held_at), _SERVICES_AT_ONCE):
        held_sagas |= yield from _held(keys, held_at[at : at + _SERVICES_AT_ONCE])
    alive = [process for process in processes if process.is_alive]
    return Figures(
        at_ms=central.now_ms,
        live=live,
        ended=central.ended,
        requests=central.requests,
        interventions=central.interventions,
        timer_lag_ms=central.timer_lag_ms,
        workers=sum(process.kind == Kind.WORKER for process in alive),
        services=tuple(_of_services(dict(zip(names, streams, strict=True)), alive, busy, central.now_ms)),
        pauses=tuple(paused),
        held_sagas=held_sagas,
        quarantined=central.quarantined,
        losses=central.losses,
        memory_bytes=central.memory_bytes,
        memory_limit_bytes=central.memory_limit_bytes or None,
    )


def _of_services(
    waiting: "Mapping[str, _Waiting]", alive: Sequence[heartbeat.Process], busy: Mapping[str, running.Busy], now_ms: int
) -> Iterator[ServiceFigures]:
    """Those of each service. `waiting`: what stands in its streams. `busy`: by the name of a process."""
    number = Counter(process.service for process in alive if process.kind != Kind.WORKER)
    overdue: Counter[str | None] = Counter()
    for process in alive:
        if process.name in busy:
            overdue[process.service] += busy[process.name].overdue
    for name, one in waiting.items():
        yield ServiceFigures(
            name=name,
            processes=number[name],
            unread=one.unread,
            held=one.held,
            oldest_command_ms=None if one.oldest is None else max(0, now_ms - one.oldest),
            replies=one.replies,
            overdue=overdue[name],
            quarantined=one.quarantined,
        )


class _Central(NamedTuple):
    """What stands in keys that belong to no service, and what the server says."""

    now_ms: int
    ended: int
    requests: int
    interventions: int
    quarantined: int
    timer_lag_ms: int
    losses: int
    memory_bytes: int
    memory_limit_bytes: int  # 0: none


def _central(keys: StoreKeys) -> Exchange[_Central]:
    asked: list[Words] = [("TIME",), ("INFO", "memory"), ("HLEN", keys.losses)]
    for one in keys.partitions:
        asked += [("ZCARD", one.ended), ("XLEN", one.requests), ("XLEN", one.interventions), ("XLEN", one.quarantine)]
        asked.append(("ZRANGE", one.timers, 0, 0, "WITHSCORES"))
    clock, info, losses, *answers = yield asked
    now_ms = milliseconds(or_raise(clock))
    memory = _facts(unless_refused(info, b""))
    sums = [sum(unless_refused(answer, 0) for answer in answers[at::5]) for at in range(4)]
    first = [float(words[1]) for answer in answers[4::5] if (words := unless_refused(answer, ()))]
    due_ms = min(first, default=float("inf"))
    return _Central(
        now_ms=now_ms,
        ended=sums[0],
        requests=sums[1],
        interventions=sums[2],
        quarantined=sums[3],
        timer_lag_ms=int(now_ms - due_ms) if 0 < due_ms < now_ms else 0,
        losses=unless_refused(losses, 0),
        memory_bytes=int(memory.get("used_memory", 0)),
        memory_limit_bytes=int(memory.get("maxmemory", 0)),
    )


def _facts(info: bytes) -> Mapping[str, str]:
    """An answer of INFO, by name."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _paused(keys: StoreKeys) -> Exchange[list[Pause]]:
    try:
        return (yield from pauses.read(keys))
    except redis.exceptions.NoPermissionError:  # a user that was made by an earlier release
        return []


def _held(keys: StoreKeys, services: Sequence[str]) -> Exchange[dict[str, int]]:
    """How many sagas are held at each of these services."""
    each = len(keys.partitions)
    answers = yield [("ZCARD", one.index(of_held(service))) for service in services for one in keys.partitions]
    numbers = [unless_refused(answer, 0) for answer in answers]
    return {service: sum(numbers[at * each : (at + 1) * each]) for at, service in enumerate(services)}


class _Waiting(NamedTuple):
    """What stands in the streams of one service."""

    unread: int
    held: int
    oldest: int | None  # when the oldest command was sent, in ms by the broker's clock
    replies: int
    quarantined: int
    are_streams: bool  # whether commands can be read there at all


def _waiting(keys: StoreKeys, service: str) -> Exchange[_Waiting]:
    commands = [one.commands(service) for one in keys.partitions]
    asked: list[Words] = []
    for one, stream in zip(keys.partitions, commands, strict=True):
        asked += [("XLEN", stream), ("XPENDING", stream, service)]
        asked += [("XLEN", one.replies(service)), ("XLEN", one.quarantine_of(service))]
    answers = yield asked
    there = [unless_refused(answer, 0) for answer in answers[0::4]]
    pending = [unless_refused(answer, (0, None)) for answer in answers[1::4]]
    # What is held was read before what is unread. So an entry is read, which may be large, only if none is held.
    oldest = [bytes(first) for _, first, *_ in pending if first is not None]
    unread = [name for name, number, (held, *_) in zip(commands, there, pending, strict=True) if number and not held]
    firsts = (yield [("XRANGE", name, "-", "+", "COUNT", 1) for name in unread]) if unread else []
    oldest += [page[0][0] for answer in firsts if (page := unless_refused(answer, ()))]
    held = sum(number for number, *_ in pending)
    return _Waiting(
        unread=max(0, sum(there) - held),
        held=held,
        oldest=min(map(time_of, oldest), default=None),
        replies=sum(unless_refused(answer, 0) for answer in answers[2::4]),
        quarantined=sum(unless_refused(answer, 0) for answer in answers[3::4]),
        are_streams=not any(isinstance(answer, redis.ResponseError) for answer in answers[0::4]),
    )
