"""The orchestrator's worker: reads requests and replies, decides, commits. Any number of them run side by side.

Two workers never undo each other's work: a commit names the version of the saga that it was decided on, and is
refused if another has moved the saga since. An entry is acknowledged in the commit of its effect, so a worker may die
anywhere: what it held is claimed by another.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import redis

from sagastream import keys
from sagastream.broker import BLOCK_MS, Broker, Outage
from sagastream.console import say
from sagastream.decision import Decision, Published, decide, refuse
from sagastream.errors import CorruptSaga, MalformedMessage
from sagastream.messages import Begin, Code, Reply, decode, is_id, parse_begin, parse_reply, type_of
from sagastream.saga import SagaState, SagaStatus
from sagastream.store import Change, Store
from sagastream.streams import BATCH, Entry, GroupReader, consumer_name

#: How long a worker may hold an entry before others take it over, in milliseconds. A turn takes a few; one that was
#: only slow loses the comparison and nothing else.
LEASE_MS: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """An entry that was read: what it says, or what is to be done about one that says nothing."""

    entry: Entry
    message: Begin | Reply | None = None
    verdict: Decision | None = None  # of an entry that cannot be understood


class Orchestrator:
    """One worker. `stop` may be set from anywhere: the running turn is finished, then `run` returns."""

    def __init__(self, broker: Broker, stop: threading.Event) -> None:
        self.name = consumer_name()
        self._broker = broker
        self._stop = stop
        self._store = Store(broker.client)
        # Replies first: what is begun is finished before more is begun.
        self._inbox = GroupReader(
            broker.client, [keys.REPLIES, keys.REQUESTS], keys.ORCHESTRATOR_GROUP, self.name, LEASE_MS
        )
        self._replies_only = False

    def run(self) -> None:
        """Work until `stop` is set. Raises what waiting cannot mend (BrokerError, redis.AuthenticationError …)."""
        outage = Outage(self._broker, f"worker {self.name}", self._stop)
        checked = False
        while not self._stop.is_set():
            try:
                if not checked:
                    self._broker.check()
                    checked = True
                    say(f"worker {self.name}", "ready")
                self.turn()
                outage.over()
            except redis.RedisError as error:
                outage.wait(error)
                self._inbox.recover()

    def turn(self, block_ms: int = BLOCK_MS) -> int:
        """Read, load, decide, commit; the number of entries that were read."""
        entries = self._read(block_ms)
        letters = [_open(entry) for entry in entries]
        while letters:
            states, now_ms = self._store.load({m.saga_id for letter in letters if (m := letter.message)})
            published = self._published(states, letters)
            changes = _fold(letters, states, now_ms, published)
            lost = [entry for change in self._store.commit(changes, now_ms) for entry in change.entries]
            letters = [letter for letter in letters if letter.entry in lost]
        return len(entries)

    def _read(self, block_ms: int) -> list[Entry]:
        entries = self._inbox.read(block_ms, only=keys.REPLIES if self._replies_only else None)
        self._replies_only = sum(entry.stream == keys.REPLIES for entry in entries) >= BATCH
        return entries

    def _published(self, states: dict[str, SagaState | CorruptSaga | None], letters: Sequence[Letter]) -> Published:
        """What the services publish that this turn may have to undo. Asked for anew each time it is needed:
        a service may have started, or changed its mind, a moment ago."""
        services: set[str] = set()
        for letter in letters:
            reply = letter.message
            if not isinstance(reply, Reply):
                continue
            state = states.get(reply.saga_id)
            if isinstance(state, SagaState) and (
                state.status is SagaStatus.COMPENSATING or reply.type.endswith("_failed")
            ):
                services |= {step.definition.service for step in state.steps}
        return self._store.published(services) if services else {}


def _open(entry: Entry) -> Letter:
    """What an entry says. One that cannot be understood is refused or quarantined, whatever its saga is."""
    fields = entry.fields
    request_id = None
    try:
        if entry.stream == keys.REPLIES:
            body = decode(fields.get(b"body", b""))
            return Letter(entry=entry, message=parse_reply(body, unknown=b"unknown" in fields))
        request_id = _request_id(fields)
        body = decode(fields.get(b"body", b""))
        kind = type_of(body)
        if kind != "saga_begin":
            text = f"the orchestrator knows no request {kind}"
            return Letter(entry=entry, verdict=refuse(None, request_id, Code.NOT_SUPPORTED, text))
        begin = parse_begin(body, request_id=request_id, trace=b"trace" in fields)
        return Letter(entry=entry, message=begin)
    except MalformedMessage as error:
        if entry.stream == keys.REPLIES:
            return Letter(entry=entry, verdict=Decision(state=None, quarantine=str(error)))
        return Letter(entry=entry, verdict=refuse(None, request_id, Code.MALFORMED, str(error)))


def _request_id(fields: dict[bytes, bytes]) -> str | None:
    if b"request_id" not in fields:
        return None
    request_id = fields[b"request_id"].decode(errors="replace")
    if not is_id(request_id):
        raise MalformedMessage("request_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    return request_id


def _fold(
    letters: Sequence[Letter],
    states: dict[str, SagaState | CorruptSaga | None],
    now_ms: int,
    published: Published,
) -> list[Change]:
    """Fold the letters over the states: one change a saga, however many letters it got."""
    changes: dict[str | None, Change] = {}
    for letter in letters:
        message = letter.message
        if message is None:
            assert letter.verdict is not None
            change = changes.setdefault(None, Change(saga_id=None, before=None, after=None))
            change.add(letter.entry, letter.verdict)
            continue
        state = states[message.saga_id]
        if isinstance(state, CorruptSaga):
            change = changes.setdefault(
                message.saga_id, Change(saga_id=message.saga_id, before=None, after=None, compare=False)
            )
            change.add(letter.entry, Decision(state=None, quarantine=str(state)))
            continue
        change = changes.setdefault(message.saga_id, Change(saga_id=message.saga_id, before=state, after=state))
        change.add(letter.entry, decide(change.after, message, now_ms, published))
    return list(changes.values())
