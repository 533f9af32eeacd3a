"""Which Sentinels are asked for the master, in which order, and what is made of their answers."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import redis

from sagastream.broker import urls
from sagastream.broker.failures import NoMaster, is_outage, is_refusal, told
from sagastream.broker.sentinel import Ask, Sentinels
from sagastream.broker.urls import Address

URL = "redis+sentinel://one,two,three/mymaster"
OLD, NEW = Address("10.0.0.1", 6379), Address("10.0.0.2", 6379)
IS_REPLICA = redis.ReadOnlyError(f"{OLD} is a replica")


def names(master: Address, flags: str = "master") -> list[bytes]:
    """The answer of a Sentinel that names this master."""
    return [b"ip", master.host.encode(), b"port", str(master.port).encode(), b"flags", flags.encode()]


def refused() -> redis.ConnectionError:
    error = redis.ConnectionError("Error 111 connecting to x. Connection refused.")
    error.__context__ = ConnectionRefusedError()
    return error


def search(
    sentinels: Sentinels, answers: Mapping[str, Any], servers: Mapping[Address, redis.RedisError | None]
) -> list[str]:
    """Whom a search asks, if Sentinels answer so, and connecting to these servers ends so."""
    asked: list[str] = []
    searching = sentinels.search()
    outcome: Any = None
    while True:
        try:
            to_do = searching.send(outcome)
        except StopIteration:
            return asked
        if isinstance(to_do, Ask):
            assert to_do.command == ("SENTINEL", "MASTER", "mymaster")
            host = to_do.url.removeprefix("redis://").partition(":")[0]
            asked.append(host)
            outcome = answers[host]
        else:
            asked.append(str(to_do))
            outcome = servers[to_do]


@pytest.fixture
def sentinels() -> Sentinels:
    return Sentinels(urls.sentinels(URL))


def test_the_first_that_leads_to_a_master_is_enough_and_is_the_first_to_be_asked_next_time(
    sentinels: Sentinels,
) -> None:
    answers = {"one": refused(), "two": names(NEW), "three": names(NEW)}
    assert search(sentinels, answers, {NEW: None}) == ["one", "two", str(NEW)]
    assert search(sentinels, answers, {NEW: None}) == ["two", str(NEW)]
    assert sentinels.master == NEW


def test_one_that_names_a_server_that_is_a_replica_by_now_is_behind_and_the_others_are_asked(
    sentinels: Sentinels,
) -> None:
    answers = {"one": names(OLD), "two": names(OLD), "three": names(NEW)}
    asked = search(sentinels, answers, {OLD: IS_REPLICA, NEW: None})
    assert asked == ["one", str(OLD), "two", "three", str(NEW)]


def test_once_the_master_is_found_elsewhere_connections_to_the_former_one_lead_to_a_wrong_server(
    sentinels: Sentinels, caplog: pytest.LogCaptureFixture
) -> None:
    assert not sentinels.is_elsewhere(*OLD)
    for master in (OLD, OLD, NEW, NEW):
        search(sentinels, {"one": names(master)}, {master: None})
    assert sentinels.is_elsewhere(*OLD)
    assert not sentinels.is_elsewhere(*NEW)
    assert caplog.messages == [f"the master mymaster is at {NEW} now; before, it was at {OLD}"]


@pytest.mark.parametrize(
    ("answers", "server", "text"),
    [
        (refused, None, "one:26379, two:26379, three:26379 could not be asked: nobody listens there"),
        (lambda: redis.ResponseError("No such master with that name"), None, "said that it knows no such master"),
        (lambda: names(OLD, "master,s_down"), None, "three:26379 said that it seems to be down"),
        (lambda: names(OLD, "master,s_down,o_down"), None, "three:26379 said that it is down"),
        (lambda: names(OLD), refused(), "said that it is at 10.0.0.1:6379: nobody listens there"),
        (lambda: names(OLD), IS_REPLICA, "said that it is at 10.0.0.1:6379: 10.0.0.1:6379 is a replica"),
    ],
)
def test_if_there_is_no_master_for_a_while_it_is_an_outage_and_what_each_said_is_told(
    sentinels: Sentinels, answers: Callable[[], Any], server: redis.RedisError | None, text: str
) -> None:
    with pytest.raises(NoMaster) as caught:
        search(sentinels, {name: answers() for name in ("one", "two", "three")}, {OLD: server})
    assert text in str(caught.value)
    assert str(caught.value).startswith("no Sentinel leads to the master mymaster: ")
    assert is_outage(caught.value)
    assert is_refusal(caught.value)
    assert text in told(caught.value)


def test_a_login_that_all_sentinels_refuse_is_no_outage_but_that_of_one_may_be(sentinels: Sentinels) -> None:
    no = redis.AuthenticationError("WRONGPASS invalid username-password pair")
    wanted = redis.AuthenticationError("Authentication required.")
    for refusal, said in ((no, "WRONGPASS invalid username-password pair"), (wanted, "Authentication required")):
        with pytest.raises(redis.AuthenticationError) as caught:
            search(sentinels, dict.fromkeys(("one", "two", "three"), refusal), {})
        assert told(caught.value) == (
            "no Sentinel leads to the master mymaster: one:26379, two:26379, three:26379 could not be asked: "
            f"{said}; look at sentinel_username and sentinel_password in REDIS_URL"
        )
        assert not is_outage(caught.value)
    with pytest.raises(NoMaster):
        search(sentinels, {"one": no, "two": refused(), "three": no}, {})
    assert search(sentinels, {"one": no, "two": names(NEW)}, {NEW: None})[-1] == str(NEW)


def test_a_login_that_the_master_refuses_is_told_at_once(sentinels: Sentinels) -> None:
    no = redis.AuthenticationError("WRONGPASS invalid username-password pair")
    with pytest.raises(redis.AuthenticationError, match=r"^WRONGPASS"):
        search(sentinels, {"one": names(OLD)}, {OLD: no})


@pytest.mark.parametrize(
    "answer",
    [
        None,
        5,
        b"OK",
        [],
        [5, 6],
        [[b"ip"], b"10.0.0.1"],
        [b"ip", b"10.0.0.1"],
        [b"ip", b"", b"port", b"6379"],
        [b"ip", b"one..two", b"port", b"6379"],
        [b"ip", b"one\0two", b"port", b"6379"],
        [b"ip", b"10.0.0.1", b"port", b"many"],
        [b"ip", b"10.0.0.1", b"port", b"99999"],
    ],
)
def test_an_answer_that_no_sentinel_gives_is_told_and_the_others_are_asked(sentinels: Sentinels, answer: Any) -> None:
    assert search(sentinels, {"one": answer, "two": names(NEW)}, {NEW: None}) == ["one", "two", str(NEW)]
    sentinels = Sentinels(urls.sentinels(URL))
    with pytest.raises(NoMaster, match="three:26379 gave an answer that names no address: is it a Sentinel") as caught:
        search(sentinels, dict.fromkeys(("one", "two", "three"), answer), {})
    assert is_outage(caught.value)
