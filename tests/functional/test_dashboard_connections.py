"""Clients of the dashboard that do not send what they began, or do not take what they asked for: they keep nobody
waiting. On raw sockets."""

import contextlib
import socket
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from sagastream_bridge.dashboard import connections, feed
from sagastream_bridge.dashboard.server import DashboardServer
from support.dashboards import listening
from support.scenes import Scene
from support.servers import Server
from support.waiting import until

TOKEN = "correct-horse-battery-staple"
Dialled = Callable[[], socket.socket]


@pytest.fixture
def dashboard(shared_valkey: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[DashboardServer]:
    monkeypatch.setattr(feed, "_IDLE_MS", 100)
    monkeypatch.setattr(connections, "REQUEST_S", 0.4)
    monkeypatch.setattr(connections, "ANSWER_S", 0.4)
    monkeypatch.setattr(connections, "MOST", 20)
    shared_valkey.clear()
    with listening(Scene(shared_valkey.broker()), allow_actions=True, token=TOKEN) as found:
        yield found
    shared_valkey.close_brokers()


@pytest.fixture
def dialled(dashboard: DashboardServer) -> Iterator[Dialled]:
    """Connects to the dashboard."""
    with contextlib.ExitStack() as those:

        def dial() -> socket.socket:
            return those.enter_context(socket.create_connection(("127.0.0.1", dashboard.port), timeout=20))

        yield dial


def is_open(dashboard: DashboardServer) -> int:
    """How many connections the server holds."""
    return len(dashboard._server.server_state.connections)


def answer(dashboard: DashboardServer, path: str) -> int:
    request = urllib.request.Request(dashboard.url + path, headers={"authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=20) as found:
        return int(found.status)


def head(dashboard: DashboardServer, line: str, *more: str) -> bytes:
    host = f"Host: 127.0.0.1:{dashboard.port}"
    return "\r\n".join([f"{line} HTTP/1.1", host, f"Authorization: Bearer {TOKEN}", *more, "", ""]).encode()


def test_half_a_request_is_not_waited_for(dashboard: DashboardServer, dialled: Dialled) -> None:
    form = ("Content-Type: application/x-www-form-urlencoded", "Content-Length: 100")
    halves = {
        "nothing": b"",
        "half a line": b"GET /sag",
        "half a head": head(dashboard, "GET /sagas")[:-2],
        "half a form": head(dashboard, "POST /sagas/s1/retry", f"Origin: {dashboard.url[:-1]}", *form) + b"reason=",
        "half a form of a stranger": head(dashboard, "POST /login", *form) + b"token=",
        "half a chunk": head(dashboard, "POST /sagas/s1/retry", "Transfer-Encoding: chunked") + b"ff\r\nreason",
    }
    those = {what: dialled() for what in halves}
    for what, half in halves.items():
        those[what].sendall(half)
    for connection in those.values():
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):  # it may say why
                pass
    until(lambda: is_open(dashboard) == 0, what="none is held")


def test_a_request_that_comes_byte_by_byte_is_not_waited_for(dashboard: DashboardServer, dialled: Dialled) -> None:
    connection = dialled()
    connection.settimeout(0.05)
    dripped = 0

    def is_closed() -> bool:
        nonlocal dripped
        with contextlib.suppress(TimeoutError):
            connection.sendall(b"GET /" if dripped == 0 else b"x")
            dripped += 1
            return connection.recv(1) == b""
        return False

    until(is_closed, what="it is closed")
    assert 2 < dripped < 100


def test_whoever_is_in_time_is_answered_also_on_the_same_connection(
    dashboard: DashboardServer, dialled: Dialled
) -> None:
    connection, request = dialled(), head(dashboard, "GET /static/icon.svg")
    for _ in range(3):
        connection.sendall(request[:20])
        connection.sendall(request[20:])
        said = b""
        while b"</svg>" not in said:
            said += connection.recv(65536)
        assert said.startswith(b"HTTP/1.1 200")


def test_who_follows_a_page_is_kept(dashboard: DashboardServer, dialled: Dialled) -> None:
    connection = dialled()
    connection.sendall(head(dashboard, "GET /live"))
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    idle = dialled()
    assert idle.recv(1) == b""  # its time is over, and so is that of the other, if it had one
    assert dashboard._dashboard.feed.viewers == 1
    assert is_open(dashboard) == 1


def test_answers_that_nobody_reads_are_not_held(dashboard: DashboardServer) -> None:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", dashboard.port))
    connection.settimeout(20)
    with connection, contextlib.suppress(ConnectionError):
        for _ in range(100_000):
            connection.sendall(head(dashboard, "GET /static/dashboard.css"))
    until(lambda: is_open(dashboard) == 0, what="it is not held")


def test_many_connections_that_ask_for_nothing_shut_nobody_out(
    dashboard: DashboardServer, dialled: Dialled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 600)
    follower = dialled()
    follower.sendall(head(dashboard, "GET /live"))
    until(lambda: dashboard._dashboard.feed.viewers == 1, what="it follows")
    for number in range(60):
        dialled().sendall(b"GET /" + b"x" * number)
    assert answer(dashboard, "sagas") == 200
    until(lambda: is_open(dashboard) <= 20, what="those that came first were closed")
    assert dashboard._dashboard.feed.viewers == 1
