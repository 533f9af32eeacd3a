"""A store, written out as lines. It must be at rest: a saga that moves meanwhile would be in two states at once."""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import islice
from typing import Any, Final

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.failures import is_no_group
from sagastream.broker.wire import execute, or_raise
from sagastream.errors import TransferError
from sagastream.store import heartbeat, layout, published
from sagastream.store.keys import ORCHESTRATOR_GROUP, Partition, StoreKeys
from sagastream_bridge.transfer.lines import KINDS, written

#: How much is read at once: of keys, entries, fields of a hash.
_PAGE: Final = 200


def refuse_at_work(broker: Broker, keys: StoreKeys) -> None:
    """Raises TransferError if a worker or a process of a service is alive on this store."""
    services = run(broker.client, published.services(keys))
    if alive := [one.name for one in heartbeat.processes(broker.client, keys, services) if one.is_alive]:
        names = ", ".join(alive[:3]) + (f" and {len(alive) - 3} more" if len(alive) > 3 else "")
        raise TransferError(f"{broker.store} is at work: {names}; stop all workers, services and clients first")


class Export:
    """Writes a store out. `skipped`: keys that hold something else than they should, which are left out."""

    def __init__(self, broker: Broker) -> None:
        self._client = broker.client
        self._keys = layout.look(broker)
        self.skipped: list[str] = []
        self._services = self._found_services()
        self.sagas = 0  # how many were written so far
        refuse_at_work(broker, self._keys)

    def lines(self) -> Iterator[bytes]:
        """All lines. Raises redis.RedisError."""
        count, seen = 0, sha256()
        for line in self._lines():
            count += 1
            seen.update(line)
            yield line
        yield written("end", lines=count, sha256=seen.hexdigest())

    def _lines(self) -> Iterator[bytes]:
        yield written("store", protocol=layout.PROTOCOL, prefix=self._keys.prefix, tags=self._keys.tags)
        for service in self._services:
            yield written("service", service=service, fields=self._pairs(self._keys.published(service)))
        yield from self._definitions()
        for partition in self._keys.partitions:
            yield from self._sagas(partition)
            yield from self._records(partition)
        for what in KINDS:
            for partition in self._keys.partitions:
                for service, stream, group in self._streams(partition, what):
                    yield from self._entries(partition, what, service, stream, group)

    def _found_services(self) -> list[str]:
        if self._client.type(self._keys.services) not in (b"set", b"none"):
            self.skipped.append(self._keys.services)
        return run(self._client, published.found_services(self._keys))

    def _definitions(self) -> Iterator[bytes]:
        for key in sorted(self._scan(self._keys.definition("*"))):
            if not self._hash_ttl(key):
                self.skipped.append(key)
            else:
                yield written("definition", name=key.removeprefix(self._keys.definition("")), fields=self._pairs(key))

    def _sagas(self, partition: Partition) -> Iterator[bytes]:
        found = self._scan(partition.saga("*"))
        while page := list(islice(found, _PAGE)):
            pipeline = self._client.pipeline(transaction=False)
            for key in page:
                saga_id = partition.saga_id(key)
                pipeline.hgetall(key)
                pipeline.zscore(partition.timers, saga_id)
                pipeline.zscore(partition.ended, saga_id)
                pipeline.pttl(key)
            answers = pipeline.execute(raise_on_error=False)
            for at, key in enumerate(page):
                fields, timer, ended, ttl_ms = answers[4 * at : 4 * at + 4]
                if isinstance(fields, redis.ResponseError):
                    self.skipped.append(key)
                elif or_raise(fields):  # it has not expired meanwhile
                    members = {"timer": _score(or_raise(timer)), "ended": _score(or_raise(ended))}
                    saga_id = partition.saga_id(key)
                    self.sagas += 1
                    yield written("saga", saga_id=saga_id, fields=fields.items(), **members, ttl_ms=_ttl(ttl_ms))

    def _records(self, partition: Partition) -> Iterator[bytes]:
        for key in self._scan(partition.records("*")):
            if (of := partition.record_of(key)) is None or not (ttl_ms := self._hash_ttl(key)):
                self.skipped.append(key)
                continue
            service, hour = of
            fields = self._client.hscan_iter(key, count=_PAGE)
            while page := list(islice(fields, _PAGE)):
                yield written("records", service=service, hour=hour, fields=page, ttl_ms=_ttl(ttl_ms))

    def _hash_ttl(self, key: str) -> int:
        """When this hash expires, in ms; -1: never; 0: it is not a hash."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.type(key)
        pipeline.pttl(key)
        kind, ttl_ms = execute(pipeline)
        return int(ttl_ms) if kind == b"hash" else 0

    def _streams(self, partition: Partition, what: str) -> Iterable[tuple[str, str, str]]:
        """The streams of this kind: the service, the key, and the group of their readers."""
        if what == "requests":
            return [("", partition.requests, ORCHESTRATOR_GROUP)]
        if what == "interventions":
            return [("", partition.interventions, ORCHESTRATOR_GROUP)]
        if what == "replies":
            return [(service, partition.replies(service), ORCHESTRATOR_GROUP) for service in self._services]
        if what == "commands":
            return [(service, partition.commands(service), service) for service in self._services]
        of_services = [(service, partition.quarantine_of(service), "") for service in self._services]
        return [("", partition.quarantine, ""), *of_services]

    def _entries(self, partition: Partition, what: str, service: str, stream: str, group: str) -> Iterator[bytes]:
        if self._client.type(stream) not in (b"stream", b"none"):
            self.skipped.append(stream)
            return
        after = "-"
        while page := self._page(stream, after):
            held = self._held(stream, group, page[0][0], page[-1][0])
            for entry_id, fields in page:
                members = {"what": what, "service": service, "partition": partition.number, "id": entry_id.decode()}
                yield written("entry", **members, again=entry_id in held, fields=fields.items())
            after = f"({page[-1][0].decode()}"

    def _page(self, stream: str, after: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        page: Any = self._client.xrange(stream, after, "+", count=_PAGE)
        return list(page)

    def _held(self, stream: str, group: str, first: bytes, last: bytes) -> set[bytes]:
        """Those of these entries that a reader holds."""
        if not group:
            return set()
        try:
            held: Any = self._client.xpending_range(stream, group, first, last, count=_PAGE)
        except redis.ResponseError as error:
            if is_no_group(error):
                return set()
            raise
        return {one["message_id"] for one in held}

    def _scan(self, pattern: str) -> Iterator[str]:
        """The keys, each once: a scan may find one twice."""
        seen: set[bytes] = set()
        for key in self._client.scan_iter(pattern, _PAGE):
            if key not in seen:
                seen.add(key)
                yield key.decode(errors="surrogateescape")

    def _pairs(self, key: str) -> Iterable[tuple[bytes, bytes]]:
        fields: Any = self._client.hgetall(key)
        return list(fields.items())


def _score(score: float | None) -> float | int | str | None:
    if score is None:
        return None
    return "inf" if score == float("inf") else int(score) if score == int(score) else score


def _ttl(ttl_ms: Any) -> int | None:
    return None if ttl_ms < 0 else int(ttl_ms)
