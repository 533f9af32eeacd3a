"""Sagas that are graphs, moved event by event through the core."""

from typing import Any

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.causes import Evidence, Reader, ServiceFacts
from sagastream.core.commands import Reply
from sagastream.core.decision import decide
from sagastream.core.messages import Due
from sagastream.core.parsing import parse_intervene, parse_signal
from sagastream.core.saga import SagaState
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Moment

NOW_MS = 1_700_000_000_000
WORKER = Reader(name="worker-1-aa", is_alive=True, silent_ms=300)

#: A step from which there is no way back.
PIVOT: dict[str, Any] = {
    "transaction": "Pay",
    "service": "payments",
    "params": {},
    "kind": "pivot",
    "compensation": None,
}
#: A travel booking: two bookings at once, one step that is bypassed, an approval, the payment, and a pause.
TRAVEL: list[dict[str, Any]] = [
    {
        "id": "flight",
        "transaction": "BookFlight",
        "service": "flights",
        "params": {"for": {"$ref": "/input/user"}},
        "compensation": "CancelFlight",
        "after": [],
        "attempts": 2,
    },
    {
        "id": "hotel",
        "transaction": "BookHotel",
        "service": "hotels",
        "params": {"for": {"$ref": "/input/user"}},
        "compensation": "CancelHotel",
        "compensation_params": {"why": {"$ref": "/failure/reason"}},
        "after": [],
        "attempts": 2,
    },
    {
        "id": "insure",
        "transaction": "Insure",
        "service": "insurance",
        "params": None,
        "compensation": None,
        "after": ["hotel"],
        "when": {"eq": [{"$ref": "/input/insured"}, True]},
    },
    {"id": "approval", "wait": "approve", "timeout_ms": 86_400_000, "after": ["flight", "insure"]},
    {
        "id": "pay",
        "transaction": "Pay",
        "service": "payments",
        "kind": "pivot",
        "params": {"flight": {"$ref": "/steps/flight/result/id"}},
        "compensation": None,
    },
    {"id": "rest", "wait_ms": 60_000},
]


class Refused(AssertionError):
    """An event was refused: a request, or a reply that makes no sense."""


class Played:
    """A saga in the hands of the core."""

    journal_bytes = 0  # it keeps no journal

    def __init__(self, *steps: dict[str, Any], **members: Any) -> None:
        body = {"saga_id": "trip-1", "input": {"user": "u1", "insured": False}, "steps": list(steps or TRAVEL)}
        self.now_ms = NOW_MS
        self.commands: list[str] = []
        self.state: SagaState | None = None
        self._decide(parse_begin(body | members))

    @property
    def saga(self) -> SagaState:
        assert self.state is not None
        return self.state

    def ok(self, step: int, result: Any = None) -> "Played":
        return self._reply(step, "ok", result=None if result is None else encode(result))

    def failed(self, step: int, error: Any = None) -> "Played":
        return self._reply(step, "failed", error=None if error is None else encode(error))

    def signal(self, name: str, payload: Any = None, **members: Any) -> "Played":
        said = members or {"payload": payload}
        return self._decide(parse_signal({"type": "saga_signal", "saga_id": "trip-1", "name": name} | said))

    def says(self, verb: str, **members: Any) -> "Played":
        return self._decide(parse_intervene({"type": f"saga_{verb}", "saga_id": "trip-1", "reason": "so"} | members))

    def due(self, after_ms: int | None = None) -> "Played":
        """Let the next time come; or the time pass, with all that is due in it."""
        until_ms = self.now_ms if after_ms is None else self.now_ms + after_ms
        while (due_ms := self.saga.due_ms) is not None and (after_ms is None or due_ms <= until_ms):
            self.now_ms = max(self.now_ms, due_ms)
            self._decide(Due(saga_id="trip-1"))
            if after_ms is None:
                return self
        self.now_ms = max(self.now_ms, until_ms)
        return self

    def _reply(self, number: int, kind: str, **payload: Any) -> "Played":
        step = self.saga.steps[number - 1]
        return self._decide(Reply(type=f"{step.command}_{kind}", saga_id="trip-1", step=number, **payload))

    def _decide(self, event: Any) -> "Played":
        moment = Moment(now_ms=self.now_ms, published={}, journal_bytes=self.journal_bytes)
        decision = decide(self.state, event, moment)
        if decision.quarantine is not None:
            raise Refused(decision.quarantine)
        assert isinstance(decision.state, SagaState), decision
        self.state = decision.state
        self.commands += [command.type for command in decision.commands]
        return self


def at_work(*services: str, now_ms: int = NOW_MS, **members: Any) -> Evidence:
    """A store with a worker, and a process of each of these services."""
    facts = {
        name: ServiceFacts(name=name, processes=(Reader(name=f"{name}-1-aa", is_alive=True, silent_ms=100),))
        for name in services
    }
    names = frozenset({"flights", "hotels", "payments", "insurance"})
    known: dict[str, Any] = {"now_ms": now_ms, "workers": (WORKER,), "services": facts, "names": names}
    return Evidence(**(known | members))
