"""The server that RQ keeps its jobs on: that of RQ_URL or, if it is not set, the broker.

RQ's keys have no common slot, so a cluster cannot hold them. All that sagastream itself keeps of a command (its entry,
its record, its reply) stays with the broker. No call and no transaction touches both servers:

- The entry of a command is there, and pending, before its job is enqueued, and until the command is answered. So a job
  that was not enqueued, or is lost, is missed by whoever holds the entry.
- The job answers the command at the broker before RQ notes that the job has ended. So a job that has ended while its
  entry is pending has not answered it. Whoever compares them looks at the job first.

This module does not import rq, which takes longer than all that is here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sagastream.broker import sentinel, server, urls, wire
from sagastream.broker.connection import Broker
from sagastream.broker.failures import THE_BROKER, Called, is_outage, told
from sagastream.broker.wire import or_raise
from sagastream.errors import BrokerError

#: The variable that names the server.
RQ_VARIABLE: Final = "RQ_URL"
#: The server, if it is not the broker.
RQS_SERVER: Final = Called("RQ's server", RQ_VARIABLE)
#: How long a server of RQ that is not the broker may take to accept a connection, and to answer, in seconds. Steps that
#: do not run on RQ wait for it meanwhile.
_ANSWER_S: Final = 2.0
_SINGLE: Final = "RQ's keys have no common slot, so it needs a single server"


class RqAway(Exception):
    """RQ's server is away for a while, and it is not the broker."""


class RqServer:
    """The server of RQ's jobs, for a process that uses this broker."""

    #: What an embedded broker lost by its last crash is told elsewhere.
    lost_by_crash: str | None = None

    def __init__(self, broker: Broker, client: "redis.Redis | None" = None) -> None:
        """`client`: to use for it. Raises BrokerError if RQ_URL is not usable."""
        url = rq_url()
        #: Whether it is another server than the broker, or reached in another way.
        self.is_apart = url is not None and url != broker.url
        self.url = url if url is not None and self.is_apart else broker.url
        self._broker = broker
        if client is None:
            client = connected(self.url) if self.is_apart else broker.client
        self.client = client
        #: The server, if it is an embedded one that this process looks after.
        self.embedded = None if self.is_apart else broker.embedded

    @property
    def called(self) -> Called:
        """What people know it by."""
        return RQS_SERVER if self.is_apart else THE_BROKER

    @property
    def shown(self) -> str:
        """Its url, for people to see."""
        return urls.shown(self.url)

    def check(self) -> None:
        """Raises BrokerError if RQ cannot work with it, redis.RedisError if it is away."""
        hello = or_raise(wire.round_trip(self.client, [("HELLO",)])[0])
        if isinstance(hello, dict):  # RQ's own client speaks version 3 of the protocol of Redis
            hello = [word for pair in hello.items() for word in pair]
        if (why := unusable(server.mode_of(hello), shown=self.shown if self.is_apart else None)) is not None:
            raise BrokerError(why)

    def told(self, error: redis.RedisError, *, advises: bool = True) -> str:
        """What a person is told of an error of this server; with its url, if it is not the broker. `advises`: see
        failures.told."""
        text = told(error, self.called, advises=advises)
        return f"{RQ_VARIABLE} {self.shown}: {text}" if self.is_apart else text

    @contextmanager
    def asking(self) -> Iterator[None]:
        """While it is asked. If it is not the broker, an error that passes is raised as RqAway, and any other one as
        BrokerError: the broker is there all the same."""
        try:
            yield
        except redis.RedisError as error:
            if not self.is_apart:
                raise
            wire.close_idle(self.client)  # its address may lead to another server by now
            if is_outage(error):
                raise RqAway(str(error)) from error
            raise BrokerError(self.told(error)) from error

    def restore(self) -> None:
        """As Broker.restore, if it is the broker."""
        if not self.is_apart:
            self._broker.restore()

    def close(self) -> None:
        """Close the connections that are its own."""
        if self.is_apart:
            self.client.close()


def rq_url() -> str | None:
    """What the environment says; None: nothing, so it is the broker."""
    return os.environ.get(RQ_VARIABLE) or None


def unusable(mode: str, *, shown: str | None) -> str | None:
    """Why RQ cannot work with a server that works in this mode; None: it can. `shown`: its url; None: it is the
    broker."""
    if shown is None:
        example = f"set {RQ_VARIABLE} to one, like redis://HOST:6379"
        return f"the broker is a cluster. {_SINGLE}: {example}" if mode == "cluster" else None
    if mode == "cluster":
        return f"{RQ_VARIABLE} {shown} names a node of a cluster. {_SINGLE}: name one"
    return f"{RQ_VARIABLE} {shown} {why}" if (why := server.unusable(mode, is_cluster=False)) else None


def connected(url: str, **options: Any) -> "redis.Redis":
    """A client of the server of this url, as that of a broker. Raises BrokerError if the url is not usable."""
    try:
        urls.check_one(url)
        if url.startswith("rediss"):
            urls.check_files(url)
        options = {
            "socket_timeout": _ANSWER_S,
            "socket_connect_timeout": _ANSWER_S,
            "protocol": 2,
            "driver_info": None,
        } | options
        if urls.names_sentinels(url):
            options |= sentinel.options(url)
            url = urls.sentinels(url).server
        return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
    except ValueError as error:
        raise BrokerError(f"{RQ_VARIABLE} is not usable: {error}") from None
