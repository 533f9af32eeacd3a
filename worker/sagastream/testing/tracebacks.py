"""What a test shows of an error that it has made itself: its own lines, and not the way through the kit."""

import functools
from collections.abc import Callable
from traceback import walk_tb
from types import TracebackType
from typing import Final, ParamSpec, TypeVar

from sagastream.errors import MalformedMessage, RequestRefused, ScenarioError, ServiceError, SettingsError

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: Errors of the caller, whose texts say all that there is to say.
_OF_THE_CALLER: Final = (MalformedMessage, RequestRefused, ScenarioError, ServiceError, SettingsError)
#: Our own package.
_OURS: Final = __name__.partition(".")[0]
#: pytest leaves out the frames of a module that says this.
__tracebackhide__ = True


def without_ours(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Leaves our frames out of the errors of the caller. All other errors keep them: they may be faults of ours."""

    @functools.wraps(method)
    def called(*args: _P.args, **named: _P.kwargs) -> _R:
        try:
            return method(*args, **named)
        except _OF_THE_CALLER as error:
            raise error.with_traceback(_theirs(error.__traceback__)) from error.__cause__

    return called


def _theirs(found: TracebackType | None) -> TracebackType | None:
    kept = None
    for frame, line in reversed(list(walk_tb(found))):
        if str(frame.f_globals.get("__name__")).partition(".")[0] != _OURS:
            kept = TracebackType(kept, frame, frame.f_lasti, line)
    return kept
