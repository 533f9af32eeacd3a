"""Sagas read from the store."""

from collections.abc import Collection

import redis

from sagastream.broker import exchange, wire
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.wire import or_raise
from sagastream.core.saga import Found
from sagastream.errors import CorruptSaga
from sagastream.store import saga_hash
from sagastream.store.keys import StoreKeys


def read(client: "redis.Redis", keys: StoreKeys, saga_ids: Collection[str]) -> tuple[dict[str, Found], int]:
    """The states of these sagas (None: there is no such saga), and the broker's time in ms. One round trip."""
    return exchange.run(client, load(keys, saga_ids))


def load(keys: StoreKeys, saga_ids: Collection[str]) -> Exchange[tuple[dict[str, Found], int]]:
    """See `read`."""
    commands: list[wire.Words] = [("TIME",), *(("HGETALL", keys.saga(saga_id)) for saga_id in saga_ids)]
    time, *answers = yield commands
    states: dict[str, Found] = {}
    for saga_id, answer in zip(saga_ids, answers, strict=True):
        if is_wrong_type(answer):
            states[saga_id] = CorruptSaga(f"the key of saga {saga_id} holds no hash")
        else:
            words = iter(or_raise(answer))
            states[saga_id] = saga_hash.read(saga_id, dict(zip(words, words, strict=True)))
    return states, wire.milliseconds(or_raise(time))
