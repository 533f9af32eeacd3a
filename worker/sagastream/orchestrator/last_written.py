"""What a worker has written last: if the store has it no more, it has lost writes."""

from collections.abc import Collection, Sequence
from typing import Final

from sagastream.broker.exchange import Exchange
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import LOOKED_AT, missing

#: How many changes of each partition of a cluster are remembered: a node loses its last ones first.
_OF_EACH: Final = 4


class LastWritten:
    """The last changes that one worker has written: of a store or, on a cluster, of each partition."""

    def __init__(self, kept_ms: int) -> None:
        """`kept_ms`: how long after its end a saga cannot have expired yet."""
        self._kept_ms = kept_ms
        self._all: Sequence[Change] = ()
        self._by_number: dict[int, Sequence[Change]] = {}

    def note(self, changes: Sequence[Change], *, is_apart: bool) -> None:
        """These were written, all of them. `is_apart`: on a cluster."""
        if not is_apart:
            self._all = changes[-LOOKED_AT:]
            return
        by_number: dict[int, list[Change]] = {}
        for change in changes:
            by_number.setdefault(change.partition.number, []).append(change)
        self._by_number |= {number: those[-_OF_EACH:] for number, those in by_number.items()}

    def forget(self, numbers: Collection[int]) -> None:
        """What is in the partitions with these numbers is of another moment."""
        self._all = ()
        for number in numbers:
            self._by_number.pop(number, None)

    def missing(self, now_ms: int, number: int | None) -> Exchange[list[str]]:
        """Which of these sagas are not there as they were written; in one partition, or (None) in the store."""
        of_it = self._all if number is None else self._by_number.get(number, ())
        return missing(of_it, now_ms, self._kept_ms)
