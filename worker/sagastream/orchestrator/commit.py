"""Sagas in the broker: read their hashes, commit a turn's decisions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis
from msgspec.structs import replace

from sagastream.broker import exchange, scripting, wire
from sagastream.broker.connection import execute, or_raise
from sagastream.broker.exchange import Exchange
from sagastream.broker.group_reader import Entry
from sagastream.core.messages import Command, Fields, Notice
from sagastream.core.moves import Decision, Found
from sagastream.core.saga import SagaState
from sagastream.errors import CorruptSaga
from sagastream.store import keys, saga_hash

#: The longest argument of a script, in bytes: a server takes none of 512 MB, which many very large results would
#: come to, again and again.
_LONGEST: Final = 64 << 20
#: How many ended sagas are looked at in one round trip.
_PAGE: Final = 1000


@dataclass(slots=True)
class Change:
    """All that one turn does to one saga (or, where `saga_id` is None, about entries that name no saga)."""

    saga_id: str | None
    before: Found
    after: Found
    commands: list[Command] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    quarantined: list[tuple[Entry, str]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)  # to be acknowledged
    rearm: bool = False  # set its place in timers and ended right, whether it moves or not

    def add(self, entry: Entry | None, decision: Decision) -> None:
        """Fold one more decision over those before it. `entry`: what it answers; None: its time had come."""
        self.after = decision.state
        self.commands += decision.commands
        self.notices += decision.notices
        if entry is None:
            self.rearm = decision.state is None  # somebody has deleted its hash: nothing waits for it any more
            return
        self.entries.append(entry)
        if decision.quarantine is not None:
            self.quarantined.append((entry, decision.quarantine))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return self.after is self.before and not self.entries and not self.notices and not self.rearm

    @property
    def written(self) -> Found:
        """What the saga is once this is committed."""
        if self.after is self.before or not isinstance(self.after, SagaState):
            return self.after
        before = self.before if isinstance(self.before, SagaState) else None
        return replace(self.after, version=saga_hash.next_version(before))

    @property
    def key(self) -> str | None:
        """The hash that is compared; there is none to compare where the saga cannot be read."""
        return None if self.saga_id is None or isinstance(self.before, CorruptSaga) else keys.saga(self.saga_id)


class Store:
    def __init__(self, client: "redis.Redis", *, retention_ms: int = keys.ENDED_KEPT_MS) -> None:
        """`retention_ms`: how long a saga is kept once it has ended."""
        self._client = client
        self._retention_ms = retention_ms
        self._commit = scripting.Script("commit")
        self._due = scripting.load(client, "due")

    def load(self, saga_ids: Collection[str]) -> tuple[dict[str, Found], int]:
        """The states of these sagas (None: there is none), and the broker's time in ms; one round trip."""
        return exchange.run(self._client, load(saga_ids))

    def due(self, count: int, lease_ms: int) -> tuple[list[str], int | None]:
        """Lease up to `count` sagas whose time has come, by the broker's clock; how long it is until the next one, in
        ms, None: nothing waits for a time. What is leased comes up again where nothing is done about it."""
        wait_ms, *saga_ids = self._due(keys=[keys.TIMERS], args=[count, lease_ms])
        return [saga_id.decode(errors="backslashreplace") for saga_id in saga_ids], None if wait_ms < 0 else wait_ms

    def forget_ended(self) -> None:
        """Strike the sagas off the list of ended ones whose hash has expired."""
        _, now_ms = self.load([])
        while page := self._client.zrangebyscore(keys.ENDED, "-inf", now_ms - self._retention_ms, 0, _PAGE):
            saga_ids: Any = page
            pipeline = self._client.pipeline(transaction=False)
            for saga_id in saga_ids:
                pipeline.exists(keys.saga(saga_id.decode(errors="backslashreplace")))
            # Some may be kept for longer, by another worker's word.
            gone = [saga_id for saga_id, there in zip(saga_ids, execute(pipeline), strict=True) if not there]
            if gone:
                self._client.zrem(keys.ENDED, *gone)
            if len(saga_ids) < _PAGE or not gone:
                break

    def commit(self, changes: Sequence[Change], now_ms: int) -> tuple[list[Change], list[Change]]:
        """Write these changes, all in one script call, unless they are very large.

        Returns those that lost the comparison, and those that cannot be written for what stands where one of their
        streams should be.
        """
        return exchange.run(self._client, self.committing(changes, now_ms)) if changes else ([], [])

    def committing(self, changes: Sequence[Change], now_ms: int) -> Exchange[tuple[list[Change], list[Change]]]:
        """See commit."""
        arguments = _CommitArguments(changes, now_ms, self._retention_ms)
        if len(arguments.args[0]) > _LONGEST and len(changes) > 1:
            half = len(changes) // 2
            lost, stuck = yield from self.committing(changes[:half], now_ms)
            more_lost, more_stuck = yield from self.committing(changes[half:], now_ms)
            return lost + more_lost, stuck + more_stuck
        results = yield from self._commit.call(arguments.keys, arguments.args)
        lost = [change for change, result in zip(changes, results, strict=True) if result == 0]
        stuck = [change for change, result in zip(changes, results, strict=True) if result == 2]
        return lost, stuck


def load(saga_ids: Collection[str]) -> Exchange[tuple[dict[str, Found], int]]:
    """See Store.load."""
    commands: list[wire.Words] = [("TIME",), *(("HGETALL", keys.saga(saga_id)) for saga_id in saga_ids)]
    time, *answers = yield commands
    states: dict[str, Found] = {}
    for saga_id, answer in zip(saga_ids, answers, strict=True):
        if isinstance(answer, redis.ResponseError) and str(answer).startswith("WRONGTYPE"):
            states[saga_id] = CorruptSaga(f"the key of saga {saga_id} holds no hash")
        else:
            words = iter(or_raise(answer))
            states[saga_id] = saga_hash.read(saga_id, dict(zip(words, words, strict=True)))
    return states, wire.milliseconds(or_raise(time))


class _CommitArguments:
    """Packs changes as commit.lua takes them; its header has the order."""

    def __init__(self, changes: Sequence[Change], now_ms: int, retention_ms: int) -> None:
        self._streams = {keys.TIMERS: 1, keys.ENDED: 2, keys.EVENTS: 3}
        self._hashes: list[str] = []
        packed = [self._packed(change) for change in changes]
        self.keys = [*self._streams, *self._hashes]
        self.args = [
            wire.message_pack(
                [len(self._streams), keys.ORCHESTRATOR_GROUP, keys.EVENTS_KEPT, now_ms, retention_ms, packed]
            )
        ]

    def _packed(self, change: Change) -> list[Any]:
        before = change.before if isinstance(change.before, SagaState) else None
        after = change.after if isinstance(change.after, SagaState) else None
        fields = saga_hash.changed_fields(before, after)
        appends: list[Any] = []
        for command in change.commands:
            appends += self._append(keys.commands(command.service), command.fields())
        for notice in change.notices:
            appends += self._append(keys.EVENTS, notice.fields())
        for entry, reason in change.quarantined:
            appends += self._append(keys.QUARANTINE, entry.quarantined(reason))
        entries: list[int | str] = []
        for entry in change.entries:
            entries += (self._stream(entry.stream), entry.id.decode())
        return [
            self._hash(change.key),
            str(before.version) if before else "",
            saga_hash.iso(before.updated_ms) if before else "",
            _score(before, after) if fields or change.rearm else "",
            change.saga_id or "",
            fields,
            appends,
            entries,
        ]

    def _append(self, key: str, fields: Fields) -> tuple[int, list[Any]]:
        words: list[Any] = []
        for name, value in fields.items():
            words += (name, wire.raw(value) if isinstance(value, bytes) else value)
        return self._stream(key), words

    def _stream(self, key: str) -> int:
        return self._streams.setdefault(key, len(self._streams) + 1)

    def _hash(self, key: str | None) -> int:
        if key is None:
            return 0
        self._hashes.append(key)
        return len(self._hashes)


def _score(before: SagaState | None, after: SagaState | None) -> str:
    """What becomes of the saga's score in timers."""
    if after is None:
        return "gone"
    if before is not None and before.ended and before is not after:
        return ""  # it ended long ago, and hears of a late reply
    if after.ended:
        return "ended"
    due_ms = after.due_ms
    return "+inf" if due_ms is None else str(due_ms)
