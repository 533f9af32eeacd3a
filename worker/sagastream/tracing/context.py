"""Within which trace a saga is begun, and a handler runs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sagastream.core.commands import Command
from sagastream.core.trace_context import read_state
from sagastream.telemetry import command_in_hand

_API: Final = "opentelemetry.trace"


def current_trace() -> tuple[str | None, str | None]:
    """The span that is active where this is called, for the fields `traceparent` and `tracestate` of a request. None:
    there is none.

    If no span is active, and a handler calls this, it is that of the saga whose command the handler does. So a saga
    that a handler begins belongs to the same trace, even if its service makes no spans.
    """
    # A span can only be active if the program has imported the API. So we need not, and whoever has no traces pays
    # nothing.
    api: Any = sys.modules.get(_API)
    if api is not None and (current := getattr(api, "get_current_span", None)) is not None:
        context = current().get_span_context()
        if context.is_valid:
            traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 0xFF:02x}"
            return traceparent, _state(context.trace_state)
    command = command_in_hand()
    return (None, None) if command is None else (command.traceparent, command.tracestate)


@contextmanager
def within_saga(command: Command) -> Iterator[None]:
    """In the `with` block, the span of the saga is the active one, and none is if the saga belongs to no trace."""
    if _API not in sys.modules:
        yield
        return
    from opentelemetry import context

    from sagastream.tracing.saga_spans import under

    token = context.attach(under(command.traceparent, command.tracestate))
    try:
        yield
    finally:
        context.detach(token)


def _state(state: Any) -> str | None:
    """None if it is empty, as it usually is."""
    return read_state(state.to_header().encode()) if state else None
