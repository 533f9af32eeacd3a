"""The quarantine: messages that could not be understood, or came too late. Each is kept, with the reason, until a
person decides what to do with it.

The orchestrator has one stream of them in each partition, and each service another, so that no service can have what it
likes put back into the streams of others.
"""

import heapq
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import orjson
import redis

from sagastream.broker.entries import REPLAYED, time_of
from sagastream.broker.exchange import Exchange, run
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.scripting import Script
from sagastream.broker.wire import or_raise
from sagastream.core.belonging import KEPT
from sagastream.core.strict_json import decode_any
from sagastream.errors import QuarantineError
from sagastream.store import operations, published, reach
from sagastream.store.keys import Partition, StoreKeys

_ENTRY_ID: Final = re.compile(
    r"((?P<service>[A-Za-z0-9._-]{1,128})/)?(?P<id>\d{1,20}-\d{1,20})(@(?P<partition>\d{1,3}))?", re.ASCII
)
#: How many messages are read at once: at first and while they are large, and while they are small.
_FIRST_PAGE: Final = 8
_PAGE: Final = 200
#: Up to so many bytes, the messages of a page are small.
_SMALL_PAGE_BYTES: Final = 1 << 18
_REPLAY: Final = Script("replay")


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


class Newest(list[Quarantined]):
    """The newest messages that were set aside, the newest first."""

    #: The numbers of the partitions that could not be read, since their node was away. If that node also has the names
    #: of the services, what services have set aside is left out in all partitions.
    partitions_away: tuple[int, ...] = ()


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
    """The quarantined messages of a store, for callers that block."""

    def __init__(self, client: "redis.Redis", keys: StoreKeys) -> None:
        self._client = client
        self._keys = keys

    def __len__(self) -> int:
        return sum(run(self._client, _lengths(self._keys)).values())

    def newest_first(self) -> Iterator[Quarantined]:
        """All messages, the newest first; read page by page."""
        lengths = run(self._client, _lengths(self._keys))
        pages = [self._newest_first(_Pages(stream)) for stream, length in lengths.items() if length]
        yield from heapq.merge(*pages, key=lambda message: message.at_ms, reverse=True)

    def _newest_first(self, pages: "_Pages") -> Iterator[Quarantined]:
        while page := run(self._client, pages.next_page()):
            yield from page

    def get(self, entry_id: str) -> Quarantined:
        """One message, by its id in the quarantine. Raises QuarantineError if the quarantine does not hold it."""
        return run(self._client, _get(self._keys, entry_id))[1]

    def replay(self, entry_id: str, *, actor: str | None = None, reason: str | None = None) -> Quarantined:
        """See `replay`."""
        return run(self._client, replay(self._keys, entry_id, actor=actor, reason=reason))

    def drop(self, entry_id: str, *, actor: str | None = None, reason: str | None = None) -> Quarantined:
        """See `drop`."""
        return run(self._client, drop(self._keys, entry_id, actor=actor, reason=reason))


def newest(keys: StoreKeys, limit: int) -> Exchange[Newest]:
    """The newest messages, at most so many, of the partitions that can be reached."""
    reached = yield from reach.look(keys)
    lengths = yield from _lengths(reached.keys, has_shared=reached.shared is None)
    streams = [_Pages(stream) for stream, length in lengths.items() if length]
    waiting: list[deque[Quarantined]] = [deque() for _ in streams]
    found = Newest()
    found.partitions_away = tuple(sorted(reached.away))
    while len(found) < limit:
        for pages, unread in zip(streams, waiting, strict=True):
            if not unread:
                unread.extend((yield from pages.next_page()))
        if not (first := max((unread for unread in waiting if unread), key=lambda one: one[0].at_ms, default=None)):
            break
        found.append(first.popleft())
    return found


def replay(
    keys: StoreKeys, entry_id: str, *, actor: str | None = None, reason: str | None = None
) -> Exchange[Quarantined]:
    """Put a message back into the stream from which it came, where it is read again. What a service has set aside goes
    back to that service's commands, whatever stream it names. `actor` and `reason`: who does it, and why.

    Raises QuarantineError if the quarantine does not hold the message, or the message cannot be put back; and
    MalformedMessage if the reason or the actor is not valid.
    """
    operations.check(actor, reason)
    stream, message = yield from _get(keys, entry_id)
    if message.fields is None:
        raise QuarantineError(f"{message.id} was too large to be kept whole: it cannot be put back")
    fields: dict[Any, Any] = {"body": message.body} | message.fields | {REPLAYED: 1}
    words = [word for pair in fields.items() for word in pair]
    yield from _move(stream, message, [_origin(keys, stream, message)], words)
    yield from operations.note(keys, "quarantine replay", message.id, actor=actor, reason=reason)
    return message


def drop(
    keys: StoreKeys, entry_id: str, *, actor: str | None = None, reason: str | None = None
) -> Exchange[Quarantined]:
    """Delete a message. `actor` and `reason`: who does it, and why. Raises QuarantineError if the quarantine does not
    hold it, and MalformedMessage as `replay` does."""
    operations.check(actor, reason)
    stream, message = yield from _get(keys, entry_id)
    yield from _move(stream, message, [], [])
    yield from operations.note(keys, "quarantine drop", message.id, actor=actor, reason=reason)
    return message


class _Pages:
    """The messages of one stream of the quarantine, the newest first, page by page."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._before = "+"
        self._count = _FIRST_PAGE

    def next_page(self) -> Exchange[list[Quarantined]]:
        """Empty at the end."""
        if page := (yield from _range(self._stream, self._before, "-", self._count)):
            self._before = f"({page[-1].added_as}"
            # A message may have a megabyte.
            is_small = sum(one.size for one in page) < _SMALL_PAGE_BYTES
            self._count = min(_PAGE, 2 * self._count) if is_small else _FIRST_PAGE
        return page


def _lengths(keys: StoreKeys, *, has_shared: bool = True) -> Exchange[dict[_Stream, int]]:
    """How many messages stand in each stream of the quarantine. A key that holds no stream counts as empty.
    `has_shared`: whether it can be read which services there are."""
    services = (yield from published.services(keys)) if has_shared else []
    streams = [_Stream(partition.quarantine, partition, "") for partition in keys.partitions]
    streams += [
        _Stream(partition.quarantine_of(service), partition, service)
        for service in services
        for partition in keys.partitions
    ]
    answers = yield [("XLEN", stream.name) for stream in streams]
    lengths = [0 if is_wrong_type(answer) else int(or_raise(answer)) for answer in answers]
    return dict(zip(streams, lengths, strict=True))


def _get(keys: StoreKeys, entry_id: str) -> Exchange[tuple[_Stream, Quarantined]]:
    parts = _ENTRY_ID.fullmatch(entry_id)
    number = int(parts["partition"] or 0) if parts else 0
    partition = next((one for one in keys.partitions if one.number == number), None)
    if parts is None or partition is None:
        raise QuarantineError(f"the quarantine holds no {entry_id!a}")
    service = parts["service"] or ""
    name = partition.quarantine_of(service) if service else partition.quarantine
    stream = _Stream(name, partition, service)
    if not (found := (yield from _range(stream, parts["id"], parts["id"]))):
        raise QuarantineError(f"the quarantine holds no {entry_id!a}")
    return stream, found[0]


def _origin(keys: StoreKeys, stream: _Stream, message: Quarantined) -> str:
    """The stream into which a message may be put back. Raises QuarantineError."""
    if stream.service:
        return stream.partition.commands(stream.service)
    place = keys.place_of(message.stream)
    if place is None or place.what == "commands":
        raise QuarantineError(f"{message.id} came from {message.stream!a}: nothing can be put back there")
    return message.stream


def _move(stream: _Stream, message: Quarantined, target: list[str], words: list[Any]) -> Exchange[None]:
    if not (yield from _REPLAY.call([stream.name, *target], [message.added_as, *words])):
        raise QuarantineError(
            f"the quarantine holds no {message.id} any more: somebody else has put it back or dropped it"
        )


def _range(stream: _Stream, newest: str, oldest: str, count: int = 1) -> Exchange[list[Quarantined]]:
    (answer,) = yield [("XREVRANGE", stream.name, newest, oldest, "COUNT", count)]
    return [
        _read(stream, entry_id.decode(), dict(zip(words[::2], words[1::2], strict=True)))
        for entry_id, words in or_raise(answer)
    ]


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
