"""Mistakes that a saga orchestrator is easily built with. Planted one at a time, each must be found.

A mistake in a rule of the service side takes the place of that rule in `service_rules`, so that all else that is
explored is the code that runs. The others are planted in world.py, where a mistake is one in a script or in a worker.
"""

from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import Any, Final
from unittest.mock import patch

from sagastream.core import service_rules
from sagastream.core.messages import Command, Reply, failed, reply_to
from sagastream.core.service_rules import Answer, Release, Run, Undo


class Bug(StrEnum):
    NO_VERSION = "a commit does not compare the version"
    EARLY_ACKNOWLEDGEMENT = "an entry is acknowledged before its effect is committed"
    NO_DEDUPE = "a service does not look up what it answered before"
    NO_TOMBSTONE = "a compensation leaves no tombstone"
    ATTEMPT_IN_KEY = "the idempotency key names the attempt"
    TIMER_APART = "the timer is set after the commit, not in it"
    NEVER_READ_AGAIN = "what was delivered once is never read again"
    SENT_AGAIN_UNKNOWN = "a request that is sent again has another request id"
    LATE_OK_APPLIED = "an ok counts for the step that the saga is at, whichever it names"
    RECORD_APART = "a service records its answer after it has sent it"
    OVERRULED_NOT_UNDONE = "what a handler did in vain is not undone"
    FAILED_UNDO_ANSWERED = "a command is answered though its undo has failed"
    DELIVERED_AGAIN_NOT_UNDONE = "what another process may have begun is refused, and not undone"
    LATE_NOT_IN_DOUBT = "a command that comes too late is certainly not begun, whoever had it before"
    RAISED_IS_FAILED = "a handler that has raised counts as one that did nothing"
    UNKNOWN_IS_FAILED = "a step that was not answered counts as one that was not done"


_delivered, _too_late, _replied = service_rules.delivered, service_rules.too_late, service_rules.replied


def _without_record(command: Command, *, record: bytes | None, tombstone: bool, again: bool) -> Run | Undo | Answer:
    return _delivered(command, record=None, tombstone=tombstone, again=again)


def _not_undone(command: Command, undo: Undo, *, compensation: str | None, entry_id: str) -> Answer:
    return undo.answer


def _undo_not_looked_at(todo: Run | Undo, called: Command, reply: Reply) -> Answer | Release:
    return todo.answer if isinstance(todo, Undo) else _replied(todo, called, reply)


def _never_again(command: Command, *, record: bytes | None, tombstone: bool, again: bool) -> Run | Undo | Answer:
    return _delivered(command, record=record, tombstone=tombstone, again=False)


def _never_begun(command: Command, todo: Run | Undo, *, not_begun: bool, now_ms: int) -> Answer | None:
    return _too_late(command, todo, not_begun=True, now_ms=now_ms)


def _did_nothing(todo: Run | Undo, called: Command, why: str) -> Answer | Release:
    return _replied(todo, called, reply_to(called, failed(called.type), error=b'"?"'))


#: The rules that a mistake replaces, by their names.
_REPLACED: Final[dict[Bug, dict[str, Any]]] = {
    Bug.NO_DEDUPE: {"delivered": _without_record},
    Bug.OVERRULED_NOT_UNDONE: {"undoing": _not_undone},
    Bug.FAILED_UNDO_ANSWERED: {"replied": _undo_not_looked_at},
    Bug.DELIVERED_AGAIN_NOT_UNDONE: {"delivered": _never_again},
    Bug.LATE_NOT_IN_DOUBT: {"too_late": _never_begun},
    Bug.RAISED_IS_FAILED: {"in_doubt": _did_nothing},
}


def planted(bug: Bug | None) -> AbstractContextManager[object]:
    """While this is entered, the rules of the service side have this mistake; none if it is not in a rule."""
    rules = _REPLACED.get(bug) if bug is not None else None
    return patch.multiple(service_rules, **rules) if rules else nullcontext()
