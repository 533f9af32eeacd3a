"""The quarantine: messages that could not be understood, or came too late. Each is kept, with the reason, until a
person decides what to do with it.

The orchestrator has one stream of them in each partition, and each service another, so that no service can have what it
likes put back into the streams of others.
"""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import orjson
import redis

from sagastream.broker import scripting
from sagastream.broker.entries import REPLAYED, time_of
from sagastream.broker.exchange import run
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.wire import or_raise
from sagastream.core.belonging import KEPT
from sagastream.core.strict_json import decode_any
from sagastream.errors import QuarantineError
from sagastream.store import operations, published
from sagastream.store.keys import Partition, StoreKeys

_ENTRY_ID: Final = re.compile(
    r"((?P<service>[A-Za-z0-9._-]{1,128})/)?(?P<id>\d{1,20}-\d{1,20})(@(?P<partition>\d{1,3}))?", re.ASCII
)
#: How many messages are read at once: at first and while they are large, and while they are small.
_FIRST_PAGE: Final = 8
_PAGE: Final = 200
#: Up to so many bytes, the messages of a page are small.
_SMALL_PAGE_BYTES: Final = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A message that was set aside."""

    id: str  # in the quarantine, as people write it: 1767-0, till/1767-0, 1767-0@2
    added_as: str  # the id of its entry
    set_aside_by: str  # the service that did it; empty: the orchestrator
    reason: str  # why it was set aside
    stream: str  # from which it came
    entry_id: str  # of the entry in that stream
    body: bytes
    fields: dict[str, str] | None  # the entry's other fields; None: the entry was too large to be kept whole

    @property
    def size(self) -> int:
        """About how long it is, in bytes."""
        return len(self.body) + sum(map(len, (self.fields or {}).values()))

    @property
    def at_ms(self) -> int:
        """When it was set aside, by the broker's clock."""
        return time_of(self.added_as.encode())

    @cached_property
    def message(self) -> dict[str, Any]:
        """The body, if it is a JSON object that is not too costly to read; otherwise an empty dict."""
        value = decode_any(self.body)
        return value if isinstance(value, dict) else {}

    @property
    def kind(self) -> str:
        """The `type` in its body, cut to 135 characters; "" if it has none. It may be any text."""
        kind = self.message.get("type")
        return kind[:135] if isinstance(kind, str) else ""

    @property
    def saga_id(self) -> str:
        """The `saga_id` in its body, cut to 135 characters; "" if it has none. It may be any text."""
        saga_id = self.message.get("saga_id")
        return saga_id[:135] if isinstance(saga_id, str) else ""


class _Stream(NamedTuple):
    """One stream of the quarantine: the orchestrator's of a partition, or a service's."""

    name: str
    partition: Partition
    service: str  # empty: the orchestrator's

    def id_of(self, entry_id: str) -> str:
        """The id of one of its entries, as people write it: 1767-0, till/1767-0 or, outside partition 0, 1767-0@2."""
        return shown_id(self.partition, self.service, entry_id)


def shown_id(partition: Partition, service: str, entry_id: str) -> str:
    """The id of a quarantined entry as people write it. `service`: the one that set it aside; empty: the orchestrator
    did."""
    number = partition.number
    return (f"{service}/" if service else "") + entry_id + (f"@{number}" if number else "")


class Quarantine:
    """The quarantined messages of a store."""

    def __init__(self, client: "redis.Redis", keys: StoreKeys) -> None:
        self._client = client
        self._keys = keys
        self._replay = scripting.load(client, "replay")

    def __len__(self) -> int:
        return sum(self._lengths().values())

    def newest_first(self) -> Iterator[Quarantined]:
        """All messages, the newest first; read page by page."""
        pages = [self._newest_first(stream) for stream, length in self._lengths().items() if length]
        yield from heapq.merge(*pages, key=lambda message: message.at_ms, reverse=True)

    def get(self, entry_id: str) -> Quarantined:
        """One message, by its id in the quarantine. Raises QuarantineError if the quarantine does not hold it."""
        return self._get(entry_id)[1]

    def replay(self, entry_id: str, *, actor: str | None = None, reason: str | None = None) -> Quarantined:
        """Put a message back into the stream from which it came, where it is read again. What a service has set aside
        goes back to that service's commands, whatever stream it names. `actor` and `reason`: who does it, and why.

        Raises QuarantineError if the quarantine does not hold the message, or the message cannot be put back.
        """
        stream, message = self._get(entry_id)
        if message.fields is None:
            raise QuarantineError(f"{message.id} was too large to be kept whole: it cannot be put back")
        fields: dict[Any, Any] = {"body": message.body} | message.fields | {REPLAYED: 1}
        words = [word for pair in fields.items() for word in pair]
        self._move(stream, entry_id, [self._origin(stream, message)], words)
        self._note("quarantine replay", message, actor, reason)
        return message

    def drop(self, entry_id: str, *, actor: str | None = None, reason: str | None = None) -> Quarantined:
        """Delete a message. `actor` and `reason`: who does it, and why. Raises QuarantineError if the quarantine does
        not hold it."""
        stream, message = self._get(entry_id)
        self._move(stream, entry_id, [], [])
        self._note("quarantine drop", message, actor, reason)
        return message

    def _note(self, verb: str, message: Quarantined, actor: str | None, reason: str | None) -> None:
        run(self._client, operations.note(self._keys, verb, message.id, actor=actor, reason=reason))

    def _lengths(self) -> dict[_Stream, int]:
        """How many messages stand in each stream; none in what is no stream, as `doctor` reports."""
        streams = self._streams()
        pipeline = self._client.pipeline(transaction=False)
        for stream in streams:
            pipeline.xlen(stream.name)
        answers = pipeline.execute(raise_on_error=False)
        none = [is_wrong_type(one) for one in answers]
        lengths = [0 if is_none else int(or_raise(one)) for one, is_none in zip(answers, none, strict=True)]
        return dict(zip(streams, lengths, strict=True))

    def _streams(self) -> list[_Stream]:
        """All streams of the quarantine."""
        partitions = self._keys.partitions
        services = run(self._client, published.services(self._keys))
        found = [_Stream(partition.quarantine, partition, "") for partition in partitions]
        return found + [
            _Stream(partition.quarantine_of(service), partition, service)
            for service in services
            for partition in partitions
        ]

    def _get(self, entry_id: str) -> tuple[_Stream, Quarantined]:
        parts = _ENTRY_ID.fullmatch(entry_id)
        number = int(parts["partition"] or 0) if parts else 0
        if parts is None or number >= len(self._keys.partitions):
            raise QuarantineError(f"the quarantine holds no {entry_id!a}")
        partition, service = self._keys.partitions[number], parts["service"] or ""
        name = partition.quarantine_of(service) if service else partition.quarantine
        stream = _Stream(name, partition, service)
        if not (found := self._range(stream, parts["id"], parts["id"])):
            raise QuarantineError(f"the quarantine holds no {entry_id!a}")
        return stream, found[0]

    def _origin(self, stream: _Stream, message: Quarantined) -> str:
        """The stream into which a message may be put back. Raises QuarantineError."""
        if stream.service:
            return stream.partition.commands(stream.service)
        place = self._keys.place_of(message.stream)
        if place is None or place.what == "commands":
            raise QuarantineError(f"{message.id} came from {message.stream!a}: nothing can be put back there")
        return message.stream

    def _newest_first(self, stream: _Stream) -> Iterator[Quarantined]:
        before, count = "+", _FIRST_PAGE
        while page := self._range(stream, before, "-", count):
            yield from page
            before = f"({page[-1].added_as}"
            # A message may have a megabyte.
            count = min(_PAGE, 2 * count) if sum(one.size for one in page) < _SMALL_PAGE_BYTES else _FIRST_PAGE

    def _move(self, stream: _Stream, entry_id: str, target: list[str], words: list[Any]) -> None:
        parts = _ENTRY_ID.fullmatch(entry_id)
        assert parts is not None
        if not self._replay(keys=[stream.name, *target], args=[parts["id"], *words]):
            raise QuarantineError(
                f"the quarantine holds no {entry_id} any more: somebody else has put it back or dropped it"
            )

    def _range(self, stream: _Stream, newest: str, oldest: str, count: int = 1) -> list[Quarantined]:
        entries: Any = self._client.xrevrange(stream.name, newest, oldest, count=count)
        return [_read(stream, entry_id.decode(), fields) for entry_id, fields in entries]


def _read(stream: _Stream, entry_id: str, fields: dict[bytes, bytes]) -> Quarantined:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="backslashreplace")

    is_whole = isinstance(others := _others(fields), dict) and all(isinstance(value, str) for value in others.values())
    return Quarantined(
        id=stream.id_of(entry_id),
        added_as=entry_id,
        set_aside_by=stream.service,
        reason=text(b"reason"),
        stream=text(b"stream"),
        entry_id=text(b"entry_id"),
        body=fields.get(b"body", b""),
        fields=others if is_whole else None,
    )


def _others(fields: dict[bytes, bytes]) -> Any:
    """The entry's other fields, if nothing was cut off."""
    try:
        if kept := {name[len(KEPT) :]: value for name, value in fields.items() if name.startswith(KEPT)}:
            return {name.decode(): value.decode() for name, value in kept.items()}
        return orjson.loads(fields.get(b"fields", b"{}"))
    except (orjson.JSONDecodeError, UnicodeDecodeError):
        return None
