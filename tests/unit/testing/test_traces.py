"""The trace within which a test begins a saga reaches its handlers, as in production."""

import asyncio
from typing import Any, Final

import pytest
from opentelemetry import trace

from sagastream import Context, Service
from sagastream.core.trace_context import span_id_of
from sagastream.telemetry import command_in_hand
from sagastream.testing import Sagas

TRACE_ID: Final = 0x4BF92F3577B34DA6A3CE929D0E0E4736
SPAN: Final = trace.NonRecordingSpan(
    trace.SpanContext(
        TRACE_ID,
        0x5678,
        is_remote=False,
        trace_flags=trace.TraceFlags(1),
        trace_state=trace.TraceState([("a", "1")]),
    )
)


class Seen:
    """A service whose handlers note the span that is active in them, and what their log lines would name."""

    def __init__(self, sagas: Sagas) -> None:
        self.spans: list[trace.SpanContext] = []
        self.trace_ids: list[str | None] = []
        self._sagas = sagas
        service = Service("work")
        service.command("Do", compensation="Undo")(self._do)
        service.command("Wait", compensation=None)(self._wait)
        service.command("Begin", compensation=None)(self._begin)
        service.compensation("Undo")(self._do)
        sagas.serve(service)

    def _do(self, params: Any, context: Context) -> None:
        self.spans.append(trace.get_current_span().get_span_context())
        command = command_in_hand()
        assert command is not None
        self.trace_ids.append(command.trace_id)

    def _begin(self, params: Any, context: Context) -> None:
        self._sagas.begin([step("Do")])

    async def _wait(self, params: Any, context: Context) -> None:
        await asyncio.sleep(0)
        self._do(params, context)


def step(name: str) -> dict[str, Any]:
    return {"transaction": name, "service": "work"}


@pytest.fixture
def seen(sagas: Sagas) -> Seen:
    return Seen(sagas)


def test_handlers_and_their_compensations_run_within_the_trace_of_their_saga(sagas: Sagas, seen: Seen) -> None:
    sagas.run([step("Wait")], saga_id="s0")  # the event loop has begun outside of the trace
    with trace.use_span(SPAN):
        saga = sagas.begin([step("Do"), step("Wait"), step("Do")], saga_id="s1")
    sagas.command("Do", step=3).rejects("no")
    sagas.settle()
    assert saga.status == "ABORTED"
    before, *spans = seen.spans
    assert not before.is_valid
    assert {f"{span.trace_id:032x}" for span in spans} == {*seen.trace_ids[1:]} == {f"{TRACE_ID:032x}"}
    assert {f"{span.span_id:016x}" for span in spans} == {span_id_of("s1", saga.state.begun_ms)}
    assert {span.trace_state.to_header() for span in spans} == {"a=1"}
    assert len(spans) == 3
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_saga_outside_of_a_trace_has_none_even_if_time_passes_within_a_span(sagas: Sagas, seen: Seen) -> None:
    sagas.begin([step("Do"), step("Wait")])
    with trace.use_span(SPAN):
        sagas.settle()
        assert trace.get_current_span() is SPAN
    assert [span.is_valid for span in seen.spans] == [False, False]
    assert seen.trace_ids == [None, None]


def test_a_saga_that_a_handler_begins_belongs_to_its_trace(sagas: Sagas, seen: Seen) -> None:
    with trace.use_span(SPAN):
        sagas.begin([step("Begin")])
    sagas.settle()
    assert [span.trace_id for span in seen.spans] == [TRACE_ID]
