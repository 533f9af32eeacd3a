"""Conditions: whether a step is begun or bypassed, by the data of the saga. Pure.

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
from sagastream.core.sealed_values import keys_of, sealed_value
from sagastream.core.strict_json import encode, value_of
from sagastream.core.templates import Joined, Literal, Operator, Problem, Reference, Template, compiled, operators
from sagastream.errors import CannotBuild

#: The most operators in one condition.
MAX_TESTS: Final = 100
#: How many bytes one condition compares at most, as JSON: of lists and objects that are looked into, and of what is
#: built to be compared. That takes a worker up to 5 ms, and a saga may have a hundred conditions.
MAX_COMPARED_BYTES: Final = 1 << 16

_ORDERS: Final = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
_OF_TWO: Final = ("eq", "ne", *_ORDERS, "in")
#: The operators that take a list of conditions.
OF_CONDITIONS: Final = ("all", "any")
_ALL: Final = (*_OF_TWO, "exists", *OF_CONDITIONS, "not")


class _Look:
    """One decision on a condition: what its references may find, and how many bytes it may still compare."""

    __slots__ = ("_left", "sources")

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._left = MAX_COMPARED_BYTES

    def take(self, data: bytes, path: str) -> None:
        """This is to be compared. Raises CannotBuild if it is too much, or if anything in it is sealed."""
        self._left -= len(data)
        if self._left < 0:
            raise CannotBuild(f"{shown(path)}: {_TOO_LARGE}")
        if keys_of(data):
            raise CannotBuild(f"{shown(path)}: {_SEALED}")


_TOO_LARGE: Final = f"too large: a condition compares at most {MAX_COMPARED_BYTES} bytes"
_SEALED: Final = "a sealed value cannot be compared"
#: A condition, compiled; a value to be compared, compiled, and where it comes from.
_Condition = Callable[[_Look], bool]
_Value = tuple[Callable[[_Look], Any], str]


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
                yield from _in_value(test.name, index, template, at)
    yield from wrong(chain.from_iterable(values), roots)


def holds(condition: bytes, sources: Sources) -> bool:
    """Whether a condition holds. The same arguments give the same answer.

    Raises CannotBuild: a reference finds nothing and has no default; two values have no order; a value is sealed; the
    values are too large to be compared; or the condition has a problem. What need not be known raises nothing: `all`
    and `any` stop at the first condition that decides, and a list is equal to no text, whatever is in it.
    """
    decide = _cached(condition) if len(condition) <= CACHED_BYTES else _compiled(value_of(condition), "")
    return decide(_Look(sources))


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
    if name in OF_CONDITIONS and not (isinstance(operands, list) and operands):
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
    elif test.name in OF_CONDITIONS:
        for index, inner in enumerate(test.operands):
            yield from _tests(inner, below(test.path, index))


def _in_value(name: str, index: int, template: Any, path: str) -> Iterator[Problem]:
    """What is wrong with a value of an operator whatever its references find. `name`: of the operator."""
    known = template
    if isinstance(template, dict) and (one := templates.operator(template)) is not None:
        if isinstance(one, Reference | Problem):
            return  # of the one anything may come; the other is told where all are looked at
        known = value_of(one.data) if isinstance(one, Literal) else ""
    data = encode(template) if next(operators(template), None) is None else b""
    if keys_of(data):
        yield Problem(path, _SEALED)
    elif len(data) > MAX_COMPARED_BYTES:
        yield Problem(path, _TOO_LARGE)
    elif name == "in" and index == 1 and not isinstance(known, list):
        yield Problem(path, f"in takes a value and a list, and this is {kind_of(known)}")
    elif name in _ORDERS and not (isinstance(known, str) or _is_number(known)):
        yield Problem(path, f"{kind_of(known)} has no order; only numbers and texts have")


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
        return lambda look: finds(operands, look.sources)
    if name == "not":
        inner = _compiled(operands, at)
        return lambda look: not inner(look)
    if name in OF_CONDITIONS:
        conditions = [_compiled(operand, below(at, index)) for index, operand in enumerate(operands)]
        decide = all if name == "all" else any
        return lambda look: decide(one(look) for one in conditions)
    left, right = [_value(operand, below(at, index)) for index, operand in enumerate(operands)]
    return _Comparison(name, at, left, right).holds


def _value(template: Any, path: str) -> _Value:
    pieces = compiled(template, path)
    first = pieces[0]
    if len(pieces) > 1 or isinstance(first, Joined):
        return lambda look: _built(look, pieces, path), path
    if isinstance(first, Reference):
        return lambda look: found(first, look.sources), first.pointer
    constant = value_of(first)
    return lambda _: constant, path


def _built(look: _Look, pieces: Template, path: str) -> Any:
    data = written(pieces, look.sources)
    look.take(data, path)
    return value_of(data)


# --- comparing


class _Comparison(NamedTuple):
    """An operator that takes two values."""

    name: str
    path: str  # where its operands stand
    left: _Value
    right: _Value

    def holds(self, look: _Look) -> bool:
        name, path, (left, where), (right, there) = self
        one, other = left(look), right(look)
        _check_open(one, where)
        _check_open(other, there)
        if name in _ORDERS:
            if (isinstance(one, str) and isinstance(other, str)) or (_is_number(one) and _is_number(other)):
                return bool(_ORDERS[name](one, other))
            kinds = f"{self._kind(one, where)} and {self._kind(other, there)}"
            raise CannotBuild(f"{shown(path)}: {kinds} have no order; only two numbers or two texts have")
        if name == "in":
            if not isinstance(other, list):
                raise CannotBuild(
                    f"{shown(path)}: in takes a value and a list, and the second is {self._kind(other, there)}"
                )
            if isinstance(one, dict | list):
                look.take(encode(one), where)
            look.take(encode(other), there)
            return any(_equal(one, item) for item in other)
        if isinstance(one, dict | list) and type(one) is type(other):
            look.take(encode(one), where)
            look.take(encode(other), there)
        return _equal(one, other) is (name == "eq")

    def _kind(self, value: Any, where: str) -> str:
        """What kind of value it is, and the reference that has found it."""
        is_constant = where.startswith(f"{self.path}/")
        return kind_of(value) if is_constant else f"{kind_of(value)} ({shown(where)})"


def _check_open(value: Any, where: str) -> None:
    """Raises CannotBuild if the value is sealed, as a whole: nobody knows what kind of value it is."""
    if isinstance(value, dict) and sealed_value(value) is not None:
        raise CannotBuild(f"{shown(where)}: {_SEALED}")


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
