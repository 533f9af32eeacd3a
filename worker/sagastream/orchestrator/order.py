"""What a worker takes first: a begin before requests about its saga. Streams share no order with each other.

A request is deleted when it is taken. So whatever is there is unread, or some worker has read it and is at it.
"""

from collections.abc import Mapping

import redis

from sagastream.broker import wire
from sagastream.broker.group_reader import GroupReader
from sagastream.broker.partial import passes_over
from sagastream.broker.wire import or_raise
from sagastream.core.messages import Begin, ToSaga
from sagastream.core.saga import Found
from sagastream.orchestrator.streams import Input, Streams


class Order:
    """The order in which one worker takes its inputs."""

    def __init__(self, client: "redis.Redis", inbox: GroupReader) -> None:
        self._client = client
        self._inbox = inbox

    def begins_first(
        self, inputs: list[Input], states: Mapping[str, Found], streams: Streams, now_ms: int
    ) -> list[Input]:
        """Hand back requests whose saga is not there, if a request to begin it may have been added before them. If
        nobody can say, since the node of a cluster is away, they are read again later. Returns the others."""
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
        # In the same millisecond the begin counts as added before. If its id is ahead of the clock, the clock was set
        # back, and nobody knows when it was added.
        requests = [streams.partition_of((entry, event)).requests for entry, event in early]
        before = [
            ("XRANGE", stream, "-", entry.added_ms, "COUNT", 1)
            for stream, (entry, _) in zip(requests, early, strict=True)
        ]
        ahead = [("XRANGE", stream, now_ms + 1, "+", "COUNT", 1) for stream in set(requests)]
        asked: list[wire.Words] = [*before, *ahead]
        answers = wire.round_trip(self._client, asked)
        away = {
            words[1]
            for words, found in zip(asked, answers, strict=True)
            if passes_over(self._client, found, or_damaged=True)
        }
        answers = [[] if words[1] in away else or_raise(found) for words, found in zip(asked, answers, strict=True)]
        put_off = [entry for stream, (entry, _) in zip(requests, early, strict=True) if stream in away]
        self._inbox.renew_later({entry.stream for entry in put_off})
        with_more = {words[1] for words, found in zip(ahead, answers[len(before) :], strict=True) if found}
        waiting = {
            entry.at: entry
            for stream, (entry, _), found in zip(requests, early, answers[: len(before)], strict=True)
            if found or stream in with_more
        }
        if waiting:
            self._inbox.leases.leave_to_newer(list(waiting.values()))
        left = waiting.keys() | {entry.at for entry in put_off}
        return [item for item in inputs if item[0] is None or item[0].at not in left]
