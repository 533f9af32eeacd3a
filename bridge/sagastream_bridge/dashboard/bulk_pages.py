"""The pages about many sagas at once: what would be asked of which, the bulks of the store, and one of them."""

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sagastream.core.bulks import MOST_RATE, USUAL_RATE, checked
from sagastream.errors import MalformedMessage, RequestRefused
from sagastream.store.bulks import told
from sagastream_bridge.dashboard.finding import Search, WrongSearch
from sagastream_bridge.dashboard.page import Page
from sagastream_bridge.dashboard.reading import MOST_BULKS
from sagastream_bridge.inspection.bulk_views import progress
from sagastream_bridge.inspection.list_views import why_there

#: What each verb would do to the sagas that a search finds.
VERBS: Final = {
    "retry": "those that are parked try again what they are parked at",
    "skip": "those that are parked go on as if that were done",
    "abandon": "those that are parked end as they are; what was not undone stays",
    "cancel": "they go back when what is out is answered",
}
READ_ONLY: Final = "This dashboard only shows. To act from it, start it with --allow-actions.\n"
#: So many sagas that were done, and so many that were refused, are shown.
_MOST_RESULTS: Final = 100
#: So many of those that have taken a request are looked at: whether they are parked now.
_MOST_LOOKED_AT: Final = 1_000
#: For the checks of what a person has not filled in yet.
_SOME_REASON: Final = "-"


class BulkPages:
    """The pages about many sagas at once."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._reader = page.reader

    def bulks(self, request: Request) -> Response:
        return self._page.show(
            request, "bulks", bulks=self._reader.bulks(), most=MOST_BULKS, told_of=told, progress=progress
        )

    def bulk(self, request: Request) -> Response:
        return self.one(request, request.path_params["bulk_id"])

    def one(
        self,
        request: Request,
        bulk_id: str,
        status: int = 200,
        complaint: str | None = None,
        given: Mapping[str, str] | None = None,
    ) -> Response:
        """The page of a bulk. `complaint`: why what was asked for was not done; `given`: what stood in the form."""
        try:
            bulk = self._reader.bulk(bulk_id)
        except RequestRefused:
            what = f"There is no bulk {bulk_id!a:.40} in this store. A bulk is kept for 7 days."
            return self._page.show(request, "missing", 404, what=what, do=("sagastream bulk  # lists them",))
        results = self._reader.results(bulk_id)
        taken = [one.saga_id for one in results if one.refused is None][:_MOST_LOOKED_AT]
        return self._page.show(
            request,
            "bulk",
            status,
            bulk=bulk,
            told_of=told,
            turns=self._reader.turns(bulk_id),
            refused=[one for one in results if one.refused is not None][:_MOST_RESULTS],
            parked_now=self._reader.parked_now(taken),
            looked_at=len(taken),
            done=[one for one in results if one.refused is None][:_MOST_RESULTS],
            complaint=complaint,
            given=given or {},
            at=None if complaint is None else f"/bulks/{bulk_id}",
        )

    def asking(self, request: Request) -> Response:
        """What would be asked of which sagas, before it is."""
        if not self._page.allow_actions:
            return PlainTextResponse(READ_ONLY, 403)
        query = request.query_params
        return self.asked(request, query.get("verb", ""), query)

    def asked(
        self,
        request: Request,
        verb: str,
        query: Mapping[str, str],
        complaint: str | None = None,
        given: Mapping[str, str] | None = None,
    ) -> Response:
        """The same again. `complaint`: why it was not begun; `given`: what stood in the form."""
        if verb not in VERBS:
            return PlainTextResponse("There is no such action.\n", 404)
        try:
            search = Search.of(query)
            bulk = checked(verb, search.wanted, _SOME_REASON, None, rate=USUAL_RATE, now=False)
        except (WrongSearch, MalformedMessage) as error:
            text = str(error).removeprefix("the search: ")
            return self._page.show(request, "bulk_refused", 422, complaint=text, verb=verb)
        found = self._reader.sample(bulk.filter)
        whys = self._reader.why(found.sagas) if found.sagas else []
        return self._page.show(
            request,
            "bulk_begin",
            200 if complaint is None else 422,
            verb=verb,
            meaning=VERBS[verb],
            search=search,
            told_of_search=told(bulk.filter),
            found=found,
            rows=[(state, why_there(state, causes)) for state, causes in zip(found.sagas, whys, strict=True)],
            usual_rate=USUAL_RATE,
            most_rate=MOST_RATE,
            complaint=complaint,
            given=given or {},
            at=None if complaint is None else f"/bulks/begin?verb={verb}&{search.query()}",
        )
