"""Sends commands to the broker, and reads the answers, over redis-py's connections but without its work in Python for
each word and each answer: that would be most of the time of a turn.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from hiredis import pack_command
from msgspec import Raw, msgpack
from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from sagastream.broker.failures import NodeAway, is_demoted, is_outage, may_be_former

if TYPE_CHECKING:
    import redis

Words = Sequence[str | bytes | int]

_PACKER: Final = msgpack.Encoder()


class Later:
    """Answers that are still to come, and the connection over which they do: nobody else uses it until then."""

    def __init__(self, pool: Any, connection: Any, count: int) -> None:
        self._pool = pool
        self._connection = connection
        self._count = count

    def are_there(self, within_s: float) -> bool:
        """Whether the first of them comes within so many seconds. Raises redis.RedisError."""
        try:
            return bool(self._connection.can_read(within_s))
        except BaseException:
            self.give_up()
            raise

    def taken(self) -> list[Any]:
        """Them, errors among them; waits until they are there. May be called once. Raises redis.RedisError."""
        with _Lent(self._pool, self._connection) as lent:
            return answers(lent.connection, self._count)

    def give_up(self) -> None:
        """Do without them: close the connection."""
        self._connection.disconnect()
        self._pool.release(self._connection)


class Leaving(list[Words]):
    """The commands of a round trip that does not wait for all answers: `take` is given what is to come of the `last`
    commands. `round_trip` and `exchange.run_each` do so; for others these are commands like any."""

    def __init__(self, commands: Sequence[Words], last: Sequence[Words], take: Callable[[Later], object]) -> None:
        super().__init__([*commands, *last])
        self.later = len(last)
        self.take = take


class _Lent:
    """A connection of a pool, lent for a `with` block. If that raises, the connection is closed: an answer may still be
    on its way. It is also closed, and all that are idle with it, if the server is the master no more."""

    def __init__(self, pool: Any, connection: Any = None) -> None:
        """`connection`: one that was lent before; None: the pool lends one."""
        self._pool = pool
        self.connection = pool.get_connection() if connection is None else connection
        self._leaving: Leaving | None = None

    def __enter__(self) -> Self:
        return self

    def answers(self, commands: Sequence[Words]) -> list[Any]:
        """The answers to these commands, which were sent, besides those that come later."""
        if isinstance(commands, Leaving):
            self._leaving = commands
            return answers(self.connection, len(commands) - commands.later)
        return answers(self.connection, len(commands))

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._leaving is not None:
            self._leaving.take(Later(self._pool, self.connection, self._leaving.later))
            return
        if kind is not None:
            self.connection.disconnect()
        if self.connection.should_reconnect():
            self._pool.disconnect(inuse_connections=False)
        self._pool.release(self.connection)


def lent(client: "redis.Redis") -> _Lent:
    """A connection of this client, for a `with` block."""
    return _Lent(client.connection_pool)


def round_trip(client: "redis.Redis", commands: Sequence[Words]) -> list[Any]:
    """The answers to these commands, as the server gives them. An error that it answers is returned, not raised; and so
    is NodeAway, in the place of the answer of a node of a cluster."""
    with _Lent(client.connection_pool) as one:
        send(one.connection, commands)
        return one.answers(commands)


def close_idle(client: "redis.Redis") -> None:
    """Close the connections that nobody uses now. The next one looks the address up again: it may be another server by
    then."""
    client.connection_pool.disconnect(inuse_connections=False)


def send(connection: Any, commands: Sequence[Words]) -> None:
    """Send these commands; read no answer."""
    if (send_words := getattr(connection, "send_words", None)) is not None:  # it may lead to a cluster
        send_words(commands)
    else:
        connection.send_packed_command([pack(commands)])


def answers(connection: Any, count: int) -> list[Any]:
    """The next answers, errors among them."""
    return [_answer(connection) for _ in range(count)]


def pack(commands: Sequence[Words]) -> bytes:
    """The bytes of these commands, in one piece: redis-py would write each item of a list to the socket by itself."""
    return b"".join([pack_command(tuple(words)) for words in commands])  # type: ignore[arg-type]  # it takes any word


def message_pack(value: Any) -> bytes:
    """A value in MessagePack, for a script that takes many words. As one word they cost a tenth of the time here, and
    the server parses only one. Bytes must be `raw`: cmsgpack, in the server, has no type for them."""
    return _PACKER.encode(value)


def raw(data: bytes) -> Raw:
    """Bytes in the form in which cmsgpack reads them: as a text."""
    return Raw(b"\xdb" + len(data).to_bytes(4, "big") + data)


def milliseconds(time: Any) -> int:
    """An answer of TIME, in milliseconds since the epoch."""
    seconds, micros = time
    return int(seconds) * 1000 + int(micros) // 1000


def execute(pipeline: Pipeline) -> list[Any]:
    """The answers of a pipeline. The first error among them is raised as the server gave it.

    redis-py would put the whole command, payloads and all, before the text, and hide the kind of the error.
    """
    return [or_raise(answer) for answer in pipeline.execute(raise_on_error=False)]


def or_raise(answer: Any) -> Any:
    """An answer; if it is an error, raises it."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def unless_refused(answer: Any, instead: Any) -> Any:
    """An answer; something else if the server refuses to give it, as for a key of another type. Raises the error if
    that only says that it cannot answer now."""
    if not isinstance(answer, RedisError):
        return answer
    if is_outage(answer):
        raise answer
    return instead


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except (ResponseError, NodeAway) as error:
        note(connection, error)
        return error


def note(connection: Any, error: ResponseError | NodeAway) -> None:
    """Have the connection closed when it is given back, if this error says that it leads to a replica, or may lead to a
    former master."""
    if is_demoted(error) or may_be_former(error):
        connection.mark_for_reconnect()
