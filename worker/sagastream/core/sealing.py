"""Seals params and results, and opens them, where they come in and where they are used: in clients, services and the
bridge. Pure.

A sealed value is bound to its saga, and to the step and the field that it was sealed for. So it opens in its own saga
only, and only where it may stand: where it was sealed or, if it is a result, in the params of another step too.
Rejected: to bind it to its saga alone. Then whoever can write into the store could swap the params of two steps.
"""

from base64 import b64decode, b64encode
from operator import is_not
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

from msgspec import Struct
from msgspec.structs import replace

from sagastream.core.messages import Begin, Command, Reply, is_id, ok
from sagastream.core.saga import SagaState
from sagastream.core.sealed_values import MARK, SealedValue, is_sealed, replaced
from sagastream.core.steps import STANDING
from sagastream.core.strict_json import MAX_BYTES, MAX_PAYLOAD_BYTES, decode, encode, encode_payload, value_of
from sagastream.errors import CannotOpen, MalformedMessage

#: What a value may be sealed as.
Field = Literal["params", "result"]

#: How many sealed values one payload may hold. Each costs some microseconds, so the smallest ones would add up.
MAX_SEALED: Final = 1000


class CodecContext(Struct, frozen=True, kw_only=True):
    """Which value is sealed or opened."""

    saga_id: str
    step: int  # of which it was sealed, from 1
    field: str  # as what: "params" or "result"
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


class Place(NamedTuple):
    """Where a value stands."""

    saga_id: str
    step: int
    field: Field

    @property
    def source(self) -> str:
        return f"{self.step}/{self.field}"

    def may_hold(self, step: int, field: str) -> bool:
        """Whether what was sealed as this may stand here."""
        return (step, field) == (self.step, self.field) or (
            self.field == "params" and field == "result" and step != self.step
        )


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


# --- messages and sagas


def sealed_begin(codec: Codec, begin: Begin) -> Begin:
    """The request with its params sealed. Params that are sealed already stay as they are, and so does the question
    which effects stand. Raises as `seal` does, and MalformedMessage if the request is too large then, or if params hold
    a sealed value that cannot be opened."""
    steps = []
    for number, step in enumerate(begin.steps, 1):
        params = step.params
        if not is_sealed(params) and step.transaction != STANDING:
            place = Place(begin.saga_id, number, "params")
            try:
                params = seal(codec, _unsealed(codec, params, place), place)
            except MalformedMessage as error:
                raise MalformedMessage(f"params of step {number}: {error}") from None
        steps.append(replace(step, params=params))
    sealed = replace(begin, steps=tuple(steps))
    if sum(len(step.params) for step in steps) > MAX_BYTES // 2 and (size := len(sealed.body())) > MAX_BYTES:
        raise MalformedMessage(f"too large: sealed, it has {size} bytes, at most {MAX_BYTES}")
    return sealed


def open_begin(codec: Codec | None, begin: Begin) -> tuple[Begin, dict[str, str]]:
    """The request with those params opened that can be; and why others cannot be, by where they stand: `1/params`."""
    why: dict[str, str] = {}
    steps = []
    for number, step in enumerate(begin.steps, 1):
        place = Place(begin.saga_id, number, "params")
        steps.append(replace(step, params=_opened_or_not(codec, step.params, place, why)))
    return replace(begin, steps=tuple(steps)), why


def open_command(codec: Codec | None, command: Command) -> Command:
    """The command as its handler gets it. Raises CannotOpen."""
    result = command.result
    if MARK not in command.params and (result is None or MARK not in result):
        return command
    params = open_value(codec, command.params, Place(command.saga_id, command.step, "params"))
    if result is not None:
        result = open_value(codec, result, Place(command.saga_id, command.step, "result"))
    return replace(command, params=params, result=result)


def sealed_reply(codec: Codec, command: Command, reply: Reply) -> Reply:
    """The reply to a command with its result sealed. Raises as `seal` does.

    Errors are not sealed: the orchestrator makes the reason of the saga of them. Which effects stand is not sealed
    either: that is asked by whoever repairs a store, who need not have the keys.
    """
    if reply.result is None or reply.type != ok(command.type) or command.type == STANDING:
        return reply
    return replace(reply, result=seal(codec, reply.result, Place(reply.saga_id, reply.step, "result")))


def open_state(codec: Codec | None, state: SagaState) -> tuple[SagaState, dict[str, str]]:
    """The saga with all values opened that can be; and why others cannot be, by where they stand: `1/params`."""
    why: dict[str, str] = {}
    steps = []
    for number, step in enumerate(state.steps, 1):
        params, result = step.definition.params, step.result
        definition = step.definition
        if MARK in params:
            place = Place(state.saga_id, number, "params")
            definition = replace(definition, params=_opened_or_not(codec, params, place, why))
        if result is not None:
            result = _opened_or_not(codec, result, Place(state.saga_id, number, "result"), why)
        steps.append(replace(step, definition=definition, result=result))
    return replace(state, steps=tuple(steps)), why


def opened_message(codec: Codec | None, message: Any) -> Any:
    """The body of a command, a reply or a saga_begin with the params or the result opened, if they can be; everything
    else as it is, however it is made: it may have been refused."""
    if not isinstance(message, dict):
        return message
    saga_id, step, steps = message.get("saga_id"), message.get("step"), message.get("steps")
    if not isinstance(saga_id, str):
        return message
    if isinstance(steps, list):
        opened = [_with_opened(codec, one, saga_id, number) for number, one in enumerate(steps, 1)]
        return message | {"steps": opened} if any(map(is_not, opened, steps)) else message
    return _with_opened(codec, message, saga_id, step) if isinstance(step, int) else message


def _with_opened(codec: Codec | None, members: Any, saga_id: str, step: int) -> Any:
    """The members of a step with the params or the result opened, if they can be."""
    for field in _FIELDS:
        if not isinstance(members, dict) or field not in members:
            continue
        try:
            data = encode(members[field])
            if (opened := open_value(codec, data, Place(saga_id, step, field))) is not data:
                members = members | {field: value_of(opened)}
        except (CannotOpen, TypeError):  # of values that nest too deep to be written
            continue
    return members


_FIELDS: Final[tuple[Field, ...]] = ("params", "result")


def _opened_or_not(codec: Codec | None, data: bytes, place: Place, why: dict[str, str]) -> bytes:
    """A payload with what is sealed in it opened; as it is if that cannot be, which is added to `why`."""
    try:
        return open_value(codec, data, place)
    except CannotOpen as error:
        why[place.source] = str(error)
        return data


def _unsealed(codec: Codec, params: bytes, place: Place) -> bytes:
    """Params with what is sealed in them opened, to be sealed with the rest: nothing is opened twice."""
    if MARK not in params:
        return params
    try:
        return open_value(codec, params, place)
    except CannotOpen as error:
        raise MalformedMessage(f"they hold a sealed value that cannot be opened, to seal them: {error}") from None


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
