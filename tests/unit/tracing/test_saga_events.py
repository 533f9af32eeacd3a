"""What the span of a saga tells of the decisions about it."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Reply
from sagastream.core.decision import Event, decide
from sagastream.core.messages import Due, Intervene, Signal, Verb
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.transitions import Moment
from sagastream.tracing.observer import Tracing
from sagastream.tracing.saga_events import SpanEvent, events, of_history
from sagastream.tracing.saga_spans import MOST_EVENTS
from support.states import graphs, states
from support.values import TRACEPARENT

STEPS: Final[list[dict[str, Any]]] = [
    {"transaction": "Reserve", "service": "shop", "compensation": "Release", "attempts": 2},
    {"transaction": "Charge", "service": "bank", "compensation": None},
]


def played(*happens: Event, steps: Any = STEPS) -> SagaState:
    """The saga after this: one thing every 10 ms, but what is due at its time."""
    state: Any = None
    now_ms = 1_000
    for event in (parse_begin({"saga_id": "s1", "steps": steps}, traceparent=TRACEPARENT), *happens):
        now_ms = state.due_ms if isinstance(event, Due) else now_ms
        moment = Moment(now_ms=now_ms, published={}, journal_bytes=4096, jitter=lambda _: 0.5)
        state = decide(state, event, moment).state
        now_ms += 10
    assert isinstance(state, SagaState)
    return state


def reply(kind: str, step: int, **more: Any) -> Reply:
    return Reply(type=kind, saga_id="s1", step=step, **{"attempt": 1} | more)


def told(saga: SagaState) -> list[str]:
    """Each event in a line."""
    found = []
    for name, at_ms, attributes in events(saga):
        named = [f"{key.removeprefix('sagastream.')}={value}" for key, value in attributes.items()]
        found.append(" ".join([str(at_ms), name, *named]))
    return found


def test_a_saga_that_completes_tells_when_each_command_was_sent_and_answered() -> None:
    assert told(played(reply("Reserve_ok", 1), reply("Charge_ok", 2))) == [
        "1000 sent step=1 command=Reserve",
        "1010 done step=1 command=Reserve",
        "1010 sent step=2 command=Charge",
        "1020 done step=2 command=Charge",
    ]


def test_attempts_that_failed_errors_and_what_was_undone_are_told() -> None:
    saga = played(
        reply("Reserve_failed", 1, error=b'"no\\u001b[2Jstock"', unknown=True),
        Due(saga_id="s1"),
        reply("Reserve_ok", 1, attempt=2),
        reply("Charge_failed", 2, error=b'{"code":7}'),
        reply("Release_ok", 1),
    )
    assert saga.status is SagaStatus.ABORTED
    assert told(saga) == [
        "1000 sent step=1 command=Reserve",
        r"1010 unknown step=1 command=Reserve error=no\x1b[2Jstock",
        "1760 sent step=1 command=Reserve attempt=2",
        "1770 done step=1 command=Reserve attempt=2",
        "1770 sent step=2 command=Charge",
        '1780 failed step=2 command=Charge error={"code":7}',
        "1780 undo_sent step=1 command=Release",
        "1790 undone step=1 command=Release",
    ]


@pytest.mark.parametrize("secret", ["secret", "secret, and more of it: " * 30])
def test_no_words_of_people_and_nothing_sealed_is_told(secret: str) -> None:
    waits = [{"id": "approval", "wait": "approved", "timeout_ms": 60_000}, STEPS[1]]
    declined = played(Signal(saga_id="s1", name="approved", declined=secret, actor=secret), steps=waits)
    retried = [STEPS[0] | {"retry_on": "mended", "retry_within_ms": 60_000, "attempts": 1}]
    not_retried = played(
        reply("Reserve_failed", 1, error=b'"no"'),
        Signal(saga_id="s1", name="mended", declined=secret, actor=secret),
        steps=retried,
    )
    cancelled = played(Intervene(verb=Verb.CANCEL, saga_id="s1", reason=secret, actor=secret, now=True))
    sealed = b'{"$sealed":{"key":"k1","from":"1/error","data":"%s"}}' % (b"secret" * 100)  # a note has part of it
    failed = played(reply("Reserve_failed", 1, error=sealed), reply("Reserve_failed", 1, error=sealed, attempt=2))
    for saga in (declined, not_retried, cancelled, failed):
        assert len(told(saga)) >= 2
        assert "secret" not in "".join(told(saga))
        assert saga is failed or not saga.ended or "secret" not in str(written(saga).status.description)
    assert [line.removesuffix("…") for line in told(declined)][1:] == [
        "1010 decline approved",
        "1010 failed step=1 command=approved error=approved was declined",
    ]
    assert any("error=" in line for line in told(not_retried))
    assert "1010 cancel now" in told(cancelled)


@given(states() | graphs())
def test_the_short_way_tells_what_the_history_tells(saga: SagaState) -> None:
    assert by_time(events(saga)) == by_time(of_history(saga))


@given(states() | graphs(), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1), st.integers(1, 3))
def test_it_does_so_of_sagas_that_take_it(saga: SagaState, times: list[tuple[int, int]], attempt: int) -> None:
    usual = played(reply("Reserve_ok", 1), reply("Charge_ok", 2))
    assert (usual.journal, usual.status) == (None, SagaStatus.COMPLETED)
    steps = tuple(
        replace(step, sent_ms=sent_ms, answered_ms=answered_ms, attempt=attempt, definition=of.definition)
        for step in usual.steps
        for of, (sent_ms, answered_ms) in zip(saga.steps, times, strict=False)
    )
    saga = replace(usual, steps=steps)
    assert by_time(events(saga)) == by_time(of_history(saga))


def by_time(found: list[SpanEvent]) -> list[SpanEvent]:
    """Of the same time, the history has what leads to the others first."""
    return sorted(found, key=lambda one: (one.at_ms, one.name, one.attributes.get("sagastream.step", 0)))


def written(saga: SagaState) -> ReadableSpan:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Tracing(provider).saga_ended(saga=saga)
    [span] = exporter.get_finished_spans()
    return span


def test_the_span_of_a_saga_has_these_events() -> None:
    saga = played(reply("Reserve_ok", 1), reply("Charge_ok", 2))
    assert [(one.name, one.timestamp, dict(one.attributes or {})) for one in written(saga).events] == [
        (name, at_ms * 10**6, attributes) for name, at_ms, attributes in events(saga)
    ]


def test_of_very_many_events_a_span_has_the_last_and_says_how_many_are_missing() -> None:
    many = [STEPS[1]] * (MOST_EVENTS // 2 + 3)
    saga = played(*[reply("Charge_ok", number) for number in range(1, len(many) + 1)], steps=many)
    span = written(saga)
    assert len(span.events) == MOST_EVENTS
    assert span.dropped_events == 6
    assert span.events[-1].timestamp == saga.updated_ms * 10**6
