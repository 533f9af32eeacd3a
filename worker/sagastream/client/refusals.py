"""Requests that a worker has refused, as the events tell it: for those who wait, and for those who ask later.

A refusal is kept nowhere else that every client may read, and there is no saga to keep it with. The events stream is
capped, so a refusal is found for as long as not many other events have followed. Rejected: a key of its own for each,
with a time to live. Whoever floods a store with requests that are refused would fill it with them.
"""

from collections.abc import Iterable

from sagastream.broker.exchange import Exchange
from sagastream.core.messages import Begin, Code, ToSaga
from sagastream.errors import RequestRefused
from sagastream.store import events
from sagastream.store.keys import StoreKeys


def of_requests(keys: StoreKeys, begins: Iterable[Begin]) -> Exchange[dict[str, RequestRefused]]:
    """Which of these requests were refused lately, by their ids."""
    asked = {begin.request_id: begin for begin in begins if begin.request_id is not None}
    found: dict[str, RequestRefused] = {}
    for partition in dict.fromkeys(keys.of(begin.saga_id) for begin in asked.values()):
        for event in (yield from events.refusals(partition)):
            request_id = event.fields.get(b"request_id", b"").decode(errors="replace")
            if request_id in asked and (refusal := events.refusal(event.fields)) is not None:
                found.setdefault(request_id, refusal)
    return found


def of_saga(keys: StoreKeys, saga_id: str, request: Begin | ToSaga | None = None) -> Exchange[RequestRefused | None]:
    """Why there is no saga of this id, if a request to begin it was refused lately: this request or, without one, the
    newest of any."""
    for event in (yield from events.refusals(keys.of(saga_id))):
        if event.fields.get(b"saga_id") != saga_id.encode():
            continue
        if request is not None and event.fields.get(b"request_id") != (request.request_id or "").encode():
            continue
        refusal = events.refusal(event.fields)
        # With NO_SUCH_SAGA a request was refused that is about a saga.
        if refusal is not None and refusal.code != Code.NO_SUCH_SAGA:
            return refusal
    return None
