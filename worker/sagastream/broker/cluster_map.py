"""Which node of a cluster has which slots, as far as this process knows; and which nodes are away.

One map serves all connections of a client. It is asked for anew if a node says that a slot has moved, or if one does
not answer. A node that did not answer is not tried again at once: it may hang, and whoever waits for it does nothing
for the partitions of the others.
"""

import threading
import time
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.exceptions import RedisError

from sagastream.broker.cluster_time import ClusterTime
from sagastream.broker.failures import is_denied, is_outage, node_name, of_node, said_by, slot_name
from sagastream.broker.troubles import Troubles
from sagastream.broker.urls import Address
from sagastream.core import backoff
from sagastream.telemetry import SharedLog

SLOTS: Final = 16384
#: The host of a node that should announce its name (cluster-preferred-endpoint-type hostname), and has none.
NAMELESS: Final = "?"
#: The least time between two requests for the map, in seconds; and the longest, if nothing has changed for some time:
#: a node may be away for hours, and a replica takes seconds until it takes over.
_ASK_EVERY_S: Final = 0.25
_ASK_AT_LEAST_EVERY_S: Final = 1.0
#: The longest time until a node that was away is tried again, in seconds.
_TRY_EVERY_S: Final = 1.0
#: At most so many slots of keys are remembered.
_REMEMBERED: Final = 4096
_log: Final = SharedLog("broker", "broker")
_slots: dict[Any, int] = {}


def slot_of(key: Any) -> int:
    """The slot of a key: of its hash tag, if it has one."""
    data = key.encode() if isinstance(key, str) else bytes(key)
    opening = data.find(b"{")
    if opening >= 0 and (closing := data.find(b"}", opening + 1)) > opening + 1:
        data = data[opening + 1 : closing]
    if (slot := _slots.get(data)) is None:
        if len(_slots) >= _REMEMBERED:
            _slots.clear()
        slot = _slots[data] = crc_hqx(data, 0) % SLOTS
    return slot


class _Away:
    """A node that did not answer."""

    def __init__(self, error: RedisError) -> None:
        self.error = error
        self.next_try_s = 0.0
        self._tries = 0

    def failed(self, now_s: float) -> None:
        self._tries += 1
        self.next_try_s = now_s + backoff.delay(self._tries, longest_s=_TRY_EVERY_S)


class ClusterMap:
    """The map of one cluster. All of it may be used by several threads."""

    def __init__(self, seeds: Sequence[Address], *, clock: Callable[[], float] = time.monotonic) -> None:
        """`seeds`: the nodes that the url names. They are asked first, and if no other answers."""
        self.seeds = seeds
        #: Whether the url leads to a cluster. False: it does not, or nobody has asked yet.
        self.is_cluster = False
        self._lock = threading.Lock()
        self._clock = clock
        self._nodes: list[Address] = []  # the masters
        self._replicas: list[Address] = []
        self._by_slot: list[Address | None] = [None] * SLOTS
        self._is_stale = True
        self._doubted: set[Address] = set()
        self._asked_s = float("-inf")
        self._asks = 0  # how often it was asked for since something has changed
        self._away: dict[Address, _Away] = {}
        self.time = ClusterTime()
        #: What nodes or slots refuse.
        self.troubles = Troubles(clock)
        #: How often a node was cut off, or has come back: what was known of what it holds may be wrong.
        self.cuts = 0

    @property
    def masters(self) -> Sequence[Address]:
        """The nodes that have slots."""
        return self._nodes

    def node_of(self, slot: int) -> Address | None:
        """The node that has a slot; None: there is none."""
        return self._by_slot[slot]

    def anybody(self) -> Address | None:
        """A node that can be asked what any node can answer; None: none that is known answers."""
        return next((node for node in self._nodes if node not in self._away), next(iter(self._nodes), None))

    def wants_asking(self) -> bool:
        """Whether it is time to ask for the map. It is asked for by whoever is told so."""
        if self.troubles:
            self.troubles.look(self._nodes, [node for node in self._nodes if node in self._away])
        if not self._is_stale:
            return False
        with self._lock:
            now_s = self._clock()
            every_s = min(_ASK_EVERY_S * 2 ** min(self._asks, 9), _ASK_AT_LEAST_EVERY_S)
            if not self._is_stale or now_s - self._asked_s < every_s:
                return False
            self._asked_s = now_s
            self._asks += 1
            return True

    def to_ask(self) -> list[Address]:
        """Whom to ask for the map, one after the other: those that were heard last come first."""
        nodes = [node for node in self._nodes if node not in self._away]
        replicas = [node for node in self._replicas if node not in self._away]
        asked = dict.fromkeys([*nodes, *replicas, *self.seeds, *self._nodes, *self._replicas])
        return sorted(asked, key=self._doubted.__contains__)  # those come last

    def is_now(self, answer: Any, asked: Address) -> bool:
        """The map, as a node gives it by CLUSTER SLOTS. Returns False if it is none, or an empty one."""
        by_slot: list[Address | None] = [None] * SLOTS
        masters: dict[Address, None] = {}
        replicas: dict[Address, None] = {}
        try:
            for first, last, *nodes in answer:
                addresses = [address_of(node, asked) for node in nodes]
                by_slot[first : last + 1] = [addresses[0]] * (last + 1 - first)
                masters[addresses[0]] = None
                replicas |= dict.fromkeys(addresses[1:])
        except (TypeError, ValueError, IndexError, AttributeError):
            return False
        if not masters or len(by_slot) != SLOTS:
            return False
        with self._lock:
            if asked not in self._doubted:
                self._doubted.clear()
            for before, node in set(zip(self._by_slot, by_slot, strict=True)):
                if before != node and before is not None and node is not None:
                    self.cuts += 1  # it may be a replica that is behind what the node before has answered
            if by_slot != self._by_slot:
                self._asks = 0
            self._by_slot, self._nodes, self._replicas = by_slot, list(masters), list(replicas)
            for gone in self._away.keys() - masters.keys():
                del self._away[gone]
                _log.warning(f"{node_name(gone)} has no slots any more; the others have them", extra=_about(gone))
            # While a node is away, a replica may take over at any time.
            self._is_stale = None in by_slot or bool(self._away)
        return True

    def moved(self, slot: int, node: Address) -> None:
        """A node has said that a slot is at this one by now."""
        with self._lock:
            if self._by_slot[slot] != node:
                self.cuts += 1  # it may be a replica that has taken over
                self._asks = 0
            self._by_slot[slot] = node
            self._is_stale = True

    def is_out_of_date(self, doubted: Address | None = None) -> None:
        """Ask for the map again soon. `doubted`: a node that says that it can serve nobody. It may be cut off from the
        others, and know nothing of the node that has its slots by now."""
        self._is_stale = True
        if doubted is not None:
            self._doubted.add(doubted)

    def may_try(self, node: Address) -> bool:
        """Whether to try to reach a node: it is not away, or it is time to try again. Whoever is told so tries it."""
        if node not in self._away:  # it is a look without the lock: nearly always no node is away
            return True
        with self._lock:
            away = self._away.get(node)
            if away is None:
                return True
            now_s = self._clock()
            if now_s < away.next_try_s:
                return False
            away.failed(now_s)  # until it has answered; nobody else tries it meanwhile
            return True

    def is_away(self, node: Address) -> bool:
        """Whether a node did not answer when it was asked last."""
        return node in self._away

    @property
    def some_answer(self) -> bool:
        """Whether some node with slots answered when it was asked last."""
        return any(node not in self._away for node in self._nodes)

    @property
    def refuses(self) -> bool:
        """Whether no node with slots lets this process in, so the fault is not that of a single node."""
        away = [self._away.get(node) for node in self._nodes]
        return bool(away) and all(one is not None and not is_outage(one.error) for one in away)

    def denies(self, error: RedisError) -> bool:
        """Whether one node denies this user something, and another one may not."""
        if (where := said_by(error)) is None:
            return False
        denying = self.troubles.refusing(error) | {where}
        return not all(node in self._away or node_name(node) in denying for node in self._nodes)

    def matters(self, error: RedisError) -> None:
        """Something waits because of this error. If a node or a slot refuses something, that is told if it lasts."""
        if (where := said_by(error)) is not None:
            self.troubles.met(where, error, matters=True)

    def unread(self, slot: int, error: RedisError) -> None:
        """The streams of a slot cannot be read."""
        is_of_node = is_denied(error)
        if is_of_node and self.denies(error):
            self.matters(error)  # so it is told of the node
        self.troubles.met(slot_name(slot), error, matters=not is_of_node)

    def why_unread(self, slot: int) -> RedisError | None:
        """Why the streams of a slot cannot be read for some time now; None: they can, as far as is known."""
        return self.troubles.lasting(slot_name(slot)) if self.troubles else None

    def why_away(self, node: Address) -> RedisError | None:
        """The error with which a node went away."""
        away = self._away.get(node)
        return None if away is None else away.error

    def failed(self, node: Address, error: RedisError) -> None:
        """A node does not answer, does not let this process in, or has ended a connection with answers on their way."""
        with self._lock:
            self._is_stale = True
            self.cuts += 1
            away = self._away.get(node)
            is_news = away is None or is_outage(away.error) != is_outage(error)
            if away is None:
                away = self._away[node] = _Away(error)
                self._asks = 0
            away.error = error
            away.failed(self._clock())
        if is_news:
            _log.warning(f"{of_node(node, error, was_sent=False)}; the others go on", extra=_about(node))

    def answered(self, node: Address) -> None:
        """A node that was away answers again."""
        with self._lock:
            if self._away.pop(node, None) is None:
                return
            self.cuts += 1
        _log.warning(f"{node_name(node)} is back", extra=_about(node))


def _about(node: Address) -> dict[str, object]:
    """The field for `extra` of a log record about this node."""
    return {"node": str(node)}


def address_of(node: Sequence[Any], asked: Address) -> Address:
    """Where a node listens, as CLUSTER SLOTS has it. Without a host: where the node that was asked listens. If it
    should have a name, and was given none: at the address among what else is told of it."""
    host, port, *more = node
    if host in (NAMELESS, NAMELESS.encode()) and len(more) > 1:
        about = dict(zip(more[1][::2], more[1][1::2], strict=False))
        host = about.get(b"ip") or about.get("ip")
    text = host.decode() if isinstance(host, bytes) else host
    return Address(text or asked.host, int(port))
