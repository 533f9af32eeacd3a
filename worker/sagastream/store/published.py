"""What services publish about themselves: their commands, and the compensation of each."""

from collections.abc import Collection, Mapping

import redis

from sagastream.broker.wire import or_raise
from sagastream.core.messages import is_id
from sagastream.core.sending import Published
from sagastream.store import keys


def publish(client: "redis.Redis", service: str, commands: Mapping[str, str | None]) -> None:
    """Publish a service's commands, each with its compensation (None: it needs none). What was published before stays:
    sagas that began with an older release of the service may still have to be undone."""
    if commands:
        client.hset(keys.published(service), mapping={name: undo or "" for name, undo in commands.items()})


def read(client: "redis.Redis", services: Collection[str]) -> Published:
    """What these services publish. A compensation whose name is not a valid name of a command is left out."""
    pipeline = client.pipeline(transaction=False)
    for service in services:
        pipeline.hgetall(keys.published(service))
    found: dict[str, dict[str, str | None]] = {}
    for service, answer in zip(services, pipeline.execute(raise_on_error=False), strict=True):
        if isinstance(answer, redis.ResponseError) and str(answer).startswith("WRONGTYPE"):
            continue  # the value at its key is not a hash
        found[service] = {
            command.decode(errors="replace"): undo.decode() or None
            for command, undo in or_raise(answer).items()
            if not undo or is_id(undo.decode(errors="replace"))
        }
    return found
