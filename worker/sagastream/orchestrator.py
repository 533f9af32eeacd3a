"""The orchestrator's worker: reads requests and replies, decides, commits. Any number of them run side by side.

Two workers never undo each other's work: a commit names the version of the saga that it was decided on, and is
refused if another has moved the saga since. An entry is acknowledged in the commit of its effect, so a worker may die
anywhere: what it held is claimed by another.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from sagastream import keys, published
from sagastream.broker import BLOCK_MS, Broker, Outage
from sagastream.console import say
from sagastream.decision import Event, Found, Published, decide
from sagastream.messages import Reply
from sagastream.parsing import read_reply, read_request
from sagastream.saga import SagaState, SagaStatus
from sagastream.store import Change, Store
from sagastream.streams import BATCH, Entry, GroupReader, consumer_name

#: How long a worker may hold an entry before others take it over, in milliseconds. A turn takes a few; one that was
#: only slow loses the comparison and nothing else.
LEASE_MS: Final = 5_000
#: How often a worker says that a stream holds sagas up, in seconds.
_REPORT_EVERY_S: Final = 60.0

#: An entry, and what it says.
Letter = tuple[Entry, Event]


class Orchestrator:
    """One worker. `stop` may be set from anywhere: the running turn is finished, then `run` returns."""

    def __init__(self, broker: Broker, stop: threading.Event) -> None:
        self.name = f"worker {(consumer := consumer_name())}"
        self._broker = broker
        self._outage = Outage(broker, self.name, stop)
        self._store = Store(broker.client)
        # Replies first: what is begun is finished before more is begun.
        self._inbox = GroupReader(
            broker.client,
            streams=[keys.REPLIES, keys.REQUESTS],
            group=keys.ORCHESTRATOR_GROUP,
            consumer=consumer,
            lease_ms=LEASE_MS,
            on_join=broker.check,
        )
        self._replies_only = False
        self._report_at: dict[str, float] = {}

    def run(self) -> None:
        """Work until `stop` is set. Raises what waiting cannot mend (BrokerError, redis.AuthenticationError …)."""
        say(self.name, "started")
        self._outage.keep(self.turn, self._inbox.recover)
        self._outage.once(self._inbox.leave)

    def turn(self, block_ms: int = BLOCK_MS) -> int:
        """Read, load, decide, commit; the number of entries that were read."""
        entries = self._read(block_ms)
        letters = [_open(entry) for entry in entries]
        while letters:
            states, now_ms = self._store.load({event.saga_id for _, event in letters if event.saga_id is not None})
            changes = _fold(letters, states, now_ms, self._published(letters, states))
            lost, stuck = self._store.commit(changes, now_ms)
            self._report(stuck)
            again = {id(entry) for change in lost for entry in change.entries}
            letters = [letter for letter in letters if id(letter[0]) in again]
        return len(entries)

    def _report(self, stuck: Sequence[Change]) -> None:
        """Say which streams hold sagas up, once a while each. Their entries stay pending, and are tried again."""
        streams = {keys.commands(command.service) for change in stuck for command in change.commands}
        if any(change.quarantined for change in stuck):
            streams.add(keys.QUARANTINE)
        for stream in sorted(streams):
            if time.monotonic() >= self._report_at.get(stream, 0.0):
                self._report_at[stream] = time.monotonic() + _REPORT_EVERY_S
                say(self.name, f"{stream} is no stream: sagas that need it stand still, until it is one or is gone")

    def _read(self, block_ms: int) -> list[Entry]:
        entries = self._inbox.read(block_ms, only=keys.REPLIES if self._replies_only else None)
        self._replies_only = sum(entry.stream == keys.REPLIES for entry in entries) >= BATCH
        return entries

    def _published(self, letters: Sequence[Letter], states: Mapping[str, Found]) -> Published:
        """What the services publish that this turn may have to undo. Asked for anew each time it is needed:
        a service may have started, or changed its mind, a moment ago."""
        services: set[str] = set()
        for _, event in letters:
            state = states.get(event.saga_id or "")
            if not isinstance(event, Reply) or not isinstance(state, SagaState):
                continue
            if state.status is SagaStatus.COMPENSATING or event.type.endswith("_failed"):
                services |= {step.definition.service for step in state.steps}
        return published.read(self._broker.client, services) if services else {}


def _open(entry: Entry) -> Letter:
    return entry, read_reply(entry.fields) if entry.stream == keys.REPLIES else read_request(entry.fields)


def _fold(letters: Sequence[Letter], states: Mapping[str, Found], now_ms: int, published: Published) -> list[Change]:
    """Fold the letters over the states: one change a saga, however many letters it got."""
    changes: dict[str | None, Change] = {}
    for entry, event in letters:
        saga_id = event.saga_id
        if saga_id not in changes:
            before = None if saga_id is None else states[saga_id]
            changes[saga_id] = Change(saga_id=saga_id, before=before, after=before)
        change = changes[saga_id]
        change.add(entry, decide(change.after, event, now_ms, published))
    return list(changes.values())
