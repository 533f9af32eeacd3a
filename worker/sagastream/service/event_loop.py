"""The event loop of a process's async handlers, in a thread of its own."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Final

#: How long coroutines that are cancelled may take to end, in seconds.
_CANCELLED_S: Final = 1.0


class EventLoop:
    """Its thread starts with the first coroutine. The thread is a daemon: no coroutine keeps a process from ending."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = asyncio.Event()
        self._running: set[Future[None]] = set()  # without these, a waiting coroutine could be garbage-collected

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Have it run, and return at once. It has to handle its own errors."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._opened())
        self._running.add(future)
        future.add_done_callback(self._running.discard)

    def close(self) -> None:
        """Cancel what still runs in the loop, and end it."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._closed.set)
            self._thread.join(_CANCELLED_S)

    def _opened(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                opened: Future[asyncio.AbstractEventLoop] = Future()
                self._thread = threading.Thread(
                    target=lambda: asyncio.run(self._run(opened)), name="async handlers", daemon=True
                )
                self._thread.start()
                self._loop = opened.result()
            return self._loop

    async def _run(self, opened: "Future[asyncio.AbstractEventLoop]") -> None:
        opened.set_result(asyncio.get_running_loop())
        await self._closed.wait()
