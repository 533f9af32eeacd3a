"""A function that knows nothing of sagas, called by its name, as `call="shop.jobs.charge"` declares."""

import asyncio
import inspect
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final

from sagastream.console import describe
from sagastream.core.json_values import unwritable_result
from sagastream.errors import Reject, ServiceError
from sagastream.service.typed_params import Arguments

_NAME: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


class NamedFunction:
    """A handler that calls a function with the params of a step: the members of an object as keyword arguments, the
    items of a list as positional ones, no argument for null, and any other value as the only argument. An argument for
    which the function names a class in its annotations is read as that.

    The process that calls the function imports it; an RQ worker does so when it starts.
    """

    def __init__(self, name: str, *, result_counts: bool = True) -> None:
        """`name`: MODULE.FUNCTION. `result_counts`: False for a compensation, whose result is ignored. Raises
        ServiceError if the name cannot be that of a function."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ServiceError(f"{name!r} is not the name of a function, like shop.jobs.charge")
        self.name = name
        self._result_counts = result_counts
        self._checked: object = None  # the function whose annotations were looked at
        self._reads: Arguments | None = None  # what that function names for its arguments

    def __call__(self, params: Any, _context: object) -> Any:
        """What the function returns. Raises Reject if the params do not fit it, since nothing was begun then."""
        function = self.load()
        args, named = _arguments(params)
        try:
            bound = inspect.signature(function).bind(*args, **named)
        except TypeError as error:
            raise Reject(f"malformed_params: {self.name}: {error}") from None
        except ValueError:
            pass  # a builtin does not tell its parameters
        else:
            assert self._reads is not None
            self._reads.read(bound.arguments, by_name=isinstance(params, dict))
            args, named = bound.args, bound.kwargs
        result = function(*args, **named)
        # As in RQ, the function may be declared with async def.
        return asyncio.run(result) if inspect.iscoroutine(result) else result

    def load(self) -> Callable[..., Any]:
        """The function. Raises ServiceError if it cannot be imported, is not one, or says
        that it returns what JSON cannot hold."""
        module, _, name = self.name.rpartition(".")
        try:
            function: Callable[..., Any] = getattr(import_module(module), name)
        except (Exception, SystemExit) as error:
            raise ServiceError(f"cannot import {self.name}: {describe(error)}") from error
        if not callable(function):
            raise ServiceError(f"{self.name} is not a function")
        if function is not self._checked:
            if self._result_counts and (kind := unwritable_result(function)) is not None:
                raise ServiceError(f"{self.name} returns {kind}, which JSON cannot hold")
            self._reads = Arguments(function)
            self._checked = function
        return function


def _arguments(params: Any) -> tuple[Sequence[Any], dict[str, Any]]:
    if isinstance(params, dict):
        return [], params
    if isinstance(params, list):
        return params, {}
    return ([] if params is None else [params]), {}
