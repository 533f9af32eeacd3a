"""What a worker remembers of sagas, so that it need not ask for what it has just written.

Of most messages it is plain what their saga is: a begin is of one that there is not yet; a reply that a saga waits
for, as this worker left it, says that nobody has moved it since. That is presumed, and the commit finds out: what was
presumed is compared with what stands there, as what was read is. Where another worker has been at the saga it is read,
and decided on anew. So a memory can cost a second try, and cannot lead to a wrong decision.
"""

from collections.abc import Collection, Iterable
from typing import Final

from sagastream.broker.group_reader import Entry
from sagastream.core.decision import Event, awaits
from sagastream.core.messages import Begin, Newer, Reply
from sagastream.core.saga import Found, SagaState
from sagastream.orchestrator.change import Change

#: How many sagas are remembered at the most: those of which this worker heard last.
_SAGAS: Final = 1024
#: How much params and results a saga may carry to be remembered, in bytes; so all of them take some 40 MB at the most.
_HEAVIEST: Final = 4096


class Memory:
    """The live sagas that one worker was the last to move, as far as it knows."""

    def __init__(self) -> None:
        self._states: dict[str, SagaState] = {}

    def presume(self, letters: Iterable[tuple[Entry | None, Event]]) -> dict[str, Found]:
        """What the sagas of these messages are, most likely; of the others nothing is known."""
        presumed: dict[str, Found] = {}
        for entry, event in letters:
            if isinstance(event, Newer) and event.saga_id is not None:
                presumed.setdefault(event.saga_id, None)  # it is left alone, whatever its saga is
            if entry is None or entry.again:
                continue  # whoever had it before may have moved the saga
            state = self._states.get(event.saga_id or "")
            if isinstance(event, Reply):
                if state is not None and awaits(state, event):
                    presumed[event.saga_id] = state
            elif isinstance(event, Begin) and state is None:
                presumed.setdefault(event.saga_id, None)
        return presumed

    def keep(self, changes: Iterable[Change], refused: Collection[Change]) -> None:
        """Remember what was committed, and forget what was not."""
        not_written = {id(change) for change in refused}
        for change in changes:
            if change.saga_id is None:
                continue
            self._states.pop(change.saga_id, None)  # the latest stand last
            state = None if id(change) in not_written else change.written
            if isinstance(state, SagaState) and not state.ended and state.weight <= _HEAVIEST:
                self._states[change.saga_id] = state
        while len(self._states) > _SAGAS:
            del self._states[next(iter(self._states))]
