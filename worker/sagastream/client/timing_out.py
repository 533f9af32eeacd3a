"""What is said when the time of a wait is up: why the saga waits, or why there is none."""

from collections.abc import Sequence

import redis

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import NodeAway
from sagastream.client import evidence, refusals
from sagastream.client.waiting import Waiter
from sagastream.core.messages import ToSaga
from sagastream.core.why import headline
from sagastream.store.layout import Layout


def error(
    layout: Layout,
    waiters: Sequence[Waiter],
    timeout_s: float,
    away: redis.RedisError | None,
    unbegun: Waiter | None,
) -> Exchange[TimeoutError]:
    """What to raise for these waiters together. It takes some round trips, so not if the time to wait was none.

    Args:
        away: why the saga of the first one cannot be read now.
        unbegun: one of them whose saga is not there.
    """
    why = ""
    if away is not None:
        why = f" ({away})" if isinstance(away, NodeAway) else f" (the broker is away: {away})"
    elif unbegun is not None:
        why = f": {unbegun.unbegun}{yield from _why_unbegun(layout, unbegun)}"
    elif timeout_s > 0 and not isinstance(waiters[0].request, ToSaga):
        why = yield from _why(layout, waiters[0].saga_id, of_many=len(waiters) > 1)
    return waiters[0].timeout_error(timeout_s, why, others=len(waiters) - 1)


def _why(layout: Layout, saga_id: str, *, of_many: bool) -> Exchange[str]:
    """Why a saga waits, as the end of a sentence; nothing if that cannot be found out."""
    try:
        keys = yield from layout.opened()
        if not (yield from evidence.may_look(keys)):
            return ""
        found = yield from evidence.explained(keys, saga_id)
    except redis.RedisError:
        return ""
    if not found.causes:
        return ""
    return f"{f'; {saga_id}' if of_many else ''}: {headline(found.causes)}"


def _why_unbegun(layout: Layout, waiter: Waiter) -> Exchange[str]:
    """The same of a saga that is not there, if it was refused lately."""
    try:
        refusal = yield from refusals.of_saga((yield from layout.opened()), waiter.saga_id, waiter.request)
    except redis.RedisError:
        return ""
    return "" if refusal is None else f"; its request was refused: {refusal}"
