"""The ends of sagas that one worker has written: if the store loses the last of them, nobody else knows what clients
were told."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from sagastream.broker.exchange import Exchange
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.orchestrator.change import Change
from sagastream.store import told
from sagastream.store.keys import StoreKeys
from sagastream.store.told import End

#: How many ends are remembered: some seconds of a busy worker. A replica lags by milliseconds, unless it is cut off.
_MOST: Final = 16_384
#: Ends are kept from this long before the first write that may be lost, in milliseconds: that time is known to about a
#: second, and clocks of two servers differ. An end that is not lost agrees with the store, so nobody lists it.
_MARGIN_MS: Final = 10_000
# Looked up once, and compared by identity: this is asked of each change.
_COMPLETED: Final = SagaStatus.COMPLETED
_ABORTED: Final = SagaStatus.ABORTED


class Ends:
    """The ends that this worker has written last."""

    def __init__(self) -> None:
        self._ends: deque[End] = deque(maxlen=_MOST)

    def note(self, changes: Iterable[Change], refused: Collection[Change] = ()) -> None:
        """Remember the ends among these changes. `refused`: those of them that were not written. If that is not known,
        since the broker went away, they count as written: they may have been told."""
        ended = [
            one
            for one in changes
            if isinstance(state := one.after, SagaState) and ((now := state.status) is _COMPLETED or now is _ABORTED)
        ]
        if not ended:
            return
        not_written = {id(change) for change in refused}
        for change in ended:
            after, before = change.after, change.before
            is_new = not (isinstance(before, SagaState) and before.ended)
            if is_new and isinstance(after, SagaState) and id(change) not in not_written:
                self._ends.append(End(after.saga_id, str(after.status), after.updated_ms))

    def keep(self, keys: StoreKeys, since: Mapping[int | None, int | None]) -> Exchange[None]:
        """Note in the store those that may be lost. `since`: see Lineage.taken."""
        if None in since:
            since = dict.fromkeys([one.number for one in keys.partitions], since[None])
        earliest = {number: 0 if since_ms is None else since_ms - _MARGIN_MS for number, since_ms in since.items()}
        ends = [(end, earliest.get(keys.of(end.saga_id).number)) for end in self._ends]
        yield from told.keep(keys, [end for end, from_ms in ends if from_ms is not None and end.ended_ms >= from_ms])
