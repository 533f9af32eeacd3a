"""Values of Python's other types as JSON has them, and types whose values JSON cannot hold."""

import functools
import math
import uuid
from collections import OrderedDict, namedtuple
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, NewType, Protocol, TypedDict, TypeVar

import msgspec
import orjson
import pytest

from sagastream.core.json_values import unwritable_result
from sagastream.core.strict_json import MAX_DEPTH, encode_payload
from sagastream.errors import MalformedMessage
from support.needs import missing


def package(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        missing(f"{name} is not installed")


@dataclass
class Money:
    amount: Decimal
    currency: str = "EUR"
    _note: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Booking:
    price: Money
    at: datetime
    parts: list["Booking"] = field(default_factory=list)


class Colour(Enum):
    RED = "red"
    DAY = date(2026, 1, 1)


class Level(IntEnum):
    HIGH = 3


class Name(StrEnum):
    CARD = "card"


class Point(msgspec.Struct, rename="camel"):
    far_x: int
    at: datetime | None = None


Pair = namedtuple("Pair", "left right")  # noqa: PYI024 - as in older code


class Half(float):
    """As the numbers of some libraries are."""


AT = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=timezone(timedelta(hours=5, minutes=45)))
KEY = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Money(Decimal("19.990")), {"amount": "19.990", "currency": "EUR", "_note": ""}),
        (Decimal("-1E+400"), "-1E+400"),
        (Decimal("0.1000000000000000055511151231257827"), "0.1000000000000000055511151231257827"),
        (AT, "2026-02-03T04:05:06.000789+05:45"),
        (AT.replace(tzinfo=None), "2026-02-03T04:05:06.000789"),
        (time(1, 2, 3, 4, tzinfo=UTC), "01:02:03.000004+00:00"),
        (KEY, str(KEY)),
        (Colour.DAY, "2026-01-01"),
        ([Level.HIGH, Name.CARD, Colour.RED], [3, "card", "red"]),
        ({Name.CARD: Decimal(1), "k": {Colour.RED: KEY}}, {"card": "1", "k": {"red": str(KEY)}}),
        (Point(1, AT), {"farX": 1, "at": "2026-02-03T04:05:06.000789+05:45"}),
        (Pair(1, Half(0.5)), [1, 0.5]),
        (OrderedDict(a=MappingProxyType({"b": date(2026, 1, 1)})), {"a": {"b": "2026-01-01"}}),
        ((1, (KEY,)), [1, [str(KEY)]]),
        (
            Booking(Money(Decimal(5)), AT, [Booking(Money(Decimal(1)), AT)]),
            {
                "price": {"amount": "5", "currency": "EUR", "_note": ""},
                "at": AT.isoformat(),
                "parts": [
                    {
                        "price": {"amount": "1", "currency": "EUR", "_note": ""},
                        "at": AT.isoformat(),
                        "parts": [],
                    }
                ],
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_written_as_is_usual_and_loses_nothing(value: object, told: object) -> None:
    assert orjson.loads(encode_payload(value)) == told
    assert orjson.loads(encode_payload({"deep": [value]})) == {"deep": [told]}


def test_a_model_of_pydantic_is_written_as_its_own_json() -> None:
    pydantic = package("pydantic")
    inner = pydantic.create_model("Inner", at=(datetime, ...), price=(Decimal, ...))
    more: Any = list.__class_getitem__(inner)
    model = pydantic.create_model("Model", one=(inner, ...), more=(more, ...))
    value = model(one=inner(at=AT, price="19.990"), more=[inner(at=AT, price="1")])
    assert orjson.loads(encode_payload(value)) == orjson.loads(value.model_dump_json())
    assert orjson.loads(encode_payload([value])) == [orjson.loads(value.model_dump_json())]
    numbers = pydantic.RootModel[list[int]]([1, 2])
    assert encode_payload(numbers) == b"[1,2]"


def test_what_a_model_of_pydantic_would_lose_is_refused() -> None:
    model = package("pydantic").create_model("Model", size=(float, ...))
    with pytest.raises(MalformedMessage, match="no NaN"):
        encode_payload(model(size=math.nan))


def test_a_class_of_attrs_is_written_as_an_object() -> None:
    point = package("attr").make_class("Point", ["x", "_y"])
    assert orjson.loads(encode_payload([point(Decimal(1), KEY)])) == [{"x": "1", "_y": str(KEY)}]


class Plain:
    """A class that says nothing about JSON."""


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Plain(), f"it is a {__name__}.Plain"),
        ({"a": [1, {"b": Plain()}]}, f"a[1].b is a {__name__}.Plain"),
        ([Money(Plain())], f"[0].amount is a {__name__}.Plain"),  # type: ignore[arg-type]
        ({1, 2}, "it is a set"),
        ({"a": b"x"}, "a is a bytes"),
        (1j, "it is a complex"),
        (timedelta(1), "it is a datetime.timedelta"),
        (Path("x"), "it is a pathlib."),
        (Fraction(1, 3), "it is a fractions.Fraction"),
        ({"a": {7: 1}}, "a has a key that is not a text but a int"),
        ({None: 1}, "it has a key that is not a text but a NoneType"),
        (Decimal("NaN"), "it is NaN"),
        ({"a": Decimal("Infinity")}, "a is Infinity"),
        (Money, "it is a type"),
        (Point(1, Plain()), f"it is a {__name__}.Point: "),  # type: ignore[arg-type]
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_is_told_with_its_type_and_its_place(value: object, why: str) -> None:
    with pytest.raises(MalformedMessage) as found:
        encode_payload(value)
    assert str(found.value).startswith(f"not JSON: {why}")


def test_what_lies_beside_another_type_is_checked_as_ever() -> None:
    for value, why in ((math.nan, "no NaN"), (2**64, "64"), ("\ud800", "surrogates")):
        with pytest.raises(MalformedMessage, match=why):
            encode_payload([KEY, Decimal(1), value])


def test_what_holds_itself_is_refused() -> None:
    booking = Booking(Money(Decimal(1)), AT)
    booking.parts.append(booking)
    with pytest.raises(MalformedMessage, match="nested too deep"):
        encode_payload(booking)


def test_a_value_is_written_at_the_depth_limit_and_not_one_level_over_it() -> None:
    value: object = Decimal(1)
    for _ in range(MAX_DEPTH - 3):
        value = [value]
    assert encode_payload(value).startswith(b"[[")
    with pytest.raises(MalformedMessage, match="nested"):
        encode_payload([value])


# --- types


class Abstract(Protocol):
    def amount(self) -> int: ...


class Base:
    """Only what is derived from it is ever returned."""


@dataclass
class Derived(Base):
    n: int


class Row(TypedDict):
    tags: set[str]


class Trip(NamedTuple):
    legs: list[Plain]


@dataclass
class Tree:
    left: "Tree | None"
    leaf: bytes


Number = NewType("Number", int)
T = TypeVar("T")


def returning(said: Any) -> Callable[..., Any]:
    def handler(params: Any, context: Any) -> Any:
        return None

    handler.__annotations__["return"] = said
    return handler


@pytest.mark.parametrize(
    "said",
    [
        None, Any, object, int, str, float, bool, dict, list, tuple, dict[str, Any], Mapping[str, int], Sequence[int],
        list[Booking], Booking, Booking | None, tuple[int, ...], Pair, Colour, Level, datetime, date, time, Decimal,
        uuid.UUID, Point, Abstract, Base, Number, T, Literal["a"], Annotated[int, "n"], dict[Name, int], "Booking",
        "of a module that only type checkers import",
    ],
    ids=str,
)  # fmt: skip
def test_a_type_that_json_can_hold_or_that_is_not_known_is_let_pass(said: Any) -> None:
    assert unwritable_result(returning(said)) is None


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (bytes, "bytes"),
        (set[int], "set"),
        (frozenset, "frozenset"),
        (Plain, f"{__name__}.Plain"),
        ("Plain", f"{__name__}.Plain"),
        (dict[str, Plain], f"{__name__}.Plain"),
        (list[bytes] | None, "bytes"),
        (dict[int, str], "a dict with keys of type int"),
        (timedelta, "datetime.timedelta"),
        (Path, "pathlib.Path"),
        (Row, "set"),
        (Trip, f"{__name__}.Plain"),
        (Tree, "bytes"),
        (Iterator[int], "collections.abc.Iterator"),
        (Awaitable[int], "collections.abc.Awaitable"),
        (AsyncIterator[int], "collections.abc.AsyncIterator"),
    ],
    ids=str,
)
def test_a_type_that_json_cannot_hold_is_named(said: Any, name: str) -> None:
    assert unwritable_result(returning(said)) == name


def test_of_a_partial_a_method_and_an_object_it_is_the_function_that_counts() -> None:
    class Handler:
        def method(self, params: Any, context: Any) -> bytes:
            return b""

        def __call__(self, params: Any, context: Any) -> bytes:
            return b""

    for handler in (functools.partial(returning(bytes)), Handler().method, Handler()):
        assert unwritable_result(handler) == "bytes"


def test_what_a_decorator_wraps_says_nothing_about_what_the_decorator_returns() -> None:
    @functools.wraps(returning(bytes))
    def wrapper(*args: Any) -> Any:
        return "text"

    assert unwritable_result(wrapper) is None


def test_a_builtin_says_nothing() -> None:
    assert unwritable_result(len) is None
    assert unwritable_result(dict) is None
