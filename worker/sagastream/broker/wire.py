"""Sends commands to the broker, and reads the answers, over redis-py's connections but without its work in Python for
each word and each answer: that would be most of the time of a turn.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from hiredis import pack_command
from msgspec import Raw, msgpack
from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from sagastream.broker.failures import NodeAway, is_demoted, is_outage, may_be_former

if TYPE_CHECKING:
    import redis

Words = Sequence[str | bytes | int]

_PACKER: Final = msgpack.Encoder()


def round_trip(client: "redis.Redis", commands: Sequence[Words]) -> list[Any]:
    """The answers to these commands, as the server gives them. An error that it answers is returned, not raised; and so
    is NodeAway, in the place of the answer of a node of a cluster."""
    with connection(client) as one:
        send(one, commands)
        return answers(one, len(commands))


@contextmanager
def connection(client: "redis.Redis") -> Iterator[Any]:
    """A connection of the client, lent for the `with` block. If that raises, the connection is closed: an answer may
    still be on its way. It is also closed, and all that are idle with it, if the server is the master no more."""
    pool = client.connection_pool
    one: Any = pool.get_connection()
    try:
        yield one
    except BaseException:
        one.disconnect()
        raise
    finally:
        if one.should_reconnect():
            pool.disconnect(inuse_connections=False)
        pool.release(one)


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
