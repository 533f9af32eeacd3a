"""Handlers whose annotations name a class for their params: they get an instance, or are not called."""

import asyncio
import contextlib
import functools
import inspect
import sqlite3
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import msgspec
import orjson
import pydantic
import pytest
from msgspec.structs import replace

from sagastream import Context, Effects, Reject, Service
from sagastream.core.commands import Command, Reply
from sagastream.errors import ServiceError
from sagastream.service.handlers import call, call_async, context_of
from sagastream.testing import Sagas
from support.values import a_charge


@dataclass
class Line:
    sku: str
    count: int = 1


@dataclass
class AsDataclass:
    total: Decimal
    lines: list[Line] = field(default_factory=list)


class LineModel(pydantic.BaseModel):
    sku: str
    count: int = 1


class AsModel(pydantic.BaseModel):
    total: Decimal
    lines: list[LineModel] = []


@pydantic.dataclasses.dataclass
class AsPydanticDataclass:
    total: Decimal
    lines: list[LineModel] = pydantic.Field(default_factory=list)


class LineStruct(msgspec.Struct):
    sku: str
    count: int = 1


class AsStruct(msgspec.Struct):
    total: Decimal
    lines: list[LineStruct] = []


@attrs.define
class AsAttrs:
    total: Decimal
    lines: list[Line] = attrs.Factory(list)


KINDS: list[Any] = [AsDataclass, AsModel, AsPydanticDataclass, AsStruct, AsAttrs]


def a_command(params: Any, **options: Any) -> Command:
    return replace(a_charge(), params=orjson.dumps(params), type="Charge", **options)


def answer(handler: Callable[..., Any], params: Any) -> Reply:
    """What a service answers with this handler."""
    service = Service("till")
    service.command("Charge", compensation=None)(handler)
    command = a_command(params)
    registration = service.registration(command)
    assert registration is not None
    made = context_of(command)
    if registration.is_async:
        return asyncio.run(call_async(registration.handler, command, made, registration.model))
    return call(registration.handler, command, made, registration.model)


def error(reply: Reply) -> Any:
    assert reply.type == "Charge_failed"
    assert reply.error is not None
    return orjson.loads(reply.error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_gets_an_instance_and_may_return_one(kind: Any) -> None:
    def charge(params: Any, context: Context) -> Any:
        assert type(params) is kind
        assert (params.total, params.lines[0].sku, params.lines[0].count) == (Decimal("5.0"), "a", 1)
        return params

    async def charge_async(params: Any, context: Context) -> Any:
        return charge(params, context)

    for handler in (charge, charge_async):
        handler.__annotations__["params"] = kind
        reply = answer(handler, {"total": "5.0", "lines": [{"sku": "a"}]})
        assert reply.type == "Charge_ok"
        assert reply.result == b'{"total":"5.0","lines":[{"sku":"a","count":1}]}'


@pytest.mark.parametrize(
    ("params", "texts"),
    [
        ({"lines": []}, {"params: object missing required field total", "params/total: field required"}),
        ({"total": "5", "lines": [{"sku": "a"}, {"sku": 7}]},
         {"params/lines/1/sku: expected str, got int", "params/lines/1/sku: input should be a valid string"}),
        (None, {"params: expected object, got null", "params: input should be an object",
                "params: input should be a dictionary or an instance of AsPydanticDataclass"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_params_that_do_not_fit_are_rejected_with_their_place(kind: Any, params: Any, texts: set[str]) -> None:
    def charge(params: Any, context: Context) -> Any:
        raise AssertionError("it is not called")

    charge.__annotations__["params"] = kind
    assert error(answer(charge, params)) in {f"malformed_params: {text}" for text in texts}


def plain(params: Any, context: Context) -> Any:
    return type(params).__name__


def unannotated(params, context):  # type: ignore[no-untyped-def]
    return type(params).__name__


def of_a_dict(params: dict[str, Any], context: Context) -> Any:
    return type(params).__name__


def of_a_protocol(params: "types.NotThere", context: Context) -> Any:  # type: ignore[name-defined]
    return type(params).__name__


@pytest.mark.parametrize("handler", [plain, unannotated, of_a_dict, of_a_protocol])
def test_other_handlers_get_what_json_has(handler: Any) -> None:
    assert answer(handler, {"total": 5}).result == b'"dict"'


def as_a_text(params: "Line", context: Context) -> Any:
    return type(params).__name__


class AsMethod:
    def charge(self, params: Line, context: Context) -> Any:
        return type(params).__name__

    def __call__(self, params: "Line", context: Context) -> Any:
        return type(params).__name__


def with_more(more: str, params: "Line", context: Context) -> Any:
    return more + type(params).__name__


@functools.wraps(as_a_text)
def wrapped(params: Any, context: Context) -> Any:
    return as_a_text(params, context)


@pytest.mark.parametrize(
    "handler", [as_a_text, AsMethod().charge, AsMethod(), functools.partial(with_more, ""), wrapped]
)
def test_the_class_is_found_however_the_handler_is_made(handler: Any) -> None:
    assert answer(handler, {"sku": "a"}).result == b'"Line"'


@dataclass
class Unreadable:
    what: "types.NotThere"  # type: ignore[name-defined]


def test_a_class_that_cannot_be_read_is_refused_at_import() -> None:
    def charge(params: Unreadable, context: Context) -> None: ...

    with pytest.raises(ServiceError) as told:
        answer(charge, {})
    text = "service till: Charge: the params of test_a_class_that_cannot_be_read_is_refused_at_import.<locals>.charge"
    assert str(told.value).startswith(f"{text} cannot be read from JSON as Unreadable: ")


def test_without_pydantic_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pydantic"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert answer(as_a_text, {"sku": "a"}).result == b'"Line"'
    assert error(answer(as_a_text, {"sku": 5})) == "malformed_params: params/sku: expected str, got int"


def test_the_testing_kit_reads_params_too() -> None:
    service = Service("till")
    seen: list[Any] = []

    @service.command("Charge", compensation="Refund")
    def charge(params: Line, context: Context) -> Line:
        seen.append(params)
        return Line(params.sku, params.count + 1)

    @service.compensation("Refund")
    def refund(params: Line, context: Context) -> None:
        seen.append(params)

    saga = Sagas(service).run(
        [
            {"transaction": "Charge", "service": "till", "params": {"sku": "a"}},
            {"transaction": "Charge", "service": "till", "params": {"sku": 5}},
        ]
    )
    assert saga.status == "ABORTED"
    assert saga.results[0] == {"sku": "a", "count": 2}
    assert seen == [Line("a"), Line("a")]
    assert saga.reason == "Step 2 failed: malformed_params: params/sku: expected str, got int"


# --- functions that know nothing of sagas


def ship(line: Line, on: date | None = None, note: str = "") -> str:
    return f"{type(line).__name__} {line.count} {on!r} {note}"


SHIP = f"{__name__}.ship"


@pytest.mark.parametrize(
    ("params", "result"),
    [
        ({"line": {"sku": "a", "count": 2}, "note": "x"}, "Line 2 None x"),
        ([{"sku": "a"}, None, "y"], "Line 1 None y"),
        ({"line": {"sku": "a", "count": "2"}}, "malformed_params: params/line/count: expected int, got str"),
        ([{"sku": "a", "count": "2"}], "malformed_params: params/0/count: expected int, got str"),
        ({"lines": 1}, f"malformed_params: {SHIP}: missing a required argument: 'line'"),
    ],
)
def test_the_arguments_of_a_function_are_read_one_by_one(
    params: Any, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = types.ModuleType("shop_of_this_test")
    here.ship = ship  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, here.__name__, here)
    service = Service("till")
    service.command("Charge", call="shop_of_this_test.ship", compensation=None)
    command = a_command(params)
    registration = service.registration(command)
    assert registration is not None
    assert registration.model is None
    reply = call(registration.handler, command, context_of(command), registration.model)
    told = orjson.loads(reply.result or reply.error or b"null")
    assert told == result.replace(SHIP, "shop_of_this_test.ship")


# --- effects


@pytest.fixture
def effects(tmp_path: Path) -> Effects:
    made = Effects(lambda: contextlib.closing(sqlite3.connect(tmp_path / "till.db")))
    made.create_table()
    return made


def charge_any(params: dict[str, Any], context: Context, db: sqlite3.Connection) -> str:
    return "charged"


def charge_line(params: Line, context: Context, db: sqlite3.Connection) -> str:
    return f"charged {params.count}"


def refund_line(params: Line, context: Context, db: sqlite3.Connection) -> None:
    assert isinstance(params, Line)


def test_a_handler_with_effects_gets_an_instance(effects: Effects) -> None:
    charge = effects.once(charge_line)
    assert answer(charge, {"sku": "a"}).result == b'"charged 1"'
    command = a_command({"sku": "a"}, compensating=True)
    service = Service("till")
    service.compensation("Charge")(effects.undo(refund_line))
    registration = service.registration(command)
    assert registration is not None
    assert call(registration.handler, command, context_of(command), registration.model).type == "Charge_ok"
    assert error(answer(charge, {"sku": "a"})) == "cancelled: it came after its compensation"


def test_a_class_that_takes_no_such_params_any_more_does_not_deny_an_effect_that_is_there(effects: Effects) -> None:
    assert answer(effects.once(charge_any), {"sku": 5}).result == b'"charged"'
    assert answer(effects.once(charge_line), {"sku": 5}).result == b'"charged"'


def test_a_rejection_of_params_is_kept_as_every_other(effects: Effects) -> None:
    text = "malformed_params: params/sku: expected str, got int"
    assert error(answer(effects.once(charge_line), {"sku": 5})) == text
    assert error(answer(effects.once(charge_any), {"sku": 5})) == text


def test_what_is_not_a_rejection_stays_what_it_is() -> None:
    class Fussy(pydantic.BaseModel):
        sku: str

        @pydantic.field_validator("sku")
        @classmethod
        def ask(cls, value: str) -> str:
            if value == "down":
                raise RuntimeError("the catalogue is away")
            raise ValueError("no such sku")

    def charge(params: Fussy, context: Context) -> None: ...

    charge.__annotations__["params"] = Fussy
    assert error(answer(charge, {"sku": "a"})) == "malformed_params: params/sku: value error, no such sku"
    with pytest.raises(RuntimeError):
        answer(charge, {"sku": "down"})


def test_the_signature_of_a_handler_stays_its_own() -> None:
    service = Service("till")

    @service.command("Charge", compensation=None)
    def charge(params: Line, context: Context) -> Any:
        raise Reject(params.sku)

    assert list(inspect.signature(charge).parameters) == ["params", "context"]
    with pytest.raises(Reject):
        charge(Line("a"), context_of(a_charge()))
