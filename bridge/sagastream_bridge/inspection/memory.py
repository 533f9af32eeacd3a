"""What fills the memory of a store: how many bytes each kind of its keys takes, about."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import redis

from sagastream.broker import wire
from sagastream.store.keys import DONE_KEPT_S, HOUR_MS, StoreKeys

#: At how many sagas of each kind it looks, to say what all of them take.
_LOOKED_AT: Final = 50
#: How many nodes of a stream, or fields of a hash, the server looks at to tell its size.
_SAMPLES: Final = 10_000
#: … and of a hash with the records of an hour, of which there are many.
_RECORDS_LOOKED_AT: Final = 100


class Part(NamedTuple):
    """What one kind of keys takes."""

    what: str
    bytes: int


def parts(client: "redis.Redis", keys: StoreKeys, services: Sequence[str]) -> list[Part]:
    """The kinds that take most, the largest first. What this user may not look at is left out."""
    found = [*_streams(client, keys, services), *_sagas(client, keys), _records(client, keys, services)]
    return sorted((one for one in found if one.bytes >= 1024), key=lambda one: -one.bytes)


def _streams(client: "redis.Redis", keys: StoreKeys, services: Sequence[str]) -> Iterator[Part]:
    of_service = {
        "commands": [one.commands(name) for one in keys.partitions for name in services],
        "replies": [one.replies(name) for one in keys.partitions for name in services],
        "quarantines of services": [one.quarantine_of(name) for one in keys.partitions for name in services],
    }
    for what in ("requests", "interventions", "events", "quarantine"):
        yield Part(what, sum(_sizes(client, [getattr(one, what) for one in keys.partitions])))
    for what, streams in of_service.items():
        yield Part(what, sum(_sizes(client, streams)))


def _sagas(client: "redis.Redis", keys: StoreKeys) -> Iterator[Part]:
    """The hashes of sagas, as the mean of the newest says."""
    for what, name in (("ended sagas", "ended"), ("live sagas", "timers")):
        total = 0
        for partition in keys.partitions:
            index = getattr(partition, name)
            number, members = _read(client, [("ZCARD", index), ("ZRANGE", index, 0, _LOOKED_AT - 1, "REV")])
            hashes = [partition.saga(member.decode(errors="replace")) for member in members or ()]
            if sizes := [size for size in _sizes(client, hashes) if size]:
                total += number * sum(sizes) // len(sizes)
        yield Part(what, total)


def _records(client: "redis.Redis", keys: StoreKeys, services: Sequence[str]) -> Part:
    """The records of sagas that began since records expire. Those of sagas that take longer are left out."""
    (clock,) = _read(client, [("TIME",)])
    now_ms = wire.milliseconds(clock) if clock is not None else 0
    hours = range(now_ms, now_ms - DONE_KEPT_S * 1000, -HOUR_MS)
    hashes = [one.done(name, hour) for one in keys.partitions for name in services for hour in hours]
    return Part("records of services", sum(_sizes(client, hashes, _RECORDS_LOOKED_AT)))


def _sizes(client: "redis.Redis", names: Sequence[str], samples: int = _SAMPLES) -> list[int]:
    # All nodes of a stream, all fields of a hash: one large field says more than all others.
    asked = [("MEMORY", "USAGE", name, "SAMPLES", samples) for name in names]
    return [size or 0 for size in _read(client, asked)]


def _read(client: "redis.Redis", commands: Sequence[wire.Words]) -> list[Any]:
    """The answers; None in place of an error: a key of another type, or a user who may not look."""
    answers = wire.round_trip(client, commands) if commands else []
    return [wire.unless_refused(answer, None) for answer in answers]
