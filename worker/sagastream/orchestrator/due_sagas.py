"""When a worker looks for sagas whose time has come, and which it finds."""

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from sagastream.broker.connection import BLOCK_MS
from sagastream.broker.entries import BATCH
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.group_reader import GroupReader
from sagastream.broker.partial import why_unread
from sagastream.core.messages import Due
from sagastream.core.saga import SagaState
from sagastream.orchestrator.bulks import Bulks
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.clock import WaitingSagas
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.damaged import DamagedPartitions
from sagastream.orchestrator.gate import Gate
from sagastream.orchestrator.out_of_reach import OutOfReach
from sagastream.orchestrator.overdue import Overdue
from sagastream.orchestrator.pauses import Pauses
from sagastream.orchestrator.streams import Input
from sagastream.orchestrator.upkeep import Upkeep
from sagastream.store.keys import Partition, StoreKeys

if TYPE_CHECKING:
    import redis

#: The least time between two looks for due sagas, in seconds. A timeout is late by at most one turn and this.
LOOK_EVERY_S: Final = 0.02


class DueSagas:
    """The looks of one worker. Along with each goes what is to be done now and then: bulks, pauses, upkeep."""

    def __init__(
        self,
        client: "redis.Redis",
        store: Store,
        inbox: GroupReader,
        *,
        gate: Gate,
        pauses: Pauses,
        bulks: Bulks,
        overdue: Overdue,
        upkeep: Upkeep,
        away: OutOfReach,
        damaged: DamagedPartitions,
        lease_ms: int,
    ) -> None:
        """
        Args:
            inbox: knows the broker's clock.
            lease_ms: for how long the worker has a saga that it finds, in milliseconds.
        """
        self._client = client
        self._store = store
        self._inbox = inbox
        self._gate = gate
        self._pauses = pauses
        self._bulks = bulks
        self._overdue = overdue
        self._upkeep = upkeep
        self._away = away
        self._damaged = damaged
        self._lease_ms = lease_ms
        self._at = 0.0  # when to look again, by time.monotonic
        self._clock_changes = 0  # of the clock, for which it has looked at all sagas
        self._waiting = WaitingSagas(client, ())  # at which it looks because of that

    def wait_ms(self, block_ms: int) -> int:
        """For how long a reading may wait: `block_ms`, or until the next look."""
        return max(1, min(block_ms, int((self._at - time.monotonic()) * 1000)))

    def at_once(self) -> None:
        """Look in the next turn."""
        self._at = 0.0

    def soon(self) -> None:
        """Look in the next turn, or soon after it."""
        self._at = min(self._at, time.monotonic() + LOOK_EVERY_S)

    def again_with(self, changes: Sequence[Change], now_ms: int) -> None:
        """Look as soon as the first of these is due. If another worker gives a saga an earlier time, this one sees that
        at its next look, at most half a second later."""
        states = [change.after for change in changes if isinstance(change.after, SagaState)]
        if times := [due_ms for state in states if (due_ms := state.due_ms) is not None]:
            self._at = min(self._at, time.monotonic() + max((min(times) - now_ms) / 1000, LOOK_EVERY_S))

    def others(self, partitions: Sequence[Partition]) -> None:
        """The worker has other partitions than before."""
        self._at = 0.0
        if self._clock_changes:
            self._waiting = WaitingSagas(self._client, partitions)

    def look(
        self, keys: StoreKeys, partitions: Sequence[Partition], services: Collection[str], most_bytes: int
    ) -> list[Input]:
        """The sagas of these partitions that are due, if it is time to look. `services`: those of the store;
        `most_bytes`: the memory that the server may use, see Upkeep.look."""
        if time.monotonic() < self._at:
            return []
        stopped = self._damaged.look()
        asked = partitions if not stopped else self._damaged.others(partitions)
        are_held = self._pauses.wake(services, asked)
        calls = keys.in_calls(asked)
        # Each node of a cluster has its own clock; the worker asks one of them.
        now_ms = self._inbox.now_ms if keys.apart else None
        due, wait_ms, refused = self._store.due(calls, BATCH, self._lease_ms, self._gate.passed_over(), now_ms=now_ms)
        away = stopped | {one: self._damaged.found(one, e) if is_wrong_type(e) else e for one, e in refused.items()}
        # While the slot of a partition is on its way, its timers may answer, and its streams not.
        unread = {one: error for one in partitions if (error := why_unread(self._client, one.requests)) is not None}
        for partition, error in {**unread, **away}.items():
            self._away.lost(partition, error)
        self._away.answered([one for one in partitions if one not in away and one not in unread])
        wait_s = BLOCK_MS / 1000 if wait_ms is None else min(wait_ms, BLOCK_MS) / 1000
        self._at = time.monotonic() + (0.0 if len(due) >= BATCH else max(wait_s, LOOK_EVERY_S))
        if self._bulks.go_on() or are_held:
            self.soon()
        if self._upkeep.look(keys, self._damaged.others(partitions), self._inbox.now_ms, most_bytes):
            self.soon()
        leased = {saga_id for _, saga_id in due}
        due += self._put_off(asked)
        if strangers := [one for one in due if keys.of(one[1]) is not one[0]]:
            self._store.drop_strangers(strangers)
        due_ids = [saga_id for partition, saga_id in due if keys.of(saga_id) is partition]
        looked_at = dict.fromkeys([*due_ids, *self._overdue.go_on()])
        return [(None, Due(saga_id=saga_id, leased=saga_id in leased)) for saga_id in looked_at]

    def _put_off(self, partitions: Sequence[Partition]) -> list[tuple[Partition, str]]:
        """Sagas that may wait for too long, because the broker's clock was set back, or for too short, because it went
        forward."""
        if self._clock_changes != self._inbox.clock.changes:
            self._clock_changes = self._inbox.clock.changes
            self._waiting = WaitingSagas(self._client, partitions)
        if not self._waiting:
            return []
        self.soon()
        return self._waiting.page()
