"""Changes as commit.lua takes them."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from sagastream.broker import wire
from sagastream.core.commands import Command
from sagastream.core.indexing import index_names, stays_out
from sagastream.core.messages import Fields
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.sending import GivenUp
from sagastream.orchestrator.change import Change
from sagastream.store import saga_hash
from sagastream.store.columns import iso
from sagastream.store.indexes import written
from sagastream.store.keys import EVENTS_KEPT, ORCHESTRATOR_GROUP, Partition

#: What stands in place of the score of a saga that has ended.
COMPLETED: Final = "ended"
ABORTED: Final = "aborted"
_ENDS: Final = {SagaStatus.COMPLETED: COMPLETED, SagaStatus.ABORTED: ABORTED}
#: … of one of which nothing is told any more; and in place of its score in an index that it leaves.
_SWEPT: Final = "swept"
_GONE: Final = "gone"
#: At most so many commands are looked up in one call.
_MOST_LOOKED_UP: Final = 512
#: How many elements a change has that gives nothing up.
_WITHOUT_GIVEN_UP: Final = 8
#: How many elements a list for commit.lua has whose changes are in no indexes.
_WITHOUT_INDEXES: Final = 6


class CommitArguments:
    """Changes, those of one partition after those of another, packed; the header of commit.lua describes the order."""

    def __init__(self, changes: Sequence[Change], now_ms: int, kept_ms: Mapping[str, int]) -> None:
        counts = _counts(changes)
        partitions = [partition for partition, _ in counts]
        self._streams: dict[str, int] = {}
        for one in partitions:
            for key in (one.timers, one.ended, one.events):
                self._streams[key] = len(self._streams) + 1
        self._indexes = {one.begun: number for number, one in enumerate(partitions, 1)}
        self._begun_changes = self._tells = False
        self._hashes: list[str] = []
        self._records: dict[str, tuple[list[str], list[int]]] = {}  # see the header of commit.lua
        self._looked_up = 0
        packed = [self._packed(change, number) for number, change in enumerate(changes, 1)]
        words = [len(self._streams), ORCHESTRATOR_GROUP, EVENTS_KEPT, now_ms, kept_ms, packed]
        indexes: list[str] = []
        if self._tells or self._begun_changes:
            indexes = list(self._indexes)
            words.append(len(indexes))
        if self._tells:
            indexes += [one.indexed for one in partitions]
            words.append(1)
        if len(counts) > 1:
            words += [0, False][len(words) - _WITHOUT_INDEXES :]
            words.append([number for _, number in counts])
        self.keys = [*self._streams, *indexes, *self._hashes]
        if self._records:
            words += [0, False, False][len(words) - _WITHOUT_INDEXES :]
            words.append([[key, *asked] for key, asked in enumerate(self._records.values(), len(self.keys) + 1)])
            self.keys += self._records
        self.args = [wire.message_pack(words)]

    def _packed(self, change: Change, number: int) -> list[Any]:
        before = change.before if isinstance(change.before, SagaState) else None
        after = change.after if isinstance(change.after, SagaState) else None
        fields = saga_hash.changed_fields(before, after)
        appends: list[Any] = []
        partition = change.partition
        for command in change.commands:
            appends += self._append(partition.commands(command.service), command.fields())
            if command.is_first and self._looked_up < _MOST_LOOKED_UP:
                self._look_up(partition, command, number, len(appends))
        for notice in change.notices:
            appends += self._append(partition.events, notice.fields())
        for entry, reason in change.quarantined:
            appends += self._append(partition.quarantine, entry.quarantined(reason))
        entries: list[int | str] = []
        streams = self._streams
        for entry in change.entries:
            entries += (streams.setdefault(entry.stream, len(streams) + 1), entry.id.decode())
        packed = [
            self._hash(change.key),
            str(before.version) if before else "",
            iso(before.updated_ms) if before else "",
            _score(before, after) if fields else _timer_of_unmoved(change, before, after),
            change.saga_id or "",
            fields,
            appends,
            entries,
        ]
        if before is None and fields:
            self._begun_changes = True
        if change.given_up:
            packed.append([word for one in change.given_up for word in self._given_up(partition, one)])
        if fields and stays_out(before, after):
            return packed
        if places := self._places(partition, before, after) if fields else self._places_of_unmoved(change):
            packed += ([], *places) if len(packed) == _WITHOUT_GIVEN_UP else places
            self._tells = True
        return packed

    def _look_up(self, partition: Partition, command: Command, number: int, place: int) -> None:
        """Have a command of change `number` looked up, whose fields stand at `place` of what that change appends."""
        self._looked_up += 1
        fields, places = self._records.setdefault(partition.done(command.service, command.begun_ms), ([], []))
        fields += (command.record, command.tombstone)
        places += (number, place)

    def _places(self, partition: Partition, before: SagaState | None, after: SagaState | None) -> list[Any]:
        """What changes of the places of a saga that moves: them, and what is told of it then and before. Empty: nothing
        does."""
        was, now = index_names(before), index_names(after)
        if was == now or after is None:
            return []
        leaves, joins = [name for name in was if name not in now], [name for name in now if name not in was]
        return [self._scores(partition, joins, str(after.begun_ms), leaves), written(now), written(was)]

    def _places_of_unmoved(self, change: Change) -> list[Any]:
        """The same of a saga that stays as it is."""
        partition, state = change.partition, change.after
        if change.is_swept:
            return [[self._index(partition.begun), _GONE, *self._scores(partition, (), "", change.leaves)], ""]
        if not (isinstance(state, SagaState) and (change.fill or change.rearm)):
            return []
        names = index_names(state)
        if not change.fill:
            return [[], written(names), written(names)]
        score = str(state.begun_ms)
        leaves = [name for name in change.leaves if name not in names]
        return [[self._index(partition.begun), score, *self._scores(partition, names, score, leaves)], written(names)]

    def _scores(self, partition: Partition, joins: Sequence[str], score: str, leaves: Sequence[str]) -> list[int | str]:
        places: list[int | str] = []
        for name in joins:
            places += (self._index(partition.index(name)), score)
        for name in leaves:
            places += (self._index(partition.index(name)), _GONE)
        return places

    def _index(self, key: str) -> int:
        return self._indexes.setdefault(key, len(self._indexes) + 1)

    def _given_up(self, partition: Partition, one: GivenUp) -> tuple[int, str, int, Any]:
        stream = self._streams.setdefault(partition.commands(one.service), len(self._streams) + 1)
        return stream, one.service, one.sent_ms, wire.raw(one.beginning)

    def _append(self, key: str, fields: Fields) -> tuple[int, list[Any]]:
        words: list[Any] = []
        for name, value in fields.items():
            words += (name, wire.raw(value) if isinstance(value, bytes) else value)
        return self._streams.setdefault(key, len(self._streams) + 1), words

    def _hash(self, key: str | None) -> int:
        if key is None:
            return 0
        self._hashes.append(key)
        return len(self._hashes)


def _counts(changes: Sequence[Change]) -> list[tuple[Partition, int]]:
    """The partitions of these changes, in order, each with how many of them it has."""
    if changes[0].partition is changes[-1].partition:
        return [(changes[0].partition, len(changes))]
    return [(one, len(list(those))) for one, those in groupby([change.partition for change in changes])]


def _timer_of_unmoved(change: Change, before: SagaState | None, after: SagaState | None) -> str:
    """What becomes of its timer if the saga stays as it is."""
    if change.is_swept:
        return _SWEPT
    return _score(before, after) if change.is_gone or change.rearm else ""


def _score(before: SagaState | None, after: SagaState | None) -> str:
    """The saga's new score in timers; commit.lua lists the words that are not scores."""
    if after is None:
        return "gone"
    if (end := _ENDS.get(after.status)) is not None:
        # If it ended before, only a late reply is noted.
        return "" if before is not None and before.status in _ENDS and before is not after else end
    due_ms = after.due_ms
    return "+inf" if due_ms is None else str(due_ms)
