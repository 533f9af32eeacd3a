"""Connections to the dashboard: how long one may take, and how many there may be.

uvicorn waits for ever for the rest of a request, and for a client that does not read its answer. Each of them would
hold a descriptor until there are no more, and then nobody else is let in.
"""

import asyncio
import resource
import time
from operator import itemgetter
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: How long a request may take to come, all of it, in seconds; and an answer that nobody reads.
REQUEST_S: float = 15.0
ANSWER_S: float = 15.0
#: How many connections there may be. If there are more, that is closed which has been waited for the longest.
MOST: int = 500
#: So many descriptors are left for all else: the broker, files, the log.
_LEFT: Final = 100
#: While the client is in one of these, it has something to say.
_ITS_TURN: Final = (h11.IDLE, h11.SEND_BODY)


class Connection(H11Protocol):
    """A connection that is not waited for without a limit."""

    waiting_since: float | None = None  # whether and since when its client has something to say, by time.monotonic
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
        """Whose turn is it? The time of a request is not prolonged by what comes of it."""
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
        """If there are too many, close the one that has been waited for the longest: who asks for something does so at
        once."""
        if len(self.connections) <= (limit := most()):
            return
        # One that was closed just now still stands among them.
        those = [one for one in self.connections if isinstance(one, Connection) and not one.transport.is_closing()]
        if len(those) > limit:
            waited_for = [(one.waiting_since, one) for one in those if one.waiting_since is not None]
            min(waited_for, key=itemgetter(0))[1].transport.abort()


def most() -> int:
    """How many connections there may be: fewer if this process may not open so many files."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if allowed == resource.RLIM_INFINITY else max(1, min(MOST, allowed - _LEFT))
