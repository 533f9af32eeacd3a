"""The url of a broker: what may stand in it, and how it is shown without its secrets.

redis-py passes every option of a url on to its connections: a misspelt one ends in a traceback, and one such as
`decode_responses` changes every answer. So a url is checked here, before redis-py reads it. No text that this module
returns or raises has a part of a password in it.
"""

import re
import shlex
import ssl
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from sagastream import files

_SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
_BEGINNINGS: Final = (
    "redis://, rediss:// or unix://, or with redis+sentinel:// or rediss+sentinel:// if it names Sentinels"
)
#: The options of every url; those of rediss:// are about its certificates. By their values: what they must be.
_OPTIONS: Final[Mapping[str, str]] = {"db": "a number", "username": "", "password": ""}
#: Those of a url that names Sentinels: the login at the Sentinels. They have users of their own.
_SENTINEL: Final[Mapping[str, str]] = {"sentinel_username": "", "sentinel_password": ""}
_TLS: Final[Mapping[str, str]] = {
    "ssl_ca_certs": "",  # a file with the certificates of the CAs that are trusted; by default those of the system
    "ssl_ca_path": "",  # … or a folder
    "ssl_certfile": "",  # the client's own certificate
    "ssl_keyfile": "",  # … and its key
    "ssl_password": "",  # … and the password of the key
    "ssl_check_hostname": "true or false",
    "ssl_cert_reqs": "required or none",
    "ssl_ciphers": "",
}
_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_SECRET: Final = ("password", "ssl_password", "sentinel_password")
#: What a `wanted` of the tables above means.
_ALLOWED: Final = {"true or false": ("true", "false"), "required or none": ("required", "none")}
_ENCODE: Final = "characters of a password such as # / ? @ & % are written %23 %2F %3F %40 %26 %25"
_NO_HOST: Final = f"no host can be called so: between two dots of a name stand 1 to 63 characters; {_ENCODE}"
#: The port of a Sentinel that names none.
_SENTINEL_PORT: Final = 26379
#: One of the Sentinels in a url; and what follows them: the name of the master and, perhaps, a database.
_ONE_SENTINEL: Final = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\[\]:,@\s]+)(?::([0-9]{1,5}))?")
#: A second scheme in a list of nodes.
_AGAIN: Final = re.compile(r"^[a-z+]+://[^/]*,[a-z+]+://")
_MASTER: Final = re.compile(r"/([A-Za-z0-9._-]+)(?:/([0-9]{0,5}))?")


class Address(NamedTuple):
    """Where a server or a Sentinel listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class SentinelUrl(NamedTuple):
    """A url that names Sentinels, and the master that they watch."""

    master: str
    #: The url of each Sentinel, by its address.
    sentinels: Mapping[Address, str]
    #: The url of the master, with the address of a Sentinel: where the master listens, only they know.
    server: str


def check(url: str) -> None:
    """Raises ValueError with what is wrong with the url."""
    if _AGAIN.search(url):
        raise ValueError("name its other nodes without redis://, as in redis://one:7000,two:7001")
    for one in servers(url):
        _check(one)


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = None if names_sentinels(url) else parts.port
    except ValueError:  # its text quotes what may be a part of the password
        raise ValueError(f"it cannot be taken apart; {_ENCODE}") from None
    if parts.scheme not in _SCHEMES or not url.startswith(f"{parts.scheme}://"):
        raise ValueError(f"it must begin with {_BEGINNINGS}")
    if "#" in url:
        raise ValueError(f"it has a # in it; {_ENCODE}")
    if parts.scheme == "unix":
        _check_socket(parts)
    elif names_sentinels(url):
        _check_sentinels(parts)
    else:
        if not parts.hostname:
            raise ValueError(f"it names no host; {_ENCODE}")
        if not is_host(parts.hostname):
            raise ValueError(_NO_HOST)
        if port == 0:
            raise ValueError("port 0 leads to no server")
        if not (parts.path in ("", "/") or _is_number(parts.path[1:])):
            raise ValueError(f"only the number of a database may follow the host; {_ENCODE}")
    _check_options(parts)


def _check_socket(parts: SplitResult) -> None:
    if "@" not in parts.netloc and parts.netloc:
        raise ValueError(f"unix:// takes no host: write unix:///path or unix://user:password@/path; {_ENCODE}")
    if "@" in parts.netloc and "@" in parts.path:  # which of them ends the password, nobody can say
        raise ValueError(f"it has more than one @ in it; {_ENCODE}")
    if parts.path in ("", "/"):
        raise ValueError("it names no socket: write unix:///path")


def is_host(text: str) -> bool:
    """Whether a host may be called so. Of any other name Python does not say that it is unknown: it raises another
    error than for a server that is away."""
    try:
        return bool(text) and "\0" not in text and bool(text.encode("idna"))
    except UnicodeError:
        return False


def is_port(text: str) -> bool:
    """Whether it is the number of a port."""
    return text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) < 2**16


def servers(url: str) -> list[str]:
    """The url of each server that this one names, one after the other: of several nodes of a cluster, else itself."""
    scheme, mark, rest = url.partition("://")
    whole, *_ = re.split(r"[/?#]", rest, maxsplit=1)
    login, at, hosts = whole.rpartition("@")
    if scheme not in ("redis", "rediss") or "," not in hosts:
        return [url]
    return [f"{scheme}{mark}{login}{at}{host}{rest[len(whole) :]}" for host in hosts.split(",")]


def check_one(url: str) -> None:
    """As `check`; also raises ValueError if it names several servers."""
    check(url)
    if len(servers(url)) > 1:
        raise ValueError("it names several servers: name one, or its Sentinels with redis+sentinel://")


def names_sentinels(url: str) -> bool:
    """Whether the url names Sentinels, which know where the broker is."""
    return "sentinel" in url.partition("://")[0]


def _check_sentinels(parts: SplitResult) -> None:
    for one in parts.netloc.rpartition("@")[2].split(","):
        found = _ONE_SENTINEL.fullmatch(one)
        if found is None or not is_port(found[2] or str(_SENTINEL_PORT)):
            raise ValueError(f"its Sentinels must be HOST or HOST:PORT, with commas between them; {_ENCODE}")
        if not is_host(found[1]):
            raise ValueError(_NO_HOST)
    if _MASTER.fullmatch(parts.path) is None:
        what = "the name of the master and, if you like, the number of a database must follow the Sentinels"
        raise ValueError(f"{what}: redis+sentinel://HOST:26379,HOST:26379/mymaster/0; {_ENCODE}")


def sentinels(url: str) -> SentinelUrl:
    """A usable url that names Sentinels, taken apart."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    named = [_ONE_SENTINEL.fullmatch(one) for one in hosts.split(",")]
    addresses = [Address(one[1].strip("[]"), int(one[2] or _SENTINEL_PORT)) for one in named if one]
    path = _MASTER.fullmatch(parts.path)
    assert path
    options = dict(_options(parts))
    user, password = (quote(options.pop(name, ""), safe="") for name in _SENTINEL)
    certificates = {name: value for name, value in options.items() if name in _TLS}
    scheme = parts.scheme.partition("+")[0]
    return SentinelUrl(
        master=path[1],
        sentinels={
            address: _url(scheme, f"{user}:{password}@" if user or password else "", address, "", certificates)
            for address in addresses
        },
        server=_url(scheme, login + at, addresses[0], path[2] or "", options),
    )


def _url(scheme: str, login: str, address: Address, db: str, options: Mapping[str, str]) -> str:
    return f"{scheme}://{login}{address}/{db}" + (f"?{urlencode(options)}" if options else "")


def check_files(url: str) -> None:
    """Raises ValueError if a file that a rediss:// url names cannot be used. At each connection redis-py reads them
    again, and would tell of a server that is away."""
    options = dict(_options(urlsplit(url)))
    context = ssl.create_default_context()
    try:
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            if name in options:
                files.refuse_unusual(options[name])
        if "ssl_ca_certs" in options or "ssl_ca_path" in options:
            context.load_verify_locations(options.get("ssl_ca_certs"), options.get("ssl_ca_path"))
        if (own := options.get("ssl_certfile")) is not None:
            # An empty password, so that OpenSSL does not ask for one at the terminal.
            context.load_cert_chain(own, options.get("ssl_keyfile"), options.get("ssl_password", ""))
        if "ssl_ciphers" in options:
            context.set_ciphers(options["ssl_ciphers"])
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        named = ", ".join(value for name, value in options.items() if name in _FILES)
        raise ValueError(f"its certificates cannot be used: {named}: {_reason(error)}") from None


def shown(url: str) -> str:
    """The url for people to see: without passwords."""
    try:
        check(url)
    except ValueError:
        return "a url that is not usable"
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    user, colon, _ = login.partition(":")
    options = "&".join(
        f"{name}=***" if name in _SECRET else f"{name}={quote(value, safe='/')}" for name, value in _options(parts)
    )
    query = f"?{options}" if options else ""
    return f"{parts.scheme}://{user}{':***' if colon else ''}{at}{host}{parts.path}{query}"


def redis_cli(url: str, node: Address | None = None) -> str:
    """The command line of redis-cli for a url that can be used, without the login: that may be another one. If the url
    names Sentinels, the line asks the first of them for the master. `node`: of a cluster; the line begins there, since
    one that the url names may be down, and follows keys to other nodes."""
    parts = urlsplit(url)
    if names_sentinels(url):
        found = sentinels(url)
        sentinel, tls = next(iter(found.sentinels)), " --tls" if parts.scheme.startswith("rediss") else ""
        asked = f"redis-cli{tls} -h {shlex.quote(sentinel.host)} -p {sentinel.port} --raw"
        ask = f"{asked} SENTINEL GET-MASTER-ADDR-BY-NAME {found.master} | sed '1s/^/-h /;2s/^/-p /'"
        return f"redis-cli{tls} $({ask}){_database(found.server)}"
    if parts.scheme == "unix":
        return f"redis-cli -s {shlex.quote(unquote(parts.path))}{_database(url)}"
    _, _, hosts = parts.netloc.rpartition("@")
    host, *_ = hosts.split(",")
    follows = "" if node is None else " -c"
    return f"redis-cli{follows} -u {shlex.quote(f'{parts.scheme}://{node or host}')}{_database(url)}"


def _database(url: str) -> str:
    """The option that chooses the database; none for that which is chosen by default."""
    parts = urlsplit(url)
    db = dict(_options(parts)).get("db") or ("" if parts.scheme == "unix" else parts.path.rpartition("/")[2])
    return f" -n {db}" if _is_number(db) and int(db) else ""


def _options(parts: SplitResult) -> list[tuple[str, str]]:
    return parse_qsl(parts.query, keep_blank_values=True)


def _check_options(parts: SplitResult) -> None:
    known = {
        **_OPTIONS,
        **(_TLS if parts.scheme.startswith("rediss") else {}),
        **(_SENTINEL if parts.scheme.endswith("sentinel") else {}),
    }
    for name, value in _options(parts):
        if name not in known:
            # It may be a part of a password that has a ? or a & in it.
            is_secret = "@" in parts.query or any(other in _SECRET for other, _ in _options(parts))
            told = "an option that does not exist" if is_secret else f"an option {name[:40]!a}"
            hint = _ENCODE if is_secret else f"there are {', '.join(known)}"
            if name in _TLS:
                hint = "that is for rediss:// only"
            if name in _SENTINEL:
                hint = "that is for redis+sentinel:// only"
            raise ValueError(f"it has {told}; {hint}")
        wanted = known[name]
        if not value or (wanted == "a number" and not _is_number(value)):
            raise ValueError(f"its option {name} must have a value" + (f", {wanted}" if wanted else ""))
        if wanted in _ALLOWED and value not in _ALLOWED[wanted]:
            raise ValueError(f"its option {name} must be {wanted}")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return getattr(error, "reason", None) or "not a certificate and its key, or another password"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6
