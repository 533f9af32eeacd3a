"""Whether a node of a cluster that was away answers again. Nobody waits for that: the other nodes have work.

A node that hangs still takes connections, and answers what came meanwhile once it goes on. So it is asked, and each
look sees whether something has come. What that is does not matter: whoever answers PING with an error is there.
"""

import select
import socket
import threading
import time
from typing import Final

import redis

from sagastream.broker.urls import Address

#: How long a node may take to answer at once, in seconds. One that is back does.
_AT_ONCE_S: Final = 0.02
#: How long an answer is looked for, in seconds. It may have been lost on the way.
_LOOKED_FOR_S: Final = 2.0


class _Probe:
    """One question to a node. If its name has several addresses, it is asked at one after the other: at some of them
    it may not listen."""

    def __init__(self, node: Address) -> None:
        self._addresses = socket.getaddrinfo(*node, type=socket.SOCK_STREAM)
        self._socket: socket.socket | None = None

    def is_answered(self, *, is_secure: bool) -> bool:
        """Raises OSError if nobody is there, or the answer is late."""
        while True:
            try:
                return self._is_answered(self._socket or self._begun(), is_secure=is_secure)
            except OSError:
                self.close()
                if not self._addresses:
                    raise

    def _begun(self) -> socket.socket:
        """A connection to the next address that is under way."""
        family, kind, _, _, address = self._addresses.pop(0)
        self._until_s = time.monotonic() + _LOOKED_FOR_S
        self._is_sent = False
        self._socket = socket.socket(family, kind)
        self._socket.settimeout(0)
        self._socket.connect_ex(address)  # what comes of it is seen below
        return self._socket

    def _is_answered(self, node: socket.socket, *, is_secure: bool) -> bool:
        if not self._is_sent and _has_come(node, select.POLLOUT):
            node.sendall(b"PING\r\n")  # it raises what has come of connecting
            self._is_sent = True
        if self._is_sent and _has_come(node, select.POLLIN):
            try:
                is_ended = not node.recv(100)
            except ConnectionResetError:
                is_ended = True
            # A server that wants TLS may end the connection. Any other one has died with it.
            if is_ended and not is_secure:
                raise ConnectionResetError("the connection was ended")
            return True
        if time.monotonic() > self._until_s:
            raise TimeoutError("no answer comes")
        return False

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _has_come(node: socket.socket, what: int) -> bool:
    poll = select.poll()  # select() takes no file with a number above 1,023
    poll.register(node, what)
    return bool(poll.poll(_AT_ONCE_S * 1000))


class Probes:
    """Those of one client. Several threads may look."""

    def __init__(self, *, is_secure: bool) -> None:
        self._is_secure = is_secure
        self._lock = threading.Lock()
        self._open: dict[Address, _Probe] = {}  # which are not answered yet

    def look(self, node: Address) -> redis.RedisError | None:
        """None: the node answers. Otherwise why it seems not to."""
        with self._lock:
            probe = self._open.pop(node, None)
        try:
            # Without the lock: the name server may be slow, and other threads look at other nodes.
            probe = probe or _Probe(node)
            is_answered = probe.is_answered(is_secure=self._is_secure)
        except OSError as error:
            if probe is not None:
                probe.close()
            return redis.ConnectionError(f"{node} cannot be reached: {error}")
        if not is_answered:
            self._keep(node, probe)
            return redis.TimeoutError(f"{node} has not answered yet")
        probe.close()
        return None

    def _keep(self, node: Address, probe: _Probe) -> None:
        """For the next look. If another thread has asked the node meanwhile, one question is enough."""
        with self._lock:
            if self._open.setdefault(node, probe) is not probe:
                probe.close()

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def __del__(self) -> None:
        self.close()
