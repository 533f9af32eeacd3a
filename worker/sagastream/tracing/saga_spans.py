"""The spans of sagas: each is written when its saga has ended, with the times of the saga."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace import set_span_in_context as containing

from sagastream.console import brief, printable
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.trace_context import span_id_of

try:
    from opentelemetry.sdk import trace as sdk
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
except ImportError:  # it is the program that brings an SDK along
    _SCOPE = None
else:
    _SCOPE = InstrumentationScope("sagastream")

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def parent_of(traceparent: str, tracestate: str | None) -> SpanContext:
    """The span that a traceparent names."""
    _, trace_id, span_id, flags = traceparent.split("-")
    state = None if tracestate is None else TraceState.from_header([tracestate])
    return SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), state)  # noqa: FBT003


def under(traceparent: str | None, tracestate: str | None) -> Context:
    """The context of a span whose parent this is; None: it has no parent."""
    if traceparent is None:
        return Context()
    return containing(NonRecordingSpan(parent_of(traceparent, tracestate)), Context())


def write(tracer: "Tracer", saga: SagaState, traceparent: str) -> None:
    """Write the span of a saga that has ended. `traceparent`: that within which it was begun.

    Only the SDK of OpenTelemetry can write a span under an id that is not drawn. If the tracer is another's, the spans
    of handlers are in the same trace as this one, and not under it.
    """
    name = "saga" if saga.definition is None else f"saga {saga.definition.name}"
    if _SCOPE is not None and isinstance(tracer, sdk.Tracer):
        _write_with_id(tracer, name, saga, traceparent)
    else:
        _write_anywhere(tracer, name, saga, traceparent)


def _write_with_id(tracer: Any, name: str, saga: SagaState, traceparent: str) -> None:
    """Without `start_span`: that draws the id, and costs twice as much for a span that is begun only to be ended."""
    parent = parent_of(traceparent, saga.tracestate)
    within = containing(NonRecordingSpan(parent), Context())
    sampled = tracer.sampler.should_sample(within, parent.trace_id, name, SpanKind.INTERNAL, _attributes(saga))
    if not sampled.decision.is_sampled():
        return
    own_id = int(span_id_of(saga.saga_id, saga.begun_ms), 16)
    events = [
        sdk.Event(
            name=printable(done.verb),
            attributes={} if done.step is None else {"sagastream.step": done.step},
            timestamp=_nanoseconds(done.at_ms),
        )
        for done in saga.interventions
    ]
    span = sdk.ReadableSpan(
        name=name,
        context=SpanContext(parent.trace_id, own_id, False, parent.trace_flags, sampled.trace_state),  # noqa: FBT003
        parent=parent,
        resource=tracer.resource,
        attributes=sampled.attributes,
        events=events,
        kind=SpanKind.INTERNAL,
        status=_status(saga),
        start_time=_nanoseconds(saga.begun_ms),
        end_time=_nanoseconds(max(saga.updated_ms, saga.begun_ms)),
        instrumentation_scope=_SCOPE,
    )
    tracer.span_processor.on_end(span)


def _write_anywhere(tracer: "Tracer", name: str, saga: SagaState, traceparent: str) -> None:
    began_ns = _nanoseconds(saga.begun_ms)
    span = tracer.start_span(
        name, context=under(traceparent, saga.tracestate), attributes=_attributes(saga), start_time=began_ns
    )
    span.set_status(_status(saga))
    span.end(_nanoseconds(max(saga.updated_ms, saga.begun_ms)))


def _status(saga: SagaState) -> Status:
    if saga.status is not SagaStatus.ABORTED:
        return _UNSET
    return Status(StatusCode.ERROR, None if saga.reason is None else brief(_without_words(saga, saga.reason)))


def _without_words(saga: SagaState, reason: str) -> str:
    """Why a saga was undone, without what people said of that: their words are erased with the saga, and spans are
    not."""
    for done in saga.interventions:
        if done.reason:
            reason = reason.replace(f": {done.reason}", "")
    return reason


_UNSET: Final = Status(StatusCode.UNSET)


def _attributes(saga: SagaState) -> Mapping[str, Any]:
    attributes: dict[str, Any] = {
        "sagastream.saga_id": saga.saga_id,
        "sagastream.status": saga.status.value,
        "sagastream.steps": len(saga.steps),
    }
    if saga.definition is not None:
        attributes["sagastream.definition"] = saga.definition.name
        attributes["sagastream.definition.version"] = saga.definition.version
    if saga.failed_step is not None:
        attributes["sagastream.failed_step"] = saga.failed_step
    if saga.status is SagaStatus.ABORTED:
        attributes["error.type"] = saga.status.value
    return attributes


def _nanoseconds(ms: int) -> int:
    return ms * 1_000_000
