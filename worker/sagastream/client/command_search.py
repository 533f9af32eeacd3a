"""Where the commands of a saga are: unread in its service's stream, held by a process, out as an RQ job, or gone.

No index says it: the stream is searched, from the time on at which the command was sent. Every read is bounded.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import redis
from msgspec.structs import replace

from sagastream.broker.exchange import Exchange, all_of
from sagastream.broker.leases import HANDED_BACK_MS
from sagastream.broker.wire import unless_refused
from sagastream.core.causes import Job, Place, Whereabouts
from sagastream.core.commands import Command
from sagastream.core.parsing import read_command
from sagastream.core.phases import BACKING_OFF
from sagastream.core.saga import SagaState
from sagastream.core.service_actions import Count
from sagastream.core.strict_json import decode_any
from sagastream.core.why import MOST_TOLD
from sagastream.rq_steps.asking import OnRq
from sagastream.store.events import sort_key
from sagastream.store.keys import Partition, StoreKeys

#: Of a stream, at most so many entries are looked at for one command.
LOOKED_AT: Final = 1000
#: The first page has so many entries; each next one twice as many, if the one before had fewer than so many bytes.
_FIRST_PAGE: Final = 10
_PAGE_BYTES: Final = 1 << 18
#: The key at which RQ lists its queues. If it is absent, no command is out as a job, and RQ need not be imported.
RQ_QUEUES: Final = "rq:queues"

_Fields = dict[bytes, bytes]


class _Search(NamedTuple):
    """What was found in a stream."""

    entry: tuple[bytes, _Fields] | None
    before: int  # how many entries were looked at before it
    is_complete: bool  # whether it was found, or all entries were looked at


def find(keys: StoreKeys, state: SagaState, look_at: int = LOOKED_AT) -> Exchange[dict[int, Place]]:
    """Where the commands are that a saga has out, by the numbers of their steps; of very many, of the first ones.
    `look_at`: at most so many entries of a stream are looked at for each. To be run by rq_steps.asking.run."""
    if state.ended:
        return {}
    numbers = [number for number, step in enumerate(state.steps, 1) if step.in_flight or step.phase in BACKING_OFF][
        :MOST_TOLD
    ]
    places = yield from all_of([_of_step(keys, state, number, look_at) for number in numbers])
    return dict(zip(numbers, places, strict=True))


def _of_step(keys: StoreKeys, state: SagaState, number: int, look_at: int) -> Exchange[Place]:
    takeovers = yield from _takeovers(keys.of(state.saga_id), state, number)
    place = (yield from _find(keys, state, number, look_at)) if state.steps[number - 1].in_flight else Place()
    return replace(place, takeovers=takeovers)


def _takeovers(partition: Partition, state: SagaState, number: int) -> Exchange[int]:
    """How often a process that took the command over from another has begun it, as its service counts."""
    step = state.steps[number - 1]
    direction = "compensation" if step.being_undone else "transaction"
    field = f"{state.saga_id}/{number}/{direction}/{step.command}/{Count.TAKEOVERS}"
    (counted,) = yield [("HGET", partition.done(step.definition.service, state.begun_ms), field)]
    counted = unless_refused(counted, b"")
    is_number = isinstance(counted, bytes) and counted.isdigit() and len(counted) <= 6
    return int(counted) if is_number else 0


def _find(keys: StoreKeys, state: SagaState, number: int, look_at: int) -> Exchange[Place]:
    step = state.steps[number - 1]
    partition, service = keys.of(state.saga_id), step.definition.service
    stream = partition.commands(service)
    read_up_to = yield from _read_up_to(stream, service)
    sent_ms = step.compensation_sent_ms if step.being_undone else step.sent_ms
    first_ms = max((sent_ms or 0) - state.set_forward_ms, 0)  # by the clock as it was then
    search = yield from _search(stream, b"%d" % first_ms, b"+", look_at, _is_command_of(state, number))
    if search.entry is None:
        return (yield from _not_found(partition, service)) if search.is_complete else Place()
    entry_id, fields = search.entry
    added_ms = int(entry_id.partition(b"-")[0])
    if read_up_to is None or sort_key(entry_id) > sort_key(read_up_to):
        first = b"-" if read_up_to is None else b"(" + read_up_to
        ahead = yield from _search(stream, first, b"(" + entry_id, look_at, lambda *_: False)
        are_more = not ahead.is_complete
        return Place(where=Whereabouts.UNREAD, added_ms=added_ms, before=ahead.before, are_more=are_more)
    held, there = yield [("XPENDING", stream, service, entry_id, entry_id, 1), ("XRANGE", stream, entry_id, entry_id)]
    if unless_refused(held, None) is None or unless_refused(there, None) is None:
        return Place()  # the user may not ask
    if not held:
        return Place(where=Whereabouts.SKIPPED, added_ms=added_ms) if there else Place()
    ((_, holder, held_ms, deliveries),) = held
    job, unasked = yield from _job(keys, partition, read_command(service, fields, added_ms))
    return Place(
        where=Whereabouts.HELD,
        added_ms=added_ms,
        holder=holder.decode(errors="backslashreplace"),
        held_ms=held_ms,
        handed_back=held_ms >= HANDED_BACK_MS,
        deliveries=deliveries,
        job=job,
        unasked=unasked,
    )


def _is_command_of(state: SagaState, number: int) -> Callable[[bytes, _Fields], bool]:
    """Whether an entry is the current command of this step."""
    wanted = (state.saga_id, number, state.steps[number - 1].command)
    mark = state.saga_id.encode()

    def is_it(_: bytes, fields: _Fields) -> bool:
        body = fields.get(b"body", b"")
        if mark not in body:
            return False
        value = decode_any(body)
        return isinstance(value, dict) and (value.get("saga_id"), value.get("step"), value.get("type")) == wanted

    return is_it


def _search(
    stream: str, first: bytes, last: bytes, at_most: int, is_it: Callable[[bytes, _Fields], bool]
) -> Exchange[_Search]:
    """Look at the entries from `first` to `last`, page by page."""
    seen, count = 0, _FIRST_PAGE
    while seen < at_most:
        (answer,) = yield [("XRANGE", stream, first, last, "COUNT", count)]
        page: Any = unless_refused(answer, [])  # it is not a stream
        for entry_id, words in page:
            fields = dict(zip(words[::2], words[1::2], strict=True))
            if is_it(entry_id, fields):
                return _Search((entry_id, fields), seen, is_complete=True)
            seen += 1
        if len(page) < count:
            return _Search(None, seen, is_complete=True)
        first = b"(" + page[-1][0]
        if sum(len(word) for _, words in page for word in words) < _PAGE_BYTES:
            count *= 2
    return _Search(None, seen, is_complete=False)


def _read_up_to(stream: str, group: str) -> Exchange[bytes | None]:
    """The id up to which the processes of a service have read their commands; None: they have read none."""
    (answer,) = yield [("XINFO", "GROUPS", stream)]
    for words in unless_refused(answer, []):
        facts = dict(zip(words[::2], words[1::2], strict=True))
        if facts[b"name"] == group.encode():
            return bytes(facts[b"last-delivered-id"])
    return None


def _not_found(partition: Partition, service: str) -> Exchange[Place]:
    """The command is not in its stream: is there a reply?"""
    (answer,) = yield [("XLEN", partition.replies(service))]
    return Place(where=Whereabouts.GONE, replies=unless_refused(answer, 0))


def _job(keys: StoreKeys, partition: Partition, command: object) -> Exchange[tuple[Job | None, str]]:
    """The RQ job of a command that a process holds; None: it is not out as a job. And why RQ's server could not be
    asked; "": it could."""
    (found,) = yield [OnRq.of("EXISTS", RQ_QUEUES)]
    if isinstance(found, redis.RedisError) and not isinstance(found, redis.ResponseError):
        return None, str(found)
    if found != 1 or not isinstance(command, Command):
        return None, ""
    # Imported here: that takes longer than all the rest.
    from sagastream.rq_steps.queues import job_of

    try:
        return (yield from job_of(command, prefix=keys.prefix, partition=partition.number)), ""
    except (redis.ConnectionError, redis.TimeoutError) as error:  # it has gone away meanwhile
        return None, str(error)
