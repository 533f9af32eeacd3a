"""The pages about sagas: those that a search finds, and one of them."""

import shlex
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from sagastream.broker.failures import NodeAway
from sagastream.broker.urls import redis_cli
from sagastream.core import not_undone
from sagastream.core.erasure import ERASED, erasure
from sagastream.core.history import history
from sagastream.core.messages import is_id
from sagastream.core.phases import Phase
from sagastream.errors import MalformedMessage, UnreadableSaga
from sagastream.store.finding import Page as FoundPage
from sagastream.store.keys import StoreKeys
from sagastream_bridge.dashboard import graph_drawing, timeline, wording
from sagastream_bridge.dashboard.finding import STATUSES, Search, WrongSearch
from sagastream_bridge.dashboard.graph_drawing import spaced
from sagastream_bridge.dashboard.offers import offers
from sagastream_bridge.dashboard.page import Page
from sagastream_bridge.dashboard.reading import StoreReader
from sagastream_bridge.inspection import graph_views
from sagastream_bridge.inspection.list_views import is_faster_by_status, none_found, why_there

_NOTHING: Final = FoundPage(sagas=[], cursor=None, total=0, total_is_exact=True)


class SagaPages:
    """The list of sagas, and the page of each."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._reader = page.reader

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
            none_found=none_found(found, search.wanted, is_first=search.cursor is None),
            is_faster_by_status=is_faster_by_status(search.wanted),
            may_ask_all=bool(search.given and (found.sagas or found.cursor))
            and search.wanted.status not in ("COMPLETED", "ABORTED"),
            rows=[(state, why_there(state, causes)) for state, causes in zip(found.sagas, whys, strict=True)],
            statuses=STATUSES,
            definitions=self._names_of_definitions(),
        )

    def _names_of_definitions(self) -> list[str]:
        """To choose from. They are of the whole store, and the list needs none if the node that has them is away."""
        try:
            return [one.name for one in self._reader.definitions()]
        except NodeAway:
            return []

    def saga(self, request: Request) -> Response:
        return self.one(request, request.path_params["saga_id"])

    def one(
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
        except NodeAway as error:
            keys = self._reader.layout()
            where = f"Saga {saga_id} is in partition {keys.of(saga_id).number} of {len(keys.partitions)}."
            return self._page.failed(request, error, where=where)
        live = f"/live?saga={saga_id}"
        if (state := found.state) is None:
            what = f"There is no saga {saga_id} in this store: it was never begun, has expired, or is not begun yet."
            return self._page.show(
                request, "missing", 404, what=what, causes=found.causes, notes=found.notes, live=live, do=()
            )
        events = history(state)
        nodes = [node._replace(label=spaced(node.label), note=node.note.lower()) for node in graph_views.nodes(state)]
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
            undone=sum(step.phase is Phase.COMPENSATED for step in state.steps),
            stays=not_undone.told(state),
            # Erased params, conditions and inputs have values in their place that nobody has given.
            erased=ERASED if erasure(state) is not None else "",
            offers=(offered := offers(state, found.causes) if not state.ended else []),
            # What stands on a button need not be said twice.
            offered={offer.advice for offer in offered} if self._page.allow_actions else set(),
            looks=_looks(self._reader, saga_id),
            complaint=complaint,
            given=given or {},
            live=live,
            at=None if complaint is None else f"/sagas/{saga_id}",
        )


def _looks(reader: StoreReader, saga_id: str) -> list[str]:
    """How to look at a saga without this page."""
    keys: StoreKeys = reader.keys()
    broker, key = reader.broker, keys.saga(saga_id)
    cli = redis_cli(broker.url, broker.node_of(key))
    return [
        f"sagastream show {saga_id}",
        f"sagastream show --redis {saga_id}",
        f"{cli} HGETALL {shlex.quote(key)}",
    ]
