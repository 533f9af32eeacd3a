"""The orchestrator's worker: reads requests, replies and what is due, decides, commits. Any number of them run side by
side.

Two workers never undo each other's work: a commit names the version of the saga that it was decided on, and is
refused if another has moved the saga since. An entry is acknowledged in the commit of its effect, so a worker may die
anywhere: what it held is claimed by another.
"""

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from sagastream.broker import exchange
from sagastream.broker.connection import BLOCK_MS, Broker
from sagastream.broker.exchange import Exchange
from sagastream.broker.group_reader import BATCH, Entry, GroupReader, consumer_name
from sagastream.broker.outage import Outage
from sagastream.core.decision import Event, decide, may_undo
from sagastream.core.messages import Due
from sagastream.core.parsing import read_reply, read_request
from sagastream.core.saga import Found, SagaState
from sagastream.core.sending import Published
from sagastream.core.transitions import Moment
from sagastream.health import HealthFile
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.gate import Gate
from sagastream.orchestrator.report import TurnReport
from sagastream.orchestrator.state_cache import Memory
from sagastream.store import keys, layout, published, sagas
from sagastream.store.heartbeat import Heartbeat, Kind
from sagastream.telemetry import Log, Observer, guarded, runs

#: How long a worker may hold an entry before others take it over, in milliseconds. A turn takes a few; one that was
#: only slow loses the comparison and nothing else.
LEASE_MS: Final = 5_000
#: What one turn takes at the most.
_REPLIES_AND_REQUESTS: Final = {keys.REPLIES: BATCH, keys.REQUESTS: BATCH // 2}
_REPLIES_AND_A_FEW: Final = {keys.REPLIES: BATCH, keys.REQUESTS: 8}
_REPLIES_ONLY: Final = {keys.REPLIES: BATCH}
#: With how many replies a turn has its work, so that the next one takes no requests. Sagas that begin together go on
#: together, in one batch from process to process, and a batch costs much the same for few and for many: so they begin
#: in large batches, and seldom. Where services keep up, 0 to 300 are under way at a time by this, half of the time more
#: than 130. Twice as many brought 6 % more sagas, and took twice the time for each. The replies of the last reading
#: count, not those in the stream: some may be stuck there.
_MANY_REPLIES: Final = BATCH // 4
#: Of how many turns in a row with many replies one takes a few requests, so that an operator's is never left.
_A_FEW_EVERY: Final = 8
#: How many messages are decided on before they are committed, and more are decided on meanwhile.
_PART: Final = 32
#: How often a worker looks for what is due, in seconds, at the most: a timeout is late by no more than a turn and this.
_LOOK_EVERY_S: Final = 0.02
#: How often it strikes the sagas off the index that are kept no longer, in seconds.
_TIDY_EVERY_S: Final = 10.0

#: An entry, and what it says. No entry: the time of a saga has come.
Letter = tuple[Entry | None, Event]


class Orchestrator:
    """One worker. `stop` may be set from anywhere: the running turn is finished, then `run` returns."""

    def __init__(
        self,
        broker: Broker,
        stop: threading.Event,
        *,
        retention_ms: int = keys.ENDED_KEPT_MS,
        health: HealthFile | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`retention_ms`: how long a saga is kept once it has ended."""
        self._health = health
        self._observer = guarded(observer)
        self.name = f"worker {(consumer := consumer_name())}"
        self._broker = broker
        self._stop = stop
        self._outage = Outage(broker, self.name, stop, observer=self._observer)
        self._report = TurnReport(self.name, self._observer)
        self._store = Store(broker.client, retention_ms=retention_ms)
        # Replies first: what is begun is finished before more is begun.
        self._inbox = GroupReader(
            broker.client,
            streams=[keys.REPLIES, keys.REQUESTS],
            group=keys.ORCHESTRATOR_GROUP,
            consumer=consumer,
            lease_ms=LEASE_MS,
            on_join=partial(layout.check, broker),
            heartbeat=Heartbeat(consumer, Kind.WORKER),
        )
        self._gate = Gate(broker.client, self._store, self._inbox, consumer=consumer, who=self.name)
        self._memory = Memory()
        self._replies = 0  # that the last reading brought
        self._busy = 0  # how many readings in a row brought many
        self._look_at = self._tidy_at = 0.0

    def run(self) -> None:
        """Work until `stop` is set. Raises what waiting cannot mend (BrokerError, redis.AuthenticationError …)."""
        with runs("worker", self.name, self._observer):
            Log("worker", self.name).info("started")
            self._outage.keep(self.turn, self._inbox.recover)
            self._outage.once(self._inbox.leave)

    def turn(self, block_ms: int = BLOCK_MS) -> int:
        """Read, load, decide, commit; the number of entries that were read."""
        entries = self._read(block_ms)
        letters = [_open(entry) for entry in entries] + self._due(entries)
        states = self._memory.presume(letters)
        while letters:
            began = time.monotonic()
            now_ms = self._load(letters, states)
            changes, lost, stuck = self._decide_and_commit(letters, states, now_ms)
            self._memory.keep(changes, [*lost, *stuck])
            self._report.committed(
                changes, lost=lost, stuck=stuck, messages=len(letters), duration_s=time.monotonic() - began
            )
            self._look_again(changes, now_ms)
            again = {change.saga_id for change in lost}
            letters = [letter for letter in letters if letter[1].saga_id in again]
            states = {}
        return len(entries)

    def _load(self, letters: Sequence[Letter], states: dict[str, Found]) -> int:
        """Read the states that are not there yet; the broker's time, in ms."""
        asked = {event.saga_id for _, event in letters if event.saga_id is not None} - states.keys()
        if not asked:
            return self._inbox.now_ms
        loaded, now_ms = sagas.read(self._broker.client, asked)
        states |= loaded
        return now_ms

    def _read(self, block_ms: int) -> list[Entry]:
        """The replies that wait, up to BATCH; and requests, few where the readings before brought many replies."""
        wait_ms = max(1, min(block_ms, int((self._look_at - time.monotonic()) * 1000)))
        entries = self._inbox.read(wait_ms, self._wanted)
        if self._health is not None:
            self._health.beat(time.monotonic())
        self._replies = sum(entry.stream == keys.REPLIES for entry in entries)
        self._busy = self._busy + 1 if self._replies >= _MANY_REPLIES else 0
        return entries

    @property
    def _wanted(self) -> Mapping[str, int]:
        """How many entries of each stream are to be read."""
        if not self._busy:
            return _REPLIES_AND_REQUESTS
        return _REPLIES_ONLY if self._busy % _A_FEW_EVERY else _REPLIES_AND_A_FEW

    def _decide_and_commit(
        self, letters: Sequence[Letter], states: Mapping[str, Found], now_ms: int
    ) -> tuple[list[Change], list[Change], list[Change]]:
        """Decide and commit, part by part: while the broker works on one, the next is decided on. With the last, read
        on. Returns all changes, those of them that lost the comparison, and those that are stuck."""
        changes: list[Change] = []
        left: list[Change] = []
        parts = _parts(letters)
        published = self._published(letters, states)
        closed = self._gate.closed(letters)

        def commits() -> Iterator[Exchange[tuple[list[Change], list[Change]]]]:
            for part in parts:
                decided = _fold(part, states, now_ms, published, closed)
                if leaving := [change for change in decided if change.left]:
                    left.extend(leaving)
                    decided = [change for change in decided if not change.is_empty]
                if decided:
                    changes.extend(decided)
                    committing = self._store.committing(decided, now_ms)
                    reads_on = part is parts[-1] and not self._stop.is_set()
                    yield self._inbox.read_along(committing, self._wanted) if reads_on else committing

        refused = exchange.run_each(self._broker.client, commits())
        lost = [change for those, _ in refused for change in those]
        stuck = [change for _, those in refused for change in those]
        if left:
            self._gate.leave(left)
        return changes, lost, stuck

    def _due(self, entries: Sequence[Entry]) -> list[Letter]:
        """The sagas whose time has come. None while there are replies that nobody has read: after a time in which no
        worker ran they may be just what is waited for."""
        if self._replies >= BATCH or any(entry.again for entry in entries) or time.monotonic() < self._look_at:
            return []
        saga_ids, wait_ms = self._store.due(BATCH, LEASE_MS, self._gate.passed_over())
        wait_s = BLOCK_MS / 1000 if wait_ms is None else min(wait_ms, BLOCK_MS) / 1000
        self._look_at = time.monotonic() + (0.0 if len(saga_ids) == BATCH else max(wait_s, _LOOK_EVERY_S))
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + _TIDY_EVERY_S
            self._store.forget_ended()
        return [(None, Due(saga_id=saga_id)) for saga_id in saga_ids]

    def _look_again(self, changes: Sequence[Change], now_ms: int) -> None:
        """Look for what is due when the first of these sagas is. Of one that another worker moves we learn at the next
        look, half a second later at the most."""
        states = [change.after for change in changes if isinstance(change.after, SagaState)]
        if times := [state.due_ms for state in states if state.due_ms is not None]:
            self._look_at = min(self._look_at, time.monotonic() + max((min(times) - now_ms) / 1000, _LOOK_EVERY_S))

    def _published(self, letters: Sequence[Letter], states: Mapping[str, Found]) -> Published:
        """What the services publish that this turn may have to undo. Asked for anew each time it is needed:
        a service may have started, or changed its mind, a moment ago."""
        services: set[str] = set()
        for _, event in letters:
            state = states.get(event.saga_id or "")
            if isinstance(state, SagaState) and may_undo(state, event):
                services |= {step.definition.service for step in state.steps}
        return published.read(self._broker.client, services) if services else {}


def _open(entry: Entry) -> Letter:
    return entry, read_reply(entry.fields) if entry.stream == keys.REPLIES else read_request(entry.fields)


def _parts(letters: Sequence[Letter]) -> list[list[list[Letter]]]:
    """The letters, those of one saga together, and _PART of them in a part, or more: no saga is in two."""
    by_saga: dict[str | None, list[Letter]] = {}
    for letter in letters:
        by_saga.setdefault(letter[1].saga_id, []).append(letter)
    parts: list[list[list[Letter]]] = []
    room = 0
    for those in by_saga.values():
        if room <= 0:
            parts.append([])
            room = _PART
        parts[-1].append(those)
        room -= len(those)
    return parts


def _fold(
    part: Sequence[Sequence[Letter]],
    states: Mapping[str, Found],
    now_ms: int,
    published: Published,
    closed: Mapping[int, str],
) -> list[Change]:
    """Fold the letters over the states: one change a saga, however many letters it got. None where nothing changes and
    nothing is left to others."""
    changes: list[Change] = []
    for letters in part:
        saga_id = letters[0][1].saga_id
        before = None if saga_id is None else states[saga_id]
        change = Change(saga_id=saga_id, before=before, after=before)
        for entry, event in letters:
            jitter = random.random()  # noqa: S311 - no secret
            moment = Moment(now_ms=now_ms, published=published, jitter=jitter, closed=closed)
            change.add(entry, decide(change.after, event, moment))
        if change.left or not change.is_empty:
            changes.append(change)
    return changes
