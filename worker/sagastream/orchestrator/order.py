"""What a worker takes first: a begin before requests about its saga, a signal before the end of its wait. Streams share
no order with each other, nor with a time that has come.

A request is deleted when it is taken. So whatever is there is unread, or some worker has read it and is at it.
"""

from collections.abc import Mapping
from typing import Final

import redis

from sagastream.broker import wire
from sagastream.broker.group_reader import GroupReader
from sagastream.broker.wire import or_raise
from sagastream.core.messages import Begin, Due, Signal, ToSaga
from sagastream.core.parsing import read_request
from sagastream.core.phases import AWAITS
from sagastream.core.saga import Found, SagaState
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.streams import Input, Streams

#: How many requests that were added before the end of a wait are looked at. If there are more, the wait goes on.
_LOOKED_AT: Final = 64


class Order:
    """The order in which one worker takes its inputs."""

    def __init__(self, client: "redis.Redis", store: Store, inbox: GroupReader) -> None:
        self._client = client
        self._store = store
        self._inbox = inbox

    def begins_first(self, inputs: list[Input], states: Mapping[str, Found], streams: Streams) -> list[Input]:
        """Hand back requests whose saga is not there, if a request to begin it may have been added before them. Returns
        the others."""
        begun = {event.saga_id for _, event in inputs if isinstance(event, Begin)}
        early = [
            (entry, event)
            for entry, event in inputs
            if entry is not None
            and isinstance(event, ToSaga)
            and event.saga_id not in begun
            and states[event.saga_id] is None
        ]
        if not early:
            return inputs
        # In the same millisecond the begin counts as added before.
        partitions = [streams.partition_of((entry, event)) for entry, event in early]
        asked = [
            ("XRANGE", partition.requests, "-", entry.added_ms, "COUNT", 1)
            for partition, (entry, _) in zip(partitions, early, strict=True)
        ]
        answers = wire.round_trip(self._client, asked)
        waiting = {entry.at: entry for (entry, _), found in zip(early, answers, strict=True) if or_raise(found)}
        if waiting:
            self._inbox.leases.leave_to_newer(list(waiting.values()))
        return [item for item in inputs if item[0] is None or item[0].at not in waiting]

    def signals_first(
        self, inputs: list[Input], states: Mapping[str, Found], streams: Streams, now_ms: int
    ) -> list[Input]:
        """Put off sagas of which a wait is over, if a signal for it may have been added in time, and was not taken yet.
        Returns the others."""
        over = {
            event.saga_id: over_ms
            for _, event in inputs
            if isinstance(event, Due) and (over_ms := _over_ms(states[event.saga_id], now_ms)) is not None
        }
        if not over:
            return inputs
        due = {item[1].saga_id: streams.partition_of(item) for item in inputs if item[1].saga_id in over}
        asked = [
            ("XRANGE", due[saga_id].interventions, "-", over_ms, "COUNT", _LOOKED_AT)
            for saga_id, over_ms in over.items()
        ]
        late = set()
        for saga_id, answer in zip(over, wire.round_trip(self._client, asked), strict=True):
            if len(entries := or_raise(answer)) == _LOOKED_AT or any(
                _signals(fields, saga_id) for _, fields in entries
            ):
                late.add(saga_id)
        if late:
            self._store.give_back([(due[saga_id], saga_id) for saga_id in late])
        return [item for item in inputs if not (isinstance(item[1], Due) and item[1].saga_id in late)]


def _over_ms(state: Found, now_ms: int) -> int | None:
    """When the last of the waits for a signal was over that are over by now; None: none is."""
    if not isinstance(state, SagaState):
        return None
    times = [step.due_ms for step in state.steps if step.phase in AWAITS and step.due_ms is not None]
    return max((time_ms for time_ms in times if time_ms <= now_ms), default=None)


def _signals(words: list[bytes], saga_id: str) -> bool:
    """Whether an entry signals to this saga."""
    event = read_request(dict(zip(words[::2], words[1::2], strict=True)))
    return isinstance(event, Signal) and event.saga_id == saga_id
