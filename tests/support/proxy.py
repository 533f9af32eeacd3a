"""A TCP proxy in front of a server that cuts connections: before or in the middle of a request or of its answer."""

import contextlib
import random
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

#: Where a connection may be cut.
CUTS: Final = ("before the request", "in the request", "before the answer", "in the answer")


class CuttingProxy:
    """Forwards connections to a unix socket. Each request is cut with the probability `cut`, 0 at first."""

    def __init__(self, target: str, seed: int) -> None:
        self.cuts: Counter[str] = Counter()
        self.cut = 0.0
        self.where: tuple[str, ...] = CUTS
        self._target = target
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def lead_to(self, target: str) -> None:
        """Forward new connections to another unix socket, as a name does whose address was changed. Those that are open
        stay where they are."""
        self._target = target

    def __enter__(self) -> Self:
        self._listener.settimeout(0.1)
        self._spawn(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _spawn(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):  # nobody connected within the timeout, or the proxy ends
                self._spawn(self._serve, self._listener.accept()[0])

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as far:
            far.connect(self._target)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            cut = ""  # where the current request will be cut
            while not self._stop.is_set():
                for ready in select.select([near, far], [], [], 0.1)[0]:
                    if not (data := ready.recv(1 << 20)):
                        return
                    if ready is near:
                        cut = self._random.choice(self.where) if self._random.random() < self.cut else ""
                    ends = cut.endswith("request" if ready is near else "answer") and cut != ""
                    if ends:
                        self.cuts[cut] += 1
                        data = data[: len(data) // 2] if cut.startswith("in") else b""
                    (far if ready is near else near).sendall(data)
                    if ends:
                        return
