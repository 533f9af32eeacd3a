"""Connections that are lent again: what becomes of one if a signal interrupts the program."""

from pathlib import Path
from typing import Any

import pytest

from sagastream.broker import wire
from sagastream.broker.connection import Broker
from support.servers import Server


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_a_connection_that_is_lost_between_two_lines_is_closed(server: Server) -> None:
    """As if a signal came after it was lent, and before anybody could give it back."""
    with Broker(server.url).client as client:
        pool = client.connection_pool
        before = open_files()
        for _ in range(pool.max_connections + 1):
            pool.get_connection()
        assert open_files() == before
        assert wire.round_trip(client, [("ECHO", "a")]) == [b"a"]


def test_a_connection_whose_greeting_is_interrupted_is_not_lent(server: Server) -> None:
    """Nobody has logged in there; or the answer to that would be taken for that to the next command."""
    begun = []

    def greet(connection: Any) -> None:
        begun.append(connection)
        if len(begun) == 1:
            raise KeyboardInterrupt
        connection.on_connect()

    with Broker(server.url).client as client:
        client.connection_pool.connection_kwargs["redis_connect_func"] = greet
        with pytest.raises(KeyboardInterrupt):
            client.ping()
        one = client.connection_pool.get_connection()
        assert begun == [one] * 2
        client.connection_pool.release(one)
        assert wire.round_trip(client, [("ECHO", "a")]) == [b"a"]
        assert len(begun) == 2
