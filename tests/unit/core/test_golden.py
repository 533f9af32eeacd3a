"""What a plain saga looks like on the wire, in its hash and as SagaState: byte for byte, as golden files keep it.

The files were written by the release that came before the modules were sorted into folders. A change of a file is a
change of the protocol: `python -m pytest tests/unit/core/test_golden.py --write-golden` rewrites them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from msgspec.structs import replace

from sagastream.core.messages import Begin, Intervene, Verb
from sagastream.core.saga import SagaState, protocol_view
from sagastream.core.steps import StepKind
from sagastream.store.saga_hash import changed_fields
from support.stories import CHARGE, PUBLISHED, RESERVE, SHIP, Story, step

GOLDEN = Path(__file__).parent / "golden"

FLIGHT = step("BookFlight", "flights", {"to": "OSA"}, "CancelFlight", timeout_ms=5000, attempts=2, backoff_ms=200)
LOG = step("LogOrder", "log", [1, "two", None], None)
PAY = step("Pay", "till", {"amount": 5}, kind=StepKind.PIVOT)
MAIL = step("SendMail", "mail", "to whom", kind=StepKind.RETRIABLE, attempts=2)
TRY = step("TryIt", "till", {"amount": 1}, retry_failed=True, attempts=3, compensation_attempts=2)


class Recorder(Story):
    """A story that records all results of each of its events."""

    def __init__(self, begin: Begin) -> None:
        self.written: list[Any] = [{"request": _words(begin.fields())}]
        super().__init__(begin, PUBLISHED, 1.0)

    def _when(self, event: Any, *, after_ms: int = 1000) -> Self:
        before: SagaState | None = getattr(self, "state", None)
        super()._when(event, after_ms=after_ms)
        told: dict[str, Any] = {"event": type(event).__name__}
        if hasattr(event, "fields"):
            told["entry"] = _words(event.fields())
        decision = self.decision
        told["commands"] = [[command.service, _words(command.fields())] for command in decision.commands]
        told["notices"] = [_words(notice.fields()) for notice in decision.notices]
        told["quarantine"] = decision.quarantine
        if self.state is not before:
            told["hash"] = list(map(_word, changed_fields(before, self.state)))
            told["due_ms"] = self.saga.due_ms
            told["state"] = json.dumps(protocol_view(self.saga))
        self.written.append(told)
        # A commit raises the version; a story does not commit.
        if self.state is not None and self.state is not before:
            self.state = _next(self.state)
        return self


def _next(state: SagaState) -> SagaState:
    return replace(state, version=state.version + 1)


def _word(word: Any) -> Any:
    return word.decode() if isinstance(word, bytes) else word


def _words(fields: dict[str, Any]) -> list[Any]:
    """In order: it is the order in the entry."""
    return [_word(word) for pair in fields.items() for word in pair]


def _saga(*steps: Any, **members: Any) -> Recorder:
    return Recorder(Begin(saga_id="saga42", steps=steps, **members))


def completes() -> Recorder:
    saga = _saga(RESERVE, CHARGE, SHIP)
    saga.when("ReserveInventory_ok", 1, result={"reservation_id": "r1"})
    saga.when("ChargePayment_ok", 2, result={"payment_id": "p1"})
    saga.when("ChargePayment_ok", 2, result={"payment_id": "p1"})
    saga.when("CreateShipment_ok", 3, result={"shipment_id": "s1"})
    return saga


def compensates() -> Recorder:
    saga = _saga(RESERVE, CHARGE, SHIP, request_id="req-1", echo=True)
    saga.when("ReserveInventory_ok", 1, result={"reservation_id": "r1"})
    saga.when("ChargePayment_failed", 2, error="insufficient_funds")
    saga.when("ReleaseReservation_ok", 1)
    return saga


def first_step_fails() -> Recorder:
    return _saga(CHARGE).when("ChargePayment_failed", 1, error={"code": 7})


def times_out_and_is_undone() -> Recorder:
    saga = _saga(LOG, FLIGHT, SHIP, request_id="req-1")
    saga.when("LogOrder_ok", 1).when_due().when_due().when_due()
    saga.when("BookFlight_ok", 2, attempt=1, result={"seat": "12A"})
    saga.when("CancelFlight_failed", 2, error="busy").when_due().when("CancelFlight_ok", 2)
    return saga


def pivot_and_retriable() -> Recorder:
    saga = _saga(RESERVE, PAY, MAIL, echo=True)
    saga.when("ReserveInventory_ok", 1, result=1.5).when("Pay_ok", 2)
    saga.when("SendMail_failed", 3, error="full").when_due().when("SendMail_failed", 3, error="full")
    saga.when_asked(Verb.RETRY).when("SendMail_failed", 3, error="full").when_due().when_due()
    saga.when_asked(Verb.SKIP, "told by phone", "op-2")
    return saga


def parks_at_an_undo() -> Recorder:
    saga = _saga(TRY, CHARGE, deadline_ms=90_000)
    saga.when("TryIt_failed", 1, error="not yet").when_due().when("TryIt_ok", 1, result=None)
    saga.when("ChargePayment_failed", 2, unknown=True, error="oops").when_due()
    saga.when_asked(Verb.CANCEL, "enough", "op-1").when_due()
    saga.when("ChargePayment_ok", 2, attempt=2)
    for _ in range(40):
        if saga.saga.parked is None and not saga.saga.ended:
            saga.when_due()
    saga.when_asked(Verb.SKIP, "by hand", "op-2").when_asked(Verb.ABANDON, "by hand too", "op-3")
    saga.when("Nonsense_ok", 1)
    return saga


def is_cancelled() -> Recorder:
    saga = _saga(RESERVE, CHARGE, deadline_ms=60_000, request_id="req-9")
    saga.when_asked(Verb.CANCEL, "changed my mind", "op-1").when_asked(Verb.CANCEL, "changed my mind", "op-1")
    saga.when("ReserveInventory_ok", 1, result={"reservation_id": "r1"}).when("ReleaseReservation_ok", 1)
    saga.when_asked(Verb.RETRY, "why not", "op-2")
    return saga


STORIES: list[Callable[[], Recorder]] = [
    completes,
    compensates,
    first_step_fails,
    times_out_and_is_undone,
    pivot_and_retriable,
    parks_at_an_undo,
    is_cancelled,
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_a_plain_saga_is_the_same_byte_for_byte(story: Callable[[], Recorder], request: pytest.FixtureRequest) -> None:
    written = json.dumps(story().written, indent=1, ensure_ascii=False) + "\n"
    path = GOLDEN / f"{story.__name__}.json"
    if request.config.getoption("--write-golden"):
        path.write_text(written)
    assert written == path.read_text()


def test_requests_of_operators_are_the_same_byte_for_byte() -> None:
    intervene = Intervene(verb=Verb.SKIP, saga_id="saga42", reason="done by hand", request_id="op-1")
    body = b'{"type":"saga_skip","saga_id":"saga42","reason":"done by hand"}'
    assert intervene.fields() == {"body": body, "request_id": "op-1"}


def test_the_stories_come_to_all_ends() -> None:
    ends = {story().saga.status for story in STORIES}
    assert ends == {"COMPLETED", "ABORTED"}
