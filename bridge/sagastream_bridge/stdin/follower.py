"""Follows the events stream and answers those who wait for sagas."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from sagastream.broker.connection import Broker
from sagastream.broker.group_reader import Entry
from sagastream.client.blocking import last_event, read_events
from sagastream.core.messages import Code, Intervene
from sagastream.core.saga import Found, SagaState, begun_with, conflict
from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage
from sagastream.store import sagas
from sagastream.store.events import order
from sagastream.telemetry import Log
from sagastream_bridge.stdin.lines import ORCHESTRATOR, LineWriter, told
from sagastream_bridge.stdin.watch import Watch, Watches

#: The name of the bridge in the log, and its logger.
WHO: Final = "sagastream bridge"
LOG: Final = Log("bridge", WHO)
#: How long one reading waits for events, in milliseconds.
_BLOCK_MS: Final = 500
#: How often the states of sagas that are waited for are looked at, in seconds, and of how many.
_CHECK_EVERY_S: Final = 1.0
_CHECK_COUNT: Final = 500
#: Events after which the saga itself is looked at.
_LOOK_AT: Final = (b"outcome", b"done")


class Follower:
    """Answers with the events after `after`, in their order. The hashes are the truth, though: events are capped, so
    now and then it looks at the hashes themselves."""

    def __init__(
        self,
        broker: Broker,
        watches: Watches,
        out: LineWriter,
        *,
        outcomes: bool,
        served: Collection[str],
        refused: Callable[[Watch, int, str], None],
    ) -> None:
        """
        Args:
            outcomes: tell the end of every saga to who began it.
            served: services that are played here; their commands are written where they are handed out.
            refused: told of a request that was refused.
        """
        self.after = b"0-0"
        self._client = broker.client
        self._watches = watches
        self._out = out
        self._outcomes = outcomes
        self._served = served
        self._refused = refused
        # Sagas that were seen to have ended, and the newest event of that moment: once that was read, their own were.
        self._seen: list[SagaState] = []
        self._seen_at = b"0-0"
        self._check_at = 0.0

    def turn(self) -> None:
        """Read events and answer with them."""
        events = read_events(self._client, self.after, _BLOCK_MS)
        if events:
            self._tell(events)
            self.after = events[-1].id
        if self._seen and (not events or order(self.after) >= order(self._seen_at)):
            for state in self._seen:
                self._watches.end_echo(state.saga_id)
                self._ended(state)
            self._seen = []
        if not self._seen and time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + _CHECK_EVERY_S
            found = sagas.read(self._client, self._watches.some(_CHECK_COUNT))[0].values()
            states = [state for state in found if isinstance(state, SagaState)]
            for state in states:
                self._intervened(state)
            self._seen = [state for state in states if state.ended]
            self._seen_at = last_event(self._client)

    def _tell(self, events: Sequence[Entry]) -> None:
        news = [event.fields.get(b"saga_id", b"") for event in events if event.fields.get(b"kind") in _LOOK_AT]
        saga_ids = {saga_id.decode(errors="replace") for saga_id in news}
        states = sagas.read(self._client, [saga_id for saga_id in saga_ids if self._watches.of(saga_id)])[0]
        for event in events:
            try:
                self._tell_one(event.fields, states)
            except (KeyError, TypeError, MalformedMessage) as error:
                LOG.warning(f"the event {event.id.decode()} makes no sense: {error!r}")

    def _tell_one(self, fields: dict[bytes, bytes], states: Mapping[str, Found]) -> None:
        kind, saga_id = fields.get(b"kind"), fields.get(b"saga_id", b"").decode(errors="replace")
        if kind in (b"command", b"reply") and self._watches.echoes(saga_id):
            self._tell_message(fields, is_reply=kind == b"reply")
        elif kind == b"refused":
            self._tell_refusal(saga_id, fields)
        elif kind == b"parked" and self._watches.of(saga_id):
            reason = decode(fields[b"body"])["reason"]
            LOG.warning(f"saga {saga_id} is parked, and waits for a person: {reason}", extra={"saga_id": saga_id})
        elif kind == b"done" and isinstance(state := states.get(saga_id), SagaState):
            self._intervened(state)
        elif kind == b"outcome":
            state = states.get(saga_id)
            if isinstance(state, SagaState) and not state.ended:
                return  # whoever wrote that, it is not true
            self._watches.end_echo(saga_id)
            if isinstance(state, SagaState):
                self._ended(state)

    def _tell_message(self, fields: dict[bytes, bytes], *, is_reply: bool) -> None:
        service, body = fields[b"service"].decode(errors="replace"), decode(fields[b"body"])
        if is_reply:
            self._out.message(service, ORCHESTRATOR, body)
        elif service not in self._served:
            self._out.message(ORCHESTRATOR, service, body)

    def _tell_refusal(self, saga_id: str, fields: dict[bytes, bytes]) -> None:
        error, request_id = decode(fields[b"body"]), fields[b"request_id"].decode(errors="replace")
        for watch in self._watches.of(saga_id):
            if watch.request and watch.request.request_id == request_id and self._watches.take_one(watch):
                self._refused(watch, error["code"], error["text"])

    def _intervened(self, state: SagaState) -> None:
        """Answer those whose requests about this saga were done."""
        for watch in self._watches.of(state.saga_id):
            request = watch.request
            if not isinstance(request, Intervene) or not state.has_taken(request.request_id):
                continue
            if self._watches.take_one(watch):
                self._out.answer(watch.caller, f"saga_{request.verb}_ok", told(state))

    def _ended(self, state: SagaState) -> None:
        """Answer everybody who waited for the end of this saga."""
        for watch in self._watches.take(state.saga_id):
            if watch.begin is not None and not begun_with(state, watch.begin):
                self._refused(watch, Code.PRECONDITION_FAILED, conflict(state.saga_id))
            elif watch.begin is None:
                self._out.answer(watch.caller, "saga_await_ok", told(state))
            elif self._outcomes:
                outcome: dict[str, Any] = {"saga_id": state.saga_id, "status": str(state.status)}
                if state.reason is not None:
                    outcome["reason"] = state.reason
                self._out.answer(watch.caller, f"saga_{state.status.lower()}", outcome)
