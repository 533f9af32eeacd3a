"""The event loop of a process's async handlers, in a thread of its own.

A task that raises SystemExit or KeyboardInterrupt ends the loop that it runs in. A handler may start such a task, and
even leave it behind. So the loop is started again: nothing that a handler raises may end what other handlers need.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final

from sagastream.core.commands import Command
from sagastream.telemetry import command_in_hand

#: How long coroutines that are cancelled may take to end, in seconds.
_CANCELLED_S: Final = 1.0

#: Is told what a task has raised that would have ended the loop, and by which command it was started, if by any.
Tell = Callable[[Command | None, BaseException], None]


class EventLoop:
    """Its thread starts with the first coroutine. The thread is a daemon: no coroutine keeps a process from ending."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        # They have left the loop, and it is not told yet whose they were. Tasks that are ready together may raise one
        # after the other, before the first of them is told.
        self._escaped: list[BaseException] = []
        self._running: set[Future[None]] = set()  # without these, a waiting coroutine could be garbage-collected

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Have it run, and return at once. It has to handle its own errors."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._opened())
        self._running.add(future)
        future.add_done_callback(self._running.discard)

    def close(self) -> None:
        """Cancel what still runs in the loop, and end it."""
        if self._loop is not None and self._thread is not None and not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CANCELLED_S)

    def _opened(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                opened: Future[asyncio.AbstractEventLoop] = Future()
                self._thread = threading.Thread(target=self._run, args=[opened], name="async handlers", daemon=True)
                self._thread.start()
                self._loop = opened.result()
            return self._loop

    def _run(self, opened: "Future[asyncio.AbstractEventLoop]") -> None:
        runner = asyncio.Runner()
        loop = runner.get_loop()
        loop.set_task_factory(self._task)
        opened.set_result(loop)
        while not self._closed:
            try:
                loop.run_forever()
            except BaseException as error:  # noqa: BLE001 - told, and the loop goes on
                self._escaped.append(error)
                # After what the task of this error calls when it is done; see `_task`.
                loop.call_soon(self._tell_escaped, error)
        with suppress(BaseException):  # of coroutines that are cancelled now
            runner.close()

    def _task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
        """A new task of this loop. If a handler has started it, it bears the name of the command: so asyncio's own
        reports name it, too."""
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        if (command := command_in_hand()) is not None:
            task.set_name(f"of {command.told}")
            task.add_done_callback(partial(self._ended, command))
        return task

    def _ended(self, command: Command, task: "asyncio.Task[Any]") -> None:
        """A task that a handler has started is done."""
        # Not of every task: to ask for the error is to say that it is dealt with.
        if self._escaped and not task.cancelled() and (error := task.exception()) is not None:
            self._tell_escaped(error, command)

    def _tell_escaped(self, error: BaseException, command: Command | None = None) -> None:
        """Tell of it, if it has left the loop and was not told yet."""
        if any(one is error for one in self._escaped):
            self._escaped = [one for one in self._escaped if one is not error]
            self._tell(command, error)
