"""Connections to the dashboard: how long one may take, and how many there may be.

uvicorn waits for ever for the rest of a request, and for a client that does not read its answer. Each such connection
holds a descriptor; once there are no more, nobody else gets in.
"""

import asyncio
import resource
import time
from operator import itemgetter
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: How long a client may take to send a whole request, and to read an answer, in seconds.
REQUEST_S: float = 15.0
ANSWER_S: float = 15.0
#: At most how many connections there may be.
MOST: int = 500
#: How many descriptors are left for everything else: the broker, files, the log.
_LEFT: Final = 100
#: In these states, the client has to send something.
_ITS_TURN: Final = (h11.IDLE, h11.SEND_BODY)


class Connection(H11Protocol):
    """A connection whose client may keep the server waiting only so long."""

    waiting_since: float | None = None  # since when the client has to send something, by time.monotonic
    _request_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._wait_no_more()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._answer_timer is None:
            self._answer_timer = self.loop.call_later(ANSWER_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(ANSWER_S, self.transport.abort)  # if nobody reads what it still has to say

    def _look(self) -> None:
        """Start or stop the time of a request. A part of it that arrives does not start the time again."""
        if self.conn.their_state not in _ITS_TURN or self.transport.is_closing():
            self._wait_no_more()
        elif self._request_timer is None:
            self.waiting_since = time.monotonic()
            self._request_timer = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _wait_no_more(self) -> None:
        self.waiting_since = None
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _make_room(self) -> None:
        """If there are too many, close the one whose client has kept the server waiting for longest: an honest client
        sends its request at once."""
        if len(self.connections) <= (limit := most()):
            return
        # A connection that was closed just now is still among them.
        those = [one for one in self.connections if isinstance(one, Connection) and not one.transport.is_closing()]
        if len(those) > limit:
            waited_for = [(one.waiting_since, one) for one in those if one.waiting_since is not None]
            min(waited_for, key=itemgetter(0))[1].transport.abort()


def most() -> int:
    """How many connections there may be: fewer if this process may not open so many files."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if allowed == resource.RLIM_INFINITY else max(1, min(MOST, allowed - _LEFT))
