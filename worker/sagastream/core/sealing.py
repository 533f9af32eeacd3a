"""Seals values, and opens them, where they come in and where they are used: in clients, services and the bridge. Pure.

A sealed value is bound to its saga, and to the step and the field that it was sealed for. So it opens in its own saga
only, and only where it may stand: where it was sealed or, if references may copy it, in the params of another step too.
Rejected: to bind it to its saga alone. Then whoever can write into the store could swap the params of two steps.
"""

from base64 import b64decode, b64encode
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from msgspec import Struct

from sagastream.core.messages import is_id
from sagastream.core.sealed_values import MARK, SealedValue, replaced
from sagastream.core.strict_json import MAX_BYTES, MAX_PAYLOAD_BYTES, decode, encode_payload, value_of
from sagastream.errors import CannotOpen, MalformedMessage

#: How many sealed values one payload may hold. Each costs some microseconds, so the smallest ones would add up.
MAX_SEALED: Final = 5000


class CodecContext(Struct, frozen=True, kw_only=True):
    """Which value is sealed or opened."""

    saga_id: str
    step: int  # of which it was sealed, from 1; 0: it is of the saga itself
    field: str  # as what: "params" or "result"; of the saga, "input/" and a name, or "signal/" and a name
    key: str  # the id of the key

    @property
    def bound_to(self) -> bytes:
        """What an authenticated cipher takes as associated data. It differs for any two values of a store."""
        return f"{self.saga_id}/{self.step}/{self.field}".encode()


@runtime_checkable
class Codec(Protocol):
    """Seals values and opens them; several threads may do so at once.

    `encode` should return the same bytes for the same arguments: then a worker, which opens nothing, sees that a saga
    is begun again. If it does not, only a client with the key can compare the two.
    """

    @property
    def key(self) -> str:
        """The id of the key with which `encode` seals now: 1 to 128 characters of A-Z a-z 0-9 . _ : -"""

    def encode(self, data: bytes, context: CodecContext) -> bytes:
        """Seal a value, which is JSON."""

    def decode(self, data: bytes, context: CodecContext) -> bytes:
        """What was sealed. Raises CannotOpen, with the reason, if there is no such key, or if the data was not sealed
        with this context. Any other error counts as that, too, but its text is not told: it may quote the value."""


#: As what a value stands that nobody seals as this: what a compensation is told, which is built of references.
UNDO: Final = "undo"
#: The fields of a saga, step 0, each with the name of a member or of a signal.
_OF_SAGA: Final = ("input/", "signal/")


class Place(NamedTuple):
    """Where a value stands."""

    saga_id: str
    step: int
    field: str

    @property
    def source(self) -> str:
        return f"{self.step}/{self.field}"

    def may_hold(self, step: int, field: str) -> bool:
        """Whether what was sealed as this may stand here."""
        if (step, field) == (self.step, self.field):
            return field != UNDO
        if self.field not in ("params", UNDO):
            return False
        if step == 0:
            return field.startswith(_OF_SAGA)
        # A step has no result yet when its params are built; when it is undone, it has.
        return field == "result" and (step != self.step or self.field == UNDO)


def seal(codec: Codec, data: bytes, place: Place) -> bytes:
    """A value, sealed. Raises MalformedMessage if it is too large then, and whatever the codec raises."""
    key = codec.key
    if not is_id(key):
        raise MalformedMessage(f"the id of a key must be 1 to 128 characters of A-Z a-z 0-9 . _ : -, not {key!r:.200}")
    context = CodecContext(saga_id=place.saga_id, step=place.step, field=place.field, key=key)
    text = b64encode(codec.encode(data, context)).decode()
    sealed = SealedValue(key, place.source, text).encoded
    if len(sealed) > MAX_PAYLOAD_BYTES:
        raise MalformedMessage(f"too large: sealed, it has {len(sealed)} bytes, at most {MAX_PAYLOAD_BYTES}")
    return sealed


def open_value(codec: Codec | None, data: bytes, place: Place) -> bytes:
    """A payload with all that is sealed in it opened, if there is anything. What was sealed is taken as it is, even if
    it looks like a sealed value: who seals a handler's result does not look what is in it. Raises CannotOpen, also if
    it is more than a payload may be then."""
    if MARK not in data:
        return data
    keys: list[str] = []

    def opened(sealed: SealedValue) -> Any:
        keys.append(sealed.key)
        if len(keys) > MAX_SEALED:
            raise CannotOpen(f"one value holds more than {MAX_SEALED} sealed values", key=sealed.key)
        return value_of(_content(codec, sealed, place))

    value = replaced(value_of(data), opened)
    if not keys:
        return data
    try:
        return encode_payload(value)
    except MalformedMessage as error:  # of sizes: it tells nothing of what was sealed
        raise CannotOpen(f"opened, it is {error}", key=keys[0]) from None


def _content(codec: Codec | None, sealed: SealedValue, place: Place) -> bytes:
    step, _, field = sealed.source.partition("/")
    if codec is None:
        raise CannotOpen(f"it is sealed with key {sealed.key}, and this process has no keys", key=sealed.key)
    if not (step.isascii() and step.isdecimal() and len(step) <= 3 and place.may_hold(int(step), field)):
        text = f"it was sealed as {sealed.source!a:.64}, and stands in {place.source}: somebody has moved it"
        raise CannotOpen(text, key=sealed.key)
    context = CodecContext(saga_id=place.saga_id, step=int(step), field=field, key=sealed.key)
    failed = f"the codec failed at key {sealed.key}"
    try:
        content = codec.decode(b64decode(sealed.data, validate=True), context)
    except CannotOpen as error:
        raise CannotOpen(str(error), key=sealed.key) from None
    # Whoever has no key reads why a value cannot be opened. The text of any other error may quote what was sealed, and
    # so may a traceback.
    except Exception as error:  # noqa: BLE001 - whatever a codec raises
        raise CannotOpen(f"{failed}: {type(error).__name__}", key=sealed.key) from None
    try:
        decode(content, MAX_BYTES)
    except Exception:  # noqa: BLE001 - it may be of any type
        raise CannotOpen(f"{failed}: what was sealed is not JSON as sagastream reads it", key=sealed.key) from None
    return content
