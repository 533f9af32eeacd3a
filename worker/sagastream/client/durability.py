"""How a client makes sure that a replica has what it asked for: `durable="replica"`.

WAIT tells how many replicas have all that one connection has written. A begin may find the saga there already, and
write nothing, while no replica has that saga yet. So a write goes along in front of the WAIT: a replica that has this
one has all that came before it, whoever wrote that. (Redis 7.0 and Valkey 9.1 wait for all that the server had when the
connection last called anything; but only writes are promised.) All goes in one round trip, so it is one server that
answers. On a cluster it is asked for each partition, and each node waits once.

A healthy replica confirms at once, so the first WAIT is short. After it the server says whether replicas are connected.
If none is, nobody will confirm, and the client is told so. Otherwise one more round trip waits for the rest of the
time. What it finds counts only if the server has the same history still: a new master may lack what was asked for.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, TypeVar

from redis.exceptions import RedisError

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_outage
from sagastream.broker.scripting import even_if_full
from sagastream.broker.server import facts
from sagastream.broker.wire import Words, or_raise
from sagastream.errors import NotReplicated
from sagastream.store.keys import Partition, StoreKeys

_T = TypeVar("_T")

#: What a begin waits for besides the broker itself.
Durable = Literal["replica"]

#: How long a replica may take to confirm, in milliseconds. A healthy one takes less than one; clients give up on an
#: answer of the broker only after some seconds.
CONFIRMED_WITHIN_MS: Final = 1_000
#: How long each round trip waits that asks for something. If no replica was connected a moment ago, it waits for the
#: least time that there is; 0 would be for ever.
_FIRST_MS: Final = 20
_LEAST_MS: Final = 1
#: How long the key stays that is written, in milliseconds.
_KEPT_MS: Final = 60_000


def check_durable(durable: Any) -> None:
    """Raises ValueError if this is nothing that a begin can wait for."""
    if durable not in (None, "replica"):
        raise ValueError(f"durable must be 'replica', or None: it is {durable!r:.80}")


class _Told(NamedTuple):
    """What one server has told."""

    confirmed: bool  # whether a replica has all of it
    connected: bool  # whether one is connected
    history: str | None  # the id of its replication; None: it does not tell


class Replicas:
    """What replicas confirm of what a client does, in exchanges one after another."""

    def __init__(self, keys: StoreKeys) -> None:
        self._keys = keys
        #: Whether one was connected when that was last told.
        self.are_connected = True

    def confirmed(
        self, partitions: Iterable[Partition], exchange: Exchange[_T]
    ) -> Exchange[tuple[_T, Collection[Partition]]]:
        """The result of the exchange; and of which of these partitions a replica has all that it wrote or found in its
        last round trip. `partitions`: those in which it does that."""
        groups = self._keys.in_calls(list(partitions))
        commands = next(exchange)
        while True:
            asking = _asking(groups, _FIRST_MS if self.are_connected else _LEAST_MS)
            try:
                told = yield [*commands, *asking]
            except RedisError as error:
                commands = exchange.throw(error)
                continue
            answers = told[-len(asking) :]
            try:
                commands = exchange.send(told[: -len(asking)])
            except StopIteration as end:
                result: _T = end.value
                return result, (yield from self._sure(groups, self._told(groups, answers)))
            with suppress(RedisError):  # the next round trip tells of it, too
                self._told(groups, answers)

    def missing(self, saga_id: str) -> NotReplicated:
        """What is to be told of a saga that no replica has confirmed."""
        return NotReplicated(saga_id, CONFIRMED_WITHIN_MS, connected=self.are_connected)

    def _sure(self, groups: Sequence[Sequence[Partition]], told: Sequence[_Told | None]) -> Exchange[list[Partition]]:
        """The partitions of which a replica has all. `told`: of each group; None: its server is away."""
        waits = [at for at, one in enumerate(told) if one is not None and one.connected and not one.confirmed]
        late: set[int] = set()
        if waits:
            left = [groups[at] for at in waits]
            answers = yield _asking(left, CONFIRMED_WITHIN_MS - _FIRST_MS)
            for at, then, now in zip(waits, [told[at] for at in waits], self._told(left, answers), strict=True):
                if then and now and now.confirmed and now.history is not None and now.history == then.history:
                    late.add(at)
        sure = [group for at, group in enumerate(groups) if at in late or ((one := told[at]) and one.confirmed)]
        return [partition for group in sure for partition in group]

    def _told(self, groups: Sequence[Sequence[Partition]], answers: Sequence[Any]) -> list[_Told | None]:
        """What each server has told; None: it is away. Raises what else it has answered."""
        rest = iter(answers)
        found = [self._read(islice(rest, len(group) + 2)) for group in groups]
        self.are_connected = any(one is None or one.connected for one in found)
        return found

    def _read(self, answers: Iterator[Any]) -> _Told | None:
        *writes, replicas, info = answers
        for answer in (*writes, replicas):
            if self._keys.apart and isinstance(answer, RedisError) and is_outage(answer):
                return None  # others may have confirmed
            or_raise(answer)  # such as that this user may not ask
        about = facts(info) if isinstance(info, bytes) else {}
        connected = about.get("connected_slaves") != "0"  # if the server does not tell, one may be
        return _Told(int(replicas) > 0, connected, about.get("master_replid"))


def _asking(groups: Iterable[Sequence[Partition]], within_ms: int) -> list[Words]:
    """What is asked about the partitions that each server has: a write to each, a WAIT, and how its replicas are."""
    asking: list[Words] = []
    for group in groups:
        keys = [partition.confirm for partition in group]
        asking += [even_if_full(key, "SET", key, 1, "PX", _KEPT_MS) for key in keys]
        asking += [("WAIT", 1, within_ms), ("INFO", "replication")]
    return asking
