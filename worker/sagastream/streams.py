"""Reading a stream as a member of a consumer group, so that no entry is lost and a dead reader's are taken over.

An entry that was delivered stays *pending* until it is acknowledged, which only the scripts that commit its effect
do. A reader therefore looks in three places: at entries of its own that it was given but may not have received (the
answer was lost with a connection), at those of readers that have held them for too long, and at new ones.
"""

import os
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis

from sagastream.console import say

#: Entries of one stream that one reading takes at the most.
BATCH: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a stream."""

    stream: str
    id: bytes
    fields: dict[bytes, bytes]
    redelivered: bool = False  # it was delivered before, to whomever: its effect may have happened

    def quarantined(self, reason: str) -> list[str | bytes | int]:
        """The fields and values of this entry in the quarantine."""
        fields: list[str | bytes | int] = ["reason", reason, "stream", self.stream, "entry_id", self.id]
        for name, value in self.fields.items():
            fields += (b"entry." + name, value)
        return fields


def consumer_name() -> str:
    """A name for this process in its consumer groups, never used twice: a namesake would take its entries."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class GroupReader:
    """Reads streams as one consumer of a group. `lease_ms`: how long others may hold an entry before it is ours."""

    def __init__(self, client: "redis.Redis", streams: Sequence[str], group: str, consumer: str, lease_ms: int) -> None:
        self.streams = list(streams)
        self._client = client
        self._group = group
        self._consumer = consumer
        self._lease_ms = lease_ms
        self._recovering = True
        self._next_claim = 0.0

    def recover(self) -> None:
        """Have the next reading begin with the own pending entries: an answer may have been lost."""
        self._recovering = True

    def read(self, block_ms: int, *, count: int = BATCH, only: str | None = None) -> list[Entry]:
        """The entries that are to be worked on now: own pending ones, abandoned ones, or new ones.

        Args:
            block_ms: how long to wait for new ones where there are none.
            count: how many of each stream at the most.
            only: read new entries of this stream alone.
        """
        try:
            if self._recovering:
                self._create_groups()
                entries = self._own_pending()
                self._recovering = False
                if entries:
                    return entries
            if time.monotonic() >= self._next_claim:
                self._next_claim = time.monotonic() + self._lease_ms / 2000
                if entries := self._claim_abandoned():
                    return entries
            wanted: dict[Any, Any] = dict.fromkeys([only] if only else self.streams, ">")
            answer = self._client.xreadgroup(self._group, self._consumer, wanted, count=count, block=block_ms)
            return _entries(answer, redelivered=False)
        except redis.ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            say(self._consumer, f"a stream or group of {', '.join(self.streams)} was deleted; made it anew")
            self._recovering = True
            return []

    def _create_groups(self) -> None:
        for stream in self.streams:
            try:
                # From 0: what was sent before anybody listened is for this group too.
                self._client.xgroup_create(stream, self._group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    def _own_pending(self) -> list[Entry]:
        """Everything this consumer holds. Reading it also renews the lease on it."""
        entries: list[Entry] = []
        for stream in self.streams:
            after: bytes | str = "0"
            while True:
                answer: Any = self._client.xreadgroup(self._group, self._consumer, {stream: after}, count=BATCH)
                page = answer[0][1] if answer else []
                if not page:
                    break
                after = page[-1][0]
                deleted = [entry_id for entry_id, fields in page if not fields]
                if deleted:
                    self._report_deleted(stream, deleted)
                    self._client.xack(stream, self._group, *deleted)
                entries += _entries([(stream.encode(), page)], redelivered=True)
        return entries

    def _claim_abandoned(self) -> list[Entry]:
        entries: list[Entry] = []
        for stream in self.streams:
            cursor: bytes | str = "0-0"
            while True:
                cursor, page, *deleted = self._client.xautoclaim(
                    stream, self._group, self._consumer, self._lease_ms, cursor, count=BATCH
                )
                if deleted and deleted[0]:
                    self._report_deleted(stream, deleted[0])
                entries += _entries([(stream.encode(), page)], redelivered=True)
                if cursor == b"0-0":  # only this is the end: a page may be empty before it
                    break
        return entries

    def _report_deleted(self, stream: str, ids: Sequence[bytes]) -> None:
        names = ", ".join(entry_id.decode() for entry_id in ids[:5])
        say(self._consumer, f"{len(ids)} entries of {stream} were deleted before they were answered: {names}")


def _entries(answer: Any, *, redelivered: bool) -> list[Entry]:
    return [
        Entry(stream=stream.decode(), id=entry_id, fields=fields, redelivered=redelivered)
        for stream, page in answer or ()
        for entry_id, fields in page
        if fields
    ]
