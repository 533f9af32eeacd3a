"""Outages of a part of a cluster: what needs only the other nodes goes on.

On a single server there are none: an outage is one of all. So each function here does there what would be done without
it, and costs nothing.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeGuard, TypeVar

from redis.exceptions import RedisError, ResponseError

from sagastream.broker import exchange
from sagastream.broker.cluster_map import slot_of
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import NodeAway, is_denied, is_outage, is_wrong_type
from sagastream.broker.nodes import nodes_of

if TYPE_CHECKING:
    import redis

_T = TypeVar("_T")


def passes_over(client: "redis.Redis", error: object, *, or_damaged: bool = False) -> TypeGuard[RedisError]:
    """Whether to pass over this error, since it concerns one node only, and work on the other nodes can go on. It may
    be an outage of that node, or that node may deny this user what others allow. If the node refuses something, this
    notes that something waits for it: that is told if it lasts.

    `or_damaged`: pass over an error about one key that has another type, too, also on a single server.
    """
    if or_damaged and is_wrong_type(error):
        return True
    nodes = nodes_of(client)
    if nodes is None or not isinstance(error, RedisError):
        return False
    is_part = nodes.map.some_answer if is_outage(error) else is_denied(error) and nodes.map.denies(error)
    if is_part:
        nodes.map.matters(error)
    return is_part


def why_unread(client: "redis.Redis", stream: str) -> RedisError | None:
    """Why a stream could not be read for some time, although its node is there; None: it could."""
    nodes = nodes_of(client)
    return None if nodes is None else nodes.map.why_unread(slot_of(stream))


def cuts(client: "redis.Redis") -> int:
    """A number that changes if a node of the cluster was cut off, or is back: what it has answered since may have been
    lost, and it may not have all that it had."""
    nodes = nodes_of(client)
    return 0 if nodes is None else nodes.map.cuts


def by_slot(client: "redis.Redis", keys: Sequence[str]) -> list[Sequence[str]]:
    """These keys in groups: all in one, or on a cluster those of each slot. So it is seen of each whether it is
    away."""
    if nodes_of(client) is None:
        return [keys] if keys else []
    found: dict[int, list[str]] = {}
    for key in keys:
        found.setdefault(slot_of(key), []).append(key)
    return list(found.values())


def run_all(client: "redis.Redis", exchanges: Iterable[Exchange[_T]]) -> list[_T | RedisError]:
    """What these exchanges return, all at once; in the place of one that meets an outage of a part, its error."""
    found = exchange.run(client, exchange.each_of(list(exchanges)))
    return [_sorted_out(client, one) for one in found]


def run_each(client: "redis.Redis", exchanges: Iterable[Exchange[_T]]) -> list[_T | RedisError]:
    """As `exchange.run_each`, with an error in the place of one that meets an outage of a part."""
    found = exchange.run_each(client, map(_caught, exchanges))
    return [_sorted_out(client, one) for one in found]


def ran(client: "redis.Redis", one: Exchange[_T]) -> _T | RedisError:
    """What an exchange returns; its error, if that is an outage of a part."""
    return _sorted_out(client, exchange.run(client, _caught(one)))


def there(results: Sequence[_T | RedisError]) -> list[_T]:
    """Those results that are no errors."""
    return [one for one in results if not isinstance(one, RedisError)]


def _caught(one: Exchange[_T]) -> Exchange[_T | RedisError]:
    try:
        return (yield from one)
    except (ResponseError, NodeAway) as error:
        return error


def _sorted_out(client: "redis.Redis", result: _T | RedisError) -> _T | RedisError:
    if isinstance(result, RedisError) and not passes_over(client, result):
        raise result
    return result
