"""Connections of a client that are lent again and again."""

import os
from typing import Any
from weakref import WeakSet

import redis


class Pool(redis.ConnectionPool):
    """redis-py's pool, which takes a fifth of the time of a turn: it counts each connection that it lends or takes back
    for those who measure, tells listeners, and connects it anew if need be. So what was given back, and is still good,
    is lent again without all that: for redis-py it stays lent.

    A signal may interrupt the program while it holds a connection. If that connection is lost, it is closed and leaves
    room for a new one.
    """

    def reset(self) -> None:
        self._given_back: list[Any] = []  # the last one first: append and pop are atomic
        super().reset()
        self._in_use_connections: Any = WeakSet()  # redis-py would keep a lost one open

    def make_connection(self) -> Any:
        self._created_connections = len(self._in_use_connections) + len(self._available_connections)
        return super().make_connection()

    def get_connection(self, *_: Any, **__: Any) -> Any:
        while (one := self._taken()) is not None:
            if _is_good(one):
                return one
            self._close(one)
        new: Any = super().get_connection()
        new.is_ready = True
        return new

    def release(self, connection: Any) -> None:
        # redis-py gives it back, too, if connecting was interrupted: it may have asked something, and read no answer.
        is_ready = getattr(connection, "is_ready", False)
        if connection.should_reconnect() or not connection.is_connected or not is_ready:
            self._close(connection)
        else:
            self._given_back.append(connection)

    def disconnect(self, inuse_connections: bool = True) -> None:
        while (one := self._taken()) is not None:
            self._close(one)
        super().disconnect(inuse_connections)

    def _close(self, connection: Any) -> None:
        """Close a connection of ours. It is connected anew before it is lent again."""
        connection.is_ready = False
        connection.disconnect()
        super().release(connection)

    def _taken(self) -> Any:
        """One of those that were given back, for this thread alone; None: there is none."""
        try:
            return self._given_back.pop()
        except IndexError:
            return None


def _is_good(connection: Any) -> bool:
    """Whether it leads to the server still, and no answer is left there. A process that was forked has its own."""
    if connection.pid != os.getpid():
        return False
    try:
        return connection.is_connected and not connection.can_read()
    except (redis.RedisError, OSError):
        connection.disconnect()
        return False
