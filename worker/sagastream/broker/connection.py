"""The way to the broker: REDIS_URL or the embedded Valkey, one client factory, and what to do while it is away."""

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from sagastream.broker.embedded import EmbeddedServer
from sagastream.console import say
from sagastream.core import backoff
from sagastream.errors import BrokerError, StoreMismatch
from sagastream.store import keys

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

#: How long one blocking read waits, in milliseconds: also how long a process may take to notice that it shall stop.
BLOCK_MS: Final = 500
#: How long an answer may take, in seconds, over and above a blocking read.
ANSWER_TIMEOUT_S: Final = 5.0

#: What every connection is told.
_OPTIONS: Final[dict[str, Any]] = {
    "socket_timeout": BLOCK_MS / 1000 + ANSWER_TIMEOUT_S,
    "socket_connect_timeout": ANSWER_TIMEOUT_S,
    "protocol": 2,  # one shape of answers from every server
}

_T = TypeVar("_T")

#: Errors that pass: the server is gone, loads, fails over, is full …
_AWAY: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)
#: … cannot write to its disk, has no replicas, runs a long script; redis-py has no classes for these.
_PASSING: Final = ("MISCONF", "NOREPLICAS", "BUSY ")


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
        given = bool(url)
        url = url or (os.environ.get("REDIS_URL") if home is None else None)
        self.embedded: EmbeddedServer | None = None
        self._restoring = threading.Lock()
        self._warned = False
        if not url:
            folder = home or os.environ.get("SAGASTREAM_HOME") or ".sagastream"
            self.embedded = EmbeddedServer(Path(folder))
            url = f"unix://{quote(str(self.embedded.socket_path))}"
        self.url = url
        try:
            if self.embedded is not None:
                self.embedded.ensure()
            self.client = connect(url) if given else _client(url, "REDIS_URL")
        except BaseException:  # a signal, too, must not leave a server behind
            if self.embedded is not None:
                self.embedded.leave()
            raise

    @property
    def shown_url(self) -> str:
        """The url, fit to be shown: without the password."""
        url = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", self.url)
        return re.sub(r"([?&]password=)[^&]*", r"\1***", url)

    def check(self) -> None:
        """Check that the server is new enough and that the store is laid out as this release expects.

        Raises BrokerError or StoreMismatch; a redis.RedisError where the server is away.
        """
        info: Any = self.client.info("server")
        version = str(info["redis_version"])
        if int(version.split(".", maxsplit=1)[0]) < 7:
            raise BrokerError(f"sagastream needs Redis 7.0 or Valkey 8 or later; this server is {version}")
        memory: Any = self.client.info("memory")
        if memory["maxmemory_policy"] != "noeviction" and not self._warned:
            self._warned = True
            say("broker", f"maxmemory-policy is {memory['maxmemory_policy']}: it may drop sagas; set noeviction")
        self.client.hsetnx(keys.STORE, "partitions", str(keys.PARTITIONS))
        laid_out: Any = self.client.hget(keys.STORE, "partitions")
        if laid_out != str(keys.PARTITIONS).encode():
            partitions = (laid_out or b"no").decode(errors="replace")
            raise StoreMismatch(
                f"the store was laid out for {partitions} partitions; this release runs {keys.PARTITIONS}"
            )

    def restore(self) -> None:
        """Bring an embedded server back that has gone; with REDIS_URL there is nothing we could do.

        Raises BrokerError if it does not answer at once; to be called again.
        """
        if self.embedded is not None:
            with self._restoring:
                self.embedded.ensure(patience_s=1.0)

    def close(self) -> None:
        """Let go of the connections; the last to leave an embedded server stops it."""
        self.client.close()
        if self.embedded is not None:
            self.embedded.leave()


def connect(url: str | None = None) -> redis.Redis:
    """A client with explicit timeouts and no retries of its own.

    redis-py would send a command again whose answer got lost, and so apply it twice; whoever uses this client
    looks first and then decides. By default of REDIS_URL, which services started by sagastream always have.
    """
    if url:
        return _client(url, "the url that was given")
    url = os.environ.get("REDIS_URL")
    if not url:
        raise BrokerError("REDIS_URL is not set")
    return _client(url, "REDIS_URL")


def broker_of(given: Broker | str | None) -> Broker:
    """What a client uses that was given a broker, its url, or nothing: then the broker of the environment."""
    if isinstance(given, Broker):
        return given
    if given is not None and not isinstance(given, str):
        raise TypeError(f"broker must be a Broker or a url, like redis://localhost:6379, not {type(given).__name__}")
    return Broker(given)


def connect_async(url: str) -> "ConnectionPool":
    """Connections for an event loop, as those of `connect`; few, for what asks for another one waits its turn."""
    from redis.asyncio import BlockingConnectionPool
    from redis.asyncio.retry import Retry

    retry = Retry(NoBackoff(), 0)
    return BlockingConnectionPool.from_url(url, retry=retry, max_connections=16, timeout=None, **_OPTIONS)


def _client(url: str, named: str) -> redis.Redis:
    """`named`: where the url is from."""
    try:
        return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **_OPTIONS)
    except ValueError as error:
        raise BrokerError(f"{named} is not usable: {error}") from None


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


def is_outage(error: redis.RedisError) -> bool:
    """Whether the broker is away for a while: such an error is waited out, any other is a fault."""
    if isinstance(error, redis.AuthenticationError):
        return False
    return isinstance(error, _AWAY) or (isinstance(error, redis.ResponseError) and str(error).startswith(_PASSING))


class Outage:
    """Waits while the broker is away, and says so on stderr: once when it goes, once when it is back.

    The threads of a process share one, so that the process says it once; each is away and back by itself.
    """

    def __init__(self, broker: Broker, who: str, stop: threading.Event) -> None:
        self._broker = broker
        self._who = who
        self._stop = stop
        self._lock = threading.Lock()
        self._tries: dict[int, int] = {}  # by thread, of those that cannot reach the broker
        self._said = ""

    def keep(self, turn: Callable[[], object], recover: Callable[[], None]) -> None:
        """Call `turn` again and again until the process is to stop; after each outage call `recover` first."""
        interrupted = False
        while not self._stop.is_set():
            try:
                if interrupted:
                    recover()
                    interrupted = False
                turn()
                self._succeeded()
            except redis.RedisError as error:
                self.wait(error)
                interrupted = True

    def patiently(self, call: Callable[[], _T], *, until: float = math.inf) -> _T:
        """The answer of `call`, however long the broker is away. It may be called twice, and must allow for it.

        Raises redis.RedisError if the process is to stop, or the monotonic clock shows `until`, before the broker is
        back.
        """
        while True:
            try:
                answer = call()
            except redis.RedisError as error:
                self.wait(error, at_most_s=until - time.monotonic())
                if self._stop.is_set() or time.monotonic() >= until:
                    raise
            else:
                self._succeeded()
                return answer

    def once(self, call: Callable[[], object]) -> None:
        """Call, and let it be if the broker is away: for what is only tidy."""
        with contextlib.suppress(redis.RedisError):
            call()

    def wait(self, error: redis.RedisError, *, at_most_s: float = math.inf) -> None:
        """After a failed call: wait until it may be tried again. Raises the error if it is not an outage."""
        if not is_outage(error):
            raise error
        me = threading.get_ident()
        with self._lock:
            tries = self._tries[me] = self._tries.get(me, 0) + 1
            is_news = tries == 1 and len(self._tries) == 1
        if is_news:
            say(self._who, f"the broker is away ({error}); waiting, nothing is lost")
        self._stop.wait(max(0.0, min(backoff.delay(tries), at_most_s)))
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

    def _succeeded(self) -> None:
        if not self._tries:
            return
        with self._lock:
            is_news = self._tries.pop(threading.get_ident(), None) is not None and not self._tries
        if is_news:
            self._said = ""
            say(self._who, "the broker is back")
