"""Serves the dashboard over HTTP."""

import socket
import threading
from typing import Final

import uvicorn

from sagastream.broker.connection import Broker
from sagastream.errors import SagastreamError
from sagastream_bridge.dashboard.app import Dashboard
from sagastream_bridge.dashboard.connections import Connection
from sagastream_bridge.dashboard.rules import Names

#: For how long requests may go on when the server ends, in seconds.
_GRACE_S: Final = 3


class CannotListen(SagastreamError):
    """The port is in use, or the address is none of this machine."""


class DashboardServer:
    """A dashboard that listens. `run` returns when `stop` is set."""

    def __init__(
        self, broker: Broker, *, host: str, port: int, names: Names, token: str | None, allow_actions: bool
    ) -> None:
        """`port`: 0 takes any. Raises CannotListen."""
        self._socket = _listening(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._dashboard = Dashboard(
            broker, names=names, token=token, allow_actions=allow_actions, port=lambda: self.port
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._dashboard.app,
                lifespan="off",
                http=Connection,
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_GRACE_S,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def run(self, stop: threading.Event) -> None:
        # Not in the main thread: there it would handle signals, and the command does that.
        serving = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, name="http")
        self._dashboard.feed.start()
        serving.start()
        try:
            while serving.is_alive() and not stop.wait(1.0):
                pass
        finally:
            self._server.should_exit = True
            self._dashboard.feed.stop()  # and with it the connections that would never end
            serving.join()
            self._socket.close()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, number)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        raise CannotListen(
            f"cannot listen at port {port} of {host}: {error.strerror}; --port takes another one"
        ) from None
    return found
