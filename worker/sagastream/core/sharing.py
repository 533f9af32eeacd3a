"""Who prefers which partition of the store: each process computes it for itself, from the names of all that are there.

Nobody leads, and nobody is asked: whoever hears of the same processes computes the same. Correctness never depends on
it. Two processes that both prefer a partition, since they have not heard of the same ones yet, do no harm: consumer
groups give an entry to one of them, and commits compare the version.

A process counts only those beside itself that can do all that it can do. So one of an older release, which leaves to
others what it does not know, never keeps a newer one from a partition: however releases are mixed, for all that any
process can do, each partition is preferred by a process that can do it too.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from heapq import nlargest
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

_AT_ONCE: Final = Layout(">8Q")


class Sharer(Struct, frozen=True, kw_only=True):
    """A process that shares the partitions with others of its kind: workers, or the processes of one service."""

    name: str  # which no other process has
    formats: frozenset[int]  # that it knows
    commands: frozenset[str] | None = None  # that it has; None: it has none, or it does not say

    def stands_in_for(self, other: "Sharer") -> bool:
        """Whether it can do all that another one can do."""
        if self.commands is None or other.commands is None:
            return self.commands is other.commands and self.formats >= other.formats
        return self.formats >= other.formats and self.commands >= other.commands


def preferred(own: Sharer, others: Collection[Sharer], partitions: int, *, spares: bool) -> frozenset[int]:
    """The numbers of the partitions that a process prefers.

    `partitions`: how many the store has. `spares`: as for `shares`.
    """
    names = {other.name for other in others if other.stands_in_for(own)}
    return shares(names | {own.name}, partitions, spares=spares)[own.name]


def all_preferred(sharers: Collection[Sharer], partitions: int, *, spares: bool) -> dict[str, frozenset[int]]:
    """The numbers of the partitions that each of these processes prefers, by its name. `spares`: as for `shares`."""
    # Processes that can do the same share among the same ones: usually that is all of them.
    abilities = {(one.formats, one.commands): one for one in sharers}
    among = {
        ability: frozenset(other.name for other in sharers if other.stands_in_for(one))
        for ability, one in abilities.items()
    }
    shared = {names: shares(names, partitions, spares=spares) for names in set(among.values())}
    return {one.name: shared[among[one.formats, one.commands]][one.name] for one in sharers}


def shares(names: Collection[str], partitions: int, *, spares: bool) -> Mapping[str, frozenset[int]]:
    """The partitions of each of these processes.

    Each has as many as any other, or one more. A hash of partition and name decides whose a partition is (rendezvous
    hashing): if a process comes or goes, most of the other partitions stay where they are.

    Args:
        partitions: how many there are; they are numbered from 0.
        spares: if there are more processes than partitions: whether the others have none, and wait until one of the
            first is gone. Otherwise each shares a partition with as few others as possible.
    """
    owned: dict[str, list[int]] = {name: [] for name in sorted(set(names))}
    ranks = {name: _ranks(name, partitions) for name in owned}
    least, left_over = divmod(partitions, len(owned))  # so many processes have one more than the others
    free = set(range(partitions))
    # The highest hashes first, of all partitions together. Rejected: partition by partition. If a process comes or
    # goes, the numbers that each may have change, and then about three times as many partitions move.
    for _, name, partition in sorted(_candidates(ranks, partitions), reverse=True):
        number = len(owned[name])
        if partition in free and (number < least or (number == least and left_over)):
            owned[name].append(partition)
            free.remove(partition)
            left_over -= number == least
    if not spares and least == 0:
        _share_out(owned, ranks, partitions)
    return {name: frozenset(those) for name, those in owned.items()}


def _candidates(ranks: Mapping[str, Sequence[int]], partitions: int) -> Iterator[tuple[int, str, int]]:
    """The processes that may get each partition, with their hashes. If there are more processes than partitions, each
    gets at most one partition. So for one partition, it is enough to look at as many processes as there are partitions,
    those with the highest hashes: other partitions cannot take all of them. So very many processes are not sorted."""
    for partition in range(partitions):
        of_this = [(of_name[partition], name, partition) for name, of_name in ranks.items()]
        yield from of_this if len(of_this) <= partitions else nlargest(partitions, of_this)


def _share_out(owned: Mapping[str, list[int]], ranks: Mapping[str, Sequence[int]], partitions: int) -> None:
    """Give each process that has no partition one that others have."""
    readers = [1] * partitions
    most = -(-len(owned) // partitions)
    for name, those in owned.items():
        if not those:
            free = (partition for partition, number in enumerate(readers) if number < most)
            partition = max(free, key=ranks[name].__getitem__)
            those.append(partition)
            readers[partition] += 1


def _ranks(name: str, partitions: int) -> list[int]:
    """The hash of each partition and this name."""
    found: list[int] = []
    for first in range(0, partitions, _AT_ONCE.size // 8):  # one digest has those of eight
        digest = blake2b(b"%b/%d" % (name.encode(errors="surrogatepass"), first), digest_size=_AT_ONCE.size).digest()
        found += _AT_ONCE.unpack(digest)
    return found[:partitions]
