"""Commit the decisions of a turn; lease the sagas that are due."""

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import IntEnum
from itertools import groupby
from typing import Final, NamedTuple, TypeVar

import redis

from sagastream.broker import exchange, partial, scripting, wire
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.nodes import node_of
from sagastream.broker.wire import execute, or_raise
from sagastream.core.indexing import index_names
from sagastream.core.messages import is_id
from sagastream.core.saga import Found, SagaState
from sagastream.orchestrator.change import Change, filled, swept
from sagastream.orchestrator.packing import ABORTED, COMPLETED, CommitArguments
from sagastream.store.indexes import names_in, written
from sagastream.store.keys import ENDED_KEPT_MS, Partition, StoreKeys

#: The longest argument of a script, in bytes, unless one saga alone needs a longer one. A server refuses an argument of
#: 512 MB. Many very large results could reach that, and each new attempt would be refused again. What one decision on a
#: saga sends has limits of its own: steps.MAX_CARRIED_BYTES, references.MAX_TOGETHER_BYTES, back.AT_ONCE_BYTES.
_LONGEST: Final = 64 << 20
#: About how many bytes of commands of sagas with an input are packed together, unless one saga alone sends more. To
#: pack and send them takes several times as much memory.
_MOST_SENT: Final = 16 << 20
#: How many nodes of a stream the server looks at to estimate its size.
_SAMPLES: Final = 16
#: How many bytes the streams of a partition take at most, about, beside what bounds them otherwise. Of the quarantine a
#: person is told what was dropped.
MOST_BYTES: Final = {"events": 64 << 20, "quarantine": 256 << 20}
#: … and at most an eighth of maxmemory, all partitions of a server together: they must not be what fills it. But each
#: stream may have at least this much.
_LEAST_SHARE: Final = 1 << 20


_T = TypeVar("_T")
#: By partition: why its changes were not written, since a key of it has another type.
Refused = dict[Partition, redis.RedisError]


class _Result(IntEnum):
    """What commit.lua returns for a change; its header says what each means."""

    LOST = 0
    WRITTEN = 1
    STUCK = 2
    FULL = 3
    MISPLACED = 4
    BEGUN_AGAIN = 5


class Leased(NamedTuple):
    """Sagas that were due, and are leased now."""

    sagas: list[tuple[Partition, str]]  # each with its partition
    wait_ms: int | None  # how long it is until the next one is due; None: no saga waits for a time
    away: Mapping[Partition, redis.RedisError]  # the partitions that do not answer, or are damaged


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
        self._kept_ms = {COMPLETED: retention_ms, ABORTED: aborted_ms}
        #: For how long every ended saga is kept; some are kept for longer, ABORTED ones or those of another worker.
        self.least_kept_ms = min(self._kept_ms.values())
        self._commit = scripting.Script("commit")
        self._due = scripting.Script("due")
        self._give_back = scripting.Script("give_back")
        #: By the number of a partition: until when the last call of `due` leased its sagas, and since when, ms by the
        #: broker's clock.
        self._leased: dict[int, tuple[int, int]] = {}

    def due(
        self,
        calls: Sequence[Sequence[Partition]],
        count: int,
        lease_ms: int,
        passed_over: Sequence[str] = (),
        *,
        now_ms: int | None = None,
    ) -> "Leased":
        """Lease up to `count` sagas of each partition that are due by the broker's clock, for `lease_ms`. If nothing is
        done about a leased saga in that time, it is due again.

        Args:
            calls: the partitions, in groups that may go together.
            passed_over: the ids of sagas to leave out.
            now_ms: the time; None: as the server says that has the partitions.
        """
        args = [count, lease_ms, "" if now_ms is None else now_ms, *passed_over]
        asked = [self._due.call([one.timers for one in together], args) for together in calls]
        found: list[tuple[Partition, str]] = []
        waits: list[int] = []
        away: dict[Partition, redis.RedisError] = {}
        for together, answer in zip(calls, self._asked(asked), strict=True):
            if isinstance(answer, redis.RedisError):
                if is_wrong_type(answer) and len(together) > 1:  # one of them is damaged
                    apart = [(one,) for one in together]
                    each = self.due(apart, count, lease_ms, passed_over, now_ms=now_ms)
                    found, away = found + each.sagas, away | dict(each.away)
                    waits += [] if each.wait_ms is None else [each.wait_ms]
                else:
                    away |= dict.fromkeys(together, answer)
                continue
            leased_until, *of_each = answer
            for partition, (wait_ms, *members) in zip(together, of_each, strict=True):
                self._leased[partition.number] = leased_until, leased_until - lease_ms
                waits.append(wait_ms)
                if members:
                    found += [(partition, saga_id) for saga_id in self._ids(partition, members)]
        return Leased(found, min((wait_ms for wait_ms in waits if wait_ms >= 0), default=None), away)

    def _asked(self, asked: Sequence[Exchange[_T]]) -> list[_T | redis.RedisError]:
        """What these return. If a node does not answer, or a key has another type, the error is among them."""
        found = exchange.run(self._client, exchange.each_of(asked))
        for one in found:
            if isinstance(one, redis.RedisError) and not partial.passes_over(self._client, one, or_damaged=True):
                raise one
        return found

    def _ids(self, partition: Partition, members: Sequence[bytes]) -> list[str]:
        """The sagas among these members of timers. sagastream did not write the others there, and no commit would
        remove them."""
        saga_ids = [text for member in members if is_id(text := member.decode(errors="backslashreplace"))]
        if len(saga_ids) < len(members):
            known = {saga_id.encode() for saga_id in saga_ids}
            self._client.zrem(partition.timers, *(member for member in members if member not in known))
        return saga_ids

    def give_back(self, due: Sequence[tuple[Partition, str]]) -> None:
        """Give up the lease on sagas that the last call of `due` leased: other workers may take them at once."""
        by_partition: dict[Partition, list[str]] = {}
        for partition, saga_id in due:
            by_partition.setdefault(partition, []).append(saga_id)
        calls = [
            self._give_back.call([partition.timers], [*self._leased[partition.number], *saga_ids])
            for partition, saga_ids in by_partition.items()
        ]
        partial.run_all(self._client, calls)  # of those whose node is away, the leases run out

    def drop_strangers(self, strangers: Sequence[tuple[Partition, str]]) -> None:
        """Remove from the timers sagas that do not belong to the partition. sagastream did not write them there."""
        pipeline = self._client.pipeline(transaction=False)
        for partition, saga_id in strangers:
            pipeline.zrem(partition.timers, saga_id)
        execute(pipeline)

    def trim(self, keys: StoreKeys, partitions: Sequence[Partition], maxmemory: int) -> dict[str, int]:
        """Drop the oldest entries of events and quarantine streams that take too many bytes, of these partitions.
        Returns how many, by stream. The rest follows with the next call, since the sizes are estimates. `maxmemory`: of
        a server, in bytes; 0: it has none."""
        # Each node of a cluster has memory of its own.
        servers = {one.number: node_of(self._client, one.requests) for one in keys.partitions}
        together = Counter(servers.values())
        streams = {}
        for one in partitions:
            share = max(_LEAST_SHARE, maxmemory // 8 // together[servers[one.number]])
            for what, most in MOST_BYTES.items():
                streams[getattr(one, what)] = min(most, share) if maxmemory else most
        sizes = wire.round_trip(self._client, [("MEMORY", "USAGE", stream, "SAMPLES", _SAMPLES) for stream in streams])
        dropped = {}
        for (stream, most), size in zip(streams.items(), sizes, strict=True):
            if isinstance(size, int) and size > most:  # else it is small, is not there, or this user may not ask
                length = self._client.xlen(stream)
                dropped[stream] = self._client.xtrim(stream, maxlen=length * most // size, approximate=False)
        return dropped

    def commit(self, changes: Sequence[Change], now_ms: int) -> tuple[list[Change], list[Change]]:
        """Write these changes in one script call, or in several if they are very large. They are of partitions that may
        go together (StoreKeys.in_calls), those of one after those of another.

        Returns two lists of those that were not written: those that lost the comparison (somebody has changed the saga
        since), and those that are stuck (one of the keys to which they append is not a stream, or takes no more).

        Raises redis.ResponseError if a key of a partition has another type, once those of the others are written.
        """
        if not changes:
            return [], []
        refused: Refused = {}
        found = exchange.run(self._client, self.committing(changes, now_ms, refused))
        if refused:
            raise next(iter(refused.values()))
        return found

    def committing(
        self,
        changes: Sequence[Change],
        now_ms: int,
        refused: Refused,
        *,
        may_set_right: bool = True,
    ) -> Exchange[tuple[list[Change], list[Change]]]:
        """See `commit`. `refused`: if a key of a partition has another type, nothing of the partition is written, and
        the error is put here. `may_set_right`: if a saga is not in the indexes in which it should be, that is set
        right, and its change is tried once more."""
        if len(changes) > 1 and _sent_bytes(changes) > _MOST_SENT:
            return (yield from self._by_halves(changes, now_ms, refused))
        arguments = CommitArguments(changes, now_ms, self._kept_ms)
        if len(changes) > 1 and len(arguments.args[0]) > _LONGEST:
            return (yield from self._by_halves(changes, now_ms, refused))
        try:
            results = yield from self._commit.call(arguments.keys, arguments.args)
        except redis.ResponseError as error:
            if not is_wrong_type(error):
                raise
            if changes[0].partition is not changes[-1].partition:
                return (yield from self._by_partition(changes, now_ms, refused))  # a key of one of them is damaged
            refused[changes[0].partition] = error
            return [], []
        if results.count(_Result.WRITTEN) == len(results):
            return [], []
        return (yield from self._not_just_written(changes, results, now_ms, refused, may_set_right=may_set_right))

    def _not_just_written(
        self,
        changes: Sequence[Change],
        results: Sequence[int],
        now_ms: int,
        refused: Refused,
        *,
        may_set_right: bool,
    ) -> Exchange[tuple[list[Change], list[Change]]]:
        """See `commit`, for a call with such results."""
        by_result: dict[int, list[Change]] = {}
        for change, result in zip(changes, results, strict=True):
            change.is_full = result == _Result.FULL
            by_result.setdefault(result, []).append(change)
        lost, misplaced = by_result.get(_Result.LOST, []), by_result.get(_Result.MISPLACED, [])
        stuck = by_result.get(_Result.STUCK, []) + by_result.get(_Result.FULL, [])
        wrong = [(change, change.before) for change in misplaced]
        wrong += [(change, change.written) for change in by_result.get(_Result.BEGUN_AGAIN, [])]
        if wrong and may_set_right:
            yield from self._set_right(wrong, now_ms, refused)
            if misplaced:
                more_lost, more_stuck = yield from self.committing(misplaced, now_ms, refused, may_set_right=False)
                return lost + more_lost, stuck + more_stuck
        return lost + misplaced, stuck

    def _set_right(self, those: Sequence[tuple[Change, Found]], now_ms: int, refused: Refused) -> Exchange[None]:
        """Have the sagas of these changes, each as it is now, in the indexes in which they should be, and in no others
        that `indexed` tells: those of an earlier saga with the same id, or those in which a worker of an earlier
        release has left it."""
        answers = yield [("HGET", change.partition.indexed, str(change.saga_id)) for change, _ in those]
        by_partition: dict[int, list[Change]] = {}
        for (change, state), answer in zip(those, answers, strict=True):
            if is_wrong_type(answer):
                refused[change.partition] = answer
                continue
            there = or_raise(answer)
            names = names_in(there or b"[]")
            right = by_partition.setdefault(change.partition.number, [])
            if not isinstance(state, SagaState):
                right.append(swept(change.partition, str(change.saga_id), names))
            elif (there or b"").decode(errors="replace") != written(index_names(state)):
                right.append(filled(change.partition, state, names))
        if changes := [change for right in by_partition.values() for change in right]:
            yield from self.committing(changes, now_ms, refused)

    def _by_halves(
        self, changes: Sequence[Change], now_ms: int, refused: Refused
    ) -> Exchange[tuple[list[Change], list[Change]]]:
        half = len(changes) // 2
        lost, stuck = yield from self.committing(changes[:half], now_ms, refused)
        more_lost, more_stuck = yield from self.committing(changes[half:], now_ms, refused)
        return lost + more_lost, stuck + more_stuck

    def _by_partition(
        self, changes: Sequence[Change], now_ms: int, refused: Refused
    ) -> Exchange[tuple[list[Change], list[Change]]]:
        """The changes of each partition by themselves, so that a damaged one holds up no other."""
        lost: list[Change] = []
        stuck: list[Change] = []
        for _, those in groupby(changes, lambda change: change.partition.number):
            more_lost, more_stuck = yield from self.committing(list(those), now_ms, refused)
            lost, stuck = lost + more_lost, stuck + more_stuck
        return lost, stuck


def _sent_bytes(changes: Sequence[Change]) -> int:
    """About how many bytes of commands these changes send, of sagas with an input: such a saga may send many at once,
    each with its input, and together they would take too much memory before they are even packed."""
    return sum([one.size for change in changes for one in change.commands if one.input is not None])
