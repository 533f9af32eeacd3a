"""The quarantine: messages that could not be understood, or came too late. Each is kept, with the reason, until a
person decides what to do with it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson
import redis

from sagastream.broker import scripting
from sagastream.broker.group_reader import REPLAYED
from sagastream.errors import QuarantineError
from sagastream.store import keys

_ENTRY_ID: Final = re.compile(r"\d{1,20}-\d{1,20}")
_PAGE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A message that was set aside."""

    id: str  # of the entry in the quarantine
    reason: str  # why it was set aside
    stream: str  # from which it came
    entry_id: str  # of the entry in that stream
    body: bytes
    fields: dict[str, str] | None  # the entry's other fields; None: the entry was too large to be kept whole

    @property
    def at_ms(self) -> int:
        """When it was set aside, by the broker's clock."""
        return int(self.id.partition("-")[0])

    @property
    def message(self) -> dict[str, Any]:
        """The body, if it is a JSON object; otherwise an empty dict."""
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return {}
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


class Quarantine:
    """The quarantined messages of a store."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._replay = scripting.load(client, "replay")

    def __len__(self) -> int:
        return int(self._client.xlen(keys.QUARANTINE))

    def newest_first(self) -> Iterator[Quarantined]:
        """All messages, the newest first; read page by page."""
        before = "+"
        while page := self._range(before, "-"):
            yield from page
            before = f"({page[-1].id}"

    def get(self, entry_id: str) -> Quarantined:
        """One message, by its id in the quarantine. Raises QuarantineError if the quarantine does not hold it."""
        found = self._range(entry_id, entry_id) if _ENTRY_ID.fullmatch(entry_id) else []
        if not found:
            raise QuarantineError(f"the quarantine holds no {entry_id!a}")
        return found[0]

    def replay(self, entry_id: str) -> Quarantined:
        """Put a message back into the stream from which it came, where it is read again.

        Raises QuarantineError if the quarantine does not hold the message, or the message cannot be put back.
        """
        message = self.get(entry_id)
        if not keys.is_inbox(message.stream):
            raise QuarantineError(f"{entry_id} came from {message.stream!a}: nothing can be put back there")
        if message.fields is None:
            raise QuarantineError(f"{entry_id} was too large to be kept whole: it cannot be put back")
        fields: dict[Any, Any] = {"body": message.body} | message.fields | {REPLAYED: 1}
        words = [word for pair in fields.items() for word in pair]
        self._move([keys.QUARANTINE, message.stream], [entry_id, *words])
        return message

    def drop(self, entry_id: str) -> Quarantined:
        """Delete a message. Raises QuarantineError if the quarantine does not hold it."""
        message = self.get(entry_id)
        self._move([keys.QUARANTINE], [entry_id])
        return message

    def _move(self, names: list[str], args: list[Any]) -> None:
        if not self._replay(keys=names, args=args):
            raise QuarantineError(
                f"the quarantine holds no {args[0]} any more: somebody else has put it back or dropped it"
            )

    def _range(self, newest: str, oldest: str) -> list[Quarantined]:
        entries: Any = self._client.xrevrange(keys.QUARANTINE, newest, oldest, count=_PAGE)
        return [_read(entry_id.decode(), fields) for entry_id, fields in entries]


def _read(entry_id: str, fields: dict[bytes, bytes]) -> Quarantined:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="backslashreplace")

    try:
        others = orjson.loads(fields.get(b"fields", b"{}"))
    except orjson.JSONDecodeError:  # it was cut, since it was too large
        others = None
    is_whole = isinstance(others, dict) and all(isinstance(value, str) for value in others.values())
    return Quarantined(
        id=entry_id,
        reason=text(b"reason"),
        stream=text(b"stream"),
        entry_id=text(b"entry_id"),
        body=fields.get(b"body", b""),
        fields=others if is_whole else None,
    )
