"""What every page is made with: the frame, the navigation, and what is said if the store cannot be read."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import jinja2
import redis
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from sagastream.broker.failures import NodeAway, brief, is_outage, is_refusal, told
from sagastream.core.messages import MAX_ACTOR_CHARS
from sagastream.errors import SagastreamError
from sagastream_bridge.dashboard.feed import Feed
from sagastream_bridge.dashboard.outage import is_away
from sagastream_bridge.dashboard.outcomes import Outcomes
from sagastream_bridge.dashboard.reading import StoreReader
from sagastream_bridge.dashboard.rules import Sessions
from sagastream_bridge.dashboard.standing import Standing

#: These say by themselves what of a store is left out, or show nothing of more than one partition.
_OF_NO_LIST: Final = ("overview", "saga", "missing")


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
        """A page. What the navigation counts is left out if it cannot be read. Raises redis.RedisError if all of the
        broker is away."""
        counts, missing = None, None
        try:
            counts = self.reader.standing()
        except (redis.RedisError, SagastreamError) as error:
            if is_away(error) and not isinstance(error, NodeAway):
                raise
            missing = error
        left_out = () if name in _OF_NO_LIST else self._left_out(counts)
        is_told = isinstance(missing, NodeAway) and any(line.startswith(brief(missing)) for line in left_out)
        if missing is not None and not is_told:
            shown.setdefault("trouble", trouble(missing))
        shown["left_out"] = left_out
        return self._shown(request, name, status, counts, shown)

    def _left_out(self, counts: Standing | None) -> Sequence[str]:
        """What a list cannot show, and why: a line for each reason."""
        if counts is not None:
            return counts.away
        with suppress(redis.RedisError, SagastreamError):
            return self.reader.reach().told()
        return ()

    def failed(self, request: Request, error: Exception, *, was_asked: bool = True, where: str = "") -> Response:
        """The page that is shown in place of one that cannot be read. `was_asked`: the broker was asked for what the
        request wants. `where`: in which part of the store that is, if one node of a cluster is away."""
        is_passing = isinstance(error, redis.RedisError) and is_outage(error)
        shown: dict[str, Any] = {"why": trouble(error), "is_away": is_passing}
        shown |= {"of_node": isinstance(error, NodeAway), "where": where}
        if request.method == "POST":
            shown |= {"undecided": was_asked and not is_refusal(error), "at": _from(request)}
        counts = None
        if not is_away(error):
            with suppress(redis.RedisError, SagastreamError):
                counts = self.reader.standing()
        return self._shown(request, "away", 503 if is_passing else 500, counts, shown)

    def _shown(
        self, request: Request, name: str, status: int, counts: Standing | None, shown: dict[str, Any]
    ) -> Response:
        session = request.state.session
        shown = {
            "page": name,
            "counts": counts,
            "now_ms": time.time_ns() // 1_000_000 if counts is None else counts.now_ms,
            "store": self.reader.broker.store,
            "allow_actions": self.allow_actions,
            "has_token": self._has_token and session is not None,
            "form_token": "" if session is None else self.sessions.form_token(session),
            "who": unquote(request.cookies.get(f"{request.state.cookie}_who", ""))[:MAX_ACTOR_CHARS],
            "told": self.outcomes.told(request.query_params.get("told")),
            "trouble": None,
            "left_out": (),
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


def _from(request: Request) -> str:
    """The page from which an action was asked for, as the browser tells it."""
    came = urlsplit(request.headers.get("referer", ""))
    return inside(came.path + (f"?{came.query}" if came.query else ""))


def inside(to: str) -> str:
    """The address, if it is one of this server; otherwise that of the first page."""
    is_ours = to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable() and "\\" not in to
    return to if is_ours else "/"
