"""What may stand in the url of a broker, and that nothing of a password is told."""

import ssl
from typing import Any
from urllib.parse import quote

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st

from sagastream.broker import urls
from sagastream.broker.connection import connect
from sagastream.broker.failures import is_outage, untrusted
from sagastream.errors import BrokerError


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://host:6379/",
        "redis://host/3",
        "redis://ann:s3@cret@host:6379",
        "redis://host:6379/0?password=a@b&username=ann",
        "rediss://host?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false&ssl_cert_reqs=none",
        "unix:///run/s.sock?db=2",
        "unix://ann:s3cret@/run/s.sock",
        "redis://ann:s3@cret@one:7000,two,three:7002/0",
        "rediss://one,two?ssl_ca_certs=/etc/ca.pem",
        "redis+sentinel://one/mymaster",
        "redis+sentinel://ann:s3cret@one:26379,two,[::1]:3/my.master-1/2?sentinel_password=a@b",
        "rediss+sentinel://one,two/m?ssl_ca_certs=/etc/ca.pem&sentinel_username=ann&sentinel_password=x",
    ],
)
def test_a_usable_url_is_taken(url: str) -> None:
    urls.check(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://host?colour=red", "it has an option 'colour'; there are db, username, password"),
        ("redis://host?socket_timeout=1", "it has an option 'socket_timeout'"),
        ("redis://host?decode_responses=true", "it has an option 'decode_responses'"),
        ("redis://host?protocol=3", "it has an option 'protocol'"),
        ("redis://host?ssl_ca_certs=/etc/ca.pem", "an option 'ssl_ca_certs'; that is for rediss:// only"),
        ("rediss://host?ssl_check_hostname=maybe", "its option ssl_check_hostname must be true or false"),
        ("rediss://host?ssl_cert_reqs=optional", "its option ssl_cert_reqs must be required or none"),
        ("redis://host?db=x", "its option db must have a value, a number"),
        ("redis://host?db=", "its option db must have a value, a number"),
        ("redis://host/zero", "only the number of a database may follow the host"),
        ("redis://:6379", "it names no host"),
        ("redis://host:0", "port 0 leads to no server"),
        ("redis://one..two:6379", "no host can be called so"),
        (f"redis://{'a' * 64}", "no host can be called so"),
        ("redis+sentinel://one,one..two/m", "no host can be called so"),
        ("redis://host:99999", "it cannot be taken apart"),
        ("redis://one:7000,", "it names no host"),
        ("redis://one:7000,two:99999", "it cannot be taken apart"),
        ("redis://one:7000,redis://two:7001", "name its other nodes without redis://, as in redis://one:7000,two:7001"),
        ("redis://one,a..b", "no host can be called so"),
        ("redis://one,two/zero", "only the number of a database may follow the host"),
        ("redis:host", "it must begin with redis://, rediss:// or unix://"),
        ("unix://run/s.sock", "unix:// takes no host"),
        ("unix://", "it names no socket"),
        ("sentinel://host/m", "it must begin with redis://, rediss:// or unix://, or with redis+sentinel://"),
        ("redis+sentinel://host", "the name of the master and, if you like, the number of a database must follow"),
        ("redis+sentinel://host/m/x", "the name of the master and, if you like, the number of a database must follow"),
        ("redis+sentinel://host,/m", "its Sentinels must be HOST or HOST:PORT"),
        ("redis+sentinel://host:0/m", "its Sentinels must be HOST or HOST:PORT"),
        ("redis+sentinel://::1/m", "its Sentinels must be HOST or HOST:PORT"),
        ("redis+sentinel://host/m?ssl_ca_certs=a", "an option 'ssl_ca_certs'; that is for rediss:// only"),
        ("redis://host?sentinel_username=a", "an option 'sentinel_username'; that is for redis+sentinel:// only"),
    ],
)
def test_any_other_is_told_in_one_line(url: str, says: str) -> None:
    with pytest.raises(BrokerError, match=r"^the url that was given is not usable: ") as caught:
        connect(url)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


#: Passwords that are long enough to be found in a text if they are there.
PASSWORDS = st.text("abcXYZ0189#/?@:%&=+, \u00e9[]", min_size=6, max_size=20)
#: Where a person may have written one without encoding it.
PLACES = (
    "redis://ann:{}@host:6379/0",
    "redis://:{}@host",
    "rediss://ann:{}@host",
    "unix://ann:{}@/run/s.sock",
    "redis://ann:{}@one:7000,two",
    "redis://host:6379/0?password={}",
    "unix:///run/s.sock?password={}&db=1",
    "rediss://host?ssl_password={}",
    "redis+sentinel://ann:{}@one,two:26379/mymaster/0",
    "redis+sentinel://:{}@one/mymaster",
    "rediss+sentinel://one/mymaster?sentinel_password={}&db=1",
)


@given(PASSWORDS, st.sampled_from(PLACES))
@example("12#secret", PLACES[1])
@example("12/secret", PLACES[1])
@example("12?secret=yes", PLACES[1])
@example("12?secret&more", PLACES[0])
@example("x&db=secret", PLACES[4])
@example("x&secret=1", PLACES[4])
@example("x&secret@=1", PLACES[4])
@example("00@/00", PLACES[3])
def test_no_part_of_a_password_is_told(password: str, place: str) -> None:
    url = place.format(password)
    told = [urls.shown(url)]
    try:
        urls.check(url)
    except ValueError as error:
        told.append(str(error))
    # A piece of four characters between marks is a part that tells something.
    pieces = [password[at : at + 4] for at in range(len(password) - 3)]
    usual = place + told_without_one()
    for text in told:
        for piece in pieces:
            assert piece not in text or piece in usual, (url, text)


def told_without_one() -> str:
    """All words that a text may have without any password in it."""
    texts = ["a url that is not usable", "***"]
    for url in ("x://", "redis://h#", "unix://h/p", "unix://", "redis://", "redis://h:0", "redis://h/x", "redis://h?x=1",
                "redis://h?x=@", "unix://u:p@/@", "redis://h?db=",
                "redis://h:x", "redis://h?password=", "redis://h?ssl_password=1",
                "redis+sentinel://h/m?x=1", "redis+sentinel://h:x/m", "redis+sentinel://h", "redis+sentinel://h/m?db=x",
                "rediss://h?ssl_password="):  # fmt: skip
        try:
            urls.check(url)
        except ValueError as error:
            texts.append(str(error))
    return " ".join(texts)


@given(PASSWORDS)
def test_a_password_that_is_encoded_arrives(password: str) -> None:
    url = f"redis://ann:{quote(password, safe='')}@host:6379/0"
    assert connect(url).connection_pool.connection_kwargs["password"] == password
    assert urls.shown(url) == "redis://ann:***@host:6379/0"


@given(PASSWORDS, PASSWORDS)
def test_the_logins_of_a_master_and_of_its_sentinels_arrive_each_at_its_own(password: str, other: str) -> None:
    login = f"sentinel_username=sue&sentinel_password={quote(other, safe='')}"
    found = urls.sentinels(f"rediss+sentinel://ann:{quote(password, safe='')}@one,[::1]:7/m/3?{login}&ssl_ca_certs=a")
    assert (found.master, [str(one) for one in found.sentinels]) == ("m", ["one:26379", "[::1]:7"])
    at_master = parsed(found.server)
    assert (at_master["username"], at_master["password"], at_master["db"]) == ("ann", password, 3)
    for (host, port), url in found.sentinels.items():
        at_sentinel = parsed(url)
        assert (at_sentinel["username"], at_sentinel["password"]) == ("sue", other)
        assert (at_sentinel["host"], at_sentinel["port"], at_sentinel["ssl_ca_certs"]) == (host, port, "a")


def parsed(url: str) -> dict[str, Any]:
    """How redis-py reads a url."""
    options: dict[str, Any] = redis.ConnectionPool.from_url(url).connection_kwargs
    return options


@pytest.mark.parametrize("reason", ["WRONG_VERSION_NUMBER", "TLSV13_ALERT_CERTIFICATE_REQUIRED"])
def test_an_error_of_tls_that_no_waiting_mends_is_no_outage(reason: str) -> None:
    cause = ssl.SSLError(1, f"[SSL: {reason}] no")
    cause.reason = reason
    error = redis.ConnectionError("lost")
    error.__cause__ = cause
    assert not is_outage(error)
    assert reason in (untrusted(error) or "")


def test_a_connection_that_is_lost_over_tls_is_an_outage() -> None:
    error = redis.ConnectionError("lost")
    error.__cause__ = ssl.SSLEOFError(8, "EOF occurred in violation of protocol")
    assert is_outage(error)


def test_several_nodes_are_named_in_one_url() -> None:
    url = "redis://ann:s,3cret@one:7000,two/0?db=0"
    assert urls.servers(url) == ["redis://ann:s,3cret@one:7000/0?db=0", "redis://ann:s,3cret@two/0?db=0"]
    assert urls.shown(url) == "redis://ann:***@one:7000,two/0?db=0"
    assert urls.servers("redis+sentinel://one,two/m") == ["redis+sentinel://one,two/m"]
    with pytest.raises(ValueError, match="several servers: name one"):
        urls.check_one(url)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("redis://ann:pa%2Fss@host:6379/0", "redis-cli -u redis://host:6379"),
        ("redis://:secret@one:7000,two:7001", "redis-cli -u redis://one:7000"),
        ("rediss://:secret@host?ssl_certfile=a", "redis-cli -u rediss://host"),
        ("redis://host/2", "redis-cli -u redis://host -n 2"),
        ("unix://ann:secret@/tmp/a.sock?db=1", "redis-cli -s /tmp/a.sock -n 1"),
        ("unix:///tmp/a%20b/%25.sock", "redis-cli -s '/tmp/a b/%.sock'"),
        (
            "rediss+sentinel://ann:secret@one:7,two/m/2?sentinel_password=secret",
            (
                "redis-cli --tls $(redis-cli --tls -h one -p 7 --raw SENTINEL GET-MASTER-ADDR-BY-NAME m"
                " | sed '1s/^/-h /;2s/^/-p /') -n 2"
            ),
        ),
    ],
)
def test_the_line_for_redis_cli_has_no_login(url: str, line: str) -> None:
    assert urls.redis_cli(url) == line
