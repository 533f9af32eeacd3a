"""What services publish of themselves: their commands, and what undoes each."""

from collections.abc import Collection, Mapping

import redis

from sagastream import keys
from sagastream.broker import execute
from sagastream.decision import Published
from sagastream.messages import is_id


def publish(client: "redis.Redis", service: str, commands: Mapping[str, str | None]) -> None:
    """Publish a service's commands and their compensations (None: it needs none). What was published before stays:
    sagas that began with an older release may still have to be undone."""
    client.hset(keys.published(service), mapping={name: undo or "" for name, undo in commands.items()})


def read(client: "redis.Redis", services: Collection[str]) -> Published:
    """What these services publish. A service that published nothing is left out, and so is a compensation whose name
    no command could carry."""
    pipeline = client.pipeline(transaction=False)
    for service in services:
        pipeline.hgetall(keys.published(service))
    return {
        service: {
            command.decode(errors="replace"): undo.decode() or None
            for command, undo in commands.items()
            if not undo or is_id(undo.decode(errors="replace"))
        }
        for service, commands in zip(services, execute(pipeline), strict=True)
        if commands
    }
