"""Two releases on one store. A worker leaves alone what only a newer release knows; and a saga begins only if all
living workers know its format.

Each request and each saga has a format, a number (`core/steps.FORMATS`). If a worker meets a higher format than it
knows, it changes nothing: it hands the entry back to the group, gives up the lease on the saga's timer, and a newer
worker takes them. If a worker knows a format and another living worker does not, it begins no saga of that format.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import redis

from sagastream.broker.entries import Entry
from sagastream.broker.group_reader import GroupReader
from sagastream.broker.partial import ran
from sagastream.core.decision import Event
from sagastream.core.messages import Begin
from sagastream.core.steps import PLAIN
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Store
from sagastream.store import heartbeat
from sagastream.store.heartbeat import Kind, Process
from sagastream.store.keys import StoreKeys
from sagastream.telemetry import Log

#: For how long a worker leaves out a newer saga that was due, in seconds: as long as it would otherwise lease it.
_PASSED_OVER_S: Final = 5.0
#: At most this many sagas are left out, since `due.lua` gets all their ids. The lease on any others runs out.
_PASSED_OVER: Final = 1024
#: How many workers a refusal names.
_NAMED: Final = 3


class Gate:
    """The gate of one worker."""

    def __init__(self, client: "redis.Redis", store: Store, inbox: GroupReader, *, consumer: str, who: str) -> None:
        """`who`: the name of the worker, as its log records have it."""
        self._keys: StoreKeys | None = None
        self._client = client
        self._store = store
        self._inbox = inbox
        self._consumer = consumer
        self._log = Log("worker", who)
        self._others: Sequence[Process] = ()  # the other workers that were alive when they were last heard
        self._told: set[int] = set()  # the formats that it has reported
        self._passed_over: dict[str, float] = {}  # newer sagas that were due, and until when to leave them out

    def join(self, keys: StoreKeys) -> None:
        """Look at the workers of this store from now on."""
        self._keys = keys

    def closed(self, inputs: Iterable[tuple[Entry | None, Event]]) -> Mapping[int, str]:
        """The formats of which no saga may begin now, each with the reason. Only formats of these requests count."""
        formats = {event.format for _, event in inputs if isinstance(event, Begin)}
        formats.discard(PLAIN)  # which every release knows
        if not formats:
            return {}
        assert self._keys is not None
        heard = ran(self._client, heartbeat.look(self._keys, ()))
        if not isinstance(heard, redis.RedisError):  # else those count that were heard last
            self._others = [
                process
                for process in heard
                if process.kind == Kind.WORKER and process.is_alive and process.name != self._consumer
            ]
        closed = {}
        for number in formats:
            if behind := sorted(process.name for process in self._others if number not in process.formats):
                closed[number] = _why_closed(number, behind)
        return closed

    def passed_over(self) -> list[str]:
        """The ids of sagas that the next call of `Store.due` is to leave out."""
        if self._passed_over:
            now = time.monotonic()
            self._passed_over = {saga_id: until for saga_id, until in self._passed_over.items() if until > now}
        return list(self._passed_over)

    def leave(self, changes: Sequence[Change]) -> None:
        """Hand back to newer workers what these changes leave to them; they may take it at once. Each format is logged
        once."""
        for number in {number for change in changes for _, number in change.left}:
            self._tell(number)
        self._inbox.leases.leave_to_newer(
            [entry for change in changes for entry, _ in change.left if entry is not None]
        )
        due = [
            (change.partition, change.saga_id)
            for change in changes
            for entry, _ in change.left
            if entry is None and change.saga_id
        ]
        if due := due[: _PASSED_OVER - len(self._passed_over)]:
            self._store.give_back(due)
            self._passed_over |= dict.fromkeys([saga_id for _, saga_id in due], time.monotonic() + _PASSED_OVER_S)

    def _tell(self, number: int) -> None:
        if number not in self._told:
            self._told.add(number)
            text = f"met format {number}, which only a newer release knows: leaves all of it to workers of that release"
            self._log.warning(text)


def _why_closed(number: int, behind: Sequence[str]) -> str:
    """The text with which a saga_begin is refused. `behind`: the workers that do not know its format."""
    named = ", ".join(behind[:_NAMED]) + (f" and {len(behind) - _NAMED} more" if len(behind) > _NAMED else "")
    which, them = ("worker", "it") if len(behind) == 1 else ("workers", "them")
    verb = "does" if len(behind) == 1 else "do"
    return f"{which} {named} {verb} not know format {number}: stop {them} or update {them}, then begin the saga again"
