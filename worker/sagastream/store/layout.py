"""How the store is laid out, and whether this release can work with it."""

from typing import Any

from sagastream.broker.connection import Broker
from sagastream.errors import StoreMismatch
from sagastream.store import keys


def check(broker: Broker) -> None:
    """Check that the server is new enough and that the store is laid out as this release expects.

    Raises BrokerError or StoreMismatch, or a redis.RedisError if the server cannot be reached.
    """
    broker.check_server()
    broker.client.hsetnx(keys.STORE, "partitions", str(keys.PARTITIONS))
    laid_out: Any = broker.client.hget(keys.STORE, "partitions")
    if laid_out != str(keys.PARTITIONS).encode():
        partitions = (laid_out or b"no").decode(errors="replace")
        raise StoreMismatch(f"the store was laid out for {partitions} partitions; this release runs {keys.PARTITIONS}")
