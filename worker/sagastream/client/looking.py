"""What clients see of one saga: how it is, why it waits, what happened to it."""

import redis

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_denied
from sagastream.client import evidence, refusals
from sagastream.client.answers import opened
from sagastream.core.causes import Cause
from sagastream.core.history import history
from sagastream.core.history_events import HistoryEvent
from sagastream.core.saga import SagaState
from sagastream.core.sealing import Codec
from sagastream.errors import UnknownSaga, UnreadableSaga
from sagastream.store.keys import StoreKeys
from sagastream.store.sagas import load


def state(keys: StoreKeys, saga_id: str, codec: Codec | None) -> Exchange[SagaState | None]:
    """A saga as it is now, with all its values opened that can be; None: there is none. Raises UnreadableSaga."""
    found = (yield from load(keys, [saga_id]))[0][saga_id]
    if isinstance(found, UnreadableSaga):
        raise found
    return opened(codec, found)


def causes(keys: StoreKeys, saga_id: str) -> Exchange[tuple[Cause, ...]]:
    """Why a saga waits, or why it may not have begun yet. Raises UnreadableSaga, and UnknownSaga if there is none and
    nothing says that it may still begin."""
    found, why, _ = yield from evidence.explained(keys, saga_id)
    if isinstance(found, UnreadableSaga):
        raise found
    if found is None and not why:
        raise (yield from unknown(keys, saga_id))
    return why


def events(keys: StoreKeys, saga_id: str, codec: Codec | None) -> Exchange[list[HistoryEvent]]:
    """What happened to a saga; nothing if it may not have begun yet. Raises as `causes` does."""
    if (found := (yield from state(keys, saga_id, codec))) is None:
        yield from causes(keys, saga_id)
        found = yield from state(keys, saga_id, codec)  # it may have begun in between
    return [] if found is None else history(found)


def unknown(keys: StoreKeys, saga_id: str) -> Exchange[UnknownSaga]:
    """What to raise if there is no such saga."""
    try:
        refused = yield from refusals.of_saga(keys, saga_id)
    except redis.RedisError as error:
        if not is_denied(error):
            raise
        refused = None  # this user may not read the events
    why = "" if refused is None else f"; its request was refused: {refused}"
    return UnknownSaga(f"there is no saga {saga_id}{why}", saga_id)
