"""The orchestrator's worker: it reads requests, replies and due timers, decides, and commits. Any number of workers run
side by side.

Two workers never undo each other's work: a commit names the version of the saga on which it was decided, and is refused
if another worker has changed the saga since. An entry is acknowledged in the commit of its effect. So a worker may die
at any point: another worker claims what it held.
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
from sagastream.orchestrator.state_cache import StateCache
from sagastream.store import keys, layout, published, sagas
from sagastream.store.heartbeat import Heartbeat, Kind
from sagastream.telemetry import Log, Observer, guarded, runs

#: How long a worker may hold an entry before others take it over, in milliseconds. A turn takes a few milliseconds. If
#: a worker was only slow, its commit loses the comparison, and nothing else happens.
LEASE_MS: Final = 5_000
#: One turn reads at most this many entries of each stream.
_REPLIES_AND_REQUESTS: Final = {keys.REPLIES: BATCH, keys.REQUESTS: BATCH // 2}
_REPLIES_AND_A_FEW: Final = {keys.REPLIES: BATCH, keys.REQUESTS: 8}
_REPLIES_ONLY: Final = {keys.REPLIES: BATCH}
#: If a turn reads this many replies, the next one takes no requests. Sagas that begin together stay together, in one
#: batch from process to process, and a large batch costs little more than a small one. So sagas begin in large batches,
#: and seldom. With this value, if services keep up, 0 to 300 sagas are under way at a time, and half of the time more
#: than 130. Twice the value: 6 % more sagas a second, but each took twice as long. The replies of the last read count,
#: not those in the stream: some may be stuck there.
_MANY_REPLIES: Final = BATCH // 4
#: Of this many turns in a row with many replies, one takes a few requests, so that an operator's request never starves.
_A_FEW_EVERY: Final = 8
#: After this many messages are decided on, they are sent off to be committed, and meanwhile the next are decided on.
_PART: Final = 32
#: The least time between two looks for due sagas, in seconds. A timeout is late by at most one turn and this.
_LOOK_EVERY_S: Final = 0.02
#: How often a worker removes from `ended` the sagas that are no longer kept, in seconds.
_TIDY_EVERY_S: Final = 10.0

#: What a turn works on: an entry, and what it says. Without an entry: a saga is due.
Input = tuple[Entry | None, Event]


class Orchestrator:
    """One worker. Any number of them share the work, in one program or in many.

    `name` is its name in the log, which no other worker has.
    """

    def __init__(
        self,
        broker: Broker,
        stop: threading.Event,
        *,
        retention_ms: int = keys.ENDED_KEPT_MS,
        health: HealthFile | None = None,
        observer: Observer | None = None,
    ) -> None:
        """
        Args:
            broker: the worker's own; it is not closed.
            stop: any thread may set it. The running turn is finished, then `run` returns.
            retention_ms: how long a saga is kept after it has ended, in milliseconds.
            health: a file that is touched while the broker answers; None: there is none.
            observer: is told what happens.

        Raises TypeError if `observer` is not an Observer.
        """
        self._health = health
        self._observer = guarded(observer)
        self.name = f"worker {(consumer := consumer_name())}"
        self._broker = broker
        self._stop = stop
        self._outage = Outage(broker, self.name, stop, observer=self._observer)
        self._report = TurnReport(self.name, self._observer)
        self._store = Store(broker.client, retention_ms=retention_ms)
        # Replies first: sagas that have begun are finished before new ones begin.
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
        self._cache = StateCache()
        self._replies = 0  # how many the last read brought
        self._busy = 0  # how many reads in a row brought many
        self._look_at = self._tidy_at = 0.0

    def run(self) -> None:
        """Work in this thread until `stop` is set. Outages of the broker are waited out.

        Raises what waiting cannot mend, such as BrokerError or redis.AuthenticationError.
        """
        with runs("worker", self.name, self._observer):
            Log("worker", self.name).info("started")
            self._outage.keep(self.turn, self._inbox.recover)
            self._outage.once(self._inbox.leave)

    def turn(self, block_ms: int = BLOCK_MS) -> int:
        """Read, load, decide, commit. Returns how many entries were read."""
        entries = self._read(block_ms)
        inputs = [_open(entry) for entry in entries] + self._due(entries)
        states = self._cache.presume(inputs)
        while inputs:
            began = time.monotonic()
            now_ms = self._load(inputs, states)
            changes, lost, stuck = self._decide_and_commit(inputs, states, now_ms)
            self._cache.keep(changes, [*lost, *stuck])
            self._report.committed(
                changes, lost=lost, stuck=stuck, messages=len(inputs), duration_s=time.monotonic() - began
            )
            self._look_again(changes, now_ms)
            again = {change.saga_id for change in lost}
            inputs = [item for item in inputs if item[1].saga_id in again]
            states = {}
        return len(entries)

    def _load(self, inputs: Sequence[Input], states: dict[str, Found]) -> int:
        """Read the states that `states` does not have yet, into it. Returns the broker's time, in ms."""
        asked = {event.saga_id for _, event in inputs if event.saga_id is not None} - states.keys()
        if not asked:
            return self._inbox.now_ms
        loaded, now_ms = sagas.read(self._broker.client, asked)
        states |= loaded
        return now_ms

    def _read(self, block_ms: int) -> list[Entry]:
        """Read up to BATCH replies, and requests; few or none of those if the reads before brought many replies."""
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
        self, inputs: Sequence[Input], states: Mapping[str, Found], now_ms: int
    ) -> tuple[list[Change], list[Change], list[Change]]:
        """Decide and commit, part by part: while the broker works on one part, the next is decided on. The entries of
        the next turn are read along with the last part. Returns all changes; those of them that lost the comparison;
        and those that are stuck, see `Store.commit`."""
        changes: list[Change] = []
        left: list[Change] = []
        parts = _parts(inputs)
        published = self._published(inputs, states)
        closed = self._gate.closed(inputs)

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

    def _due(self, entries: Sequence[Entry]) -> list[Input]:
        """The sagas that are due. While replies may still be unread, none: if no worker ran for a time, those replies
        may be what the sagas wait for."""
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
        """Look for due sagas again as soon as the first of these is due. If another worker gives a saga an earlier
        time, this one sees that at its next look, at most half a second later."""
        states = [change.after for change in changes if isinstance(change.after, SagaState)]
        if times := [state.due_ms for state in states if state.due_ms is not None]:
            self._look_at = min(self._look_at, time.monotonic() + max((min(times) - now_ms) / 1000, _LOOK_EVERY_S))

    def _published(self, inputs: Sequence[Input], states: Mapping[str, Found]) -> Published:
        """What those services publish whose steps this turn may have to undo. It is read each time it is needed, since
        a service may have started, or published something else, a moment ago."""
        services: set[str] = set()
        for _, event in inputs:
            state = states.get(event.saga_id or "")
            if isinstance(state, SagaState) and may_undo(state, event):
                services |= {step.definition.service for step in state.steps}
        return published.read(self._broker.client, services) if services else {}


def _open(entry: Entry) -> Input:
    return entry, read_reply(entry.fields) if entry.stream == keys.REPLIES else read_request(entry.fields)


def _parts(inputs: Sequence[Input]) -> list[list[list[Input]]]:
    """The inputs in parts, each a list of the inputs of one saga after another. A part has _PART inputs, or a few more,
    since no saga is in two parts."""
    by_saga: dict[str | None, list[Input]] = {}
    for item in inputs:
        by_saga.setdefault(item[1].saga_id, []).append(item)
    parts: list[list[list[Input]]] = []
    room = 0
    for those in by_saga.values():
        if room <= 0:
            parts.append([])
            room = _PART
        parts[-1].append(those)
        room -= len(those)
    return parts


def _fold(
    part: Sequence[Sequence[Input]],
    states: Mapping[str, Found],
    now_ms: int,
    published: Published,
    closed: Mapping[int, str],
) -> list[Change]:
    """Decide on the inputs: one change for each saga, however many inputs it got. A saga gets no change if nothing
    changes and nothing is left to others."""
    changes: list[Change] = []
    for inputs in part:
        saga_id = inputs[0][1].saga_id
        before = None if saga_id is None else states[saga_id]
        change = Change(saga_id=saga_id, before=before, after=before)
        for entry, event in inputs:
            jitter = random.random()  # noqa: S311 - it is not a secret
            moment = Moment(now_ms=now_ms, published=published, jitter=jitter, closed=closed)
            change.add(entry, decide(change.after, event, moment))
        if change.left or not change.is_empty:
            changes.append(change)
    return changes
