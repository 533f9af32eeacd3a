"""The pages: what each of them reads, and which template shows it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

import jinja2
import redis
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from sagastream.broker.failures import is_outage, told
from sagastream.broker.urls import redis_cli
from sagastream.core.causes import Cause
from sagastream.core.history import history
from sagastream.core.messages import MAX_ACTOR_CHARS, is_id, is_service
from sagastream.core.saga import SagaState
from sagastream.core.why import headline
from sagastream.errors import MalformedMessage, QuarantineError, SagastreamError, UnreadableSaga
from sagastream.store.definitions import Deployed, Version
from sagastream.store.finding import Page as FoundPage
from sagastream.store.keys import StoreKeys
from sagastream_bridge.dashboard import charts, graph_drawing, standing, timeline, wording
from sagastream_bridge.dashboard.explored import Explorer, Table
from sagastream_bridge.dashboard.feed import Feed
from sagastream_bridge.dashboard.finding import STATUSES, Search, WrongSearch
from sagastream_bridge.dashboard.offers import offers
from sagastream_bridge.dashboard.outcomes import Outcomes
from sagastream_bridge.dashboard.reading import MOST_QUARANTINED, StoreReader
from sagastream_bridge.dashboard.rules import Sessions
from sagastream_bridge.definitions import outline
from sagastream_bridge.definitions.drawing import Form, Node
from sagastream_bridge.inspection import graph_views, views

#: So many parked sagas of a group are shown.
_OF_A_GROUP: Final = 20
_NOTHING: Final = FoundPage(sagas=[], cursor=None, total=0, total_is_exact=True)


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


class Pages:
    """The pages that show something."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._reader = page.reader
        self._explorer = Explorer()

    # --- the whole store

    def overview(self, request: Request) -> Response:
        now = self._reader.standing()
        stretches = self._page.feed.rates.stretches(now.now_ms)
        return self._page.show(
            request,
            "overview",
            now=now,
            notices=list(standing.notices(now)),
            parked=self._reader.parked(),
            recent=self._reader.recent(),
            chart=charts.rates(stretches, charts.WIDE),
            chart_narrow=charts.rates(stretches[-charts.NARROW_STRETCHES :], charts.NARROW),
            a_minute=self._page.feed.rates.a_minute(now.now_ms),
        )

    def parked(self, request: Request) -> Response:
        return self._page.show(request, "parked", parked=self._reader.parked(), most=_OF_A_GROUP)

    def services(self, request: Request) -> Response:
        return self.all_services(request)

    def all_services(
        self,
        request: Request,
        status: int = 200,
        complaint: str | None = None,
        given: Mapping[str, str] | None = None,
        service: str | None = None,
    ) -> Response:
        """The page of services. `complaint`: why what was asked for was not done; `given`: what stood in the form of
        this `service`."""
        now = self._reader.standing()
        processes = self._reader.processes()
        rows = [
            {
                "queue": queue,
                "name": queue.facts.name,
                "notices": standing.of_service(queue, now),
                "pauses": [one for one in now.evidence.pauses if one.service == queue.facts.name],
                "is_paused": any(one.name == queue.facts.name for one in now.evidence.pauses),
                "processes": [one for one in processes if one.service == queue.facts.name],
                "commands": self._reader.recent().commands.get(queue.facts.name, ()),
            }
            for queue in now.queues
        ]
        workers = [one for one in processes if one.service is None and one.kind == "worker"]
        return self._page.show(
            request,
            "services",
            status,
            now=now,
            rows=rows,
            workers=workers,
            sample=self._reader.recent().looked_at,
            operations=self._reader.operations(),
            complaint=complaint,
            given=given or {},
            given_of=service,
            at=None if complaint is None else "/services",
        )

    # --- sagas

    def sagas(self, request: Request) -> Response:
        search, complaint, found = Search(), None, _NOTHING
        try:
            search = Search.of(request.query_params)
            found = self._reader.find(search)
            if not found.sagas and (named := self._reader.service_in_place_of_command(search)) is not None:
                complaint = "{1} is a service: {0} {1}/COMMAND".format(*named)
        except (WrongSearch, MalformedMessage, ValueError) as error:
            complaint = str(error).removeprefix("the search: ")
        whys = self._reader.why(found.sagas) if found.sagas else []
        return self._page.show(
            request,
            "sagas",
            200 if complaint is None else 422,
            search=search,
            given={name: request.query_params.get(name, "") for name in Search.NAMES},
            complaint=complaint,
            found=found,
            none_found=views.none_found(found, search.wanted, is_first=search.cursor is None),
            is_faster_by_status=views.is_faster_by_status(search.wanted),
            may_ask_all=bool(search.given and (found.sagas or found.cursor))
            and search.wanted.status not in ("COMPLETED", "ABORTED"),
            rows=[(state, why_of(state, causes)) for state, causes in zip(found.sagas, whys, strict=True)],
            statuses=STATUSES,
            definitions=[one.name for one in self._reader.definitions()],
        )

    def saga(self, request: Request) -> Response:
        return self.one_saga(request, request.path_params["saga_id"])

    def one_saga(
        self,
        request: Request,
        saga_id: str,
        status: int = 200,
        complaint: str | None = None,
        given: Mapping[str, str] | None = None,
    ) -> Response:
        """The page of a saga. `complaint`: why what was asked for was not done; `given`: what stood in the form."""
        if not is_id(saga_id):
            return self._page.show(request, "missing", 404, what=f"{saga_id!a:.140} is not the id of a saga.")
        try:
            found = self._reader.saga(saga_id)
        except UnreadableSaga as error:
            return self._page.show(request, "missing", 500, what=str(error), do=("sagastream doctor",))
        live = f"/live?saga={saga_id}"
        if (state := found.state) is None:
            what = f"There is no saga {saga_id} in this store: it was never begun, has expired, or is not begun yet."
            return self._page.show(
                request, "missing", 404, what=what, causes=found.causes, notes=found.notes, live=live, do=()
            )
        events = history(state)
        nodes = [node._replace(label=_spaced(node.label), note=node.note.lower()) for node in graph_views.nodes(state)]
        tones = {number: wording.PHASE_TONES[step.phase] for number, step in enumerate(state.steps, 1)}
        return self._page.show(
            request,
            "saga",
            status,
            state=state,
            causes=found.causes,
            notes=found.notes,
            now_ms=found.now_ms,
            drawing=graph_drawing.svg(nodes, tones, f"The graph of saga {saga_id}"),
            timeline=timeline.svg(state, events, found.now_ms),
            events=events,
            stands=graph_views.stands,
            offers=(offered := offers(state, found.causes) if not state.ended else []),
            # What stands on a button need not be said twice.
            offered={offer.advice for offer in offered} if self._page.allow_actions else set(),
            looks=_looks(self._reader, saga_id),
            complaint=complaint,
            given=given or {},
            live=live,
            at=None if complaint is None else f"/sagas/{saga_id}",
        )

    # --- what was set aside

    def quarantine(self, request: Request) -> Response:
        return self._page.show(
            request, "quarantine", messages=self._reader.quarantined(), total=len(self._reader.quarantine),
            most=MOST_QUARANTINED,
        )  # fmt: skip

    def quarantined(self, request: Request) -> Response:
        return self.one_quarantined(request, request.path_params["entry_id"])

    def one_quarantined(
        self,
        request: Request,
        entry_id: str,
        status: int = 200,
        complaint: str | None = None,
        given: Mapping[str, str] | None = None,
    ) -> Response:
        try:
            message = self._reader.quarantine.get(entry_id)
        except QuarantineError as error:
            return self._page.show(request, "missing", 404, what=f"{error}. Somebody may have dealt with it.")
        return self._page.show(
            request,
            "quarantined",
            status,
            message=message,
            body=wording.body(message),
            complaint=complaint,
            given=given or {},
            at=None if complaint is None else f"/quarantine/{entry_id}",
        )

    # --- definitions

    def definitions(self, request: Request) -> Response:
        return self._page.show(
            request, "definitions", deployed=self._reader.definitions(), recent=self._reader.recent()
        )

    def definition(self, request: Request) -> Response:
        name, asked = request.path_params["name"], request.query_params.get("version", "")
        deployed = (
            next((one for one in self._reader.definitions() if one.name == name), None) if is_service(name) else None
        )
        version = None if deployed is None else _version(deployed, asked)
        if deployed is None or version is None:
            what = f"There is no definition {name!a:.140} in this store" + (
                f" in version {asked!a:.40}." if asked else "."
            )
            return self._page.show(request, "missing", 404, what=what, do=("sagastream deploy FILE  # brings one",))
        nodes = [node._replace(label=_spaced(node.label)) for node in outline.nodes(version.definition.steps)]
        return self._page.show(
            request,
            "definition",
            deployed=deployed,
            version=version,
            drawing=graph_drawing.svg(nodes, _kinds(nodes), f"The graph of definition {name}"),
            nodes=nodes,
            steps=version.definition.steps,
            recent=self._reader.recent(),
            table=self._table(version) if "explore" in request.query_params else None,
        )

    def _table(self, version: Version) -> Table:
        services = {str(step["service"]) for step in version.definition.steps if "service" in step}
        return self._explorer.table(version.definition, self._reader.published(services))


def failed(page: Page, request: Request, error: Exception) -> Response:
    """The page that is shown in place of one that cannot be read."""
    is_away = isinstance(error, redis.RedisError) and is_outage(error)
    return page.show(request, "away", 503 if is_away else 500, trouble=trouble(error), is_away=is_away)


def why_of(state: SagaState, causes: Sequence[Cause]) -> str:
    """Why a saga is where it is, on one line, as `sagastream list` says it."""
    if state.parked:
        return state.parked
    if state.ended:
        return state.reason or ""
    return headline(causes) or f"waits for {state.waiting_for}"


def _spaced(label: str) -> str:
    """A label whose columns are parted by a dot."""
    return " · ".join(part for part in re.split(r"\s{2,}", label.strip()) if part)


def _kinds(nodes: Sequence[Node]) -> Mapping[int, str]:
    return {node.number: {Form.PIVOT: "back", Form.WAIT: "live"}.get(node.form, "plain") for node in nodes}


def _version(deployed: Deployed, asked: str) -> Version | None:
    """The version that is asked for or, without one, that is current or the newest."""
    if asked:
        return next((one for one in deployed.versions if str(one.definition.version) == asked), None)
    found = next((one for one in deployed.versions if one.definition.version == deployed.current), None)
    return found or (deployed.versions[-1] if deployed.versions else None)


def _looks(reader: StoreReader, saga_id: str) -> list[str]:
    """How to look at a saga without this page."""
    keys: StoreKeys = reader.keys()
    cli = redis_cli(reader.broker.url)
    return [
        f"sagastream show {saga_id}",
        f"{cli} HGETALL {keys.saga(saga_id)}",
        f"{cli} ZSCORE {keys.of(saga_id).timers} {saga_id}",
    ]
