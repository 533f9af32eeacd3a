"""The first words on a connection: the login, and HELLO, which tells how the server works."""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import redis
from redis.connection import SSLConnection

from sagastream.broker import server, urls
from sagastream.broker.failures import greeting
from sagastream.errors import BrokerError


class MayLeadToCluster:
    """A connection that leads to a server or, if that is a node of a cluster, to all nodes. Only the server knows."""

    _nodes: Any

    def serves(self, mode: str) -> None:
        """The server says that it works in this mode."""
        self._nodes.map.is_cluster = mode == "cluster"


class Hello:
    """What a client says first on each of its connections. It refuses a server that cannot be used."""

    def __init__(self, url: str, is_cluster: Callable[[], bool]) -> None:
        """`is_cluster`: whether the url leads to a cluster, as far as is known."""
        self._url = url
        self._is_cluster = is_cluster
        #: How many connections it has begun so far.
        self.connections = 0

    def say(self, connection: Any) -> None:
        """Begin this connection. Raises redis.RedisError, and BrokerError if the server cannot be used."""
        with self._greeting():
            connection.on_connect()  # as redis-py has it by default
            connection.send_command("HELLO")
            with suppress(redis.ResponseError):  # a user may not be allowed to ask
                if (why := self._unusable(connection, connection.read_response())) is not None:
                    connection.disconnect()
                    raise BrokerError(why)
        self.connections += 1

    async def say_in_loop(self, connection: Any) -> None:
        """The same in an event loop."""
        with self._greeting():
            await connection.on_connect()
            await connection.send_command("HELLO")
            with suppress(redis.ResponseError):
                if (why := self._unusable(connection, await connection.read_response())) is not None:
                    await connection.disconnect()
                    raise BrokerError(why)
        self.connections += 1

    def _greeting(self) -> AbstractContextManager[None]:
        return greeting(may_want_tls=self._url.startswith("redis:") and not self.connections)

    def _unusable(self, connection: Any, answer: Any) -> str | None:
        """Why a server that answers this cannot be used; None: it can."""
        why = server.unusable(_learned(connection, answer), is_cluster=self._is_cluster())
        return None if why is None else f"{urls.shown(self._url)} {why}"


def say_hello(connection: Any) -> None:
    """Begin a connection of a client that takes whatever server there is."""
    may_be_cluster = isinstance(connection, MayLeadToCluster)
    with greeting(may_want_tls=may_be_cluster and not isinstance(connection, SSLConnection)):
        connection.on_connect()
        if may_be_cluster:
            connection.send_command("HELLO")
            with suppress(redis.ResponseError):
                _learned(connection, connection.read_response())


def _learned(connection: Any, answer: Any) -> str:
    """The mode of the server, which the connection has to know as well."""
    mode = server.mode_of(answer)
    if isinstance(connection, MayLeadToCluster):
        connection.serves(mode)
    return mode
