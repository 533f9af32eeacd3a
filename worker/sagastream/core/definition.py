"""A definition: the shape of the sagas of one kind, from which each of them is begun. Pure.

    {"name": "order", "version": 3, "input": <JSON Schema>, "steps": [...]}

`input` describes the input of a saga; clients check it. The steps are those of a saga_begin. Besides, a step may say
`each`: then a saga has one such step for each item of a list in its input (see `expansion`). `attributes` are those of
a saga, with references into its input (see `defined_attributes`).
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import orjson
from msgspec import Struct

from sagastream.core.begin_parsing import MAX_VERSION
from sagastream.core.defined_attributes import parse_templates
from sagastream.core.members import checked_object, limit, name_in
from sagastream.core.messages import SERVICE_PATTERN, DefinedBy
from sagastream.core.pointers import shown, tokens_of
from sagastream.core.steps import MAX_STEPS
from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage

#: The members of a definition that stand in each saga_begin as they are.
_OF_EACH_SAGA: Final = ("deadline_ms", "deadline")
#: Members of a saga_begin that no definition has, and how a saga of one gets them.
_OF_ONE_SAGA: Final = {
    "saga_id": "by --id or saga_id=",
    "start_at_ms": "by --start-at or start_at=",
}
_MEMBERS: Final = {"name", "version", "input", "steps", "example", "attributes", *_OF_EACH_SAGA}
#: The id of a step in a definition. The steps of one with `each` have a dot and a number behind it.
_ID: Final = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9_-]{1,64}")
#: What a step that is there once for each item cannot say besides, and why.
_NOT_WITH_EACH: Final = {
    "wait": "one signal would be for all of its steps",
    "wait_ms": "its steps would all be the same pause",
}


class SagaDefinition(Struct, frozen=True, kw_only=True):
    """A definition that was read."""

    name: str  # no colon is in it
    version: int  # from 1
    steps: tuple[dict[str, Any], ...]  # as they are written
    numbers: Mapping[str, int]  # of its steps, from 1, by their ids
    attributes: Mapping[str, Any]  # of its sagas, as they are written
    body: dict[str, Any]  # all of it, as it is written
    sha256: str  # of its canonical form, in hex: of two contents under one version, one is wrong

    @property
    def schema(self) -> Any:
        """The JSON Schema (2020-12) of the input; None: the input may be any object."""
        return self.body.get("input")

    @property
    def example(self) -> dict[str, Any] | None:
        """The example of an input that it gives, if it gives one."""
        return self.body.get("example")

    @property
    def of_each_saga(self) -> dict[str, Any]:
        """Its members that stand in each saga_begin as they are."""
        return {name: self.body[name] for name in _OF_EACH_SAGA if name in self.body}

    @property
    def by(self) -> DefinedBy:
        """What a saga says of the definition that its steps were made from."""
        return DefinedBy(name=self.name, version=self.version, sha256=self.sha256)


def read(data: bytes) -> SagaDefinition:
    """The definition in a JSON text. Raises MalformedMessage as `parse` does, and if this is not strict JSON."""
    return parse(decode(data))


def parse(body: Any) -> SagaDefinition:
    """A decoded definition. Raises MalformedMessage, which says what is wrong and where."""
    called = "the definition"
    checked_object(body, called, None)
    if "use" in body:
        raise MalformedMessage(f"{called}: use, another definition in this one, is not known to this release")
    for name, how in _OF_ONE_SAGA.items():
        if name in body:
            raise MalformedMessage(f"{called}: {name} is of one saga, not of all: say it when you begin one, {how}")
    checked_object(body, called, _MEMBERS)
    name = name_in(body, "name", called, SERVICE_PATTERN)
    version = limit(body.get("version"), "version", called, MAX_VERSION)
    if not isinstance(body.get("input", {}), dict | bool):
        raise MalformedMessage(f"{called}: input must be a JSON Schema, which is an object, true or false")
    if not isinstance(body.get("example", {}), dict):
        raise MalformedMessage(f"{called}: example must be an object: what a saga may have as its input")
    attributes = parse_templates(body.get("attributes", {}), called)
    steps = body.get("steps")
    if not isinstance(steps, list) or not 1 <= len(steps) <= MAX_STEPS:
        raise MalformedMessage(f"{called}: steps must be a list of 1 to {MAX_STEPS}")
    numbers: dict[str, int] = {}
    for number, step in enumerate(steps, 1):
        _check_step(step, f"step {number}")
        if "id" in step and (first := numbers.setdefault(step["id"], number)) != number:
            raise MalformedMessage(f"step {number}: id is {step['id']}, which is the id of step {first}, too")
    digest = sha256(canonical(body)).hexdigest()
    return SagaDefinition(
        name=name,
        version=version,
        steps=tuple(steps),
        numbers=numbers,
        attributes=attributes,
        body=body,
        sha256=digest,
    )


def canonical(body: dict[str, Any]) -> bytes:
    """The same bytes for every way to write a definition: compact JSON, keys in the order of their UTF-8."""
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def _check_step(step: Any, where: str) -> None:
    """Check what a step says that is not in a saga_begin, and its id. The rest is checked as a part of a saga_begin."""
    checked_object(step, where, None)
    if "use" in step:
        raise MalformedMessage(f"{where}: use, another definition in this one, is not known to this release")
    if "id" in step and not (isinstance(step["id"], str) and _ID.fullmatch(step["id"])):
        raise MalformedMessage(f"{where}: id must be 1 to 64 characters of A-Z a-z 0-9 _ -, and not a number")
    if "each" not in step:
        return
    if not _is_list_reference(step["each"]):
        example = '{"$ref": "/input/items"}'
        raise MalformedMessage(f"{where}: each must be a reference to a list in the input, such as {example}")
    try:
        tokens_of(step["each"]["$ref"])
    except ValueError as error:
        text = f"{shown(step['each']['$ref'])} is not a JSON Pointer: {error}"
        raise MalformedMessage(f"{where}: each: {text}") from None
    if "id" not in step:
        raise MalformedMessage(f"{where}: id is missing: a step with each needs one, from which its steps get theirs")
    for name, why in _NOT_WITH_EACH.items():
        if name in step:
            raise MalformedMessage(f"{where}: each cannot stand beside {name}: {why}")
    if step.get("kind") == "pivot":
        raise MalformedMessage(f"{where}: each cannot stand in a pivot: a saga has at most one")


def _is_list_reference(each: Any) -> bool:
    """Whether this can be the value of `each`: a reference into the input, perhaps with a list as its default."""
    if not isinstance(each, dict) or not {"$ref"} <= each.keys() <= {"$ref", "default"}:
        return False
    is_pointer = isinstance(each["$ref"], str) and each["$ref"].startswith("/input/")
    return is_pointer and isinstance(each.get("default", []), list)
