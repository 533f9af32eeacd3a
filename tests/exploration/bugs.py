"""Mistakes that a saga orchestrator is easily built with. Planted one at a time, each must be found."""

from enum import StrEnum


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
    UNKNOWN_IS_FAILED = "a step that was not answered counts as one that was not done"
