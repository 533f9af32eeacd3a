"""Partitions of which a key is damaged, as one worker has found them. It leaves them alone until that is put right."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import redis

from sagastream.broker import exchange
from sagastream.store import damage
from sagastream.store.keys import Partition

if TYPE_CHECKING:
    from collections.abc import Mapping


class DamagedPartitions:
    """Those that one worker knows."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._keys: Mapping[Partition, Mapping[str, str]] = {}  # what to look at, see damage.look
        #: The numbers of these partitions.
        self.numbers: frozenset[int] = frozenset()

    def others(self, partitions: Sequence[Partition]) -> list[Partition]:
        """Those of these partitions that are not among them."""
        return [one for one in partitions if one.number not in self.numbers]

    def found(self, partition: Partition, error: redis.RedisError) -> redis.RedisError:
        """An error says that a key of this partition has another type. Returns what is told of it."""
        found = exchange.run(self._client, damage.look({partition: damage.named(error) or damage.needed(partition)}))
        if partition not in found:
            return error  # it was put right meanwhile, or this user may not look
        keys, told = found[partition]
        self._are({**self._keys, partition: keys})
        return told

    def look(self) -> dict[Partition, redis.RedisError]:
        """Look at them again. Returns those that are still damaged."""
        if not self._keys:
            return {}
        found = exchange.run(self._client, damage.look(self._keys))
        self._are({one: keys for one, (keys, _) in found.items()})
        return {one: error for one, (_, error) in found.items()}

    def _are(self, keys: "Mapping[Partition, Mapping[str, str]]") -> None:
        self._keys = keys
        self.numbers = frozenset(one.number for one in keys)
