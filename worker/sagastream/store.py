"""Sagas in the broker: read their hashes, commit a turn's decisions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from sagastream import keys, saga_hash, scripts
from sagastream.decision import Decision, Published
from sagastream.errors import CorruptSaga
from sagastream.messages import Command, Notice, is_id
from sagastream.saga import SagaState
from sagastream.streams import Entry


@dataclass(slots=True)
class Change:
    """All that one turn does to one saga (or, where `saga_id` is None, about entries that name no saga)."""

    saga_id: str | None
    before: SagaState | None
    after: SagaState | None
    compare: bool = True  # False: the saga cannot be read, so there is nothing to compare
    commands: list[Command] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    quarantined: list[tuple[Entry, str]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)  # to be acknowledged

    def add(self, entry: Entry, decision: Decision) -> None:
        """Fold one more decision over those before it."""
        self.after = decision.state
        self.commands += decision.commands
        self.notices += decision.notices
        self.entries.append(entry)
        if decision.quarantine is not None:
            self.quarantined.append((entry, decision.quarantine))


class Store:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._commit = scripts.load(client, "commit")

    def load(self, saga_ids: Collection[str]) -> tuple[dict[str, SagaState | CorruptSaga | None], int]:
        """The states of these sagas (None: there is none), and the broker's time in ms; one round trip."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.time()
        for saga_id in saga_ids:
            pipeline.hgetall(keys.saga(saga_id))
        time, *answers = pipeline.execute(raise_on_error=False)
        states: dict[str, SagaState | CorruptSaga | None] = {}
        for saga_id, answer in zip(saga_ids, answers, strict=True):
            if isinstance(answer, redis.ResponseError) and str(answer).startswith("WRONGTYPE"):
                states[saga_id] = CorruptSaga(f"the key of saga {saga_id} holds no hash")
            else:
                states[saga_id] = saga_hash.read(saga_id, _or_raise(answer))
        seconds, micros = _or_raise(time)
        return states, seconds * 1000 + micros // 1000

    def published(self, services: Collection[str]) -> Published:
        """What these services publish; a service that published nothing is left out, and so is a compensation whose
        name no command could carry."""
        pipeline = self._client.pipeline(transaction=False)
        for service in services:
            pipeline.hgetall(keys.published(service))
        return {
            service: {
                command.decode(errors="replace"): undo.decode() or None
                for command, undo in commands.items()
                if not undo or is_id(undo.decode(errors="replace"))
            }
            for service, commands in zip(services, pipeline.execute(), strict=True)
            if commands
        }

    def commit(self, changes: Sequence[Change], now_ms: int) -> list[Change]:
        """Write these changes, all in one script call; the ones that lost the comparison are returned."""
        arguments = _CommitArguments(now_ms)
        for change in changes:
            arguments.add(change)
        results = self._commit(keys=arguments.keys, args=arguments.args)
        return [change for change, result in zip(changes, results, strict=True) if not result]


class _CommitArguments:
    """Packs changes as commit.lua takes them; its header has the order."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._streams = {keys.TIMERS: 1, keys.ENDED: 2, keys.EVENTS: 3}
        self._hashes: list[str] = []
        self._changes: list[tuple[Change, list[str | bytes | int]]] = []

    def add(self, change: Change) -> None:
        appends = [self._command(command) for command in change.commands]
        appends += [self._notice(notice) for notice in change.notices]
        appends += [self._quarantine(entry, reason) for entry, reason in change.quarantined]
        fields = saga_hash.changed_fields(change.before, change.after)
        timer = ""
        if fields and change.after is not None and not (change.before and change.before.ended):
            timer = "ended" if change.after.ended else "+inf" if change.after.parked else str(change.after.updated_ms)
        packed: list[str | bytes | int] = [
            str(change.before.version) if change.before else "",
            timer,
            self._now_ms,
            change.saga_id or "",
            len(fields),
            *fields,
            len(appends),
        ]
        for append in appends:
            packed += append
        for entry in change.entries:
            packed += (self._stream(entry.stream), entry.id)
        self._changes.append((change, packed))

    @property
    def keys(self) -> list[str]:
        hashes = [keys.saga(change.saga_id) for change, _ in self._changes if change.saga_id and change.compare]
        return [*self._streams, *hashes]

    @property
    def args(self) -> list[str | bytes | int]:
        fixed = len(self._streams)
        args: list[str | bytes | int] = [keys.ORCHESTRATOR_GROUP, keys.EVENTS_KEPT, fixed, len(self._changes)]
        hashes = fixed
        for change, packed in self._changes:
            index = 0
            if change.saga_id and change.compare:
                index = hashes = hashes + 1
            args += (len(packed) + 1, index, *packed)
        return args

    def _stream(self, key: str) -> int:
        return self._streams.setdefault(key, len(self._streams) + 1)

    def _command(self, command: Command) -> list[str | bytes | int]:
        fields: list[str | bytes | int] = [
            "body", command.body(), "attempt", command.attempt, "begun_ms", command.begun_ms
        ]  # fmt: skip
        if command.compensating:
            fields += ("params", command.params)
            if command.result is not None:
                fields += ("result", command.result)
        return [self._stream(keys.commands(command.service)), len(fields), *fields]

    def _notice(self, notice: Notice) -> list[str | bytes | int]:
        fields: list[str | bytes | int] = ["kind", notice.kind, "body", notice.body]
        for name in ("saga_id", "service", "request_id"):
            if (value := getattr(notice, name)) is not None:
                fields += (name, value)
        return [self._streams[keys.EVENTS], len(fields), *fields]

    def _quarantine(self, entry: Entry, reason: str) -> list[str | bytes | int]:
        fields = entry.quarantined(reason)
        return [self._stream(keys.QUARANTINE), len(fields), *fields]


def _or_raise(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer
