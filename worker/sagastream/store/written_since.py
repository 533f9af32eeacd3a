"""What a process wrote since it looked how far the store is: if any of it is not there, the store has lost writes.

A process looks about once a second. A cluster may have a new master for some of its slots between two looks, and then
what the process wrote last is there, since it was written to the new master. What is lost was written before. So all is
looked for that was written since the last look.
"""

from collections.abc import Collection, Hashable, Sequence
from typing import Final, Generic, TypeVar

_T = TypeVar("_T", bound=Hashable)

#: How many of the last ones are looked for while the server has the same history.
_LAST: Final = 16
#: How many are remembered of each partition: more than one process writes there between two looks.
_MOST: Final = 2048


class WrittenSince(Generic[_T]):
    """What one process wrote, by the number of the partition (None: of a store on one server), the oldest first. One
    thread may note while another looks."""

    def __init__(self) -> None:
        self._since: dict[int | None, list[_T]] = {}  # since the last look
        self._before: dict[int | None, list[_T]] = {}  # between the last two looks; older, if nothing was written since

    def note(self, number: int | None, written: Sequence[_T]) -> None:
        """These were written now."""
        since = self._since.setdefault(number, [])
        since += written
        if len(since) > 2 * _MOST:
            del since[:-_MOST]

    def last(self, number: int | None) -> list[_T]:
        """The last few that were written in a partition; None: in all."""
        return self.all(number)[-_LAST:]

    def all(self, number: int | None) -> list[_T]:
        """All that was written in a partition since the look before the last one; None: in all."""
        numbers = [*{*self._before, *self._since}] if number is None else [number]
        return [one for each in numbers for those in (self._before, self._since) for one in those.get(each, ())]

    def looked(self, number: int | None) -> None:
        """The process has looked whether it is there. What was noted during the look is looked for once more: it may
        have been written after the look."""
        for each in [*self._since] if number is None else [number]:
            if since := self._since.pop(each, None):
                self._before[each] = since

    def forget(self, numbers: Collection[int]) -> None:
        """What is in the partitions with these numbers is of another moment."""
        for number in (None, *numbers):
            self._since.pop(number, None)
            self._before.pop(number, None)
