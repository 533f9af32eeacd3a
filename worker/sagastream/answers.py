"""Answering commands: record, reply and acknowledgement of a whole batch in one script call."""

from typing import Any

import redis

from sagastream import keys, scripts
from sagastream.messages import Command, Reply
from sagastream.streams import Entry


class Answers:
    """The answers that one service has ready and not yet sent."""

    def __init__(self, client: "redis.Redis", service: str) -> None:
        self._client = client
        self._service = service
        self._script = scripts.load(client, "answer")
        self._clear()

    def __len__(self) -> int:
        return self._count

    def reply(self, entry: Entry, command: Command, reply: Reply) -> None:
        """Answer `command`, which came as `entry`. An answer that leaves open what happened is not recorded:
        the command may be tried again."""
        fields: list[str | bytes | int] = ["body", reply.body()]
        record = 0
        if reply.unknown:
            fields += ("unknown", 1)
        else:
            record = self._key(keys.done(self._service, command.begun_ms))
        self._add(entry, record, command.key, keys.REPLIES, fields)

    def quarantine(self, entry: Entry, reason: str) -> None:
        """Set an entry aside that is no command."""
        self._add(entry, 0, "", keys.QUARANTINE, entry.quarantined(reason))

    def recorded(self, command: Command) -> bytes | None:
        """The body of the reply that was recorded for this command, if it was done before."""
        record: Any = self._client.hget(keys.done(self._service, command.begun_ms), command.key)
        return record if record is None else bytes(record)

    def send(self) -> None:
        """Send what is ready; nothing is dropped before the broker has it."""
        if self._count:
            self._script(keys=list(self._keys), args=self._args)
            self._clear()

    def _clear(self) -> None:
        self._count = 0
        self._keys = {keys.commands(self._service): 1, keys.REPLIES: 2, keys.QUARANTINE: 3}
        self._args: list[str | bytes | int] = [self._service, keys.DONE_KEPT_S]

    def _key(self, key: str) -> int:
        return self._keys.setdefault(key, len(self._keys) + 1)

    def _add(self, entry: Entry, record: int, field: str, target: str, fields: list[str | bytes | int]) -> None:
        self._args += (entry.id, record, field, self._keys[target], len(fields), *fields)
        self._count += 1
