"""How a process connects to the broker: REDIS_URL or the embedded Valkey, and one client factory."""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sagastream.broker import exchange, sentinel, server, to_cluster, urls, which_home
from sagastream.broker.embedded import EmbeddedServer
from sagastream.broker.failures import is_outage
from sagastream.broker.hello import Hello
from sagastream.broker.home import HOME_VARIABLE
from sagastream.broker.nodes import clients, node_of, nodes_of, takes_time_at
from sagastream.broker.pool import Pool
from sagastream.errors import BrokerError
from sagastream.telemetry import SharedLog

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

#: How long one blocking read waits, in milliseconds. A process may take this long to notice that it has to stop.
BLOCK_MS: Final = 500
#: How long an answer may take, in seconds, on top of a blocking read.
ANSWER_TIMEOUT_S: Final = 5.0

#: What the names of all keys of a store begin with: by default, and in the environment.
DEFAULT_PREFIX: Final = "saga"
PREFIX_VARIABLE: Final = "SAGASTREAM_PREFIX"
_PREFIX: Final = re.compile(r"[a-z0-9_-]{1,32}", re.ASCII)

#: The options of every connection.
_OPTIONS: Final[dict[str, Any]] = {
    "socket_timeout": BLOCK_MS / 1000 + ANSWER_TIMEOUT_S,
    "socket_connect_timeout": ANSWER_TIMEOUT_S,
    "protocol": 2,  # one shape of answers from every server
    "driver_info": None,  # no CLIENT SETINFO: Redis 7.0 does not know it, so no user could be allowed to call it
}
#: Where a url is from, for a message.
_GIVEN: Final = "the url that was given"
_log: Final = SharedLog("broker", "broker")


class Broker:
    """A process's connection to the broker.

    `url`: REDIS_URL, or the unix socket of the embedded server. `embedded`: that server, None with REDIS_URL. `prefix`:
    what the names of all keys of the store begin with. `client` may be shared between threads.
    """

    def __init__(
        self,
        url: str | None = None,
        home: str | os.PathLike[str] | None = None,
        *,
        prefix: str | None = None,
        create: bool = True,
        port: int | None = None,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        """Open the broker that the environment names, or another one.

        Args:
            url: redis://, rediss:// or unix://, or redis+sentinel:// or rediss+sentinel://, which names the Sentinels
                that know the master. redis:// and rediss:// may name several nodes of one cluster, with commas between
                them. By default REDIS_URL.
            home: the folder of the embedded Valkey if there is no url; by default SAGASTREAM_HOME, else a folder for
                the current folder in the state folder of this user (XDG_STATE_HOME, by default ~/.local/state).
            prefix: of the store's keys, 1 to 32 characters of a-z 0-9 _ -; by default SAGASTREAM_PREFIX, else `saga`.
                Stores with different prefixes share a server, and do not see each other.
            create: make the store of the home if there is none yet; False: raise BrokerError.
            port: let the embedded Valkey also listen at this port of 127.0.0.1, with a password. By default it is
                reached by its socket alone.
            answer_timeout_s: how long an answer may take, on top of a blocking read.

        Raises:
            BrokerError: the url or the prefix is unusable, the embedded server does not start or runs without this
                port, there is none because there is a url, or others may write into the home.
        """
        self.prefix = prefix_of(prefix)
        given = bool(url)
        url = url or (os.environ.get("REDIS_URL") if home is None else None)
        self.embedded: EmbeddedServer | None = None
        self._restoring = threading.Lock()
        self._said: set[str] = set()
        #: What a crash of the server takes, as far as that is known; for the report of an outage.
        self.lost_by_crash: str | None = None
        if url and port is not None:
            raise BrokerError("a port is for the embedded Valkey, and the broker is another one, since there is a url")
        if not url:
            self.embedded = EmbeddedServer(Path(home) if home else which_home.chosen(create=create), port=port)
            if not create and not self.embedded.has_data:
                raise BrokerError(which_home.no_store(self.embedded.home))
        try:
            if self.embedded is not None:
                self.embedded.ensure()
                url = self.embedded.endpoint.url
            assert url
            self.url = url
            named = _GIVEN if given else "REDIS_URL"
            limits = {"socket_timeout": BLOCK_MS / 1000 + answer_timeout_s, "socket_connect_timeout": answer_timeout_s}
            self._hello = Hello(url, lambda: self.is_cluster)
            self.client = _client(url, named, redis_connect_func=self._hello.say, **limits)
        except BaseException:  # a signal, too, must not leave a server behind
            if self.embedded is not None:
                self.embedded.leave()
            raise

    @property
    def store(self) -> str:
        """Where the store is, for people to see: the folder of an embedded server, or the url without its password; and
        its prefix, if that is not the usual one."""
        where = str(self.embedded.home) if self.embedded is not None else self.shown_url
        return where if self.prefix == DEFAULT_PREFIX else f"{where} with the prefix {self.prefix}"

    @property
    def also_above(self) -> str | None:
        """If the store is that of the current folder, and a folder above has one too: that, as a sentence."""
        if self.embedded is None or (above := which_home.above(self.embedded.home)) is None:
            return None
        folder, home = above
        return f"this store is for the current folder; that of {folder} is another one: {HOME_VARIABLE}={home}"

    @property
    def connections(self) -> int:
        """How many connections the client has opened so far. If the server restarts between two commands, nothing
        fails: the client opens another connection, and only this number tells of it."""
        return self._hello.connections

    @property
    def is_cluster(self) -> bool:
        """Whether the url leads to a cluster. Only the server knows: before it has answered, this is False."""
        return nodes_of(self.client) is not None

    def node_of(self, key: str | None = None) -> urls.Address | None:
        """The node of the cluster that has this key; if that is away, or there is no key, one that answers. None: the
        broker is no cluster, as far as is known."""
        if (nodes := nodes_of(self.client)) is None:
            return None
        owner = None if key is None else node_of(self.client, key)
        return nodes.map.anybody() if owner is None or nodes.map.is_away(owner) else owner

    def takes_time_at(self, key: str) -> None:
        """On a cluster, ask the node of this key for the time, whenever a process asks. `exchange` and all else that
        uses `client` do so then."""
        takes_time_at(self.client.get_connection_kwargs(), key)

    def servers(self, *, answering: bool = False) -> dict[str, redis.Redis]:
        """A client for each server, by its address: of each master of a cluster, or of the one server ("").
        `answering`: not of the nodes that are known to be away. Raises redis.RedisError if nobody says which there
        are."""
        return clients(self.client, answering=answering)

    @property
    def shown_url(self) -> str:
        """The url without its password, for people to see."""
        return urls.shown(self.url)

    def check_server(self) -> None:
        """Check that the server can be used, and warn if it may drop sagas by itself.

        Raises BrokerError if it cannot be used, redis.RedisError if it is away, or is a replica by now. On a cluster,
        another node has the slots of one that is a replica by now: the map is asked for again.
        """
        for where, _, info in self._infos():
            found = server.Server.read(info)
            if (problem := found.problem(is_cluster=self.is_cluster)) is not None:
                raise BrokerError(f"{self.shown_url} {problem}")
            if found.is_replica:
                if (nodes := nodes_of(self.client)) is not None:
                    nodes.map.is_out_of_date()
                    continue
                raise redis.ReadOnlyError("this server is a replica: nothing can be written to it")
            self._warn(where, found.may_drop)

    def check_durability(self) -> None:
        """Warn if a crash of a server takes what it has accepted. Raises redis.RedisError if the server is away."""
        self.lost_by_crash = None
        for where, client, info in self._infos("persistence"):
            lost = server.lost_by_crash(info, self.appendfsync(client))
            self.lost_by_crash = self.lost_by_crash or lost
            self._warn(where, lost)

    def appendfsync(self, client: redis.Redis | None = None) -> str | None:
        """When the server writes to its disk what it has accepted: always, everysec or no; None: it does not tell.
        `client`: one of `servers`; by default any of them. Raises redis.RedisError if it is away."""
        if self.embedded is not None:
            return "always"
        return exchange.run(client or self.client, server.settings("appendfsync")).get("appendfsync")

    def _infos(self, *sections: str) -> Iterator[tuple[str, redis.Redis, Any]]:
        """What the servers that answer say of themselves. Raises redis.RedisError if none does."""
        servers = self.servers()
        errors: list[redis.RedisError] = []
        for where, client in servers.items():
            try:
                info = client.info(*sections)
            except redis.RedisError as error:
                errors.append(error)
            else:
                yield where or self.shown_url, client, info
        if len(errors) == len(servers):
            raise next((error for error in errors if not is_outage(error)), errors[0])

    def _warn(self, where: str, text: str | None) -> None:
        """Once of each: it is looked at again after every outage."""
        if text is not None and (said := f"{where}: {text}") not in self._said:
            self._said.add(said)
            _log.warning(said)

    def restore(self) -> None:
        """Start an embedded server again that has died. With REDIS_URL, this does nothing.

        Raises BrokerError if it does not answer within a second; call again then.
        """
        if self.embedded is not None:
            with self._restoring:
                self.embedded.ensure(patience_s=1.0)

    def close(self) -> None:
        """Close the connections. The last process to leave an embedded server stops it."""
        self.client.close()
        if (nodes := nodes_of(self.client)) is not None:
            nodes.close()
        if self.embedded is not None:
            self.embedded.leave()


def prefix_of(given: str | None = None) -> str:
    """What the names of all keys of a store begin with: this, or what SAGASTREAM_PREFIX says. Raises BrokerError if it
    is unusable."""
    prefix = given or os.environ.get(PREFIX_VARIABLE) or DEFAULT_PREFIX
    if not _PREFIX.fullmatch(prefix):
        named = "prefix" if given else PREFIX_VARIABLE
        raise BrokerError(f"{named} must be 1 to 32 characters of a-z 0-9 _ -, not {prefix[:64]!a}")
    return prefix


def connect(url: str | None = None) -> redis.Redis:
    """A client with explicit timeouts and no retries of its own.

    redis-py would repeat a command whose answer was lost, and so apply it twice. Users of this client look first, and
    then decide. `url`: by default REDIS_URL, which is set in every service that sagastream starts.
    """
    if url:
        return _client(url, _GIVEN)
    url = os.environ.get("REDIS_URL")
    if not url:
        raise BrokerError("REDIS_URL is not set")
    return _client(url, "REDIS_URL")


def broker_of(given: Broker | str | None) -> Broker:
    """The broker of a client that was given a broker, a url, or nothing (then the one that the environment names)."""
    if isinstance(given, Broker):
        return given
    if given is not None and not isinstance(given, str):
        raise TypeError(f"broker must be a Broker or a url, like redis://localhost:6379, not {type(given).__name__}")
    return Broker(given)


def connect_async(url: str) -> "ConnectionPool":
    """Connections like those of a Broker, for an event loop: at most 16. A coroutine that needs one more waits."""
    from redis.asyncio import BlockingConnectionPool
    from redis.asyncio.retry import Retry

    from sagastream.broker import in_loop, to_cluster_in_loop

    def is_cluster() -> bool:
        return "nodes" in options and bool(options["nodes"].map.is_cluster)

    hello = Hello(url, is_cluster)
    options: dict[str, Any] = {"redis_connect_func": hello.say_in_loop, "max_connections": 16, "timeout": None}
    options |= _OPTIONS
    # Not from_url: it would put its own class of connections in the place of that of `options_in_loop`.
    if urls.names_sentinels(url):
        options |= in_loop.parsed(urls.sentinels(url).server) | sentinel.options_in_loop(url)
    elif url.startswith("unix"):
        options |= in_loop.parsed(url)
    else:
        options |= in_loop.parsed(urls.servers(url)[0]) | to_cluster_in_loop.options_in_loop(url)
    return BlockingConnectionPool(**options, retry=Retry(NoBackoff(), 0))


def _client(url: str, named: str, **options: Any) -> redis.Redis:
    """`named`: where the url comes from, for the error. `options`: of each connection."""
    try:
        urls.check(url)
        if url.startswith("rediss"):
            urls.check_files(url)
        if urls.names_sentinels(url):
            options |= sentinel.options(url)
            url = urls.sentinels(url).server
        elif not url.startswith("unix"):
            options = to_cluster.options(url) | options
            url, *_ = urls.servers(url)
        pool = Pool.from_url(url, retry=Retry(NoBackoff(), 0), **(_OPTIONS | options))
        return redis.Redis.from_pool(pool)  # and closes it
    except ValueError as error:
        raise BrokerError(f"{named} is not usable: {error}") from None
