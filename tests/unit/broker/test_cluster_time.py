"""The time of a cluster, by the clock of one node and that of the process; here both are set."""

from typing import Any

from sagastream.broker.cluster_time import ClusterTime


class Clocks:
    """The clock of a node, and that of this process, in seconds."""

    def __init__(self) -> None:
        self.own_s = 1000.0
        self.ahead_s = 500.0

    def own(self) -> float:
        return self.own_s

    def node(self) -> list[bytes]:
        return as_time(self.own_s + self.ahead_s)


def as_time(seconds: float) -> list[bytes]:
    return [b"%d" % int(seconds), b"%d" % round(seconds % 1 * 1e6)]


def in_s(time: list[Any]) -> float:
    return round(int(time[0]) + int(time[1]) / 1e6, 3)


def test_in_between_and_while_the_node_is_away_the_time_goes_on_by_the_processes_own_clock() -> None:
    clocks = Clocks()
    time = ClusterTime(clocks.own)
    asked_s = time.asks()
    assert asked_s == 1000.0
    assert not time.is_known
    time.told(clocks.node(), asked_s)
    assert in_s(time.now()) == 1500.0
    clocks.own_s += 0.9
    assert (time.asks(), in_s(time.now())) == (None, 1500.9)
    clocks.own_s += 99.1
    assert time.asks() == 1100.0
    assert time.asks() is None  # one asks, the others go on with what is known
    assert in_s(time.now()) == 1600.0


def test_an_answer_that_was_read_long_after_it_came_does_not_change_what_is_known() -> None:
    """As behind a reading that has waited."""
    clocks = Clocks()
    time = ClusterTime(clocks.own)
    time.told(clocks.node(), clocks.own_s)
    answer, asked_s = clocks.node(), clocks.own_s
    clocks.own_s += 5
    time.told(answer, asked_s)
    assert in_s(time.now()) == 1505.0


def test_a_clock_that_was_set_is_noticed_however_late_the_answer_is_read() -> None:
    clocks = Clocks()
    time = ClusterTime(clocks.own)
    time.told(clocks.node(), clocks.own_s)
    for by_s in (-300, 300):
        clocks.ahead_s += by_s
        answer, asked_s = clocks.node(), clocks.own_s
        clocks.own_s += 0.25
        time.told(answer, asked_s)
        assert abs(in_s(time.now()) - (clocks.own_s + clocks.ahead_s)) <= 0.25


def test_whoever_wants_news_has_the_node_asked_until_it_answers() -> None:
    clocks = Clocks()
    time = ClusterTime(clocks.own)
    time.told(clocks.node(), clocks.own_s)
    clocks.ahead_s -= 300
    clocks.own_s += 0.1
    time.asks()
    assert time.asks() is None
    time.wants_news()
    first_s, second_s = time.asks(), time.asks()  # another thread may have taken the first
    assert first_s == second_s == clocks.own_s
    time.told(clocks.node(), first_s)
    assert (time.asks(), in_s(time.now())) == (None, 1200.1)
    time.wants_news()
    clocks.own_s += 1.5  # the node is away: then it is asked once a second, as ever
    assert time.asks() == clocks.own_s
    assert time.asks() is None


def test_an_answer_to_an_earlier_question_is_no_news() -> None:
    clocks = Clocks()
    time = ClusterTime(clocks.own)
    asked_s, answer = clocks.own_s, clocks.node()
    clocks.own_s += 0.1
    time.wants_news()
    time.told(answer, asked_s)
    assert time.asks() == clocks.own_s
