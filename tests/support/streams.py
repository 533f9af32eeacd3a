"""Requests sent and events read on a real server, by a test that blocks; in a store of one partition."""

from collections.abc import Sequence

import redis

from sagastream.broker.exchange import run
from sagastream.broker.group_reader import Entry
from sagastream.client import requests
from sagastream.core.messages import Begin, Intervene
from sagastream.store import events
from support.stores import KEYS


def append_requests(client: "redis.Redis", sent: Sequence[Begin | Intervene]) -> None:
    run(client, requests.append(KEYS, sent))


def last_event(client: "redis.Redis") -> bytes:
    (last,) = run(client, events.newest(KEYS.partitions))
    return last


def read_events(client: "redis.Redis", after: bytes, block_ms: int) -> list[Entry]:
    return run(client, events.after(KEYS.partitions, (after,), block_ms))
