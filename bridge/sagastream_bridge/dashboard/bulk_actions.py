"""What a person may do from a page to many sagas at once: begin a bulk, pause it, let it go on, stop it."""

from typing import Final

import redis
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sagastream.broker.exchange import run
from sagastream.broker.failures import told
from sagastream.core.bulks import MOST_RATE, Bulk
from sagastream.errors import SagastreamError
from sagastream.store import bulks, layout
from sagastream.telemetry import Log
from sagastream_bridge.dashboard.actions import Actions, Form, Refused, reason_and_name, sentence
from sagastream_bridge.dashboard.bulk_pages import VERBS, BulkPages
from sagastream_bridge.dashboard.finding import Search, WrongSearch
from sagastream_bridge.dashboard.outage import is_away
from sagastream_bridge.dashboard.page import Page

#: What is said when each was done.
_BECAME: Final = {
    "pause": "is paused: no more sagas are asked until it is resumed",
    "resume": "goes on where it was",
    "stop": "is stopped for ever",
}


class BulkActions:
    """The actions."""

    def __init__(self, page: Page, pages: BulkPages, actions: Actions) -> None:
        self._page = page
        self._pages = pages
        self._actions = actions
        self._log = Log("dashboard", "sagastream dashboard")

    def begin(self, request: Request, form: Form) -> Response:
        """One verb for all sagas that a search finds."""
        verb = form.get("verb", "")
        if verb not in VERBS:
            return PlainTextResponse("There is no such action.\n", 404)
        try:
            reason, actor = reason_and_name(form)
            bulk = self._begun(verb, reason, actor, form)
        except Refused as error:
            return self._pages.asked(request, verb, form, str(error), form)
        self._log.info(f"{actor}: bulk {bulk.bulk_id}: {verb} of sagas with {bulks.told(bulk.filter)}: {reason}")
        text = f"Bulk {bulk.bulk_id} has begun. Workers carry it out, also if you leave this page."
        return self._actions.done(request, f"/bulks/{bulk.bulk_id}", text, actor)

    def turn(self, request: Request, form: Form) -> Response:
        """A bulk is paused, resumed or stopped."""
        bulk_id, verb = request.path_params["bulk_id"], request.path_params["verb"]
        if verb not in _BECAME or not bulks.is_bulk_id(bulk_id):
            return PlainTextResponse("There is no such action.\n", 404)
        try:
            reason, actor = reason_and_name(form)
            self._turned(bulk_id, verb, reason, actor)
        except Refused as error:
            return self._pages.one(request, bulk_id, 422, str(error), form)
        self._log.info(f"{actor}: {verb} of bulk {bulk_id}: {reason}")
        return self._actions.done(request, f"/bulks/{bulk_id}", f"Bulk {bulk_id} {_BECAME[verb]}.", actor)

    def _begun(self, verb: str, reason: str, actor: str, form: Form) -> Bulk:
        rate, now = form.get("rate", "").strip(), form.get("now") == "yes"
        if not (rate.isascii() and rate.isdigit() and len(rate) < 6):
            raise Refused(f"Rate must be a whole number from 1 to {MOST_RATE} a second.")
        try:
            wanted = Search.of(form).wanted
            keys = layout.check(broker := self._page.reader.broker)
            asking = bulks.begin(keys, verb, wanted, reason=reason, actor=actor, rate=int(rate), now=now)
            return run(broker.client, asking)
        except redis.RedisError as error:
            if is_away(error):
                raise
            raise Refused(f"{told(error)}.") from None
        except (WrongSearch, SagastreamError) as error:
            raise Refused(sentence(error)) from None

    def _turned(self, bulk_id: str, verb: str, reason: str, actor: str) -> None:
        try:
            getattr(self._page.reader.client, f"{verb}_bulk")(bulk_id, reason=reason, actor=actor)
        except redis.RedisError as error:
            if is_away(error):
                raise
            raise Refused(f"{told(error)}.") from None
        except SagastreamError as error:
            raise Refused(sentence(error)) from None
