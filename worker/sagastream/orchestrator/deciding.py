"""Decides on the inputs of a turn, and commits, part by part: while the broker works on one part, the next is decided
on. The entries of the next turn are read along with the last part, unless the streams are quiet.
"""

import random
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import redis

from sagastream.broker import partial
from sagastream.broker.exchange import Exchange
from sagastream.broker.group_reader import GroupReader
from sagastream.core.backoff import jitter
from sagastream.core.journal import MAX_JOURNAL_BYTES
from sagastream.core.saga import Found
from sagastream.core.sending import Published
from sagastream.core.transitions import Moment
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Refused, Store
from sagastream.orchestrator.compensations import Compensations
from sagastream.orchestrator.ends import Ends
from sagastream.orchestrator.folding import fold, parts_of
from sagastream.orchestrator.gate import Gate
from sagastream.orchestrator.pauses import Pauses
from sagastream.orchestrator.services import KnownServices
from sagastream.orchestrator.setbacks import Setbacks
from sagastream.orchestrator.streams import Input, Streams
from sagastream.store.keys import StoreKeys


class Committed(NamedTuple):
    """What has become of the changes of a turn."""

    #: All but those that were refused, and those of which nobody knows whether they were written: a node is away.
    changes: list[Change]
    lost: list[Change]  # those of them that lost the comparison
    stuck: list[Change]  # those of them that are stuck, see `Store.commit`


class Deciding:
    """What one worker needs for that."""

    def __init__(
        self,
        client: "redis.Redis",
        store: Store,
        inbox: GroupReader,
        stop: threading.Event,
        *,
        gate: Gate,
        services: KnownServices,
        compensations: Compensations,
        pauses: Pauses,
        ends: Ends,
        setbacks: Setbacks,
        history_bytes: int,
    ) -> None:
        self._client = client
        self._store = store
        self._inbox = inbox
        self._stop = stop
        self._gate = gate
        self._services = services
        self._compensations = compensations
        self._pauses = pauses
        self._ends = ends
        self._setbacks = setbacks
        self._journal_bytes = min(max(history_bytes, 0), MAX_JOURNAL_BYTES)

    def committed(
        self, inputs: Sequence[Input], states: Mapping[str, Found], now_ms: int, keys: StoreKeys, streams: Streams
    ) -> Committed:
        """Decide and commit. `states`: of the sagas of these inputs."""
        published, unknown = self._compensations.needed(keys, inputs, states)
        if unknown:
            inputs = self._without(unknown, inputs, keys, streams)
        parts = [part for those in streams.in_calls(inputs) for part in parts_of(those)]
        moment = self._moment(now_ms, published, self._gate.closed(inputs))
        sent: list[list[Change]] = []
        left: list[Change] = []
        refused: Refused = {}  # by partition: why its changes were not written

        def commits() -> Iterator[Exchange[tuple[list[Change], list[Change]]]]:
            for part in parts:
                decided = fold(part, states, moment)
                if leaving := [change for change in decided if change.left]:
                    left.extend(leaving)
                    decided = [change for change in decided if not change.is_empty]
                if decided:
                    sent.append(decided)
                    self._services.add([command.service for change in decided for command in change.commands])
                    committing = self._store.committing(decided, now_ms, refused)
                    reads_on = part is parts[-1] and not (streams.are_quiet or self._stop.is_set())
                    yield self._inbox.read_along(committing, streams.wanted) if reads_on else committing

        try:
            results = partial.run_each(self._client, commits())
        except redis.RedisError:
            self._ends.note([change for those in sent for change in those])
            raise
        changes: list[Change] = []
        lost: list[Change] = []
        stuck: list[Change] = []
        for decided, result in zip(sent, results, strict=True):
            if isinstance(result, redis.RedisError):
                self._setbacks.unknown(decided, result, streams)
                continue
            changes += decided
            lost += result[0]
            stuck += result[1]
        if left:
            self._gate.leave(left)
        written = self._setbacks.without_refused(changes, refused, streams) if refused else changes
        return Committed(written, lost, stuck)

    def _moment(self, now_ms: int, published: Published, closed: Mapping[int, str]) -> Moment:
        """When, and with what, the inputs are decided on."""
        return Moment(
            now_ms=now_ms,
            published=published,
            watch=self._inbox.clock.watch,
            jitter=jitter(random.getrandbits(32)),
            closed=closed,
            journal_bytes=self._journal_bytes,
            paused=self._pauses.names,
            pauses=self._pauses.all,
            resumes=self._pauses.resumes,
        )

    def _without(
        self, saga_ids: Collection[str], inputs: Sequence[Input], keys: StoreKeys, streams: Streams
    ) -> Sequence[Input]:
        """These inputs without those of some sagas, which are read again later."""
        for partition in {keys.of(saga_id) for saga_id in saga_ids}:
            self._inbox.renew_later(streams.of(partition))
        return [item for item in inputs if item[1].saga_id not in saga_ids]
