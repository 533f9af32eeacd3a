"""Who may ask a dashboard what."""

import asyncio
import time
from types import SimpleNamespace
from typing import cast

import pytest
import redis
from starlette.requests import Request
from starlette.types import Message

from sagastream.broker.connection import Broker
from sagastream.store.keys import StoreKeys
from sagastream_bridge.dashboard import feed, outage, rules
from sagastream_bridge.dashboard.actions import Refused, read_form
from sagastream_bridge.dashboard.feed import Feed
from sagastream_bridge.dashboard.outage import Outage
from sagastream_bridge.dashboard.rules import Names, Sessions, is_loopback, is_same_origin


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_some_addresses_are_reached_by_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", ""])
def test_others_reach_all_other_addresses(host: str) -> None:
    assert not is_loopback(host)


def test_a_host_must_be_one_of_the_names_at_any_port() -> None:
    names = Names.of("127.0.0.1", ["Sagas.example.org"])
    for good in (
        "127.0.0.1:8420",
        "localhost",
        "LOCALHOST:1",
        "[::1]:8420",
        "sagas.example.org",
        "sagas.example.org.:443",
    ):
        assert names.has(good), good
    for wrong in (
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1:8420@evil.example",
        "a b",
        "[::2]:8420",
        None,
    ):
        assert not names.has(wrong), wrong


def test_an_address_that_others_reach_has_no_loopback_names() -> None:
    assert not Names.of("10.0.0.1").has("localhost:8420")
    assert Names.of("10.0.0.1").has("10.0.0.1:8420")


@pytest.mark.parametrize(
    ("origin", "is_same"),
    [
        ("http://127.0.0.1:8420", True),
        ("https://127.0.0.1:8420", True),  # a proxy speaks TLS for it
        ("http://127.0.0.1:8421", False),
        ("http://127.0.0.1", False),
        ("http://evil.example", False),
        ("file://127.0.0.1:8420", False),
        ("null", False),
        ("", False),
        ("http://[", False),
        (None, False),
    ],
)
def test_an_origin_must_be_the_server_that_was_asked(origin: str | None, is_same: bool) -> None:
    assert is_same_origin(origin, "127.0.0.1:8420") is is_same


def test_a_session_is_one_of_this_process_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, others = Sessions(), Sessions()
    session = sessions.begin()
    assert sessions.is_one(session)
    assert not others.is_one(session)
    for wrong in (None, "", "a", "..", session + "0", session[1:], session.replace(".", "", 1)):
        assert not sessions.is_one(wrong), wrong
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + rules.SESSION_S + 2)
    assert not sessions.is_one(session)


def test_the_token_of_forms_belongs_to_one_session() -> None:
    sessions = Sessions()
    mine, other = sessions.begin(), sessions.begin()
    token = sessions.form_token(mine)
    assert sessions.is_form_token(token, mine)
    assert not sessions.is_form_token(token, other)
    assert not sessions.is_form_token("", mine)
    assert not sessions.is_form_token("\u20ac", mine)
    assert token not in mine


@pytest.mark.parametrize("token", ["", "short", "a" * 15, "with a blank in it", "€uro €uro €uro €uro"])
def test_a_token_that_can_be_guessed_or_mistyped_is_refused(token: str) -> None:
    assert rules.complaint_about(token)


def test_a_token_of_openssl_is_taken() -> None:
    assert rules.complaint_about("0123456789abcdef0123456789abcdef") is None


def test_a_form_of_which_the_rest_does_not_come_is_refused() -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b"who=a", "more_body": True},
        {"type": "http.disconnect"},
    ]
    told = iter(messages)

    async def receive() -> Message:
        return next(told)

    with pytest.raises(Refused, match="gone away"):
        asyncio.run(read_form(Request({"type": "http", "method": "POST", "headers": []}, receive)))


def test_one_viewer_too_many_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MOST_VIEWERS", 1)
    keys = StoreKeys("saga", ["0"])
    found = Feed(cast(Broker, None), lambda: keys, lambda: keys, lambda: None, Outage())

    async def both() -> None:
        first = found.follow(None)
        assert await anext(first) == "retry: 2000\n\n"
        assert [one async for one in found.follow(None)] == []

    asyncio.run(both())


def test_an_outage_that_is_known_is_tried_again_by_one_page_at_a_time_unless_somebody_watches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(outage, "time", SimpleNamespace(monotonic=lambda: now[0]))
    known = Outage()
    known.found(redis.ResponseError("WRONGTYPE"))
    known.found(redis.AuthenticationError("invalid password"))
    assert known.known() is None  # no outage: waiting does not mend that
    known.found(hangs := redis.TimeoutError("Timeout reading from socket"))
    now[0] += 3
    known.found(hangs)  # another page that was under way
    assert known.known() is hangs
    now[0] += 2
    assert [known.known(), known.known()] == [None, hangs]
    now[0] += 60
    known.is_watched = lambda: True
    assert known.known() is hangs
    assert [known.over(), known.over()] == [True, False]
    assert known.known() is None
