"""Reading streams as a member of a consumer group, so that no entry is lost and a dead reader's are taken over.

An entry that was delivered stays *pending* until it is acknowledged, which only the scripts that commit its effect
do. A reader therefore looks in three places: at entries of its own that it was given but may not have received (the
answer was lost with a connection), at those of readers that have held them for too long, and at new ones.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import redis
from msgspec import Struct

from sagastream.broker import exchange, scripting, wire
from sagastream.broker.exchange import Exchange, together
from sagastream.broker.wire import or_raise
from sagastream.telemetry import Log

_T = TypeVar("_T")

#: Entries of one stream that one reading takes at the most. What a script gets is bounded by it.
BATCH: Final = 128
#: How often abandoned entries are looked for, in seconds, at the least.
_CLAIM_EVERY_S: Final = 2.0
#: How often consumers that are gone are forgotten, in seconds, and how long one must not have asked for that, in ms.
_FORGET_EVERY_S: Final = 30.0
_GONE_MS: Final = 60_000
#: For how long what was read ahead is as good as read now, in seconds, or a quarter of the lease where that is less.
#: Far more than it takes to come to it.
_FRESH_S: Final = 1.0
#: An id that no entry comes after.
_AFTER_ALL: Final = f"{(1 << 64) - 2}-0"
#: A field of entries that were put back from the quarantine: somebody may have worked on them before.
REPLAYED: Final = b"replayed"
#: How much is kept of a quarantined entry: of its body, in bytes (all that a message may have), and of its other
#: fields, in characters. One that was cut cannot be put back.
_BODY_KEPT: Final = 1 << 20
_OTHER_FIELDS_KEPT: Final = 4096


class Entry(Struct, frozen=True, kw_only=True, gc=False):
    """One entry of a stream."""

    stream: str
    id: bytes
    fields: dict[bytes, bytes]
    again: bool = False  # it was delivered before: somebody may have worked on it
    taken_over: bool = False  # … from a reader that held it for too long, or handed it back

    @property
    def added_ms(self) -> int:
        """When it was added, by the broker's clock."""
        return int(self.id.split(b"-")[0])

    def quarantined(self, reason: str) -> dict[str, str | bytes | int]:
        """The fields of this entry in the quarantine: few, however many it has."""
        others = {n.decode(errors="backslashreplace"): v.decode(errors="backslashreplace")
                  for n, v in self.fields.items() if n != b"body"}  # fmt: skip
        body, written = self.fields.get(b"body", b""), json.dumps(others)
        is_whole = len(body) <= _BODY_KEPT and len(written) <= _OTHER_FIELDS_KEPT
        return {
            "reason": reason,
            "stream": self.stream,
            "entry_id": self.id,
            "body": body[:_BODY_KEPT],
            "fields": written if is_whole else f"cut: {written}"[:_OTHER_FIELDS_KEPT],
        }


def consumer_name() -> str:
    """A name for this process in its consumer groups, never used twice: a namesake would take its entries."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class GroupReader:
    """Reads streams as one consumer of a group."""

    def __init__(
        self,
        client: "redis.Redis",
        *,
        streams: Sequence[str],
        group: str,
        consumer: str,
        lease_ms: int,
        on_join: Callable[[], None],
    ) -> None:
        """
        Args:
            lease_ms: how long others may hold an entry before it is taken over.
            on_join: called before the first reading, and before the first one after an outage or after the group
                was deleted: the store may be another one by then.
        """
        self.streams = list(streams)
        self.now_ms = 0  # by the broker's clock, when it last gave new entries, or had none
        self._client = client
        self._group = group
        self._consumer = consumer
        self._log = Log("broker", consumer)
        self._lease_ms = lease_ms
        self._on_join = on_join
        self._leave = scripting.load(client, "leave")
        self._forget = scripting.load(client, "forget")
        # Where the reading of own pending and of abandoned entries goes on, by stream; nothing: it is through.
        self._own: dict[str, bytes | str] = {}
        self._abandoned: dict[str, bytes | str] = {}
        self._ahead: list[Entry] = []  # what came along with something else, for the next reading
        self._ahead_at = 0.0  # when that was asked for, by time.monotonic
        self._next_claim = 0.0
        self._next_forget = 0.0
        self._joined = False

    def recover(self) -> None:
        """Have the next reading begin anew: an answer may have been lost, the store may have changed."""
        self._joined = False
        self._ahead = []

    def renew(self) -> None:
        """Have the next readings bring what this consumer holds already, which renews the lease on it."""
        self._own = dict.fromkeys(self.streams, "0")

    def read(self, block_ms: int, counts: Mapping[str, int] | None = None) -> list[Entry]:
        """The entries that are to be worked on now, at most BATCH a stream: own pending ones, abandoned ones, or new
        ones.

        Args:
            block_ms: how long to wait for new ones where there are none in any stream.
            counts: how many new ones at the most, by stream; by default BATCH of each. Where a stream is left out,
                no new ones of it are read, and it is not waited for the others.
        """
        if entries := self._came_ahead():
            return entries
        try:
            if not self._joined:
                self._join()
            while self._own:
                if entries := self._read_own():
                    return entries
            if time.monotonic() >= self._next_claim:
                self._next_claim = time.monotonic() + min(self._lease_ms / 2000, _CLAIM_EVERY_S)
                self._abandoned = dict.fromkeys(self.streams, "0-0")
                self.show_up()
            while self._abandoned:
                if entries := self._claim():
                    return entries
            if time.monotonic() >= self._next_forget:
                self._next_forget = time.monotonic() + _FORGET_EVERY_S
                self._forget_gone()
            return exchange.run(self._client, self._read_new(counts or dict.fromkeys(self.streams, BATCH), block_ms))
        except redis.ResponseError as error:
            self._deleted(error)
            return []

    @property
    def _may_read_ahead(self) -> bool:
        """Whether the next reading will be of new entries, and has not come already. Where something is always read
        ahead, what dead readers held would else never be taken over."""
        is_through = self._joined and not (self._own or self._abandoned or self._ahead)
        return is_through and time.monotonic() < min(self._next_claim, self._next_forget)

    def read_along(self, first: Exchange[_T], counts: Mapping[str, int]) -> Exchange[_T]:
        """The exchange, and in its first round trip the new entries that there are by then, for the next reading; the
        exchange alone, where that will not be of new entries. It will have to be soon, for they are this reader's from
        now on."""
        if not self._may_read_ahead:
            return (yield from first)
        found, _ = yield from together(first, self._read_ahead(counts))
        return found

    def show_up(self) -> None:
        """Be seen to be alive: to Redis 7.0 a reading that finds nothing is none, unless it asks for own entries."""
        (answer,) = wire.round_trip(self._client, [self._reading(dict.fromkeys(self.streams, _AFTER_ALL), 1)])
        or_raise(answer)

    def leave(self) -> None:
        """Leave the group, and what is still held to others."""
        for stream in self.streams:
            self._leave(keys=[stream], args=[self._group, self._consumer])

    def _read_ahead(self, counts: Mapping[str, int]) -> Exchange[None]:
        self._ahead_at = time.monotonic()
        try:
            self._ahead = yield from self._read_new(counts)
        except redis.ResponseError as error:
            self._deleted(error)

    def _join(self) -> None:
        self._on_join()
        for stream in self.streams:
            try:
                # From 0: what was sent before anybody listened is for this group too.
                self._client.xgroup_create(stream, self._group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
        self.renew()
        self._joined = True

    def _deleted(self, error: redis.ResponseError) -> None:
        """See to it that a stream or group that was deleted is made anew; raises any other error."""
        if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
            raise error
        self._log.warning(f"a stream or group of {', '.join(self.streams)} was deleted; made it anew")
        self.recover()

    def _came_ahead(self) -> list[Entry]:
        """What was read ahead. Not where the process has slept since then: others may have it by now, and more may have
        come; so what is still held is read anew."""
        entries, self._ahead = self._ahead, []
        if entries and time.monotonic() - self._ahead_at >= min(_FRESH_S, self._lease_ms / 4000):
            self.renew()
            return []
        return entries

    def _read_new(self, counts: Mapping[str, int], block_ms: int | None = None) -> Exchange[list[Entry]]:
        """New entries; and what the time is, once they are there."""
        # One reading waits for all streams and has one count for them; what more is wanted of some is read after it.
        least = min(counts.values())
        block = block_ms if counts.keys() >= set(self.streams) else None
        readings = [self._reading(dict.fromkeys(counts, ">"), least, block)]
        readings += [self._reading({stream: ">"}, count - least) for stream, count in counts.items() if count > least]
        *answers, clock = yield [*readings, ("TIME",)]
        entries = [entry for answer in answers for entry in _entries(or_raise(answer))]
        self.now_ms = wire.milliseconds(or_raise(clock))
        return entries

    def _reading(self, after: Mapping[str, str | bytes], count: int, block_ms: int | None = None) -> wire.Words:
        block: wire.Words = () if block_ms is None else ("BLOCK", block_ms)
        group = ("XREADGROUP", "GROUP", self._group, self._consumer)
        return (*group, "COUNT", count, *block, "STREAMS", *after.keys(), *after.values())

    def _read_own(self) -> list[Entry]:
        """The next page of what this consumer holds."""
        (answer,) = wire.round_trip(self._client, [self._reading(self._own, BATCH)])
        entries = _entries(or_raise(answer), again=True)
        self._own = {}
        for name, page in answer or ():
            if page:
                stream = name.decode()
                self._own[stream] = page[-1][0]
                if deleted := [entry_id for entry_id, fields in page if not fields]:
                    self._report_deleted(stream, deleted)
                    self._client.xack(stream, self._group, *deleted)
        return entries

    def _claim(self) -> list[Entry]:
        """The next page of what others have held for longer than the lease."""
        entries: list[Entry] = []
        for stream, cursor in list(self._abandoned.items()):
            words = ("XAUTOCLAIM", stream, self._group, self._consumer, self._lease_ms, cursor, "COUNT", BATCH)
            (answer,) = wire.round_trip(self._client, [words])
            following, page, *deleted = or_raise(answer)
            if deleted and deleted[0]:
                self._report_deleted(stream, deleted[0])
            entries += _entries([(stream.encode(), page)], again=True, taken_over=True)
            if following == b"0-0":  # only this is the end: a page may be empty before it
                del self._abandoned[stream]
            else:
                self._abandoned[stream] = following
        return entries

    def _forget_gone(self) -> None:
        """Take consumers out of the group that are gone, now that what they held was taken over."""
        for stream in self.streams:
            self._forget(keys=[stream], args=[self._group, _GONE_MS])

    def _report_deleted(self, stream: str, ids: Sequence[bytes]) -> None:
        names = ", ".join(entry_id.decode() for entry_id in ids[:5])
        self._log.warning(f"{len(ids)} entries of {stream} were deleted before they were answered: {names}")


def _entries(answer: Any, *, again: bool = False, taken_over: bool = False) -> list[Entry]:
    """The entries of an answer of XREADGROUP, without those that were deleted while they were pending."""
    entries = []
    for name, page in answer or ():
        stream = name.decode()
        for entry_id, words in page:
            if words:
                pairs = iter(words)
                fields = dict(zip(pairs, pairs, strict=True))
                again_too = again or REPLAYED in fields
                entries.append(Entry(stream=stream, id=entry_id, fields=fields, again=again_too, taken_over=taken_over))
    return entries
