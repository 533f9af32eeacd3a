"""Requests sent and events read on a real server, by a test that blocks; in a store of one partition."""

from collections.abc import Sequence
from typing import Any

import redis

from sagastream.broker.entries import Entry
from sagastream.broker.exchange import run
from sagastream.client import requests
from sagastream.core.messages import Begin, ToSaga
from sagastream.store import events
from support.stores import KEYS, ONLY


def append_requests(client: "redis.Redis", sent: Sequence[Begin | ToSaga]) -> None:
    run(client, requests.append(KEYS, sent))


def add_reply(client: "redis.Redis", service: str, fields: dict[Any, Any]) -> bytes:
    """Add an entry to a service's replies. It becomes one of the store's services, so that the workers read them."""
    client.sadd(KEYS.services, service)
    return bytes(client.xadd(ONLY.replies(service), fields))  # type: ignore[arg-type]  # the answer is not awaited


def last_event(client: "redis.Redis") -> bytes:
    (last,) = run(client, events.newest(KEYS.partitions))
    return last


def read_events(client: "redis.Redis", after: bytes, block_ms: int) -> list[Entry]:
    return run(client, events.after(KEYS.partitions, (after,), block_ms))
