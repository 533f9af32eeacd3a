"""The events stream, for readers that follow it without a consumer group."""

from typing import Any, Final

from sagastream.broker.exchange import Exchange
from sagastream.broker.group_reader import Entry
from sagastream.broker.wire import or_raise
from sagastream.store import keys

#: One reading takes at most this many events.
_AT_ONCE: Final = 1000


def newest() -> Exchange[bytes]:
    """The id of the newest event, from which to read on; b"0-0" if there is none."""
    (answer,) = yield [("XREVRANGE", keys.EVENTS, "+", "-", "COUNT", 1)]
    found: Any = or_raise(answer)
    return bytes(found[0][0]) if found else b"0-0"


def after(event_id: bytes, block_ms: int) -> Exchange[list[Entry]]:
    """The events after this one; waits for them up to `block_ms`, which is at least 1."""
    (answer,) = yield [("XREAD", "COUNT", _AT_ONCE, "BLOCK", block_ms, "STREAMS", keys.EVENTS, event_id)]
    return [
        Entry(stream=keys.EVENTS, id=entry_id, fields=dict(zip(words[::2], words[1::2], strict=True)))
        for _, page in or_raise(answer) or ()
        for entry_id, words in page
    ]


def sort_key(entry_id: bytes) -> tuple[int, int]:
    """Sort key of an entry id."""
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)
