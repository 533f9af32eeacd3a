"""What every page is made with: the frame, the navigation, and what is said if the store cannot be read."""

from typing import Any
from urllib.parse import unquote

import jinja2
import redis
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from sagastream.broker.failures import is_outage, told
from sagastream.core.messages import MAX_ACTOR_CHARS
from sagastream.errors import SagastreamError
from sagastream_bridge.dashboard.feed import Feed
from sagastream_bridge.dashboard.outcomes import Outcomes
from sagastream_bridge.dashboard.reading import StoreReader
from sagastream_bridge.dashboard.rules import Sessions


class Page:
    """What every page is made with."""

    def __init__(
        self,
        reader: StoreReader,
        feed: Feed,
        templates: jinja2.Environment,
        sessions: Sessions,
        *,
        allow_actions: bool,
        has_token: bool,
    ) -> None:
        self.reader = reader
        self.feed = feed
        self.sessions = sessions
        self.outcomes = Outcomes()
        self.allow_actions = allow_actions
        self._templates = templates
        self._has_token = has_token

    def show(self, request: Request, name: str, status: int = 200, **shown: Any) -> Response:
        """A page. What the navigation counts is left out if the store cannot be read."""
        counts = None
        try:
            counts = self.reader.standing()
        except (redis.RedisError, SagastreamError) as error:
            shown.setdefault("trouble", trouble(error))
        session = request.state.session
        shown = {
            "page": name,
            "counts": counts,
            "now_ms": 0 if counts is None else counts.now_ms,
            "store": self.reader.broker.store,
            "allow_actions": self.allow_actions,
            "has_token": self._has_token and session is not None,
            "form_token": "" if session is None else self.sessions.form_token(session),
            "who": unquote(request.cookies.get(f"{request.state.cookie}_who", ""))[:MAX_ACTOR_CHARS],
            "told": self.outcomes.told(request.query_params.get("told")),
            "trouble": None,
            "live": "/live",
            "asked": request.query_params,
        } | shown
        return HTMLResponse(self._templates.get_template(f"{name}.html").render(shown), status)

    def bare(self, name: str, status: int = 200, **shown: Any) -> Response:
        """A page that shows nothing of the store."""
        return HTMLResponse(self._templates.get_template(f"{name}.html").render({"page": name} | shown), status)


def trouble(error: Exception) -> str:
    """What a page says if the store cannot be read."""
    return told(error) if isinstance(error, redis.RedisError) else str(error)


def failed(page: Page, request: Request, error: Exception) -> Response:
    """The page that is shown in place of one that cannot be read."""
    is_away = isinstance(error, redis.RedisError) and is_outage(error)
    return page.show(request, "away", 503 if is_away else 500, trouble=trouble(error), is_away=is_away)
