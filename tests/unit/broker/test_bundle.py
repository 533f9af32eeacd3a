"""What a bundle of connections asks which node, and what it makes of the answers; the nodes here are scripted."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis

from sagastream.broker.bundle import Bundle
from sagastream.broker.cluster_map import SLOTS, ClusterMap, slot_of
from sagastream.broker.failures import NodeAway, NodeRefuses, NoNode, is_outage, is_refusal, may_be_former, told
from sagastream.broker.seeds import no_cluster_node, reached
from sagastream.broker.to_do import (
    AskForMap,
    Collect,
    Login,
    Probe,
    Reach,
    Read,
    Send,
    Wait,
    half_sent,
)
from sagastream.broker.urls import Address
from sagastream.broker.wire import Words
from sagastream.errors import BrokerError

ONE, TWO, SEED = Address("10.0.0.1", 1), Address("10.0.0.2", 2), Address("10.0.0.9", 9)
#: `a` is in a slot of the second node, `b` in one of the first.
HALF = SLOTS // 2
GONE = redis.ConnectionError("gone")


def slots_of(*nodes: Address) -> list[Any]:
    """An answer of CLUSTER SLOTS: these share the slots out evenly."""
    bounds = [SLOTS * number // len(nodes) for number in range(len(nodes) + 1)]
    return [
        [first, end - 1, [node.host.encode(), node.port]]
        for node, first, end in zip(nodes, bounds[:-1], bounds[1:], strict=True)
    ]


class Scripted:
    """The nodes: what each answers, and what each was asked."""

    def __init__(self, *nodes: Address) -> None:
        self.now_s = 0.0
        self.map = ClusterMap([SEED], clock=lambda: self.now_s)
        self.bundle = Bundle(self.map)
        self.maps: dict[Address, Any] = dict.fromkeys([*nodes, SEED], slots_of(*nodes))
        self.answers: dict[Address, Callable[[Words], Any]] = {}
        self.waits: list[Any] = []
        self.collected: Any = ({}, set())
        self.asked: list[tuple[str, Address, Any]] = []
        self.reached: dict[Address, Any] = {}
        self.refused: dict[Address, redis.RedisError] = {}
        self._owed: dict[Address, deque[Words]] = {}

    def go(self, steps: Any) -> Any:
        outcome: Any = None
        while True:
            try:
                to_do = steps.send(outcome)
            except StopIteration as end:
                return end.value
            outcome = self._do(to_do)

    def trip(self, *commands: Words) -> list[Any]:
        self.go(self.bundle.open())
        self.go(self.bundle.send(commands))
        return [self.go(self.bundle.read()) for _ in commands]

    def sent(self, node: Address) -> list[Any]:
        return [words for what, to, commands in self.asked if what == "send" and to == node for words in commands]

    def _do(self, to_do: Any) -> Any:  # noqa: C901 - one case a kind
        match to_do:
            case Send(node, commands):
                self.asked.append(("send", node, list(commands)))
                if isinstance(self.answers.get(node), redis.RedisError):
                    return self.answers[node]
                self._owed.setdefault(node, deque()).extend(commands)
                return None
            case Read(node):
                says: Any = self.answers.get(node, lambda words: (str(node.port), words[-1]))
                answer = says(self._owed[node].popleft())
                if isinstance(answer, redis.ConnectionError):
                    self._owed[node].clear()
                return answer
            case AskForMap(node):
                self.asked.append(("map", node, None))
                return self.maps[node]
            case Reach(server):
                self.asked.append(("reach", server, None))
                return self.reached[server]
            case Probe(node):
                self.asked.append(("probe", node, None))
                return GONE if isinstance(self.answers.get(node), redis.RedisError) else None
            case Login(node):
                self.asked.append(("login", node, None))
                return self.refused.get(node)
            case Wait(_, block_ms):
                self.asked.append(("wait", ONE, block_ms))
                return self.waits
            case Collect():
                return self.collected
            case _:
                raise AssertionError(to_do)


def by(answers: dict[Any, Any], *, otherwise: Any = b"OK") -> Callable[[Words], Any]:
    """Answers by the last word of a command."""
    return lambda words: answers.get(words[-1], otherwise)


def away(answer: Any, *, was_sent: bool) -> bool:
    return isinstance(answer, NodeAway) and answer.was_sent is was_sent


@pytest.fixture
def nodes() -> Scripted:
    assert slot_of("b") < HALF <= slot_of("a")
    return Scripted(ONE, TWO)


def test_answers_come_in_the_order_of_the_commands_and_each_node_is_asked_once(nodes: Scripted) -> None:
    got = nodes.trip(("GET", "a"), ("GET", "b"), ("SET", "a", 1), ("TIME",))
    assert got == [("2", "a"), ("1", "b"), ("2", 1), ("2", "TIME")]
    assert [(what, node) for what, node, _ in nodes.asked] == [("map", SEED), ("send", TWO), ("send", ONE)]
    assert nodes.bundle.is_idle


def test_several_sendings_may_come_before_the_first_answer_is_read(nodes: Scripted) -> None:
    nodes.go(nodes.bundle.open())
    nodes.go(nodes.bundle.send([("GET", "a")]))
    nodes.go(nodes.bundle.send([("GET", "b"), ("GET", "a")]))
    assert [nodes.go(nodes.bundle.read()) for _ in range(3)] == [("2", "a"), ("1", "b"), ("2", "a")]


def test_a_slot_that_has_moved_is_followed_and_remembered(nodes: Scripted) -> None:
    nodes.answers[TWO] = lambda _: redis.exceptions.MovedError(f"{slot_of('a')} {ONE.host}:{ONE.port}")
    assert nodes.trip(("GET", "a"), ("GET", "b")) == [("1", "a"), ("1", "b")]
    assert nodes.map.cuts  # the first may have been a replica that lacks something
    nodes.maps = dict.fromkeys(nodes.maps, slots_of(ONE))
    nodes.now_s += 1
    nodes.asked.clear()
    assert nodes.trip(("GET", "a")) == [("1", "a")]
    assert [(what, node) for what, node, _ in nodes.asked] == [("map", ONE), ("send", ONE)]


def test_one_key_that_has_moved_is_asked_for_there_once(nodes: Scripted) -> None:
    nodes.answers[TWO] = by({"a": redis.exceptions.AskError(f"{slot_of('a')} {ONE.host}:{ONE.port}")})
    nodes.answers[ONE] = lambda words: b"OK" if words == ("ASKING",) else ("1", words[-1])
    assert nodes.trip(("GET", "a"), ("GET", "b"), ("GET", "{a}2")) == [("1", "a"), ("1", "b"), b"OK"]
    assert nodes.sent(ONE) == [("GET", "b"), ("ASKING",), ("GET", "a")]
    assert nodes.map.node_of(slot_of("a")) == TWO


def test_a_slot_that_moves_to_and_fro_is_not_followed_for_ever(nodes: Scripted) -> None:
    nodes.answers[TWO] = lambda _: redis.exceptions.MovedError(f"{slot_of('a')} {ONE.host}:{ONE.port}")
    nodes.answers[ONE] = lambda _: redis.exceptions.MovedError(f"{slot_of('a')} {TWO.host}:{TWO.port}")
    (answer,) = nodes.trip(("GET", "a"))
    assert isinstance(answer, redis.exceptions.MovedError)
    assert is_outage(answer)


def test_a_move_without_a_host_is_to_the_host_that_was_asked(nodes: Scripted) -> None:
    nodes.answers[TWO] = lambda _: redis.exceptions.MovedError(f"{slot_of('a')} :5")
    assert nodes.trip(("GET", "a")) == [("5", "a")]
    assert nodes.sent(Address(TWO.host, 5)) == [("GET", "a")]


def test_nodes_that_should_announce_a_name_and_have_none_are_reached_by_their_addresses(nodes: Scripted) -> None:
    def nameless(*those: Address) -> list[Any]:
        ranges = slots_of(*those)
        return [[first, last, [b"?", port, b"id", [b"ip", host]]] for first, last, (host, port) in ranges]

    nodes.maps = dict.fromkeys(nodes.maps, nameless(ONE, TWO))
    assert nodes.trip(("GET", "b"), ("GET", "a")) == [("1", "b"), ("2", "a")]
    nodes.maps = dict.fromkeys(nodes.maps, nameless(ONE))
    nodes.answers[TWO] = lambda _: redis.exceptions.MovedError(f"{slot_of('a')} ?:{ONE.port}")
    assert nodes.trip(("GET", "a"), ("GET", "b")) == [("1", "a"), ("1", "b")]
    nodes.answers[ONE] = lambda _: redis.exceptions.AskError(f"{slot_of('a')} ?:{TWO.port}")
    (answer,) = nodes.trip(("GET", "a"))  # nobody knows where it is, until it has moved
    assert is_outage(answer)


def test_each_node_waits_once_for_its_replicas_however_many_ask(nodes: Scripted) -> None:
    wait: Words = ("WAIT", 1, 10)
    asking = [words for key in ("a", "b", "{a}2", "{b}2") for words in (("SET", key), wait)]
    nodes.answers = {ONE: by({"b": 1, "{b}2": 2, 10: 7}), TWO: by({"a": 3, "{a}2": 4, 10: 8})}
    assert nodes.trip(*asking) == [3, 8, 1, 7, 4, 8, 2, 7]
    assert nodes.sent(ONE) == [("SET", "b"), ("SET", "{b}2"), wait]
    assert nodes.sent(TWO) == [("SET", "a"), ("SET", "{a}2"), wait]
    nodes.answers[TWO] = GONE  # type: ignore[assignment]
    assert [isinstance(one, NodeAway) for one in nodes.trip(*asking)] == [True, True, False, False] * 2


def test_a_node_that_has_the_slot_no_more_waits_for_nobody(nodes: Scripted) -> None:
    moved = redis.exceptions.MovedError(f"{slot_of('a')} {ONE.host}:{ONE.port}")
    nodes.answers = {ONE: by({"a": b"OK"}), TWO: by({"a": moved}, otherwise=1)}
    assert nodes.trip(("SET", "a"), ("WAIT", 1, 10)) == [b"OK", 0]
    nodes.answers = {ONE: by({"a": b"OK"}, otherwise=1)}
    assert nodes.trip(("SET", "a"), ("WAIT", 1, 10)) == [b"OK", 1]


def test_a_transaction_is_not_followed(nodes: Scripted) -> None:
    moved = redis.exceptions.MovedError(f"{slot_of('a')} {ONE.host}:{ONE.port}")
    nodes.answers[TWO] = lambda words: moved if words[-1] == 1 else b"x"
    assert nodes.trip(("MULTI",), ("SET", "a", 1), ("EXEC",)) == [b"x", moved, b"x"]
    assert nodes.sent(ONE) == []


@pytest.mark.parametrize("when", ["sending", "half sent", "reading"])
def test_a_node_that_is_away_answers_its_own_commands_with_that_and_no_others(nodes: Scripted, when: str) -> None:
    ways: dict[str, Any] = {"sending": GONE, "half sent": half_sent(GONE), "reading": lambda _: GONE}
    nodes.answers[TWO] = ways[when]
    first, second, third = nodes.trip(("GET", "a"), ("GET", "b"), ("SET", "a", 1))
    assert second == ("1", "b")
    assert away(first, was_sent=when != "sending")
    assert away(third, was_sent=when != "sending")
    assert is_outage(first)
    assert is_refusal(first) is (when == "sending")  # else nobody knows whether it was done


def test_a_node_that_is_away_is_not_tried_again_for_a_moment(nodes: Scripted) -> None:
    nodes.answers[TWO] = GONE  # type: ignore[assignment]
    nodes.trip(("GET", "a"))
    nodes.asked.clear()
    first, second = nodes.trip(("GET", "a"), ("GET", "b"))
    assert (away(first, was_sent=False), second) == (True, ("1", "b"))
    assert nodes.sent(TWO) == []
    assert ("probe", TWO, None) not in nodes.asked


def test_a_node_that_is_back_is_asked_after_a_probe(nodes: Scripted) -> None:
    nodes.answers[TWO] = GONE  # type: ignore[assignment]
    nodes.trip(("GET", "a"))
    cuts = nodes.map.cuts
    del nodes.answers[TWO]
    nodes.now_s += 10
    nodes.asked.clear()
    assert nodes.trip(("GET", "a")) == [("2", "a")]
    assert [what for what, _, _ in nodes.asked] == ["map", "probe", "login", "send"]
    assert nodes.map.cuts > cuts


NO = redis.AuthenticationError("WRONGPASS wrong password")


def test_a_node_that_refuses_the_login_is_away_and_back_once_it_lets_this_process_in(
    nodes: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.answers[TWO] = NO  # type: ignore[assignment]
    nodes.refused[TWO] = NO
    for _ in range(3):
        first, second = nodes.trip(("GET", "a"), ("GET", "b"))
        assert (isinstance(first, NodeRefuses), is_outage(first), second) == (True, True, ("1", "b"))
        nodes.answers[TWO] = lambda words: ("2", words[-1])  # it answers a probe
        nodes.now_s += 10
    text = "the node 10.0.0.2:2 of the cluster refuses the login: WRONGPASS wrong password; a cluster copies no users"
    assert told(first).startswith(text)
    assert [record.getMessage()[: len(text)] for record in caplog.records] == [text]
    del nodes.refused[TWO]
    assert nodes.trip(("GET", "a")) == [("2", "a")]
    assert caplog.records[-1].getMessage() == "the node 10.0.0.2:2 of the cluster is back"


def test_if_no_node_lets_this_process_in_that_is_no_outage(nodes: Scripted) -> None:
    nodes.answers = {ONE: NO, TWO: NO}  # type: ignore[dict-item]
    with pytest.raises(redis.AuthenticationError) as raised:
        nodes.trip(("GET", "a"), ("GET", "b"))
    assert not is_outage(raised.value)
    assert told(raised.value).startswith("the node 10.0.0.1:1 of the cluster refuses the login: WRONGPASS")


def test_what_one_node_denies_is_named_and_what_others_read_is_the_answer(nodes: Scripted) -> None:
    denied = redis.exceptions.NoPermissionError("User x has no permissions to run the 'xreadgroup' command")
    nodes.answers = {ONE: entries, TWO: lambda _: denied}
    for nodes.now_s in (0.0, 1.0):
        assert nodes.trip(read("a", "b")) == [FOUND["b"]]
    assert nodes.map.why_unread(slot_of("a")) is denied
    assert nodes.map.why_unread(slot_of("b")) is None
    assert str(denied).endswith("command (the node 10.0.0.2:2 of the cluster)")
    assert nodes.map.denies(denied)
    nodes.answers[ONE] = lambda _: type(denied)("User x has no permissions to run the 'xreadgroup' command")
    (answer,) = nodes.trip(read("a", "b"))
    assert not nodes.map.denies(answer)  # no node lets this user


def test_an_error_about_a_node_names_it_and_one_about_a_key_does_not(nodes: Scripted) -> None:
    texts = ("NOREPLICAS Not enough good replicas to write.", "WRONGTYPE it is a list")
    nodes.answers[TWO] = by(dict(enumerate(map(redis.ResponseError, texts))))
    replicas, key = nodes.trip(("SET", "a", 0), ("SET", "a", 1))
    assert str(replicas) == f"{texts[0]} (the node 10.0.0.2:2 of the cluster)"
    assert told(replicas).startswith("the node 10.0.0.2:2 of the cluster takes no writes without its replicas: look")
    assert may_be_former(replicas)
    assert str(key) == texts[1]


def test_what_any_node_can_answer_is_asked_of_another_one(nodes: Scripted) -> None:
    nodes.answers[ONE] = GONE  # type: ignore[assignment]
    nodes.trip(("GET", "b"))
    assert nodes.trip(("PING",)) == [("2", "PING")]
    first, clock = nodes.trip(("GET", "b"), ("TIME",))
    assert (away(first, was_sent=False), clock) == (True, ("2", "TIME"))


def test_the_time_is_asked_of_another_node_if_the_first_goes_away_meanwhile(nodes: Scripted) -> None:
    nodes.answers[ONE] = lambda _: GONE
    first, clock = nodes.trip(("GET", "b"), ("TIME",))
    assert (away(first, was_sent=True), clock) == (True, ("2", "TIME"))
    nodes.answers[TWO] = lambda _: GONE
    first, clock = nodes.trip(("GET", "a"), ("TIME",))
    assert (away(first, was_sent=True), isinstance(clock, NodeAway)) == (True, True)


def test_a_map_that_names_other_nodes_is_followed(nodes: Scripted) -> None:
    nodes.trip(("GET", "a"))
    nodes.answers[TWO] = GONE  # type: ignore[assignment]
    nodes.trip(("GET", "a"))
    new = Address("10.0.0.3", 3)
    nodes.maps = dict.fromkeys(nodes.maps, slots_of(ONE, new))
    cuts = nodes.map.cuts
    nodes.now_s += 1
    assert nodes.trip(("GET", "a")) == [("3", "a")]
    assert nodes.map.cuts > cuts


def test_the_map_is_asked_for_once_a_second_while_a_node_stays_away(nodes: Scripted) -> None:
    def asked(seconds: float) -> list[float]:
        begun_s, at = nodes.now_s, []
        while nodes.now_s < begun_s + seconds:
            nodes.asked.clear()
            nodes.trip(("GET", "a"))
            at += [nodes.now_s - begun_s] * sum(what == "map" for what, _, _ in nodes.asked)
            nodes.now_s += 0.25
        return at

    asked(1)
    nodes.answers[TWO] = GONE  # type: ignore[assignment]
    assert asked(6) == [0.25, 0.75, 1.75, 2.75, 3.75, 4.75, 5.75]
    nodes.answers[ONE] = GONE  # type: ignore[assignment]
    nodes.trip(("GET", "b"))  # that is news
    assert asked(2)[:3] == [0.0, 0.5, 1.5]


def test_the_map_is_asked_for_until_a_replica_has_taken_over(nodes: Scripted) -> None:
    """When the node goes away, the others do not know yet who takes its place."""
    nodes.trip(("GET", "b"))
    nodes.answers[ONE] = GONE  # type: ignore[assignment]
    for _ in range(3):
        nodes.now_s += 1
        assert away(nodes.trip(("GET", "b"))[0], was_sent=False)
    nodes.maps = dict.fromkeys(nodes.maps, slots_of(TWO))
    nodes.now_s += 1
    assert nodes.trip(("GET", "b")) == [("2", "b")]


def test_a_node_that_can_serve_nobody_is_asked_for_the_map_last(nodes: Scripted) -> None:
    """It may be cut off from the others, which have a node in its place by now. It says that it has the slots."""
    nodes.trip(("GET", "b"))
    new = Address("10.0.0.3", 3)
    nodes.answers[ONE] = lambda _: redis.exceptions.ClusterDownError("The cluster is down")
    nodes.maps[TWO] = slots_of(new, TWO)
    (first,) = nodes.trip(("GET", "b"))
    assert isinstance(first, redis.exceptions.ClusterDownError)
    assert is_outage(first)
    nodes.now_s += 1
    assert nodes.trip(("GET", "b")) == [("3", "b")]


def test_without_any_map_the_error_of_the_last_node_is_raised(nodes: Scripted) -> None:
    nodes.maps = {SEED: GONE}
    with pytest.raises(redis.ConnectionError, match="gone"):
        nodes.go(nodes.bundle.open())


def test_a_node_that_knows_no_slots_gives_no_map(nodes: Scripted) -> None:
    nodes.maps = {SEED: []}
    with pytest.raises(redis.ConnectionError, match="knows no node that has slots"):
        nodes.go(nodes.bundle.open())


def test_one_of_several_that_the_url_names_is_enough(nodes: Scripted) -> None:
    nodes.map = ClusterMap([ONE, SEED, TWO])
    nodes.reached = {ONE: GONE, SEED: None}
    nodes.go(reached(nodes.map))
    assert nodes.asked == [("reach", ONE, None), ("reach", SEED, None)]


def test_one_of_several_that_refuses_the_login_is_passed_over_as_long_as_another_one_does_not(nodes: Scripted) -> None:
    nodes.map = ClusterMap([ONE, SEED, TWO])
    nodes.reached = {ONE: NO, SEED: None}
    nodes.go(reached(nodes.map))
    nodes.reached = {ONE: NO, SEED: GONE, TWO: NO}
    with pytest.raises(redis.AuthenticationError) as raised:
        nodes.go(reached(nodes.map))
    assert told(raised.value).startswith("the node 10.0.0.1:1 of the cluster refuses the login: WRONGPASS")


def test_if_none_of_several_answers_all_are_named(nodes: Scripted) -> None:
    nodes.map = ClusterMap([ONE, TWO])
    nodes.reached = {ONE: GONE, TWO: redis.TimeoutError("silent")}
    with pytest.raises(NoNode, match=r"can be reached: 10\.0\.0\.1:1 \(gone\), 10\.0\.0\.2:2 \(silent\)$") as caught:
        nodes.go(reached(nodes.map))
    assert is_outage(caught.value)
    assert is_refusal(caught.value)  # so a client may begin a saga again
    assert told(caught.value).startswith("the broker does not answer: none of the nodes")


def test_what_is_no_node_of_a_cluster_is_not_passed_over(nodes: Scripted) -> None:
    nodes.map = ClusterMap([ONE, TWO])
    nodes.reached = {ONE: no_cluster_node(ONE)}
    with pytest.raises(BrokerError, match=r"10\.0\.0\.1:1 is not"):
        nodes.go(reached(nodes.map))


def test_what_waiting_does_not_mend_is_raised(nodes: Scripted) -> None:
    nodes.maps = {SEED: redis.AuthenticationError("wrong password")}
    with pytest.raises(redis.AuthenticationError):
        nodes.go(nodes.bundle.open())


def test_the_map_is_asked_of_another_node_if_one_refuses_the_login(nodes: Scripted) -> None:
    nodes.maps |= {SEED: NO, ONE: NO}
    nodes.map.is_now(slots_of(ONE, TWO), SEED)
    nodes.map.is_out_of_date()
    nodes.now_s += 10
    assert nodes.trip(("GET", "b")) == [("1", "b")]
    assert [node for what, node, _ in nodes.asked if what == "map"] == [ONE, TWO]


def test_a_slot_without_a_node_is_an_outage_of_its_keys_alone(nodes: Scripted) -> None:
    nodes.maps = dict.fromkeys(nodes.maps, slots_of(ONE, TWO)[:1])
    first, second = nodes.trip(("GET", "a"), ("GET", "b"))
    assert (away(first, was_sent=False), second) == (True, ("1", "b"))


def read(*streams: str, block_ms: int | None = None) -> Sequence[Any]:
    block = () if block_ms is None else ("BLOCK", block_ms)
    return ("XREADGROUP", "GROUP", "g", "c", *block, "STREAMS", *streams, *(">" for _ in streams))


FOUND = {"a": [[b"a", []]], "b": [[b"b", []]]}


def entries(words: Words) -> Any:
    return FOUND[str(words[words.index("STREAMS") + 1])]


def nothing(words: Words) -> Any:
    return [b"1", b"2"] if words[0] == "TIME" else None


def test_a_reading_of_two_nodes_brings_what_both_have(nodes: Scripted) -> None:
    nodes.answers = {ONE: entries, TWO: entries}
    assert nodes.trip(read("a", "b", block_ms=5)) == [[*FOUND["a"], *FOUND["b"]]]
    assert all(what != "wait" for what, _, _ in nodes.asked)


def test_a_reading_that_finds_nothing_waits_and_the_time_is_asked_for_after_that(nodes: Scripted) -> None:
    nodes.answers = {ONE: nothing, TWO: nothing}
    nodes.waits = [FOUND["b"]]
    got = nodes.trip(read("a", "b", block_ms=5), ("TIME",))
    assert got == [FOUND["b"], [b"1", b"2"]]
    assert nodes.asked[-2] == ("wait", ONE, 5)
    assert nodes.asked[-1][2] == [("TIME",)]


def test_the_time_is_asked_of_one_node_and_once_a_second_whatever_else_is_asked(nodes: Scripted) -> None:
    """Each node has its own clock."""
    nodes.answers = {ONE: lambda _: [b"1000", b"0"], TWO: lambda _: [b"2000", b"0"]}
    nodes.map.time.slot = slot_of("a")
    got = [nodes.trip((what, "b"), ("TIME",))[-1] for what in ("GET", "GET", "GET")]
    assert [time[0] for time in got] == [b"2000"] * 3
    assert [words for what, node, words in nodes.asked if what == "send" and node == TWO] == [[("TIME",)]]
    # While that node is away, it goes on from there; another one is not asked.
    nodes.answers[TWO] = GONE  # type: ignore[assignment]
    nodes.map.time._asked_s = 0.0
    assert nodes.trip(("GET", "b"), ("TIME",))[-1][0] == b"2000"


def test_as_long_as_the_node_that_says_the_time_was_never_heard_any_other_one_is_asked(nodes: Scripted) -> None:
    nodes.answers = {ONE: lambda _: [b"1000", b"0"], TWO: GONE}  # type: ignore[dict-item]
    nodes.map.time.slot = slot_of("a")
    assert nodes.trip(("GET", "b"), ("TIME",))[-1] == [b"1000", b"0"]


def test_a_node_that_is_away_does_not_end_a_reading_of_which_the_others_have_nothing(nodes: Scripted) -> None:
    nodes.answers = {ONE: nothing, TWO: GONE}  # type: ignore[dict-item]
    nodes.waits = [GONE]
    assert nodes.trip(read("a", "b", block_ms=5)) == [None]
    nodes.answers[ONE] = GONE  # type: ignore[assignment]
    nodes.waits = [GONE, GONE]
    (answer,) = nodes.trip(read("a", "b", block_ms=5))
    assert away(answer, was_sent=False)


def test_what_a_former_reading_has_got_comes_along(nodes: Scripted) -> None:
    nodes.answers = {ONE: nothing, TWO: nothing}
    nodes.collected = ({slot_of("a"): FOUND["a"]}, {slot_of("b")})
    assert nodes.trip(read("a", "b", block_ms=5)) == [FOUND["a"]]
    assert nodes.sent(ONE) == []  # a former reading waits there with the same words
    assert all(what != "wait" for what, _, _ in nodes.asked)
