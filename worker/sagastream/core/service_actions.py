"""What a process may do next with a command that it holds: the values that the rules of service_rules return."""

from enum import Enum, StrEnum
from typing import Final, Literal

from msgspec import Struct

from sagastream.core.commands import Command, Reply


class Simple(Enum):
    """The actions that carry no data."""

    RUN = "call the handler of the command"
    RELEASE = "leave the command pending: another process takes it over when the lease has ended"
    HAND_BACK = "have a process of another release take the command over at once"


RUN: Final = Simple.RUN
RELEASE: Final = Simple.RELEASE
HAND_BACK: Final = Simple.HAND_BACK
Run = Literal[Simple.RUN]
Release = Literal[Simple.RELEASE]
HandBack = Literal[Simple.HAND_BACK]


class Undo(Struct, frozen=True, kw_only=True):
    """Undo what may have come of the command, then answer with the refusal."""

    refusal: Reply
    result: bytes | None = None  # JSON: what the handler returned, if that is known

    @property
    def answer(self) -> "Answer":
        """The answer once nothing of the command remains."""
        return Answer(self.refusal, "final")


class Requeue(Struct, frozen=True, kw_only=True):
    """Add the command to its stream again, as one that was delivered before: its undo is owed, and no entry stands for
    that. Until the broker has it, this is an answer that was not sent yet."""

    result: bytes | None = None  # as in Undo; it goes along, in the field `result`


#: What answer.lua does with a reply.
#: ok, failed: it is the last word, and is recorded. unknown: it is counted, since the command may have been done.
#: final: it is not the reply of a handler. It is not recorded, it leaves nothing to undo, and a record is sent in its
#: place.
Kind = Literal["ok", "failed", "unknown", "final"]


class Answer(Struct, frozen=True, gc=False):
    """Record this reply, send it, and acknowledge the command: one call of answer.lua."""

    reply: Reply
    kind: Kind

    @property
    def is_last_word(self) -> bool:
        """Whether it is recorded, so that every later delivery of the command gets the same answer."""
        return self.kind in ("ok", "failed")


class Count(StrEnum):
    """Count this beginning in the service's records, then ask the rule again with the number."""

    TAKEOVERS = "takeovers"  # of a command that a process took over from another
    UNDOS = "undos"  # of the undo of a command that was delivered before


class Retry(Struct, frozen=True):
    """Call the handler again after so many seconds; other commands run meanwhile."""

    after_s: float


class SetAside(Struct, frozen=True):
    """Move the command to the quarantine, with this reason: a person has to decide."""

    reason: str


class Call(Struct, frozen=True):
    """What a handler is called with in place of the command that was delivered."""

    command: Command
    key: str  # the idempotency key


#: All that a rule may say.
Next = Run | Undo | Answer | Count | Retry | Release | HandBack | SetAside
