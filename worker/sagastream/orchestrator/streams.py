"""The streams that a worker reads: what each is, how many of its entries a turn takes, and what an entry says.

Identity comes from the stream: a reply is one of the service on whose stream it stands, and a request that stands on
the wrong stream does not count.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from sagastream.broker.entries import BATCH, Entry
from sagastream.core.decision import Event
from sagastream.core.messages import Begin, Code, Signal, ToSaga, Unreadable
from sagastream.core.parsing import read_reply, read_request
from sagastream.orchestrator.room import Room
from sagastream.store.keys import Partition, Place, StoreKeys

#: One turn reads at most this many requests to begin sagas; if it reads few, only so many.
_REQUESTS: Final = BATCH // 2
_A_FEW: Final = 8
#: One turn reads about this many replies at most, and of each stream at most BATCH, but at least so many. As many it
#: reads of operators' requests.
_REPLIES: Final = 8 * BATCH
_LEAST_REPLIES: Final = 8
#: If a turn reads this many replies, the next one takes no requests. Sagas that begin together stay together, in one
#: batch from process to process, and a large batch costs little more than a small one. So sagas begin in large batches,
#: and seldom. With this value, if services keep up, 0 to 300 sagas are under way at a time, and half of the time more
#: than 130. Twice the value: 6 % more sagas a second, but each took twice as long. The replies of the last read count,
#: not those in the stream: some may be stuck there.
_MANY_REPLIES: Final = BATCH // 4
#: Of this many turns in a row with many replies, one takes a few requests, so that they never starve. Operators'
#: requests have a stream of their own, which each turn reads.
_A_FEW_EVERY: Final = 8
#: If so many turns in a row have read one entry each, the next are expected to do so, too.
_QUIET: Final = 16

#: What a turn works on: an entry, and what it says. Without an entry: a saga is due.
Input = tuple[Entry | None, Event]
#: Inputs of one partition.
OfPartition = tuple[Partition, Sequence[Input]]


class Streams:
    """The streams of one worker."""

    def __init__(
        self, keys: StoreKeys, services: Collection[str], room: Room, preferred: frozenset[int] | None = None
    ) -> None:
        """
        Args:
            services: those whose replies are read.
            room: if there is none, requests are left unread.
            preferred: the numbers of the partitions of which the worker reads new entries; None: of all.
        """
        self._keys = keys
        self._services = services
        self._room = room
        #: The numbers of the partitions that the worker prefers; None: all.
        self.numbers = preferred
        #: Those partitions: it looks for due sagas in them.
        self.partitions = tuple(one for one in keys.partitions if preferred is None or one.number in preferred)
        partitions = keys.partitions
        self._only = partitions[0] if len(partitions) == 1 else None
        # Replies first: sagas that have begun are finished before new ones begin. And a saga begins before an
        # operator's request for it is decided on.
        replies = [
            (one.replies(service), Place(one, "replies", service)) for service in sorted(services) for one in partitions
        ]
        requests = [(one.requests, Place(one, "requests", "")) for one in partitions]
        interventions = [(one.interventions, Place(one, "interventions", "")) for one in partitions]
        self._places = dict([*replies, *requests, *interventions])
        #: The streams of which it reads new entries; None: all.
        self.preferred: frozenset[str] | None = None
        if preferred is not None:
            own = [name for name, place in self._places.items() if place.partition.number in preferred]
            self.preferred = frozenset(own)
        read = len(services) * len(self.partitions)
        self._most_replies = max(_LEAST_REPLIES, min(BATCH, _REPLIES // max(1, read)))
        self._busy = 0  # how many turns in a row have read many replies
        self._quiet = 0  # how many turns in a row have read one entry
        #: What `wanted` has returned before: by how many replies and requests, how many requests where there is no
        #: room, and where that is.
        self._counts: dict[tuple[int, int, int, frozenset[int], frozenset[int]], Mapping[str, int]] = {}
        self._counted: Sequence[str] = ()  # of which streams
        #: Whether the last turn may have left replies unread.
        self.has_more = False
        #: The numbers of the partitions of which nothing is read, since nothing could be done about it.
        self.stopped: frozenset[int] = frozenset()

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def with_services(self, services: Collection[str]) -> "Streams":
        """Those with the replies of these services."""
        return self._changed(services, self.numbers)

    def preferring(self, preferred: frozenset[int] | None) -> "Streams":
        """The same, of which new entries are read of the partitions with these numbers; None: of all."""
        return self._changed(self._services, preferred)

    def _changed(self, services: Collection[str], preferred: frozenset[int] | None) -> "Streams":
        streams = Streams(self._keys, services, self._room, preferred)
        streams._busy, streams.has_more, streams.stopped = self._busy, self.has_more, self.stopped
        streams._quiet = self._quiet
        return streams

    def wanted(self, streams: Sequence[str]) -> Mapping[str, int]:
        """How many entries of each of these streams the next turn is to read."""
        requests = _REQUESTS if not self._busy else 0 if self._busy % _A_FEW_EVERY else _A_FEW
        full = self._room.full
        in_full = _A_FEW if full and self._room.takes_a_few() else 0
        replies = self._most_replies
        if self.are_quiet:
            requests = replies = min(requests, replies)
        asked = (replies, requests, in_full, full, self.stopped)
        if self._counted != streams:
            self._counted, self._counts = list(streams), {}
        if (counts := self._counts.get(asked)) is None:
            # Of operators' requests as many as of replies: streams with the same count are read in one call.
            most = {"replies": replies, "requests": requests, "interventions": replies}
            places = {stream: self._places[stream] for stream in streams if stream in self._places}
            places = {stream: one for stream, one in places.items() if one.partition.number not in self.stopped}
            known = {
                stream: in_full if place.what == "requests" and place.partition.number in full else most[place.what]
                for stream, place in places.items()
            }
            wanted = {stream: count for stream, count in known.items() if count}
            if not wanted and not self.stopped:
                wanted = dict.fromkeys(streams, 1)  # it always reads something
            counts = self._counts[asked] = wanted
        return counts

    def left_unread(self) -> frozenset[str]:
        """The streams that are not read for now, since there is no room for what they would bring, or nothing can be
        done about it."""
        full, stopped = self._room.full, self.stopped
        unread = frozenset(one.requests for one in self.partitions if one.number in full) if full else frozenset()
        if stopped:
            unread |= {name for name, place in self._places.items() if place.partition.number in stopped}
        return unread

    def read(self, entries: Sequence[Entry], asked: Mapping[str, int], *, has_more: bool) -> None:
        """A turn has read these.

        Args:
            asked: of which streams, and at most how many entries of each.
            has_more: whether others were read with them that are left for the next turn.
        """
        by_stream = Counter([entry.stream for entry in entries])
        replies = {stream: count for stream, count in by_stream.items() if self._places[stream].what == "replies"}
        most = self._most_replies
        self.has_more = has_more or any(count >= min(most, asked.get(one, most)) for one, count in replies.items())
        self._busy = self._busy + 1 if sum(replies.values()) >= _MANY_REPLIES else 0
        if entries:
            self._quiet = self._quiet + 1 if len(entries) == 1 else 0

    @property
    def are_quiet(self) -> bool:
        """Whether entries have come one at a time lately. Then the next comes when a service has answered: a reading
        along with a commit would find nothing, and one reading for all streams is enough. More readings took 5 % of the
        time of a saga alone."""
        return self._quiet >= _QUIET

    def partition_of(self, item: Input) -> Partition:
        """The partition of an input."""
        if self._only is not None:
            return self._only
        entry, event = item
        if entry is not None:
            return self._places[entry.stream].partition
        assert event.saga_id is not None  # it is due
        return self._keys.of(event.saga_id)

    def of(self, partition: Partition) -> list[str]:
        """Those of one partition."""
        return [name for name, place in self._places.items() if place.partition is partition]

    def in_calls(self, inputs: Sequence[Input]) -> Collection[Sequence[OfPartition]]:
        """The inputs by partition. Those that stand together here may be decided in one part, and committed in one
        call."""
        if self._only is not None:
            return [[(self._only, inputs)]]
        found: dict[int, list[Input]] = {}
        for item in inputs:
            found.setdefault(self.partition_of(item).number, []).append(item)
        calls = self._keys.in_calls([self._keys.partitions[number] for number in found])
        return [[(one, found[one.number]) for one in together] for together in calls]

    def opened(self, entry: Entry) -> Input:
        """What an entry says. What it says in the wrong place does not count."""
        partition, what, service = self._places[entry.stream]
        event: Event
        if what == "replies":
            event = read_reply(entry.fields, service)
        else:
            event = read_request(entry.fields)
            if isinstance(event, Signal):
                event = replace(event, added_ms=entry.added_ms)
            if isinstance(event, ToSaga) and what == "requests":
                event = _misplaced(f"a request about a saga that is there belongs into {partition.interventions}")
            elif isinstance(event, Begin) and what == "interventions":
                event = _misplaced(f"a saga_begin belongs into {partition.requests}")
        if self._only is None and event.saga_id is not None and (own := self._keys.of(event.saga_id)) is not partition:
            event = _misplaced(f"saga {event.saga_id} is in partition {own.number}, not in {partition.number}")
        return entry, event


def _misplaced(text: str) -> Unreadable:
    """It names no request id, so that it is quarantined."""
    return Unreadable(code=Code.MALFORMED, text=text)
