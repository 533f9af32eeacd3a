"""The commands of a service that no process of it has read yet: which of them a saga waits for, and which can be
dropped."""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

import redis
from msgspec import Struct

from sagastream.broker.entries import REPLAYED
from sagastream.broker.exchange import Exchange, all_of
from sagastream.broker.scripting import Script
from sagastream.broker.wire import or_raise
from sagastream.core.commands import Command
from sagastream.core.messages import Code, Newer, is_service
from sagastream.core.parsing import read_command
from sagastream.core.saga import SagaState
from sagastream.errors import MalformedMessage, RequestRefused, UnreadableSaga
from sagastream.store import heartbeat, operations, reach, sagas
from sagastream.store.events import sort_key
from sagastream.store.keys import Partition, StoreKeys

#: How many entries to look at at once. An entry may have a megabyte.
_PAGE: Final = 20
#: How many entries one call of the script deletes at most.
_AT_ONCE: Final = 1000
_DROP: Final = Script("drop_unread")
#: The id of an entry, and its fields.
_Entry = tuple[bytes, dict[bytes, bytes]]


@dataclass(slots=True)
class Unread:
    """What is unread in the streams of a service."""

    awaited: list[str] = field(default_factory=list)  # the sagas that wait for theirs
    kept: int = 0  # those that may have been read before, or that only a newer release can read
    unwanted: list[tuple[Partition, bytes]] = field(default_factory=list)  # those that no saga waits for


class DroppedCommands(Struct, frozen=True, kw_only=True):
    """What was dropped of the commands of a service, and what was kept."""

    #: How many were dropped.
    dropped: int
    #: The ids of the sagas that wait for theirs: these were kept.
    awaited: tuple[str, ...] = ()
    #: How many were kept besides: a process may have read them before, or only a newer release can read them.
    kept: int = 0
    #: The numbers of the partitions that were left out, since their node was away.
    partitions_away: tuple[int, ...] = ()


def unread(keys: StoreKeys, service: str) -> Exchange[Unread]:
    """What is unread in the streams of a service. A stream that is none has nothing."""
    found = Unread()
    for partition in keys.partitions:
        first = yield from _first_unread(partition, service)
        while first is not None:
            page = yield from _page(partition, service, first, _PAGE)
            yield from _sort(keys, partition, service, page, found)
            first = b"(" + page[-1][0] if page else None
    return found


def first_unread(keys: StoreKeys, service: str, most: int) -> Exchange[Unread]:
    """The same, of the first `most` in each stream: bounded work."""
    found = Unread()

    def look(partition: Partition) -> Exchange[None]:
        if (first := (yield from _first_unread(partition, service))) is not None:
            page = yield from _page(partition, service, first, most)
            yield from _sort(keys, partition, service, page, found)

    yield from all_of([look(partition) for partition in keys.partitions])
    return found


def _page(partition: Partition, service: str, first: bytes, most: int) -> Exchange[list[_Entry]]:
    """The first `most` entries from this one on."""
    (answer,) = yield [("XRANGE", partition.commands(service), first, "+", "COUNT", most)]
    return [(entry_id, dict(zip(words[::2], words[1::2], strict=True))) for entry_id, words in or_raise(answer)]


def _first_unread(partition: Partition, service: str) -> Exchange[bytes | None]:
    """From which entry on nobody has read; None: there is no such stream."""
    (answer,) = yield [("XINFO", "GROUPS", partition.commands(service))]
    if isinstance(answer, redis.ResponseError):
        return None
    for words in or_raise(answer):
        group: dict[bytes, Any] = dict(zip(words[::2], words[1::2], strict=True))
        if group[b"name"] == service.encode():
            return b"(" + bytes(group[b"last-delivered-id"])
    return b"-"


def _sort(keys: StoreKeys, partition: Partition, service: str, page: list[_Entry], found: Unread) -> Exchange[None]:
    """Add these entries to what was found."""
    commands = [read_command(service, fields, sort_key(entry_id)[0]) for entry_id, fields in page]
    states, _ = yield from sagas.load(keys, {one.saga_id for one in commands if isinstance(one, Command)})
    for (entry_id, fields), command in zip(page, commands, strict=True):
        state = states.get(command.saga_id) if isinstance(command, Command) else None
        if REPLAYED in fields or isinstance(command, Newer) or isinstance(state, UnreadableSaga):
            found.kept += 1
        elif isinstance(state, SagaState) and isinstance(command, Command) and _waits_for(state, command):
            found.awaited.append(state.saga_id)
        else:
            found.unwanted.append((partition, entry_id))


def drop(
    keys: StoreKeys, service: str, *, actor: str | None = None, reason: str | None = None
) -> Exchange[DroppedCommands]:
    """Delete the commands of a service that does not run: those that no process has read and no saga waits for. If
    nothing is left of the service, and it has never published a command, its name is forgotten too.

    Raises MalformedMessage if the name, the actor or the reason is not valid, and RequestRefused if the service is at
    work.
    """
    if not is_service(service):
        raise MalformedMessage(f"{service!a:.140} is no name of a service: that is 1 to 128 of A-Z a-z 0-9 . _ -")
    operations.check(actor, reason)
    keys = (yield from reach.look(keys)).keys
    processes = yield from heartbeat.look(keys, [service])
    if alive := [one.name for one in processes if one.service == service and one.is_alive]:
        text = f"service {service} is at work, and answers what it reads: {alive[0]}"
        raise RequestRefused(Code.PRECONDITION_FAILED, text)
    found = yield from unread(keys, service)
    if dropped := (yield from _drop(keys, service, found)):
        what = f"{dropped} of service {service}"
        yield from operations.note(keys, "drop-commands", what, actor=actor, reason=reason)
    away = set(range(len(keys.tags))) - {one.number for one in keys.partitions}
    return DroppedCommands(
        dropped=dropped, awaited=tuple(found.awaited), kept=found.kept, partitions_away=tuple(sorted(away))
    )


def _drop(keys: StoreKeys, service: str, found: Unread) -> Exchange[int]:
    """Returns how many were deleted; the others were read meanwhile."""
    dropped = 0
    for partition, those in groupby(found.unwanted, key=lambda one: one[0]):
        ids = [entry_id for _, entry_id in those]
        for at in range(0, len(ids), _AT_ONCE):
            dropped += yield from _DROP.call([partition.commands(service)], [service, *ids[at : at + _AT_ONCE]])
    if len(keys.partitions) == len(keys.tags):  # else there may be more of it where nobody can look
        streams = [partition.commands(service) for partition in keys.partitions]
        (left,) = yield [("EXISTS", keys.published(service), *streams)]
        if not or_raise(left):
            (answer,) = yield [("SREM", keys.services, service)]  # if it starts after all, it adds itself
            or_raise(answer)
    return dropped


def _waits_for(state: SagaState, command: Command) -> bool:
    """Whether the saga waits for the answer to just this command."""
    if command.step > len(state.steps):
        return False
    step = state.steps[command.step - 1]
    return step.in_flight and (step.command, step.current_attempt) == (command.type, command.attempt)
