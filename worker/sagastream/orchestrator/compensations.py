"""What undoes the steps of the sagas that a turn may have to undo, as their services publish it."""

from collections.abc import Collection, Mapping, Sequence

import redis

from sagastream.broker.partial import ran
from sagastream.core.decision import Event, may_undo
from sagastream.core.messages import Begin, ToSaga
from sagastream.core.saga import Found, SagaState
from sagastream.core.sending import Published
from sagastream.core.steps import services_of
from sagastream.orchestrator.streams import Input
from sagastream.store import published
from sagastream.store.keys import StoreKeys


class Compensations:
    """What one worker knows of it."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._known: dict[str, Mapping[str, str | None]] = {}  # by service: what it published when it was last read

    def learn(self, keys: StoreKeys, services: Collection[str]) -> None:
        """Read what these services publish, if it can be read: later it may be that it cannot."""
        found = ran(self._client, published.look(keys, services)) if services else {}
        if not isinstance(found, redis.RedisError):
            self._known |= found

    def needed(
        self, keys: StoreKeys, inputs: Sequence[Input], states: Mapping[str, Found]
    ) -> tuple[Published, Collection[str]]:
        """What those services publish whose steps this turn may have to undo; and the ids of sagas of which it is not
        known what undoes them, since the node of a cluster is away that keeps it.

        It is read each time it is needed, since a service may have started, or published something else, a moment ago.
        While it cannot be read, what was read last counts.
        """
        needed: dict[str, set[str]] = {}
        for _, event in inputs:
            if services := _undone_by(event, inputs, states):
                needed.setdefault(event.saga_id or "", set()).update(services)
        if not needed:
            return {}, ()
        names = set().union(*needed.values())
        found = ran(self._client, published.look(keys, names))
        if not isinstance(found, redis.RedisError):
            self._known |= found
            return found, ()
        known = {name: self._known[name] for name in names & self._known.keys()}
        return known, {saga_id for saga_id, services in needed.items() if services - known.keys()}


def _undone_by(event: Event, inputs: Sequence[Input], states: Mapping[str, Found]) -> set[str]:
    """The services whose steps this event may lead to undo."""
    state = states.get(event.saga_id or "")
    if isinstance(state, SagaState):
        return services_of(step.definition for step in state.steps) if may_undo(state, event) else set()
    if not isinstance(event, ToSaga):
        return set()
    # Its saga may begin in this turn.
    begins = [other for _, other in inputs if isinstance(other, Begin) and other.saga_id == event.saga_id]
    return {name for begin in begins for name in services_of(begin.steps)}
