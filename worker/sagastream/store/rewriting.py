"""Streams written anew, so that nothing is left of what was deleted from them (rewrite.lua)."""

from typing import Any, Final

import redis

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_no_group, is_wrong_type
from sagastream.broker.scripting import Script
from sagastream.broker.wire import or_raise
from sagastream.store.keys import copy_of

#: About how many bytes of a stream one call copies. Everybody waits meanwhile: for some milliseconds.
_PORTION_BYTES: Final = 1 << 20
#: How long a copy is kept if the process that makes it dies, in milliseconds.
_COPY_KEPT_MS: Final = 30_000
#: How often to begin again if entries are deleted while the stream is copied.
_TRIES: Final = 5

_REWRITE: Final = Script("rewrite")

#: Why a stream could not be written anew, by the word of the script; `full` is the server's refusal.
_WHY: Final = {
    b"changed": "its entries are read and deleted too fast: erase again when less is going on",
    b"busy": f"somebody else writes it anew, or a process died doing it: erase again in {_COPY_KEPT_MS // 1000} s",
    b"held": "its readers hold too much of it, or hold an entry that is gone: erase again when they have ended that",
    b"long": "it has an entry of very many fields, which cannot be copied: erase again when that is gone",
    b"full": "its copy needs memory, and the store is full: raise maxmemory, then erase again",
}


def rewritten(stream: str) -> Exchange[str | None]:
    """Write a stream anew if it may hold bytes of entries that were deleted.

    Returns why it could not be written anew; None: nothing is left of such entries.
    """
    if not (yield from _may_hold_some(stream)):
        return None
    for _ in range(_TRIES):
        word, copied_up_to = b"more", b"0-0"
        while word == b"more":
            limits = (_PORTION_BYTES, _COPY_KEPT_MS)
            try:
                word, copied_up_to = yield from _REWRITE.call([stream, copy_of(stream)], [copied_up_to, *limits])
            except redis.ResponseError as error:
                if is_wrong_type(error):  # the value at its key is not a stream, as `doctor` reports
                    return None
                if not isinstance(error, redis.OutOfMemoryError):
                    raise
                word = b"full"
        if word == b"done":
            return None
        if word != b"changed":
            break
    return f"{stream} may still hold bytes of deleted messages, since {_WHY[word]}"


def _may_hold_some(stream: str) -> Exchange[bool]:
    """Whether a stream may hold bytes of entries that were deleted. One that is empty holds none. This is not asked in
    the script, which a full store refuses even if there is nothing to copy."""
    (answer,) = yield [("XINFO", "STREAM", stream)]
    if isinstance(answer, redis.ResponseError) and is_no_group(answer):
        return False
    words = iter(or_raise(answer))
    about: dict[bytes, Any] = dict(zip(words, words, strict=True))
    return about[b"length"] not in (0, about[b"entries-added"])
