"""The application: which page is at which address."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import redis
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from sagastream.broker.connection import Broker
from sagastream.core.messages import is_id
from sagastream.errors import SagastreamError
from sagastream_bridge.dashboard.actions import Actions, Form, Refused, read_form
from sagastream_bridge.dashboard.bulk_actions import BulkActions
from sagastream_bridge.dashboard.bulk_pages import BulkPages
from sagastream_bridge.dashboard.definition_pages import DefinitionPages
from sagastream_bridge.dashboard.feed import MOST_VIEWERS, Feed
from sagastream_bridge.dashboard.gate import Gate, set_session
from sagastream_bridge.dashboard.page import Page, inside
from sagastream_bridge.dashboard.quarantine_pages import QuarantinePages
from sagastream_bridge.dashboard.reading import StoreReader
from sagastream_bridge.dashboard.rules import Names, Sessions, is_token
from sagastream_bridge.dashboard.saga_pages import SagaPages
from sagastream_bridge.dashboard.service_pages import ServicePages
from sagastream_bridge.dashboard.store_pages import StorePages
from sagastream_bridge.dashboard.wording import FOLDER, environment

#: The files of `static/`, and what each is.
_STATIC: Final = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
#: How long somebody waits who gave a wrong token, in seconds: guesses are to be slow.
_WRONG_TOKEN_S: Final = 0.5
_Endpoint = Callable[[Request], Awaitable[Response]]


class Dashboard:
    """One dashboard: its application, and the thread that follows the store."""

    def __init__(
        self,
        broker: Broker,
        *,
        names: Names,
        token: str | None = None,
        allow_actions: bool = False,
        port: Callable[[], int] = lambda: 0,
    ) -> None:
        self._token = token
        self._sessions = Sessions()
        self.reader = StoreReader(broker)
        self.feed = Feed(broker, self.reader.layout, self.reader.keys, self.reader.fingerprint, self.reader.outage)
        templates = environment({"version": _version()})
        self._page = Page(
            self.reader,
            self.feed,
            templates,
            self._sessions,
            allow_actions=allow_actions,
            has_token=token is not None,
        )
        self._store = StorePages(self._page)
        self._sagas = SagaPages(self._page)
        self._services = ServicePages(self._page)
        self._quarantine = QuarantinePages(self._page)
        self._definitions = DefinitionPages(self._page)
        self._actions = Actions(self._page, self._sagas, self._services, self._quarantine)
        self._bulk_pages = BulkPages(self._page)
        self._bulk_actions = BulkActions(self._page, self._bulk_pages, self._actions)
        gate = Middleware(Gate, names=names, sessions=self._sessions, token=token, port=port)
        self.app = Starlette(
            routes=self._routes(), middleware=[gate], exception_handlers={HTTPException: self._no_such_page}
        )

    def _routes(self) -> list[Route]:
        pages = {
            "/": self._store.overview,
            "/sagas": self._sagas.sagas,
            "/sagas/{saga_id}": self._sagas.saga,
            "/bulks": self._bulk_pages.bulks,
            "/bulks/begin": self._bulk_pages.asking,
            "/bulks/{bulk_id}": self._bulk_pages.bulk,
            "/services": self._services.services,
            "/parked": self._store.parked,
            "/quarantine": self._quarantine.quarantine,
            "/quarantine/{entry_id:path}": self._quarantine.quarantined,
            "/definitions": self._definitions.definitions,
            "/definitions/{name}": self._definitions.definition,
        }
        return [
            Route("/static/{name}", _static),
            Route("/login", self._ask_for_token),
            Route("/login", self._log_in, methods=["POST"]),
            Route("/logout", self._log_out, methods=["POST"]),
            Route("/live", self._live),
            Route("/sagas/{saga_id}/{verb}", self._acting(self._actions.on_saga), methods=["POST"]),
            Route("/bulks/begin", self._acting(self._bulk_actions.begin), methods=["POST"]),
            Route("/bulks/{bulk_id}/{verb}", self._acting(self._bulk_actions.turn), methods=["POST"]),
            Route("/services/{service}/{verb}", self._acting(self._actions.on_service), methods=["POST"]),
            Route("/quarantine/{verb}/{entry_id:path}", self._acting(self._actions.on_quarantined), methods=["POST"]),
            *(Route(path, self._shown(page)) for path, page in pages.items()),
        ]

    def _shown(self, page: Callable[[Request], Response]) -> _Endpoint:
        """A page as an endpoint. Reading the store blocks, so a thread does it."""

        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(self._told, request, lambda: page(request))

        return endpoint

    def _acting(self, act: Callable[[Request, Form], Response]) -> _Endpoint:
        async def endpoint(request: Request) -> Response:
            try:
                form = await read_form(request)
            except Refused as error:
                return PlainTextResponse(f"{error}\n", 413)
            if (forbidden := self._actions.forbidden(request, form)) is not None:
                return forbidden
            return await run_in_threadpool(self._told, request, lambda: act(request, form))

        return endpoint

    def _told(self, request: Request, page: Callable[[], Response]) -> Response:
        if (known := self.reader.outage.known()) is not None:
            return self._page.failed(request, known, was_asked=False)
        try:
            return page()
        except (redis.RedisError, SagastreamError) as error:
            self.reader.outage.found(error)
            return self._page.failed(request, error)

    async def _live(self, request: Request) -> Response:
        saga_id = request.query_params.get("saga")
        if self.feed.viewers >= MOST_VIEWERS:
            return PlainTextResponse("Too many pages are open.\n", 503)
        following = self.feed.follow(saga_id if saga_id is not None and is_id(saga_id) else None)
        return StreamingResponse(following, media_type="text/event-stream")

    async def _no_such_page(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code != 404:
            return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)
        if request.state.session is None:  # the page would say how many sagas are parked, and which store it is
            return PlainTextResponse("There is no such page.\n", 404)
        shown = lambda: self._page.show(request, "missing", 404, what="There is no such page.")  # noqa: E731
        return await run_in_threadpool(self._told, request, shown)

    # --- who may look

    async def _ask_for_token(self, request: Request) -> Response:
        if request.state.session is not None:
            return RedirectResponse(inside(request.query_params.get("to", "/")), 303)
        return self._login_page(request.query_params.get("to", "/"))

    async def _log_in(self, request: Request) -> Response:
        try:
            form = await read_form(request)
        except Refused as error:
            return PlainTextResponse(f"{error}\n", 413)
        to = inside(form.get("to", "/"))
        if self._token is None or not is_token(form.get("token", "").strip(), self._token):
            await asyncio.sleep(_WRONG_TOKEN_S)
            return self._login_page(to, "That is not the token.", 403)
        answer = RedirectResponse(to, 303)
        secure = request.headers.get("origin", "").startswith("https:")
        set_session(MutableHeaders(raw=answer.raw_headers), request.state.cookie, self._sessions.begin(), secure=secure)
        return answer

    async def _log_out(self, request: Request) -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(request.state.cookie, httponly=True, samesite="lax")
        return answer

    def _login_page(self, to: str, complaint: str | None = None, status: int = 200) -> Response:
        return self._page.bare("login", status, to=inside(to), complaint=complaint)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _STATIC:
        raise HTTPException(404)
    kept = "public, max-age=31536000, immutable" if "v" in request.query_params else "no-cache"
    headers = {"cache-control": kept, "content-type": _STATIC[name]}
    return Response((FOLDER / "static" / name).read_bytes(), headers=headers)


def _version() -> str:
    """Of the static files: browsers keep them until it changes."""
    found = hashlib.sha256()
    for name in sorted(_STATIC):
        found.update((Path(FOLDER) / "static" / name).read_bytes())
    return found.hexdigest()[:12]
