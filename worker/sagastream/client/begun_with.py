"""What `begin` of both clients is called with: a definition and an input, or an id and steps."""

from collections.abc import Mapping
from typing import Any

from sagastream.client import requests
from sagastream.client.definition import Definition
from sagastream.core.messages import Begin


def requested(*args: Any, **named: Any) -> Begin:
    """The request of `SagaClient.begin`, for its arguments: a definition and an input, or an id and steps. Raises
    TypeError, which says how to begin, if they are mixed up."""
    if "definition" in named:
        args = (named.pop("definition"), *args)
    if args and isinstance(args[0], Definition):
        if "saga_id" not in named:
            text = f"a saga needs an id of its own: begin({args[0].name}, …, saga_id=…)"
            raise TypeError(f"{text}; with the same id, a begin that is repeated is done once")
        return requests.to_begin(Definition.saga(*args, **named))
    steps = args[1] if len(args) > 1 else named.get("steps")
    if isinstance(steps, Definition):
        raise TypeError("the definition comes first: begin(definition, input, saga_id=…)")
    if args and (isinstance(steps, Mapping) or "saga_id" in named):
        text = f"steps are a list: begin({args[0]!r:.80}, [step, …])"
        raise TypeError(
            f"{text}; for a saga of a definition in the store: begin(client.definition({args[0]!r:.80}), …, saga_id=…)"
        )
    return requests.to_begin(requests.saga(*args, **named))


def takes_long(*args: Any, **named: Any) -> bool:
    """Whether `requested` may take longer than an event loop can wait: a JSON Schema checks the input."""
    definition = named.get("definition", args[0] if args else None)
    return isinstance(definition, Definition) and definition.checks_by_schema
