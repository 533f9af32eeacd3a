"""How a client makes sure that a replica has what it asked for: `durable="replica"`.

WAIT tells how many replicas have all that one connection has written. A begin may find the saga there already, and
write nothing, while no replica has that saga yet. So a write goes along in front of the WAIT: a replica that has this
one has all that came before it, whoever wrote that. (Redis 7.0 and Valkey 9.1 wait for all that the server had when the
connection last called anything; but only writes are promised.) All goes in one round trip, so it is one server that
answers. On a cluster it is asked for each partition, and each node waits once.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Literal, TypeVar

from redis.exceptions import RedisError

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_outage
from sagastream.broker.scripting import even_if_full
from sagastream.broker.wire import Words, or_raise
from sagastream.store.keys import Partition, StoreKeys

_T = TypeVar("_T")

#: What a begin waits for besides the broker itself.
Durable = Literal["replica"]

#: How long a replica may take to confirm, in milliseconds. A healthy one takes less than one; clients give up on an
#: answer of the broker only after some seconds.
CONFIRMED_WITHIN_MS: Final = 1_000
#: How long the key stays that is written, in milliseconds.
_KEPT_MS: Final = 60_000


def check_durable(durable: Any) -> None:
    """Raises ValueError if this is nothing that a begin can wait for."""
    if durable not in (None, "replica"):
        raise ValueError(f"durable must be 'replica', or None: it is {durable!r:.80}")


def confirmed(
    keys: StoreKeys, partitions: Iterable[Partition], exchange: Exchange[_T]
) -> Exchange[tuple[_T, Collection[Partition]]]:
    """The result of the exchange; and of which of these partitions a replica has all that it wrote or found in its last
    round trip. `partitions`: those in which it does that."""
    groups = keys.in_calls(list(partitions))
    asking = [words for group in groups for words in _asking(group)]
    commands = next(exchange)
    while True:
        try:
            told = yield [*commands, *asking]
        except RedisError as error:
            commands = exchange.throw(error)
            continue
        try:
            commands = exchange.send(told[: -len(asking)])
        except StopIteration as end:
            result: _T = end.value
            answers = iter(told[-len(asking) :])
            return result, [one for group in groups if _is_confirmed(keys, group, answers) for one in group]


def _asking(group: Sequence[Partition]) -> list[Words]:
    """What is asked about partitions that one server has: a write to each, and a WAIT."""
    keys = [partition.confirm for partition in group]
    return [*(even_if_full(key, "SET", key, 1, "PX", _KEPT_MS) for key in keys), ("WAIT", 1, CONFIRMED_WITHIN_MS)]


def _is_confirmed(keys: StoreKeys, group: Sequence[Partition], answers: Iterator[Any]) -> bool:
    *writes, replicas = islice(answers, len(group) + 1)
    for answer in (*writes, replicas):
        if keys.apart and isinstance(answer, RedisError) and is_outage(answer):
            return False  # of a node that is away; others may have confirmed
        or_raise(answer)  # such as that this user may not ask
    return int(replicas) > 0
