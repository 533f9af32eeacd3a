"""From the events stream back to lines: the messages of traced sagas, and the answers to those who wait."""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import Exchange, locked, run
from sagastream.client.answers import Refused
from sagastream.client.waiting import Outcome, Settled, Waiter
from sagastream.client.watcher import SagaWatcher
from sagastream.core.messages import Begin, ToSaga
from sagastream.core.saga import SagaState
from sagastream.core.sealed_messages import opened_message
from sagastream.core.sealing import Codec
from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage
from sagastream.store.layout import Layout
from sagastream.telemetry import Log
from sagastream_bridge.stdin.lines import ORCHESTRATOR, Caller, LineWriter, Refusal, told

#: The name of the bridge in the log, and its logger.
WHO: Final = "sagastream bridge"
LOG: Final = Log("bridge", WHO)
#: How long one reading waits for events, in milliseconds.
_BLOCK_MS: Final = 500
#: How often a thread that waits for all answers looks whether it is to stop, in seconds.
_STOP_CHECK_S: Final = 0.1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asker(Waiter):
    """The sender of a line that is answered later: of a request or, without one, of a saga_await."""

    caller: Caller
    past_parking: bool = True  # a saga that is parked has not ended

    @property
    def begin(self) -> Begin | None:
        """The request, if it is one to begin the saga."""
        return self.request if isinstance(self.request, Begin) else None


class Follower:
    """Follows the events for all who asked. Every message of a traced saga is told, then its end, each once.

    One thread takes turns; the others add askers, look, and wait until all are answered.
    """

    def __init__(
        self,
        broker: Broker,
        out: LineWriter,
        *,
        outcomes: bool,
        served: Collection[str],
        refused: Callable[[Asker, Refusal], None],
        codec: Codec | None = None,
    ) -> None:
        """
        Args:
            outcomes: tell the end of every saga to the sender of its saga_begin.
            served: services that are played here; their commands are written when they are handed out.
            refused: called when a request is refused, or its saga cannot be read.
            codec: opens the sealed values of what is told.
        """
        self._client: redis.Redis = broker.client
        self._out = out
        self._outcomes = outcomes
        self._served = served
        self._refused = refused
        self._codec = codec
        # The lock of what follows.
        self._changed = threading.Condition()
        self._watcher = SagaWatcher(
            Layout(broker.prefix, on_known=broker.takes_time_at), in_order=True, in_all=True, codec=codec
        )
        self._unanswered: dict[Waiter, None] = {}

    def start(self) -> None:
        """Follow the events from now on."""
        self._run(self._watcher.start())

    def add(self, asker: Asker) -> None:
        with self._changed:
            self._watcher.add(asker)
            self._unanswered[asker] = None

    def begin_of(self, saga_id: str) -> Begin | None:
        """The saga_begin that somebody sent here, if its saga has not ended yet."""
        return next((asker.begin for asker in self._askers(saga_id) if asker.begin is not None), None)

    def look(self, saga_id: str) -> None:
        """Answer those who asked about this saga, if it settles them. Do not wait for the turn, which may wait for
        events."""
        self._answer_all(self._run(self._watcher.look_at([saga_id])))

    def turn(self) -> None:
        """Read events, write their messages, and answer the askers that are settled."""
        settled = self._run(self._watcher.turn(_BLOCK_MS))
        for event in self._watcher.heard:
            try:
                self._tell(event.fields)
            except (KeyError, TypeError, MalformedMessage) as error:
                LOG.warning(f"the event {event.id.decode()} makes no sense: {error!r}")
        self._answer_all(settled)

    def wait_until_answered(self, timeout_s: float, stop: threading.Event) -> list[str]:
        """Wait until all askers are answered, at most so long and until `stop`. Returns the sagas of the others."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._unanswered and not stop.is_set() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, _STOP_CHECK_S))
            return list(dict.fromkeys(asker.saga_id for asker in self._unanswered))

    def _run(self, exchange: Exchange[_T]) -> _T:
        return run(self._client, locked(exchange, self._changed))

    def _askers(self, saga_id: str) -> list[Asker]:
        with self._changed:
            return [waiter for waiter in self._watcher.waiting_for(saga_id) if isinstance(waiter, Asker)]

    def _tell(self, fields: dict[bytes, bytes]) -> None:
        """Tell an event of a saga that somebody waits for."""
        kind, saga_id = fields.get(b"kind"), fields[b"saga_id"].decode(errors="replace")
        if kind in (b"command", b"reply"):
            if any(asker.begin is not None and asker.begin.echo for asker in self._askers(saga_id)):
                self._tell_message(fields, is_reply=kind == b"reply")
        elif kind == b"parked":
            reason = decode(fields[b"body"])["reason"]
            LOG.warning(f"saga {saga_id} is parked, and waits for a person: {reason}", extra={"saga_id": saga_id})

    def _tell_message(self, fields: dict[bytes, bytes], *, is_reply: bool) -> None:
        service, body = fields[b"service"].decode(errors="replace"), decode(fields[b"body"])
        body = opened_message(self._codec, body)
        if is_reply:
            self._out.message(service, ORCHESTRATOR, body)
        elif service not in self._served:
            self._out.message(ORCHESTRATOR, service, body)

    def _answer_all(self, settled: Settled) -> None:
        for asker, outcome in settled:
            assert isinstance(asker, Asker)
            self._answer(asker, outcome)
            with self._changed:
                del self._unanswered[asker]
                self._changed.notify_all()

    def _answer(self, asker: Asker, outcome: Outcome) -> None:
        if isinstance(outcome, Refused):
            self._refused(asker, outcome.error)
        elif isinstance(asker.request, ToSaga):
            self._out.answer(asker.caller, f"saga_{asker.request.verb}_ok", told(outcome))
        elif asker.begin is None:
            self._out.answer(asker.caller, "saga_await_ok", told(outcome))
        elif self._outcomes:
            self._out.answer(asker.caller, f"saga_{outcome.status.lower()}", _end(outcome))


def _end(state: SagaState) -> dict[str, Any]:
    """The members of a line that tells how a saga ended."""
    end = {"saga_id": state.saga_id, "status": str(state.status)}
    return end if state.reason is None else end | {"reason": state.reason}
