"""The way to the broker: REDIS_URL or the embedded Valkey, one client factory, and what to do while it is away."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sagastream import backoff, keys
from sagastream.console import say
from sagastream.embedded import EmbeddedServer
from sagastream.errors import BrokerError, StoreMismatch

#: How long one blocking read waits, in milliseconds: also how long a process may take to notice that it shall stop.
BLOCK_MS: Final = 500
#: How long an answer may take, in seconds, over and above a blocking read.
ANSWER_TIMEOUT_S: Final = 5.0

#: What our connections are called in CLIENT LIST, with the pid behind it.
_CLIENT_NAME: Final = "sagastream-"

_T = TypeVar("_T")

#: The beginnings of errors that pass: the server loads, fails over, is full or cannot write.
_PASSING: Final = (
    "LOADING", "READONLY", "OOM", "MISCONF", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "BUSY",
)  # fmt: skip


class Broker:
    """One process's way to the broker.

    `url`: REDIS_URL, or the unix socket of the embedded server. `embedded`: that server, None with REDIS_URL.
    `client` may be shared between threads.
    """

    def __init__(self, url: str | None = None, home: str | os.PathLike[str] | None = None) -> None:
        """Open the broker of the environment, or another.

        Args:
            url: redis://, rediss:// or unix://; by default REDIS_URL.
            home: a folder for the embedded Valkey when there is no url; by default SAGASTREAM_HOME, else
                `.sagastream` in the current folder.

        Raises:
            BrokerError: the url is unusable, or the embedded server does not start.
        """
        url = url or (os.environ.get("REDIS_URL") if home is None else None)
        self.embedded: EmbeddedServer | None = None
        self._restoring = threading.Lock()
        if not url:
            folder = home or os.environ.get("SAGASTREAM_HOME") or ".sagastream"
            self.embedded = EmbeddedServer(Path(folder))
            self.embedded.ensure()
            url = f"unix://{quote(str(self.embedded.socket_path))}"
        self.url = url
        self.client = connect(url)

    def check(self) -> None:
        """Check that the server is new enough and that the store is laid out as this release expects.

        Raises BrokerError or StoreMismatch; a redis.RedisError where the server is away.
        """
        version = str(self.client.info("server")["redis_version"])
        if int(version.split(".", maxsplit=1)[0]) < 7:
            raise BrokerError(f"sagastream needs Redis 7.0 or Valkey 8 or later; this server is {version}")
        self.client.hsetnx(keys.STORE, "partitions", str(keys.PARTITIONS))
        partitions = int(self.client.hget(keys.STORE, "partitions") or 0)
        if partitions != keys.PARTITIONS:
            raise StoreMismatch(
                f"the store was laid out for {partitions} partitions; this release runs {keys.PARTITIONS}"
            )

    def restore(self) -> None:
        """Bring an embedded server back that has gone; with REDIS_URL there is nothing we could do."""
        if self.embedded is not None:
            with self._restoring:
                self.embedded.ensure()

    def close(self) -> None:
        """Let go of the connections; the last of ours to leave an embedded server stops it."""
        alone = self.embedded is not None and self._is_alone()
        self.client.close()
        if self.embedded is not None:
            self.embedded.leave(stop=alone)

    def _is_alone(self) -> bool:
        """Whether no other process of ours is connected. A redis-cli that somebody left open does not count."""
        try:
            names = {str(client["name"]) for client in self.client.client_list()}
        except redis.RedisError:
            return True
        return not any(name.startswith(_CLIENT_NAME) and name != _client_name() for name in names)


def connect(url: str | None = None) -> redis.Redis:
    """A client with explicit timeouts and no retries of its own.

    redis-py would send a command again whose answer got lost, and so apply it twice; whoever uses this client
    looks first and then decides. By default of REDIS_URL, which services started by sagastream always have.
    """
    url = url or os.environ.get("REDIS_URL")
    if not url:
        raise BrokerError("REDIS_URL is not set")
    options: dict[str, Any] = {
        "socket_timeout": BLOCK_MS / 1000 + ANSWER_TIMEOUT_S,
        "socket_connect_timeout": ANSWER_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "client_name": _client_name(),
        "protocol": 2,  # one shape of answers from every server
    }
    try:
        return redis.Redis.from_url(url, **options)
    except ValueError as error:
        raise BrokerError(f"REDIS_URL is not usable: {error}") from None


def _client_name() -> str:
    return f"{_CLIENT_NAME}{os.getpid()}"


def is_outage(error: redis.RedisError) -> bool:
    """Whether the broker is away for a while: such an error is waited out, any other is a fault."""
    if isinstance(error, redis.AuthenticationError):
        return False
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return True
    return isinstance(error, redis.ResponseError) and (
        str(error).startswith(_PASSING)
        or isinstance(error, redis.ReadOnlyError | redis.OutOfMemoryError | redis.exceptions.MasterDownError)
    )


class Outage:
    """Waits while the broker is away, and says so on stderr: once when it goes, once when it is back.

    Threads of one process share one, so that the process says it once.
    """

    def __init__(self, broker: Broker, who: str, stop: threading.Event) -> None:
        self._broker = broker
        self._who = who
        self._stop = stop
        self._tries = 0
        self._said = ""

    def wait(self, error: redis.RedisError) -> None:
        """After a failed call: wait until it may be tried again. Raises the error if it is not an outage."""
        if not is_outage(error):
            raise error
        self._tries += 1
        if self._tries == 1:
            say(self._who, f"the broker is away ({error}); waiting, nothing is lost")
        self._stop.wait(backoff.delay(self._tries))
        if not self._stop.is_set():
            self.restore()

    def restore(self) -> None:
        """Bring an embedded server back that has gone. One that does not start is told of, and tried again later:
        its disk may be full for a while."""
        try:
            self._broker.restore()
        except BrokerError as error:
            if str(error) != self._said:
                self._said = str(error)
                say(self._who, self._said)

    def over(self) -> None:
        """After a call that succeeded."""
        if self._tries:
            say(self._who, "the broker is back")
            self._tries = 0
            self._said = ""

    def patiently(self, call: Callable[[], _T]) -> _T:
        """The answer of `call`, however long the broker is away. It may be called twice, and must allow for it."""
        while True:
            try:
                answer = call()
            except redis.RedisError as error:
                self.wait(error)
            else:
                self.over()
                return answer
