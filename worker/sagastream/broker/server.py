"""What a server says of itself, and what follows from it: can it be used, and what survives its crash."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from redis.exceptions import ResponseError

from sagastream.broker.exchange import Exchange
from sagastream.broker.wire import Words, or_raise

#: The least version; Valkey names the version of Redis that it is like.
OLDEST: Final = 7
#: Servers that cannot be used, by their mode.
_UNUSABLE: Final = {
    "cluster": "names a node of a cluster by its socket: name it by its host and port",
    "sentinel": "names a Sentinel: it is asked for the master with a url like redis+sentinel://HOST:26379/mymaster",
}


def unusable(mode: str, *, is_cluster: bool) -> str | None:
    """Why a server that works in this mode cannot be used; None: it can. `is_cluster`: whether the url leads to a
    cluster."""
    return None if is_cluster and mode == "cluster" else _UNUSABLE.get(mode)


def mode_of(hello: Any) -> str:
    """The mode in an answer of HELLO."""
    return _of_hello(hello, "mode")


def role_of(hello: Any) -> str:
    """The role in an answer of HELLO: master or replica."""
    return _of_hello(hello, "role")


def _of_hello(hello: Any, name: str) -> str:
    """What HELLO answers is a list in version 2 of the protocol of Redis."""
    words = [word.decode(errors="replace") if isinstance(word, bytes) else word for word in hello]
    return str(dict(zip(words[::2], words[1::2], strict=False)).get(name, ""))


def facts(info: bytes) -> dict[str, str]:
    """The fields of an answer of INFO."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def may(*commands: Words) -> Exchange[bool]:
    """Whether this user may call all these commands; True, too, if the server does not tell. Who may not need not try:
    it would be logged as an intrusion."""
    (user,) = yield [("ACL", "WHOAMI")]
    if not isinstance(user, bytes):
        return True
    answers = yield [("ACL", "DRYRUN", user, *words) for words in commands]
    return all(answer == b"OK" for answer in answers if isinstance(answer, bytes))


def settings(*names: str) -> Exchange[dict[str, str]]:
    """These settings of the server. Empty if it does not tell, or if the user may not ask: CONFIG GET would show the
    password of the default user, too, so the users of `sagastream acl` may not. Raises NodeAway."""
    if not (yield from may(("CONFIG", "GET", *names))):
        return {}
    (found,) = yield [("CONFIG", "GET", *names)]
    if isinstance(found, ResponseError):
        return {}
    words = [word.decode(errors="replace") for word in or_raise(found)]
    return dict(zip(words[::2], words[1::2], strict=True))


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server, by its answer to INFO."""

    version: str
    mode: str
    is_replica: bool
    maxmemory_policy: str

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> "Server":
        return cls(
            version=str(info["redis_version"]),
            mode=str(info.get("redis_mode", "")),
            is_replica=info.get("role") in ("slave", "replica"),
            maxmemory_policy=str(info.get("maxmemory_policy", "noeviction")),
        )

    def problem(self, *, is_cluster: bool) -> str | None:
        """Why it cannot be used at all; None: it can. The text follows the name of the server."""
        if int(self.version.split(".", maxsplit=1)[0]) < OLDEST:
            return f"names a server that is too old: {self.version}; sagastream needs Redis 7.0 or Valkey 8 or later"
        return unusable(self.mode, is_cluster=is_cluster)

    @property
    def may_drop(self) -> str | None:
        """Why it may drop sagas by itself; None: it does not."""
        if self.maxmemory_policy == "noeviction":
            return None
        return f"maxmemory-policy is {self.maxmemory_policy}: it may drop sagas; set noeviction"


def lost_by_crash(persistence: Mapping[str, Any], appendfsync: str | None) -> str | None:
    """What a crash or a power cut takes; None: nothing, or it is not known.

    `persistence`: that section of INFO. `appendfsync`: the setting, None if the server does not tell.
    """
    if not persistence.get("aof_enabled"):
        return "appendonly is off: a crash loses what was accepted; set appendonly yes and appendfsync always"
    if appendfsync in (None, "always"):
        return None
    lost = "the last second" if appendfsync == "everysec" else "the last half minute"
    return f"appendfsync is {appendfsync}: a power cut loses what was accepted in {lost}; set appendfsync always"
