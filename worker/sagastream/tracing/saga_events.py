"""The events of a saga's span: what was decided about the saga, and when."""

from typing import Any, Final, NamedTuple

from sagastream.console import brief, printable
from sagastream.core.back import quote
from sagastream.core.history import history
from sagastream.core.history_events import HistoryEvent, HistoryKind
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.sealed_values import NAME
from sagastream.core.step_state import Step

#: The begin and the end of the saga are those of its span.
_BOUNDS: Final = (HistoryKind.BEGUN, HistoryKind.ENDED)
#: A long text ends with this where it was cut off; so may what people said.
_CUT: Final = "…"
#: An error with this may be sealed. Of a long one, the history has only the beginning.
_SEALED: Final = NAME.encode()


class SpanEvent(NamedTuple):
    """One event of a span."""

    name: str
    at_ms: int
    attributes: dict[str, Any]


def events(saga: SagaState) -> list[SpanEvent]:
    """All that is known to have been decided about a saga, by time."""
    usual = _usual(saga)
    return of_history(saga) if usual is None else usual


def of_history(saga: SagaState) -> list[SpanEvent]:
    """The events as the history of the saga has them; without those whose time is not known."""
    return [
        SpanEvent(_name(one), one.at_ms, _attributes(saga, one))
        for one in history(saga)
        if one.kind not in _BOUNDS and one.at_ms is not None
    ]


def without_words(saga: SagaState, text: str) -> str:
    """Why something went wrong, without what people said of that: their words are erased with the saga, and spans are
    not."""
    for said in [f": {done.reason}" for done in saga.interventions if done.reason]:
        text = text.replace(said, "")
        if text.endswith(_CUT):
            cut = text.removesuffix(_CUT)
            starts = (at for at in range(len(cut)) if said.startswith(cut[at:]))
            text = cut[: next(starts, len(cut))] + _CUT
    return text


def _usual(saga: SagaState) -> list[SpanEvent] | None:
    """The same of a saga whose steps were all sent and done, without more ado, as of most sagas; None: there was more.
    A history is made to be read: it costs several times as much."""
    if saga.status is not SagaStatus.COMPLETED or saga.journal is not None or saga.interventions:
        return None
    found: list[SpanEvent] = []
    for number, step in enumerate(saga.steps, 1):
        if not _is_usual(step):
            return None
        attributes: dict[str, Any] = {"sagastream.step": number, "sagastream.command": step.definition.transaction}
        if step.attempt > 1:
            attributes["sagastream.attempt"] = step.attempt
        found.append(SpanEvent("sent", step.sent_ms or 0, attributes))
        found.append(SpanEvent("done", step.answered_ms or 0, attributes))
    found.sort(key=_at_ms)
    return found


def _is_usual(step: Step) -> bool:
    if step.phase is not Phase.COMPLETED or step.unknown or step.late_ms is not None or step.parked is not None:
        return False
    if step.compensation_sent_ms is not None or step.compensation_answered_ms is not None:
        return False
    return step.sent_ms is not None and step.answered_ms is not None and step.definition.shape.sends


def _at_ms(event: SpanEvent) -> int:
    return event.at_ms


def _name(event: HistoryEvent) -> str:
    """Of what somebody asked for: what that was."""
    return event.kind.lower() if event.verb is None else printable(event.verb)


def _attributes(saga: SagaState, event: HistoryEvent) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    if event.step is not None:
        attributes["sagastream.step"] = event.step
    if event.command is not None:
        attributes["sagastream.command"] = event.command
    if event.attempt is not None and event.attempt > 1:
        attributes["sagastream.attempt"] = event.attempt
    if event.error is not None and _SEALED not in event.error:
        attributes["sagastream.error"] = brief(without_words(saga, quote(event.error)))
    return attributes
