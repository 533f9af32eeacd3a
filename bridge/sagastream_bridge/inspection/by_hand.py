"""How to look at a saga with redis-cli: lines for a shell, each with what it shows."""

import shlex
from collections.abc import Iterator
from typing import Final, NamedTuple

from sagastream.core.saga import Found, SagaState
from sagastream.core.steps import services_of
from sagastream.store.keys import StoreKeys

#: How many entries of a stream a line shows.
_SHOWN: Final = 10


class Look(NamedTuple):
    """One line."""

    what: str  # it shows
    words: tuple[str, ...]

    def line(self, cli: str) -> str:
        """`cli`: how redis-cli reaches the broker, for a shell."""
        return f"{cli} {shlex.join(self.words)}"


def looks(keys: StoreKeys, saga_id: str, state: Found) -> Iterator[Look]:
    """The lines for this saga. `state`: None: there is none; then its request may still be there."""
    partition = keys.of(saga_id)
    if state is None:
        words = ("XREVRANGE", partition.requests, "+", "-", "COUNT", str(_SHOWN))
        yield Look("the newest requests that no worker has taken, its own among them", words)
        return
    yield Look("its state", ("HGETALL", partition.saga(saga_id)))
    if isinstance(state, SagaState) and state.ended:
        yield Look("when it ended, in ms", ("ZSCORE", partition.ended, saga_id))
    else:
        yield Look("when it needs attention next, in ms; inf: it is parked", ("ZSCORE", partition.timers, saga_id))
    yield Look("in which indexes it is", ("HGET", partition.indexed, saga_id))
    if not isinstance(state, SagaState):  # it is damaged, or of a newer release
        return
    for service in sorted(services_of(step.definition for step in state.steps)):
        records = ("HSCAN", partition.done(service, state.begun_ms), "0", "MATCH", f"{saga_id}/*", "COUNT", "100000")
        yield Look(f"what {service} remembers of its commands", records)
        if not state.ended:
            commands = ("XRANGE", partition.commands(service), "-", "+", "COUNT", str(_SHOWN))
            yield Look(f"the oldest commands for {service} that are not answered", commands)
