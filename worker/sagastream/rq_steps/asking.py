"""Exchanges that ask RQ's server besides the broker: they mark the commands that are for it.

Without RQ_URL the broker answers those too. With it, `run` and `run_async` send them to that server. A caller that does
not know of this hears of no job.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import redis

from sagastream.broker import exchange, wire
from sagastream.broker.exchange import Exchange
from sagastream.broker.wire import Words
from sagastream.errors import BrokerError
from sagastream.rq_steps.server import connected, rq_url

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

_T = TypeVar("_T")


class OnRq(tuple[str | bytes | int, ...]):
    """A command for RQ's server. Its answer may be any redis.RedisError."""

    __slots__ = ()

    @classmethod
    def of(cls, *words: str | bytes | int) -> "OnRq":
        return cls(words)


def run(client: "redis.Redis", one: Exchange[_T]) -> _T:
    """As exchange.run. `client`: of the broker."""
    if (url := rq_url()) is None:
        return exchange.run(client, one)
    parted, found = _Parted(one), list[Any]()
    while asked := exchange.run(client, parted.go_on(found)):
        found = _ask(url, asked)
    return parted.result


async def run_async(pool: "ConnectionPool", one: Exchange[_T]) -> _T:
    """As exchange.run_async. `pool`: of connections to the broker."""
    if (url := rq_url()) is None:
        return await exchange.run_async(pool, one)
    parted, found = _Parted(one), list[Any]()
    try:
        while asked := await exchange.run_async(pool, parted.go_on(found)):
            found = await asyncio.to_thread(_ask, url, asked)
        return parted.result
    finally:
        one.close()


def _ask(url: str, commands: Sequence[Words]) -> list[Any]:
    """What RQ's server answers. If it does not, its error is the answer to each."""
    try:
        with connected(url) as client:
            return wire.round_trip(client, commands)
    except BrokerError as error:
        return [redis.ConnectionError(str(error))] * len(commands)
    except redis.RedisError as error:
        return [error] * len(commands)


class _Parted(Generic[_T]):
    """An exchange that goes on until it asks RQ's server."""

    def __init__(self, whole: Exchange[_T]) -> None:
        self._whole = whole
        self._asked: Sequence[Words] | None = None  # its last round trip, with some for RQ's server; None: none yet
        self._answers: list[Any] = []  # what the broker has answered to the others of it
        self.result: _T

    def go_on(self, found: list[Any]) -> Exchange[list[Words]]:
        """Returns the next commands for RQ's server; none if the exchange has ended, and has `result`. `found`: the
        answers to those that it returned before."""
        try:
            commands = next(self._whole) if self._asked is None else self._whole.send(self._merged(found))
            while True:
                here = [words for words in commands if not isinstance(words, OnRq)]
                try:
                    answers = (yield here) if here else []
                except redis.RedisError as error:
                    commands = self._whole.throw(error)
                    continue
                if len(here) < len(commands):
                    self._asked, self._answers = commands, answers
                    return [words for words in commands if isinstance(words, OnRq)]
                commands = self._whole.send(answers)
        except StopIteration as end:
            self.result = end.value
            return []

    def _merged(self, found: list[Any]) -> list[Any]:
        assert self._asked is not None
        here, there = iter(self._answers), iter(found)
        return [next(there if isinstance(words, OnRq) else here) for words in self._asked]
