"""Streams written anew, so that nothing is left of what was deleted from them (rewrite.lua)."""

from typing import Final

import redis

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.scripting import Script
from sagastream.store.keys import copy_of

#: About how many bytes of a stream one call copies. Everybody waits meanwhile: for some milliseconds.
_PORTION_BYTES: Final = 1 << 20
#: How long a copy is kept if the process that makes it dies, in milliseconds.
_COPY_KEPT_MS: Final = 30_000
#: How often to begin again if entries are deleted while the stream is copied.
_TRIES: Final = 5

_REWRITE: Final = Script("rewrite")

#: Why a stream could not be written anew, by the word of the script.
_WHY: Final = {
    b"changed": "its entries are read and deleted too fast: erase again when less is going on",
    b"busy": f"somebody else writes it anew, or a process died doing it: erase again in {_COPY_KEPT_MS // 1000} s",
    b"held": "its readers hold too much of it, or hold an entry that is gone: erase again when they have ended that",
    b"long": "it has an entry of very many fields, which cannot be copied: erase again when that is gone",
}


def rewritten(stream: str, since_ms: int = 0) -> Exchange[str | None]:
    """Write a stream anew if it may hold bytes of entries that were deleted, and were added at `since_ms` or later.

    Returns why it could not be written anew; None: nothing is left of such entries.
    """
    for _ in range(_TRIES):
        word, copied_up_to = b"more", b"0-0"
        while word == b"more":
            limits = (_PORTION_BYTES, _COPY_KEPT_MS, f"{since_ms}-0")
            try:
                word, copied_up_to = yield from _REWRITE.call([stream, copy_of(stream)], [copied_up_to, *limits])
            except redis.ResponseError as error:
                if is_wrong_type(error):  # the value at its key is not a stream, as `doctor` reports
                    return None
                raise
        if word == b"done":
            return None
        if word != b"changed":
            break
    return f"{stream} still holds bytes of deleted messages: {_WHY[word]}"
