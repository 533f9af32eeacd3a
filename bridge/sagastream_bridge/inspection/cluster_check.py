"""Examines the nodes of a cluster: which there are, what each holds of the store, what follows if one of them dies."""

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import redis
from msgspec import Struct

from sagastream.broker import server, wire
from sagastream.broker.cluster_map import SLOTS, address_of
from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.failures import reason
from sagastream.broker.urls import Address
from sagastream.core.durations import spoken
from sagastream.store.keys import StoreKeys, slot
from sagastream.store.reach import ranges
from sagastream_bridge.inspection.findings import Finding, ok, problem, warning

_COVERAGE: Final = "cluster-require-full-coverage"
#: How far the clocks of two nodes may be apart before that is told, in milliseconds.
_APART_MS: Final = 500
#: What a node says of itself of a slot that it gives to another node, or takes from one.
_MOVING: Final = re.compile(r"\[(\d+)-[<>]-")
_NTP: Final = "have NTP set the clocks of all nodes"
_REBALANCE: Final = "move slots: redis-cli --cluster rebalance HOST:PORT"


class Master(Struct, frozen=True, kw_only=True):
    """A node that may hold slots."""

    address: str
    slots: int = 0  # how many it has
    partitions: tuple[int, ...] = ()  # of the store, by number
    has_shared: bool = False  # whether it has the keys of the whole store
    replicas: int = 0  # that are not down
    is_down: bool = False  # as the other nodes say


class View(Struct, frozen=True, kw_only=True):
    """A cluster, as one of its nodes sees it."""

    masters: tuple[Master, ...]  # in the order of their slots
    replicas_down: tuple[str, ...] = ()  # their addresses

    @property
    def slots(self) -> int:
        """How many slots have a node."""
        return sum(one.slots for one in self.masters)


def seen(broker: Broker, keys: StoreKeys | None) -> View:
    """The cluster, as a node sees it that answers. Raises redis.RedisError."""
    asked = broker.node_of()
    assert asked is not None  # it is a cluster
    slots, nodes = wire.round_trip(broker.client, [("CLUSTER", "SLOTS"), ("CLUSTER", "NODES")])
    # A user may not be allowed to ask for the nodes: then less is known.
    text = "" if isinstance(nodes, redis.ResponseError) else wire.or_raise(nodes).decode(errors="replace")
    return view(wire.or_raise(slots), text, keys, asked)


def view(slots: Sequence[Any], nodes: str, keys: StoreKeys | None, asked: Address) -> View:
    """The cluster, as CLUSTER SLOTS and CLUSTER NODES tell it. `keys`: None: of the store nothing is known. `asked`:
    where the node was reached. One that has never met another does not know its own host."""
    owners: dict[str, list[range]] = {}
    addresses: dict[str, str] = {}
    replicas: dict[str, set[str]] = {}
    for first, last, *those in slots:
        ids = [_text(one[2]) for one in those]
        addresses |= {name: str(address_of(one, asked)) for name, one in zip(ids, those, strict=True)}
        owners.setdefault(ids[0], []).append(range(first, last + 1))
        replicas.setdefault(ids[0], set()).update(ids[1:])
    down: set[str] = set()
    replicas_down = []
    for line in nodes.splitlines():
        name, address, flags, master, *_ = line.split()
        is_down = bool({"fail", "fail?"} & set(flags.split(",")))
        where = address.partition("@")[0]
        addresses.setdefault(name, str(asked._replace(port=int(where[1:]))) if where.startswith(":") else where)
        if is_down:
            down.add(name)
        if master == "-":
            owners.setdefault(name, [])
        elif is_down:
            replicas_down.append(addresses[name])
            replicas.get(master, set()).discard(name)
        else:
            replicas.setdefault(master, set()).add(name)
    masters = [
        Master(
            address=addresses[name],
            slots=sum(map(len, those)),
            partitions=() if keys is None else tuple(_of_store(keys, those)),
            has_shared=keys is not None and keys.shared is not None and _has(those, keys.shared),
            replicas=len(replicas.get(name, ())),
            is_down=name in down,
        )
        for name, those in sorted(owners.items(), key=lambda one: min((part.start for part in one[1]), default=SLOTS))
    ]
    return View(masters=tuple(masters), replicas_down=tuple(replicas_down))


def _of_store(keys: StoreKeys, those: Sequence[range]) -> Iterator[int]:
    return (number for number, tag in enumerate(keys.tags) if _has(those, tag))


def _has(those: Sequence[range], tag: str) -> bool:
    return any(slot(tag) in part for part in those)


def of_view(found: View, partitions: int | None, silent: Collection[str]) -> Iterator[Finding]:
    """What there is to say of the cluster as a whole. `partitions`: how many the store has; None: nobody knows.
    `silent`: the masters that do not answer. Of each of them there is a finding, too."""
    yield _of_nodes(found, silent)
    for address in found.replicas_down:
        yield warning("cluster", f"the replica {address} is down")
    there = [one for one in found.masters if not (one.is_down or one.address in silent)]
    if alone := [one.address for one in there if one.slots and not one.replicas]:
        text = f"nodes without a replica: {', '.join(alone)}: if one of them is down, its partitions wait for it"
        yield warning("cluster", text)
    for one in found.masters:
        if not one.slots and one.is_down:
            text = "it is down, and other nodes have its slots"
            yield warning(f"node {one.address}", text, "start it: it becomes a replica")
        elif not one.slots:
            yield warning(f"node {one.address}", "it has no slots, so it does no work", _REBALANCE)
    if partitions is not None:
        yield _spread([one for one in found.masters if one.slots], partitions)


def _of_nodes(found: View, silent: Collection[str]) -> Finding:
    """How many nodes there are, how many of them answer, and whether that is enough."""
    masters = [one for one in found.masters if one.slots or not one.is_down]
    voters = [one for one in masters if one.slots]  # only those say who is down, and who takes the place of whom
    answering = sum(one.address not in silent for one in masters)
    answer = f", of which {answering or 'none'} {'answer' if answering > 1 else 'answers'}"
    replicas = _counted(sum(one.replicas for one in found.masters), "replica")
    counts = f"nodes: {_counted(len(masters), 'master')}{answer if answering < len(masters) else ''}, {replicas}"
    if found.slots < SLOTS:
        text = f"{counts}; {SLOTS - found.slots} of {SLOTS} slots have no node: what belongs there is refused"
        return problem("cluster", text, "redis-cli --cluster fix HOST:PORT")
    text = f"{counts}; each slot has a node"
    if 2 * sum(one.address not in silent for one in voters) <= len(voters):
        return problem("cluster", f"{text}: too few answer, so the cluster takes nothing", "start those that do not")
    return ok("cluster", text) if answering == len(masters) else warning("cluster", text)


def _spread(masters: Sequence[Master], partitions: int) -> Finding:
    """How the partitions of the store are spread over the nodes."""
    numbers = [len(one.partitions) for one in masters]
    each = "; ".join(f"{one.address} has {ranges(one.partitions)}" for one in masters)
    text = f"of {_counted(partitions, 'partition')}, {each}"
    if partitions < len(masters):
        more = "a store with more partitions uses all nodes: sagastream export and import move it"
        return warning("partitions", f"{text}: nodes without one do no work", more)
    if max(numbers) - min(numbers) > 1:
        return warning("partitions", f"{text}: some nodes have more work than others", _REBALANCE)
    return ok("partitions", text)


def of_coverage(told: Mapping[str, str]) -> Iterator[Finding]:
    """`told`: by node, whether it refuses everything if a slot has no node; empty if it does not say."""
    if those := [address for address, value in told.items() if value == "yes"]:
        where = "" if len(those) == len(told) else f" on {', '.join(those)}"
        text = f"{_COVERAGE} is yes{where}: if one node is down, the others refuse everything, too"
        yield warning("cluster", text, f"on each node: CONFIG SET {_COVERAGE} no, and CONFIG REWRITE")


def of_clocks(times: Mapping[str, int]) -> Iterator[Finding]:
    """`times`: by node, how far its clock is ahead of ours, in ms."""
    if len(times) > 1:
        last, first = min(times, key=lambda one: times[one]), max(times, key=lambda one: times[one])
        if (apart_ms := times[first] - times[last]) > _APART_MS:
            text = f"the clock of {first} is {spoken(apart_ms)} ahead of that of {last}"
            why = "a signal near the end of its wait may be judged wrongly, and a failover may set the time by as much"
            yield warning("clock", f"{text}: {why}", _NTP)


def of_away(one: Master, error: redis.RedisError, partitions: int | None) -> Finding:
    """A node that does not answer."""
    what = " and ".join(held(one, partitions)) or "nobody knows what"
    if isinstance(error, redis.AuthenticationError):
        text = f"it refuses the login ({reason(error)}); what waits for it: {what}"
        return problem(f"node {one.address}", text, "a cluster copies no users: make the user of REDIS_URL there, too")
    then = "a replica takes its place in a moment" if one.replicas else "start it: no replica takes its place"
    return problem(f"node {one.address}", f"it does not answer ({error}); what waits for it: {what}", then)


def held(one: Master, partitions: int | None) -> list[str]:
    """What a node has of the store."""
    if partitions is None:
        return []
    word = "partition" if len(one.partitions) == 1 else "partitions"
    parts = [f"{word} {ranges(one.partitions)} of {partitions}" if one.partitions else "no partition"]
    return parts + ["the keys of the whole store"] * one.has_shared


def of_moving(slots: Collection[int], keys: StoreKeys) -> Iterator[Finding]:
    """`slots`: those that are on their way from one node to another."""
    parts = [number for number, tag in enumerate(keys.tags) if slot(tag) in slots]
    whole = ["the keys of the whole store"] if keys.shared is not None and slot(keys.shared) in slots else []
    if what := " and ".join([f"partition{'s' * (len(parts) > 1)} {ranges(parts)}"] * bool(parts) + whole):
        text = f"on their way to another node: {what}; what needs several keys there waits until all have moved"
        yield warning("cluster", text, "if nothing moves them any more: redis-cli --cluster fix HOST:PORT")


def moving(client: "redis.Redis") -> set[int]:
    """The slots that this node is giving to another, or taking from it; none if it does not say."""
    (nodes,) = wire.round_trip(client, [("CLUSTER", "NODES")])
    text = "" if isinstance(nodes, redis.ResponseError) else wire.or_raise(nodes).decode(errors="replace")
    return {int(found) for found in _MOVING.findall(text)}


def coverage(client: "redis.Redis") -> str:
    """Whether this node refuses everything if a slot has no node; empty: it does not say."""
    return run(client, server.settings(_COVERAGE)).get(_COVERAGE, "")


def ahead_ms(client: "redis.Redis") -> int:
    """How far its clock is ahead of ours. The answer may be late: the quickest of three counts."""
    found = []
    for _ in range(3):
        began = time.time()
        (answer,) = wire.round_trip(client, [("TIME",)])
        ended = time.time()
        found.append((ended - began, wire.milliseconds(wire.or_raise(answer)) - (began + ended) * 500))
    return round(min(found)[1])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _text(word: Any) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word or "")
