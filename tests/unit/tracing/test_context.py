"""Within which trace a saga is begun."""

import sys

import pytest
from msgspec.structs import replace
from opentelemetry import trace

from sagastream.client.requests import to_begin
from sagastream.tracing.context import current_traceparent
from support.observers import called_with
from support.values import TRACEPARENT, a_command

SAGA = {"saga_id": "s1", "steps": [{"transaction": "Do", "service": "work"}]}
SPAN = trace.NonRecordingSpan(trace.SpanContext(0x1234, 0x5678, is_remote=False, trace_flags=trace.TraceFlags(0x01)))
OF_SPAN = f"00-{0x1234:032x}-{0x5678:016x}-01"


def test_a_saga_is_begun_within_the_span_that_is_active() -> None:
    assert current_traceparent() is None
    with trace.use_span(SPAN):
        begin = to_begin(SAGA)  # type: ignore[arg-type]
    assert begin.traceparent == OF_SPAN
    assert begin.fields()["traceparent"] == OF_SPAN
    assert "traceparent" not in to_begin(SAGA).fields()  # type: ignore[arg-type]


def test_a_saga_that_a_handler_begins_belongs_to_the_trace_of_its_saga() -> None:
    with called_with(replace(a_command(), traceparent=TRACEPARENT)):
        assert current_traceparent() == TRACEPARENT
        with trace.use_span(SPAN):
            assert current_traceparent() == OF_SPAN
    with called_with(a_command()):
        assert current_traceparent() is None


def test_without_opentelemetry_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with trace.use_span(SPAN):
        monkeypatch.delitem(sys.modules, "opentelemetry.trace")
        assert current_traceparent() is None
