"""When spans are written, and by which provider; what they hold is in tests/functional/test_tracing.py."""

import sys

import pytest
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from sagastream.core.commands import Command
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


def written(saga: SagaState = SAGA, **options: object) -> list[str]:
    """The names of the spans that are written for a saga at its end, and for one call of a handler."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False, **options)  # type: ignore[arg-type]
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    play(Tracing(provider), saga, replace(a_command(), traceparent=saga.traceparent))
    return [span.name for span in exporter.get_finished_spans()]


def play(tracing: Tracing, saga: SagaState, command: Command) -> None:
    tracing.saga_ended(saga=saga)
    tracing.handler_started(command=command, call=1)
    tracing.handler_finished(outcome=Outcome.OK, error=None)
    tracing.process_stopped()


def test_a_saga_has_a_span_if_its_trace_is_sampled_and_a_sampler_may_say_no() -> None:
    assert written() == ["saga", "process ChargePayment"]
    assert written(replace(SAGA, traceparent=None)) == ["process ChargePayment"]
    assert written(replace(SAGA, traceparent=TRACEPARENT[:-2] + "00")) == []
    assert written(sampler=ALWAYS_OFF) == []


def test_nothing_is_written_before_the_program_has_set_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing()
    play(tracing, SAGA, a_command())
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    play(tracing, SAGA, a_command())
    assert [span.name for span in exporter.get_finished_spans()] == ["saga", "process ChargePayment"]


def test_a_provider_that_is_not_that_of_the_sdk_is_used_by_the_api_alone() -> None:
    play(Tracing(trace.NoOpTracerProvider()), SAGA, a_command())


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
