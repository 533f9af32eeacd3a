"""JSON read as the types that a program names for it: dataclasses, attrs classes, Structs and models of pydantic.

pydantic is imported if a type is one of its models, so only where it is installed. All others are read by msgspec.
"""

import dataclasses
import re
from typing import Any, Final, Protocol

import msgspec

from sagastream.core.json_values import plain
from sagastream.core.pointers import below, shown
from sagastream.core.strict_json import MAX_DEPTH, encode_payload
from sagastream.errors import MalformedMessage

#: The attributes by which models of pydantic (its own dataclasses among them) and attrs classes are known.
_PYDANTIC: Final = "__pydantic_validator__"
_ATTRS: Final = "__attrs_attrs__"
#: How msgspec ends its texts, and the parts of the place that it names there.
_PLACE: Final = re.compile(r" - at `(?:key in )?\$(.*)`\Z")
_PARTS: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")


class Model(Protocol):
    """A class, and how JSON is read as an instance of it."""

    def read(self, data: bytes, called: str) -> Any:
        """An instance, read from JSON that was checked before. `called`: the name of the data in texts. Raises
        MalformedMessage, which says what does not fit, and where."""

    def checked(self, value: Any, called: str) -> Any:
        """What JSON has of a value, or of an instance, once it was read as this class: also members that have their
        default. Raises MalformedMessage as `read` does, and as `encode_payload` does."""

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of what `checked` returns. Raises TypeError if the type of a member has none."""


def is_model(said: Any) -> bool:
    """Whether this is a class of which `model` makes one."""
    if not isinstance(said, type):
        return False
    is_struct = issubclass(said, msgspec.Struct)
    return is_struct or dataclasses.is_dataclass(said) or hasattr(said, _PYDANTIC) or hasattr(said, _ATTRS)


def model(kind: type) -> Model:
    """How JSON is read as this class. Raises TypeError if JSON cannot be read as it."""
    return _Pydantic(kind) if hasattr(kind, _PYDANTIC) else _Msgspec(kind)


class _Msgspec:
    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)

    def read(self, data: bytes, called: str) -> Any:
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            raise MalformedMessage(_said_by_msgspec(str(error), called)) from None

    def checked(self, value: Any, called: str) -> Any:
        return plain(self.read(encode_payload(value), called), MAX_DEPTH)

    @property
    def schema(self) -> dict[str, Any]:
        """What is written of it has all members. Releases of msgspec differ in whether they tell of a default that a
        function makes, and the same class must always have the same schema."""
        schema = msgspec.json.schema(self._kind)
        for described in schema.get("$defs", {}).values():
            if (properties := described.get("properties")) is not None:
                described["required"] = list(properties)
                for one in properties.values():
                    if one.get("default") in ([], {}):
                        del one["default"]
        return schema


class _Pydantic:
    def __init__(self, kind: type) -> None:
        from pydantic import TypeAdapter

        self._kind = kind
        self._adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def read(self, data: bytes, called: str) -> Any:
        from pydantic import ValidationError

        try:
            return self._adapter.validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = called
            for part in first["loc"]:
                where = below(where, part)
            more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
            raise MalformedMessage(f"{shown(where)}: {_in_a_line(first['msg'])}{more}") from None

    def checked(self, value: Any, called: str) -> Any:
        if not isinstance(value, self._kind):
            value = self.read(encode_payload(value), called)
        # Its members have the names here that they have in its schema.
        return self._adapter.dump_python(value, mode="json", by_alias=True)

    @property
    def schema(self) -> dict[str, Any]:
        from pydantic.errors import PydanticInvalidForJsonSchema
        from pydantic.json_schema import GenerateJsonSchema

        class WithAllMembers(GenerateJsonSchema):
            """What is dumped has members that have a default, too."""

            def field_is_required(self, field: Any, total: bool) -> bool:
                return field["schema"]["type"] == "default" or bool(super().field_is_required(field, total))

        try:
            return self._adapter.json_schema(mode="serialization", schema_generator=WithAllMembers)
        except PydanticInvalidForJsonSchema as error:
            raise TypeError(_in_a_line(str(error))) from None


def _said_by_msgspec(text: str, called: str) -> str:
    place = _PLACE.search(text)
    if place is None:
        return f"{called}: {_in_a_line(text)}"
    where = called
    for name, index in _PARTS.findall(place[1]):
        where = below(where, name or index)
    return f"{shown(where)}: {_in_a_line(text[: place.start()])}"


def _in_a_line(text: str) -> str:
    """What a library says, as the end of one of our lines."""
    line = " ".join(text.replace("`", "").split())
    return line[:1].lower() + line[1:300]
