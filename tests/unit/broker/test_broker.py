"""The connection to the broker, as far as it can be tested without one."""

from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from sagastream import AsyncSagaClient, SagaClient
from sagastream.broker.connection import Broker, broker_of, connect
from sagastream.broker.wire import or_raise
from sagastream.errors import BrokerError


def shown(url: str) -> str:
    broker = Broker.__new__(Broker)
    broker.url = url
    return broker.shown_url


@pytest.mark.parametrize(
    ("url", "what_is_shown"),
    [
        ("redis://:s3cret@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://ann:s3cret@host:6379/0", "redis://ann:***@host:6379/0"),
        ("rediss://ann:s3:cret@host/0", "rediss://ann:***@host/0"),
        ("redis://ann:s3cret@[::1]:6379/0", "redis://ann:***@[::1]:6379/0"),
        ("redis://ann:@host", "redis://ann:***@host"),
        ("unix://ann:s3cret@/run/redis.sock", "unix://ann:***@/run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, what_is_shown: str) -> None:
    assert shown(url) == what_is_shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://host:6379/0",
        "redis://ann@host:6379",
        "unix:///home/ann/shop/.sagastream/s.sock",
        "unix:///tmp/a@b:c@d/s.sock",
        "redis://[::1]:6379",
    ],
)
def test_a_url_without_a_password_is_shown_as_it_is(url: str) -> None:
    assert shown(url) == url


@given(st.from_regex(r"[A-Za-z0-9%!$&'()*+,;=:._~-]{12,30}", fullmatch=True))
def test_no_password_is_shown(password: str) -> None:
    assert password not in shown(f"redis://ann:{password}@host:6379/0")


def test_of_a_password_with_an_at_sign_in_it_nothing_is_shown() -> None:
    url = "redis://ann:s3@cret@host:6379"
    assert connect(url).connection_pool.connection_kwargs["password"] == "s3@cret"
    assert "cret" not in shown(url)


@pytest.mark.parametrize("url", ["unix:///run/redis.sock?db=0&password=s3cret", "redis://host:6379?password=s3cret"])
def test_a_password_in_the_query_is_not_shown(url: str) -> None:
    assert connect(url).connection_pool.connection_kwargs["password"] == "s3cret"
    assert "s3cret" not in shown(url)


@pytest.mark.parametrize("url", ["host:6379", "http://host", "redis://host:port"])
def test_a_url_that_is_none_is_told(url: str) -> None:
    with pytest.raises(BrokerError, match=r"^the url that was given is not usable: "):
        connect(url)
    with pytest.raises(BrokerError, match=r"^the url that was given is not usable: "):
        Broker(url)


def test_a_redis_url_that_is_none_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "http://host")
    for open_it in (connect, Broker):
        with pytest.raises(BrokerError, match=r"^REDIS_URL is not usable: "):
            open_it()


@pytest.mark.parametrize("client", [SagaClient, AsyncSagaClient])
def test_a_client_takes_a_broker_or_a_url_and_nothing_else(client: Any) -> None:
    for wrong in (redis.Redis(), 6379, b"redis://host"):
        with pytest.raises(TypeError, match=r"^broker must be a Broker or a url, like redis://localhost:6379, not "):
            client(wrong)
    with pytest.raises(BrokerError, match=r"^the url that was given is not usable: "):
        client("http://host")
    broker = Broker("redis://host")
    assert broker_of(broker) is broker
    assert broker_of("redis://host").url == "redis://host"


def test_where_there_is_no_url_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(BrokerError, match=r"^REDIS_URL is not set$"):
        connect()


def test_an_answer_that_is_an_error_is_raised_as_it_is() -> None:
    assert or_raise([1]) == [1]
    error = redis.ResponseError("no")
    with pytest.raises(redis.ResponseError) as caught:
        or_raise(error)
    assert caught.value is error
