"""A function that knows nothing of sagas, called by its name: what `call="shop.jobs.charge"` declares."""

import asyncio
import inspect
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from sagastream.console import describe
from sagastream.errors import Reject, ServiceError

_NAME: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


class NamedFunction:
    """A handler that calls a function with a step's params: the members of an object as keyword arguments, the items
    of a list as positional ones, nothing for null, any other value as the one argument.

    The function is imported by the process that calls it: an RQ worker does so when it starts.
    """

    def __init__(self, name: str) -> None:
        """`name`: MODULE.FUNCTION. Raises ServiceError where it cannot be one."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ServiceError(f"{name!r} is not the name of a function, like shop.jobs.charge")
        self.name = name

    def __call__(self, params: Any, _context: object) -> Any:
        """What the function returns. Raises Reject where the params do not fit it, since then nothing was begun."""
        function = self.load()
        args, named = _arguments(params)
        try:
            inspect.signature(function).bind(*args, **named)
        except TypeError as error:
            raise Reject(f"malformed_params: {self.name}: {error}") from None
        except ValueError:
            pass  # a builtin that does not tell what it takes
        result = function(*args, **named)
        # As RQ has it: a function may be declared with async def.
        return asyncio.run(result) if inspect.iscoroutine(result) else result

    def load(self) -> Callable[..., Any]:
        """The function. Raises ServiceError where it cannot be had."""
        module, _, name = self.name.rpartition(".")
        try:
            function: Callable[..., Any] = getattr(import_module(module), name)
        except (Exception, SystemExit) as error:
            raise ServiceError(f"cannot import {self.name}: {describe(error)}") from error
        if not callable(function):
            raise ServiceError(f"{self.name} is not a function")
        return function


def _arguments(params: Any) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(params, dict):
        return [], params
    if isinstance(params, list):
        return params, {}
    return ([] if params is None else [params]), {}
