"""The trace that a saga belongs to, as W3C Trace Context writes it: `00-<trace id>-<span id>-<flags>`.

A saga that is begun within a trace has a span of its own there. Nobody has to draw the id of that span: it follows from
the saga. So each worker names the same one to the services, and the one that ends the saga writes it.
"""

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Final

#: A later version may have more after the flags. It is read as version 0, as the standard asks. The ids are not zero.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-[!-~]{0,400})?"
)
_TRACE_ID: Final = slice(3, 35)
_FLAGS: Final = slice(53, 55)


def read(value: bytes | None) -> str | None:
    """The field of an entry. None: there is none, or it does not say what it should: a trace that is cut off is better
    than a saga that is refused."""
    if value is None:
        return None
    found = _TRACEPARENT.fullmatch(value)
    if found is None or (found[1] == b"00" and found[3] is not None):
        return None
    return f"00-{found[2].decode()}"


def is_sampled(traceparent: str) -> bool:
    """Whether whoever has begun the trace records it."""
    return traceparent[-1] in "13579bdf"


def trace_id(traceparent: str) -> str:
    """The id of the trace, in 32 hexadecimal digits."""
    return traceparent[_TRACE_ID]


def span_id_of(saga_id: str, begun_ms: int) -> str:
    """The id of a saga's span, in 16 hexadecimal digits."""
    drawn = blake2b(f"{saga_id}/{begun_ms}".encode(), digest_size=8).hexdigest()
    return drawn if drawn.strip("0") else f"{1:016x}"


@lru_cache(maxsize=4096)  # the steps of a saga ask one after another
def within_saga(traceparent: str, saga_id: str, begun_ms: int) -> str:
    """What its services are told: the span of the saga is the parent of theirs. `traceparent`: what it was begun
    with."""
    return f"00-{traceparent[_TRACE_ID]}-{span_id_of(saga_id, begun_ms)}-{traceparent[_FLAGS]}"
