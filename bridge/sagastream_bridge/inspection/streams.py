"""Examines a stream and its group: what was held for long, and what nobody will ever read.

XGROUP SETID and XGROUP DELCONSUMER by hand leave entries that the group has passed over and that nobody holds: with
`repair`, those are put back.

After an entry with the greatest id that there is, a stream takes no more entries. Somebody adds such an entry by hand:
with `repair`, a new stream gets the entries.
"""

from collections.abc import Iterator
from typing import Any, Final

import orjson
import redis

from sagastream.broker import scripting
from sagastream.broker.entries import REPLAYED, is_possible, time_of
from sagastream.broker.failures import is_no_group
from sagastream.broker.leases import HANDED_BACK_MS
from sagastream.core.durations import spoken
from sagastream.core.messages import is_id
from sagastream.store.events import sort_key
from sagastream.store.keys import moving
from sagastream_bridge.inspection.findings import Finding, not_allowed, problem, repaired, warning

#: How long a reader may hold an entry before that is told, in milliseconds.
_HELD_MS: Final = 120_000
#: From so many bytes on it is told how large a stream is.
_LARGE_BYTES: Final = 64 << 20
#: How many entries to look at at once. An entry may have a megabyte.
_PAGE: Final = 50
#: How many entries one script call puts back.
_AT_ONCE: Final = 500
#: How many entries of a stream to name.
_NAMED: Final = 3


class StreamCheck:
    """Examines streams, one after the other."""

    def __init__(self, client: "redis.Redis", *, repair: bool) -> None:
        self._client = client
        self._repair = repair
        self._put_back = scripting.load(client, "put_back")
        self._renew = scripting.load(client, "renew")
        self.newest_ms = 0  # the time of the newest entry of any stream, by the clock that the broker had then

    def renew(self, stream: str) -> Iterator[Finding]:
        """A stream that takes no more entries, or one of which the repair was interrupted."""
        facts: Any = self._client.xinfo_stream(stream) if self._client.exists(stream) else {}
        newest = facts.get("last-generated-id", b"0-0")
        is_begun = self._client.exists(moving(stream))
        if is_possible(newest) and not is_begun:
            return
        text = f"somebody has added an entry with the id {newest.decode()}, which no clock gives: it takes no more"
        if is_begun:
            text = f"its entries stand at {moving(stream)}, since a repair was interrupted"
        if not self._repair:
            yield problem(stream, f"{text}; sagastream doctor --repair moves them to a new stream")
            return
        try:
            if not is_possible(newest):
                self._renew(keys=[stream, moving(stream)], args=[newest])
            yield repaired(stream, f"{text}; moved to a new stream: {self._move(stream)}")
        except redis.exceptions.NoPermissionError as error:
            yield not_allowed(stream, text, error)

    def _move(self, stream: str) -> int:
        """Move the entries that are set aside back into their stream, at its end. Returns how many."""
        number, aside = 0, moving(stream)
        groups: Any = self._client.xinfo_groups(aside) if self._client.exists(aside) else []
        read_up_to = max((group["last-delivered-id"] for group in groups), key=sort_key, default=b"0-0")
        while True:
            page: Any = self._client.xrange(aside, count=_PAGE)
            if not page:
                self._client.delete(aside)
                return number
            # In a transaction, and not in a script: a script cannot add an entry of very many fields.
            pipeline = self._client.pipeline(transaction=True)
            for entry_id, fields in page:
                # Somebody may have worked on it already.
                was_read = sort_key(entry_id) <= sort_key(read_up_to)
                pipeline.xadd(stream, fields | ({REPLAYED: 1} if was_read else {}))
                pipeline.xdel(aside, entry_id)
            pipeline.execute()
            number += len(page)

    def size(self, stream: str) -> Iterator[Finding]:
        """A stream that takes much memory: it grows faster than somebody works it off."""
        try:
            size: Any = self._client.memory_usage(stream) or 0
        except redis.exceptions.NoPermissionError:
            return
        if size > _LARGE_BYTES:
            text = f"it takes {size // 2**20} MiB of memory with {self._client.xlen(stream)} entries"
            yield warning(stream, f"{text}: what is added is not worked off as fast, or is never dealt with")

    def unread_since(self, stream: str, group: str) -> int | None:
        """When the first entry was added that this group has not read yet, in ms; None: it has read all."""
        try:
            groups: Any = self._client.xinfo_groups(stream)
        except redis.ResponseError as error:
            if is_no_group(error):
                return None
            raise
        read_up_to = next((one["last-delivered-id"] for one in groups if one["name"] == group.encode()), b"0-0")
        first: Any = self._client.xrange(stream, b"(" + read_up_to, count=1)
        return time_of(first[0][0]) if first else None

    def examine(self, stream: str, group: str) -> Iterator[Finding]:
        """A stream that entries are read from by this group."""
        try:
            facts: Any = self._client.xinfo_stream(stream)
            groups: Any = self._client.xinfo_groups(stream)
        except redis.ResponseError as error:
            if is_no_group(error):
                return
            raise
        generated = facts["last-generated-id"]
        self.newest_ms = max(self.newest_ms, time_of(generated))
        for one in groups:
            if one["name"] == group.encode():
                yield from self._held(stream, group)
                yield from self._lost(stream, group, one["last-delivered-id"], generated)

    def _held(self, stream: str, group: str) -> Iterator[Finding]:
        """Entries that a reader has held for long."""
        held: Any = self._client.xpending_range(stream, group, "-", "+", 10, idle=_HELD_MS)
        for entry in held:
            idle_ms, times = entry["time_since_delivered"], entry["times_delivered"]
            entry_id = entry["message_id"].decode()
            saga_id = self._saga_of(stream, entry_id)
            what = (
                f"was held by {entry['consumer'].decode(errors='replace')} for {spoken(idle_ms)} "
                f"(delivered {times} times): it takes long, or nobody is there to take it over"
            )
            if idle_ms >= HANDED_BACK_MS:
                what = "was handed back, and waits for somebody to take it over"
            named = "" if saga_id is None else f" of saga {saga_id}"
            yield warning(
                stream, f"{entry_id}{named} {what}", *([] if saga_id is None else [f"sagastream show {saga_id}"])
            )

    def _saga_of(self, stream: str, entry_id: str) -> str | None:
        """The saga that an entry names; None: none."""
        found: Any = self._client.xrange(stream, entry_id, entry_id)
        try:
            body = orjson.loads(found[0][1][b"body"])
        except (LookupError, orjson.JSONDecodeError):
            return None
        saga_id = body.get("saga_id") if isinstance(body, dict) else None
        return saga_id if isinstance(saga_id, str) and is_id(saga_id) else None

    def _lost(self, stream: str, group: str, read_up_to: bytes, generated: bytes) -> Iterator[Finding]:
        """Entries that the group has passed over and that nobody holds, and a group that is ahead of its stream."""
        lost = self._passed_over(stream, group, read_up_to)
        is_ahead = sort_key(read_up_to) > sort_key(generated)
        if not lost and not is_ahead:
            return
        ids = b", ".join(lost[:_NAMED]).decode() + (" …" if len(lost) > _NAMED else "")
        text = f"entries that nobody will read: {len(lost)} ({ids}); somebody has used XGROUP by hand"
        if is_ahead:
            text = f"the group {group} was set to {read_up_to.decode()}: nobody will read what comes; " + text
        if self._repair:
            batches = [lost[at : at + _AT_ONCE] for at in range(0, len(lost), _AT_ONCE)] or [[]]
            number = sum(self._put_back(keys=[stream], args=[group, *batch]) for batch in batches)
            yield repaired(stream, f"{text}; put back: {number}")
        else:
            yield problem(stream, text, "sagastream doctor --repair puts them back")

    def _passed_over(self, stream: str, group: str, read_up_to: bytes) -> list[bytes]:
        """The ids of the entries up to the one that the group has read, that nobody holds."""
        lost: list[bytes] = []
        first = b"-"
        while True:
            page: Any = self._client.xrange(stream, first, read_up_to, count=_PAGE)
            ids = [entry_id for entry_id, _ in page]
            if ids:
                held: Any = self._client.xpending_range(stream, group, ids[0], ids[-1], len(ids))
                lost += self._still_there(stream, {*ids} - {entry["message_id"] for entry in held})
            if len(ids) < _PAGE:
                return sorted(lost, key=sort_key)
            first = b"(" + ids[-1]

    def _still_there(self, stream: str, ids: set[bytes]) -> list[bytes]:
        """Those that were not answered meanwhile: an answer acknowledges and deletes in one go."""
        pipeline = self._client.pipeline(transaction=False)
        for entry_id in (ordered := sorted(ids)):
            pipeline.xrange(stream, entry_id, entry_id)
        return [entry_id for entry_id, there in zip(ordered, pipeline.execute(), strict=True) if there]
