"""The requests of lines that the broker does not have yet.

While one node of a cluster is away, the requests for its partitions are kept, and sent again until it has them. Those
for other partitions go on. An outage of the whole broker is for the caller to wait for.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import redis

from sagastream.broker.exchange import Exchange, run
from sagastream.broker.failures import is_outage
from sagastream.broker.partial import passes_over
from sagastream.client import requests
from sagastream.client.durability import Replicas
from sagastream.core.messages import Begin, ToSaga
from sagastream.errors import NotReplicated
from sagastream.store.keys import StoreKeys
from sagastream_bridge.stdin.lines import Caller

if TYPE_CHECKING:
    from redis.exceptions import RedisError

#: At most so many requests are kept for nodes that are away. Then no more lines are read.
MOST: Final = 1000


#: Called with who asked, the saga, and what there is to say if no replica has it.
TellDurable = Callable[[Caller, str, NotReplicated | None], None]


class Asked(NamedTuple):
    """The request of a line."""

    request: Begin | ToSaga
    line: int  # its number
    durable: Caller | None = None  # who is to hear whether a replica has it, too


class Unsent:
    """Any thread may send."""

    def __init__(
        self, client: "redis.Redis", tell_durable: Callable[[Caller, str, NotReplicated | None], None]
    ) -> None:
        self._client = client
        self._tell_durable = tell_durable
        self._lock = threading.Lock()
        self._left: list[Asked] = []  # in their order

    def up_to(self, line: int) -> int:
        """How many are left of the lines up to this one."""
        with self._lock:
            return sum(one.line <= line for one in self._left)

    def send_again(self, keys: StoreKeys) -> None:
        """Send those that are left. Returns in an outage, too: the reader of lines waits
        for its end, or the caller calls this again."""
        try:
            self.send(keys, most=math.inf)
        except redis.RedisError as error:
            if not is_outage(error):
                raise

    def send(self, keys: StoreKeys, asked: Sequence[Asked] = (), *, most: float = MOST) -> None:
        """Send these, after all that are left from before. What a node that is away does not take is left. If this
        raises redis.RedisError, what was not sent is left, too: call it again, without these.

        `most`: raise the error if more than so many are left.
        """
        with self._lock:
            self._left += asked
            if not self._left:
                return
            sending = self._left.copy()
            replicas = Replicas(keys)
            errors, sure = run(self._client, _sent(keys, replicas, sending))
            found = list(zip(sending, errors, strict=True))
            self._left = [one for one, error in found if error is not None]
            for one, error in found:
                if error is None and one.durable is not None:
                    saga_id = one.request.saga_id
                    self._tell_durable(one.durable, saga_id, None if saga_id in sure else replicas.missing(saga_id))
        failed = [error for error in errors if error is not None]
        if failed and (len(failed) > most or not all(passes_over(self._client, one) for one in failed)):
            raise failed[0]


def _sent(
    keys: StoreKeys, replicas: Replicas, asked: Sequence[Asked]
) -> Exchange[tuple[list["RedisError | None"], set[str]]]:
    """Why each could not be sent; and the sagas of which a replica has all, if somebody is to hear that."""
    appending = requests.append_each(keys, [one.request for one in asked])
    durable = [one.request.saga_id for one in asked if one.durable is not None]
    if not durable:
        return (yield from appending), set()
    errors, sure = yield from replicas.confirmed(dict.fromkeys(map(keys.of, durable)), appending)
    return errors, {saga_id for saga_id in durable if keys.of(saga_id) in sure}
