"""Requests sent and events read on a real server, by a test that blocks."""

from collections.abc import Sequence

import redis

from sagastream.broker.exchange import run
from sagastream.broker.group_reader import Entry
from sagastream.client import requests
from sagastream.core.messages import Begin, Intervene
from sagastream.store import events


def append_requests(client: "redis.Redis", sent: Sequence[Begin | Intervene]) -> None:
    run(client, requests.append(sent))


def last_event(client: "redis.Redis") -> bytes:
    return run(client, events.newest())


def read_events(client: "redis.Redis", after: bytes, block_ms: int) -> list[Entry]:
    return run(client, events.after(after, block_ms))
