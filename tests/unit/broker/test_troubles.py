"""What is told of what single nodes or slots of a cluster refuse."""

import pytest
import redis

from sagastream.broker.failures import name_node
from sagastream.broker.troubles import Troubles

WHERE = "the node 10.0.0.1:1 of the cluster"


def denied(node: str = "10.0.0.1:1") -> redis.ResponseError:
    error = redis.exceptions.NoPermissionError("User x has no permissions to run the 'get' command")
    name_node(error, node)
    return error


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_what_lasts_and_matters_is_told_once_and_once_that_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    troubles = Troubles(clock)
    for clock.now_s in (0.0, 0.5, 1.0, 1.5):
        troubles.met(WHERE, denied())
        troubles.look()
    assert caplog.messages == []  # nobody needs it
    for clock.now_s in (2.0, 2.5, 3.0):
        troubles.met(WHERE, denied(), matters=True)
        troubles.met("slot 7 of the cluster", redis.exceptions.TryAgainError("moves"), matters=True)
        troubles.look()
    assert troubles.lasting("slot 7 of the cluster") is not None
    clock.now_s = 6.5
    assert troubles.lasting("slot 7 of the cluster") is None
    for _ in range(2):
        troubles.look()
    text = f"{WHERE} denies this to the user in REDIS_URL: User x has no permissions to run the 'get' command; "
    assert [line[: len(text)] for line in caplog.messages[:1]] == [text]
    assert caplog.messages[1].startswith("slot 7 of the cluster: a slot of the cluster is on its way to another node")
    over = "does not refuse that any more"
    assert sorted(caplog.messages[2:]) == [f"slot 7 of the cluster {over}", f"{WHERE} {over}"]
    assert not troubles


def test_what_passes_in_a_moment_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    troubles = Troubles(clock)
    for clock.now_s in (0.0, 0.9, 5.0):
        troubles.look()
        if clock.now_s < 1:
            troubles.met(WHERE, denied(), matters=True)
    assert (caplog.messages, bool(troubles)) == ([], False)


def test_it_knows_where_else_the_same_is_refused() -> None:
    troubles = Troubles(Clock())
    for number in (1, 2):
        troubles.met(f"node {number}", denied(f"10.0.0.{number}:1"))
    assert troubles.refusing(denied("10.0.0.3:1")) == {"node 1", "node 2"}
    assert troubles.refusing(redis.ResponseError("NOPERM something else")) == set()
