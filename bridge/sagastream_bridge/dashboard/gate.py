"""The gate through which every request goes: it applies the rules, and sets the headers of every answer."""

from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sagastream_bridge.dashboard.rules import SESSION_S, Names, Sessions, is_same_origin, is_token

#: Nothing is loaded from elsewhere, no script or style stands in a page, and no other page may frame this one.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: then a browser would not say from which origin a form comes.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
#: What a person who has no session yet may ask for.
_OPEN: Final = ("/login", "/static/")
_READS: Final = ("GET", "HEAD")
_SIGN_IN: Final = "Sign in first, or send the token of this dashboard: `Authorization: Bearer TOKEN`.\n"
_NOT_THIS: Final = "The header Authorization does not have the token of this dashboard: `Bearer TOKEN`.\n"


class Gate:
    """Lets a request through, or answers it."""

    def __init__(
        self, app: ASGIApp, *, names: Names, sessions: Sessions, token: str | None, port: Callable[[], int]
    ) -> None:
        """`token`: what a person must know; None: nothing. `port`: of the server, when it is known. Browsers keep one
        set of cookies for all ports of a host, so the cookie is named by it."""
        self._app = app
        self._names = names
        self._sessions = sessions
        self._token = token
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        cookie = f"sagastream_{self._port()}"
        session = request.cookies.get(cookie)
        begun = None
        if not self._sessions.is_one(session):
            session = None
            if self._token is None or self._has_bearer(request.headers):
                session = begun = self._sessions.begin()
        scope["state"] = scope.get("state", {}) | {"session": session, "cookie": cookie}

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
                if begun is not None and self._token is None:
                    set_session(headers, cookie, begun)
            await send(message)

        answer = self._refusal(request, session)
        await (self._app if answer is None else answer)(scope, receive, told)

    def _has_bearer(self, headers: Headers) -> bool:
        """Whether it brings the token along, as programs do."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        return self._token is not None and kind.lower() == "bearer" and is_token(given.strip(), self._token)

    def _refusal(self, request: Request, session: str | None) -> Response | None:
        """What to answer in place of the app; None: let the app answer."""
        host = request.headers.get("host")
        if host is None or not self._names.has(host):
            return PlainTextResponse(
                "This server does not answer to this name. Use the address that `sagastream dashboard` prints, or "
                "start it with --name NAME for each name that leads to it.\n",
                421,
            )
        origin = request.headers.get("origin")
        if (request.method not in _READS or origin is not None) and not is_same_origin(origin, host):
            return PlainTextResponse("This request did not come from a page of this dashboard.\n", 403)
        path = request.url.path
        if session is None and not path.startswith(_OPEN):
            if request.method in _READS and "text/html" in request.headers.get("accept", ""):
                there = path + (f"?{request.url.query}" if request.url.query else "")
                return RedirectResponse(f"/login?to={quote(there, safe='')}", 303)
            return PlainTextResponse(_NOT_THIS if "authorization" in request.headers else _SIGN_IN, 401)
        return None


def set_session(headers: MutableHeaders, cookie: str, session: str, *, secure: bool = False) -> None:
    """Give a browser its session. No script can read it, and forms of other sites do not send it. Not Strict: then who
    follows a link from elsewhere would have to sign in again."""
    more = "; Secure" if secure else ""
    headers.append("set-cookie", f"{cookie}={session}; Path=/; Max-Age={SESSION_S}; HttpOnly; SameSite=Lax{more}")
