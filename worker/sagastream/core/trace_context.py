"""The trace that a saga belongs to, as W3C Trace Context writes it: `traceparent`, which is
`00-<trace id>-<span id>-<flags>`, and `tracestate`, what tracing systems add to it for themselves.

A saga that is begun within a trace has a span of its own there. Nobody has to draw the id of that span: it follows from
the saga. So each worker names the same one to the services, and the one that ends the saga writes it.

A saga that is begun within no trace may get a trace of its own from the worker that begins it. The span of the saga is
the first one there, so it has no parent.
"""

import re
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

#: A later version may have more after the flags. It is read as version 0, as the standard asks. The ids are not zero.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-[!-~]{0,400})?"
)
_TRACE_ID: Final = slice(3, 35)
_FLAGS: Final = slice(53, 55)
_HALF: Final = 16
#: One member of a tracestate.
_MEMBER: Final = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
_MOST_MEMBERS: Final = 32
#: What is passed on of a tracestate, in characters: what the standard asks for at least.
_MOST_STATE: Final = 512
#: If it is longer, members of more characters than this are left out first.
_LONG_MEMBER: Final = 128
#: A longer one is not looked at.
_MOST_READ: Final = 8_192


def of_entry(fields: Mapping[bytes, bytes]) -> tuple[str | None, str | None]:
    """The `traceparent` and the `tracestate` of an entry. None: there is none."""
    traceparent = read(fields.get(b"traceparent"))
    return traceparent, None if traceparent is None else read_state(fields.get(b"tracestate"))


def add(fields: MutableMapping[str, Any], traceparent: str, tracestate: str | None) -> None:
    """Add both to the fields of an entry."""
    fields["traceparent"] = traceparent
    if tracestate is not None:
        fields["tracestate"] = tracestate


def read(value: bytes | None) -> str | None:
    """The field of an entry. None: there is none, or it does not say what it should: a trace that is cut off is better
    than a saga that is refused."""
    if value is None:
        return None
    found = _TRACEPARENT.fullmatch(value)
    if found is None or (found[1] == b"00" and found[3] is not None):
        return None
    return f"00-{found[2].decode()}"


@lru_cache(maxsize=256)  # the messages of a saga are read one after another
def read_state(value: bytes | None) -> str | None:
    """The field of an entry. None: there is none, or it does not say what it should. What is too long for us loses
    members, as the standard says: long ones first, then the last ones."""
    if not value or len(value) > _MOST_READ or not value.isascii():
        return None
    members = [stripped for member in value.decode().split(",") if (stripped := member.strip(" \t"))]
    if not members or len(members) > _MOST_MEMBERS or not all(map(_MEMBER.fullmatch, members)):
        return None
    if len(",".join(members)) > _MOST_STATE:
        members = [member for member in members if len(member) <= _LONG_MEMBER]
    while len(text := ",".join(members)) > _MOST_STATE:
        members.pop()
    return text or None


def is_sampled(traceparent: str) -> bool:
    """Whether whoever has begun the trace records it."""
    return traceparent[-1] in "13579bdf"


def of_its_own(trace_id: str) -> str:
    """The traceparent of a saga that has a trace of its own. It is sampled, or nobody would have begun it."""
    # Where the parent would stand, the first half of the id of the trace stands, or a 1 for the zeros of a short id.
    # Not the second half: some systems name a trace by its first span.
    half = trace_id[:_HALF]
    return f"00-{trace_id}-{half if half.strip('0') else f'{1:016x}'}-01"


def is_its_own(traceparent: str) -> bool:
    """Whether this names a trace that was begun for the saga, so that its span has no parent."""
    return traceparent == of_its_own(trace_id(traceparent))


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
