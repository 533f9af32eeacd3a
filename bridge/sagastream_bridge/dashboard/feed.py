"""Follows the events of a store, and tells the pages that are looked at when something has changed.

One thread does it for all viewers. While nobody looks, it asks the broker for nothing but events, by reads that block.
While somebody does, it looks at the figures every few seconds, and each second at the versions of the sagas that are
open on a page.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Final

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.entries import Entry
from sagastream.broker.exchange import Exchange, run
from sagastream.broker.failures import is_outage, told
from sagastream.broker.wire import or_raise
from sagastream.errors import SagastreamError
from sagastream.store import events
from sagastream.store.events import Place
from sagastream.store.keys import Partition, StoreKeys
from sagastream.telemetry import Log
from sagastream_bridge.dashboard.outage import Outage
from sagastream_bridge.dashboard.rates import KEPT, STRETCH_MS, Rates, What

#: How long a read blocks, in milliseconds: while nobody looks, and while somebody does. Well below ANSWER_TIMEOUT_S, so
#: that a server that is only busy is not taken for one that hangs.
_IDLE_MS: Final = 1_500
_WATCHED_MS: Final = 1_000
#: How often viewers are told at most, in seconds; and how often at least, since ages grow and times come.
_TELL_EVERY_S: Final = 1.0
_TELL_ANYWAY_S: Final = 5.0
#: How long it rests after a reading that found many events, in seconds: fewer, larger readings cost less.
_REST_S: Final = 0.2
#: How long to wait before the next try if the broker is away, in seconds.
_AGAIN_S: Final = 1.0
#: So many events of the past are read at the start, so that the chart does not begin empty.
_LOOKED_BACK: Final = 20_000
_PAGE: Final = 1_000
#: At most so many sagas are watched at a time, and so many viewers are told.
MOST_SAGAS: Final = 200
MOST_VIEWERS: Final = 200
#: After so many seconds without news a viewer is told that the connection is alive.
_ALIVE_S: Final = 15.0


class Viewer:
    """One page that is looked at."""

    def __init__(self, saga_id: str | None) -> None:
        self.saga_id = saga_id
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self.ended = False

    def tell(self) -> None:
        """From any thread: something has changed."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._news.set)

    def end(self) -> None:
        self.ended = True
        self.tell()

    async def news(self) -> bool:
        """Wait for news. False: there are none for now, and the connection is to be kept alive."""
        try:
            await asyncio.wait_for(self._news.wait(), _ALIVE_S)
        except TimeoutError:
            return False
        self._news.clear()
        return True


class Feed:
    """The thread, and those who are told by it."""

    def __init__(
        self,
        broker: Broker,
        keys: Callable[[], StoreKeys],
        reached: Callable[[], StoreKeys],
        fingerprint: Callable[[], object],
        outage: Outage,
    ) -> None:
        """
        Args:
            keys: the names of the store's keys. May raise what reading the store raises.
            reached: the same, of the partitions that can be reached. The others are followed once they are back.
            fingerprint: the figures that pages show. If they differ from those before, viewers are told.
            outage: what is known of the broker; the feed tells it what it finds.
        """
        self._broker = broker
        self._keys = keys
        self._reached = reached
        self._fingerprint = fingerprint
        self._outage = outage
        self._viewers: set[Viewer] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._looked_at: object = None
        self._versions: dict[str, bytes | None] = {}
        self._told_at = 0.0
        self.rates = Rates()
        self.away: str | None = None  # why the broker does not answer
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._log = Log("dashboard", "sagastream dashboard")

    def start(self) -> None:
        self._thread.start()
        self._outage.is_watched = self._thread.is_alive

    def stop(self) -> None:
        """End the thread, and the connections of all viewers."""
        self._stop.set()
        with self._lock:
            viewers, self._viewers = self._viewers, set()
        for viewer in viewers:
            viewer.end()
        if self._thread.is_alive():
            self._thread.join(_IDLE_MS / 1000 + 5)

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    async def follow(self, saga_id: str | None) -> AsyncIterator[str]:
        """What a viewer gets, as server-sent events; nothing if MOST_VIEWERS look already. `saga_id`: the saga that the
        page shows."""
        viewer = Viewer(saga_id)
        with self._lock:
            if len(self._viewers) >= MOST_VIEWERS:
                return
            self._viewers.add(viewer)
        try:
            yield "retry: 2000\n\n"
            while not viewer.ended:
                if await viewer.news():
                    yield f"event: changed\ndata: {json.dumps({'away': self.away})}\n\n"
                else:
                    yield ": alive\n\n"
        finally:
            with self._lock:
                self._viewers.discard(viewer)

    # --- the thread

    def _run(self) -> None:
        place: Place | None = None
        while not self._stop.is_set():
            try:
                partitions = self._keys().partitions
                if place is None:
                    place = self._begin(partitions)
                place, busy = self._turn(partitions, place)
                self._mend()
                if busy:
                    self._stop.wait(_REST_S)
            except (redis.RedisError, SagastreamError) as error:
                place = None
                self._fail(error)
                self._stop.wait(_AGAIN_S)

    def _begin(self, partitions: Sequence[Partition]) -> Place:
        """Count what happened lately. Returns the place up to which that is."""
        there = self._reached().partitions
        newest = dict(zip(there, run(self._broker.client, events.newest(there)), strict=True))
        self.rates.count(run(self._broker.client, _past(there)))
        # Of a partition that cannot be reached, only what comes from now on.
        return tuple(newest.get(one, b"$") for one in partitions)

    def _turn(self, partitions: Sequence[Partition], place: Place) -> tuple[Place, bool]:
        """Read events, and tell viewers. Returns the place after them, and whether there were many."""
        block_ms = _WATCHED_MS if self._viewers else _IDLE_MS
        found = run(self._broker.client, events.after(partitions, place, block_ms))
        if self._stop.is_set():
            return place, False
        self.rates.count(_happened(found))
        if self._viewers:
            self._tell(changed=bool(found))
        else:
            self._looked_at, self._versions = None, {}
        return events.moved(partitions, place, found), len(found) > _PAGE // 10

    def _tell(self, *, changed: bool) -> None:
        now = time.monotonic()
        if now - self._told_at < _TELL_EVERY_S:
            return
        with self._lock:
            viewers = list(self._viewers)
        moved = self._moved(viewers)
        fingerprint = self._fingerprint()
        everybody = changed or fingerprint != self._looked_at or now - self._told_at >= _TELL_ANYWAY_S
        self._looked_at = fingerprint
        for viewer in viewers:
            if everybody or viewer.saga_id in moved:
                viewer.tell()
        if everybody:
            self._told_at = now

    def _moved(self, viewers: Iterable[Viewer]) -> set[str]:
        """Those of the watched sagas that have changed."""
        ids = sorted({viewer.saga_id for viewer in viewers if viewer.saga_id is not None})[:MOST_SAGAS]
        if not ids:
            return set()
        versions = run(self._broker.client, _versions(self._keys(), ids))
        moved = {one for one in ids if one in self._versions and versions[one] != self._versions[one]}
        self._versions = versions
        return moved

    def _fail(self, error: Exception) -> None:
        text = told(error) if isinstance(error, redis.RedisError) else str(error)
        if self.away is None:
            self._log.warning(f"{text}; trying again each second")
        self.away = text
        self._outage.found(error)
        if isinstance(error, redis.RedisError) and is_outage(error):
            with contextlib.suppress(SagastreamError):
                self._broker.restore()
        self._tell_all()

    def _mend(self) -> None:
        if self.away is not None:
            self._log.info("the broker answers again")
        if self._outage.over() or self.away is not None:
            self.away = None
            self._tell_all()

    def _tell_all(self) -> None:
        with self._lock:
            viewers = list(self._viewers)
        for viewer in viewers:
            viewer.tell()


# --- events


def _past(partitions: Sequence[Partition]) -> Exchange[list[tuple[int, What]]]:
    """What happened in the last minutes, as far as the newest events tell."""
    found: list[tuple[int, What]] = []
    for partition in partitions:
        before, newest_ms, seen = b"+", 0, 0
        while seen < _LOOKED_BACK // len(partitions):
            (answer,) = yield [("XREVRANGE", partition.events, before, "-", "COUNT", _PAGE)]
            page = [
                Entry(stream=partition.events, id=one, fields=dict(zip(words[::2], words[1::2], strict=True)))
                for one, words in or_raise(answer)
            ]
            if not page:
                break
            found += _happened(page)
            newest_ms = newest_ms or page[0].added_ms
            before, seen = b"(" + page[-1].id, seen + len(page)
            if len(page) < _PAGE or page[-1].added_ms < newest_ms - KEPT * STRETCH_MS:
                break
    return found


def _happened(entries: Iterable[Entry]) -> Iterator[tuple[int, What]]:
    for entry in entries:
        kind = entry.fields.get(b"kind")
        if kind == b"parked":
            yield entry.added_ms, What.PARKED
        elif kind == b"outcome":
            # The first member says it, and a reason may be long.
            is_completed = b'"saga_completed"' in entry.fields.get(b"body", b"")[:64]
            yield entry.added_ms, What.COMPLETED if is_completed else What.ABORTED


def _versions(keys: StoreKeys, ids: Sequence[str]) -> Exchange[dict[str, bytes | None]]:
    answers = yield [("HGET", keys.saga(one), "version") for one in ids]
    return {one: answer if isinstance(answer, bytes) else None for one, answer in zip(ids, answers, strict=True)}
