"""Entries of streams: how the broker returns them, and what the quarantine keeps of one."""

import json
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from sagastream.core.belonging import CUT, KEPT
from sagastream.telemetry import Log

#: One reading takes at most this many entries of a stream. So what a script gets is bounded, too.
BATCH: Final = 128
#: A field of entries that were put back from the quarantine: somebody may have worked on them already.
REPLAYED: Final = b"replayed"
#: How much of a quarantined entry is kept: of its body, in bytes (a message may not be longer), and of its other
#: fields, in characters. An entry that was cut cannot be put back.
_BODY_KEPT: Final = 1 << 20
_OTHER_FIELDS_KEPT: Final = 4096
#: The other fields of a command may be longer, in bytes: params, result, input, and what a compensation is told. It has
#: at most so many.
_LARGE_FIELDS_KEPT: Final = 4 * _BODY_KEPT + _OTHER_FIELDS_KEPT
_MANY_FIELDS: Final = 16
#: The last time that can be written, in milliseconds: the end of the year 9999. A clock gives no entry a later one.
LAST_MS: Final = 253_402_300_799_999


class Entry(Struct, frozen=True, kw_only=True, gc=False):
    """One entry of a stream."""

    stream: str
    id: bytes
    fields: dict[bytes, bytes]
    again: bool = False  # it was delivered before: somebody may have worked on it already
    taken_over: bool = False  # … to a reader that held it for longer than the lease, or handed it back

    @property
    def at(self) -> tuple[str, bytes]:
        """Where it stands: two streams may have an entry of the same id."""
        return self.stream, self.id

    @property
    def added_ms(self) -> int:
        """When it was added, by the broker's clock."""
        return time_of(self.id)

    def quarantined(self, reason: str, *, is_command: bool = False) -> dict[str, str | bytes | int]:
        """The fields of this entry in the quarantine: the same few, however many it has.

        If it is a command whose other fields are too long for that, each of them is kept by itself, as it was. `fields`
        still says that they were cut: a release that does not know better must not put back a part of them.
        """
        body, others, room = self.fields.get(b"body", b""), {}, _OTHER_FIELDS_KEPT
        for name, value in self.fields.items():
            if name != b"body" and room >= 0:  # what is more than that is cut anyway, and may be very much
                others[_text(name[: room + 1])] = _text(value[: room + 1])
                room -= len(name) + len(value)
        written = json.dumps(others)
        is_whole = len(body) <= _BODY_KEPT and len(written) <= _OTHER_FIELDS_KEPT and room >= 0
        kept: dict[str, str | bytes | int] = {
            "reason": reason,
            "stream": self.stream,
            "entry_id": self.id,
            "body": body[:_BODY_KEPT],
            "fields": written if is_whole else f"{CUT.decode()}{written}"[:_OTHER_FIELDS_KEPT],
        }
        return kept | self._large_fields() if is_command and not is_whole and len(body) <= _BODY_KEPT else kept

    def _large_fields(self) -> dict[str, bytes]:
        """The other fields of this command, as the quarantine keeps them; none if they are not those of a command."""
        others = {name: value for name, value in self.fields.items() if name != b"body"}
        size = sum(len(name) + len(value) for name, value in others.items())
        if len(others) > _MANY_FIELDS or size > _LARGE_FIELDS_KEPT or not b"".join(others).isascii():
            return {}
        return {(KEPT + name).decode(): value for name, value in others.items()}

    @property
    def size(self) -> int:
        """How many bytes its values take."""
        return sum(map(len, self.fields.values()))


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def time_of(entry_id: bytes) -> int:
    """When the entry with this id was added, in ms by the clock. Somebody may have given it a later time than there is:
    then the last one."""
    return min(int(entry_id.partition(b"-")[0]), LAST_MS)


def is_possible(entry_id: bytes) -> bool:
    """Whether the clock can have given this id. After one with a later time, a stream may take no more entries."""
    return int(entry_id.partition(b"-")[0]) <= LAST_MS


def entries_of(answer: Any, *, again: bool = False, taken_over: bool = False) -> list[Entry]:
    """The entries of an answer of XREADGROUP or XAUTOCLAIM, without those that were deleted while pending."""
    entries = []
    for name, page in answer or ():
        stream = name.decode()
        for entry_id, words in page:
            if words:
                pairs = iter(words)
                fields = dict(zip(pairs, pairs, strict=True))
                again_too = again or REPLAYED in fields
                entries.append(Entry(stream=stream, id=entry_id, fields=fields, again=again_too, taken_over=taken_over))
    return entries


def report_deleted(log: Log, stream: str, ids: Sequence[bytes]) -> None:
    """Say that these entries were deleted while they were pending."""
    names = ", ".join(entry_id.decode() for entry_id in ids[:5])
    log.warning(f"{len(ids)} entries of {stream} were deleted before they were answered: {names}")
