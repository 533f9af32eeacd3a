"""How the store is laid out, and whether this release can work with it.

The hash `saga:store` says it, for every language: `protocol`, `partitions`, and `tags`, the hash tag of each partition
with blanks between them; on a cluster also `shared`, the hash tag of the keys of the whole store. The first process
writes it. Nobody changes it after that: the number of partitions is fixed.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from string import ascii_lowercase
from typing import Final

from redis.exceptions import NoPermissionError, ResponseError

from sagastream.broker import exchange
from sagastream.broker.cluster_map import SLOTS
from sagastream.broker.connection import Broker
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.server import mode_of
from sagastream.broker.wire import or_raise
from sagastream.errors import SettingsError, StoreMismatch
from sagastream.store.keys import StoreKeys, slot, store

#: The version of the keys, streams and scripts. Version 1 had one partition, and one stream for all replies.
PROTOCOL: Final = 2
#: At most this many partitions.
MAX_PARTITIONS: Final = 256
#: Into how many partitions the first process divides the store; by default one.
PARTITIONS_VARIABLE: Final = "SAGASTREAM_PARTITIONS"
_TAG: Final = re.compile(r"[a-z0-9]{1,20}", re.ASCII)


def check(broker: Broker, known: StoreKeys | None = None) -> StoreKeys:
    """Check that the server is new enough and that this release can work with the store. If there is no store yet, make
    it. Returns the names of its keys.

    `known`: the names that the caller works with. A store that was emptied is made again as it was. Raises
    StoreMismatch if there is another one by now.

    Raises BrokerError or StoreMismatch, or a redis.RedisError if the server cannot be reached.
    """
    broker.check_server()
    partitions = len(known.partitions) if known else None
    try:
        keys = exchange.run(broker.client, Layout(broker.prefix, partitions, on_known=broker.takes_time_at).opened())
    except _Overwritten:
        if known is None:
            raise
        return known  # the layout of a store never changes, and doctor tells of this
    if known is not None and keys.tags != known.tags:
        raise StoreMismatch(f"{keys.store} has other partitions than before: it is another store; start again")
    return keys


def look(broker: Broker) -> StoreKeys:
    """The names of the store's keys, without writing anything. If there is no store yet, those that it would get.
    Raises as `check`."""
    return exchange.run(broker.client, Layout(broker.prefix, on_known=broker.takes_time_at).looked())


def check_number(broker: Broker, partitions: int) -> None:
    """If only the key is gone that says how many partitions a store has: raises StoreMismatch if it had others than so
    many, by the streams that are there. Only for those who may SCAN; in a large store it takes seconds."""
    if broker.client.exists(store(broker.prefix)):
        return
    pattern = f"{broker.prefix}:{{*}}:requests"
    tags = set(_fields(partitions)["tags"].split())
    found = {
        key.decode(errors="backslashreplace"): None
        for client in broker.servers().values()
        for key in client.scan_iter(pattern, 10_000)
    }
    for key in found:
        if key.partition("{")[2].partition("}")[0] not in tags:
            text = f"{store(broker.prefix)} is gone, and by {key} it did not have {partitions} partitions"
            raise StoreMismatch(f"{text}: there are streams of {len(found)}. sagastream init --partitions {len(found)}")


class _Overwritten(StoreMismatch):
    """Where the layout should stand, there is something else."""


class Layout:
    """The layout of one store, which is read once."""

    def __init__(
        self, prefix: str, partitions: int | None = None, *, on_known: Callable[[str], None] | None = None
    ) -> None:
        """
        Args:
            partitions: how many the store is to have; by default as many as SAGASTREAM_PARTITIONS says, or one.
            on_known: is told the key of the heartbeat once it is known: the node of a cluster that has it says what
                time it is.

        Raises SettingsError if the variable has a wrong value.
        """
        self._prefix = prefix
        self._on_known = on_known
        self._partitions = partitions or _from_environment()
        self._keys: StoreKeys | None = None
        #: Whether `opened` has made the store.
        self.is_new = False

    def opened(self) -> Exchange[StoreKeys]:
        """The names of the store's keys. If there is no store yet, it is made. Raises StoreMismatch."""
        keys = yield from self._read()
        if keys is None:
            yield from self._check_new()
            fields = yield from _new_fields(self._partitions or 1)
            made = [("HSETNX", store(self._prefix), name, value) for name, value in fields.items()]
            for answer in (yield [("MULTI",), *made, ("EXEC",)]):
                if isinstance(answer, NoPermissionError):
                    text = f"there is no store {self._prefix} yet, and this user may not make it: start a worker first"
                    raise StoreMismatch(text)
                self.is_new = all(or_raise(answer))  # the last one says of each field whether it was set
            keys = yield from self._read()  # somebody else may have been faster
            assert keys is not None
        return keys

    def looked(self) -> Exchange[StoreKeys]:
        """The same, but nothing is written. If there is no store yet, the names that it would get."""
        keys = yield from self._read()
        if keys is None:
            yield from self._check_new()
            fields = yield from _new_fields(self._partitions or 1)
            keys = _keys(self._prefix, fields, None)
        return keys

    def _check_new(self) -> Exchange[None]:
        """Raises StoreMismatch if there is a store, and only the key is gone that says how many partitions it has. With
        another number, most of its sagas would not be found. If somebody says the number, it must have that many.

        Rejected: to find the number by the keys. No role may SCAN, and the tags of all 256 numbers take seconds.
        """
        # Every store has a partition with the first tag.
        keys = StoreKeys(self._prefix, _fields(self._partitions or 1)["tags"].split())
        requests = [one.requests for one in keys.partitions]
        # Only a worker that has opened the store makes the groups. A person may have written all else, or a process
        # that has not yet noticed that all was deleted. A user who may not look may not make a store either.
        answers = yield [("XINFO", "GROUPS", stream) for stream in requests]
        is_there = [isinstance(groups, list) and bool(groups) for groups in answers]
        if not is_there[0] or (self._partitions is not None and all(is_there)):
            return
        text = f"{keys.store} is gone, and {requests[0]} is there: somebody has deleted the number of partitions"
        if self._partitions is not None:
            text += f", which is not {self._partitions}: there is no {requests[is_there.index(False)]}"
        raise StoreMismatch(f"{text}. Set it again as it was: sagastream init --partitions N")

    def _read(self) -> Exchange[StoreKeys | None]:
        if self._keys is None and (found := (yield from _read(self._prefix))):
            self._keys = _keys(self._prefix, found, self._partitions)
            if self._on_known is not None and self._keys.apart:
                self._on_known(self._keys.alive)
        return self._keys


def _read(prefix: str) -> Exchange[dict[str, str]]:
    (answer,) = yield [("HGETALL", store(prefix))]
    if is_wrong_type(answer):
        raise _Overwritten(f"{store(prefix)} is not a hash: something else has written there; use another store")
    words = [word.decode(errors="backslashreplace") for word in or_raise(answer)]
    return dict(zip(words[::2], words[1::2], strict=True))


def _keys(prefix: str, found: Mapping[str, str], wanted: int | None) -> StoreKeys:
    """The names that these fields stand for. Raises StoreMismatch."""
    name = store(prefix)
    protocol, partitions, tags = found.get("protocol"), found.get("partitions", "no"), found.get("tags", "").split(" ")
    if protocol is None:
        text = f"{name} was made by an earlier release, whose keys this one cannot read; nothing in it was changed"
        raise StoreMismatch(f"{text}. Let that release finish its sagas, or use another prefix: SAGASTREAM_PREFIX")
    if protocol != str(PROTOCOL):
        said = f"has protocol {protocol[:20]!a}, and this release knows {PROTOCOL}"
        raise StoreMismatch(f"{name} {said}: use a newer release; nothing in it was changed")
    if not _are_tags(tags) or partitions != str(len(tags)):
        said = f"{partitions[:20]!a} partitions, with the tags {' '.join(tags)[:80]!a}"
        raise StoreMismatch(f"{name} is damaged: it says {said}")
    if wanted is not None and wanted != len(tags):
        has = "1 partition" if partitions == "1" else f"{partitions} partitions"
        text = f"{name} has {has}, not {wanted}, as {PARTITIONS_VARIABLE} or --partitions says"
        move = "sagastream export and import move what is in it into another one"
        raise StoreMismatch(f"{text}: their number is fixed when a store is made; {move}")
    shared = found.get("shared")
    if shared not in (None, tags[0]):
        raise StoreMismatch(f"{name} is damaged: it says that the keys of the whole store have the tag {shared[:20]!a}")
    return StoreKeys(prefix, tags, shared)


def _are_tags(tags: Sequence[str]) -> bool:
    return len(set(tags)) == len(tags) <= MAX_PARTITIONS and all(map(_TAG.fullmatch, tags))


def _new_fields(partitions: int) -> Exchange[dict[str, str]]:
    """What says how a new store is laid out on this broker."""
    fields = _fields(partitions)
    (hello,) = yield [("HELLO",)]
    # A user who may not ask is refused by the servers of a cluster anyway.
    if not isinstance(hello, ResponseError) and mode_of(hello) == "cluster":
        fields["shared"] = fields["tags"].split()[0]
    return fields


def _fields(partitions: int) -> dict[str, str]:
    tags = [_tag(number, partitions) for number in range(partitions)]
    return {"protocol": str(PROTOCOL), "partitions": str(partitions), "tags": " ".join(tags)}


def _tag(number: int, partitions: int) -> str:
    """The tag of a partition. The nodes of a cluster hold contiguous ranges of slots, so the partitions are spread
    evenly over the slots: the tag is the number, with the shortest suffix that brings it near its place."""
    if number == 0:
        return "0"
    place = (slot("0") + number * SLOTS // partitions) % SLOTS

    def distance(tag: str) -> int:
        away = abs(slot(tag) - place)
        return min(away, SLOTS - away)

    near = SLOTS // partitions // 8
    for candidates in _suffixed(str(number)):
        nearest = min(candidates, key=distance)
        if distance(nearest) <= near:
            return nearest
    raise AssertionError("three letters reach every slot")


def _suffixed(number: str) -> Iterator[list[str]]:
    for length in range(4):
        yield [number + "".join(letters) for letters in product(ascii_lowercase, repeat=length)]


def _from_environment() -> int | None:
    text = os.environ.get(PARTITIONS_VARIABLE)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MAX_PARTITIONS):
        allowed = f"a whole number from 1 to {MAX_PARTITIONS}"
        raise SettingsError(f"{PARTITIONS_VARIABLE} must be {allowed}, not {text[:40]!a}")
    return int(text)
