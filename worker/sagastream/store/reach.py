"""Which partitions of a store can be reached just now. On a cluster, a node may be away; the partitions that it has are
then left out of what is looked at, and whoever looks says so."""

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct
from redis.exceptions import RedisError

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import brief, is_outage
from sagastream.store.keys import StoreKeys


class Reach(Struct, frozen=True):
    """What can be reached of a store."""

    keys: StoreKeys  # with the partitions that can be reached
    away: Mapping[int, RedisError]  # by the number of a partition: why it cannot be reached
    shared: RedisError | None  # why the keys of the whole store cannot be reached; None: they can

    @property
    def is_whole(self) -> bool:
        return not self.away and self.shared is None

    def told(self) -> list[str]:
        """What cannot be reached, for people: a line for each reason."""
        return left_out(self.keys, self.away)

    def check(self) -> None:
        """Raise the error of the first partition that cannot be reached, if all are needed."""
        for error in (*self.away.values(), self.shared):
            if error is not None:
                raise error


def look(keys: StoreKeys, *, scripts: bool = False) -> Exchange[Reach]:
    """Ask each partition whether it is there. A single server is there as a whole, or not at all: it is not asked.
    `scripts`: a partition is away, too, if no script can be called there, since its slot is on its way to another node.
    Raises the first error if none is there."""
    if not keys.apart:
        return Reach(keys, {}, None)
    # While a slot is on its way, what needs several keys is refused if one of them is not there: as that of no saga.
    asked = [[one.timers, one.saga("")] if scripts else [one.timers] for one in keys.partitions]
    alive, *answers = yield [("EXISTS", keys.alive), *(("EXISTS", *those) for those in asked)]
    errors = zip(keys.partitions, map(_away, answers), strict=True)
    away = {one.number: error for one, error in errors if error is not None}
    if len(away) == len(keys.partitions):
        raise next(iter(away.values()))
    return Reach(keys.only({one.number for one in keys.partitions} - away.keys()), away, _away(alive))


def left_out(keys: StoreKeys, away: Mapping[int, RedisError]) -> list[str]:
    """These partitions, for people: a line for each reason why they cannot be reached."""
    by_reason: dict[str, list[int]] = {}
    for number, error in away.items():
        by_reason.setdefault(brief(error), []).append(number)
    return [f"{why}: {_named(numbers, len(keys.tags))} left out" for why, numbers in by_reason.items()]


def ranges(numbers: Iterable[int]) -> str:
    """Such as `0-3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs) or "none"


def _away(answer: object) -> RedisError | None:
    return answer if isinstance(answer, RedisError) and is_outage(answer) else None


def _named(numbers: Collection[int], of: int) -> str:
    word, verb = ("partition", "is") if len(numbers) == 1 else ("partitions", "are")
    return f"{word} {ranges(numbers)} of {of} {verb}"
