"""A store with very many sagas. A few are written by the workers of a scene; the others are copies of them, made on the
server, with ids, times and customers of their own, and each in the indexes in which its model is."""

import itertools
import json
from collections.abc import Mapping
from typing import Any, Final

from sagastream.store.columns import iso
from sagastream.store.indexes import names_in
from sagastream.store.keys import Partition

#: How many copies one call makes.
_AT_ONCE: Final = 1_000
#: So many customers there are; the model is one of c0. Of each, there are sagas of all models.
CUSTOMERS: Final = 999
#: How far the begins of two sagas are apart, in milliseconds.
APART_MS: Final = 20_000
_COPY: Final = """
    local hash, begun, ended, timers, indexed, index = unpack(ARGV, 1, 6)
    local model = cjson.decode(ARGV[7])
    for at = 8, #ARGV, 4 do
        local id, ms, iso, customer = unpack(ARGV, at, at + 3)
        redis.call('COPY', hash .. model.id, hash .. id)
        redis.call('HSET', hash .. id, 'begun_at', iso)
        redis.call('ZADD', begun, ms, id)
        if model.attributes then
            redis.call('HSET', hash .. id, 'attributes', (model.attributes:gsub('c0', customer)))
        end
        if #model.names > 0 then
            local names = {}
            for place, name in ipairs(model.names) do
                names[place] = (name:gsub('=c0', '=' .. customer))
                redis.call('ZADD', index .. names[place], ms, id)
            end
            redis.call('HSET', indexed, id, cjson.encode(names))
        end
        if model.ended then redis.call('ZADD', ended, ms, id) end
        if model.timer then redis.call('ZADD', timers, model.timer, id) end
    end
"""


def crowd(client: Any, partition: Partition, models: Mapping[str, int], count: int, newest_ms: int) -> None:
    """Make about `count` copies, the newest begun at `newest_ms`. `models`: of which sagas, and in which proportion."""
    where = [partition.saga(""), partition.begun, partition.ended, partition.timers, partition.indexed]
    names = itertools.cycle([name for name, share in models.items() for _ in range(share)])
    copies: dict[str, list[Any]] = {name: [] for name in models}
    for number in range(count):
        ms = newest_ms - number * APART_MS
        copies[next(names)] += [f"m{number:07}", ms, iso(ms), f"c{number % CUSTOMERS}"]
    pipeline = client.pipeline(transaction=False)
    for name, told in copies.items():
        model = json.dumps(_model(client, partition, name))
        for at in range(0, len(told), 4 * _AT_ONCE):
            pipeline.eval(_COPY, 0, *where, partition.index(""), model, *told[at : at + 4 * _AT_ONCE])
    pipeline.execute()


def _model(client: Any, partition: Partition, saga_id: str) -> dict[str, Any]:
    attributes = client.hget(partition.saga(saga_id), "attributes")
    timer = client.zscore(partition.timers, saga_id)
    model = {
        "id": saga_id,
        "names": names_in(client.hget(partition.indexed, saga_id) or b"[]"),
        "ended": client.zscore(partition.ended, saga_id) is not None,
    }
    if attributes:
        model["attributes"] = attributes.decode()
    if timer is not None:
        model["timer"] = str(timer)
    return model
