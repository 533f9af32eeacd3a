"""What a bundle of connections to a cluster has its transport do next, as values.

The generators of bundle.py and seeds.py yield these, and are sent what came of each. to_cluster.py does them for
callers that block, to_cluster_in_loop.py in an event loop.
"""

from collections.abc import Generator
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from sagastream.broker.failures import NodeAway
from sagastream.broker.routes import Command
from sagastream.broker.urls import Address
from sagastream.broker.wire import Words


class Send(NamedTuple):
    """Send these commands to a node. What comes of it: None; or the error, which is NodeAway with `was_sent` if some of
    them may have arrived."""

    node: Address
    commands: list[Words]


class Read(NamedTuple):
    """Read the next answer of a node. What comes of it: the answer, or the error."""

    node: Address


class AskForMap(NamedTuple):
    """Ask this node for the map, over a connection of its own. What comes of it: the answer, or the error."""

    node: Address


class Reach(NamedTuple):
    """Connect to this server, one of several that the url names. What comes of it: None; or the error, which is a
    BrokerError if it is no node of a cluster."""

    server: Address


class Probe(NamedTuple):
    """See whether a node that was away answers again, without waiting for it. What comes of it: None, or the error."""

    node: Address


class Login(NamedTuple):
    """Connect to a node that answers again, before it is asked anything. What comes of it: None, or the error."""

    node: Address


class Wait(NamedTuple):
    """Wait until one of the readings has something, at most for so long. What comes of it: the answers that there are,
    errors among them."""

    command: Command
    block_ms: int


class Collect(NamedTuple):
    """Take what former readings of this consumer, which still wait, have got; of one that only looks, those with the
    same words. What comes of it: the answers, by slot; and the slots that still wait with the same words."""

    command: Command


ToDo = Send | Read | AskForMap | Reach | Probe | Login | Wait | Collect
Steps = Generator[ToDo, Any, Any]


def half_sent(error: RedisError) -> NodeAway:
    """The error with which a sending has ended: the node may have got some of the commands, and does them."""
    away = NodeAway(str(error), was_sent=True)
    away.__cause__ = error
    return away
