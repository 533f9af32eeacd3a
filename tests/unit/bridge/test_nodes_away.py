"""What is read of a store, if a node of a cluster goes away in the middle of it."""

from collections.abc import Callable
from typing import Any

import pytest

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import NodeAway
from sagastream.store.keys import StoreKeys
from sagastream_bridge.dashboard import recent, standing
from sagastream_bridge.inspection import figures

KEYS = StoreKeys("saga", ["0", "1"], "0")


@pytest.mark.parametrize(
    "asks",
    [
        lambda: figures._waiting(KEYS, "till"),
        lambda: figures._held(KEYS, ["till"]),
        lambda: standing._indexed(KEYS),
        lambda: recent.read(KEYS),
    ],
)
def test_a_node_that_goes_away_meanwhile_is_told_as_that(asks: Callable[[], Exchange[Any]]) -> None:
    exchange = asks()
    commands = next(exchange)
    with pytest.raises(NodeAway):
        exchange.send([NodeAway("it is away", was_sent=True) for _ in commands])
