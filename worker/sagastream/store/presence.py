"""Who reads, as the consumers of a group tell.

Every service may write the heartbeat, and so may write workers there that nobody runs. Nobody else reads the partitions
that a worker prefers: they would stand still. So of the workers that are heard, only those share the partitions that
are seen as consumers in the group of the orchestrator, where services may make none. Each worker shows itself there, in
the first partition, along with its heartbeat.

Rejected: to look for entries that nobody reads, in all partitions that a worker does not prefer. It would take some ten
commands a partition, about once a second, of each worker.
"""

from typing import Any, Final

import redis

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_no_group
from sagastream.broker.wire import or_raise
from sagastream.store.keys import ORCHESTRATOR_GROUP, StoreKeys

#: An id after which no entry comes: whoever reads the entries that it holds after it reads none, and is seen.
_AFTER_ALL: Final = f"{(1 << 64) - 2}-0"


def shown(keys: StoreKeys, name: str, within_ms: int) -> Exchange[frozenset[str] | None]:
    """Show that the worker of this name reads. Returns the names of the workers that were seen within this time. None:
    nobody can tell."""
    stream = keys.partitions[0].requests
    # A read of own entries, since Redis 7.0 counts no other read that finds nothing.
    reading = ("XREADGROUP", "GROUP", ORCHESTRATOR_GROUP, name, "COUNT", 1, "STREAMS", stream, _AFTER_ALL)
    _, found = yield [reading, ("XINFO", "CONSUMERS", stream, ORCHESTRATOR_GROUP)]
    if isinstance(found, redis.RedisError):
        return None  # the first worker of a store has no group yet; or the node of this partition is away
    return frozenset(one for one, idle_ms in consumers(found) if idle_ms <= within_ms)


def consumers(answer: Any) -> list[tuple[str, int]]:
    """The name of each consumer of a group, and how long ago it last asked for entries, in ms. `answer`: of XINFO
    CONSUMERS."""
    if isinstance(answer, redis.ResponseError) and is_no_group(answer):
        return []
    found = []
    for words in or_raise(answer):
        pairs = iter(words)
        consumer = dict(zip(pairs, pairs, strict=True))
        found.append((consumer[b"name"].decode(errors="backslashreplace"), int(consumer[b"idle"])))
    return found
