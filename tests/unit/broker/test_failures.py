"""What errors of the broker mean, by the texts of the servers."""

from typing import Any

import pytest
import redis
from redis._parsers.base import BaseParser

from sagastream.broker.failures import (
    Called,
    is_deleted,
    is_demoted,
    is_outage,
    is_refusal,
    may_be_former,
    name_node,
    told,
)


def answered(text: str) -> Exception:
    """The error that redis-py makes of an answer of the server."""
    parse: Any = BaseParser.parse_error
    error: Exception = parse(text)
    return error


def redis_error(text: str) -> redis.RedisError:
    error = answered(text)
    assert isinstance(error, redis.RedisError)
    return error


#: What servers answer that are away for a while.
PASSING = [
    "LOADING Redis is loading the dataset in memory",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "OOM command not allowed when used memory > 'maxmemory'. script: 5f2c, on @user_script:1.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "MISCONF Valkey is configured to persist data to AOF, but it's currently unable to persist to disk.",
    "NOREPLICAS Not enough good replicas to write.",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "CLUSTERDOWN The cluster is down",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "UNBLOCKED client unblocked via CLIENT UNBLOCK",
    "EXECABORT Transaction discarded because of: OOM command not allowed when used memory > 'maxmemory'.",
    "Command # 1 (HSET x) of pipeline caused error: MISCONF Errors writing to the AOF file: No space left on device",
    "ERR max number of clients reached",
]
#: … and those that are replicas by now.
DEMOTED = [
    "READONLY You can't write against a read only replica.",
    "READONLY Can not run script with write flag on readonly replica",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "EXECABORT Transaction discarded because of: READONLY You can't write against a read only replica.",
]
#: A stream or its group was deleted.
DELETED = [
    "UNBLOCKED the stream key no longer exists",
    "NOGROUP No such key 'requests' or consumer group 'orchestrator' in XREADGROUP with GROUP option",
    "NOGROUP the consumer group this client was blocked on no longer exists",
]
#: What waiting does not mend.
FAULTS = [
    "WRONGPASS invalid username-password pair or user is disabled.",
    "NOAUTH Authentication required.",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "BUSYGROUP Consumer Group name already exists",
    "BUSYKEY Target key name already exists.",
    "NOPERM this user has no permissions to run the 'get' command",
    "EXECABORT Transaction discarded because of previous errors.",
    "ERR unknown command 'UNBLOCKED '",
]


@pytest.mark.parametrize("text", PASSING + DEMOTED)
def test_what_passes_is_an_outage(text: str) -> None:
    assert is_outage(answered(text))


@pytest.mark.parametrize("text", PASSING + DEMOTED + FAULTS)
def test_a_server_that_its_replicas_have_left_may_be_a_former_master(text: str) -> None:
    assert may_be_former(answered(text)) == ("NOREPLICAS" in text)


@pytest.mark.parametrize("error", [redis.ConnectionError("refused"), redis.TimeoutError("slow")])
def test_a_server_that_does_not_answer_is_an_outage(error: redis.RedisError) -> None:
    assert is_outage(error)


@pytest.mark.parametrize("text", FAULTS + DELETED)
def test_what_waiting_cannot_mend_is_none(text: str) -> None:
    assert not is_outage(answered(text))


@pytest.mark.parametrize("error", [redis.DataError("no"), redis.AuthenticationError("no"), OSError("no")])
def test_an_error_of_another_kind_is_none(error: Exception) -> None:
    assert not is_outage(error)


@pytest.mark.parametrize("text", PASSING + DEMOTED + DELETED + FAULTS)
def test_what_says_that_a_server_is_a_replica_says_nothing_else(text: str) -> None:
    assert is_demoted(answered(text)) == (text in DEMOTED)
    assert is_deleted(answered(text)) == (text in DELETED)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "the store is full: raise maxmemory"),
        ("Command # 1 (XADD OOM x) of pipeline caused error: OOM command not allowed", "the store is full: "),
        ("READONLY You can't write against a read only replica.", "the broker is a replica: nothing can be"),
        ("MISCONF Errors writing to the AOF file: No space left on device", "the broker cannot write to its disk"),
        ("NOREPLICAS Not enough good replicas to write.", "the broker takes no writes without its replicas"),
        ("NOPERM this user has no permissions to run the 'time' command", "sagastream acl ROLE prints the user"),
        (
            "ERR ACL failure in script: User x has no permissions to run the 'hget' command",
            "sagastream acl ROLE prints",
        ),
        ("The user executing the script can't run this command or subcommand script: 1", "sagastream acl ROLE prints"),
        ("WRONGPASS invalid username-password pair", "the broker refuses the login: invalid username-password pair;"),
        (
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass>",
            "the broker wants a password, and REDIS_URL has none: redis://user:password@host",
        ),
        ("NOAUTH Authentication required.", "wants a password, and REDIS_URL has none"),
        ("WRONGTYPE Operation against a key", "sagastream doctor tells which key it is"),
        ("LOADING Redis is loading the dataset in memory", "the broker does not answer: Redis is loading"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "a slot of the cluster is on its way"),
        ("BUSY Redis is busy running a script.", "the broker is away for a while: BUSY"),
        (
            "ERR SELECT is not allowed in cluster mode",
            "a cluster has one database: name no number in REDIS_URL (SELECT",
        ),
        ("ERR DB index is out of range", "no database of that number: look at REDIS_URL (DB index is out of range)"),
        ("ERR unknown command 'FLY'", "unknown command 'FLY'"),
    ],
)
def test_a_person_is_told_what_is_the_case_and_what_helps(text: str, says: str) -> None:
    assert says in told(redis_error(text))


def test_what_is_told_is_told_of_the_server_or_node_that_said_it() -> None:
    server = Called("RQ's server", "RQ_URL")
    for text, says in (
        ("OOM command not allowed", "RQ's server is full: raise maxmemory"),
        ("MISCONF no {space} left", "RQ's server cannot write to its disk, and takes no writes: look at its log"),
        ("WRONGPASS no", "RQ's server refuses the login: no; look at the user and the password in RQ_URL"),
        ("ERR DB index is out of range", "RQ's server has no database of that number: look at RQ_URL (DB index"),
    ):
        assert told(redis_error(text), server).startswith(says)
    down = redis_error("CLUSTERDOWN The cluster is down")
    assert isinstance(down, redis.ResponseError)
    name_node(down, "n1:6379")
    assert told(down).startswith("the node n1:6379 of the cluster says that the cluster is down, so it takes nothing: ")
    full = redis_error("OOM command not allowed")
    assert isinstance(full, redis.ResponseError)
    name_node(full, "n1:6379")
    assert told(full).startswith("the node n1:6379 of the cluster is full: raise maxmemory")


def test_after_a_lost_connection_nobody_knows_whether_it_was_done() -> None:
    unreached = redis.ConnectionError("Error 111 connecting to /s.sock. Connection refused.")
    unreached.__context__ = ConnectionRefusedError()
    for error in (answered(DEMOTED[0]), answered(PASSING[0]), answered(FAULTS[0]), unreached):
        assert is_refusal(error)
    for error in (redis.ConnectionError("Connection closed by server."), redis.TimeoutError(), ValueError()):
        assert not is_refusal(error)
