"""Gates in front of the nodes of a cluster, through which all reach them: a network that parts, and comes back.

What is cut off is not refused: as in a network, nothing arrives, and nobody is told. What was sent meanwhile arrives
once the network is back, if those who sent it have not given up.
"""

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

#: Who comes to a gate is known by the address that it comes from: each node has one, and none of these is a node.
CLIENTS: Final = "127.0.0.1"
_MOST_BYTES: Final = 1 << 18


@dataclass(eq=False)
class _Way:
    """One connection through a gate. `owed`: what each end is still to be given."""

    near: socket.socket
    far: socket.socket
    between: frozenset[str]  # the addresses of both ends
    owed: dict[socket.socket, bytes] = field(default_factory=dict)

    def other(self, end: socket.socket) -> socket.socket:
        return self.far if end is self.near else self.near


class Gates:
    """All gates of a cluster; one thread moves what goes through them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._heard, self._call = os.pipe()
        self._selector.register(self._heard, selectors.EVENT_READ)
        self._cuts: list[frozenset[str]] = []  # pairs of addresses between which nothing goes
        self._held: list[_Way] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def open(self, address: str, target: int) -> int:
        """A port that leads to this port of the node with this address."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._selector.register(listener, selectors.EVENT_READ, (address, target))
        os.write(self._call, b".")
        return int(listener.getsockname()[1])

    @contextlib.contextmanager
    def cut(self, ones: set[str], others: set[str]) -> Iterator[None]:
        """Within this, nothing goes between those and these."""
        pairs = [frozenset((one, other)) for one in ones for other in others]
        self._cuts = [*self._cuts, *pairs]
        try:
            yield
        finally:
            self._cuts = [pair for pair in self._cuts if pair not in pairs]
            os.write(self._call, b".")

    def close(self) -> None:
        self._stop.set()
        os.write(self._call, b".")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        for way in self._held:
            way.near.close()
            way.far.close()
        self._selector.close()
        os.close(self._heard)
        os.close(self._call)

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select():
                if key.fileobj == self._heard:
                    os.read(self._heard, 100)
                    self._let_go()
                elif isinstance(key.data, _Way):
                    if isinstance(key.fileobj, socket.socket) and key.fileobj.fileno() >= 0:
                        self._move(key.data, key.fileobj)
                elif isinstance(key.fileobj, socket.socket):
                    self._accept(key.fileobj, *key.data)

    def _let_go(self) -> None:
        held, self._held = self._held, []
        for way in held:
            self._watch(way)

    def _accept(self, listener: socket.socket, address: str, target: int) -> None:
        near, (source, _) = listener.accept()
        far = socket.socket()
        with contextlib.suppress(OSError):
            far.connect(("127.0.0.1", target))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.settimeout(0)
            self._watch(_Way(near, far, frozenset((source, address)), {near: b"", far: b""}))
            return
        near.close()  # the node is dead
        far.close()

    def _watch(self, way: _Way) -> None:
        """Wait for what each end says, and until it takes what it is owed."""
        for end in (way.near, way.far):
            with contextlib.suppress(KeyError):
                self._selector.unregister(end)
        if way.between in self._cuts:
            self._held.append(way)
            return
        for end in (way.near, way.far):
            events = 0 if way.owed[way.other(end)] else selectors.EVENT_READ
            if way.owed[end]:
                events |= selectors.EVENT_WRITE
            if events:
                self._selector.register(end, events, way)

    def _move(self, way: _Way, end: socket.socket) -> None:
        if way.between not in self._cuts:
            other = way.other(end)
            try:
                if not way.owed[other]:
                    with contextlib.suppress(BlockingIOError):
                        data = end.recv(_MOST_BYTES)
                        way.owed[other] = data
                        if not data:
                            raise ConnectionResetError("this end is closed")
                for one in (end, other):
                    with contextlib.suppress(BlockingIOError):
                        way.owed[one] = way.owed[one][one.send(way.owed[one]) :] if way.owed[one] else b""
            except OSError:
                for one in (end, other):
                    with contextlib.suppress(KeyError):
                        self._selector.unregister(one)
                    one.close()
                return
        self._watch(way)
