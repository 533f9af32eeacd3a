"""Has the store lost what it had accepted? Each process compares what it saw of the store with what is there now.

A failover to a replica that lags loses writes, and so does a restart from an older file. The server tells nobody. So
each process remembers, along with its heartbeat, how far the store was: the replication id and offset, how far its
streams were read, and its own heartbeat. If any of these goes back, the store has lost what was written since.
`losses.compare` says so; `Lineage` asks, tells, and keeps what was found in the store, for `sagastream doctor`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import redis

from sagastream.broker import wire
from sagastream.broker.exchange import Exchange, together
from sagastream.broker.failures import is_outage, is_wrong_type
from sagastream.broker.scripting import even_if_full
from sagastream.broker.server import facts
from sagastream.broker.wire import or_raise
from sagastream.store.keys import ORCHESTRATOR_GROUP, StoreKeys
from sagastream.store.losses import EntryId, Loss, Sight, Switch, compare, when
from sagastream.telemetry import Log, Observer

#: How many looks are remembered, to say since when writes are lost. A process looks about once a second.
_REMEMBERED: Final = 120
#: The groups of at most this many streams are looked at. All streams of one server go back together.
_STREAMS: Final = 16


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
        since = "" if found.since_ms is None else f" after {when(found.since_ms)}"
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
