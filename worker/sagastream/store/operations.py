"""What operators did that no saga's record tells of: what they paused, resumed, put back or dropped, who, when and why.

One stream, of the newest entries; the id of each says when it was.

    redis-cli XREVRANGE saga:operations + - COUNT 20
"""

from typing import Any, Final

import redis
from msgspec import Struct

from sagastream.broker.entries import time_of
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_denied, is_wrong_type
from sagastream.broker.scripting import even_if_full
from sagastream.broker.wire import Words, or_raise
from sagastream.core.messages import MAX_ACTOR_CHARS, MAX_REASON_CHARS
from sagastream.core.parsing import operator_text
from sagastream.store.keys import StoreKeys

#: At most so many are kept.
KEPT: Final = 10_000


class Operation(Struct, frozen=True, kw_only=True):
    """What somebody did."""

    verb: str  # pause, resume, "quarantine replay", "quarantine drop", drop-commands, "bulk begin" and so on
    what: str  # to what: a service, a command, a message, a bulk
    at_ms: int  # when, in milliseconds since the epoch by the broker's clock
    actor: str = ""  # who; empty: they did not say
    reason: str = ""  # why; empty: they did not say


def check(actor: str | None, reason: str | None) -> None:
    """Raises MalformedMessage if one of them cannot be noted. None: they did not say."""
    for name, text, most in (("reason", reason, MAX_REASON_CHARS), ("actor", actor, MAX_ACTOR_CHARS)):
        if text is not None:
            operator_text(text, name, most, stays_with="the list of operations")


def note(keys: StoreKeys, verb: str, what: str, *, actor: str | None, reason: str | None) -> Exchange[None]:
    """Note what somebody has just done."""
    (answer,) = yield [words_of_note(keys, verb, what, actor=actor, reason=reason)]
    noted(answer)


def words_of_note(keys: StoreKeys, verb: str, what: str, *, actor: str | None, reason: str | None) -> Words:
    """The command that notes it, for those who do it in the same round trip as what it tells of."""
    who, why = (actor or "")[:MAX_ACTOR_CHARS], (reason or "")[:MAX_REASON_CHARS]
    words = ("*", "verb", verb, "what", what, "actor", who, "reason", why)
    return even_if_full(keys.operations, "XADD", keys.operations, "MAXLEN", KEPT, *words)


def noted(answer: Any) -> None:
    """Raises what has kept it from being noted. A user whose rights an earlier release has printed may not write it;
    what was done stands all the same."""
    if not (isinstance(answer, redis.ResponseError) and (is_denied(answer) or is_wrong_type(answer))):
        or_raise(answer)


def newest(keys: StoreKeys, limit: int) -> Exchange[list[Operation]]:
    """The newest of them, at most so many, the newest first."""
    (answer,) = yield [("XREVRANGE", keys.operations, "+", "-", "COUNT", limit)]
    if is_wrong_type(answer):
        return []
    found = []
    for entry_id, words in or_raise(answer):
        texts = [word.decode(errors="backslashreplace") for word in words]
        said: dict[str, Any] = {
            name: value
            for name, value in zip(texts[::2], texts[1::2], strict=True)
            if name in Operation.__struct_fields__
        }
        if {"verb", "what"} <= said.keys():
            found.append(Operation(**(said | {"at_ms": time_of(entry_id)})))
    return found
