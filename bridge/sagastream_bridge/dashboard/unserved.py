"""Services that nobody runs, though commands lie in their streams: what helps, as `show` and `doctor` say it."""

from collections.abc import Iterable
from typing import Final

import redis
from msgspec import Struct
from msgspec.structs import replace

from sagastream.broker.exchange import all_of, run
from sagastream.client.evidence import explain
from sagastream.core.causes import Cause, Evidence
from sagastream.core.saga import SagaState
from sagastream.core.why_service import nobody
from sagastream.rq_steps import asking
from sagastream.store import sagas
from sagastream.store.keys import StoreKeys
from sagastream.store.unread import first_unread

#: So many unread commands of each stream are looked at. A command may have a megabyte.
_LOOKED_AT: Final = 10


class Unserved(Struct, frozen=True, kw_only=True):
    """A service that nobody runs."""

    cause: Cause
    unwanted: int = 0  # how many of its unread commands no saga waits for, of those that were looked at
    is_awaited: bool = True  # whether a saga waits for one of those, or may do so


def look(client: "redis.Redis", keys: StoreKeys, evidence: Evidence, services: Iterable[str]) -> dict[str, Unserved]:
    """Those of these services that nobody runs. `evidence`: about all of them."""
    said = ((name, nobody(evidence.of(name), evidence.names, evidence.now_ms)) for name in services)
    causes = {name: cause for name, cause in said if cause is not None}
    looked = run(client, all_of([first_unread(keys, name, _LOOKED_AT) for name in causes]))
    return {
        name: Unserved(
            cause=_of_a_saga(client, keys, cause, found.awaited),
            unwanted=len(found.unwanted),
            is_awaited=bool(found.awaited or found.kept),
        )
        for (name, cause), found in zip(causes.items(), looked, strict=True)
    }


def _of_a_saga(client: "redis.Redis", keys: StoreKeys, cause: Cause, awaited: list[str]) -> Cause:
    """What a saga that waits for a service says of it: if the service was misspelt, to start one is no help."""
    if not (cause.facts.get("near") and awaited):
        return cause
    states, _ = sagas.read(client, keys, awaited[:1])
    (state,) = states.values()
    if not isinstance(state, SagaState):
        return cause
    (said,) = asking.run(client, explain(keys, [state], _LOOKED_AT))
    # It may wait for others, too.
    return next((replace(one, text=cause.text) for one in said if cause.text in one.text), cause)
