"""Two releases on one store: what is for a newer release is left to it, and a saga begins only if all workers know its
format.

Each request and each saga has a format, a number (`core/steps.FORMATS`). A worker that meets a higher one than it knows
changes nothing: it hands the entry back to the group, gives the saga's timer back, and a newer worker takes them.
A worker that knows a format begins no saga of it while another worker lives that does not.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import redis

from sagastream.broker.group_reader import Entry, GroupReader
from sagastream.core.decision import Event
from sagastream.core.messages import Begin
from sagastream.core.steps import PLAIN
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Store
from sagastream.store import heartbeat
from sagastream.store.heartbeat import Kind
from sagastream.telemetry import Log

#: For how long a worker passes over a newer saga that was due, in seconds: as long as it else would lease it.
_PASSED_OVER_S: Final = 5.0
#: How many sagas are passed over at most: `due.lua` gets all of them. Of more, the lease is left to run out.
_PASSED_OVER: Final = 1024
#: How many workers a refusal names.
_NAMED: Final = 3


class Gate:
    """The gate of one worker."""

    def __init__(self, client: "redis.Redis", store: Store, inbox: GroupReader, *, consumer: str, who: str) -> None:
        """`who`: the name of the worker, as its log records have it."""
        self._client = client
        self._store = store
        self._inbox = inbox
        self._consumer = consumer
        self._log = Log("worker", who)
        self._told: set[int] = set()  # the formats that it has told of
        self._passed_over: dict[str, float] = {}  # newer sagas that were due, and until when they are passed over

    def closed(self, letters: Iterable[tuple[Entry | None, Event]]) -> Mapping[int, str]:
        """The formats, of sagas that are to begin now, in which none may begin, each with the reason."""
        formats = {event.format for _, event in letters if isinstance(event, Begin)}
        formats.discard(PLAIN)  # which every release knows
        if not formats:
            return {}
        others = [
            process
            for process in heartbeat.processes(self._client)
            if process.kind == Kind.WORKER and process.is_alive and process.name != self._consumer
        ]
        closed = {}
        for number in formats:
            if behind := sorted(process.name for process in others if number not in process.formats):
                closed[number] = _why_closed(number, behind)
        return closed

    def passed_over(self) -> list[str]:
        """The sagas that the next look for what is due is to pass over."""
        if self._passed_over:
            now = time.monotonic()
            self._passed_over = {saga_id: until for saga_id, until in self._passed_over.items() if until > now}
        return list(self._passed_over)

    def leave(self, changes: Sequence[Change]) -> None:
        """Leave to a newer worker what these leave: it may take all of it at once. Say so once for each format."""
        for number in {number for change in changes for _, number in change.left}:
            self._tell(number)
        self._inbox.leave_to_newer([entry for change in changes for entry, _ in change.left if entry is not None])
        due = [change.saga_id for change in changes for entry, _ in change.left if entry is None and change.saga_id]
        if due := due[: _PASSED_OVER - len(self._passed_over)]:
            self._store.give_back(due)
            self._passed_over |= dict.fromkeys(due, time.monotonic() + _PASSED_OVER_S)

    def _tell(self, number: int) -> None:
        if number not in self._told:
            self._told.add(number)
            text = f"met format {number}, which only a newer release knows: leaves all of it to workers of that release"
            self._log.warning(text)


def _why_closed(number: int, behind: Sequence[str]) -> str:
    """What the sender of a saga_begin is told. `behind`: the workers that do not know its format."""
    named = ", ".join(behind[:_NAMED]) + (f" and {len(behind) - _NAMED} more" if len(behind) > _NAMED else "")
    which, them = ("worker", "it") if len(behind) == 1 else ("workers", "them")
    verb = "does" if len(behind) == 1 else "do"
    return f"{which} {named} {verb} not know format {number}: stop {them} or update {them}, then begin the saga again"
