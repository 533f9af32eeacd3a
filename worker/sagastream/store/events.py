"""The events streams, one for each partition, for readers that follow them without a consumer group."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sagastream.broker.entries import Entry, entries_of
from sagastream.broker.exchange import Exchange
from sagastream.broker.portions import BYTES, Portion
from sagastream.broker.wire import Words, or_raise
from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage, RequestRefused, of_refusal
from sagastream.store.keys import Partition

#: One reading takes at most this many events.
_AT_ONCE: Final = 1000
#: So many of the newest events of a partition are looked through for refusals, and about so many BYTES of them.
_LOOKED_BACK: Final = 1000


#: Up to which event each partition was read, in their order.
Place = tuple[bytes, ...]


def newest(partitions: Sequence[Partition]) -> Exchange[Place]:
    """The id of the newest event of each partition, from which to read on; b"0-0" if there is none."""
    answers = yield [words_of_newest(partition) for partition in partitions]
    return tuple(newest_in(or_raise(answer)) for answer in answers)


def words_of_newest(partition: Partition) -> Words:
    """The command that asks for the newest event of a partition."""
    return ("XREVRANGE", partition.events, "+", "-", "COUNT", 1)


def newest_in(page: Any) -> bytes:
    """The id of the newest event, in the answer."""
    return bytes(page[0][0]) if page else b"0-0"


def portion() -> Portion:
    """How many events one reading takes: with the commands and replies that they repeat, each may have a megabyte."""
    return Portion(_AT_ONCE)


def after(
    partitions: Sequence[Partition], place: Place, block_ms: int, portion: Portion | None = None
) -> Exchange[list[Entry]]:
    """The events after this place; waits for them up to `block_ms`, which is at least 1. `portion`: how many it takes,
    by those that it took before; None: many."""
    names = [partition.events for partition in partitions]
    count = _AT_ONCE if portion is None else portion.share(len(names), _AT_ONCE)
    (answer,) = yield [("XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", *names, *place)]
    found = [
        Entry(stream=stream.decode(), id=entry_id, fields=dict(zip(words[::2], words[1::2], strict=True)))
        for stream, page in or_raise(answer) or ()
        for entry_id, words in page
    ]
    if portion is not None:
        portion.saw(found)
    return found


def refusals(partition: Partition) -> Exchange[list[Entry]]:
    """The requests that were refused lately, the newest first: what is told of each. If many other events have followed
    since, it is not found."""
    portion = Portion(_LOOKED_BACK // 4)
    before, seen, size = b"+", 0, 0
    found: list[Entry] = []
    while seen < _LOOKED_BACK and size < BYTES:
        count = portion.count
        (answer,) = yield [("XREVRANGE", partition.events, before, "-", "COUNT", count)]
        page = entries_of([(partition.events.encode(), or_raise(answer))])
        found += [event for event in page if event.fields.get(b"kind") == b"refused"]
        if len(page) < count:
            break
        portion.saw(page)
        before, seen, size = b"(" + page[-1].id, seen + len(page), size + sum(event.size for event in page)
    return found


def refusal(fields: Mapping[bytes, bytes]) -> RequestRefused | None:
    """The refusal that an event tells; None: sagastream did not write it."""
    try:
        body = decode(fields[b"body"])
        return of_refusal(body["code"], body["text"], fields.get(b"saga_id", b"").decode(errors="replace"))
    except (KeyError, TypeError, MalformedMessage):
        return None


def moved(partitions: Sequence[Partition], place: Place, entries: Sequence[Entry]) -> Place:
    """The place after these events were read."""
    last = {entry.stream: entry.id for entry in entries}
    return tuple(last.get(partition.events, at) for partition, at in zip(partitions, place, strict=True))


def is_reached(place: Place, by: Place) -> bool:
    """Whether a reader that has come to `by` has read all that there was up to `place`."""
    return all(sort_key(one) <= sort_key(other) for one, other in zip(place, by, strict=True))


def sort_key(entry_id: bytes) -> tuple[int, int]:
    """Sort key of an entry id."""
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)
