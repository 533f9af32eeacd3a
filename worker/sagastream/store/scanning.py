"""All that SCAN and HSCAN find, page by page."""

from typing import Final

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.wire import Words, or_raise

#: How many keys, or fields of a hash, the server looks at in one call.
_AT_ONCE: Final = 1000


def keys_like(pattern: str) -> Exchange[list[bytes]]:
    """The keys that match, each once."""
    found = yield from _scanned(("SCAN",), pattern)
    return list(dict.fromkeys(found))


def fields_like(key: str | bytes, pattern: str) -> Exchange[dict[bytes, bytes]]:
    """The fields of a hash that match, with their values. A key that is not a hash has none."""
    words = yield from _scanned(("HSCAN", key), pattern)
    return dict(zip(words[::2], words[1::2], strict=True))


def _scanned(command: Words, pattern: str) -> Exchange[list[bytes]]:
    cursor: bytes = b"0"
    found: list[bytes] = []
    while True:
        (answer,) = yield [(*command, cursor, "MATCH", pattern, "COUNT", _AT_ONCE)]
        if is_wrong_type(answer):
            return []
        cursor, page = or_raise(answer)
        found += page
        if cursor == b"0":
            return found
