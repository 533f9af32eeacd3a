"""Sagas read from the store."""

from collections.abc import Collection, Sequence
from typing import Any

import redis

from sagastream.broker import exchange, wire
from sagastream.broker.exchange import Exchange, together
from sagastream.broker.failures import is_denied, is_outage, is_wrong_type
from sagastream.broker.wire import or_raise
from sagastream.core.saga import Found
from sagastream.core.steps import TIMEOUT_MS
from sagastream.errors import CorruptSaga
from sagastream.store import saga_hash
from sagastream.store.columns import step_fields
from sagastream.store.keys import StoreKeys


def read(client: "redis.Redis", keys: StoreKeys, saga_ids: Collection[str]) -> tuple[dict[str, Found], int]:
    """The states of these sagas (None: there is no such saga), and the broker's time in ms. One round trip."""
    return exchange.run(client, load(keys, saga_ids))


def load(keys: StoreKeys, saga_ids: Collection[str]) -> Exchange[tuple[dict[str, Found], int]]:
    """See `read`."""
    commands: list[wire.Words] = [("TIME",), *(("HGETALL", keys.saga(saga_id)) for saga_id in saga_ids)]
    time, *answers = yield commands
    states = {saga_id: _state(saga_id, answer) for saga_id, answer in zip(saga_ids, answers, strict=True)}
    return states, wire.milliseconds(or_raise(time))


def load_there(
    keys: StoreKeys, saga_ids: Collection[str]
) -> Exchange[tuple[dict[str, Found], dict[str, redis.RedisError]]]:
    """The states of these sagas; and why those cannot be read now whose nodes are away, or deny that to this user."""
    states: dict[str, Found] = {}
    away: dict[str, redis.RedisError] = {}
    answers = yield [("HGETALL", keys.saga(saga_id)) for saga_id in saga_ids]
    for saga_id, answer in zip(saga_ids, answers, strict=True):
        if isinstance(answer, redis.RedisError) and (is_outage(answer) or is_denied(answer)):
            away[saga_id] = answer
        else:
            states[saga_id] = _state(saga_id, answer)
    return states, away


def load_now(
    keys: StoreKeys, saga_ids: Collection[str]
) -> Exchange[tuple[dict[str, Found], dict[str, redis.RedisError], int]]:
    """See `load_there`; and the broker's time, in ms."""
    now_ms, (states, away) = yield from together(_now_ms(), load_there(keys, saga_ids))
    return states, away, now_ms


def _now_ms() -> Exchange[int]:
    (time,) = yield [("TIME",)]
    return wire.milliseconds(or_raise(time))


def _state(saga_id: str, answer: Any) -> Found:
    """A saga, in the answer to HGETALL."""
    if is_wrong_type(answer):
        return CorruptSaga(f"the key of saga {saga_id} holds no hash")
    words = iter(or_raise(answer))
    return saga_hash.read(saga_id, dict(zip(words, words, strict=True)))


def timeouts(keys: StoreKeys, steps: Sequence[tuple[str, int]]) -> Exchange[list[int | None]]:
    """How long an attempt of each of these steps may take, in ms; None: that cannot be read. `steps`: the saga and the
    number of each."""
    columns = [step_fields(number).definition["timeout_ms"] for _, number in steps]
    answers = yield [
        ("HMGET", keys.saga(saga_id), "version", column.field)
        for (saga_id, _), column in zip(steps, columns, strict=True)
    ]
    found: list[int | None] = []
    for column, answer in zip(columns, answers, strict=True):
        is_away = isinstance(answer, redis.RedisError) and is_outage(answer)
        version, written = (None, None) if is_away or is_wrong_type(answer) else or_raise(answer)
        try:
            found.append(None if version is None else TIMEOUT_MS if written is None else column.read(written))
        except ValueError:  # it is damaged
            found.append(None)
    return found
