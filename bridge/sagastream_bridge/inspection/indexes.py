"""Examines the sagas of a store: can each be read, does it stand where it should in the indexes, what does it wait for?

A failover that loses writes can leave sagas in wrong places of the indexes: with `repair`, those are set right.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from sagastream.broker.exchange import run
from sagastream.core.messages import is_id
from sagastream.core.phases import BACKING_OFF
from sagastream.core.saga import SagaState
from sagastream.core.sealed_values import keys_of
from sagastream.core.steps import STANDING
from sagastream.core.why_out import LATE_MS, MANY_FAILURES
from sagastream.errors import CorruptSaga, NewerFormat
from sagastream.orchestrator import places
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.worker import LEASE_MS
from sagastream.store.keys import Partition, StoreKeys
from sagastream_bridge.inspection.findings import PROBLEM, REPAIRED, Finding, ok, problem, repaired, warning

if TYPE_CHECKING:
    import redis

#: How many sagas to examine in one transaction of the broker.
_PAGE: Final = 100
#: For how many sagas to report the same finding.
_SHOWN: Final = 10
#: Of how many sagas that wait for the same to keep the state.
_KEPT: Final = 3


@dataclass(slots=True)
class Waiting:
    """The live sagas that have a command out to the same service, of the same name. A saga that has several out counts
    for each."""

    count: int = 0
    #: Those that have waited longest, each with the number of the step.
    first: list[tuple[SagaState, int]] = field(default_factory=list)

    def add(self, state: SagaState, number: int) -> None:
        self.count += 1
        first = (*self.first, (state, number))
        self.first = sorted(first, key=lambda one: (one[0].updated_ms, one[0].saga_id, one[1]))[:_KEPT]

    @property
    def named(self) -> str:
        """How many they are, and the ids of the first."""
        ids = ", ".join(dict.fromkeys(state.saga_id for state, _ in self.first))
        return f"{self.count} ({ids}{' …' if self.count > len(self.first) else ''})"


class SagaCheck:
    """The examination. What it has counted is known when `examine` is exhausted."""

    def __init__(self, client: "redis.Redis", keys: StoreKeys, *, repair: bool) -> None:
        self._client = client
        self._keys = keys
        self._repair = repair
        self._store = Store(client)
        self._wrong: Counter[str] = Counter()  # how often the same was found of a saga
        self._parked = self._ended = self._overdue = self._unlisted = 0
        self.live = 0
        self.newer: Counter[int] = Counter()  # sagas by their format, of those that only a newer release can read
        self.waiting: defaultdict[tuple[str, str], Waiting] = defaultdict(Waiting)  # by service and command
        self.held: defaultdict[tuple[str, str], Waiting] = defaultdict(
            Waiting
        )  # those that are sent once it is resumed
        self.between: defaultdict[tuple[str, str], Waiting] = defaultdict(Waiting)  # of those, between two attempts
        self.failing: defaultdict[tuple[str, str], Waiting] = defaultdict(Waiting)  # of them, those that fail
        #: Sagas by the key with which values of them are sealed (None: values that are not), and by whether they live.
        self.sealed: Counter[tuple[str | None, bool]] = Counter()
        self.ahead_ms = 0  # how far in the future the last change of a saga is, at most

    def examine(self) -> Iterator[Finding]:
        for partition in self._keys.partitions:
            names = self._client.scan_iter(partition.saga("*"), _PAGE)
            found = (partition.saga_id(key.decode(errors="backslashreplace")) for key in names)
            while page := list(islice(found, _PAGE)):
                yield from self._page(partition, [saga_id for saga_id in page if is_id(saga_id)])
                for name in page:
                    if not is_id(name):
                        yield from self._tell("stands at a key that no saga has", name[:64], mended=False, can_be=False)
            yield from self._strangers(partition)
        for what, times in self._wrong.items():
            if times > _SHOWN:
                level = REPAIRED if self._repair else PROBLEM
                yield Finding(level=level, about="sagas", text=f"… and {times - _SHOWN} more: each {what}")
        if self._overdue:
            text = f"{self._overdue} should have moved more than {LATE_MS // 1000} s ago: no worker sees to them"
            yield problem("sagas", text)
        yield from self._not_listed()
        if not self._wrong and not self._overdue:
            yield ok("sagas", f"{self.live} live, {self._ended} ended; each live one has a reason to move")
        if self._parked:
            text = f"parked, waiting for a person: {self._parked}"
            yield warning("sagas", text, "see sagastream list --status parked")

    def _not_listed(self) -> Iterator[Finding]:
        if self._unlisted:
            text = f"sagas that are in no index, since an earlier release has begun them: {self._unlisted}"
            do = "a worker puts them in within minutes; sagastream doctor --repair does it now"
            yield repaired("sagas", f"{text}; put in") if self._repair else warning("sagas", text, do)

    def _page(self, partition: Partition, saga_ids: list[str]) -> Iterator[Finding]:
        if not saga_ids:
            return
        now_ms, page = run(self._client, places.examined(partition, saga_ids, LEASE_MS))
        for one in page:
            if isinstance(one.found, CorruptSaga):
                what = one.wrong[0] if one.wrong else f"stands still until its fields are repaired: {one.found}"
                yield from self._tell(what, f"saga {one.saga_id}", mended=False, can_be=False)
            elif isinstance(one.found, NewerFormat):
                self.newer[one.found.format] += 1
            elif isinstance(one.found, SagaState):
                self._count(one.found, now_ms)
                yield from self._placed(one, now_ms)
                self._overdue += not one.wrong and one.timer is not None and one.timer < now_ms - LATE_MS

    def _placed(self, one: places.Examined, now_ms: int) -> Iterator[Finding]:
        """Does it stand where it should?"""
        if self._repair and one.mend is not None and self._store.commit([one.mend], now_ms)[0]:
            return  # it has moved meanwhile, so it is right by now
        self._unlisted += one.is_unlisted
        for what in one.wrong:
            yield from self._tell(what, f"saga {one.saga_id}", mended=self._repair, can_be=True)

    def _count(self, state: SagaState, now_ms: int) -> None:
        self.ahead_ms = max(self.ahead_ms, state.updated_ms - now_ms)
        self.sealed.update((key, not state.ended) for key in _keys_of(state))
        if state.ended:
            self._ended += 1
            return
        self.live += 1
        if state.parked is not None:
            self._parked += 1
        for number in state.active_steps:
            step = state.steps[number - 1]
            if step.parked is not None or not (step.in_flight or step.phase in BACKING_OFF):
                continue
            wanted = step.definition.service, step.command
            if step.is_held:
                self.held[wanted].add(state, number)
                continue
            self.waiting[wanted].add(state, number)
            if step.phase in BACKING_OFF:
                self.between[wanted].add(state, number)
            if step.failed_attempts >= MANY_FAILURES:
                self.failing[wanted].add(state, number)

    def _strangers(self, partition: Partition) -> Iterator[Finding]:
        """Members of timers that are no sagas, or sagas that are not there."""
        members: Iterator[bytes] = (member for member, _ in self._client.zscan_iter(partition.timers))
        while page := list(islice(members, _PAGE)):
            no_ids, missing = run(self._client, places.waited_for_in_vain(partition, page))
            yield from self._no_ids(partition, no_ids)
            for change in missing:
                if self._repair and self._store.commit([change], 0)[0]:
                    continue  # it was begun meanwhile
                what = "is waited for, and is gone: somebody has deleted its hash"
                yield from self._tell(what, f"saga {change.saga_id}", mended=self._repair, can_be=True)

    def _no_ids(self, partition: Partition, members: list[bytes]) -> Iterator[Finding]:
        """Members of timers that cannot be the id of a saga: no commit would remove them."""
        if self._repair and members:
            self._client.zrem(partition.timers, *members)
        for member in members:
            what = f"is a member of {partition.timers} and no id of a saga: something else has written there"
            yield from self._tell(what, f"{member[:64]!a}", mended=self._repair, can_be=True)

    def _tell(self, what: str, of: str, *, mended: bool, can_be: bool) -> Iterator[Finding]:
        """Of many alike, the first ones are reported. `can_be`: whether it can be mended."""
        self._wrong[what] += 1
        if self._wrong[what] <= _SHOWN:
            text = f"{of} {what}"
            do = ("sagastream doctor --repair sets it right",) if can_be else ()
            yield repaired("sagas", f"{text}; set right") if mended else problem("sagas", text, *do)


def _keys_of(state: SagaState) -> set[str | None]:
    """With which keys its values are sealed; None among them: some are not."""
    keys: set[str | None] = set()
    values = [state.input, *(signal.payload for signal in state.signals)]
    for step in state.steps:
        if step.definition.transaction != STANDING:  # which is never sealed
            # Params that are not built yet hold references, and are not sealed.
            is_data = step.built is not None or not (
                step.definition.shape.has_references or not step.definition.shape.sends
            )
            values += [step.params if is_data else None, step.result, step.built_undo]
    for data in values:
        if data is not None:
            keys.update(keys_of(data) or (None,))
    return keys
