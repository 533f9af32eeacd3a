"""What a server is asked of itself."""

from typing import Any

import pytest
import redis

from sagastream.broker.failures import NodeAway
from sagastream.broker.server import settings

GONE = NodeAway("the node 10.0.0.1:6379 of the cluster is away", was_sent=True)


def asked(*answers: Any) -> Any:
    """What comes of the settings, if the server answers so to one round trip after another."""
    exchange = settings("appendfsync")
    next(exchange)
    try:
        for answer in answers:
            exchange.send([answer])
    except StopIteration as end:
        return end.value
    raise AssertionError("it asks for more")


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ((b"ann", b"OK", [b"appendfsync", b"always"]), {"appendfsync": "always"}),
        ((b"ann", b"User ann has no permissions to run the 'config|get' command"), {}),
        ((redis.ResponseError("unknown command"), redis.ResponseError("unknown command")), {}),
        ((b"ann", b"OK", redis.exceptions.NoPermissionError("no")), {}),
    ],
)
def test_a_server_that_does_not_tell_its_settings_has_none(answers: tuple[Any, ...], found: dict[str, str]) -> None:
    assert asked(*answers) == found


@pytest.mark.parametrize("answers", [(b"ann", b"OK", GONE), (GONE, GONE)])
def test_a_node_that_goes_away_meanwhile_is_told_as_that(answers: tuple[Any, ...]) -> None:
    with pytest.raises(NodeAway):
        asked(*answers)
