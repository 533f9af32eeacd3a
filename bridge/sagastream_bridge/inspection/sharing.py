"""Which process prefers which partitions of a store that has several, for people."""

from collections.abc import Collection, Iterable, Mapping

from sagastream.store import heartbeat
from sagastream.store.heartbeat import Process

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


def ranges(numbers: Iterable[int]) -> str:
    """Such as `0-3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs) or "none"
