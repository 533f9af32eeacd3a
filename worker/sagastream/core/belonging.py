"""To which of some sagas an entry of a stream belongs. Pure.

A message that sagastream can read belongs to the saga that it names as its `saga_id`. Of everything else nobody knows
how its sender meant it, so it belongs to each saga whose id occurs anywhere in it: too much rather than too little.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from sagastream.core.messages import is_id
from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage

#: A character of an id as JSON may write it.
_ESCAPE: Final = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
#: What may stand between the characters of an id: the zeros of UTF-16 and UTF-32, the backslashes of JSON in JSON.
_BETWEEN: Final = b"\0\\"

#: How `fields` of a quarantined entry begins if the other fields of the entry are too long for it.
CUT: Final = b"cut: "
#: With this begins the name of a field in which the quarantine keeps a field of the entry as it was, if that is so.
KEPT: Final = b"field:"

Fields = Mapping[bytes, bytes]


class Belonging:
    """Tells to which of these sagas entries belong."""

    def __init__(self, saga_ids: Collection[str]) -> None:
        self._ids = {saga_id.encode(): saga_id for saga_id in saga_ids}

    def of_message(self, fields: Fields) -> set[str]:
        """The sagas to which an entry of requests, interventions, replies or commands belongs."""
        return self._of(fields.get(b"body"), (word for pair in fields.items() for word in pair))

    def of_quarantined(self, fields: Fields) -> set[str]:
        """… of a quarantine. In what sagastream says in its other fields, a short id occurs by chance."""
        body = fields.get(b"body", b"")
        kept = (value for name, value in fields.items() if name.startswith(KEPT))
        return self._of(body, (body, fields.get(b"fields", b""), *kept))

    def is_undecided(self, fields: Fields) -> bool:
        """Whether nobody can tell to whom an entry of a quarantine belongs: it was cut, and has lost the id, if it had
        one."""
        is_cut = fields.get(b"fields", b"").startswith(CUT) and not any(name.startswith(KEPT) for name in fields)
        if self.of_quarantined(fields) or not is_cut:
            return False
        return _named(fields.get(b"body", b"")) is None

    def of_event(self, fields: Fields) -> set[str]:
        """… of events."""
        saga_id = fields.get(b"saga_id")
        return self.of_message(fields) if saga_id is None else self._known(saga_id)

    def _of(self, body: bytes | None, texts: Iterable[bytes]) -> set[str]:
        if body and (saga_id := _named(body)) is not None:
            return self._known(saga_id.encode())
        return {saga_id for text in texts for saga_id in self._in(text)}

    def _known(self, saga_id: bytes) -> set[str]:
        return {self._ids[saga_id]} if saga_id in self._ids else set()

    def _in(self, text: bytes) -> set[str]:
        """The sagas whose ids occur in a text, in whatever encoding and however JSON escapes it."""
        plain = _ESCAPE.sub(_unescaped, text).translate(None, _BETWEEN)
        return {saga_id for name, saga_id in self._ids.items() if name in plain or name in text}


def _named(body: bytes) -> str | None:
    """The id of the saga that a message names; None: it is not a message that can be read, or names none."""
    try:
        value: Any = decode(body)
    except MalformedMessage:
        return None
    saga_id = value.get("saga_id") if isinstance(value, dict) else None
    return saga_id if is_id(saga_id) else None


def _unescaped(escape: "re.Match[bytes]") -> bytes:
    return bytes([int(escape[1], 16)])
