"""What a consumer group gives as new, and has given before.

If somebody deletes a group (XGROUP DESTROY) or sets it back (XGROUP SETID), it gives again, as new, what it has given
already: a command that a process works on, or one that stands for an undo that is owed. So all that was in the stream
by then counts as delivered before. Pure.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from sagastream.broker.entries import Entry

#: The id of an entry, as numbers.
EntryId = tuple[int, int]
_NONE: Final[EntryId] = (0, 0)
#: An entry that is further ahead of the clock was not given its id by the server: it says nothing of those after it.
_A_DAY_MS: Final = 24 * 3600 * 1000


class Redelivered:
    """What one reader knows of how far the group was in each of its streams."""

    def __init__(self) -> None:
        self._reached: dict[str, EntryId] = {}  # by stream: the newest entry that this reader was given as new
        self._until_ms: dict[str, int] = {}  # by stream: what was added until then was delivered before

    def all_until(self, streams: Iterable[str], now_ms: int) -> None:
        """Count all that stands in these streams as delivered before: their group was deleted."""
        self._until_ms |= dict.fromkeys(streams, now_ms)

    def before(self, seen: Mapping[str, EntryId]) -> Mapping[str, EntryId]:
        """By stream: how far the group was, to be asked before a reading is sent: other threads read too.

        `seen`: the same, as the process saw it besides.
        """
        reached = self._reached
        return {stream: max(seen.get(stream, _NONE), reached.get(stream, _NONE)) for stream in {*seen, *reached}}

    def looked_at(
        self, answers: Iterable[Any], entries: list[Entry], now_ms: int, before: Mapping[str, EntryId]
    ) -> list[Entry]:
        """The entries that were given as new, each marked if it was delivered before.

        Args:
            answers: of XREADGROUP, from which the entries come.
            before: what `before` returned when they were asked for.
        """
        for answer in answers:
            for name, page in answer or ():
                if page:
                    stream = name.decode()
                    reached = before.get(stream, _NONE)
                    self._look_at(stream, _numbers(page[0][0]), reached, now_ms)
                    self._reached = self._reached | {stream: _numbers(page[-1][0])}
        if not self._until_ms:
            return entries
        return [
            replace(entry, again=True) if entry.added_ms <= self._until_ms.get(entry.stream, -1) else entry
            for entry in entries
        ]

    def _look_at(self, stream: str, first: EntryId, reached: EntryId, now_ms: int) -> None:
        """New entries come in their order, after all that was given before. Otherwise the group was set back."""
        if first <= reached and reached[0] - now_ms < _A_DAY_MS:
            self._until_ms[stream] = max(now_ms, reached[0])
        elif first[0] > self._until_ms.get(stream, first[0]):
            del self._until_ms[stream]  # all that stood there then was given again


def _numbers(entry_id: bytes) -> EntryId:
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)
