"""Examines keys that are always needed: does each hold what it should, and does the server keep it?

With `repair`, a key that would expire is kept.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import redis

from sagastream.core.durations import spoken
from sagastream.store.keys import StoreKeys
from sagastream_bridge.inspection.findings import Finding, not_allowed, problem, repaired


def central(keys: StoreKeys, *, shared: bool = True) -> dict[str, str]:
    """The types of the keys that everything needs. `shared`: also of those of the whole store."""
    types = {keys.alive: "zset", keys.running: "hash", keys.services: "set", keys.paused: "hash"} if shared else {}
    for one in keys.partitions:
        types |= dict.fromkeys((one.requests, one.interventions, one.events, one.quarantine), "stream")
        types |= dict.fromkeys((one.timers, one.ended, one.begun), "zset")
        types[one.indexed] = "hash"
    return types


class KeyCheck:
    def __init__(self, client: "redis.Redis", *, repair: bool) -> None:
        self._client = client
        self._repair = repair

    def types(self, wanted: Mapping[str, str]) -> Iterator[Finding]:
        for key, kind in wanted.items():
            found: Any = self._client.type(key)
            if found.decode() not in (kind, "none"):
                yield problem("keys", f"{key} is a {found.decode()}, not a {kind}: something else has written there")

    def kept(self, names: Iterable[str]) -> Iterator[Finding]:
        """Keys that the server is to delete at some time, though they are always needed."""
        pipeline = self._client.pipeline(transaction=False)
        for key in (keys := list(names)):
            pipeline.pttl(key)
        for key, left_ms in zip(keys, pipeline.execute(), strict=True):
            if left_ms < 0:
                continue
            text = f"{key} expires in {spoken(left_ms)}, with all that is in it: something else has set that"
            if not self._repair:
                yield problem("keys", f"{text}; sagastream doctor --repair keeps it")
                continue
            try:
                self._client.persist(key)
                yield repaired("keys", f"{text}; it is kept now")
            except redis.exceptions.NoPermissionError as error:
                yield not_allowed("keys", text, error)
