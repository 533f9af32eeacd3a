"""Commands to the broker that are many or long: written and read as redis-py does, but for what it does with each word
and each answer in Python, which is most of the time that a turn would take.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from hiredis import pack_command
from msgspec import Raw, msgpack
from redis.client import Pipeline
from redis.exceptions import ResponseError

if TYPE_CHECKING:
    import redis

Words = Sequence[str | bytes | int]

_PACKER: Final = msgpack.Encoder()


def round_trip(client: "redis.Redis", commands: Sequence[Words]) -> list[Any]:
    """The answers to these commands, as the server gives them, refusals among them."""
    with connection(client) as one:
        send(one, commands)
        return answers(one, len(commands))


@contextmanager
def connection(client: "redis.Redis") -> Iterator[Any]:
    """A connection of the client's, for as long as this is in use. Left by an exception, it is closed: an answer may
    still be on its way."""
    pool = client.connection_pool
    one: Any = pool.get_connection()
    try:
        yield one
    except BaseException:
        one.disconnect()
        raise
    finally:
        pool.release(one)


def send(connection: Any, commands: Sequence[Words]) -> None:
    """Send these, and wait for no answer."""
    connection.send_packed_command([pack(commands)])


def answers(connection: Any, count: int) -> list[Any]:
    """The next answers that come, refusals among them."""
    return [_answer(connection) for _ in range(count)]


def pack(commands: Sequence[Words]) -> bytes:
    """These commands as they are sent, in one piece: redis-py writes each item of a list to the socket by itself."""
    return b"".join([pack_command(tuple(words)) for words in commands])  # type: ignore[arg-type]  # it takes any word


def message_pack(value: Any) -> bytes:
    """A value in MessagePack, for a script that takes many words: as one, they cost a tenth of the time here, and the
    server parses one. There, cmsgpack knows no type for bytes: they have to be `raw`."""
    return _PACKER.encode(value)


def raw(data: bytes) -> Raw:
    """Bytes, of whatever kind, as cmsgpack reads them: as it reads text."""
    return Raw(b"\xdb" + len(data).to_bytes(4, "big") + data)


def milliseconds(time: Any) -> int:
    """What TIME answered, in ms since the epoch."""
    seconds, micros = time
    return int(seconds) * 1000 + int(micros) // 1000


def execute(pipeline: Pipeline) -> list[Any]:
    """A pipeline's answers; the first error among them is raised as the server gave it.

    redis-py would put the whole command before it, payloads and all, and hide what kind of error it is.
    """
    return [or_raise(answer) for answer in pipeline.execute(raise_on_error=False)]


def or_raise(answer: Any) -> Any:
    """An answer of a pipeline, raised if it is an error."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
