"""Has the store lost what it had accepted? Each process compares what it saw of the store with what is there now.

A failover to a replica that lags loses writes, and so does a restart from an older file. The server tells nobody. So
each process remembers, along with its heartbeat, how far the store was: the replication id and offset, how far its
streams were read, and its own heartbeat. If any of these goes back, the store has lost what was written since.
`compare` says so; `Lineage` asks, tells, and keeps what was found in the store, for `sagastream doctor`.

Rejected: the newest ids of the streams alone. Others write to the new master too, so after a moment the ids are as
high as before. Nobody else writes the heartbeat of this process, and the new master goes on telling where it took over.

Rejected: to call it a loss whenever the new master lacks bytes. Each Sentinel publishes a message at the master every
two seconds, and a master pings its replicas. Both move the offset, even of a former master that refuses all writes. But
a replica gets everything in order. So if the last heartbeat is there, all that was written before it is there too.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import redis
from msgspec import Struct

from sagastream.broker import wire
from sagastream.broker.exchange import Exchange, together
from sagastream.broker.failures import is_outage, is_wrong_type
from sagastream.broker.scripting import even_if_full
from sagastream.broker.server import facts
from sagastream.broker.wire import or_raise
from sagastream.store.columns import iso
from sagastream.store.keys import ORCHESTRATOR_GROUP, StoreKeys
from sagastream.telemetry import Log, Observer

#: How many looks are remembered, to say since when writes are lost. A process looks about once a second.
_REMEMBERED: Final = 120
#: The groups of at most this many streams are looked at. All streams of one server go back together.
_STREAMS: Final = 16

#: How old the last heartbeat may be at the first look that saw what the new master lacks. If it is older, much may have
#: been written since. A process that waits for an answer is silent for at most 5.5 s.
_FRESH_MS: Final = 6000

_YEAR_5138_MS: Final = 10**14

#: The id of a stream's entry, as numbers.
EntryId = tuple[int, int]


class Sight(Struct, frozen=True, kw_only=True):
    """How far the store was at one moment."""

    at_ms: int  # by the broker's clock
    history: str  # the replication id; "": the server does not tell
    offset: int = 0  # how many bytes this history has
    before: str = ""  # the replication id that this history continues; "": none
    taken_over_at: int = 0  # how many bytes that one had, for this server, when this server became the master
    #: The heartbeat of this process: of what was seen, as it was acknowledged; None: none. If this process writes none,
    #: the newest one of another.
    beat_ms: int | None = None
    read: Mapping[str, EntryId] = {}  # by stream: how far its group was read


class Loss(Struct, frozen=True, kw_only=True):
    """What was written after `since_ms` is lost, or may be. Times are ms by the broker's clock."""

    since_ms: int | None  # None: nobody knows since when
    evidence: str
    found_ms: int
    found_by: str = ""  # the name of the process
    certain: bool = True  # False: the new master lacks bytes, and nobody can tell whether they were writes

    @property
    def text(self) -> str:
        """What is told to people."""
        since = "at a time that nobody knows" if self.since_ms is None else f"after {_when(self.since_ms)}"
        return f"{self.what} {since}, as {self.found_by} found at {_when(self.found_ms)}"

    @property
    def what(self) -> str:
        """The beginning of a sentence."""
        return f"the store {'has' if self.certain else 'may have'} lost what was written"


class Switch(Struct, frozen=True, kw_only=True):
    """Another server is the master now. It has all that was written until `since_ms`, and what this process wrote."""

    since_ms: int
    lacking: int = 0  # how many bytes that came later are not there

    @property
    def text(self) -> str:
        """What is told to people."""
        told = f"the broker has a new master; it has all that this process saw until {_when(self.since_ms)}"
        if not self.lacking:
            return told
        return (
            f"{told}. {self.lacking} bytes that came later are not there: mostly they are messages of Sentinels, but a "
            "client may have written at that moment"
        )


def compare(seen: Sequence[Sight], now: Sight, missing: str | None = None) -> Loss | Switch | None:
    """
    Args:
        seen: what the process saw before, the oldest first; at least one.
        now: what is there.
        missing: what this process wrote last and is not there; None: it is there, or was not looked for.

    Returns None if nothing is missing.
    """
    last = seen[-1]
    kept_ms: list[int] = []  # times until which nothing is lost
    evidence: list[str] = []
    # A group that was made anew, by this process or another, has read nothing.
    if last.beat_ms is not None and now.beat_ms is None and _has_read(last) and not _has_read(now):
        evidence.append("none of its streams is there as it was, nor the heartbeat")
    if now.history != last.history:  # else a person has set something back: nothing is lost by that
        evidence += [] if missing is None else [missing]
        evidence += _gone_back(last, now, kept_ms)
    certain = bool(evidence)
    lacking = 0
    if continued := now.history != last.history and now.before == last.history != "":
        whole = [sight.at_ms for sight in seen if sight.history == last.history and sight.offset <= now.taken_over_at]
        kept_ms += whole[-1:]
        lacking = max(0, last.offset - now.taken_over_at)
    if lacking and not certain and whole and _has_beat(seen, now):
        return Switch(since_ms=whole[-1], lacking=lacking)
    if lacking:
        evidence.append(f"the new master lacks {lacking} bytes of what the old one had written")
    if evidence:
        since_ms = max(kept_ms, default=None)
        return Loss(since_ms=since_ms, evidence="; ".join(evidence), found_ms=now.at_ms, certain=certain)
    return Switch(since_ms=last.at_ms) if continued else None


def _has_beat(seen: Sequence[Sight], now: Sight) -> bool:
    """Whether the new master has the last heartbeat, from just before the bytes that it lacks."""
    beat_ms = seen[-1].beat_ms
    if beat_ms is None or now.beat_ms != beat_ms:
        return False
    later_ms = next(sight.at_ms for sight in seen if sight.history == now.before and sight.offset > now.taken_over_at)
    return abs(later_ms - beat_ms) <= _FRESH_MS  # one in the future was written before the clock was set back


def _has_read(sight: Sight) -> bool:
    return any(reached > (0, 0) for reached in sight.read.values())


def _gone_back(last: Sight, now: Sight, kept_ms: list[int]) -> Iterator[str]:
    """What is less far than it was. Adds to `kept_ms` how far it is."""
    if last.beat_ms is not None and now.beat_ms is not None and now.beat_ms < last.beat_ms:
        yield f"the heartbeat of {_when(last.beat_ms)} is not there, but the one of {_when(now.beat_ms)}"
        kept_ms.append(now.beat_ms)
    for stream, reached in last.read.items():
        if (found := now.read.get(stream)) is not None and found < reached:
            yield f"{stream} was read up to {_text(reached)}, and is read up to {_text(found)}"
            kept_ms.append(found[0])


class Lineage:
    """Remembers for one process how far the store was, and tells if it goes back."""

    def __init__(
        self,
        who: str,
        *,
        area: str,
        service: str | None = None,
        observer: Observer | None = None,
        missing: Callable[[int], Exchange[list[str]]] | None = None,
    ) -> None:
        """
        Args:
            who: the name of the process, as its log records have it.
            area: of its log, see Log.
            service: the service that it is a process of; None: it follows sagas.
            missing: looks for what the process wrote last; returns what of it is not there. Called with the time by the
                broker's clock, in ms. What was missing before the replication id changed is no loss: it has expired, or
                somebody has deleted it.
        """
        self._who = who
        self._log = Log(area, who)
        self._observer = observer
        self._missing = missing
        self._service = service
        self._seen: deque[Sight] = deque(maxlen=_REMEMBERED)
        self._gone: list[str] = []  # what was missing when it looked last
        self._heard: tuple[bytes, int] | None = None  # the newest heartbeat of others, if it writes none
        self.reached: dict[str, EntryId] = {}  # by stream: the furthest that its group was seen; never changed in place
        #: How often the store went on from another moment or in another place than this process saw: its server has
        #: another replication id, or it has lost writes. Each server that starts gives itself a new replication id, and
        #: so does a replica that becomes the master; so the run id would say nothing more.
        self.changes = 0
        self.loss: Loss | None = None  # the last one that it found
        # A loss that is not kept in the store yet. What is read along with a look may fail, and end it early.
        self._to_keep: tuple[str, bytes] | None = None
        self._refused = ""

    def look(self, keys: StoreKeys, member: bytes, beat_ms: int | None) -> Exchange[None]:
        """Look how far the store is, compare, tell and remember. Before the next heartbeat is written.

        Args:
            member: of this process, in the heartbeat; empty: it writes none, and looks at the newest one of another.
            beat_ms: the time that its last heartbeat had, as it was acknowledged; None: it wrote none yet.
        """
        try:
            heard = None
            if member:
                now = yield from _look(keys, member, self._streams(keys))
            else:
                member, beat_ms = self._heard or (b"", None)
                now, heard = yield from together(_look(keys, member, self._streams(keys)), _newest_beat(keys))
                now = now and _of_another(now, beat_ms)
            if now is None:
                return  # a replica: it may lag, and the process cannot work with it anyway
            self._heard = heard
            if self._seen:
                last = msgspec.structs.replace(self._seen[-1], beat_ms=beat_ms)
                gone = [] if self._missing is None else (yield from self._missing(now.at_ms))
                missing = next((one for one in gone if one not in self._gone), None)
                self._gone = gone
                found = compare([*list(self._seen)[:-1], last], now, missing)
                if found is not None or now.history != last.history:
                    self.changes += 1
                if found is not None:
                    self._seen.clear()
                    self._tell(found, now)
            self._seen.append(now)
            self.reached = self.reached | {
                stream: max(reached, self.reached.get(stream, reached)) for stream, reached in now.read.items()
            }
            if self._to_keep is not None:
                # All processes find the same loss: the first one keeps it.
                (answer,) = yield [even_if_full(keys.losses, "HSETNX", keys.losses, *self._to_keep)]
                or_raise(answer)  # a new master may refuse writes until it has a replica; the next look keeps it
                self._to_keep = None
        except redis.ResponseError as error:
            if not is_outage(error) and str(error) != self._refused:
                self._refused = str(error)
                self._log.warning(f"cannot look whether the store has lost writes: {error}")

    def _streams(self, keys: StoreKeys) -> list[tuple[str, str]]:
        """Streams that it reads, each with its group."""
        partitions = keys.partitions[:_STREAMS]
        if self._service is None:
            return [(partition.requests, ORCHESTRATOR_GROUP) for partition in partitions]
        return [(partition.commands(self._service), self._service) for partition in partitions]

    def _tell(self, found: Loss | Switch, now: Sight) -> None:
        if isinstance(found, Switch):
            self._log.info(found.text)
            return
        since = "" if found.since_ms is None else f" after {_when(found.since_ms)}"
        self._log.warning(
            f"{found.what}{since}: {found.evidence}; to see which sagas say other than what was "
            "done: sagastream doctor --after-failover"
        )
        self.loss = found
        if self._observer is not None:
            self._observer.writes_lost(since_ms=found.since_ms, evidence=found.evidence)
        kept = msgspec.json.encode(msgspec.structs.replace(found, found_by=self._who))
        self._to_keep = now.history or "unknown", kept


def losses(client: "redis.Redis", keys: StoreKeys) -> list[Loss]:
    """What processes have found to be lost, and nobody has called settled yet; the oldest first."""
    try:
        kept: Any = client.hvals(keys.losses)
    except redis.ResponseError as error:
        if is_wrong_type(error):
            return []
        raise
    found = []
    for value in kept:
        try:
            found.append(msgspec.json.decode(value, type=Loss))
        except (msgspec.DecodeError, RecursionError):
            continue  # sagastream did not write it
    return sorted(found, key=lambda loss: loss.found_ms)


def settle(client: "redis.Redis", keys: StoreKeys) -> None:
    """Forget the losses: somebody has dealt with what is lost."""
    client.delete(keys.losses, keys.told)


def _look(keys: StoreKeys, member: bytes, streams: Sequence[tuple[str, str]]) -> Exchange[Sight | None]:
    asked: list[wire.Words] = [("XINFO", "GROUPS", stream) for stream, _ in streams]
    clock, info, score, *groups = yield [("TIME",), ("INFO", "replication"), ("ZSCORE", keys.alive, member), *asked]
    replication = facts(or_raise(info))
    if replication.get("role") not in (None, "master"):
        return None
    read = {
        stream: reached
        for (stream, group), answer in zip(streams, groups, strict=True)
        if (reached := _reached(answer, group)) is not None
    }
    history, before = (replication.get(name, "") for name in ("master_replid", "master_replid2"))
    return Sight(
        at_ms=wire.milliseconds(or_raise(clock)),
        history=history,
        offset=_number(replication.get("master_repl_offset")),
        before=before if before.strip("0") else "",
        taken_over_at=max(0, _number(replication.get("second_repl_offset")) - 1),
        beat_ms=_milliseconds(score),
        read=read,
    )


def _of_another(now: Sight, seen_ms: int | None) -> Sight:
    """The heartbeat of another process, which was of `seen_ms`, may be newer: that process lives, and has compared
    before it wrote it. An older one proves nothing: another server may have another clock."""
    is_there = seen_ms is not None and now.beat_ms is not None and now.beat_ms >= seen_ms
    return msgspec.structs.replace(now, beat_ms=seen_ms if is_there else None)


def _newest_beat(keys: StoreKeys) -> Exchange[tuple[bytes, int] | None]:
    """Whose heartbeat is the newest, and of when it is."""
    (answer,) = yield [("ZRANGE", keys.alive, 0, 0, "REV", "WITHSCORES")]
    if not answer or isinstance(answer, redis.ResponseError):
        return None
    member, score = answer
    return None if (beat_ms := _milliseconds(score)) is None else (member, beat_ms)


def _number(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return 0


def _milliseconds(score: Any) -> int | None:
    if score is None or isinstance(score, redis.ResponseError):  # it is no zset: the heartbeat is refused too
        return None
    try:
        return int(float(score))
    except (ValueError, OverflowError):
        return None


def _reached(answer: Any, group: str) -> EntryId | None:
    """Up to which entry a group was read; None: there is no such group."""
    if isinstance(answer, redis.ResponseError):
        return None
    for words in answer:
        pairs = iter(words)
        about = dict(zip(pairs, pairs, strict=True))
        if about.get(b"name") == group.encode():
            ms, _, number = about[b"last-delivered-id"].partition(b"-")
            return int(ms), int(number)
    return None


def _when(ms: int) -> str:
    """A time, for people. Somebody may have written any number into the store."""
    return iso(ms) if 0 <= ms < _YEAR_5138_MS else f"{ms} ms"


def _text(entry_id: EntryId) -> str:
    return f"{entry_id[0]}-{entry_id[1]}"
