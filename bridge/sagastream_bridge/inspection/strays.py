"""Examines the indexes by which sagas are found: is every saga in them there, and is that so of it?

Whether every saga is in them is examined with the saga: see indexes.py."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from sagastream.broker.exchange import run
from sagastream.console import printable
from sagastream.orchestrator import places
from sagastream.orchestrator.commit import Store
from sagastream.store.keys import Partition, StoreKeys
from sagastream_bridge.inspection.findings import Finding, problem, repaired

if TYPE_CHECKING:
    import redis

#: How many members, or keys, to look at in one round trip.
_PAGE: Final = 200
#: How many are named of those that should not be in an index.
_NAMED: Final = 3


def strays(client: "redis.Redis", keys: StoreKeys, *, repair: bool) -> Iterator[Finding]:
    """One finding for each index with members that should not be in it. `repair`: take them out."""
    for partition in keys.partitions:
        yield from _examined(client, keys, partition, partition.begun, None, repair=repair)
        for key in client.scan_iter(partition.index("*"), _PAGE):
            name = key.decode(errors="backslashreplace")
            if client.type(key) != b"zset":
                text = f"{printable(name)} is not an index: something else has written there"
                yield problem("indexes", text, "delete it; a worker needs the name")
            else:
                what = name.removeprefix(partition.index(""))
                yield from _examined(client, keys, partition, name, what, repair=repair)


def _examined(
    client: "redis.Redis", keys: StoreKeys, partition: Partition, key: str, name: str | None, *, repair: bool
) -> Iterator[Finding]:
    """`name`: of the index; None: it is begun."""
    members: Iterator[bytes] = (member for member, _ in client.zscan_iter(key))
    found: list[bytes] = []
    while page := list(islice(members, _PAGE)):
        found += run(client, places.strays(partition, key, name, page))
    if not found:
        return
    named = ", ".join(f"{member[:64]!a}" for member in found[:_NAMED]) + (" …" if len(found) > _NAMED else "")
    text = f"{printable(key)} has members that do not belong there: {len(found)} ({named})"
    if repair:
        for at in range(0, len(found), _PAGE):
            changes, no_ids, now_ms = run(client, places.without(keys, partition, name, found[at : at + _PAGE]))
            Store(client).commit(changes, now_ms)
            if no_ids:
                client.zrem(key, *no_ids)
        yield repaired("indexes", f"{text}; taken out")
    else:
        yield problem("indexes", text, "sagastream doctor --repair takes them out")
