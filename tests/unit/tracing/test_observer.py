"""When spans are written, and by which provider; what they hold is in tests/functional/test_tracing.py."""

import sys
from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_ON,
    Decision,
    StaticSampler,
    TraceIdRatioBased,
)

from sagastream.core import trace_context
from sagastream.core.commands import Command
from sagastream.core.messages import Begin, DefinedBy
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.core.steps import StepDefinition
from sagastream.errors import PackageMissing, SettingsError
from sagastream.telemetry import Observer, Outcome, guarded
from sagastream.tracing.observer import Tracing
from sagastream.tracing.setting import watched
from support.values import TRACEPARENT, a_command

SAGA = SagaState(
    saga_id="s1",
    status=SagaStatus.COMPLETED,
    current_step=1,
    steps=(Step(definition=StepDefinition(transaction="Do", service="work", params=b"1"), phase=Phase.COMPLETED),),
    begun_ms=1_700_000_000_000,
    updated_ms=1_700_000_000_009,
    traceparent=TRACEPARENT,
)
A_COMMAND = replace(a_command(), traceparent=TRACEPARENT)
UNSAMPLED = replace(SAGA, traceparent=TRACEPARENT[:-2] + "00")


def exporting(**options: object) -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False, **options)  # type: ignore[arg-type]
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def written(saga: SagaState = SAGA, **options: object) -> list[str]:
    """The names of the spans that are written for a saga at its end, and for one call of a handler."""
    provider, exporter = exporting(**options)
    play(Tracing(provider), saga, replace(a_command(), traceparent=saga.traceparent))
    return [span.name for span in exporter.get_finished_spans()]


def play(tracing: Tracing, saga: SagaState, command: Command) -> None:
    tracing.saga_ended(saga=saga)
    tracing.handler_started(command=command, call=1)
    tracing.handler_finished(outcome=Outcome.OK, error=None)
    tracing.process_stopped()


def test_a_saga_and_its_handlers_have_spans_if_its_trace_is_sampled_and_a_sampler_may_say_no() -> None:
    assert written() == ["saga", "process ChargePayment"]
    assert written(replace(SAGA, traceparent=None)) == []
    assert written(UNSAMPLED) == []
    assert written(sampler=ALWAYS_OFF) == []


@pytest.mark.parametrize("sampler", [ALWAYS_ON, DEFAULT_ON, TraceIdRatioBased(1.0)])
def test_a_trace_that_is_not_sampled_stays_so_whatever_the_sampler_would_say(sampler: object) -> None:
    """Also that of a saga that fails."""
    assert written(UNSAMPLED, sampler=sampler) == written(failed(UNSAMPLED), sampler=sampler) == []


def test_a_handlers_own_spans_belong_to_a_trace_that_is_not_sampled_and_are_not_recorded() -> None:
    provider, exporter = exporting()
    tracing, tracer = Tracing(provider), provider.get_tracer("test")
    tracing.handler_started(command=replace(a_command(), traceparent=UNSAMPLED.traceparent, tracestate="a=1"), call=1)
    with tracer.start_as_current_span("ask the bank") as span:
        assert not span.is_recording()
        context = span.get_span_context()
    assert f"{context.trace_id:032x}" == UNSAMPLED.trace_id
    assert context.trace_state.to_header() == "a=1"
    tracing.handler_finished(outcome=Outcome.RAISED, error=ValueError("no"))
    assert exporter.get_finished_spans() == ()
    assert not trace.get_current_span().get_span_context().is_valid


# --- sagas that are begun within no trace


def asked(tracing: Tracing) -> str | None:
    return tracing.trace_for(request=Begin(saga_id="s1", steps=(SAGA.steps[0].definition,)))


def test_a_saga_that_is_begun_within_no_trace_gets_one_if_the_sampler_says_so() -> None:
    provider, exporter = exporting(sampler=ALWAYS_ON)
    tracing = Tracing(provider)
    own = asked(tracing)
    assert own is not None
    assert trace_context.is_its_own(own)
    assert own != asked(tracing)
    tracing.saga_ended(saga=replace(SAGA, traceparent=own))
    [span] = exporter.get_finished_spans()
    assert span.parent is None
    context = span.get_span_context()
    assert context is not None
    assert f"{context.trace_id:032x}" == trace_context.trace_id(own)
    assert f"{context.span_id:016x}" == trace_context.span_id_of("s1", SAGA.begun_ms)
    assert context.trace_flags.sampled
    assert asked(Tracing(exporting(sampler=ALWAYS_OFF)[0])) is None
    assert asked(Tracing(trace.NoOpTracerProvider())) is None
    assert asked(Tracing(trace.ProxyTracerProvider())) is None


def test_the_sampler_is_asked_about_the_span_of_the_saga() -> None:
    seen: list[Any] = []

    class Asked(StaticSampler):
        def should_sample(self, parent_context: Any, trace_id: int, name: str, *more: Any, **named: Any) -> Any:
            seen.append((trace.get_current_span(parent_context).get_span_context().is_valid, trace_id, name, more))
            return super().should_sample(parent_context, trace_id, name, *more, **named)

    tracing = Tracing(exporting(sampler=Asked(Decision.RECORD_AND_SAMPLE))[0])
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=False))):
        own = tracing.trace_for(
            request=Begin(saga_id="s1", steps=(), definition=DefinedBy(name="order", version=3, sha256="0"))
        )
    assert own is not None
    [(has_parent, trace_id, name, (kind, attributes))] = seen
    assert (has_parent, f"{trace_id:032x}", name) == (False, trace_context.trace_id(own), "saga order")
    assert kind is trace.SpanKind.INTERNAL
    assert attributes == {
        "sagastream.saga_id": "s1",
        "sagastream.definition": "order",
        "sagastream.definition.version": 3,
    }


def failed(saga: SagaState) -> SagaState:
    return replace(saga, status=SagaStatus.ABORTED, reason="Step 1 failed: no")


def test_a_saga_within_no_trace_that_fails_is_written_at_its_end_if_the_sampler_says_so() -> None:
    assert written(failed(replace(SAGA, traceparent=None))) == ["saga"]
    assert written(failed(replace(SAGA, traceparent=None)), sampler=ALWAYS_OFF) == []
    provider, exporter = exporting()
    for _ in range(2):
        Tracing(provider).saga_ended(saga=failed(replace(SAGA, traceparent=None)))
    first, second = exporter.get_finished_spans()
    assert first.parent is second.parent is None
    assert first.context is not None
    assert second.context is not None
    assert first.context.trace_id != second.context.trace_id


def test_without_the_sdk_a_saga_within_no_trace_that_fails_has_no_span() -> None:
    Tracing(trace.NoOpTracerProvider()).saga_ended(saga=failed(replace(SAGA, traceparent=None)))


# --- which provider


def test_nothing_is_written_before_the_program_has_set_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    provider, exporter = exporting()
    tracing = Tracing()
    play(tracing, SAGA, A_COMMAND)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    play(tracing, SAGA, A_COMMAND)
    assert [span.name for span in exporter.get_finished_spans()] == ["saga", "process ChargePayment"]


def test_a_provider_that_is_not_that_of_the_sdk_is_used_by_the_api_alone() -> None:
    play(Tracing(trace.NoOpTracerProvider()), SAGA, A_COMMAND)


def test_without_opentelemetry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(PackageMissing, match=r"pip install 'sagastream\[otel\]'"):
        Tracing()
    with pytest.raises(PackageMissing):
        watched("worker", environment={"SAGASTREAM_TRACES": "1"})


def test_the_environment_says_whether_a_process_writes_spans() -> None:
    observer = Observer()
    for off in ({}, {"SAGASTREAM_TRACES": ""}, {"SAGASTREAM_TRACES": "0"}):
        assert watched("worker", observer, off) is observer
    with pytest.raises(SettingsError, match="SAGASTREAM_TRACES is 'perhaps'"):
        watched("worker", environment={"SAGASTREAM_TRACES": "perhaps"})


def test_nothing_is_computed_for_what_it_does_not_hear() -> None:
    watching = guarded(Tracing())
    assert watching is not None
    assert [point for point in ("saga_moved", "saga_ended", "handler_started") if watching.watches(point)] == [
        "saga_ended",
        "handler_started",
    ]
    assert watching.watches("answer_sent")  # the process of an RQ job ends then
    in_one_process = guarded(Tracing(forks=False))
    assert in_one_process is not None
    assert not in_one_process.watches("answer_sent")
    assert in_one_process.watches("handler_finished")
