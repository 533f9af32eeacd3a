"""Examines the indexes by which sagas are found: is every saga in them there, and is that so of it?

Whether every saga is in them is examined with the saga: see indexes.py."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import redis

from sagastream.console import printable
from sagastream.store.indexes import names_in
from sagastream.store.keys import Partition, StoreKeys
from sagastream_bridge.inspection.findings import Finding, problem, repaired

#: How many members, or keys, to look at in one round trip.
_PAGE: Final = 200
#: How many are named of those that should not be in an index.
_NAMED: Final = 3


def strays(client: "redis.Redis", keys: StoreKeys, *, repair: bool) -> Iterator[Finding]:
    """One finding for each index with members that should not be in it. `repair`: take them out."""
    for partition in keys.partitions:
        yield from _examined(client, partition, partition.begun, None, repair=repair)
        for key in client.scan_iter(partition.index("*"), _PAGE):
            name = key.decode(errors="backslashreplace")
            if client.type(key) != b"zset":
                text = f"{printable(name)} is not an index: something else has written there"
                yield problem("indexes", text, "delete it; a worker needs the name")
            else:
                what = name.removeprefix(partition.index(""))
                yield from _examined(client, partition, name, what, repair=repair)


def _examined(
    client: "redis.Redis", partition: Partition, key: str, name: str | None, *, repair: bool
) -> Iterator[Finding]:
    """`name`: of the index; None: it is begun."""
    members: Iterator[bytes] = (member for member, _ in client.zscan_iter(key))
    found: list[bytes] = []
    while page := list(islice(members, _PAGE)):
        found += _wrong(client, partition, page, key, name)
    if not found:
        return
    named = ", ".join(f"{member[:64]!a}" for member in found[:_NAMED]) + (" …" if len(found) > _NAMED else "")
    text = f"{printable(key)} has members of which that is not so: {len(found)} ({named})"
    if repair:
        for at in range(0, len(found), _PAGE):
            client.zrem(key, *found[at : at + _PAGE])
        yield repaired("indexes", f"{text}; taken out")
    else:
        yield problem("indexes", text, "sagastream doctor --repair takes them out")


def _wrong(
    client: "redis.Redis", partition: Partition, page: list[bytes], key: str, name: str | None
) -> Iterator[bytes]:
    """Those that should not be there. A saga that has expired is taken out soon by a worker, so it does not count."""
    pipeline = client.pipeline(transaction=True)  # a commit changes all of them together
    for member in page:
        pipeline.exists(partition.saga(member.decode(errors="backslashreplace")))
        pipeline.hget(partition.indexed, member)
        pipeline.zscore(key, member)
        pipeline.zscore(partition.ended, member)
    answers: Any = pipeline.execute()
    for at, member in enumerate(page):
        there, told, score, ended = answers[4 * at : 4 * at + 4]
        is_right = name in names_in(told or b"[]") if name is not None else there
        if not is_right and score is not None and (there or ended is None):
            yield member
