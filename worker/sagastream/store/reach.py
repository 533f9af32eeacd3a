"""Which partitions of a store can be reached just now. On a cluster, a node may be away, or deny this user what the
others allow. The partitions that it has are then left out of what is looked at, and whoever looks says so."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct
from redis.exceptions import RedisError

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import brief, is_denied, is_outage, node_name, said_by
from sagastream.broker.nodes import node_of
from sagastream.store.keys import StoreKeys

if TYPE_CHECKING:
    import redis

_T = TypeVar("_T")


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
    alive, *answers = _unless_denied((yield [("EXISTS", keys.alive), *(("EXISTS", *those) for those in asked)]))
    errors = zip(keys.partitions, map(_away, answers), strict=True)
    away = {one.number: error for one, error in errors if error is not None}
    if len(away) == len(keys.partitions):
        raise next(iter(away.values()))
    return Reach(keys.only({one.number for one in keys.partitions} - away.keys()), away, _away(alive))


def despite_refusals(client: "redis.Redis", found: Reach, read: Callable[[Reach], _T]) -> _T:
    """What `read` returns, of what can be reached of a store. If a node of the cluster denies this user something that
    it needs, it reads again, without what that node has. Raises the first such error if no node is left, or if that
    does not help.

    Rejected: to ask before which commands each node allows. What is read calls many, some only of certain stores.
    """
    first: RedisError | None = None
    while True:
        try:
            return read(found)
        except RedisError as error:
            first = first or error
            if (rest := _without(client, found, error)) is None:
                raise first from None
            found = rest


def _without(client: "redis.Redis", found: Reach, error: RedisError) -> Reach | None:
    """What is left without the node that has denied something; None: nothing is, or it is no such error."""
    if not is_denied(error) or (node := said_by(error)) is None:
        return None
    keys, is_shared = found.keys, node_name(node_of(client, found.keys.alive)) == node
    refusing = {one.number for one in keys.partitions if node_name(node_of(client, one.timers)) == node}
    if len(refusing) == len(keys.partitions) or not (refusing or (is_shared and found.shared is None)):
        return None
    rest = keys.only({one.number for one in keys.partitions} - refusing)
    return Reach(rest, {**found.away, **dict.fromkeys(refusing, error)}, error if is_shared else found.shared)


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
    return answer if isinstance(answer, RedisError) and (is_outage(answer) or is_denied(answer)) else None


def _unless_denied(answers: Sequence[Any]) -> Sequence[Any]:
    """The answers. If no node lets this user ask, they are as if all were there: then this tells nothing of a node."""
    denied = [answer for answer in answers if isinstance(answer, RedisError) and is_denied(answer)]
    return [1] * len(answers) if len(denied) == len(answers) else answers


def _named(numbers: Collection[int], of: int) -> str:
    word, verb = ("partition", "is") if len(numbers) == 1 else ("partitions", "are")
    return f"{word} {ranges(numbers)} of {of} {verb}"
