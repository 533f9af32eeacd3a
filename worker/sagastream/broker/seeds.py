"""The servers that a url names. If there are several, each must be a node of one cluster."""

from typing import Any

import redis
from redis.connection import parse_url

from sagastream.broker import urls
from sagastream.broker.cluster_map import ClusterMap
from sagastream.broker.failures import NoNode, is_outage, reason, refusal
from sagastream.broker.to_do import Reach, Steps
from sagastream.broker.urls import Address
from sagastream.errors import BrokerError


def seeds_of(url: str) -> list[Address]:
    """The address of each server that a usable url names."""
    each: list[Any] = [parse_url(one) for one in urls.servers(url)]  # type: ignore[no-untyped-call]  # it has no type
    return [Address(one.get("host", "localhost"), one.get("port", 6379)) for one in each]


def reached(cluster: ClusterMap) -> Steps:
    """Connect to the first that lets this process in, of the servers that the url names. Raises NoNode if none answers,
    redis.AuthenticationError if those that answer refuse the login, and BrokerError if one is no node of a cluster:
    each process might find another server then, with another store."""
    silent: list[str] = []
    refused: redis.RedisError | None = None
    for server in cluster.seeds:
        error = yield Reach(server)
        if error is None:
            return
        if isinstance(error, redis.AuthenticationError):
            refused = refused or refusal(server, error)
            continue
        if not is_outage(error):
            raise error
        silent.append(f"{server} ({reason(error)})")
    if refused is not None:
        raise refused
    raise NoNode(f"none of the nodes that the url names can be reached: {', '.join(silent)}")


def no_cluster_node(server: Address) -> BrokerError:
    """That a server is no node of a cluster, although the url names several."""
    text = f"the url names several servers, so each must be a node of one cluster, and {server} is not"
    return BrokerError(f"{text}: name a single server, or its Sentinels with redis+sentinel://")
