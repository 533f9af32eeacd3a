"""What the commands for definitions are given: a definition or a saga_begin body, in a file or made in Python."""

import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sagastream import files
from sagastream.core.definition import parse
from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage, SagastreamError, ServiceError
from sagastream.service.loading import dotted, import_module
from sagastream_bridge.definitions.positions import Position, positions

if TYPE_CHECKING:
    from sagastream.client.definition import Definition

_MODULE_AND_NAME: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)


class CannotRead(SagastreamError):
    """There is nothing at the place that was named, or it is not a definition or a saga_begin body."""


class NothingThere(CannotRead):
    """There is nothing at that place, or it cannot be opened."""


class Document:
    """A definition or a saga_begin body as it is written: it may be wrong in every way but its syntax."""

    def __init__(
        self, where: str, body: dict[str, Any], text: bytes | None = None, made: "Definition | None" = None
    ) -> None:
        """`where`: the file, or MODULE:NAME. `text`: of the file. `made`: the definition, if it was made in Python."""
        self.where = where
        self.body = body
        self._text = text
        self._made = made

    @property
    def is_definition(self) -> bool:
        """Whether it is a definition, and not the body of one saga. What says neither counts as one."""
        return self.is_named or not {"saga_id", "type"} & self.body.keys()

    @property
    def is_named(self) -> bool:
        """Whether it has what only a definition has."""
        return bool({"name", "version"} & self.body.keys())

    @property
    def definition(self) -> "Definition":
        """The definition that it is. One that was made in Python knows the class of its input. Raises CannotRead if it
        is none, which says what is wrong."""
        if self._made is not None:
            return self._made
        if not self.is_named:
            told = "a definition has a name and a version, and a saga has a saga_id"
            raise CannotRead(
                f"{self.where}: {told if self.is_definition else f'it is a saga, not a definition: {told}'}"
            )
        # Imported here: it takes the client, with its broker, which who looks at a file does not need.
        from sagastream.client.definition import Definition

        try:
            return Definition.of(parse(self.body))
        except MalformedMessage as error:
            raise CannotRead(f"{self.where}: {error}") from None

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Its steps, if they can be looked at one by one. Raises CannotRead."""
        if not (steps := self.written_steps):
            raise CannotRead(f"{self.where}: steps is empty, and there must be at least one")
        return steps

    @property
    def written_steps(self) -> list[dict[str, Any]]:
        """The same, if it has any. Raises CannotRead."""
        steps = self.body.get("steps")
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise CannotRead(f"{self.where}: steps must be a list of objects, one for each step")
        return steps

    def position(self, pointer: str) -> Position | None:
        """Where this value stands in the file or, if it is not there, the value that should hold it. None: there is no
        file."""
        if self._text is None:
            return None
        while pointer and pointer not in self._positions:
            pointer = pointer.rpartition("/")[0]
        return self._positions[pointer]

    @cached_property
    def _positions(self) -> Mapping[str, Position]:
        return positions(self._text or b"null")


def read(where: str) -> Document:
    """The document at this place: a file, - for standard input, or MODULE:NAME. Raises CannotRead."""
    if ":" in where and not _MODULE_AND_NAME.fullmatch(where) and not Path(where).exists():
        raise NothingThere(f"{where} is neither a file nor MODULE:NAME, like shop.sagas:order")
    if not is_file(where):
        made = _made(where)
        return Document(where, made.parsed.body, made=made)
    called = "standard input" if where == files.STDIN else where
    try:
        text = files.given(where)
    except OSError as error:
        raise NothingThere(f"{called}: {error.strerror or error}") from None
    if where.endswith(".py"):
        raise CannotRead(f"{where} is Python: name the definition in it, as in {dotted(where)}:NAME")
    return Document(called, _object(called, text), text)


def is_file(where: str) -> bool:
    """Whether this names a file or standard input, and not an object as MODULE:NAME."""
    return where == files.STDIN or not _MODULE_AND_NAME.fullmatch(where) or Path(where).exists()


def loaded(where: str) -> Any:
    """The object that MODULE:NAME names. Raises CannotRead with what to do about it."""
    module_name, _, name = where.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # whoever names a module of theirs trusts the current folder
    try:
        with redirect_stdout(sys.stderr):  # what a module prints is not what the command prints
            module = import_module(module_name)
    except ServiceError as error:
        raise NothingThere(str(error)) from error
    finally:
        sys.path.remove(here)
    if not hasattr(module, name):
        raise NothingThere(f"{module_name} has no {name}")
    return getattr(module, name)


def _made(where: str) -> "Definition":
    """The definition that MODULE:NAME names, which has steps."""
    from sagastream.client.definition import Definition

    made = loaded(where)
    if not isinstance(made, Definition):
        raise CannotRead(f"{where} is not a sagastream.Definition")
    try:
        _ = made.parsed
    except MalformedMessage as error:
        raise CannotRead(f"{where}: {error}") from None
    return made


def _object(where: str, text: bytes) -> dict[str, Any]:
    try:
        body = decode(text)
    except MalformedMessage as error:
        raise CannotRead(f"{where}: {error}") from None
    if not isinstance(body, dict):
        raise CannotRead(f"{where}: it is not a JSON object: neither a definition nor a saga_begin body")
    return body
