"""Ends of sagas that were told, and that the store may have lost since.

A client is told of an end as soon as that is written. If a failover loses it, the saga goes on from an earlier state,
and may end otherwise. Only the worker that wrote the end knows of it then. So it notes here what it wrote in the time
that may be lost, and `sagastream doctor --after-failover` compares. It does so at each change of the store's history:
an end whose writing was not answered may be lost although everything else is there.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import redis
from msgspec import Struct

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.scripting import even_if_full
from sagastream.broker.wire import or_raise
from sagastream.core.messages import is_id
from sagastream.store.keys import ENDED_KEPT_MS, StoreKeys

if TYPE_CHECKING:
    from sagastream.broker.wire import Words

#: How many ends one HSET writes.
_AT_ONCE: Final = 500


class End(Struct, frozen=True):
    """An end that may have been told."""

    saga_id: str
    status: str
    ended_ms: int  # by the clock of the broker of that time


def keep(keys: StoreKeys, ends: Sequence[End]) -> Exchange[None]:
    """Keep these ends until somebody says that the loss is settled, but no longer than most sagas are kept."""
    if not ends:
        return
    asked: list[Words] = []
    for at in range(0, len(ends), _AT_ONCE):
        words: list[str | int] = []
        for end in ends[at : at + _AT_ONCE]:
            # An id has no blank. Both ends of a saga that was thrown back twice are kept.
            words += (f"{end.saga_id} {end.status}", end.ended_ms)
        asked.append(even_if_full(keys.told, "HSET", keys.told, *words))
    asked.append(("PEXPIRE", keys.told, ENDED_KEPT_MS))
    for answer in (yield asked):
        if not is_wrong_type(answer):
            or_raise(answer)


def kept(client: "redis.Redis", keys: StoreKeys) -> list[End]:
    """The ends that were kept, by saga. What sagastream did not write is left out."""
    try:
        found: Any = client.hgetall(keys.told)
    except redis.ResponseError as error:
        if is_wrong_type(error):
            return []
        raise
    ends = []
    for field, value in found.items():
        saga_id, _, status = field.decode(errors="backslashreplace").partition(" ")
        if is_id(saga_id) and status.isalpha() and value.isdigit() and len(value) < 16:
            ends.append(End(saga_id, status, int(value)))
    return sorted(ends, key=lambda end: (end.saga_id, end.status))
