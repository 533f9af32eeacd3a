"""Lines, read into an empty store. Its server and its number of partitions may be others.

All lines are read before anything is written, so a file that was cut or damaged changes nothing. If the clock of the
server is behind that of the other one, sagas wait as they do after a clock was set back.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import islice
from typing import IO, Any, Final

import redis
from redis.client import Pipeline

from sagastream.broker.connection import Broker
from sagastream.broker.entries import REPLAYED
from sagastream.broker.failures import told
from sagastream.broker.wire import milliseconds
from sagastream.core.clock import STEADY, by_the_clock
from sagastream.core.indexing import index_names
from sagastream.core.saga import SagaState
from sagastream.errors import TransferError
from sagastream.store import layout, saga_hash
from sagastream.store.indexes import written
from sagastream.store.keys import HOUR_MS, Partition, StoreKeys
from sagastream_bridge.transfer.exporting import refuse_at_work
from sagastream_bridge.transfer.lines import Fields, read, saga_id_of

#: How many lines are written at once.
_PAGE: Final = 200
#: The first line is not longer, in bytes.
_FIRST_LINE_BYTES: Final = 1 << 16


def keep(pieces: Iterable[bytes], file: IO[bytes], name: str) -> None:
    """Keep an exported store in a file that can be read twice. Raises TransferError as soon as it is clear that it is
    something else, which may have no end. `name`: what it is called in errors."""
    head: bytes | None = b""
    for piece in pieces:
        file.write(piece)
        if head is None:
            continue
        line, is_whole, _ = (head := head + piece).partition(b"\n")
        if is_whole or len(head) > _FIRST_LINE_BYTES:
            head = None
            try:
                read(line, 1)
            except TransferError as error:
                raise TransferError(f"{name}: {error}") from None


class Import:
    """Reads an exported store into the store of a broker."""

    def __init__(self, broker: Broker, file: IO[bytes], name: str) -> None:
        """`file`: can be read twice. `name`: what it is called in errors.

        Raises TransferError or StoreMismatch; then nothing was written.
        """
        self._broker = broker
        self._client = broker.client
        self._file = file
        self._pipelines: dict[int | None, Pipeline] = {}  # what is to be written next, by partition
        self._now_ms = 0  # when it began to write, by the server's clock
        self.set_back = 0  # how many sagas last changed at a time that is still to come by that clock
        try:
            self._from = self._checked()
        except TransferError as error:
            raise TransferError(f"{name}: {error}") from None
        self._keys = layout.check(broker)
        refuse_at_work(broker, self._keys)
        if found := self._foreign():
            raise TransferError(f"the store {broker.store} is not empty, it has {found}: import into an empty one")

    def run(self) -> int:
        """Write it all. Returns how many sagas there are. Raises TransferError; the store is incomplete then."""
        try:
            return self._write()
        except redis.RedisError as error:
            text = f"the import is incomplete: {told(error)}. Start nothing on {self._broker.store}"
            raise TransferError(f"{text}: delete what is in it, then import again") from None

    def _write(self) -> int:
        sagas = 0
        self._now_ms = milliseconds(self._client.time())
        lines = self._lines()
        while page := list(islice(lines, _PAGE)):
            for line in page:
                sagas += line["type"] == "saga"
                getattr(self, f"_{line['type']}")(line)
            pipelines, self._pipelines = self._pipelines, {}
            for pipeline in pipelines.values():
                pipeline.execute()
        return sagas

    def _to(self, partition: Partition | None) -> Pipeline:
        """The transaction in which something of this partition is written; None: of the whole store. On a cluster, each
        is written by itself."""
        number = None if partition is None or not self._keys.apart else partition.number
        if (found := self._pipelines.get(number)) is None:
            found = self._pipelines[number] = self._client.pipeline(transaction=True)
        return found

    def _checked(self) -> StoreKeys:
        """The names of the store that the file is of. Raises TransferError."""
        keys, number, ended, seen = None, 0, False, sha256()
        self._file.seek(0)
        for number, text in enumerate(self._file, 1):
            line = read(text, number)
            kind = line["type"]
            if ended or (kind == "store") != (number == 1):
                raise TransferError(f"line {number}, of type {kind}, is out of place")
            if kind == "store":
                if line["protocol"] != layout.PROTOCOL:
                    known = f"this release knows {layout.PROTOCOL}"
                    raise TransferError(f"the file is of protocol {line['protocol']}, and {known}")
                keys = StoreKeys(line["prefix"], [str(tag) for tag in line["tags"]])
            elif kind == "end":
                ended = True
                if line["lines"] != number - 1:
                    counted = f"{number - 1} lines are before the last one, which says {line['lines']}"
                    raise TransferError(f"{counted}: the file was changed or damaged; export it again")
                if line["sha256"] != seen.hexdigest():
                    raise TransferError("the file was changed or damaged after its export: export it again")
            seen.update(text)
        if keys is None or not ended:
            raise TransferError(f"the file ends too early, after line {number}: export it again")
        return keys

    def _lines(self) -> Iterator[dict[str, Any]]:
        self._file.seek(0)
        lines = (read(text, number) for number, text in enumerate(self._file, 1))
        return (line for line in lines if line["type"] not in ("store", "end"))

    def _foreign(self) -> str | None:
        """A key of the store that another process has written; None: it is empty."""
        own = {self._keys.store, self._keys.alive, self._keys.running, self._keys.losses, self._keys.samples}
        for client in self._broker.servers().values():
            for key in client.scan_iter(f"{self._keys.prefix}:*", _PAGE):
                name: str = key.decode(errors="backslashreplace")
                if name not in own:
                    return name
        return None

    # --- one line of each type

    def _service(self, line: dict[str, Any]) -> None:
        pipeline = self._to(None)
        pipeline.sadd(self._keys.services, line["service"])
        if line["fields"]:
            pipeline.hset(self._keys.published(line["service"]), items=_flat(line["fields"]))

    def _definition(self, line: dict[str, Any]) -> None:
        pipeline = self._to(None)
        pipeline.sadd(self._keys.definitions, line["name"])
        pipeline.hset(self._keys.definition(line["name"]), items=_flat(line["fields"]))

    def _saga(self, line: dict[str, Any]) -> None:
        saga_id = line["saga_id"]
        partition = self._keys.of(saga_id)
        pipeline = self._to(partition)
        key = partition.saga(saga_id)
        pipeline.hset(key, items=_flat(line["fields"]))
        timer = line["timer"]
        if (moved := self._by_this_clock(pipeline, key, saga_id, line["fields"])) is not None and timer is not None:
            timer = moved
        self._index(pipeline, partition, saga_id, line["fields"])
        if timer is not None:
            pipeline.zadd(partition.timers, {saga_id: float(timer)})
        if line["ended"] is not None:
            pipeline.zadd(partition.ended, {saga_id: line["ended"]})
        if line["ttl_ms"] is not None:
            pipeline.pexpire(key, max(1, line["ttl_ms"]))

    def _index(self, pipeline: Pipeline, partition: Partition, saga_id: str, fields: Fields) -> None:
        """Put a saga into the indexes by which it is found. The file does not name them: the hash says which."""
        state = saga_hash.read(saga_id, dict(fields))
        if not isinstance(state, SagaState):
            return
        names = index_names(state)
        for key in (partition.begun, *map(partition.index, names)):
            pipeline.zadd(key, {saga_id: state.begun_ms})
        if names:
            pipeline.hset(partition.indexed, saga_id, written(names))

    def _by_this_clock(self, pipeline: Pipeline, key: str, saga_id: str, fields: Fields) -> int | None:
        """If the saga waits, and last changed at a time that is still to come here, let it wait from now on. Returns
        when it is due then."""
        state = saga_hash.read(saga_id, dict(fields))
        if not isinstance(state, SagaState) or state.due_ms is None:
            return None  # who cannot read it does not change it
        moved = by_the_clock(state, self._now_ms, STEADY)
        if moved is state:
            return None
        self.set_back += 1
        changed = saga_hash.changed_fields(state, moved)
        pipeline.hset(key, items=changed)
        return moved.due_ms

    def _records(self, line: dict[str, Any]) -> None:
        by_partition: dict[Partition, Fields] = {}
        for name, value in line["fields"]:
            saga_id = name.partition(b"/")[0].decode(errors="backslashreplace")
            by_partition.setdefault(self._keys.of(saga_id), []).append((name, value))
        for partition, fields in by_partition.items():
            pipeline, key = self._to(partition), partition.done(line["service"], line["hour"] * HOUR_MS)
            pipeline.hset(key, items=_flat(fields))
            if line["ttl_ms"] is not None:
                pipeline.pexpire(key, max(1, line["ttl_ms"]))

    def _entry(self, line: dict[str, Any]) -> None:
        fields = dict(line["fields"])
        saga_id = saga_id_of(line["fields"])
        partitions = self._keys.partitions
        partition = partitions[line["partition"] % len(partitions)] if saga_id is None else self._keys.of(saga_id)
        if line["again"]:
            fields[REPLAYED] = b"1"  # somebody may have begun with it
        if line["what"] == "quarantine":
            self._rename(fields, partition)
        # A new id: those of two partitions may be the same, and a stream takes them in their order only.
        named: dict[Any, Any] = dict(fields)
        self._to(partition).xadd(_stream(partition, line["what"], line["service"]), named)

    def _rename(self, fields: dict[bytes, bytes], partition: Partition) -> None:
        """Let a quarantined message name the stream in this store that takes the place of the one it came from."""
        place = self._from.place_of(fields.get(b"stream", b"").decode(errors="backslashreplace"))
        if place is not None:
            fields[b"stream"] = _stream(partition, place.what, place.service).encode()


def _stream(partition: Partition, what: str, service: str) -> str:
    if what == "requests":
        return partition.requests
    if what == "interventions":
        return partition.interventions
    if what == "replies":
        return partition.replies(service)
    if what == "commands":
        return partition.commands(service)
    return partition.quarantine_of(service) if service else partition.quarantine


def _flat(fields: Iterable[tuple[bytes, bytes]]) -> list[Any]:
    return [word for pair in fields for word in pair]
