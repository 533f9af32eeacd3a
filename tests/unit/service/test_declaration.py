"""The declarations with which services are written."""

import functools
import time
from typing import Any, assert_type

import pytest
from msgspec.structs import replace

from sagastream.core.commands import Command
from sagastream.errors import ServiceError
from sagastream.service.context import Context
from sagastream.service.declaration import SHORTEST_LEASE_MS, Service
from sagastream.service.handlers import context_of
from sagastream.service.loading import load_service


def a_command(kind: str = "Charge", *, compensating: bool = False) -> Command:
    return Command(
        service="payment",
        type=kind,
        saga_id="saga42",
        step=2,
        params=b'{"amount":1}',
        compensating=compensating,
        attempt=3,
        begun_ms=5,
    )


def handle(params: Any, context: Context) -> None:
    """A handler that does nothing."""


def typed(params: Any, context: Context) -> int:
    """A handler that says what it returns."""
    return 1


def told(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ServiceError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "payment\n", "💳", "{0}"])
def test_names_that_no_message_can_carry_are_refused_where_they_are_declared(name: str) -> None:
    service = Service("payment")
    assert "cannot be the name of a service" in told(Service, name)
    assert "cannot be the name of a command" in told(service.command, name, compensation=None)
    assert "cannot be the name of a command" in told(service.compensation, name)


def test_a_command_is_handled_by_the_handler_that_was_declared_for_it() -> None:
    service = Service("payment")
    decorated = service.command("Charge", compensation="Refund")(handle)
    assert decorated is handle  # the function can still be called by itself
    assert service.handler(a_command("Charge")) is handle
    assert service.handler(a_command("Refund")) is None


def test_commands_and_compensations_are_told_apart() -> None:
    def undo(params: Any, context: Context) -> None: ...

    service = Service("payment")
    service.command("Charge", compensation="Refund")(handle)
    service.compensation("Refund")(undo)
    assert service.handler(a_command("Refund", compensating=True)) is undo
    assert service.handler(a_command("Refund")) is None
    assert service.handler(a_command("Charge", compensating=True)) is None


def test_a_service_knows_what_undoes_its_commands() -> None:
    def undo(params: Any, context: Context) -> None: ...

    service = Service("payment")
    service.command("Charge", compensation="Refund")(handle)
    service.command("Remind", compensation=None)(handle)
    service.compensation("Refund")(undo)
    assert service.undo_of(a_command("Charge")) == "Refund"
    assert service.undo_of(a_command("Remind")) is None
    # What the step says has priority.
    assert service.undo_of(replace(a_command("Remind"), compensation="Forget")) == "Forget"
    assert service.undo_of(replace(a_command("Charge"), compensation=None)) is None
    assert service.undo_of(a_command("Ship")) is None
    assert service.undo_of(a_command("Refund")) is None


def test_a_name_cannot_be_declared_twice() -> None:
    service = Service("payment")
    service.command("Charge", compensation="Refund")(handle)
    service.compensation("Refund")(handle)
    assert told(service.command, "Charge", compensation=None) == "service payment declares Charge twice"
    assert told(service.compensation, "Charge") == "service payment declares Charge twice"
    assert told(service.command, "Refund", compensation=None) == "service payment declares Refund twice"
    assert told(service.compensation, "Refund") == "service payment declares Refund twice"


def test_a_command_cannot_be_its_own_compensation() -> None:
    assert "its own compensation" in told(Service("payment").command, "Charge", compensation="Charge")


def test_a_decorator_without_parentheses_is_told_how_it_is_written() -> None:
    service: Any = Service("payment")
    assert told(service.command, handle) == (
        'service payment: write @service.command("NAME", compensation=…) above a handler'
    )
    assert told(service.compensation, handle) == 'service payment: write @service.compensation("NAME") above a handler'


@pytest.mark.parametrize("compensation", [handle, 3, "a b", ["Refund"]])
def test_a_compensation_is_referred_to_by_its_name(compensation: Any) -> None:
    text = told(Service("payment").command, "Charge", compensation=compensation)
    assert text.startswith(f"service payment: Charge: compensation={compensation!r} is not a name; its handler is")
    assert text.endswith('declared with @service.compensation("NAME"), and compensation="NAME" refers to it')


@pytest.mark.parametrize("name", ["Charge_ok", "Charge_failed", "_ok"])
def test_a_name_that_reads_like_a_reply_is_refused(name: str) -> None:
    service = Service("payment")
    expected = f"service payment: {name} reads like a reply: no name ends in _ok or _failed"
    assert told(service.command, name, compensation=None) == told(service.compensation, name) == expected


def test_what_a_compensation_does_not_take_is_refused_by_the_name_of_what_was_called() -> None:
    service: Any = Service("payment")
    with pytest.raises(TypeError, match=r"Service\.compensation\(\) got an unexpected keyword argument 'compensation'"):
        service.compensation("Refund", compensation="Charge")


def returns_bytes(params: Any, context: Context) -> bytes:
    return b"x"


def test_a_handler_that_says_that_it_returns_what_json_cannot_hold_is_refused() -> None:
    service = Service("payment")
    with pytest.raises(ServiceError, match="the handler of Charge returns bytes, which JSON cannot hold: return a"):
        service.command("Charge", compensation=None)(returns_bytes)
    service.compensation("Refund")(returns_bytes)  # what it returns is ignored


def test_a_function_that_says_so_is_refused_before_it_is_called() -> None:
    service = Service("payment")
    service.command("Charge", call=f"{__name__}.returns_bytes", compensation="Refund")
    service.compensation("Refund", call=f"{__name__}.returns_bytes")
    charge, refund = service.handler(a_command()), service.handler(a_command("Refund", compensating=True))
    assert charge is not None
    assert refund is not None
    with pytest.raises(ServiceError, match="returns bytes, which JSON cannot hold"):
        charge([1, 2], None)  # type: ignore[arg-type]
    assert refund([1, 2], None) == b"x"  # type: ignore[arg-type]


def test_the_options_of_a_declaration_are_typed() -> None:
    """If one of the comments were not needed, mypy would report it: its run over this file is the other half of this
    test."""
    service = Service("payment")
    declare = service.command("Charge", compensation="Refund", concurrency=2, via="rq", queue="slow", timeout_s=3)
    charge = declare(typed)
    assert_type(charge(1, context_of(a_command(), time.time)), int)
    service.command("Remind", call="shop.remind", timeout_s=None)
    service.compensation("Refund", call="shop.refund", concurrency=1)
    with pytest.raises(TypeError, match="not callable"):
        service.command("Thank", call="shop.thank")(typed)  # type: ignore[misc]
    with pytest.raises(TypeError, match=r"Service\.command\(\) got an unexpected keyword argument 'concurency'"):
        service.command("Ship", compensation=None, concurency=2)  # type: ignore[call-overload]
    with pytest.raises(ServiceError, match="cannot run '2' at once"):
        service.command("Ship", compensation=None, concurrency="2")  # type: ignore[call-overload]
    with pytest.raises(ServiceError, match="cannot run via 'celery'"):
        service.compensation("Ship", via="celery")  # type: ignore[call-overload]


def test_a_function_that_is_not_told_the_key_is_tried_once() -> None:
    service = Service("payment")
    service.command("Charge", call="shop.jobs.charge")
    service.command("Remind", compensation=None)(handle)
    assert {one.name: one.tries for one in service.registrations} == {"Charge": 1, "Remind": 3}


def test_a_command_whose_compensation_is_not_told_is_not_published() -> None:
    """So a saga that has to undo it is parked, and not taken for undone."""
    service = Service("payment")
    service.command("Charge", call="shop.jobs.charge")
    service.command("Remind", call="shop.jobs.remind", compensation=None)
    assert service.publishes() == {"Remind": None}


def test_a_service_publishes_its_commands_and_what_undoes_each() -> None:
    service = Service("payment")
    service.compensation("Refund")(handle)
    service.command("Charge", compensation="Refund")(handle)
    service.command("Remind", compensation=None)(handle)
    assert service.publishes() == {"Charge": "Refund", "Remind": None}


def test_a_compensation_without_a_handler_is_told_when_it_is_to_be_published() -> None:
    service = Service("payment")
    service.command("Charge", compensation="Refund")(handle)
    text = told(service.publishes)
    assert "Charge is undone by Refund, which has no handler" in text
    assert '@service.compensation("Refund")' in text


def test_a_service_without_commands_is_told_when_it_is_to_be_published() -> None:
    service = Service("payment")
    service.compensation("Refund")(handle)
    assert told(service.publishes) == "service payment declares no command"


async def handle_async(params: Any, context: Context) -> None:
    """A handler that does nothing, and may be awaited."""


class Handlers:
    """Handlers that are methods."""

    def charge(self, params: Any, context: Context) -> None: ...

    async def refund(self, params: Any, context: Context) -> None: ...

    def __call__(self, params: Any, context: Context) -> None: ...


def named(*, params: Any, context: Context) -> None:
    """A handler with a parameter for which there is no argument."""


class AsyncObject:
    """An object that is called as a handler, and is async."""

    async def __call__(self, params: Any, context: Context) -> None: ...


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (handle_async, True),
        (Handlers().refund, True),
        (functools.partial(handle_async), True),
        (AsyncObject(), True),
        (handle, False),
        (Handlers().charge, False),
        (Handlers(), False),
        (lambda params, context: None, False),
    ],
)
def test_async_handlers_are_told_from_plain_ones(handler: Any, expected: bool) -> None:
    service = Service("payment")
    service.command("Charge", compensation=None)(handler)
    [registration] = service.registrations
    assert registration.is_async is expected


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True, "4"])
def test_a_concurrency_that_is_no_number_is_refused_where_it_is_declared(concurrency: Any) -> None:
    service = Service("payment")
    assert "give a whole number, at least 1" in told(Service, "payment", concurrency=concurrency)
    assert "give a whole number, at least 1" in told(
        service.command, "Charge", compensation=None, concurrency=concurrency
    )
    assert "give a whole number, at least 1" in told(service.compensation, "Refund", concurrency=concurrency)


@pytest.mark.parametrize("lease_ms", [0, 1, -30_000, SHORTEST_LEASE_MS - 1, None, "30s", 30_000.0, True])
def test_a_lease_that_is_no_number_or_too_short_is_refused_where_it_is_declared(lease_ms: Any) -> None:
    text = told(Service, "payment", lease_ms=lease_ms)
    assert text == f"service payment: lease_ms cannot be {lease_ms!r}; give whole milliseconds, at least 100"
    assert Service("payment", lease_ms=SHORTEST_LEASE_MS).lease_ms == SHORTEST_LEASE_MS


def test_each_command_and_compensation_may_have_a_concurrency_of_its_own() -> None:
    service = Service("payment", concurrency=8)
    service.command("Charge", compensation="Refund", concurrency=2)(handle)
    service.compensation("Refund", concurrency=1)(handle)
    service.command("Remind", compensation=None)(handle)
    assert service.concurrency == 8
    assert {one.name: one.options.get("concurrency") for one in service.registrations} == {
        "Charge": 2,
        "Refund": 1,
        "Remind": None,
    }


@pytest.mark.parametrize(
    "handler",
    [lambda: None, lambda params: None, lambda params, context, more: None, named, functools.partial(handle, 1)],
    ids=["no argument", "one argument", "three arguments", "arguments by name", "one argument left"],
)
def test_a_handler_that_does_not_take_params_and_context_is_refused_where_it_is_declared(handler: Any) -> None:
    service = Service("payment")
    for declare, name in ((service.command("Charge", compensation=None), "Charge"), (service.compensation("B"), "B")):
        assert told(declare, handler).startswith(f"service payment: a handler takes (params, context); {name}: ")
    assert service.handler(a_command("Charge")) is None


def test_a_builtin_that_does_not_tell_what_it_takes_is_no_handler() -> None:
    told_ = told(Service("payment").command("Charge", compensation=None), dict)
    assert told_.startswith("service payment: a handler takes (params, context); Charge: ")


def yields(params: Any, context: Context) -> Any:
    """A generator: as a handler it would be started and never run."""
    yield params


async def yields_async(params: Any, context: Context) -> Any:
    """An async generator."""
    yield params


class YieldingObject:
    """An object whose call is a generator."""

    def __call__(self, params: Any, context: Context) -> Any:
        yield params


@pytest.mark.parametrize("handler", [yields, yields_async, functools.partial(yields), YieldingObject()])
def test_a_handler_that_yields_is_refused_where_it_is_declared(handler: Any) -> None:
    text = told(Service("payment").command("Charge", compensation=None), handler)
    assert text == "service payment: the handler of Charge yields; a handler returns its result"


@pytest.mark.parametrize(
    "handler",
    [
        handle,
        Handlers().charge,
        Handlers(),
        lambda *args: None,
        lambda params, context, more=None: None,
        functools.partial(lambda first, params, context: None, 1),
    ],
    ids=["a function", "a method", "an object", "any arguments", "a default", "a partial"],
)
def test_whatever_can_be_called_with_params_and_context_is_a_handler(handler: Any) -> None:
    service = Service("payment")
    service.command("Charge", compensation=None)(handler)
    assert service.handler(a_command("Charge")) is handler


@pytest.mark.parametrize("name", ["inventory", "payment", "shipping"])
def test_each_sample_service_is_named_like_its_module_and_can_undo_what_it_does(name: str) -> None:
    service = load_service(f"sagastream_stubs.{name}:service")
    assert service.name == name
    for command, compensation in service.publishes().items():
        assert service.handler(a_command(command)) is not None
        assert compensation is not None
        assert service.handler(a_command(compensation, compensating=True)) is not None
