"""Connections to the master that Sentinels name, whichever server that is at the time.

Each new connection asks the Sentinels, and so finds the new master after a failover. redis-py has such connections too,
in pools of their own. Those are not used: they take the READONLY of a former master for a lost connection, after which
nobody knows whether a command was done, and their error does not say what each Sentinel answered.
"""

import threading
from collections.abc import Generator, Mapping
from typing import Any, Final, NamedTuple

import redis
from redis.asyncio.retry import Retry as RetryInLoop
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, parse_url
from redis.retry import Retry

from sagastream.broker import in_loop, server, urls
from sagastream.broker.failures import NoMaster, SentinelsRefuse, greeting, is_outage, reason
from sagastream.broker.urls import Address
from sagastream.telemetry import SharedLog

#: How long a Sentinel may take to accept a connection, and to answer, in seconds. Usually it is asked anew at the next
#: try, and the others are there for the case that it is slow.
_PATIENCE_S: Final = 1.0
_OPTIONS: Final[Mapping[str, Any]] = {
    "socket_timeout": _PATIENCE_S,
    "socket_connect_timeout": _PATIENCE_S,
    "protocol": 2,
    "driver_info": None,
}
#: What a Sentinel says of a master that it would not send anybody to.
_DOWN: Final = {"o_down": "said that it is down", "s_down": "said that it seems to be down"}
#: How it begins if a Sentinel has named a server that is no master.
_IS_AT: Final = "said that it is at"
_NO_ADDRESS: Final = "gave an answer that names no address: is it a Sentinel?"
_log: Final = SharedLog("broker", "broker")


class Ask(NamedTuple):
    """Ask the Sentinel of this url about the master."""

    url: str
    command: tuple[str, ...]


#: A search for the master. It yields what to do next: to ask a Sentinel, or to connect to an address. It is sent what
#: came of it: the answer, None for a connection that stands, or the error.
Search = Generator[Ask | Address, Any, None]


class Said(NamedTuple):
    """What a Sentinel says or, if it leads to no master, why not."""

    sentinel: Address | None
    text: str
    error: redis.RedisError


class Sentinels:
    """The Sentinels of one master, for all connections of a client."""

    def __init__(self, named: urls.SentinelUrl) -> None:
        self._named = named
        self._order = list(named.sentinels)  # that which knew the master last comes first
        self._lock = threading.Lock()
        #: Where the master was found last; None: not yet.
        self.master: Address | None = None

    def __reduce__(self) -> Any:  # RQ sends the options of connections to processes that it starts
        return Sentinels, (self._named,)

    def search(self) -> Search:
        """Ends when there is a connection to a server that says that it is the master.

        Raises NoMaster if there is none for a while, and what is wrong with a login or a certificate if that is why.
        """
        said: list[Said] = []
        tried: dict[Address, Said] = {}
        for sentinel in tuple(self._order):
            answer = yield Ask(self._named.sentinels[sentinel], ("SENTINEL", "MASTER", self._named.master))
            found = failed(answer) if isinstance(answer, redis.RedisError) else found_in(answer)
            if isinstance(found, Address):
                if found not in tried:
                    failure = yield found
                    if failure is None:
                        self._note(sentinel, found)
                        return
                    if not is_outage(failure):
                        raise failure
                    tried[found] = Said(sentinel, f"{_IS_AT} {found}: {reason(failure)}", failure)
                found = tried[found]
            said.append(found._replace(sentinel=sentinel))
        raise self._none(said)

    def _none(self, said: list[Said]) -> redis.RedisError:
        texts = {one.text: ", ".join(str(other.sentinel) for other in said if other.text == one.text) for one in said}
        told = "; ".join(f"{who} {text}" for text, who in texts.items())
        error = NoMaster(f"no Sentinel leads to the master {self._named.master}: {told}")
        error.is_watched = any(text.startswith((_IS_AT, *_DOWN.values())) for text in texts)
        # If all of them refuse the login or cannot be trusted, waiting mends nothing.
        error.__cause__ = next((one.error for one in said if is_outage(one.error)), said[0].error)
        if isinstance(error.__cause__, redis.AuthenticationError):
            return SentinelsRefuse(str(error))
        return error

    def _note(self, sentinel: Address, master: Address) -> None:
        with self._lock:
            before, self.master = self.master, master
            self._order.sort(key=lambda one: one != sentinel)
        if before not in (None, master):
            _log.warning(f"the master {self._named.master} is at {master} now; before, it was at {before}")

    def is_elsewhere(self, host: str, port: int) -> bool:
        """Whether the master was found at another address since."""
        return self.master not in (None, (host, port))


def facts(answer: Any) -> dict[str, str]:
    """The fields of an answer to SENTINEL MASTER; none if a Sentinel would not answer so."""
    if not isinstance(answer, list) or not all(isinstance(word, bytes) for word in answer):
        return {}
    words = [word.decode(errors="replace") for word in answer]
    return dict(zip(words[::2], words[1::2], strict=False))


def found_in(answer: Any) -> Address | Said:
    """What a Sentinel says of the master, by its answer to SENTINEL MASTER."""
    fields = facts(answer)
    flags = fields.get("flags", "").split(",")
    if down := next((text for flag, text in _DOWN.items() if flag in flags), None):
        return Said(None, down, redis.ConnectionError(down))
    host, port = fields.get("ip", ""), fields.get("port", "")
    if not (urls.is_host(host) and urls.is_port(port)):
        return Said(None, _NO_ADDRESS, redis.ConnectionError(_NO_ADDRESS))
    return Address(host, int(port))


def failed(error: redis.RedisError) -> Said:
    """What is said of a Sentinel that gave no answer, or this one."""
    if isinstance(error, redis.ResponseError) and "No such master" in str(error):
        return Said(None, "said that it knows no such master", redis.ConnectionError(str(error)))
    return Said(None, f"could not be asked: {reason(error)}", error)


def _replica(connection: Any) -> redis.ReadOnlyError:
    return redis.ReadOnlyError(f"{Address(connection.host, connection.port)} is a replica")


def options(url: str) -> dict[str, Any]:
    """What a client in redis-py needs besides the url of the server, for a url that names Sentinels."""
    secure = url.startswith("rediss")
    return {"connection_class": _SSLToMaster if secure else _ToMaster, "sentinels": Sentinels(urls.sentinels(url))}


def options_in_loop(url: str) -> dict[str, Any]:
    """As `options`, for clients in an event loop."""
    secure = url.startswith("rediss")
    kind = _SSLToMasterInLoop if secure else _ToMasterInLoop
    return {"connection_class": kind, "sentinels": Sentinels(urls.sentinels(url))}


# redis-py calls `connect` of a connection each time when it lends it, and connect_check_health if it is not connected.
# on_connect_check_health is the login.


class _ToMaster(Connection):
    """A connection to the master."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        self._sentinels = sentinels
        super().__init__(**options)  # type: ignore[no-untyped-call]  # redis-py has no type for it

    @property
    def _is_open(self) -> bool:
        socket: Any = self._sock
        return socket is not None

    def connect(self) -> None:
        if self._is_open and self._sentinels.is_elsewhere(self.host, self.port):
            self.disconnect()  # type: ignore[no-untyped-call]
        super().connect()  # type: ignore[no-untyped-call]

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if self._is_open:
            return
        search = self._sentinels.search()
        try:
            to_do = next(search)
            while True:
                to_do = search.send(self._do(to_do, check_health, retry_socket_connect))
        except StopIteration:
            return

    def _do(self, to_do: Ask | Address, *options: bool) -> Any:
        try:
            if isinstance(to_do, Ask):
                return ask(to_do)
            self.host, self.port = to_do
            super().connect_check_health(*options)
        except redis.RedisError as error:
            return error
        return None

    def on_connect_check_health(self, check_health: bool = True) -> None:
        super().on_connect_check_health(check_health)
        self.send_command("HELLO")  # type: ignore[no-untyped-call]
        if server.role_of(self.read_response()) == "replica":
            raise _replica(self)


class _SSLToMaster(_ToMaster, SSLConnection):
    pass


def ask(question: Ask) -> Any:
    """What a Sentinel answers. Raises redis.RedisError."""
    options = {"connection_class": Connection, **parse_url(question.url), **_OPTIONS}  # type: ignore[no-untyped-call]
    connection: Any = options.pop("connection_class")(**options, retry=Retry(NoBackoff(), 0))
    try:
        with greeting(may_want_tls=question.url.startswith("redis:")):
            connection.connect()
            connection.send_command(*question.command)
            return connection.read_response()
    finally:
        connection.disconnect()


class _ToMasterInLoop(in_loop.Connection):
    """A connection to the master, in an event loop."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        self._sentinels = sentinels
        super().__init__(**options)

    async def connect(self) -> None:
        if self.is_connected and self._sentinels.is_elsewhere(self.host, self.port):
            await self.disconnect()
        await super().connect()  # type: ignore[no-untyped-call]

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if self.is_connected:
            return
        search = self._sentinels.search()
        try:
            to_do = next(search)
            while True:
                to_do = search.send(await self._do(to_do, check_health, retry_socket_connect))
        except StopIteration:
            return

    async def _do(self, to_do: Ask | Address, *options: bool) -> Any:
        try:
            if isinstance(to_do, Ask):
                return await _ask_in_loop(to_do)
            self.host, self.port = to_do
            await super().connect_check_health(*options)
        except redis.RedisError as error:
            return error
        return None

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        await self.send_command("HELLO")
        if server.role_of(await self.read_response()) == "replica":
            raise _replica(self)


class _SSLToMasterInLoop(_ToMasterInLoop, in_loop.SSLConnection):
    pass


async def _ask_in_loop(question: Ask) -> Any:
    options = {**in_loop.parsed(question.url), **_OPTIONS}
    connection: Any = options.pop("connection_class")(**options, retry=RetryInLoop(NoBackoff(), 0))
    try:
        with greeting(may_want_tls=question.url.startswith("redis:")):
            await connection.connect()
            await connection.send_command(*question.command)
            return await connection.read_response()
    finally:
        await connection.disconnect(nowait=True)
