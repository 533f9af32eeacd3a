"""The indexes of sagas, as the store keeps them: who is in them, and how a saga leaves those in which it should not
be."""

from collections.abc import Iterable
from typing import Final

import orjson

from sagastream.broker.exchange import Exchange
from sagastream.broker.scripting import Script
from sagastream.broker.wire import or_raise
from sagastream.store.keys import Partition

_REPLACE: Final = Script("replace")


def names_in(told: bytes) -> tuple[str, ...]:
    """The names of the indexes that a field of `indexed` tells; none if it is damaged."""
    try:
        names = orjson.loads(told)
    except orjson.JSONDecodeError:
        return ()
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def written(names: Iterable[str]) -> str:
    """What `indexed` tells of a saga that is in these indexes; empty: nothing."""
    found = tuple(names)
    return orjson.dumps(found).decode() if found else ""


def leave_others(partition: Partition, saga_id: str, kept: Iterable[str]) -> Exchange[None]:
    """Take a saga that has ended, or has no hash, out of all indexes but these. A full store does it, too."""
    (told,) = yield [("HGET", partition.indexed, saga_id)]
    if or_raise(told) is None:
        return
    there, stays = names_in(told), set(kept)
    if leaves := [name for name in there if name not in stays]:
        # First the indexes: if this is broken off, it can be done again.
        for answer in (yield [("ZREM", partition.index(name), saga_id) for name in leaves]):
            or_raise(answer)
    if not (left := written(name for name in there if name in stays)):
        (answer,) = yield [("HDEL", partition.indexed, saga_id)]
        or_raise(answer)
    elif leaves:
        yield from _REPLACE.call([partition.indexed], [2, saga_id, told, saga_id, left])
