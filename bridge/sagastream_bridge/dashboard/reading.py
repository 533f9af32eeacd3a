"""What pages read of a store. What all viewers see is read once for all of them, and kept for some seconds."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Final, Generic, TypeVar

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import Exchange, run
from sagastream.client.blocking import SagaClient
from sagastream.client.evidence import explain
from sagastream.codecs.setting import codec_of
from sagastream.core.bulks import Bulk, BulkResult
from sagastream.core.causes import Cause
from sagastream.core.filtering import Filter
from sagastream.core.saga import SagaState
from sagastream.core.sending import Published
from sagastream.errors import SagastreamError
from sagastream.rq_steps import asking
from sagastream.store import bulks, heartbeat, layout, operations, published, reach
from sagastream.store.definitions import Deployed
from sagastream.store.finding import Page, find, of_reached, opened_page
from sagastream.store.heartbeat import Process
from sagastream.store.keys import StoreKeys
from sagastream.store.operations import Operation
from sagastream.store.quarantine import Quarantine, Quarantined
from sagastream.store.reach import Reach
from sagastream_bridge.dashboard import recent, standing
from sagastream_bridge.dashboard.finding import Search
from sagastream_bridge.dashboard.outage import Outage
from sagastream_bridge.dashboard.recent import Recent
from sagastream_bridge.dashboard.standing import Parked, Standing
from sagastream_bridge.inspection import lookup
from sagastream_bridge.inspection.lookup import Found

_T = TypeVar("_T")

#: How long the broker may take to answer, in seconds: whoever looks at a page waits meanwhile.
ANSWER_TIMEOUT_S: Final = 2.5
#: How long what was read is shown, in seconds: the figures, and what takes longer to read.
_FIGURES_S: Final = 2.0
_PARKED_S: Final = 5.0
_RECENT_S: Final = 15.0
_KEYS_S: Final = 10.0
#: How many sagas a page shows.
_OF_A_PAGE: Final = 50
#: For each saga of a list, so many entries of a stream are looked at at most.
_LOOKED_AT: Final = 100
#: How much of what people did is shown.
_OPERATIONS: Final = 20
#: So many sagas are shown before all that a search finds are asked; as the command does.
_SAMPLE: Final = 10
#: How many bulks are shown; and so many entries of what has come of one. An entry is a refusal, or all that was done
#: of a part.
MOST_BULKS: Final = 50
_RESULTS: Final = 300
#: How many quarantined messages are shown.
MOST_QUARANTINED: Final = 100


class Shared(Generic[_T]):
    """What was read last, for all who ask within some seconds. Only one of them reads it again."""

    def __init__(self, read: Callable[[], _T], for_s: float) -> None:
        self._read = read
        self._for_s = for_s
        self._lock = threading.Lock()
        self._kept: tuple[float, _T] | None = None
        self._failed: tuple[float, Exception] | None = None

    def __call__(self) -> _T:
        asked = time.monotonic()
        with self._lock:
            if self._kept is None or time.monotonic() - self._kept[0] >= self._for_s:
                if self._failed is not None and self._failed[0] >= asked:  # this one has waited for that
                    raise self._failed[1]
                self._kept = None  # also if it cannot be read
                try:
                    self._kept = (time.monotonic(), self._read())
                except (redis.RedisError, SagastreamError) as error:
                    self._failed = (time.monotonic(), error)
                    raise
            return self._kept[1]

    def forget(self) -> None:
        """Have it read again: something was done."""
        with self._lock:
            self._kept = None


class StoreReader:
    """Reads one store for all pages. Each method raises what the store raises: redis.RedisError, SagastreamError."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.client = SagaClient(broker)
        self.outage = Outage()
        #: The names of all keys; and what can be reached of the store.
        self.layout: Shared[StoreKeys] = Shared(lambda: layout.look(broker), _KEYS_S)
        self.reach: Shared[Reach] = Shared(lambda: run(broker.client, reach.look(self.layout())), _FIGURES_S)
        self.standing: Shared[Standing] = Shared(self._standing, _FIGURES_S)
        self.parked: Shared[Parked] = Shared(lambda: self._run(standing.parked), _PARKED_S)
        self.recent: Shared[Recent] = Shared(lambda: self._run(recent.read), _RECENT_S)
        self.bulks: Shared[list[Bulk]] = Shared(self._bulks, _FIGURES_S)
        self.processes: Shared[list[Process]] = Shared(self._processes, _FIGURES_S)

    def keys(self) -> StoreKeys:
        """The names of the keys that can be reached."""
        return self.reach().keys

    def forget(self) -> None:
        """Have all read again: something was done."""
        for shared in (self.standing, self.parked, self.processes, self.bulks):
            shared.forget()

    def fingerprint(self) -> object:
        """What the figures are: if it changes, pages do. Ages are no part of it."""
        now = self.standing()
        alive = [worker.name for worker in now.evidence.workers if worker.is_alive]
        alive += [one.name for queue in now.queues for one in queue.facts.alive]
        counts = (now.live, now.parked, now.back, now.figures.ended, now.unread, now.quarantined, now.full, now.away)
        queues = tuple((queue.figures.unread, queue.figures.held) for queue in now.queues)
        try:
            many = tuple((one.bulk_id, one.state, one.found, one.done, one.refused) for one in self.bulks())
        except redis.exceptions.NoPermissionError:  # an earlier release has printed this user's rights
            many = ()
        return counts, now.evidence.pauses, tuple(sorted(alive)), queues, many

    def saga(self, saga_id: str) -> Found:
        """One saga, with all that explains it."""
        return lookup.saga(self.broker, saga_id)

    def find(self, search: Search) -> Page:
        """A page of sagas. Raises ValueError for a cursor that no page has had."""
        return self._page(search.wanted, _OF_A_PAGE, search.cursor)

    def service_in_place_of_command(self, search: Search) -> tuple[str, str] | None:
        """If a search names a service where a command belongs: the part of the search, and the service."""
        return lookup.service_in_place_of_command(self.broker, search.wanted)

    def sample(self, wanted: Filter) -> Page:
        """The first sagas of those that a bulk would find, and how many there are."""
        return self._page(wanted, _SAMPLE)

    def bulk(self, bulk_id: str) -> Bulk:
        """A bulk as it is now. Raises RequestRefused if there is none."""
        return self._run(lambda keys: bulks.load(keys, bulk_id))

    def results(self, bulk_id: str) -> list[BulkResult]:
        """What has come of its last requests, the newest first."""
        return self._run(lambda keys: bulks.newest_results(keys, bulk_id, _RESULTS))

    def parked_now(self, saga_ids: Sequence[str]) -> list[str]:
        """Which of these sagas are parked."""
        return self._run(lambda keys: bulks.parked_now(keys, saga_ids))

    def turns(self, bulk_id: str) -> list[Operation]:
        """Who has paused, resumed and stopped it, the oldest first."""
        return self._run(lambda keys: bulks.turns(keys, bulk_id))

    def why(self, states: Sequence[SagaState]) -> list[tuple[Cause, ...]]:
        """Why each of these sagas waits. Nothing is said while what is of the whole store cannot be read."""
        if self.reach().shared is not None:
            return [() for _ in states]
        return asking.run(self.broker.client, explain(self.keys(), states, _LOOKED_AT))

    def quarantined(self) -> list[Quarantined]:
        """The messages that were set aside last, the newest first."""
        return list(islice(self.quarantine.newest_first(), MOST_QUARANTINED))

    @property
    def quarantine(self) -> Quarantine:
        return Quarantine(self.broker.client, self.keys())

    def operations(self) -> list[Operation]:
        """What people did lately that no saga's record tells of, the newest first."""
        return self._run(lambda keys: operations.newest(keys, _OPERATIONS))

    def definitions(self) -> Sequence[Deployed]:
        return self.client.definitions()

    def published(self, services: Collection[str]) -> Published:
        """What these services publish: their commands, and what undoes each."""
        return published.read(self.broker.client, self.keys(), services)

    def _standing(self) -> Standing:
        found = standing.read(self.broker, self.layout())
        self.outage.over()
        return found

    def _bulks(self) -> list[Bulk]:
        return self._run(lambda keys: bulks.listed(keys, MOST_BULKS))

    def _processes(self) -> list[Process]:
        services = [queue.facts.name for queue in self.standing().queues]
        return heartbeat.processes(self.broker.client, self.keys(), services)

    def _page(self, wanted: Filter, limit: int, cursor: str | None = None) -> Page:
        client = self.broker.client

        def read(there: Reach) -> Page:
            return of_reached(run(client, find(there.keys, wanted, limit, cursor)), there)

        return opened_page(codec_of(None), reach.despite_refusals(client, self.reach(), read))

    def _run(self, exchange: Callable[[StoreKeys], Exchange[_T]]) -> _T:
        client = self.broker.client
        return reach.despite_refusals(client, self.reach(), lambda there: run(client, exchange(there.keys)))
