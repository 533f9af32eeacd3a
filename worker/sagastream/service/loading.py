"""Loads a service by the name that a person gives: MODULE:NAME."""

import importlib
import os
from pathlib import Path, PurePath
from traceback import extract_tb
from types import ModuleType
from typing import Final

from sagastream.errors import ServiceError
from sagastream.service.declaration import Service

#: The files of a traceback that are not the user's: those of importlib, and ours, which refuse a wrong declaration or a
#: wrong step of a definition.
_NOT_THE_USERS: Final = ("<frozen importlib.", importlib.__file__, str(Path(__file__).parents[1]) + os.sep)


def load_service(where: str) -> Service:
    """The Service that MODULE:NAME names. Raises ServiceError with what to do about it."""
    module_name, _, name = where.partition(":")
    if not module_name or not name:
        raise ServiceError(f"{where!r} is not MODULE:NAME, like shop.payment:service")
    if module_name.endswith(".py"):
        raise ServiceError(f"{module_name} is a file, not a module: write {dotted(module_name)}:{name}")
    module = import_module(module_name)
    service = getattr(module, name, None)
    if not isinstance(service, Service):
        there = sorted(other for other, value in vars(module).items() if isinstance(value, Service))
        is_there = hasattr(module, name)
        what = f"{name} in {module_name} is not a sagastream.Service" if is_there else f"{module_name} has no {name}"
        instead = f"it has {', '.join(f'{module_name}:{other}' for other in there)}" if there else "it has none"
        raise ServiceError(f"{what}; {instead}")
    return service


def import_module(name: str) -> ModuleType:
    """The module of this name. Raises ServiceError with why it cannot be imported, and where that shows."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ServiceError(f"cannot import {name}: {_why(error)}") from error


def _why(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_THE_USERS)]
    if frames:
        return f"{type(error).__name__}: {error} (raised in {frames[-1].filename}, line {frames[-1].lineno})"
    # No module had begun to run. So it is this module that was not found, not one that it imports.
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; run it where the module is found"
    return f"{type(error).__name__}: {error}"


def dotted(file: str) -> str:
    """The name of a file as a module, seen from the current folder; or from its own, if it is not below that."""
    path = PurePath(file).with_suffix("")
    return ".".join(path.parts) if all(part.isidentifier() for part in path.parts) else path.name
