"""The server of RQ: which one it is, what is wrong with it, what its errors mean."""

from collections.abc import Iterator

import pytest
import redis

from sagastream.broker.connection import Broker
from sagastream.broker.failures import THE_BROKER
from sagastream.errors import BrokerError
from sagastream.rq_steps.server import RQS_SERVER, RqAway, RqServer, unusable

BROKER = "redis://127.0.0.1:1"
ASKED = "names a Sentinel: it is asked for the master with a url like redis+sentinel://HOST:26379/mymaster"
SINGLE = "RQ's keys have no common slot, so it needs a single server"


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    monkeypatch.delenv("RQ_URL", raising=False)
    broker = Broker(BROKER)
    yield broker
    broker.close()


@pytest.mark.parametrize("named", [None, "", BROKER])
def test_it_is_the_broker_unless_rq_url_names_another(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    if named is not None:
        monkeypatch.setenv("RQ_URL", named)
    server = RqServer(broker)
    assert (server.is_apart, server.client, server.called) == (False, broker.client, THE_BROKER)
    server.close()  # which leaves the connections of the broker open
    for error in (redis.ConnectionError("away"), redis.exceptions.NoPermissionError("no")):
        with pytest.raises(type(error)), server.asking():
            raise error


def test_an_error_of_a_server_of_its_own_is_none_of_the_broker(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RQ_URL", "redis://ann:secret@127.0.0.1:2")
    server = RqServer(broker)
    assert (server.is_apart, server.called, server.shown) == (True, RQS_SERVER, "redis://ann:***@127.0.0.1:2")
    with pytest.raises(RqAway, match="it loads"), server.asking():
        raise redis.BusyLoadingError("it loads")
    with pytest.raises(BrokerError) as caught, server.asking():
        raise redis.AuthenticationError("WRONGPASS")
    assert str(caught.value) == (
        "RQ_URL redis://ann:***@127.0.0.1:2: RQ's server refuses the login: WRONGPASS; "
        "look at the user and the password in RQ_URL"
    )


def test_a_url_that_is_not_usable_is_told_without_its_password(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RQ_URL", "redis://ann:secret#@x")
    with pytest.raises(BrokerError, match=r"^RQ_URL is not usable: it cannot be taken apart; ") as caught:
        RqServer(broker)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "shown", "why"),
    [
        ("standalone", None, None),
        ("standalone", "redis://x", None),
        ("cluster", None, f"the broker is a cluster. {SINGLE}: set RQ_URL to one, like redis://HOST:6379"),
        ("cluster", "redis://x", f"RQ_URL redis://x names a node of a cluster. {SINGLE}: name one"),
        (
            "sentinel",
            "redis://x",
            f"RQ_URL redis://x {ASKED}",
        ),
    ],
)
def test_rq_needs_a_single_server(mode: str, shown: str | None, why: str | None) -> None:
    assert unusable(mode, shown=shown) == why
