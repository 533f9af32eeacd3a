"""Conditions: whether a step is done or bypassed, as the saga's data says. Pure.

    true, false
    {"eq": [A, B]}, and ne, lt, le, gt, ge    two values, each a template
    {"in": [A, LIST]}                         whether a list has the value
    {"exists": {"$ref": …}}                   whether a reference finds anything
    {"all": […]}, {"any": […]}, {"not": …}    conditions

Values are compared as JSON values: the order of members does not count, 1 is 1.0, and true is not 1. Texts are ordered
by their code points.
"""

import operator
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Any, Final, NamedTuple

from sagastream.core import templates
from sagastream.core.pointers import below, kind_of, named, shown
from sagastream.core.references import CACHED_BYTES, Roots, Sources, finds, found, why_not, written, wrong
from sagastream.core.sealed_values import keys_of
from sagastream.core.strict_json import encode, value_of
from sagastream.core.templates import Joined, Operator, Problem, Reference, compiled, operators
from sagastream.errors import CannotBuild

#: The most operators in one condition. Each may compare two large values, which takes a worker up to 50 ms.
MAX_TESTS: Final = 100

_ORDERS: Final = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
_OF_TWO: Final = ("eq", "ne", *_ORDERS, "in")
_OF_CONDITIONS: Final = ("all", "any")
_ALL: Final = (*_OF_TWO, "exists", *_OF_CONDITIONS, "not")

#: A condition, compiled; a value to be compared, compiled.
_Condition = Callable[[Sources], bool]
_Value = Callable[[Sources], Any]


def problems(condition: Any, roots: Roots) -> Iterator[Problem]:
    """What is wrong in a condition, as far as that shows before the saga runs."""
    values: list[Iterator[tuple[str, Operator | Problem]]] = []
    for number, test in enumerate(_tests(condition, ""), 1):
        if number > MAX_TESTS:
            yield Problem("", f"a condition has at most {MAX_TESTS} operators")
            return
        if isinstance(test, Problem):
            yield test
        elif test.name == "exists":
            if (text := why_not(test.operands, roots, needs_default=False)) is not None:
                yield Problem(below(test.path, "$ref"), text)
        elif test.name in _OF_TWO:
            for index, template in enumerate(test.operands):
                at = below(test.path, index)
                values.append(operators(template, at))
                if next(operators(template), None) is None:
                    yield from _in_constant(test.name, index, template, at)
    yield from wrong(chain.from_iterable(values), roots)


def holds(condition: bytes, sources: Sources) -> bool:
    """Whether a condition holds. The same arguments give the same answer.

    Raises CannotBuild: a reference finds nothing and has no default; two values have no order; a value is sealed; or
    the condition has a problem. What need not be known raises nothing: `all` and `any` stop at the first condition that
    decides.
    """
    if len(condition) <= CACHED_BYTES:
        return _cached(condition)(sources)
    return _compiled(value_of(condition), "")(sources)


# --- reading


class _Test(NamedTuple):
    """An operator with its operands."""

    path: str  # where the operands stand
    name: str
    operands: Any  # of `exists`: the Reference


def _test(condition: Any, path: str) -> _Test | Problem:
    """The operator of a condition, which has as many operands as it takes."""
    if not isinstance(condition, dict):
        return Problem(path, f"{kind_of(condition)} is not a condition: write true, false or an operator")
    if len(condition) != 1:
        return Problem(path, f"a condition is an object with one operator, and this one has {len(condition)} members")
    ((name, operands),) = condition.items()
    at = below(path, name)
    if name.startswith("$"):
        return Problem(path, 'a value is not a condition; compare it, as in {"eq": [{"$ref": …}, true]}')
    if name not in _ALL:
        return Problem(path, f"there is no operator {named(name)}, only {', '.join(_ALL)}")
    if name in _OF_TWO and not (isinstance(operands, list) and len(operands) == 2):
        return Problem(at, f"{name} takes a list of two values")
    if name in _OF_CONDITIONS and not (isinstance(operands, list) and operands):
        return Problem(at, f"{name} takes a list of at least one condition")
    if name != "exists":
        return _Test(at, name, operands)
    one = templates.operator(operands) if isinstance(operands, dict) else None
    if isinstance(one, Problem):
        return Problem(at + one.path, one.text)
    if not isinstance(one, Reference) or one.default is not None:
        return Problem(at, "exists takes a reference without a default")
    return _Test(at, name, one)


def _tests(condition: Any, path: str) -> Iterator[_Test | Problem]:
    """All operators in a condition, and all that is wrong with their form."""
    if isinstance(condition, bool):
        return
    test = _test(condition, path)
    yield test
    if isinstance(test, Problem):
        return
    if test.name == "not":
        yield from _tests(test.operands, test.path)
    elif test.name in _OF_CONDITIONS:
        for index, inner in enumerate(test.operands):
            yield from _tests(inner, below(test.path, index))


def _in_constant(name: str, index: int, value: Any, path: str) -> Iterator[Problem]:
    """What is wrong with a value that stands in the condition itself. `name`: of the operator."""
    if _holds_sealed(value):
        yield Problem(path, "a sealed value cannot be compared")
    elif name == "in" and index == 1 and not isinstance(value, list):
        yield Problem(path, f"in takes a value and a list, and this is {kind_of(value)}")
    elif name in _ORDERS and not (isinstance(value, str) or _is_number(value)):
        yield Problem(path, f"{kind_of(value)} has no order; only numbers and texts have")


# --- compiling


@lru_cache(maxsize=512)
def _cached(condition: bytes) -> _Condition:
    return _compiled(value_of(condition), "")


def _compiled(condition: Any, path: str) -> _Condition:
    """Raises CannotBuild if the form of a condition is wrong."""
    if isinstance(condition, bool):
        return lambda _: condition
    test = _test(condition, path)
    if isinstance(test, Problem):
        raise CannotBuild(str(test))
    at, name, operands = test
    if name == "exists":
        return lambda sources: finds(operands, sources)
    if name == "not":
        inner = _compiled(operands, at)
        return lambda sources: not inner(sources)
    if name in _OF_CONDITIONS:
        conditions = [_compiled(operand, below(at, index)) for index, operand in enumerate(operands)]
        decide = all if name == "all" else any
        return lambda sources: decide(one(sources) for one in conditions)
    left, right = [_value(operand, below(at, index)) for index, operand in enumerate(operands)]
    return lambda sources: _compared(name, left(sources), right(sources), at)


def _value(template: Any, path: str) -> _Value:
    pieces = compiled(template, path)
    first = pieces[0]
    if len(pieces) > 1 or isinstance(first, Joined):
        return lambda sources: _readable(value_of(written(pieces, sources)), path)
    if isinstance(first, Reference):
        return lambda sources: _readable(found(first, sources), first.pointer)
    constant = value_of(first)
    return lambda _: _readable(constant, path)


# --- comparing


def _compared(name: str, one: Any, other: Any, path: str) -> bool:
    if name in _ORDERS:
        if (isinstance(one, str) and isinstance(other, str)) or (_is_number(one) and _is_number(other)):
            return bool(_ORDERS[name](one, other))
        kinds = f"{kind_of(one)} and {kind_of(other)}"
        raise CannotBuild(f"{shown(path)}: {kinds} have no order; only two numbers or two texts have")
    if name == "in":
        if not isinstance(other, list):
            raise CannotBuild(f"{shown(path)}: in takes a value and a list, and the second is {kind_of(other)}")
        return any(_equal(one, item) for item in other)
    return _equal(one, other) is (name == "eq")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other  # to Python, true is 1
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _readable(value: Any, where: str) -> Any:
    """The value, if nothing in it is sealed. Raises CannotBuild."""
    if _holds_sealed(value):
        raise CannotBuild(f"{shown(where)}: a sealed value cannot be compared")
    return value


def _holds_sealed(value: Any) -> bool:
    return isinstance(value, dict | list) and bool(keys_of(encode(value)))
