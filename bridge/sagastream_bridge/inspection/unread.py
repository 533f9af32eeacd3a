"""The commands of a service that no process of it has read yet: which of them a saga waits for, and which can be
dropped."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import redis

from sagastream.broker import scripting
from sagastream.broker.entries import REPLAYED
from sagastream.core.commands import Command
from sagastream.core.messages import Newer
from sagastream.core.parsing import read_command
from sagastream.core.saga import SagaState
from sagastream.errors import UnreadableSaga
from sagastream.store import sagas
from sagastream.store.events import sort_key
from sagastream.store.keys import Partition, StoreKeys

#: How many entries to look at at once. An entry may have a megabyte.
_PAGE: Final = 20


@dataclass(slots=True)
class Unread:
    """What is unread in the streams of a service."""

    awaited: list[str] = field(default_factory=list)  # the sagas that wait for theirs
    kept: int = 0  # those that may have been read before, or that only a newer release can read
    unwanted: list[tuple[Partition, bytes]] = field(default_factory=list)  # those that no saga waits for


def unread(client: "redis.Redis", keys: StoreKeys, service: str) -> Unread:
    """What is unread in the streams of a service. A stream that is none has nothing."""
    found = Unread()
    for partition in keys.partitions:
        entries = _unread(client, partition, service)
        while page := list(islice(entries, _PAGE)):
            commands = [read_command(service, fields, sort_key(entry_id)[0]) for entry_id, fields in page]
            ids = {command.saga_id for command in commands if isinstance(command, Command)}
            states, _ = sagas.read(client, keys, ids)
            for (entry_id, fields), command in zip(page, commands, strict=True):
                state = states.get(command.saga_id) if isinstance(command, Command) else None
                if REPLAYED in fields or isinstance(command, Newer) or isinstance(state, UnreadableSaga):
                    found.kept += 1
                elif isinstance(state, SagaState) and isinstance(command, Command) and _waits_for(state, command):
                    found.awaited.append(state.saga_id)
                else:
                    found.unwanted.append((partition, entry_id))
    return found


def drop(client: "redis.Redis", keys: StoreKeys, service: str, unwanted: list[tuple[Partition, bytes]]) -> int:
    """Delete unread commands. If nothing is left of the service, and it has never published a command, its name is
    forgotten too. Returns how many commands were deleted; the others were read meanwhile."""
    script = scripting.load(client, "drop_unread")
    dropped = 0
    for partition in {partition.number: partition for partition, _ in unwanted}.values():
        ids = [entry_id for one, entry_id in unwanted if one.number == partition.number]
        for at in range(0, len(ids), 1000):
            dropped += script(keys=[partition.commands(service)], args=[service, *ids[at : at + 1000]])
    streams = [partition.commands(service) for partition in keys.partitions]
    is_whole = len(keys.partitions) == len(keys.tags)  # else there may be more of it where nobody can look
    if is_whole and not client.exists(keys.published(service), *streams):
        client.srem(keys.services, service)  # if it starts after all, it adds itself
    return dropped


def _unread(client: "redis.Redis", partition: Partition, service: str) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    stream, first = partition.commands(service), b"-"
    try:
        groups: Any = client.xinfo_groups(stream)
    except redis.ResponseError:  # there is no such stream
        return
    for group in groups:
        if group["name"] == service.encode():
            first = b"(" + group["last-delivered-id"]
    while page := client.xrange(stream, first, count=_PAGE):
        found: Any = page
        yield from found
        first = b"(" + found[-1][0]


def _waits_for(state: SagaState, command: Command) -> bool:
    """Whether the saga waits for the answer to just this command."""
    if command.step > len(state.steps):
        return False
    step = state.steps[command.step - 1]
    return step.in_flight and (step.command, step.current_attempt) == (command.type, command.attempt)
