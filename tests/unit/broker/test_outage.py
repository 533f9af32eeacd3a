"""What a process says of an outage, of all of the broker or of one node of a cluster."""

from typing import Any

import pytest
import redis

from sagastream.broker.embedded import EmbeddedServer
from sagastream.broker.failures import of_node
from sagastream.broker.outage import OutageReport


class Server:
    """What is known of a server that is away."""

    client: Any = None
    lost_by_crash: str | None = "crash loses the last second"
    embedded: EmbeddedServer | None = None

    def restore(self) -> None: ...


REFUSES = (
    "the node n1:6379 of the cluster refuses the login: WRONGPASS no; "
    "a cluster copies no users, so make this one there, too"
)
REFUSED = redis.ConnectionError("Connection refused.")


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (
            REFUSED,
            [
                "the broker is away (Connection refused.); waiting. Its crash loses the last second",
                "the broker is back",
            ],
        ),
        (
            of_node("n1:6379", REFUSED, was_sent=False),
            [
                "the node n1:6379 of the cluster is away (Connection refused.); waiting",
                "goes on: the cluster has again what was needed",
            ],
        ),
        (
            of_node("n1:6379", redis.AuthenticationError("WRONGPASS no"), was_sent=False),
            [
                f"{REFUSES}; waiting",
                "goes on: nothing refuses that any more",
            ],
        ),
    ],
)
def test_it_is_said_who_is_away_and_that_it_is_over(
    error: redis.RedisError, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    report = OutageReport(Server(), "worker 1", None)
    report.began(error)
    report.ended()
    assert caplog.messages == lines
