"""Params as the class that a handler names for them in its annotations, if that is one that JSON is read as."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from sagastream.core.pointers import below
from sagastream.core.strict_json import encode
from sagastream.core.typed_values import Model, is_model, model
from sagastream.errors import MalformedMessage, Reject, ServiceError
from sagastream.service.context import Context

#: What params are called in texts.
CALLED = "params"


def model_of_params(handler: Callable[..., Any]) -> Model | None:
    """The class that the first parameter of a handler names; None: it names none, or that cannot be found out. Raises
    ServiceError if it names one that cannot be read from JSON."""
    first = next(_annotated(handler), None)
    return None if first is None or first[0] != 0 else first[2]


def read(described: Model, data: bytes, called: str = CALLED) -> Any:
    """Params as this class. Raises Reject, which says what does not fit, and where: nothing was begun then."""
    try:
        return described.read(data, called)
    except MalformedMessage as error:
        raise Reject(f"malformed_params: {error}") from None


class Arguments:
    """The arguments of a function that is called with the members of params."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Raises ServiceError as `model_of_params` does."""
        self._models = {name: (place, described) for place, name, described in _annotated(function)}

    def read(self, arguments: dict[str, Any], *, by_name: bool) -> None:
        """Put instances in the place of those arguments for which the function names a class. Raises Reject.

        `by_name`: they are the members of an object; else the items of a list.
        """
        for name in self._models.keys() & arguments.keys():
            place, described = self._models[name]
            called = below(CALLED, name if by_name else place)
            arguments[name] = read(described, encode(arguments[name]), called)


def _annotated(function: Callable[..., Any]) -> Iterator[tuple[int, str, Model]]:
    """The parameters that name such a class: the place of each, from 0, its name, and the class."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # ValueError: a builtin does not tell its parameters
        return
    for place, parameter in enumerate(parameters):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = _resolved(function, parameter.annotation)
        if is_model(kind) and kind is not Context:  # which a handler may be given that is called by its name
            try:
                yield place, parameter.name, model(kind)
            except Exception as error:  # noqa: BLE001 - what a class is made of is its user's code
                name = getattr(function, "__qualname__", type(function).__qualname__)
                text = f"the {parameter.name} of {name} cannot be read from JSON as {kind.__qualname__}"
                raise ServiceError(f"{text}: {' '.join(str(error).split())[:300]}") from None


def _resolved(function: Callable[..., Any], said: Any) -> Any:
    """An annotation that may be written as a text."""
    if not isinstance(said, str):
        return said
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"said": said}), names)["said"]
    except Exception:  # noqa: BLE001 - names may be known to type checkers only
        return None
