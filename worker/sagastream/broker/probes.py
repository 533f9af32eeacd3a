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
    """One question to a node."""

    def __init__(self, node: Address) -> None:
        self._until_s = time.monotonic() + _LOOKED_FOR_S
        self._is_sent = False
        family, kind, _, _, address = socket.getaddrinfo(*node, type=socket.SOCK_STREAM)[0]
        self._socket = socket.socket(family, kind)
        self._socket.settimeout(0)
        self._socket.connect_ex(address)  # what comes of it is seen below

    def is_answered(self, *, is_secure: bool) -> bool:
        """Raises OSError if nobody is there, or the answer is late."""
        left_s = _AT_ONCE_S
        if not self._is_sent:
            _, connected, _ = select.select([], [self._socket], [], left_s)
            if connected:
                self._socket.sendall(b"PING\r\n")  # it raises what has come of connecting
                self._is_sent = True
        if self._is_sent and select.select([self._socket], [], [], left_s)[0]:
            # A server that wants TLS may end the connection. Any other one has died with it.
            if not self._socket.recv(100) and not is_secure:
                raise ConnectionResetError("the connection was ended")
            return True
        if time.monotonic() > self._until_s:
            raise TimeoutError("no answer comes")
        return False

    def close(self) -> None:
        self._socket.close()


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
                probe = probe or _Probe(node)
                if not probe.is_answered(is_secure=self._is_secure):
                    self._open[node] = probe
                    return redis.TimeoutError(f"{node} has not answered yet")
            except OSError as error:
                if probe is not None:
                    probe.close()
                return redis.ConnectionError(f"{node} cannot be reached: {error}")
            probe.close()
            return None

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def __del__(self) -> None:
        self.close()
