"""What a reader of a consumer group holds itself, and reads again: it may not have received it, since an answer was
lost, or it could not do anything about it, since a node of a cluster was away.
"""

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from sagastream.broker import wire
from sagastream.broker.entries import BATCH, Entry, entries_of, report_deleted
from sagastream.broker.exchange import Exchange
from sagastream.broker.partial import by_slot, passes_over
from sagastream.broker.portions import Portion
from sagastream.broker.wire import or_raise
from sagastream.telemetry import Log

if TYPE_CHECKING:
    import redis

#: After which time it looks again at what it could do nothing about, in seconds.
_AGAIN_S: Final = 0.5


class OwnEntries:
    """The pending entries of one consumer, read page by page."""

    def __init__(self, client: "redis.Redis", *, group: str, consumer: str, log: Log) -> None:
        self._client = client
        self._reading = ("XREADGROUP", "GROUP", group, consumer, "COUNT")
        self._group = group
        self._log = log
        self._at: dict[str, bytes | str] = {}  # by stream: where the reading goes on
        self._later: dict[str, float] = {}  # by stream: when to begin to read it

    def __bool__(self) -> bool:
        """Whether there may be more of them that it is time to read."""
        if self._later:
            self._begin_what_is_due()
        return bool(self._at)

    def again(self, streams: Iterable[str]) -> None:
        """Read what it holds of these streams, from the first entry; and of no others."""
        self._later.clear()
        self._at = dict.fromkeys(streams, "0")

    def again_later(self, streams: Iterable[str]) -> None:
        """Read what it holds of these streams as well, in a moment: an outage may last."""
        self._later |= dict.fromkeys(streams, time.monotonic() + _AGAIN_S)

    def page(self, portion: Portion) -> Exchange[list[Entry]]:
        """The next page. What cannot be read for now, since a node is away, is read later."""
        asked = by_slot(self._client, list(self._at)[: portion.count])
        count = portion.share(sum(map(len, asked)), BATCH)
        answers = yield [
            (*self._reading, count, "STREAMS", *streams, *(self._at[one] for one in streams)) for streams in asked
        ]
        entries: list[Entry] = []
        deleted: list[wire.Words] = []
        for streams, answer in zip(asked, answers, strict=True):
            if passes_over(self._client, answer):
                self.again_later(streams)
                answer = None  # noqa: PLW2901
            after = {name.decode(): page for name, page in or_raise(answer) or () if page}
            entries += entries_of(or_raise(answer), again=True)
            for stream in streams:
                deleted += self._goes_on(stream, after.get(stream, ()))
        if deleted:
            yield deleted
        return entries

    def _goes_on(self, stream: str, page: Sequence[Any]) -> list[wire.Words]:
        """This page was read. Returns what acknowledges those that somebody has deleted."""
        if not page:
            del self._at[stream]
            return []
        self._at[stream] = page[-1][0]
        if not (gone := [entry_id for entry_id, fields in page if not fields]):
            return []
        report_deleted(self._log, stream, gone)
        return [("XACK", stream, self._group, *gone)]

    def _begin_what_is_due(self) -> None:
        now = time.monotonic()
        for stream in [stream for stream, at in self._later.items() if at <= now]:
            del self._later[stream]
            self._at[stream] = "0"
