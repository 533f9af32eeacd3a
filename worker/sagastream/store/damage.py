"""Keys of partitions at which something else has written: which they are, and what stands there."""

import re
from collections.abc import Mapping
from typing import Final

import redis

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.store import reach
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.reach import Reach

#: What a script says of a key.
_NAMED: Final = re.compile(r"WRONGTYPE (\S+) is not an? (\w+)")


class Damaged(redis.ResponseError):
    """A key that the whole partition needs holds something else. The other partitions do not need it."""


def needed(partition: Partition) -> dict[str, str]:
    """The keys that the whole partition needs, each with the type that it has if it is there."""
    types = dict.fromkeys([partition.timers, partition.ended, partition.begun], "zset")
    types |= dict.fromkeys([partition.requests, partition.interventions, partition.events], "stream")
    return types | {partition.indexed: "hash"}


def named(error: redis.RedisError) -> dict[str, str]:
    """The key that an error names, with the type that it should have; nothing if it names none."""
    found = _NAMED.search(str(error))
    return {} if found is None else {found[1]: found[2]}


def look(asked: Mapping[Partition, Mapping[str, str]]) -> Exchange[dict[Partition, tuple[dict[str, str], Damaged]]]:
    """Of these partitions, those at whose keys something else stands: the keys, and what is told of it. `asked`: the
    keys to look at, each with the type that it should have."""
    each = [(partition, key, kind) for partition, types in asked.items() for key, kind in types.items()]
    answers = (yield [("TYPE", key) for _, key, _ in each]) if each else []
    wrong: dict[Partition, dict[str, str]] = {}
    texts: dict[Partition, list[str]] = {}
    for (partition, key, kind), answer in zip(each, answers, strict=True):
        if isinstance(answer, redis.RedisError):  # the node is away, or this user may not look
            continue
        if (there := answer.decode()) not in (kind, "none"):
            wrong.setdefault(partition, {})[key] = kind
            texts.setdefault(partition, []).append(f"{key} is a {there}, not a {kind}")
    return {
        one: (
            keys,
            Damaged(
                f"{'; '.join(texts[one])}: something else has written there. Rename that key or delete it, and call "
                "sagastream doctor --repair"
            ),
        )
        for one, keys in wrong.items()
    }


def explained(keys: StoreKeys, error: redis.ResponseError) -> Exchange[redis.ResponseError]:
    """If this error is that a key has another type, and a partition needs that key: what is told of the key; otherwise
    the error."""
    if not is_wrong_type(error):
        return error
    damaged = yield from look({one: needed(one) for one in keys.partitions})
    return next((told for _, told in damaged.values()), error)


def reached(keys: StoreKeys) -> Exchange[Reach]:
    """What can be reached of the store, without the partitions that are damaged, if there are others."""
    found = yield from reach.look(keys)
    partitions = found.keys.partitions
    if len(partitions) == 1:
        return found
    damaged = yield from look({one: needed(one) for one in partitions})
    if not damaged or len(damaged) == len(partitions):
        return found
    away = {**found.away, **{one.number: error for one, (_, error) in damaged.items()}}
    return Reach(found.keys.only({one.number for one in partitions if one not in damaged}), away, found.shared)
