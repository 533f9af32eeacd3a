"""Commit the decisions of a turn; lease the sagas that are due."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis

from sagastream.broker import exchange, scripting, wire
from sagastream.broker.exchange import Exchange
from sagastream.broker.wire import execute, or_raise
from sagastream.core.indexing import index_names
from sagastream.core.messages import Fields, is_id
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.sending import GivenUp
from sagastream.orchestrator.change import Change
from sagastream.store import saga_hash
from sagastream.store.columns import iso
from sagastream.store.indexes import written
from sagastream.store.keys import ENDED_KEPT_MS, EVENTS_KEPT, ORCHESTRATOR_GROUP, Partition, StoreKeys

#: The longest argument of a script, in bytes, unless one saga alone needs a longer one. A server refuses an argument of
#: 512 MB. Many very large results could reach that, and each new attempt would be refused again. What one decision on a
#: saga sends has limits of its own: steps.MAX_CARRIED_BYTES, references.MAX_TOGETHER_BYTES, back.AT_ONCE_BYTES.
_LONGEST: Final = 64 << 20
#: About how many bytes of commands of sagas with an input are packed together, unless one saga alone sends more. To
#: pack and send them takes several times as much memory.
_MOST_SENT: Final = 16 << 20
#: What stands in place of the score of a saga that has ended.
_COMPLETED: Final = "ended"
_ABORTED: Final = "aborted"
_ENDS: Final = {SagaStatus.COMPLETED: _COMPLETED, SagaStatus.ABORTED: _ABORTED}
#: … of one of which nothing is told any more; and in place of its score in an index that it leaves.
_SWEPT: Final = "swept"
_GONE: Final = "gone"
#: How many elements a change has that gives nothing up.
_WITHOUT_GIVEN_UP: Final = 8
#: How many nodes of a stream the server looks at to estimate its size.
_SAMPLES: Final = 16
#: How many bytes the streams of a partition take at most, about, beside what bounds them otherwise. Of the quarantine a
#: person is told what was dropped.
MOST_BYTES: Final = {"events": 64 << 20, "quarantine": 256 << 20}
#: … and at most an eighth of maxmemory, all partitions together: they must not be what fills a store. But so much.
_LEAST_SHARE: Final = 1 << 20
#: How many of the sagas that were committed last are remembered, for `missing`.
LOOKED_AT: Final = 16


class Store:
    """What a worker writes about sagas."""

    def __init__(
        self,
        client: "redis.Redis",
        *,
        retention_ms: int = ENDED_KEPT_MS,
        aborted_retention_ms: int | None = None,
    ) -> None:
        """`retention_ms`: how long a saga is kept after it has ended. `aborted_retention_ms`: the same of one that is
        ABORTED; None: as long as any other."""
        self._client = client
        aborted_ms = retention_ms if aborted_retention_ms is None else aborted_retention_ms
        self._kept_ms = {_COMPLETED: retention_ms, _ABORTED: aborted_ms}
        #: For how long every ended saga is kept; some are kept for longer, ABORTED ones or those of another worker.
        self.least_kept_ms = min(self._kept_ms.values())
        self._commit = scripting.Script("commit")
        self._due = scripting.Script("due")
        self._give_back = scripting.Script("give_back")
        #: Until when the last call of `due` leased the sagas of each partition, ms by the broker's clock.
        self._leased_until: dict[Partition, int] = {}

    def due(
        self, partitions: Sequence[Partition], count: int, lease_ms: int, passed_over: Sequence[str] = ()
    ) -> tuple[list[tuple[Partition, str]], int | None]:
        """Lease up to `count` sagas of each partition that are due by the broker's clock, for `lease_ms`. If nothing is
        done about a leased saga in that time, it is due again. `passed_over`: the ids of sagas to leave out.

        Returns the sagas, each with its partition, and how long it is until the next saga is due, in ms (None: no saga
        waits for a time).
        """
        calls = [self._due.call([partition.timers], [count, lease_ms, *passed_over]) for partition in partitions]
        found: list[tuple[Partition, str]] = []
        waits: list[int] = []
        answers = exchange.run(self._client, exchange.all_of(calls))
        for partition, (wait_ms, leased_until, *members) in zip(partitions, answers, strict=True):
            self._leased_until[partition] = leased_until
            saga_ids = [text for member in members if is_id(text := member.decode(errors="backslashreplace"))]
            if len(saga_ids) < len(members):  # sagastream did not write them there, and no commit would remove them
                known = {saga_id.encode() for saga_id in saga_ids}
                self._client.zrem(partition.timers, *(member for member in members if member not in known))
            found += [(partition, saga_id) for saga_id in saga_ids]
            waits.append(wait_ms)
        return found, min((wait_ms for wait_ms in waits if wait_ms >= 0), default=None)

    def give_back(self, due: Sequence[tuple[Partition, str]]) -> None:
        """Give up the lease on sagas that the last call of `due` leased: other workers may take them at once."""
        by_partition: dict[Partition, list[str]] = {}
        for partition, saga_id in due:
            by_partition.setdefault(partition, []).append(saga_id)
        calls = [
            self._give_back.call([partition.timers], [self._leased_until[partition], *saga_ids])
            for partition, saga_ids in by_partition.items()
        ]
        exchange.run(self._client, exchange.all_of(calls))

    def drop_strangers(self, strangers: Sequence[tuple[Partition, str]]) -> None:
        """Remove from the timers sagas that do not belong to the partition. sagastream did not write them there."""
        pipeline = self._client.pipeline(transaction=False)
        for partition, saga_id in strangers:
            pipeline.zrem(partition.timers, saga_id)
        execute(pipeline)

    def trim(self, keys: StoreKeys, maxmemory: int) -> dict[str, int]:
        """Drop the oldest entries of events and quarantine streams that take too many bytes. Returns how many, by
        stream. The rest follows with the next call, since the sizes are estimates. `maxmemory`: of the server, in
        bytes; 0: it has none."""
        share = max(_LEAST_SHARE, maxmemory // 8 // len(keys.partitions)) if maxmemory else max(MOST_BYTES.values())
        streams = {getattr(one, what): min(most, share) for one in keys.partitions for what, most in MOST_BYTES.items()}
        sizes = wire.round_trip(self._client, [("MEMORY", "USAGE", stream, "SAMPLES", _SAMPLES) for stream in streams])
        dropped = {}
        for (stream, most), size in zip(streams.items(), sizes, strict=True):
            if isinstance(size, int) and size > most:  # else it is small, is not there, or this user may not ask
                length = self._client.xlen(stream)
                dropped[stream] = self._client.xtrim(stream, maxlen=length * most // size, approximate=False)
        return dropped

    def commit(self, changes: Sequence[Change], now_ms: int) -> tuple[list[Change], list[Change]]:
        """Write these changes, all of one partition, in one script call, or in several if they are very large.

        Returns two lists of those that were not written: those that lost the comparison (somebody has changed the saga
        since), and those that are stuck (one of the keys to which they append is not a stream, or takes no more).
        """
        return exchange.run(self._client, self.committing(changes, now_ms)) if changes else ([], [])

    def committing(self, changes: Sequence[Change], now_ms: int) -> Exchange[tuple[list[Change], list[Change]]]:
        """See `commit`."""
        if len(changes) > 1 and _sent_bytes(changes) > _MOST_SENT:
            return (yield from self._by_halves(changes, now_ms))
        arguments = _CommitArguments(changes[0].partition, changes, now_ms, self._kept_ms)
        if len(changes) > 1 and len(arguments.args[0]) > _LONGEST:
            return (yield from self._by_halves(changes, now_ms))
        results = yield from self._commit.call(arguments.keys, arguments.args)
        lost = [change for change, result in zip(changes, results, strict=True) if result == 0]
        stuck = [change for change, result in zip(changes, results, strict=True) if result >= 2]
        if 3 in results:
            for change, result in zip(changes, results, strict=True):
                change.is_full = result == 3
        return lost, stuck

    def _by_halves(self, changes: Sequence[Change], now_ms: int) -> Exchange[tuple[list[Change], list[Change]]]:
        half = len(changes) // 2
        lost, stuck = yield from self.committing(changes[:half], now_ms)
        more_lost, more_stuck = yield from self.committing(changes[half:], now_ms)
        return lost + more_lost, stuck + more_stuck


def _sent_bytes(changes: Sequence[Change]) -> int:
    """About how many bytes of commands these changes send, of sagas with an input: such a saga may send many at once,
    each with its input, and together they would take too much memory before they are even packed."""
    return sum([one.size for change in changes for one in change.commands if one.input is not None])


def missing(committed: Sequence[Change]) -> Exchange[list[str]]:
    """Which of these sagas the store no longer has as they were committed, as far as can be told."""
    written = [
        (change.partition.saga(state.saga_id), state)
        for change in committed
        if isinstance(state := change.written, SagaState)
    ]
    gone: list[str] = []
    if not written:
        return gone
    answers = yield [("HMGET", key, "version", "updated_at") for key, _ in written]
    for (_, state), answer in zip(written, answers, strict=True):
        version, updated_at = or_raise(answer)
        there = int(version) if version is not None and version.isdigit() else 0
        is_back = there < state.version or (there == state.version and updated_at != iso(state.updated_ms).encode())
        if is_back and (there or not state.ended):  # an ended saga may have expired
            gone.append(f"saga {state.saga_id} was at version {state.version}, and is at {there}")
    return gone


class _CommitArguments:
    """Packs changes for commit.lua; the header of that file describes the order."""

    def __init__(
        self, partition: Partition, changes: Sequence[Change], now_ms: int, kept_ms: Mapping[str, int]
    ) -> None:
        self._streams = {partition.timers: 1, partition.ended: 2, partition.events: 3}
        self._indexes = {partition.begun: 1}
        self._begun_changes = False
        self._hashes: list[str] = []
        packed = [self._packed(change) for change in changes]
        words = [len(self._streams), ORCHESTRATOR_GROUP, EVENTS_KEPT, now_ms, kept_ms, packed]
        indexes: list[str] = []
        if len(self._indexes) > 1:
            indexes = [*self._indexes, partition.indexed]
        elif self._begun_changes:
            indexes = [partition.begun]
        if indexes:
            words.append(len(self._indexes))
        self.keys = [*self._streams, *indexes, *self._hashes]
        self.args = [wire.message_pack(words)]

    def _packed(self, change: Change) -> list[Any]:
        before = change.before if isinstance(change.before, SagaState) else None
        after = change.after if isinstance(change.after, SagaState) else None
        fields = saga_hash.changed_fields(before, after)
        appends: list[Any] = []
        partition = change.partition
        for command in change.commands:
            appends += self._append(partition.commands(command.service), command.fields())
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
            _SWEPT
            if change.swept is not None and not change.fill
            else _score(before, after)
            if fields or change.rearm
            else "",
            change.saga_id or "",
            fields,
            appends,
            entries,
        ]
        if before is None and fields:
            self._begun_changes = True
        if change.given_up:
            packed.append([word for one in change.given_up for word in self._given_up(partition, one)])
        if places := self._places(change, before, after):
            packed += ([], places) if len(packed) == _WITHOUT_GIVEN_UP else (places,)
            packed.append(_told(change, after))
        return packed

    def _places(self, change: Change, before: SagaState | None, after: SagaState | None) -> list[int | str]:
        """What changes of the saga's places in the indexes."""
        partition = change.partition
        was, now = index_names(before), index_names(after)
        if change.fill or change.swept is not None:
            self._begun_changes = True
            score = _GONE if after is None else str(after.begun_ms)
            leaves = [name for name in change.swept or () if name not in now]
            places: list[int | str] = [1, score]
            for name in now:
                places += (self._index(partition.index(name)), score)
            for name in leaves:
                places += (self._index(partition.index(name)), _GONE)
            return places
        if was == now or after is None:
            return []
        places = []
        for name in was:
            if name not in now:
                places += (self._index(partition.index(name)), _GONE)
        for name in now:
            if name not in was:
                places += (self._index(partition.index(name)), str(after.begun_ms))
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


def _timer(change: Change, before: SagaState | None, after: SagaState | None) -> str:
    """What the script does about its timer."""
    if change.swept is None or change.rearm:
        return _score(before, after)
    return "" if change.fill else _SWEPT


def _told(change: Change, after: SagaState | None) -> str:
    """What `indexed` says of the saga."""
    names = index_names(after) if change.fill or change.swept is None else ()
    return written(names)


def _score(before: SagaState | None, after: SagaState | None) -> str:
    """The saga's new score in timers; commit.lua lists the words that are not scores."""
    if after is None:
        return "gone"
    if (end := _ENDS.get(after.status)) is not None:
        # If it ended before, only a late reply is noted.
        return "" if before is not None and before.status in _ENDS and before is not after else end
    due_ms = after.due_ms
    return "+inf" if due_ms is None else str(due_ms)
