"""Conditions: whether a step is done or bypassed, as the saga's data says. Pure.

    true, false
    {"eq": [A, B]}, and ne, lt, le, gt, ge    two values, each a template
    {"in": [A, LIST]}                         whether a list has the value
    {"exists": {"$ref": …}}                   whether a reference finds anything
    {"all": […]}, {"any": […]}, {"not": …}    conditions

Values are compared as JSON values: the order of members does not count, 1 is 1.0, and true is not 1.
"""

import operator
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sagastream.core import references, templates
from sagastream.core.pointers import below, kind_of, shown
from sagastream.core.references import (
    CACHED_BYTES,
    Joined,
    Roots,
    Sources,
    compiled,
    finds,
    found,
    has_references,
    why_not,
    written,
)
from sagastream.core.sealed_values import SealedValue, replaced
from sagastream.core.strict_json import value_of
from sagastream.core.templates import Problem, Reference
from sagastream.errors import CannotBuild

#: The most operators in one condition. Each may compare two large values, so they cost a worker time.
MAX_OPERATORS: Final = 100

_ORDERS: Final = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
_OF_TWO: Final = ("eq", "ne", *_ORDERS, "in")
_OF_CONDITIONS: Final = ("all", "any")
_ALL: Final = (*_OF_TWO, "exists", *_OF_CONDITIONS, "not")

_Test = Callable[[Sources], bool]
_Value = Callable[[Sources], Any]


def problems(condition: Any, roots: Roots) -> Iterator[Problem]:
    """What is wrong in a condition, as far as that shows before the saga runs."""
    for number, one in enumerate(_operators(condition, "")):
        if number == MAX_OPERATORS:
            yield Problem("", f"a condition has at most {MAX_OPERATORS} operators")
            return
        if isinstance(one, Problem):
            yield one
        elif one.name == "exists":
            text = why_not(_reference(one), roots, needs_default=False)
            if text is not None:
                yield Problem(below(one.path, "$ref"), text)
        elif one.name in _OF_TWO:
            for index, template in enumerate(one.operands):
                yield from _in_operand(one, index, template, roots)


def holds(condition: bytes, sources: Sources) -> bool:
    """Whether a condition holds. The same arguments give the same answer.

    Raises CannotBuild: a reference finds nothing and has no default; two values have no order; a value is sealed; or
    the condition has a problem. What need not be known raises nothing: `all` and `any` stop at the first condition that
    decides.
    """
    test = _cached(condition) if len(condition) <= CACHED_BYTES else _test(value_of(condition), "")
    return test(sources)


# --- reading


class _Operator(NamedTuple):
    path: str  # where its operands stand
    name: str
    operands: Any


def _operator(condition: Any, path: str) -> _Operator | Problem:
    """The operator of a condition, with as many operands as it has."""
    if not isinstance(condition, dict):
        return Problem(path, f"{kind_of(condition)} is not a condition: write true, false or an operator")
    if len(condition) != 1:
        return Problem(path, f"a condition has one operator, and this object has {len(condition)} members")
    ((name, operands),) = condition.items()
    at = below(path, name)
    if name.startswith("$"):
        return Problem(path, 'a value is not a condition; compare it, as in {"eq": [{"$ref": …}, true]}')
    if name not in _ALL:
        return Problem(path, f"there is no operator {shown(name)}, only {', '.join(_ALL)}")
    if name in _OF_TWO and not (isinstance(operands, list) and len(operands) == 2):
        return Problem(at, f"{name} takes a list of two values")
    if name in _OF_CONDITIONS and not (isinstance(operands, list) and operands):
        return Problem(at, f"{name} takes a list of at least one condition")
    if name == "exists":
        reference = templates.operator(operands, at) if isinstance(operands, dict) else None
        if isinstance(reference, Problem):
            return reference
        if not isinstance(reference, Reference) or reference.default is not None:
            return Problem(at, "exists takes a reference without a default")
    return _Operator(at, name, operands)


def _reference(exists: _Operator) -> Reference:
    reference = templates.operator(exists.operands, exists.path)
    assert isinstance(reference, Reference)  # `_operator` has checked it
    return reference


def _operators(condition: Any, path: str) -> Iterator[_Operator | Problem]:
    """All operators in a condition, and all that is wrong with their form."""
    if isinstance(condition, bool):
        return
    one = _operator(condition, path)
    yield one
    if isinstance(one, Problem):
        return
    if one.name in _OF_CONDITIONS:
        for index, inner in enumerate(one.operands):
            yield from _operators(inner, below(one.path, index))
    elif one.name == "not":
        yield from _operators(one.operands, one.path)


def _in_operand(one: _Operator, index: int, template: Any, roots: Roots) -> Iterator[Problem]:
    at = below(one.path, index)
    for path, text in references.problems(template, roots):
        yield Problem(at + path, text)
    if has_references(template):
        return
    if _holds_sealed(template):
        yield Problem(at, "a sealed value cannot be compared")
    elif one.name == "in" and index == 1 and not isinstance(template, list):
        yield Problem(at, f"in takes a value and a list, and this is {kind_of(template)}")
    elif one.name in _ORDERS and not (isinstance(template, str) or _is_number(template)):
        yield Problem(at, f"{kind_of(template)} has no order; only numbers and texts have")


# --- compiling


@lru_cache(maxsize=512)
def _cached(condition: bytes) -> _Test:
    return _test(value_of(condition), "")


def _test(condition: Any, path: str) -> _Test:
    """A condition, compiled. Raises CannotBuild if its form is wrong."""
    if isinstance(condition, bool):
        return lambda _: condition
    one = _operator(condition, path)
    if isinstance(one, Problem):
        raise CannotBuild(str(one))
    at, name, operands = one
    if name == "not":
        inner = _test(operands, at)
        return lambda sources: not inner(sources)
    if name in _OF_CONDITIONS:
        tests = [_test(operand, below(at, index)) for index, operand in enumerate(operands)]
        decide = all if name == "all" else any
        return lambda sources: decide(test(sources) for test in tests)
    if name == "exists":
        reference = _reference(one)
        return lambda sources: finds(reference, sources)
    left, right = [_value(operand, below(at, index)) for index, operand in enumerate(operands)]
    return lambda sources: _compared(name, left(sources), right(sources), at)


def _value(template: Any, path: str) -> _Value:
    """A template as a value that can be compared."""
    pieces = compiled(template, path)
    first = pieces[0]
    if len(pieces) > 1 or isinstance(first, Joined):
        return lambda sources: _readable(value_of(written(pieces, sources)), path)
    if isinstance(first, Reference):
        return lambda sources: _readable(found(first, sources), shown(first.pointer))
    constant = _readable(value_of(first), path)
    return lambda _: constant


def _readable(value: Any, where: str) -> Any:
    if _holds_sealed(value):
        raise CannotBuild(f"{where}: what is sealed cannot be compared")
    return value


# --- comparing


def equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def _is_in(value: Any, values: Any, path: str) -> bool:
    if not isinstance(values, list):
        raise CannotBuild(f"{shown(path)}: in takes a value and a list, and the second is {kind_of(values)}")
    return any(equal(value, one) for one in values)


def _compared(name: str, one: Any, other: Any, path: str) -> bool:
    if name == "in":
        return _is_in(one, other, path)
    if name in _ORDERS:
        return _in_order(_ORDERS[name], one, other, path)
    return equal(one, other) is (name == "eq")


def _in_order(compare: Callable[[Any, Any], bool], one: Any, other: Any, path: str) -> bool:
    if (isinstance(one, str) and isinstance(other, str)) or (_is_number(one) and _is_number(other)):
        return compare(one, other)
    text = f"{kind_of(one)} and {kind_of(other)} have no order; only two numbers or two texts have"
    raise CannotBuild(f"{shown(path)}: {text}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _holds_sealed(value: Any) -> bool:
    if not isinstance(value, dict | list):
        return False
    sealed: list[SealedValue] = []
    replaced(value, sealed.append)
    return bool(sealed)
