"""Which process prefers which partitions of a store that has several, for people."""

from collections.abc import Collection, Mapping

from sagastream.store import heartbeat
from sagastream.store.heartbeat import Process
from sagastream.store.reach import ranges

#: At most so many processes of a kind are named.
_NAMED = 32


def told(processes: Collection[Process], partitions: int) -> Mapping[str, str]:
    """The partitions that each process prefers, by its name. Empty if there is one partition: nothing is shared."""
    if partitions == 1:
        return {}
    return {name: ranges(numbers) for name, numbers in heartbeat.preferred(processes, partitions).items()}


def line(processes: Collection[Process], partitions: int) -> str | None:
    """Who prefers which, of the processes of one kind and service; None: it shares with nobody."""
    found = told(processes, partitions)
    if len(found) < 2:
        return None
    parts = [f"{name} prefers {numbers}" for name, numbers in sorted(found.items())[:_NAMED]]
    more = f"; and {len(found) - _NAMED} more processes" if len(found) > _NAMED else ""
    return f"of {partitions} partitions, {'; '.join(parts)}{more}"
