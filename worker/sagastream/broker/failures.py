"""What an error of the broker means: does it pass by itself, and is this server still the one to talk to?

This is the only list. Every process and every client asks it.
"""

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

import redis


class Unreached(redis.ConnectionError):
    """None of several answers: nothing was sent to anybody."""


class NoMaster(Unreached):
    """No Sentinel leads to a master that answers."""

    #: Whether a Sentinel knows the master: then it is likely to name another one soon.
    is_watched: bool = False


class SentinelsRefuse(redis.AuthenticationError):
    """No Sentinel lets this process in, so nobody leads to the master."""


class NoNode(Unreached):
    """None of the nodes of a cluster answers that the url names."""


class NodeAway(redis.ConnectionError):
    """One node of a cluster is away. The others are not, so this is an answer in its place, and is not raised there."""

    def __init__(self, text: str, *, was_sent: bool) -> None:
        """`was_sent`: whether the node may have done what it was asked."""
        super().__init__(text)
        self.was_sent = was_sent


class NodeRefuses(NodeAway):
    """One node of a cluster does not let this process in, and others do. So it is away for this process. It is not
    waited for where a person waits: it lets nobody in until somebody has changed something there."""


class Called(NamedTuple):
    """What people know a server by."""

    name: str
    variable: str  # of the environment, which has its url


THE_BROKER: Final = Called("the broker", "REDIS_URL")
#: Errors that pass: the server is gone, loads its data, is a replica by now, has no master, is full …
_AWAY: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.AskError,  # of which MovedError is one; in a transaction, they are not followed
)
#: … or cannot write to its disk, has no replicas, runs a long script, has ended a blocking read. redis-py has no
#: classes for these. In a pipeline it puts the command before the text. EXEC tells why a transaction was refused.
_PASSING: Final = re.compile(
    r"(?:^|caused error: )(?:MISCONF|NOREPLICAS|BUSY|UNBLOCKED) "
    r"|because of: (?:READONLY|OOM|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|LOADING) "
)
#: … or a stream takes no more entries: somebody has added one with the greatest id that there is. `sagastream doctor
#: --repair` mends that, so it passes, too.
_EXHAUSTED: Final = "The stream has exhausted the last possible ID"
#: The user may not do what was asked.
_DENIED: Final = re.compile(
    r"(?:^|: )NOPERM |^(?:ERR )?(?:ACL failure in script: |The user executing the script can't )"
)
#: A node says that its whole cluster is down. All other errors that begin with CLUSTERDOWN are about single slots.
_CLUSTER_DOWN: Final = re.compile(r"(?:^|: )(?:CLUSTERDOWN )?The cluster is down\b")
#: Why a blocking read ended: its key is gone …
_KEY_IS_GONE: Final = "UNBLOCKED the stream key no longer exists"
#: … or the server has become a replica; the latter also ends transactions.
_IS_REPLICA: Final = re.compile(r"^UNBLOCKED .*instance state changed|because of: (?:READONLY|MASTERDOWN) ")

#: What a person is told of what a server answers, by a pattern of how its text begins. `who`: the server, or the node
#: or slot that it is about; `url`: the variable that has its url; `said`: what it has answered …
_MEANINGS: Final[Mapping[str, str]] = {
    "OOM": "{who} is full: raise maxmemory, or wait until sagas have expired",
    "READONLY": "{who} is a replica: nothing can be written to it; name its master",
    "MISCONF": "{who} cannot write to its disk, and takes no writes: look at its log and its disk ({said})",
    "NOREPLICAS": "{who} takes no writes without its replicas: look at them, or set min-replicas-to-write lower",
    "TRYAGAIN": "{who} is on its way to another node, with a part of its keys there; if nothing moves it any more: "
    "redis-cli --cluster fix HOST:PORT",
    "(?:CLUSTERDOWN )?The cluster is down": "{who} says that the cluster is down, so it takes nothing: too many "
    "masters are away, or one is and cluster-require-full-coverage is yes; sagastream doctor names them",
    "WRONGTYPE": "{said}; sagastream doctor tells which key it is",
    "SELECT is not allowed in cluster mode": "a cluster has one database: name no number in {url} ({said})",
    "DB index is out of range": "{who} has no database of that number: look at {url} ({said})",
}
#: … who that is instead, if the broker says it and no node of a cluster is named …
_WHO: Final[Mapping[str, str]] = {"OOM": "the store", "TRYAGAIN": "a slot of the cluster"}
#: … and the class of the error: redis-py has taken the beginning away from some texts.
_CLASSES: Final[Mapping[str, type[redis.RedisError]]] = {
    "OOM": redis.OutOfMemoryError,
    "READONLY": redis.ReadOnlyError,
    "TRYAGAIN": redis.exceptions.TryAgainError,
}
#: What else there is to say if nobody listens where the broker should be.
_ENDED: Final = "If it ended by itself, look at its log and its disk: with appendfsync always, a full disk ends it"
#: Stands between the name of a node of a cluster and what it says of a login.
SAYS: Final = " says: "
#: What there is to do if one node does not let a process in.
_ON_EACH_NODE: Final = "a cluster copies no users, so make this one there, too"
#: What a person is told if the user may not do something; and if only one node says so.
_MAY_NOT: Final = "the user in {url} may not do this: {said}"
_DENIES: Final = "{who} denies this to the user in {url}: {said}"
#: … and what there is to do, if `said` does not end with it.
_ACL: Final = "; sagastream acl "
_PRINTS: Final = "{role} prints the user that a role needs"
_PRINTS_ONE: Final = "{role} prints one who may"
_PRINTS_FOR_ALL: Final = "{role} --cluster prints it for all nodes"
#: What a server answers to a process that has not logged in.
_NO_LOGIN: Final = ("HELLO must be called with the client already authenticated", "Authentication required")
_REFUSED: Final = "{who} does not take the certificate of this process: see ssl_certfile and ssl_keyfile"
#: A connection that stood has ended, in the words of redis-py.
_WAS_ENDED: Final = re.compile(r"while (?:reading|writing)|closed by server", re.IGNORECASE)
#: What TLS begins with, in the words of the error if no answer to that comes.
HANDSHAKE: Final = "handshake"
#: What there is to change in a url, whatever else its scheme says (rediss+sentinel://, …).
_WITHOUT_TLS: Final = "write redis for rediss in its url"
_WITH_TLS: Final = "write rediss for redis in its url"
#: Reasons of OpenSSL for which a connection will never be made.
_REASONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            "TLSV1_ALERT_UNKNOWN_CA",
            "SSLV3_ALERT_BAD_CERTIFICATE",
            "SSLV3_ALERT_CERTIFICATE_EXPIRED",
            "SSLV3_ALERT_CERTIFICATE_REVOKED",
            "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
            "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        ),
        _REFUSED,
    ),
    "WRONG_VERSION_NUMBER": f"{{who}} speaks no TLS at this port: {_WITHOUT_TLS}",
    "UNSUPPORTED_PROTOCOL": "{who} speaks only versions of TLS that are not allowed here",
    "TLSV1_ALERT_PROTOCOL_VERSION": "{who} allows only other versions of TLS",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "{who} and this process have no cipher in common, or it wants a certificate",
    "NO_CIPHERS_AVAILABLE": "there is no cipher of that name: see ssl_ciphers",
}
#: What helps against a certificate that OpenSSL does not trust, by the code of its reason (X509_V_ERR_…).
_TRUST: Final[Mapping[int, str]] = {
    **dict.fromkeys((2, 18, 19, 20, 21), "name its CA by ssl_ca_certs in {url}"),
    9: "its time has not begun: look at the clocks",
    10: "renew it",
    **dict.fromkeys((62, 64), "name the host in {url} as the certificate does"),
}


@contextmanager
def greeting(*, may_want_tls: bool) -> Iterator[None]:
    """Within this, a server is asked something for the first time. `may_want_tls`: it is not spoken to by TLS, and has
    never answered. If it ends the connection then, the error says what may be the reason."""
    try:
        yield
    except redis.ConnectionError as error:
        if not may_want_tls or not _WAS_ENDED.search(str(error)):
            raise
        text = f"{str(error).rstrip('.')}; perhaps the port wants TLS: {_WITH_TLS}"
        raise type(error)(text) from error


def no_tls(error: redis.RedisError) -> str:
    """A hint to append to the error, if the server did not answer the TLS handshake; else empty."""
    is_silent = isinstance(error.__context__, TimeoutError) and HANDSHAKE in str(error.__context__)
    return f"; perhaps the port speaks no TLS: {_WITHOUT_TLS}" if is_silent else ""


def is_outage(error: BaseException) -> bool:
    """Whether the broker is only away for a while. Any other error is a fault, which waiting does not mend."""
    if isinstance(error, NodeAway):
        return True  # whatever its cause is: the others go on
    if isinstance(error, redis.AuthenticationError) or is_deleted(error) or untrusted(error) is not None:
        return False
    if isinstance(error, _AWAY):
        return True
    return isinstance(error, redis.ResponseError) and (is_exhausted(error) or bool(_PASSING.search(str(error))))


def is_silent(error: BaseException) -> bool:
    """Whether a node of a cluster does not answer, and does not refuse this process either."""
    return isinstance(error, NodeAway) and not isinstance(error, NodeRefuses)


def is_demoted(error: BaseException) -> bool:
    """Whether the server that answered is a replica. Its address may lead to the new master by now, but a connection
    that is open leads to this server for ever."""
    if isinstance(error, redis.ReadOnlyError | redis.exceptions.MasterDownError):
        return True
    return isinstance(error, redis.ResponseError) and bool(_IS_REPLICA.search(str(error)))


def may_be_former(error: BaseException) -> bool:
    """Whether the server that answered may be a former master, which its replicas have left for the new one."""
    return isinstance(error, redis.ResponseError) and bool(re.search(r"(?:^|: |because of: )NOREPLICAS ", str(error)))


def is_wrong_type(answer: object) -> bool:
    """Whether the broker, or a script, says that a key holds something of another type."""
    return isinstance(answer, redis.ResponseError) and str(answer).startswith("WRONGTYPE")


def is_exhausted(error: BaseException) -> bool:
    """Whether a stream takes no more entries."""
    return isinstance(error, redis.ResponseError) and _EXHAUSTED in str(error)


def is_cluster_down(error: BaseException) -> bool:
    """Whether a node says that the cluster is down: too many masters are away, or the node is cut off from them."""
    return isinstance(error, redis.ResponseError) and bool(_CLUSTER_DOWN.search(plain(error)))


def is_deleted(error: BaseException) -> bool:
    """Whether the stream that was read, or its group, is not there: somebody has deleted it."""
    return isinstance(error, redis.ResponseError) and str(error).startswith(("NOGROUP", _KEY_IS_GONE))


def is_denied(error: BaseException) -> bool:
    """Whether the user may not do this. Of a call in a script, Redis 7.0 and Valkey say so in words of their own."""
    return isinstance(error, redis.exceptions.NoPermissionError) or (
        isinstance(error, redis.ResponseError) and bool(_DENIED.search(str(error)))
    )


def is_no_group(error: redis.ResponseError) -> bool:
    """Whether there is no such group: there is no such stream, or something else stands at its key."""
    return str(error).startswith(("NOGROUP", "WRONGTYPE", "no such key", "ERR no such key"))


def is_refusal(error: BaseException) -> bool:
    """Whether this says that the server has not done what was asked: it answered so, or nobody listens there. After any
    other failure of a connection nobody knows."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return _is_unreached(error) or isinstance(error, redis.BusyLoadingError | redis.AuthenticationError)
    return isinstance(error, redis.ResponseError)


def node_name(node: object) -> str:
    """What a node of a cluster is called: in what people read, and where it is noted what it refuses."""
    return f"the node {node} of the cluster"


def slot_name(number: object) -> str:
    """What a slot is called, in the same places."""
    return f"slot {number} of the cluster"


def of_node(node: object, error: redis.RedisError | None, *, was_sent: bool) -> NodeAway:
    """That a node of a cluster is away, since it has failed so."""
    if error is None or is_outage(error):
        away = NodeAway(f"{node_name(node)} is away ({error})", was_sent=was_sent)
    else:
        away = NodeRefuses(_told_of_refusal(node, error), was_sent=was_sent)
    away.__cause__ = error
    return away


def no_node_of(slot: object) -> NodeAway:
    """That no node has a slot."""
    return NodeAway(f"{slot_name(slot)} has no node", was_sent=False)


def name_node(error: redis.ResponseError, node: object, slot: int | None = None) -> None:
    """Add the name of the node of a cluster to its error, if it is about that node; or that of the slot, if the slot is
    moving."""
    if (is_outage(error) or is_denied(error)) and said_by(error) is None:
        name = node_name(node)
        if isinstance(error, redis.exceptions.TryAgainError) and slot is not None:
            name = slot_name(slot)
        error.__dict__.update(_node=name, _plain=str(error))
        error.args = (f"{error} ({name})",)


def said_by(error: BaseException) -> str | None:
    """The name of the node that has answered this, or of the slot that it is about; None: nobody has named it."""
    name: str | None = error.__dict__.get("_node")
    return name


def plain(error: BaseException) -> str:
    """The text of an error without the name of the node that has answered it."""
    text: str = error.__dict__.get("_plain", str(error))
    return text


def refusal(node: object, error: redis.RedisError) -> redis.RedisError:
    """The same error, with the name of the node that does not let this process in."""
    if not isinstance(error, redis.AuthenticationError) or SAYS in str(error):
        return error
    named = type(error)(f"{node_name(node)}{SAYS}{error}")
    named.__cause__ = error
    return named


def _told_of_refusal(node: object, error: redis.RedisError) -> str:
    name, text = node_name(node), str(error)
    if not isinstance(error, redis.AuthenticationError):
        return f"{name} and this process have no connection: {told(error)}"
    if any(one in text for one in _NO_LOGIN):
        return told(refusal(node, error))
    return f"{name} refuses the login: {text.partition(SAYS)[2] or text.rstrip('.')}; {_ON_EACH_NODE}"


def told(error: redis.RedisError, called: Called = THE_BROKER, *, role: str | None = None, advises: bool = True) -> str:
    """What a person is told of an error of this server: what is the case, and what helps.

    Args:
        role: the one that would be allowed to do what was asked, as `sagastream acl` takes it; None: that is not known.
        advises: False if the caller says itself what helps when nobody listens there.
    """
    node = said_by(error)
    text = plain(error) or type(error).__name__
    if isinstance(error, NodeRefuses):
        return text
    if (why := untrusted(error, called)) is not None:
        return why
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return _told_of_connection(error, text, called, advises=advises)
    who, meaning = node or called.name, text
    if is_denied(error):
        meaning = (_MAY_NOT if node is None else _DENIES) + _who_may(text, role, on_node=node is not None)
    elif name := next((one for one in _MEANINGS if _begins(error, text, one)), None):
        meaning = _MEANINGS[name]
        if node is None and called == THE_BROKER:
            who = _WHO.get(name, who)
    else:
        return f"{who} is away for a while: {text}" if is_outage(error) else text
    return meaning.format(who=who, url=called.variable, said=text)


def _who_may(said: str, role: str | None, *, on_node: bool) -> str:
    if _ACL in said:
        return ""
    prints = _PRINTS_FOR_ALL if on_node else _PRINTS if role is None else _PRINTS_ONE
    return _ACL + prints.format(role=role or "ROLE")


def _begins(error: redis.RedisError, text: str, name: str) -> bool:
    return bool(re.search(rf"(?:^|: ){name}(?: |$)", text)) or isinstance(error, _CLASSES.get(name, ()))


def brief(error: redis.RedisError) -> str:
    """Why a part of the store cannot be reached."""
    if is_cluster_down(error):
        return "the cluster is down"
    return str(error) if isinstance(error, NodeAway | redis.exceptions.ClusterDownError) else told(error)


def reason(error: redis.RedisError) -> str:
    """Why a server was not reached, in brackets behind its address."""
    if isinstance(error.__context__, ConnectionRefusedError):
        return "nobody listens there"
    return f"{str(error).rstrip('.')}{no_tls(error)}"


def takes_no_writes(error: BaseException) -> bool:
    """Whether the server is there, and only takes no writes for a while."""
    return is_outage(error) and isinstance(error, redis.ResponseError) and not is_demoted(error)


def _told_of_connection(
    error: redis.ConnectionError | redis.TimeoutError, text: str, called: Called, *, advises: bool
) -> str:
    silent, url = f"{called.name} does not answer", called.variable
    if isinstance(error, Unreached):
        return f"{silent}: {text}"
    if isinstance(error, NodeAway):
        return f"{text}: what it holds waits until it is back, or until a replica has taken its place"
    if isinstance(error, SentinelsRefuse):
        return f"{text}; look at sentinel_username and sentinel_password in {url}"
    if isinstance(error, redis.AuthenticationError) and any(one in text for one in _NO_LOGIN):
        node, says, _ = text.partition(SAYS)
        return f"{node if says else called.name} wants a password, and {url} has none: redis://user:password@host"
    if isinstance(error, redis.AuthenticationError):
        node, says, rest = text.partition(SAYS)
        who, why = (node, rest) if says else (called.name, text)
        return f"{who} refuses the login: {why.rstrip('.')}; look at the user and the password in {url}"
    if _is_unreached(error):
        what = f"{silent}, since nobody listens there: {text.rstrip('.')}"
        return f"{what}; start it, or look at {url}. {_ENDED}" if advises else what
    if isinstance(error, redis.TimeoutError):
        return f"{silent}: it hangs, was stopped, or is too busy ({text}){no_tls(error)}"
    return f"{silent}: {text}"


def _is_unreached(error: BaseException) -> bool:
    if isinstance(error, NodeAway):
        return not error.was_sent
    return isinstance(error, Unreached) or isinstance(error.__context__, ConnectionRefusedError | FileNotFoundError)


def untrusted(error: BaseException, called: Called = THE_BROKER) -> str | None:
    """Why this error means that the two sides do not trust each other, or speak no TLS to each other: waiting mends
    neither. None: it means something else."""
    seen: BaseException | None = error
    for _ in range(10):
        if isinstance(seen, ssl.SSLCertVerificationError):
            helps = _TRUST.get(seen.verify_code, "").format(url=called.variable)
            text = f"the certificate of {called.name} cannot be trusted: {seen.verify_message.rstrip('.')}"
            return f"{text}; {helps}" if helps else text
        name = str(getattr(seen, "reason", "")) if isinstance(seen, ssl.SSLError) else ""  # some have none
        if name in _REASONS:
            return f"{_REASONS[name].format(who=called.name)} ({name})"
        seen = None if seen is None else seen.__cause__ or seen.__context__
    return None
