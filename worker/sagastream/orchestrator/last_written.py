"""What a worker has written since it last looked: if the store has it no more, it has lost writes."""

from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

from sagastream.broker.exchange import Exchange
from sagastream.broker.wire import or_raise
from sagastream.core.saga import SagaState
from sagastream.core.steps import STANDING
from sagastream.orchestrator.change import Change
from sagastream.store.columns import iso
from sagastream.store.written_since import WrittenSince

#: How many changes of one turn are remembered: of a store or, on a cluster, of each partition. What is lost are whole
#: turns, nearly always, and of one that is cut in two the last changes are lost first.
_OF_EACH: Final = 4


class Written(NamedTuple):
    """A saga as it was written."""

    key: str  # of its hash
    saga_id: str
    version: int
    updated_ms: int
    ended: bool
    asks: bool  # whether it asks a service which effects stand: such a saga is deleted once it is answered


class LastWritten:
    """The last changes of each turn of one worker, since it last looked how far the store is: of a store or, on a
    cluster, of each partition."""

    def __init__(self, kept_ms: int) -> None:
        """`kept_ms`: how long after its end a saga cannot have expired yet."""
        self._kept_ms = kept_ms
        self._written: WrittenSince[Written] = WrittenSince()

    def note(self, changes: Sequence[Change], *, is_apart: bool) -> None:
        """These were written, all of them. `is_apart`: on a cluster."""
        if not is_apart:
            self._written.note(None, [*_written(changes[-_OF_EACH:])])
            return
        by_number: dict[int, list[Change]] = {}
        for change in changes:
            by_number.setdefault(change.partition.number, []).append(change)
        for number, those in by_number.items():
            self._written.note(number, [*_written(those[-_OF_EACH:])])

    def forget(self, numbers: Collection[int]) -> None:
        """What is in the partitions with these numbers is of another moment."""
        self._written.forget(numbers)

    def missing(self, now_ms: int, number: int | None, is_another: bool) -> Exchange[list[str]]:
        """Which of these sagas are not there as they were written; in one partition, or (None) in the store. See
        lineage.Missing."""
        written = self._written.all(number) if is_another else self._written.last(number)
        gone = yield from missing(written, now_ms, self._kept_ms)
        self._written.looked(number)
        return gone


def _written(changes: Sequence[Change]) -> Iterator[Written]:
    for change in changes:
        if isinstance(state := change.written, SagaState):
            key, ended = change.partition.saga(state.saga_id), state.ended
            asks = ended and any(step.definition.transaction == STANDING for step in state.steps)
            yield Written(key, state.saga_id, state.version, state.updated_ms, ended, asks)


def missing(written: Sequence[Written], now_ms: int, kept_ms: int) -> Exchange[list[str]]:
    """Which of these sagas, the oldest first, the store no longer has as they were written, as far as can be told.
    `kept_ms`: how long after its end a saga cannot have expired yet."""
    gone: list[str] = []
    furthest: dict[str, Written] = {}
    for one in written:
        before = furthest.setdefault(one.key, one)
        if one.version > before.version:
            furthest[one.key] = one
        elif one.version < before.version or one.updated_ms != before.updated_ms:
            # It was written to the new master since.
            gone.append(f"saga {one.saga_id} was at version {before.version}, and was written at {one.version} then")
    if not furthest:
        return gone
    answers = yield [("HMGET", key, "version", "updated_at") for key in furthest]
    for one, answer in zip(furthest.values(), answers, strict=True):
        version, updated_at = or_raise(answer)
        there = int(version) if version is not None and version.isdigit() else 0
        is_back = there < one.version or (there == one.version and updated_at != iso(one.updated_ms).encode())
        may_be_gone = one.ended and (one.asks or now_ms - one.updated_ms >= kept_ms)
        if is_back and (there or not may_be_gone):
            gone.append(f"saga {one.saga_id} was at version {one.version}, and is at {there}")
    return gone
