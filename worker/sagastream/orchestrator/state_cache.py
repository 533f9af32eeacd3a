"""The sagas that a worker has just written, cached so that it need not read them again.

For most messages a worker can guess the state of their saga. A begin: there is no such saga yet. A reply for which the
saga was waiting when this worker wrote it: nobody has changed it since. The worker presumes that state and decides on
it. The commit compares it with the hash, as it compares a state that was read. If another worker has changed the saga,
the state is read and the turn decides again. So a wrong guess costs a second try, and cannot lead to a wrong decision.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final

from sagastream.broker.entries import Entry
from sagastream.core.answers import awaits
from sagastream.core.commands import Reply
from sagastream.core.decision import Event
from sagastream.core.messages import Begin, Newer
from sagastream.core.saga import Found, SagaState
from sagastream.orchestrator.change import Change

#: At most this many sagas are cached: those that this worker wrote last.
_SAGAS: Final = 1024
#: A saga that weighs more than this is not cached: its params, results and what else it was given, in bytes.
_HEAVIEST: Final = 4096
#: The cached sagas have at most this many steps together. Besides that weight, a step takes 0.5 to 2 kB, so the cache
#: takes at most some 70 MB.
_STEPS: Final = 32 * _SAGAS


class StateCache:
    """The live sagas that one worker was the last to change, as far as it knows."""

    def __init__(self) -> None:
        self._states: dict[str, SagaState] = {}
        self._steps = 0  # how many steps they have together

    def presume(self, inputs: Iterable[tuple[Entry | None, Event]]) -> dict[str, Found]:
        """The likely states of the sagas of these messages. A saga that is not among them must be read."""
        presumed: dict[str, Found] = {}
        for entry, event in inputs:
            if isinstance(event, Newer) and event.saga_id is not None:
                presumed.setdefault(event.saga_id, None)  # it is left to a newer release, whatever its saga is
            if entry is None or entry.again:
                continue  # the worker that had it before may have changed the saga
            state = self._states.get(event.saga_id or "")
            if isinstance(event, Reply):
                if state is not None and awaits(state, event):
                    presumed[event.saga_id] = state
            elif isinstance(event, Begin) and state is None:
                presumed.setdefault(event.saga_id, None)
        return presumed

    def forget(self, which: Callable[[str], bool] = lambda _: True) -> None:
        """Others may have changed any of those with such an id."""
        for saga_id in [*filter(which, self._states)]:
            self._steps -= len(self._states.pop(saga_id).steps)

    def keep(self, changes: Iterable[Change], refused: Collection[Change]) -> None:
        """Cache what was committed, and drop what was not."""
        not_written = {id(change) for change in refused}
        for change in changes:
            if change.saga_id is None:
                continue
            if (was := self._states.pop(change.saga_id, None)) is not None:  # the latest come last
                self._steps -= len(was.steps)
            state = None if id(change) in not_written else change.written
            if isinstance(state, SagaState) and not state.ended and state.weight <= _HEAVIEST:
                self._states[change.saga_id] = state
                self._steps += len(state.steps)
        while len(self._states) > _SAGAS or self._steps > _STEPS:
            self._steps -= len(self._states.pop(next(iter(self._states))).steps)
