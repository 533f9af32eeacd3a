"""Exchanges with the broker, without the transport of their bytes.

An exchange is a generator. It yields the commands of one round trip, receives their answers as `wire.round_trip`
returns them, and returns its result. So the questions, and the meaning of the answers, are written once, for callers
that block and for callers in an event loop.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError, ResponseError

from sagastream.broker import wire
from sagastream.broker.failures import NodeAway

if TYPE_CHECKING:
    import redis
    from redis.asyncio import ConnectionPool

_T = TypeVar("_T")
_U = TypeVar("_U")

Exchange = Generator[Sequence[wire.Words], list[Any], _T]


def together(first: Exchange[_T], second: Exchange[_U]) -> Exchange[tuple[_T, _U]]:
    """Both at once, in the same round trips: the commands of the first, then those of the second. If one of them
    raises what the broker has answered, or that a node is away, the other goes on to its end; but its result is lost.
    """
    exchanges: list[Exchange[Any]] = [first, second]
    found = yield from all_of(exchanges)
    return found[0], found[1]


def all_of(exchanges: Sequence[Exchange[_T]]) -> Exchange[list[_T]]:
    """All at once, as `together`."""
    found = yield from each_of(exchanges)
    return [wire.or_raise(one) for one in found]


def each_of(exchanges: Sequence[Exchange[_T]]) -> Exchange[list[_T | RedisError]]:
    """All at once, in the same round trips. If one of them raises what the broker has answered, or that a node is away,
    that error stands in the place of its result: what others have found counts."""
    found: list[Any] = [None] * len(exchanges)
    asked: dict[int, Sequence[wire.Words]] = {}
    for number, one in enumerate(exchanges):
        try:
            asked[number] = next(one)
        except StopIteration as end:
            found[number] = end.value
    while asked:
        answers = iter((yield [command for commands in asked.values() for command in commands]))
        for number, commands in list(asked.items()):
            try:
                asked[number] = exchanges[number].send(list(islice(answers, len(commands))))
            except StopIteration as end:
                found[number] = end.value
                del asked[number]
            except (ResponseError, NodeAway) as error:
                found[number] = error
                del asked[number]
    return found


def locked(exchange: Exchange[_T], lock: AbstractContextManager[object]) -> Exchange[_T]:
    """The same exchange, for threads that share what it changes: it goes on only under the lock, and leaves the lock
    to others during each round trip."""
    answers: Any = None
    failure: RedisError | None = None
    while True:
        with lock:
            try:
                commands = exchange.send(answers) if failure is None else exchange.throw(failure)
            except StopIteration as end:
                result: _T = end.value
                return result
        try:
            answers, failure = (yield commands), None
        except RedisError as error:
            failure = error


def run(client: "redis.Redis", exchange: Exchange[_T]) -> _T:
    """What the exchange returns. If a round trip fails, its error is thrown into the exchange, which handles or raises
    it."""
    return _go_on(client, exchange)


def run_each(client: "redis.Redis", exchanges: Iterable[Exchange[_T]]) -> list[_T]:
    """What these exchanges return, in their order. Each is sent before the next one is taken from the iterable, so the
    caller prepares the next one while the broker works. Answers are read when all are sent. If sending fails, or the
    reading of the first answers, the error is raised here, and no exchange goes on."""
    with wire.connection(client) as connection:
        begun = []
        for exchange in exchanges:
            commands = next(exchange)
            wire.send(connection, commands)
            begun.append((exchange, len(commands)))
        answered = [(exchange, wire.answers(connection, count)) for exchange, count in begun]
    return [_go_on(client, exchange, answers) for exchange, answers in answered]


def _go_on(client: "redis.Redis", exchange: Exchange[_T], answers: Any = None) -> _T:
    """What the exchange returns when it goes on with these answers; None: from its beginning."""
    try:
        commands = exchange.send(answers)
        while True:
            try:
                answers = wire.round_trip(client, commands)
            except RedisError as error:
                commands = exchange.throw(error)
            else:
                commands = exchange.send(answers)
    except StopIteration as end:
        result: _T = end.value
        return result


async def run_async(pool: "ConnectionPool", exchange: Exchange[_T]) -> _T:
    """Like `run`, in an event loop. If cancelled during a round trip, it closes the connection."""
    try:
        commands = next(exchange)
        while True:
            try:
                answers = await _round_trip(pool, commands)
            except RedisError as error:
                commands = exchange.throw(error)
            else:
                commands = exchange.send(answers)
    except StopIteration as end:
        result: _T = end.value
        return result
    finally:
        exchange.close()


async def _round_trip(pool: "ConnectionPool", commands: Sequence[wire.Words]) -> list[Any]:
    connection: Any = await pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py has no type for it
    try:
        if (send_words := getattr(connection, "send_words", None)) is not None:  # it may lead to a cluster
            await send_words(commands)
        else:
            await connection.send_packed_command([wire.pack(commands)])
        return [await _answer(connection) for _ in commands]
    except BaseException:
        await connection.disconnect(nowait=True)  # an answer may still be on its way
        raise
    finally:
        if connection.should_reconnect():
            await pool.disconnect(inuse_connections=False)
        await pool.release(connection)


async def _answer(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except (ResponseError, NodeAway) as error:
        wire.note(connection, error)
        return error
