"""What a worker does if the broker's clock was set back, or went forward: it looks at all sagas that wait for a time.

Their times, and the leases on them, lie where the clock was. The core says when they come by the clock as it is now
(core/clock.py); a look at a saga that needs nothing changes nothing.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import redis

from sagastream.broker import wire
from sagastream.broker.entries import is_possible, time_of
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.partial import passes_over
from sagastream.store.keys import Partition, StoreKeys

#: At about how many timers of a partition one look looks.
_PAGE: Final = 128


def newest_time(client: "redis.Redis", keys: StoreKeys, streams: Sequence[str]) -> int:
    """The newest time that stands in the store, in ms by the broker's clock: when the last entry of one of these
    streams was added, or a process was last heard. A worker that has just started has seen no other. On a cluster, an
    entry has the time of its own node, so only those count whose node tells the time."""
    if keys.apart:
        first = keys.partitions[0]
        streams = [stream for stream in streams if stream.startswith(first.base)]
    asked: list[wire.Words] = [("XINFO", "STREAM", stream) for stream in streams]
    *found, alive = wire.round_trip(client, [*asked, ("ZRANGE", keys.alive, 0, 0, "REV", "WITHSCORES")])
    times = [0]
    for answer in found:
        if not isinstance(answer, redis.RedisError):  # it is no stream yet, this user may not look, or it is away
            told = dict(zip(answer[::2], answer[1::2], strict=True))
            if is_possible(newest := told[b"last-generated-id"]):
                times.append(time_of(newest))
    if not isinstance(alive, redis.RedisError) and alive and math.isfinite(heard_ms := float(alive[1])):
        times.append(int(heard_ms))
    return max(times)


class WaitingSagas:
    """The sagas that wait for a time, one page after another."""

    def __init__(self, client: "redis.Redis", partitions: Sequence[Partition]) -> None:
        self._client = client
        self._cursors: dict[Partition, bytes | int] = dict.fromkeys(partitions, 0)

    def __bool__(self) -> bool:
        """Whether there may be more of them."""
        return bool(self._cursors)

    def page(self) -> list[tuple[Partition, str]]:
        """The next of them, each with its partition. A saga may come twice."""
        asked: list[wire.Words] = [
            ("ZSCAN", partition.timers, cursor, "COUNT", _PAGE) for partition, cursor in self._cursors.items()
        ]
        found: list[tuple[Partition, str]] = []
        for partition, answer in zip(list(self._cursors), wire.round_trip(self._client, asked), strict=True):
            if passes_over(self._client, answer):
                continue  # its page comes when its node is back
            if is_wrong_type(answer):
                del self._cursors[partition]  # the lease of what is due tells of it
                continue
            cursor, members = wire.or_raise(answer)
            found += [(partition, saga_id) for saga_id in _waiting(members)]
            if cursor == b"0":
                del self._cursors[partition]
            else:
                self._cursors[partition] = cursor
        return found


def _waiting(members: Sequence[bytes]) -> Iterator[str]:
    """The ids of those that are not parked."""
    for saga_id, score in zip(members[::2], members[1::2], strict=True):
        if score != b"inf":
            yield saga_id.decode(errors="backslashreplace")
