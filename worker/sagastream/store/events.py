"""The events stream, as those read it who follow it without a group: from where, and on."""

from typing import Any, Final

from sagastream.broker.exchange import Exchange
from sagastream.broker.group_reader import Entry
from sagastream.broker.wire import or_raise
from sagastream.store import keys

#: How many events one reading takes at the most.
_AT_ONCE: Final = 1000


def newest() -> Exchange[bytes]:
    """The id of the newest event, to read on from."""
    (answer,) = yield [("XREVRANGE", keys.EVENTS, "+", "-", "COUNT", 1)]
    found: Any = or_raise(answer)
    return bytes(found[0][0]) if found else b"0-0"


def after(event_id: bytes, block_ms: int) -> Exchange[list[Entry]]:
    """The events after one, waiting up to `block_ms` for them; that is from 1 on."""
    (answer,) = yield [("XREAD", "COUNT", _AT_ONCE, "BLOCK", block_ms, "STREAMS", keys.EVENTS, event_id)]
    return [
        Entry(stream=keys.EVENTS, id=entry_id, fields=dict(zip(words[::2], words[1::2], strict=True)))
        for _, page in or_raise(answer) or ()
        for entry_id, words in page
    ]


def order(event_id: bytes) -> tuple[int, int]:
    """By what ids are ordered."""
    ms, _, number = event_id.partition(b"-")
    return int(ms), int(number)
