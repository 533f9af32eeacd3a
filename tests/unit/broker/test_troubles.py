"""What is told of what single nodes or slots of a cluster refuse, and of a cluster that takes nothing."""

import pytest
import redis

from sagastream.broker.failures import name_node, node_name, slot_name
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
    assert sorted(caplog.messages[2:]) == [
        f"slot 7 of the cluster {over}: moves",
        f"{WHERE} {over}: User x has no permissions to run the 'get' command",
    ]
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


# --- a cluster that is down

MASTERS = [f"10.0.0.{number}:1" for number in (1, 2, 3)]


def down(node: int = 1, text: str = "The cluster is down") -> redis.ResponseError:
    error = redis.exceptions.ClusterDownError(text)
    name_node(error, f"10.0.0.{node}:1")
    return error


def meet(troubles: Troubles, clock: Clock, *, nodes: tuple[int, ...], away: list[str], for_s: float) -> None:
    """For so long these nodes say that the cluster is down, of themselves and of their slots."""
    ends_s = clock.now_s + for_s
    while clock.now_s < ends_s:
        for node in nodes:
            troubles.met(node_name(MASTERS[node - 1]), down(node), matters=True)
            for slot in (10 * node, 10 * node + 1):
                troubles.met(slot_name(slot), down(node), matters=True)
        troubles.look(MASTERS, away)
        clock.now_s += 0.5


def test_a_cluster_without_most_of_its_masters_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    troubles = Troubles(clock)
    meet(troubles, clock, nodes=(1,), away=MASTERS[1:], for_s=10)
    assert caplog.messages == [
        "the cluster takes nothing: too many of its masters are away (10.0.0.2:1, 10.0.0.3:1). Everything waits"
    ]
    assert troubles.lasting(slot_name(10)) is not None  # whoever reads the slot is told so
    caplog.clear()

    meet(troubles, clock, nodes=(1, 2, 3), away=[], for_s=10)  # they are back, and have not found each other
    assert caplog.messages == []
    meet(troubles, clock, nodes=(3,), away=[], for_s=10)  # the last of them takes longer
    assert caplog.messages == []
    for _ in range(2):
        clock.now_s += 4
        troubles.look(MASTERS, [])
    assert caplog.messages == ["the cluster takes commands again"]
    assert not troubles


def test_why_a_cluster_takes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for nodes, away, why in (
        ((2, 3), MASTERS[:1], "10.0.0.1:1 is away, and cluster-require-full-coverage is yes"),
        ((1, 2, 3), [], "its nodes do not find each other"),
    ):
        clock = Clock()
        meet(Troubles(clock), clock, nodes=nodes, away=away, for_s=10)
        assert caplog.messages == [f"the cluster takes nothing: {why}. Everything waits"]
        caplog.clear()


def test_a_node_that_is_cut_off_from_the_others_is_told_of_alone(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    troubles = Troubles(clock)
    meet(troubles, clock, nodes=(1,), away=[], for_s=10)
    (line,) = caplog.messages
    assert line.startswith(f"{node_name(MASTERS[0])} says that the cluster is down")
    assert "slot" not in line
    clock.now_s += 4
    troubles.look(MASTERS, [])
    assert caplog.messages[1:] == [f"{node_name(MASTERS[0])} takes commands again"]


def test_a_slot_without_a_node_is_told_of_as_a_slot(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    troubles = Troubles(clock)
    for clock.now_s in (0.0, 1.0):
        troubles.met(slot_name(7), down(text="Hash slot not served"), matters=True)
        troubles.look(MASTERS, MASTERS[1:])
    (line,) = caplog.messages
    assert line.startswith(f"{slot_name(7)}: ")
