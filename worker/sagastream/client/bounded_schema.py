"""JSON Schemas that take bounded work, whatever they are and whatever they check. Needs the extra `sagastream[schema]`.

Whoever begins a saga may pass on what a stranger wrote, often in an event loop. `jsonschema` alone matches patterns by
Python's `re`, which a short text can keep busy for years, and checks a value once for each way that leads to a schema.
So patterns are matched by jsonschema-rs, in time linear in the text, and each check is counted. Rejected:

- jsonschema-rs for all of it. It cannot be stopped, and a schema that refers to itself twice doubles its work at each
  level of the data.
- google-re2 for the patterns: no wheels for musl, nor for macOS on Intel.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

import jsonschema_rs
import orjson
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from sagastream.core.pointers import below, shown
from sagastream.errors import MalformedMessage

#: How much one check of an input may cost, in keywords applied and characters matched by patterns. It is 2 s at worst.
MAX_WORK: Final = 300_000
#: How many schemas may apply to one and the same value.
MAX_SCHEMAS_OF_A_VALUE: Final = 1000
#: How large a pattern may be, compiled, in bytes. The time that a text takes grows with it.
_MAX_PATTERN: Final = 50_000

#: References to what the check of the whole schema has seen.
_NAMED: Final = re.compile(r"#|#/\$defs/[^/]+")

# Where schemas stand in a schema: which of them apply to the same value, and which to what is in it.
_SAME_VALUE: Final = {
    "one": ("not", "if", "then", "else"),
    "list": ("allOf", "anyOf", "oneOf"),
    "map": ("dependentSchemas",),
}
_IN_VALUE: Final = {
    "one": ("items", "contains", "additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties"),
    "list": ("prefixItems",),
    # What nothing refers to is looked at, too: a $dynamicRef may lead there.
    "map": ("properties", "patternProperties", "$defs", "definitions"),
}
_left: ContextVar[list[int]] = ContextVar("_left")


class TooMuchWork(Exception):
    """A check would cost more than MAX_WORK."""


def errors(validator: Any, data: Any) -> list[ValidationError]:
    """What is wrong with the data, the most telling error first; each in the words of its most telling part. Raises
    TooMuchWork, Unresolvable, and RecursionError."""
    token = _left.set([MAX_WORK])
    try:
        found = list(validator.iter_errors(data))
        parts: list[ValidationError] = [best_match([error]) for error in found]
        best = best_match(found)
        return sorted(parts, key=lambda part: part is not best)
    finally:
        _left.reset(token)


def validator_of(schema: Any) -> Any:
    """What checks values by this schema, from which `$schema` is taken out. Raises SchemaError if it is not one,
    MalformedMessage if its work cannot be bounded, and RecursionError if its references lead too far."""
    _check_form(schema)
    # Nothing is fetched from elsewhere, whatever a schema names.
    registry: Any = Registry()
    _Survey(registry.with_resource("", DRAFT202012.create_resource(schema)).resolver("")).survey(schema)
    return _BOUNDED(schema, registry=registry)


def _check_form(schema: Any) -> None:
    """Raises SchemaError if something is not a JSON Schema."""
    Draft202012Validator.check_schema(schema, format_checker=FormatChecker(formats=()))  # patterns are checked below


# --- keywords

_REFERENCES: Final = [Draft202012Validator.VALIDATORS[name] for name in ("$ref", "$dynamicRef")]


def _spend(work: int) -> None:
    left = _left.get()
    left[0] -= work
    if left[0] < 0:
        raise TooMuchWork


def _counted(keyword: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
    price = 4 if keyword in _REFERENCES else 1  # as they take longer

    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _spend(price + (_length(value) + _length(instance)) // 16)
        for error in keyword(validator, value, instance, schema) or ():
            _spend(len(error.message) // 256)  # it quotes the value
            yield error

    return counted


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, by_pattern: Any, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, of_it in by_pattern.items():
            for name in instance:
                if _matches(pattern, name):
                    yield from validator.descend(instance[name], of_it, path=name, schema_path=pattern)


def _additional_properties(validator: Any, rest: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    patterns = schema.get("patternProperties")
    if patterns and isinstance(instance, dict):  # the keyword itself would match them by `re`
        named = schema.get("properties", {}).keys()
        known = [name for name in instance if name in named or any(_matches(one, name) for one in patterns)]
        schema = {"properties": dict.fromkeys(known)}
    yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, rest, instance, schema)


def _unique_items(_validator: Any, wanted: bool, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    """In linear time: the keyword itself compares each with each, if they have no order."""
    if wanted and isinstance(instance, list):
        written = {orjson.dumps(_as_number(item), option=orjson.OPT_SORT_KEYS) for item in instance}
        if len(written) < len(instance):
            yield ValidationError(f"{instance!r} has non-unique elements")


def _as_number(value: Any) -> Any:
    """The value with 1 in place of 1.0: as JSON Schema compares."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1 << 53 else value
    if isinstance(value, dict):
        return {name: _as_number(one) for name, one in value.items()}
    return [_as_number(one) for one in value] if isinstance(value, list) else value


def _looks_at_each_pair(keyword: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _spend(MAX_SCHEMAS_OF_A_VALUE // 10 + _length(instance) ** 2 // 64)
        yield from keyword(validator, value, instance, schema) or ()

    return counted


def _keywords() -> dict[str, Callable[..., Any]]:
    keywords: dict[str, Callable[..., Any]] = Draft202012Validator.VALIDATORS | {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    for name in ("unevaluatedItems", "unevaluatedProperties"):
        keywords[name] = _looks_at_each_pair(keywords[name])
    return {name: _counted(keyword) for name, keyword in keywords.items()}


_BOUNDED: Final = extend(Draft202012Validator, validators=_keywords())


# --- patterns


def _matches(pattern: str, text: str) -> bool:
    _spend(len(text))
    return _compiled(pattern).is_valid(text)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> jsonschema_rs.Draft202012Validator:
    return _with_limit(pattern, _MAX_PATTERN)


def _with_limit(pattern: str, size: int) -> jsonschema_rs.Draft202012Validator:
    options = jsonschema_rs.RegexOptions(size_limit=size, dfa_size_limit=1 << 21)
    return jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=options)


def _why_not(pattern: str) -> str | None:
    """Why a text is not a pattern that is matched in bounded time; None: it is one."""
    try:
        _compiled(pattern)
    except jsonschema_rs.ValidationError:
        pass
    else:
        return None
    try:
        _with_limit(pattern, 100 * _MAX_PATTERN)
    except jsonschema_rs.ValidationError:
        pass
    else:
        return "is too large: in place of counts like {1,255}, write + or * and a maxLength beside the pattern"
    if re.search(r"\(\?<?[=!]|\\[1-9]|\\k<", pattern):
        help_ = "write two patterns in allOf, or one in not"
        return f"has a look-ahead, a look-behind or a backreference, whose time has no bound: {help_}"
    return "is not a regular expression that JSON Schema knows"


# --- the schema itself


class _Survey:
    """Looks at each schema that may apply, once."""

    def __init__(self, resolver: Any) -> None:
        self._root = resolver
        self._weights: dict[int, int] = {}  # how many schemas apply with one to the same value; 0: it is counted now
        self._waiting: list[tuple[Any, str, Any]] = []
        self._names: dict[str, str] = {}  # some keywords, each with a place where it stands

    def survey(self, schema: Any) -> None:
        self._waiting.append((schema, "input", self._root))
        while self._waiting:
            one, path, resolver = self._waiting.pop()
            if id(one) not in self._weights:
                self._weigh(one, path, resolver)
        if {"patternProperties", "unevaluatedProperties"} <= self._names.keys():
            where, other = self._names["unevaluatedProperties"], self._names["patternProperties"]
            text = f"{shown(where)} cannot be checked in bounded time beside {shown(other)}"
            raise MalformedMessage(f"the definition: {text}: write additionalProperties")

    def _weigh(self, schema: Any, path: str, resolver: Any) -> int:
        """How many schemas apply, with this one, to a value to which this one applies."""
        if not isinstance(schema, dict):
            return 1
        if (known := self._weights.get(id(schema))) is not None:
            return known  # of one that leads to itself, Python's limit of recursion bounds the work
        self._weights[id(schema)] = 0
        resolver = resolver.in_subresource(DRAFT202012.create_resource(schema))
        self._note(schema, path)
        self._waiting += [(one, where, resolver) for one, where in _schemas_in(schema, path, _IN_VALUE)]
        weight = 1
        for one, where in _schemas_in(schema, path, _SAME_VALUE):
            weight += self._weigh(one, where, resolver)
        for name in ("$ref", "$dynamicRef"):
            if (found := _looked_up(resolver, schema, name)) is not None:
                if id(found.contents) not in self._weights and not _NAMED.fullmatch(schema[name]):
                    self._check_at(schema[name], found.contents)
                weight += self._weigh(found.contents, _place(schema[name], below(path, name)), found.resolver)
        if weight > MAX_SCHEMAS_OF_A_VALUE:
            text = f"more than {MAX_SCHEMAS_OF_A_VALUE:,} schemas apply to one value here"
            more = "counted with what each refers to; refer to each schema once"
            raise MalformedMessage(f"the definition: {shown(path)}: {text}, {more}")
        self._weights[id(schema)] = weight
        return weight

    def _check_at(self, reference: str, schema: Any) -> None:
        """Check what a reference leads to, if that may stand where no schema does."""
        try:
            _check_form(schema)
        except SchemaError as error:
            where = _place(reference, "input")
            raise MalformedMessage(
                f"the definition: {shown(where)} is not a JSON Schema: {error.message:.200}"
            ) from None

    def _note(self, schema: dict[str, Any], path: str) -> None:
        schema.pop("$schema", None)  # for which jsonschema would take a class of its own, which counts nothing
        for name in ("patternProperties", "unevaluatedProperties"):
            if name in schema:
                self._names.setdefault(name, below(path, name))
        if (why := _why_not(schema["pattern"]) if "pattern" in schema else None) is not None:
            raise MalformedMessage(f"the definition: {shown(below(path, 'pattern'))}: the pattern {why}")
        for pattern in schema.get("patternProperties", ()):
            if (why := _why_not(pattern)) is not None:
                where = below(below(path, "patternProperties"), pattern)
                raise MalformedMessage(f"the definition: {shown(where)}: the pattern {why}")


def _looked_up(resolver: Any, schema: Mapping[str, Any], name: str) -> Any:
    """What a reference leads to. None: there is none; or nothing is there, which an input shows that comes to it."""
    try:
        return resolver.lookup(schema[name]) if name in schema else None
    except Unresolvable:
        return None


def _place(reference: str, else_: str) -> str:
    """Where a reference leads, as a path, if it is a pointer into the same file."""
    return f"input{unquote(reference[1:])}" if reference == "#" or reference.startswith("#/") else else_


def _schemas_in(schema: Mapping[str, Any], path: str, by_form: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """The schemas in a schema, each with its path."""
    for name in schema.keys() & set(by_form["one"]):
        yield schema[name], below(path, name)
    for name in schema.keys() & set(by_form["list"]):
        for index, one in enumerate(schema[name]):
            yield one, below(below(path, name), index)
    for name in schema.keys() & set(by_form["map"]):
        for key, one in schema[name].items():
            yield one, below(below(path, name), key)


__all__ = ["SchemaError", "TooMuchWork", "Unresolvable", "errors", "validator_of"]
