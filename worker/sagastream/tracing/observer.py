"""Spans of handlers and sagas, written by an observer."""

import logging
import os
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from sagastream.console import brief, describe, printable
from sagastream.core.commands import Command
from sagastream.core.messages import Begin
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.trace_context import is_sampled
from sagastream.errors import PackageMissing
from sagastream.telemetry import Observer, Outcome

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

_MISSING: Final = "the package opentelemetry-api is missing: pip install 'sagastream[otel]'"
#: How long the end of a process waits until its spans are exported, in ms.
_FLUSH_MS: Final = 5_000


class Tracing(Observer):
    """Gives OpenTelemetry a span for each saga, when it has ended, and for each call of a handler; only if the trace
    that the saga belongs to is sampled. A saga that is begun within no trace gets one of its own, if the sampler of
    the worker's provider says so. Give it as `observer` to an Orchestrator or a ServiceRunner, or set it on a
    SagaWorker.

    It does nothing until the program has set a TracerProvider. Spans hold names and numbers: no params, no results, and
    of what went wrong what a handler has raised or, shortened, rejected, and why a saga was undone.
    """

    def __init__(self, provider: "TracerProvider | None" = None, *, forks: bool = True) -> None:
        """
        Args:
            provider: by default the one that the program has set.
            forks: whether commands may be done in processes that this one forks, as an RQ worker does it.

        Raises PackageMissing if the API of OpenTelemetry is not installed.
        """
        try:
            from opentelemetry import context, trace

            from sagastream.tracing import saga_spans
        except ImportError:
            raise PackageMissing(_MISSING) from None
        self._context: Any = context
        self._trace: Any = trace
        self._spans: Any = saga_spans
        self._given = provider
        self._pid = os.getpid()
        if not forks:  # nobody need be told of each answer
            self.answer_sent = super().answer_sent  # type: ignore[assignment, method-assign]
        self._known: Tracer | None = None
        #: The span of the handler that runs in this thread or task, if there is one, and what ends its context.
        self._running: ContextVar[tuple[Span | None, Any] | None] = ContextVar("sagastream_span", default=None)

    # --- what is observed

    def handler_started(self, *, command: Command, call: int, **_: object) -> None:
        traceparent = command.traceparent
        if traceparent is None or (tracer := self._tracer) is None:
            return
        if not is_sampled(traceparent):
            # Nothing is made but what the handler's own spans need, so that they are not recorded either.
            unrecorded = self._spans.unrecorded(traceparent, command.tracestate)
            self._running.set((None, self._context.attach(unrecorded)))
            return
        parent = self._spans.under(traceparent, command.tracestate)
        span = tracer.start_span(
            f"process {command.type}",
            context=parent,
            kind=self._trace.SpanKind.CONSUMER,
            attributes=_attributes(command, call),
        )
        self._running.set((span, self._context.attach(self._trace.set_span_in_context(span, parent))))

    def handler_finished(
        self, *, outcome: Outcome, error: BaseException | None, rejection: str | None = None, **_: object
    ) -> None:
        if (running := self._running.get()) is None:
            return
        self._running.set(None)
        span, token = running
        self._context.detach(token)
        if span is None:
            return
        if span.is_recording():
            span.set_attribute("sagastream.outcome", outcome.value)
            if rejection is not None:
                span.set_attribute("sagastream.error", brief(rejection))
            if error is not None:
                self._tell_error(span, error)
        span.end()
        if outcome not in (Outcome.OK, Outcome.REJECTED):
            self._flush_if_forked()

    def answer_sent(self, **_: object) -> None:
        self._flush_if_forked()

    def trace_for(self, *, request: Begin, **_: object) -> str | None:
        if (tracer := self._tracer) is None:
            return None
        traceparent: str | None = self._spans.begun(tracer, request.saga_id, request.definition)
        return traceparent

    def saga_ended(self, *, saga: SagaState, **_: object) -> None:
        if (begun_in := saga.traceparent) is not None:
            if is_sampled(begun_in) and (tracer := self._tracer) is not None:
                self._spans.write(tracer, saga, begun_in)
        elif saga.status is SagaStatus.ABORTED and (tracer := self._tracer) is not None:
            self._spans.write_failed(tracer, saga)

    def process_stopped(self, **_: object) -> None:
        self._flush()

    # --- how

    @property
    def _tracer(self) -> "Tracer | None":
        """None: the program has set no provider yet. It may do so after it has made this observer."""
        if self._known is None:
            provider = self._provider
            if isinstance(provider, self._trace.ProxyTracerProvider):
                return None
            self._known = provider.get_tracer("sagastream")
        return self._known

    @property
    def _provider(self) -> Any:
        return self._given or self._trace.get_tracer_provider()

    def _tell_error(self, span: "Span", error: BaseException) -> None:
        """Not by `record_exception`: the text of the exception may be anything, and an exporter that cannot write it
        drops other spans along with it."""
        kind, text = printable(f"{type(error).__module__}.{type(error).__qualname__}"), describe(error)
        kind = kind.removeprefix("builtins.")
        lines = logging.Formatter().formatException((type(error), error, error.__traceback__)).splitlines()
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, text))
        span.set_attribute("error.type", kind)
        told = {"exception.type": kind, "exception.message": text}
        span.add_event("exception", told | {"exception.stacktrace": "\n".join(map(printable, lines))})

    def _flush_if_forked(self) -> None:
        """The process of an RQ job ends without a word as soon as it has answered."""
        if os.getpid() != self._pid:
            self._flush()

    def _flush(self) -> None:
        """Export what has ended."""
        if (flush := getattr(self._provider, "force_flush", None)) is not None:
            flush(_FLUSH_MS)


def _attributes(command: Command, call: int) -> Mapping[str, Any]:
    attributes: dict[str, Any] = {
        "messaging.system": "redis",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": f"commands:{command.service}",
        "messaging.consumer.group.name": command.service,
        "messaging.message.id": command.key,
        "messaging.message.conversation_id": command.saga_id,
        "sagastream.saga_id": command.saga_id,
        "sagastream.step": command.step,
        "sagastream.attempt": command.attempt,
        "sagastream.call": call,
    }
    if command.compensating:
        attributes["sagastream.compensating"] = True
    if command.definition is not None:
        attributes["sagastream.definition"] = command.definition
    return attributes
