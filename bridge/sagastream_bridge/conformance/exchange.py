"""Plays the orchestrator to a live service: writes commands, reads the replies, and leaves nothing behind.

It touches nothing of others. It reads replies without a consumer group, and deletes only those that name a saga of this
run. From the quarantine, and from the commands of the service, it deletes only what this run has sent.
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
import redis

from sagastream.broker.failures import is_no_group
from sagastream.broker.wire import execute
from sagastream.codecs.setting import codec_of
from sagastream.core.commands import Reply
from sagastream.core.messages import Fields
from sagastream.core.parsing import read_reply
from sagastream.errors import SagastreamError
from sagastream.store import heartbeat
from sagastream.store.events import sort_key
from sagastream.store.keys import StoreKeys

#: The ids of all sagas of a check begin with this.
PREFIX: Final = "check-service-"
#: How long an entry seems to be held by a dead reader, in milliseconds: longer than any lease.
_HELD_MS: Final = 24 * 3600 * 1000
#: How long one reading waits for entries, in milliseconds: some conditions come true without any.
_BLOCK_MS: Final = 20
_PAGE: Final = 1000
#: How many replies that name no saga of ours are kept, for the report.
_STRANGERS_KEPT: Final = 50

_T = TypeVar("_T")


class CheckError(SagastreamError):
    """The service cannot be checked; says why, and what to do."""


class Unfit(CheckError):
    """The options do not fit the service, or each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reply that names a saga of this run."""

    fields: dict[bytes, bytes]
    reply: Reply

    @property
    def body(self) -> dict[str, Any]:
        return dict(orjson.loads(self.fields[b"body"]))

    def __str__(self) -> str:
        return shown(self.fields)


class Exchange:
    def __init__(self, client: "redis.Redis", keys: StoreKeys, service: str, *, timeout_s: float) -> None:
        """`timeout_s`: how long to wait for anything."""
        self.codec = codec_of(None)  # seals the params that are sent
        self.service = service
        self.keys = keys
        self._partition = keys.partitions[0]  # of the saga of the trial that goes on
        self.timeout_s = timeout_s
        self.run = f"{PREFIX}{uuid.uuid4().hex[:8]}"
        self.client = client
        self._dead = f"{self.run}-dead"  # the reader that dies
        self._replies = {partition.replies(service) for partition in keys.partitions}
        self._asides = {partition.quarantine_of(service) for partition in keys.partitions}
        # A worker that reads the replies meanwhile would quarantine them there.
        self._asides |= {partition.quarantine for partition in keys.partitions}
        self._read_to = {name: self._last_id(name) for name in (*self._replies, *self._asides)}
        self._sent: set[bytes] = set()
        self._answers: defaultdict[str, list[Answer]] = defaultdict(list)
        self._strangers: list[tuple[str | None, str]] = []  # other replies: the saga that they name, their text
        self.quarantined: dict[bytes, str] = {}  # entry that was sent -> why it was quarantined

    def go_to(self, saga_id: str) -> None:
        """What follows is about this saga, in its partition."""
        self._partition = self.keys.of(saga_id)

    @property
    def stream(self) -> str:
        """The commands of the service."""
        return self._partition.commands(self.service)

    @property
    def aside(self) -> str:
        """Where the service sets aside what is not a command."""
        return self._partition.quarantine_of(self.service)

    def now_ms(self) -> int:
        """The time by the broker's clock."""
        seconds, microseconds = self.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def send(self, *entries: Fields) -> list[bytes]:
        """Add entries to the service's commands, all at once. Returns their ids."""
        pipeline = self.client.pipeline()
        for fields in entries:
            pipeline.xadd(self.stream, _untyped(fields))
        ids = execute(pipeline)
        self._sent.update(ids)
        return ids

    def send_to_the_dead(self, fields: Fields) -> bytes:
        """Add an entry that a reader of the service's group holds which died long ago. Returns its id.

        It is added and read in one transaction, so that no living reader gets it first. That happens only when no other
        entry waits, which would be read in its place. Raises CheckError if that does not happen in time.
        """
        entry_id = self.until(lambda: self._add_and_read(fields))
        if entry_id is None:
            raise CheckError(
                f"{self.stream} always has entries that its group has not read, or has no group {self.service}; "
                "check the service when it has little else to do"
            )
        self._sent.add(entry_id)
        self.client.xclaim(self.stream, self.service, self._dead, 0, [entry_id], idle=_HELD_MS, justid=True)
        return entry_id

    def answers(self, saga_id: str) -> list[Answer]:
        """The replies that have come for a saga of this run, in their order."""
        self._listen(0)
        return self._answers[saga_id]

    def until(self, condition: Callable[[], _T | None]) -> _T | None:
        """The first true value of `condition`; None if there is none in time.

        Raises CheckError if a worker has begun to read the replies.
        """
        deadline = time.monotonic() + self.timeout_s
        while not (value := condition()):
            if time.monotonic() >= deadline:
                refuse_beside_a_worker(self.client, self.keys)
                return None
            self._listen(_BLOCK_MS)
        return value

    def group(self) -> dict[str, Any] | None:
        """The service's consumer group, as XINFO GROUPS describes it; None if there is none."""
        try:
            groups: Any = self.client.xinfo_groups(self.stream)
        except redis.ResponseError as error:
            if is_no_group(error):
                return None
            raise
        return next((group for group in groups if group["name"] == self.service.encode()), None)

    def is_pending(self, entry_id: bytes) -> bool:
        """Whether an entry was read and not acknowledged, or not read yet."""
        group = self.group()
        if group is None:
            return self.is_there(entry_id)
        if self.client.xpending_range(self.stream, self.service, entry_id, entry_id, 1):
            return True
        return sort_key(group["last-delivered-id"]) < sort_key(entry_id) and self.is_there(entry_id)

    def is_there(self, entry_id: bytes) -> bool:
        """Whether an entry is still in the stream."""
        return bool(self.client.xrange(self.stream, entry_id, entry_id))

    def answered_before_acknowledged(self, entry_id: bytes, saga_id: str) -> bool | None:
        """Watch a command that was just sent: is there a reply to its saga before it is acknowledged? None: neither
        came in time."""
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            pipeline = self.client.pipeline()
            pipeline.xpending_range(self.stream, self.service, entry_id, entry_id, 1)
            pipeline.xrange(self.stream, entry_id, entry_id)
            pipeline.xinfo_groups(self.stream)
            pipeline.xrange(replied := self._partition.replies(self.service), f"({self._read_to[replied]}", "+", _PAGE)
            held, there, groups, replies = execute(pipeline)
            if any(read_reply(fields).saga_id == saga_id for _, fields in replies):
                return True
            read_to = next((g["last-delivered-id"] for g in groups if g["name"] == self.service.encode()), b"0-0")
            if not held and (not there or sort_key(read_to) >= sort_key(entry_id)):
                return False
        refuse_beside_a_worker(self.client, self.keys)
        return None

    def strangers(self) -> list[str]:
        """The replies that no orchestrator would understand: they name no saga of this store."""
        return [what for saga_id, what in self._strangers if saga_id is None or not self._is_known(saga_id)]

    def _is_known(self, saga_id: str) -> bool:
        return bool(self.client.exists(self.keys.saga(saga_id)))

    def tidy(self) -> None:
        """Delete from the store what was sent, and the answers."""
        self._listen(0)
        if self._sent:
            ids = sorted(self._sent)
            pipeline = self.client.pipeline()
            if self.group() is not None:
                pipeline.xack(self.stream, self.service, *ids)
                # Only now that it holds nothing: the group would lose what it holds.
                pipeline.xgroup_delconsumer(self.stream, self.service, self._dead)
            pipeline.xdel(self.stream, *ids)
            execute(pipeline)
            self._sent.clear()

    def _add_and_read(self, fields: Fields) -> bytes | None:
        with self.client.pipeline() as pipeline:
            try:
                pipeline.watch(self.stream)  # type: ignore[no-untyped-call]
                group = self.group()
                if group is None or self.client.xrange(
                    self.stream, f"({group['last-delivered-id'].decode()}", "+", count=1
                ):
                    return None
                pipeline.multi()
                pipeline.xadd(self.stream, _untyped(fields))
                pipeline.xreadgroup(self.service, self._dead, {self.stream: ">"}, count=1)
                entry_id, _ = execute(pipeline)
            except redis.WatchError:
                return None
        assert isinstance(entry_id, bytes)
        return entry_id

    def _listen(self, block_ms: int) -> None:
        """Take what has come. If there is nothing, wait up to `block_ms`; 0: do not wait."""
        while True:
            news: Any = self.client.xread(_untyped(self._read_to), count=_PAGE, block=block_ms or None)
            for stream, entries in news:
                name = stream.decode()
                self._read_to[name] = entries[-1][0].decode()
                take = self._take_reply if name in self._replies else self._take_quarantined
                ours = [entry_id for entry_id, fields in entries if take(fields)]
                if ours:
                    self.client.xdel(name, *ours)
            block_ms = 0
            if all(len(entries) < _PAGE for _, entries in news):
                return

    def _take_reply(self, fields: dict[bytes, bytes]) -> bool:
        """Whether it is ours, and was taken."""
        reply = read_reply(fields)
        if isinstance(reply, Reply) and reply.saga_id.startswith(self.run):
            self._answers[reply.saga_id].append(Answer(fields=fields, reply=reply))
            return True
        if len(self._strangers) < _STRANGERS_KEPT:
            self._strangers.append((reply.saga_id, shown(fields)))
        return False

    def _take_quarantined(self, fields: dict[bytes, bytes]) -> bool:
        """Whether it is ours: a command that we sent, or a reply that a worker has taken meanwhile."""
        stream, entry_id = fields.get(b"stream", b""), fields.get(b"entry_id", b"")
        if stream == self.stream.encode() and entry_id in self._sent:
            self.quarantined[entry_id] = fields.get(b"reason", b"").decode(errors="backslashreplace")
            return True
        if stream.decode(errors="replace") not in self._replies:
            return False
        reply = read_reply({b"body": fields.get(b"body", b"")})
        return isinstance(reply, Reply) and reply.saga_id.startswith(self.run)

    def _last_id(self, stream: str) -> str:
        last: Any = self.client.xrevrange(stream, count=1)
        return last[0][0].decode() if last else "0-0"


def refuse_beside_a_worker(client: "redis.Redis", keys: StoreKeys) -> None:
    """Raises CheckError if an orchestrator's worker reads this store: it would take the replies away."""
    if heartbeat.worker_is_alive(client, keys):
        raise CheckError(
            "a worker reads the replies of this store (or did until a moment ago), and would quarantine those of the "
            "check: stop `sagastream worker` and `sagastream up`, or run the service on its own store"
        )


def shown(fields: dict[bytes, bytes]) -> str:
    """An entry as text for people: its body, and its other fields."""
    body = fields.get(b"body", b"no body").decode(errors="backslashreplace")
    others = [f"{n.decode(errors='backslashreplace')}={v.decode(errors='backslashreplace')}"
              for n, v in fields.items() if n != b"body"]  # fmt: skip
    text = body + (f" with {', '.join(others)}" if others else "")
    return text if len(text) <= 300 else text[:300] + "…"


def _untyped(mapping: Mapping[str, Any]) -> dict[Any, Any]:
    """The same mapping, for redis-py, whose annotations allow no narrower type of keys."""
    return dict(mapping)
