"""Have all workers looked whether the store has lost writes, and noted which ends they had written?

Only a worker knows that, and it looks along with its heartbeat. So one that has been heard twice since some moment has
looked after it, and has noted what it found.
"""

import time
from collections.abc import Iterator
from typing import Final

import redis

from sagastream.store import heartbeat
from sagastream.store.heartbeat import Kind, Process
from sagastream.store.keys import StoreKeys
from sagastream_bridge.inspection.findings import PROBLEM, Finding

#: How long a worker is waited for, in seconds. It writes a heartbeat about once a second, and stands still for a few
#: seconds if a node of a cluster hangs.
_WITHIN_S: Final = 5.0
#: How long to wait between two looks at the heartbeats, in seconds. Nothing tells of a new one.
_PAUSE_S: Final = 0.1
#: How many heartbeats there must be. The first one may have been written before its worker noted what it found.
_HEARD: Final = 2


class WorkersLooked:
    """Whether the workers of a store have looked since this was made."""

    def __init__(self, client: "redis.Redis", keys: StoreKeys) -> None:
        self._client = client
        self._keys = keys
        self._until_s = time.monotonic() + _WITHIN_S
        self._beats: dict[str, list[int | None]] = {}  # of each: when it was heard

    def wait(self) -> Iterator[Finding]:
        """Wait until all have looked. Tells of those that have not in time."""
        while (left := self._left()) and time.monotonic() < self._until_s:
            time.sleep(_PAUSE_S)
        for one in left:
            text = (
                f"last heard {one.silent_ms / 1000:.1f} s ago. It may know of ends that the store has lost. Run this "
                "again when the worker runs. If it is dead, these ends are unknown"
            )
            yield Finding(level=PROBLEM, about=f"worker {one.name}", text=text)

    def _left(self) -> list[Process]:
        """Those that have not looked yet."""
        left = []
        for one in self._workers():
            # One that is heard for the first time may have been there before: its heartbeat was lost, too.
            beats = self._beats.setdefault(one.name, [one.beat_ms])
            if beats[-1] != one.beat_ms:
                beats.append(one.beat_ms)
            if len(beats) <= _HEARD:
                left.append(one)
        return left

    def _workers(self) -> list[Process]:
        found = heartbeat.processes(self._client, self._keys)
        return [one for one in found if one.kind == Kind.WORKER and one.beats]
