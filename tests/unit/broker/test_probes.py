"""Whether a node is back is seen by looking, not by waiting."""

import select
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest
import redis

from sagastream.broker.probes import Probes
from sagastream.broker.urls import Address
from support.servers import free_port
from support.waiting import takes_less_than, until


@pytest.fixture
def node() -> Iterator[socket.socket]:
    """What takes connections, and answers nothing by itself: as a node does that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


@pytest.fixture
def probes() -> Iterator[Probes]:
    with closing(Probes(is_secure=False)) as made:
        yield made


def at(node: socket.socket) -> Address:
    return Address("127.0.0.1", node.getsockname()[1])


def test_nobody_listens(probes: Probes) -> None:
    assert isinstance(probes.look(Address("127.0.0.1", free_port())), redis.ConnectionError)


def test_a_name_that_nobody_knows(probes: Probes) -> None:
    assert isinstance(probes.look(Address("nobody.invalid", 1)), redis.ConnectionError)


def test_a_node_that_hangs_is_asked_once_and_is_there_when_it_goes_on(node: socket.socket, probes: Probes) -> None:
    with takes_less_than(1):
        for _ in range(20):
            assert isinstance(probes.look(at(node)), redis.TimeoutError)
    with node.accept()[0] as asked:
        assert asked.recv(100) == b"PING\r\n"
        asked.sendall(b"-NOAUTH Authentication required.\r\n")
        until(lambda: probes.look(at(node)) is None, what="it answers")
    node.settimeout(0)
    with pytest.raises(BlockingIOError):
        node.accept()


@pytest.mark.parametrize("is_secure", [False, True])
def test_a_connection_that_is_ended_tells_of_a_server_with_tls_only(node: socket.socket, *, is_secure: bool) -> None:
    with closing(Probes(is_secure=is_secure)) as probes:
        assert probes.look(at(node)) is not None
        with node.accept()[0] as asked:
            assert asked.recv(100) == b"PING\r\n"
        found = probes.look(at(node))
        assert found is None if is_secure else isinstance(found, redis.ConnectionError)


def test_an_answer_that_was_lost_is_not_looked_for_for_ever(
    node: socket.socket, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagastream.broker.probes._LOOKED_FOR_S", 0.0)
    for _ in range(2):
        assert isinstance(probes.look(at(node)), redis.ConnectionError)
        node.accept()[0].close()  # each look has asked anew


@pytest.mark.parametrize("is_secure", [False, True])
def test_so_does_one_that_is_reset(node: socket.socket, *, is_secure: bool) -> None:
    """As by Redis, which does not read what is no TLS."""
    with closing(Probes(is_secure=is_secure)) as probes:
        assert probes.look(at(node)) is not None
        with node.accept()[0] as asked:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert (probes.look(at(node)) is None) is is_secure


def test_a_name_of_several_addresses_is_tried_at_each(
    node: socket.socket, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that has an address of IPv6 first, if the node listens at that of IPv4 only."""
    port = node.getsockname()[1]
    nobody = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", free_port()))
    there = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
    impossible = (999, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [nobody, impossible, there])
    assert isinstance(probes.look(Address("two.example", port)), redis.TimeoutError)
    with node.accept()[0] as asked:
        assert asked.recv(100) == b"PING\r\n"
        asked.sendall(b"+PONG\r\n")
        until(lambda: probes.look(Address("two.example", port)) is None, what="it answers")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [nobody, impossible])
    assert isinstance(probes.look(Address("two.example", port)), redis.ConnectionError)


def test_a_name_server_that_is_slow_holds_up_no_look_at_another_node(
    node: socket.socket, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, may_go_on, resolve = threading.Event(), threading.Event(), socket.getaddrinfo

    def slow(host: str, *rest: Any, **named: Any) -> Any:
        if host == "slow.example":
            asked.set()
            assert may_go_on.wait(10)
            host = "127.0.0.1"
        return resolve(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    there = Address("slow.example", node.getsockname()[1])
    with ThreadPoolExecutor() as threads:
        waits = [threads.submit(probes.look, there) for _ in range(2)]
        try:
            assert asked.wait(10)
            assert isinstance(threads.submit(probes.look, at(node)).result(timeout=5), redis.TimeoutError)
        finally:
            may_go_on.set()
        assert all(isinstance(one.result(), redis.TimeoutError) for one in waits)
    # Both have asked the slow one. One question was enough: the other connection is closed.
    connections = [node.accept()[0] for _ in range(3)]
    for one in connections:
        one.settimeout(10)
    assert [one.recv(100) for one in connections] == [b"PING\r\n"] * 3
    assert sum(bool(select.select([one], [], [], 0)[0]) and one.recv(1) == b"" for one in connections) == 1
    for one in connections:
        one.close()


def test_a_process_with_many_open_files_can_look(node: socket.socket, probes: Probes) -> None:
    """`select` takes no number of a file from 1,024 on."""
    with ExitStack() as open_files:
        while open_files.enter_context(socket.socket()).fileno() < 1100:
            pass
        assert isinstance(probes.look(at(node)), redis.TimeoutError)
