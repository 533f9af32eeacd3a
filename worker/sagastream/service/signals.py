"""A signal that ends the process, told apart from what a handler raises by itself.

A handler of sagas may run in the main thread, and there Python calls the handlers of signals, between any two
statements. What those raise (KeyboardInterrupt at Ctrl-C, or the SystemExit of a program) comes out of the saga's
handler like an error of its own.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

#: The signals by which people and supervisors end a process.
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Knows what the handler of a signal has raised in the main thread."""

    def __init__(self) -> None:
        self._raised: BaseException | None = None

    @property
    def raised_here(self) -> BaseException | None:
        """What it raised, if this is the main thread."""
        if self._raised is None or threading.current_thread() is not threading.main_thread():
            return None
        return self._raised

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts, it is noticed. Only the main thread may set handlers of signals, and only there they
        run: elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        watched: dict[signal.Signals, tuple[Any, Any]] = {}
        for number in _ENDING:
            if callable(before := signal.getsignal(number)):
                watched[number] = before, self._watching(before)
                signal.signal(number, watched[number][1])
        try:
            yield
        finally:
            for number, (before, ours) in watched.items():
                if signal.getsignal(number) is ours:
                    signal.signal(number, before)

    def _watching(self, handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            try:
                handler(number, frame)
            except BaseException as error:
                self._raised = error
                raise

        return handle
