"""What a worker does before it ends a wait whose time is over: it looks for a signal that was added in time.

Signals stand in a stream, and whether one came in time goes by its id. Nothing orders that stream with the times of
sagas. A signal is deleted when it is taken. So one that is there is unread, or some worker has read it and is at it.

A look goes through all entries of a partition that may have been added in time, a page each turn. So a turn takes no
longer, and no more memory, than the page does, whatever the stream holds. Nobody knows how much that is: what only a
newer release takes may stay there for good. Rejected: to have waits go on while there is more than one page. They would
then go on for as long.
"""

from collections.abc import Collection, Mapping
from typing import Final

import redis
from msgspec import Struct

from sagastream.broker import wire
from sagastream.broker.entries import BATCH, Entry, entries_of
from sagastream.broker.partial import passes_over
from sagastream.broker.portions import Portion
from sagastream.broker.wire import or_raise
from sagastream.core.messages import Due, Signal
from sagastream.core.parsing import read_request
from sagastream.core.phases import AWAITS
from sagastream.core.saga import Found, SagaState
from sagastream.core.waits import may_be_in_time
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.streams import Input, Streams
from sagastream.store.keys import Partition

#: At most so many sagas wait for the next look. Any others are due again when their lease is over.
_MOST_WAITING: Final = 8 * BATCH


class _Look(Struct, eq=False):
    """A look through the requests of one partition."""

    over: dict[str, int]  # the sagas, and when the last of their waits was over that are over
    now_ms: int
    left: list[tuple[str | bytes | int, str | int]]  # what is still to be read: from which id to which
    signalled: set[str]  # those of the sagas for which a signal was found

    @classmethod
    def at(cls, over: dict[str, int], now_ms: int) -> "_Look":
        # If an id is ahead of the clock, its entry may have been in time, too.
        left: list[tuple[str | bytes | int, str | int]] = [("-", max(over.values())), (now_ms + 1, "+")]
        return cls(over=over, now_ms=now_ms, left=left, signalled=set())

    def saw(self, entry: Entry) -> None:
        event = read_request(entry.fields)
        if not isinstance(event, Signal) or (over_ms := self.over.get(event.saga_id)) is None:
            return
        if may_be_in_time(entry.added_ms, over_ms, self.now_ms):
            self.signalled.add(event.saga_id)


class Overdue:
    """The waits of one worker whose time is over."""

    def __init__(self, client: "redis.Redis", store: Store) -> None:
        self._client = client
        self._store = store
        self._portion = Portion(BATCH)
        self._looks: dict[Partition, _Look] = {}  # those that go on
        self._waiting: dict[Partition, dict[str, int]] = {}  # sagas for the next look: see `_Look.over`
        self._looked: dict[str, int] = {}  # sagas for which this turn has found no signal: up to which time

    def __bool__(self) -> bool:
        """Whether a look goes on in the next turn."""
        return bool(self._looks)

    def forget(self, partitions: Collection[Partition] | None = None) -> None:
        """The store may have changed, there or (None) anywhere. The sagas are due again when their leases are over."""
        for partition in [*self._looks, *self._waiting] if partitions is None else partitions:
            self._looks.pop(partition, None)
            self._waiting.pop(partition, None)
        self._looked.clear()

    def go_on(self) -> list[str]:
        """Look on. Returns the ids of the sagas for which the whole look has found no signal: their waits can be
        ended."""
        self._looked.clear()
        return [saga_id for look in self._next_page(self._looks) for saga_id in look.over.keys() - look.signalled]

    def signals_first(
        self, inputs: list[Input], states: Mapping[str, Found], streams: Streams, now_ms: int
    ) -> list[Input]:
        """Put off sagas of which a wait is over, if a signal for it may have been added in time and was not taken yet.
        Returns the others."""
        over = {
            saga_id: over_ms
            for _, event in inputs
            if isinstance(event, Due) and (over_ms := _over_ms(states[saga_id := event.saga_id], now_ms)) is not None
        }
        over = {one: over_ms for one, over_ms in over.items() if over_ms > self._looked.get(one, -1)}
        if not over:
            return inputs
        due = {item[1].saga_id: streams.partition_of(item) for item in inputs if item[1].saga_id in over}
        by_partition: dict[Partition, dict[str, int]] = {}
        for saga_id, over_ms in over.items():
            by_partition.setdefault(due[saga_id], {})[saga_id] = over_ms
        found = self._next_page(self._begun(by_partition, now_ms))
        if signalled := [(due[saga_id], saga_id) for look in found for saga_id in look.signalled]:
            self._store.give_back(signalled)
        put_off = over.keys() - self._looked.keys()
        return [item for item in inputs if not (isinstance(item[1], Due) and item[1].saga_id in put_off)]

    def _begun(self, by_partition: Mapping[Partition, dict[str, int]], now_ms: int) -> dict[Partition, _Look]:
        """A look for these sagas, if none goes on in their partition; else they wait for the next one."""
        begun = {}
        for partition, over in by_partition.items():
            if (look := self._looks.get(partition)) is None:
                begun[partition] = _Look.at(over, now_ms)
                continue
            waiting = self._waiting.setdefault(partition, {})
            room = _MOST_WAITING - len(waiting)
            waiting |= [one for one in over.items() if one[0] not in look.over][:room]
        self._looks |= begun
        return begun

    def _next_page(self, looks: Mapping[Partition, _Look]) -> list[_Look]:
        """Read the next page of these looks, in one round trip. Returns those that are finished."""
        asked = [(partition, look, span) for partition, look in looks.items() for span in look.left]
        if not asked:
            return []
        count = self._portion.share(len(asked), BATCH)
        answers = wire.round_trip(
            self._client,
            [("XRANGE", partition.interventions, *span, "COUNT", count) for partition, _, span in asked],
        )
        seen: list[Entry] = []
        for (partition, look, span), answer in zip(asked, answers, strict=True):
            if passes_over(self._client, answer, or_damaged=True):
                self._looks.pop(partition, None)  # its sagas are due again when their leases are over
                self._waiting.pop(partition, None)
                continue
            page = entries_of([(partition.interventions.encode(), or_raise(answer))])
            seen += page
            for entry in page:
                look.saw(entry)
            look.left.remove(span)
            if len(page) == count:
                look.left.append((b"(" + page[-1].id, span[1]))
        self._portion.saw(seen)
        return self._finished(looks)

    def _finished(self, looks: Mapping[Partition, _Look]) -> list[_Look]:
        finished = {one: look for one, look in looks.items() if not look.left and one in self._looks}
        for partition, look in finished.items():
            self._looked |= {one: over_ms for one, over_ms in look.over.items() if one not in look.signalled}
            del self._looks[partition]
            if waiting := self._waiting.pop(partition, None):
                self._looks[partition] = _Look.at(waiting, look.now_ms)
        return list(finished.values())


def _over_ms(state: Found, now_ms: int) -> int | None:
    """When the last of the waits for a signal was over that are over by now; None: none is."""
    if not isinstance(state, SagaState):
        return None
    times = [step.due_ms for step in state.steps if step.phase in AWAITS and step.due_ms is not None]
    return max((time_ms for time_ms in times if time_ms <= now_ms), default=None)
