"""What is paused, as one worker knows it; and what it wakes once that is over.

A worker reads what is paused along with its heartbeat, so its decisions are at most a second behind. Sagas of which a
step is held are in an index of the service. A worker that sees that something is no longer paused goes through the
index, page by page, and makes these sagas due: workers lease them as they lease all that is due, look at each, and
send. So nothing is lost if the worker dies meanwhile; and a saga that is still held, since another command is paused
too, just stays so.

Each worker does so for itself. It may have held a saga a moment after the others went through the index, because it had
not heard yet; and then it may die. So a worker looks when it starts, and now and then: at all services of which nothing
is paused, and at those of which something was resumed since the last look but one.
"""

import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError, ResponseError

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.partial import run_all
from sagastream.broker.scripting import Script
from sagastream.broker.wire import or_raise
from sagastream.core.indexing import of_held
from sagastream.core.messages import is_id
from sagastream.core.pauses import NOTHING_PAUSED, Pause, Paused, Resume
from sagastream.store import pauses
from sagastream.store.keys import Partition, StoreKeys

if TYPE_CHECKING:
    import redis

#: How many indexes a round trip looks at, and about how many sagas of each.
_INDEXES: Final = 32
_PAGE: Final = 128
#: How often a worker looks for sagas that are held though nothing of their service is paused, in seconds. There are
#: none, unless a worker held one and died before it heard that the pause was over.
_LOOK_EVERY_S: Final = 30.0
#: How soon an index is tried again whose node is away, in seconds.
_AGAIN_S: Final = 1.0
_WAKE: Final = Script("wake")


class Pauses:
    """What one worker knows of what is paused. It reads that as a part of its heartbeat."""

    def __init__(self, client: "redis.Redis", lease_ms: int) -> None:
        """`lease_ms`: for how long the worker leases what is due."""
        self._client = client
        self._lease_ms = lease_ms
        self._keys: StoreKeys | None = None
        self._partitions: Sequence[Partition] = ()
        self._pages: deque[tuple[Partition, str, int]] = (
            deque()
        )  # what is to be looked at: the index of a service, from where
        self._away: list[tuple[Partition, str, int]] = []  # those of them that could not be read …
        self._again_at = 0.0  # … and when to try again, by time.monotonic
        self._look_at = 0.0
        #: The services of which something was resumed before the next look, and before the last one.
        self._resumed: frozenset[str] = frozenset()
        self._resumed_before: frozenset[str] = frozenset()
        self.names: Paused = NOTHING_PAUSED
        self.all: tuple[Pause, ...] = ()
        self.resumes: tuple[Resume, ...] = ()
        self._has_read = False

    def join(self, keys: StoreKeys) -> None:
        """Read what is paused in this store from now on."""
        self._keys, self._partitions = keys, keys.partitions
        self._has_read = False
        self._pages.clear()
        self._away.clear()
        self._look_at = 0.0

    def read(self) -> Exchange[None]:
        assert self._keys is not None
        self.all = tuple((yield from pauses.read(self._keys)))
        names = frozenset([one.name for one in self.all])
        resumed, self.names = self.names - names, names
        if resumed or not self._has_read:  # what a worker finds held when it starts may have been resumed before
            self.resumes = tuple((yield from pauses.resumed(self._keys)))
            self._has_read = True
        services = dict.fromkeys(name.partition("/")[0] for name in sorted(resumed))
        self._resumed |= services.keys()
        self._look(services)

    def look_again(self) -> None:
        """Look soon at all services of which nothing is paused, as a worker does that has just started."""
        self._look_at = 0.0

    def wake(self, services: Collection[str], partitions: Sequence[Partition]) -> bool:
        """Make some of the sagas due that may be held no more. `services`: of the store. `partitions`: those that the
        worker looks after. Returns whether there may be more of them."""
        self._partitions = partitions
        if time.monotonic() >= self._look_at:
            is_first, self._look_at = self._look_at == 0.0, time.monotonic() + _LOOK_EVERY_S
            # Of a service of which some commands are paused, most sagas in the index may well be held for long.
            of_pauses = {name.partition("/")[0] for name in self.names} - self._resumed - self._resumed_before
            left_out = self.names if is_first else self.names | of_pauses
            self._look([name for name in sorted(services) if name not in left_out])
            self._resumed_before, self._resumed = self._resumed, frozenset()
        if self._away and time.monotonic() >= self._again_at:
            self._pages.extend(self._away)
            self._away.clear()
        if self._pages:
            taken = [self._pages.popleft() for _ in range(min(_INDEXES, len(self._pages)))]
            read = run_all(self._client, [self._page(*one) for one in taken])
            if away := [one for one, result in zip(taken, read, strict=True) if isinstance(result, RedisError)]:
                self._away += away
                self._again_at = time.monotonic() + _AGAIN_S
        return bool(self._pages)

    def _look(self, services: Collection[str]) -> None:
        """Go through the indexes of these services from their beginnings."""
        if services:
            self._pages = deque([page for page in self._pages if page[1] not in services])
            self._away = [page for page in self._away if page[1] not in services]
            self._pages += [(partition, name, 0) for name in services for partition in self._partitions]

    def _page(self, partition: Partition, service: str, cursor: int) -> Exchange[None]:
        (answer,) = yield [("ZSCAN", partition.index(of_held(service)), cursor, "COUNT", _PAGE)]
        if is_wrong_type(answer):
            return
        found: Any = or_raise(answer)
        following, words = int(found[0]), found[1]
        ids = [name for word in words[::2] if is_id(name := word.decode(errors="backslashreplace"))]
        if following:
            self._pages.append((partition, service, following))
        if ids:
            try:
                yield from _WAKE.call([partition.timers], [self._lease_ms, *ids])
            except ResponseError as error:
                if not is_wrong_type(error):  # the lease of what is due tells of it
                    raise
