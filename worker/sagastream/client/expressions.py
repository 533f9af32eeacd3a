"""What a definition in Python says of values that nobody knows before the saga runs: references, texts joined of them,
and conditions. `template_of` makes JSON templates of them (see core/templates.py and core/conditions.py).

    order.input.total            {"$ref": "/input/total"}
    reserve.result["id"]         {"$ref": "/steps/reserve/result/id"}
    order.input.total > 100      {"gt": [{"$ref": "/input/total"}, 100]}

Python would take some expressions for something else, without a word: `a and b`, `0 < a < 5`, `f"order {a}"`, `for one
in a`. All of these raise TypeError, which says what to write.
"""

from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Final, NoReturn, Self

from sagastream.core.json_values import plain
from sagastream.core.pointers import below, shown
from sagastream.core.strict_json import MAX_DEPTH
from sagastream.errors import MalformedMessage

#: The comparisons of conditions, as Python writes them.
_SIGNS: Final = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "in": "in"}
#: The operators whose operands are conditions themselves.
_OF_CONDITIONS: Final = ("all", "any", "not")
#: What an expression is made of. It has no public attributes: their names are those of members of the data.
_content: Final = attrgetter("_content")
_owner: Final = attrgetter("_owner")
_instead: Final = attrgetter("_instead")


class Expression:
    """What is known once the saga runs."""

    __slots__ = ("_content",)
    #: Of what is not a value: what to write where a value is needed.
    _instead: str | None = None

    def __init__(self, content: Any) -> None:
        """`content`: a template that may hold further expressions."""
        object.__setattr__(self, "_content", content)

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {_told(self)}>"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{self!r} cannot be changed: a definition only reads the data of its sagas")

    def __copy__(self) -> Self:
        return self  # like all that cannot be changed. A copy of its definition would be another one

    def __deepcopy__(self, _: object) -> Self:
        return self

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} is neither true nor false before the saga runs: write a & b, a | b and ~a for and, or and not, "
            "each comparison in brackets; (a < b) & (b < c) for a < b < c; and when=… of a step for if"
        )

    def __format__(self, _: str) -> NoReturn:
        raise TypeError(f'{self!r} has no text before the saga runs: write concat("order ", …) for f"order {{…}}"')

    def __str__(self) -> str:
        return self.__format__("")


class Value(Expression):
    """A value that is known once the saga runs. Compared with another value, it gives a condition."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # before the saga runs, two of them are neither equal nor different

    def __eq__(self, other: object) -> "Condition":  # type: ignore[override]
        return Condition({"eq": [self, other]})

    def __ne__(self, other: object) -> "Condition":  # type: ignore[override]
        return Condition({"ne": [self, other]})

    def __lt__(self, other: object) -> "Condition":
        return Condition({"lt": [self, other]})

    def __le__(self, other: object) -> "Condition":
        return Condition({"le": [self, other]})

    def __gt__(self, other: object) -> "Condition":
        return Condition({"gt": [self, other]})

    def __ge__(self, other: object) -> "Condition":
        return Condition({"ge": [self, other]})

    def __add__(self, *_: object) -> NoReturn:
        text = f"{self!r} has no value before the saga runs"
        raise TypeError(f"{text}: write concat(a, b) for a text; what must be calculated is a step")

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __add__
    __neg__ = __pos__ = __abs__ = __round__ = __int__ = __float__ = __add__

    def __and__(self, other: object) -> NoReturn:
        raise TypeError(f"{self!r} is a value and not a condition: write brackets, as in (a > 1) & (b == True)")

    __rand__ = __or__ = __ror__ = __and__

    def __invert__(self) -> NoReturn:
        raise TypeError(f"{self!r} is a value and not a condition: compare it, as in a != True")

    def __iter__(self) -> Iterator[NoReturn]:
        raise TypeError(f"{self!r} has no items before the saga runs: write each=… for one step an item")

    def __contains__(self, _: object) -> NoReturn:
        raise TypeError(f"{self!r} has no items before the saga runs: write one_of(value, list) for value in list")


class Reference(Value):
    """A place in the data of a saga. Its members are further places: `.sku` or `["sku"]`, and `[0]` of a list."""

    __slots__ = ("_owner",)

    def __init__(self, pointer: str, owner: object = None) -> None:
        """`owner`: the definition to which this belongs; None: it has a meaning in each."""
        super().__init__(pointer)
        object.__setattr__(self, "_owner", owner)

    def __getattr__(self, name: str) -> "Reference":
        if name.startswith("_"):  # what Python itself looks for must not look as if it were there
            raise AttributeError(f'there is no {name}; write ["{name}"] for a member whose name begins with _')
        return self[name]

    def __getitem__(self, key: str | int) -> "Reference":
        if isinstance(key, str) or (type(key) is int and key >= 0):
            return Reference(below(_content(self), key), self._owner)
        raise TypeError(f"{self!r}: {key!r} is neither the name of a member nor the index of an item, from 0")

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(f"{self!r} is a place in the data of a saga, and cannot be called")


class Default(Value):
    """What stands at a place or, if nothing does, something else."""

    __slots__ = ()


class Concat(Value):
    """A text that is joined once the saga runs."""

    __slots__ = ()


class Literal(Value):
    """Data, whatever it looks like."""

    __slots__ = ()


class Condition(Expression):
    """What holds or not once the saga runs, for `when=`. `a & b`, `a | b` and `~a` combine conditions."""

    __slots__ = ()
    _instead = "conditions stand in when=…"

    def __and__(self, other: object) -> "Condition":
        return all_of(self, other)

    def __rand__(self, other: object) -> "Condition":
        return all_of(other, self)

    def __or__(self, other: object) -> "Condition":
        return any_of(self, other)

    def __ror__(self, other: object) -> "Condition":
        return any_of(other, self)

    def __invert__(self) -> "Condition":
        return not_(self)


class DefinedStep(Expression):
    """A step of a definition. Other steps name it in `after=…`, and refer to what it returned: `step.result.total`."""

    __slots__ = ("definition", "number")
    definition: object  # of which it is a step
    number: int  # from 1
    _instead = "name its result, as in step.result"

    def __init__(self, definition: object, number: int, name: str | int, what: str) -> None:
        """`name`: its id or, if it has none, its number. `what`: what it is, for people."""
        super().__init__((name, what))
        object.__setattr__(self, "definition", definition)
        object.__setattr__(self, "number", number)

    def __repr__(self) -> str:
        name, what = _content(self)
        return f"<step {name}, {what}>"

    def __str__(self) -> str:
        """For print: what is made of it in an f-string is refused, as of every expression."""
        return repr(self)

    @property
    def name(self) -> str | int:
        """Its id or, if it has none, its number, from 1."""
        name: str | int = _content(self)[0]
        return name

    @property
    def result(self) -> Reference:
        """What it returned. Of a wait: the payload of its signal. Of a step with `each`: the list of all results."""
        return Reference(f"/steps/{self.name}/result", self.definition)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a step has no {name}; what it returned is at .result.{name}")


#: Of a step with `each`: the item, and its place in the list, from 0.
item: Final = Reference("/item")
index: Final = Reference("/index")
#: In `compensation_params`: why the saga is undone: `failure.step`, `failure.error`, `failure.reason`.
failure: Final = Reference("/failure")
#: The id of the saga.
saga_id: Final = Reference("/saga/id")


def default(reference: Reference, value: Any) -> Value:
    """What stands at this place or, if nothing does, this value, which is data."""
    return Default((_reference(reference, "default"), value))


def concat(*parts: object) -> Value:
    """A text, joined of texts and numbers."""
    return Concat(list(parts))


def literal(value: Any) -> Value:
    """This value as it is, even if it looks like a reference."""
    return Literal(value)


def exists(reference: Reference) -> Condition:
    """Whether anything stands at this place."""
    return Condition({"exists": _reference(reference, "exists")})


def one_of(value: object, values: object) -> Condition:
    """Whether a list holds this value."""
    return Condition({"in": [value, values]})


def all_of(*conditions: object) -> Condition:
    """Whether all of these conditions hold."""
    return Condition({"all": [_condition(one) for one in conditions]})


def any_of(*conditions: object) -> Condition:
    """Whether at least one of these conditions holds."""
    return Condition({"any": [_condition(one) for one in conditions]})


def not_(condition: object) -> Condition:
    """Whether a condition does not hold."""
    return Condition({"not": _condition(condition)})


def template_of(value: Any, owner: object, where: str, levels: int = MAX_DEPTH) -> Any:
    """A value that may hold expressions, as a JSON template.

    `owner`: the definition for which it is. Raises MalformedMessage with the place: JSON cannot hold a value, there is
    a condition, a reference belongs to another definition, or it is nested deeper than so many levels.
    """
    if levels == 0:
        raise MalformedMessage(f"{shown(where)}: nested too deep, or it holds itself")
    if isinstance(value, Expression):
        return _template_of(value, owner, where, levels)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise MalformedMessage(f"{where}: the key {key!r:.80} is not a text")
        return {key: template_of(member, owner, below(where, key), levels - 1) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [template_of(one, owner, below(where, place), levels - 1) for place, one in enumerate(value)]
    return _data(value, where)


def _template_of(value: Expression, owner: object, where: str, levels: int) -> dict[str, Any]:
    content = _content(value)
    match value:
        case Reference():
            if _owner(value) not in (None, owner):
                raise MalformedMessage(f"{where}: {_told(value)} is of {_owner(value)!r}, not of this definition")
            return {"$ref": content}
        case Default():
            return _template_of(content[0], owner, where, levels) | {"default": _data(content[1], where)}
        case Concat():
            return {"$concat": template_of(content, owner, where, levels - 1)}
        case Literal():
            return {"$literal": _data(content, where)}
    raise MalformedMessage(f"{where}: {value!r} is not a value: {_instead(value)}")


def condition_of(value: Any, owner: object, where: str) -> Any:
    """A condition as JSON. Raises MalformedMessage as `template_of` does."""
    if isinstance(value, Value):
        raise MalformedMessage(f"{where}: {value!r} is a value and not a condition: compare it, as in a == True")
    if not isinstance(value, Condition):
        return _data(value, where)
    ((name, operands),) = _content(value).items()
    at = below(where, name)
    if name == "not":
        return {name: condition_of(operands, owner, at)}
    if name in _OF_CONDITIONS:
        return {name: [condition_of(one, owner, below(at, place)) for place, one in enumerate(operands)]}
    return {name: template_of(operands, owner, at)}


def _data(value: Any, where: str) -> Any:
    """Data as JSON has them."""
    if isinstance(value, Expression):
        raise MalformedMessage(f"{where}: {value!r} stands where only data can stand")
    try:
        return plain(value, MAX_DEPTH)
    except MalformedMessage as error:
        raise MalformedMessage(f"{where}: {error}") from None


def _reference(value: object, what: str) -> Reference:
    if not isinstance(value, Reference):
        raise TypeError(f"{what} takes a reference, such as order.input.total, not {value!r:.200}")
    return value


def _condition(value: object) -> object:
    if not isinstance(value, Condition | bool | dict):
        hint = "in Python, & and | come before comparisons, so write brackets: (a > 1) & (b > 2)"
        raise TypeError(f"{value!r:.200} is not a condition; {hint}")
    return value


def _told(value: object) -> str:
    """An expression for people."""
    if isinstance(value, Condition):
        return _told_condition(*next(iter(_content(value).items())))
    if isinstance(value, Reference):
        return shown(_content(value))
    if isinstance(value, DefinedStep):
        return repr(value)
    if isinstance(value, Expression):
        content = _content(value)
        parts = content if isinstance(value, Concat | Default) else [content]
        return f"{type(value).__name__.lower()}({', '.join(map(_told, parts))})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_told(member)}" for key, member in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_told, value)) + "]"
    return f"{value!r:.80}"


def _told_condition(name: str, operands: Any) -> str:
    if name in _SIGNS:
        return f"{_told(operands[0])} {_SIGNS[name]} {_told(operands[1])}"
    if name == "exists":
        return f"exists({_told(operands)})"
    if name == "not":
        return f"~({_told(operands)})"
    return {"all": " & ", "any": " | "}[name].join(f"({_told(one)})" for one in operands)
