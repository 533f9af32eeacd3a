"""The spans of sagas: each is written when its saga has ended, with the times of the saga.

What was decided about the saga are events of its span, and not spans: a decision takes no time that anybody waits for.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace import set_span_in_context as containing

from sagastream.console import brief
from sagastream.core.messages import DefinedBy
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.trace_context import is_its_own, of_its_own, span_id_of
from sagastream.tracing.saga_events import events, without_words

try:
    from opentelemetry.sdk import trace as sdk
    from opentelemetry.sdk.util import BoundedList
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
except ImportError:  # it is the program that brings an SDK along
    _SCOPE = None
else:
    _SCOPE = InstrumentationScope("sagastream")

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

#: A span has the last so many events of its saga; the SDK allows as many, and tells how many are missing.
MOST_EVENTS: Final = 128
#: The context of a span that has no parent.
_NO_PARENT: Final = Context()


# --- spans of others


def parent_of(traceparent: str, tracestate: str | None) -> SpanContext:
    """The span that a traceparent names."""
    _, trace_id, span_id, flags = traceparent.split("-")
    state = None if tracestate is None else TraceState.from_header([tracestate])
    return SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), state)  # noqa: FBT003


def under(traceparent: str | None, tracestate: str | None) -> Context:
    """The context of a span whose parent this is; None: it has no parent."""
    if traceparent is None:
        return _NO_PARENT
    return containing(NonRecordingSpan(parent_of(traceparent, tracestate)), _NO_PARENT)


class _Unread(NonRecordingSpan):
    """The span that a traceparent names, read only if somebody asks: few handlers look at a span that is not
    recorded."""

    def __init__(self, traceparent: str, tracestate: str | None) -> None:
        self._named = traceparent, tracestate

    def get_span_context(self) -> SpanContext:
        return parent_of(*self._named)


def unrecorded(traceparent: str, tracestate: str | None) -> Context:
    """As `under`, of a trace that is not sampled."""
    return containing(_Unread(traceparent, tracestate), _NO_PARENT)


# --- the span of a saga


def begun(tracer: "Tracer", saga_id: str, definition: DefinedBy | None) -> str | None:
    """The traceparent of a trace for a saga that belongs to none; None: the sampler says that it is not to have one."""
    return _begun(tracer, _name(definition), _attributes_at_begin(saga_id, definition))


def _begun(tracer: Any, name: str, attributes: Mapping[str, Any]) -> str | None:
    # The tracers of others than the SDK ask their samplers only about spans that begin now.
    if _SCOPE is None or not isinstance(tracer, sdk.Tracer):
        return None
    trace_id = tracer.id_generator.generate_trace_id()
    sampled: Any = tracer.sampler.should_sample(_NO_PARENT, trace_id, name, SpanKind.INTERNAL, attributes)
    return of_its_own(f"{trace_id:032x}") if sampled.decision.is_sampled() else None


def write(tracer: "Tracer", saga: SagaState, traceparent: str) -> None:
    """Write the span of a saga that has ended. `traceparent`: that within which it was begun.

    Only the SDK of OpenTelemetry can write a span under an id that is not drawn. If the tracer is another's, the spans
    of handlers are in the same trace as this one, and not under it.
    """
    if _SCOPE is not None and isinstance(tracer, sdk.Tracer):
        _write_with_id(tracer, saga, traceparent)
    else:
        _write_anywhere(tracer, saga, traceparent)


def write_failed(tracer: "Tracer", saga: SagaState) -> None:
    """Write the span of a saga that belongs to no trace and has failed, in a trace of its own; not if the sampler says
    no."""
    traceparent = _begun(tracer, _name(saga.definition), _attributes(saga))
    if traceparent is not None:
        write(tracer, saga, traceparent)


def _write_with_id(tracer: Any, saga: SagaState, traceparent: str) -> None:
    """Without `start_span`: that draws the id, and costs twice as much for a span that is begun only to be ended."""
    name, parent = _name(saga.definition), parent_of(traceparent, saga.tracestate)
    within = containing(NonRecordingSpan(parent), _NO_PARENT)
    sampled = tracer.sampler.should_sample(within, parent.trace_id, name, SpanKind.INTERNAL, _attributes(saga))
    if not sampled.decision.is_sampled():
        return
    own_id = int(span_id_of(saga.saga_id, saga.begun_ms), 16)
    decided = [sdk.Event(name, attributes, _nanoseconds(at_ms)) for name, at_ms, attributes in events(saga)]
    span = sdk.ReadableSpan(
        name=name,
        context=SpanContext(parent.trace_id, own_id, False, parent.trace_flags, sampled.trace_state),  # noqa: FBT003
        parent=None if is_its_own(traceparent) else parent,
        resource=tracer.resource,
        attributes=sampled.attributes,
        events=decided if len(decided) <= MOST_EVENTS else BoundedList.from_seq(MOST_EVENTS, decided),
        kind=SpanKind.INTERNAL,
        status=_status(saga),
        start_time=_nanoseconds(saga.begun_ms),
        end_time=_nanoseconds(max(saga.updated_ms, saga.begun_ms)),
        instrumentation_scope=_SCOPE,
    )
    tracer.span_processor.on_end(span)


def _write_anywhere(tracer: "Tracer", saga: SagaState, traceparent: str) -> None:
    within = _NO_PARENT if is_its_own(traceparent) else under(traceparent, saga.tracestate)
    began_ns = _nanoseconds(saga.begun_ms)
    span = tracer.start_span(_name(saga.definition), within, attributes=_attributes(saga), start_time=began_ns)
    for told, at_ms, attributes in events(saga)[-MOST_EVENTS:]:
        span.add_event(told, attributes, _nanoseconds(at_ms))
    span.set_status(_status(saga))
    span.end(_nanoseconds(max(saga.updated_ms, saga.begun_ms)))


def _name(definition: DefinedBy | None) -> str:
    return "saga" if definition is None else f"saga {definition.name}"


def _status(saga: SagaState) -> Status:
    if saga.status is not SagaStatus.ABORTED:
        return _UNSET
    return Status(StatusCode.ERROR, None if saga.reason is None else brief(without_words(saga, saga.reason)))


_UNSET: Final = Status(StatusCode.UNSET)


def _attributes_at_begin(saga_id: str, definition: DefinedBy | None) -> dict[str, Any]:
    """What is known of a saga when it begins."""
    attributes: dict[str, Any] = {"sagastream.saga_id": saga_id}
    if definition is not None:
        attributes["sagastream.definition"] = definition.name
        attributes["sagastream.definition.version"] = definition.version
    return attributes


def _attributes(saga: SagaState) -> Mapping[str, Any]:
    attributes = _attributes_at_begin(saga.saga_id, saga.definition)
    attributes["sagastream.status"] = saga.status.value
    attributes["sagastream.steps"] = len(saga.steps)
    if saga.failed_step is not None:
        attributes["sagastream.failed_step"] = saga.failed_step
    if saga.status is SagaStatus.ABORTED:
        attributes["error.type"] = saga.status.value
    return attributes


def _nanoseconds(ms: int) -> int:
    return ms * 1_000_000
