"""Within which trace a saga is begun."""

import sys

import pytest
from msgspec.structs import replace
from opentelemetry import trace

from sagastream.client.requests import to_begin
from sagastream.tracing.context import current_trace
from support.observers import called_with
from support.values import TRACEPARENT, a_command

SAGA = {"saga_id": "s1", "steps": [{"transaction": "Do", "service": "work"}]}
SPAN = trace.NonRecordingSpan(trace.SpanContext(0x1234, 0x5678, is_remote=False, trace_flags=trace.TraceFlags(0x01)))
OF_SPAN = f"00-{0x1234:032x}-{0x5678:016x}-01"
NONE = (None, None)


def with_state(*members: tuple[str, str]) -> trace.Span:
    """The same span, to which tracing systems have added this."""
    return trace.NonRecordingSpan(
        trace.SpanContext(
            0x1234,
            0x5678,
            is_remote=False,
            trace_flags=trace.TraceFlags(0x01),
            trace_state=trace.TraceState([*members]),
        )
    )


def test_a_saga_is_begun_within_the_span_that_is_active() -> None:
    assert current_trace() == NONE
    with trace.use_span(SPAN):
        begin = to_begin(SAGA)  # type: ignore[arg-type]
    assert (begin.traceparent, begin.tracestate) == (OF_SPAN, None)
    assert begin.fields()["traceparent"] == OF_SPAN
    assert not {"traceparent", "tracestate"} & {*to_begin(SAGA).fields()}  # type: ignore[arg-type]


def test_what_tracing_systems_add_to_the_span_is_named_too() -> None:
    with trace.use_span(with_state(("a", "1"), ("b", "2"))):
        begin = to_begin(SAGA)  # type: ignore[arg-type]
    assert begin.fields()["tracestate"] == "a=1,b=2"
    with trace.use_span(with_state(*[(f"k{n}", "x" * 100) for n in range(10)])):
        _, state = current_trace()
    assert state is not None
    assert len(state) < 512


def test_a_saga_that_a_handler_begins_belongs_to_the_trace_of_its_saga() -> None:
    with called_with(replace(a_command(), traceparent=TRACEPARENT, tracestate="a=1")):
        assert current_trace() == (TRACEPARENT, "a=1")
        with trace.use_span(SPAN):
            assert current_trace() == (OF_SPAN, None)
    with called_with(a_command()):
        assert current_trace() == NONE


def test_without_opentelemetry_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with trace.use_span(SPAN):
        monkeypatch.delitem(sys.modules, "opentelemetry.trace")
        assert current_trace() == NONE
