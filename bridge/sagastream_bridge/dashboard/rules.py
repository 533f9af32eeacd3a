"""Who may ask what: names, origins, tokens, sessions. Pure, but for the random secret of a process.

A page of another site may send requests to this server, by the browser of somebody who may use it. So a request must
name a host that is ours (else a name of the other site could lead here), and a request that changes something must come
from a page of ours, with a secret that stands in that page.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Collection
from typing import Final, NamedTuple
from urllib.parse import urlsplit

#: A shorter token could be guessed.
LEAST_TOKEN_CHARS: Final = 16
#: How long a session lasts, in seconds: a working day.
SESSION_S: Final = 12 * 3600
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?", re.ASCII)


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Names(NamedTuple):
    """The names under which browsers may ask for the pages."""

    names: frozenset[str]

    @classmethod
    def of(cls, host: str, more: Collection[str] = ()) -> "Names":
        """`host`: where the server listens. `more`: what else leads to it, such as the name of a proxy."""
        own = (*_LOOPBACK_NAMES, host) if is_loopback(host) else (host,)
        return cls(frozenset(name.strip("[]").rstrip(".").lower() for name in (*own, *more)))

    def has(self, host: str | None) -> bool:
        """Whether a header `Host` names one of them, at any port."""
        if host is None or (parts := _HOST.fullmatch(host)) is None:
            return False
        return parts[1].strip("[]").rstrip(".").lower() in self.names


def is_same_origin(origin: str | None, host: str) -> bool:
    """Whether a header `Origin` names the server that was asked. A proxy may speak TLS for it, so the scheme may be
    either."""
    if origin is None:
        return False
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def is_token(given: str, token: str) -> bool:
    """Whether this is the token; it takes as long if it is nearly so."""
    return hmac.compare_digest(given.encode(), token.encode())


def complaint_about(token: str) -> str | None:
    """What is wrong with a token; None: nothing."""
    if len(token) < LEAST_TOKEN_CHARS:
        return (
            f"the token has {len(token)} characters: take {LEAST_TOKEN_CHARS} or more, as `openssl rand -hex 16` makes"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        return "the token must be printable ASCII characters without blanks"
    return None


class Sessions:
    """The sessions of one process. Each is a text that only this process can write, so it keeps none of them."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def begin(self) -> str:
        """A new session, as a cookie holds it."""
        told = f"{secrets.token_urlsafe(18)}.{int(time.time()) + SESSION_S}"
        return f"{told}.{self._signed('session', told)}"

    def is_one(self, cookie: str | None) -> bool:
        """Whether this process began it, and it has not ended."""
        told, _, signature = (cookie or "").rpartition(".")
        if not told or not hmac.compare_digest(signature.encode(), self._signed("session", told).encode()):
            return False
        return int(told.rpartition(".")[2]) > time.time()

    def form_token(self, cookie: str) -> str:
        """What stands in the forms of a session's pages, and nowhere else."""
        return self._signed("form", cookie)

    def is_form_token(self, given: str, cookie: str) -> bool:
        return hmac.compare_digest(given.encode(), self.form_token(cookie).encode())

    def _signed(self, what: str, text: str) -> str:
        return hmac.new(self._secret, f"{what} {text}".encode(errors="replace"), hashlib.sha256).hexdigest()
