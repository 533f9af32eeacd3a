"""redis-py's connections for an event loop. They let no cancellation pass unheard.

redis-py sends within asyncio.wait_for. In Python 3.11 that forgets a cancellation that comes in the moment in which it
has just sent: the call goes on. Then a caller with a time limit waits for ever.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import redis
from redis.asyncio import connection as theirs

from sagastream.broker.failures import HANDSHAKE


class _Cancellable(theirs.AbstractConnection):
    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """As redis-py's, but it limits in another way how long that may take."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]  # redis-py has no type for it
        if isinstance(command, str):
            command = command.encode()
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([command] if isinstance(command, bytes) else command)
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise redis.TimeoutError("Timeout writing to socket") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise redis.ConnectionError(f"Error while writing to socket: {error}") from error
        except BaseException:
            await self.disconnect(nowait=True)  # a part of it may have been sent
            raise


class Connection(_Cancellable, theirs.Connection):
    """A connection to a port."""


class SSLConnection(Connection, theirs.SSLConnection):
    """A connection to a port, by TLS."""

    async def _connect(self) -> None:
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
        except TimeoutError:
            raise TimeoutError(f"there was no connection, or no {HANDSHAKE}") from None


class SocketConnection(_Cancellable, theirs.UnixDomainSocketConnection):
    """A connection to a unix socket."""


def parsed(url: str) -> dict[str, Any]:
    """The options of a connection to this url, `connection_class` among them."""
    kinds = {"rediss": SSLConnection, "unix": SocketConnection}
    return {**theirs.parse_url(url), "connection_class": kinds.get(url.partition(":")[0], Connection)}
