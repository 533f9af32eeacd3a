"""Exchanges that ask RQ's server besides the broker: who is asked what, and who gets which answer."""

from collections.abc import Sequence
from typing import Any

import pytest
import redis

from sagastream.broker.exchange import Exchange, all_of
from sagastream.broker.wire import Words
from sagastream.rq_steps.asking import OnRq, _Parted


def of_both(name: str) -> Exchange[list[Any]]:
    """Asks the broker, then both, then RQ alone."""
    first = yield [("A", name)]
    second = yield [("B", name), OnRq.of("C", name), ("D", name)]
    third = yield [OnRq.of("E", name)]
    return [*first, *second, *third]


def said(commands: Sequence[Words], who: str) -> list[str]:
    return [f"{who} {words[0]!s}{words[1]!s}" for words in commands]


def played(whole: Exchange[Any]) -> Any:
    """To the end; each answer says who was asked, and what."""
    parted, found = _Parted(whole), list[str]()
    while True:
        part = parted.go_on(found)
        try:
            commands = next(part)
            while True:
                commands = part.send(said(commands, "broker"))
        except StopIteration as end:
            if not end.value:
                return parted.result
            found = said(end.value, "rq")


def test_each_command_is_answered_by_its_server_in_its_place() -> None:
    assert played(of_both("1")) == ["broker A1", "broker B1", "rq C1", "broker D1", "rq E1"]


def test_so_are_those_of_several_exchanges_that_go_on_together() -> None:
    def short() -> Exchange[list[Any]]:
        return (yield [OnRq.of("X", 2), ("Y", 2)])

    assert played(all_of([of_both("1"), short()])) == [
        ["broker A1", "broker B1", "rq C1", "broker D1", "rq E1"],
        ["rq X2", "broker Y2"],
    ]


def test_an_error_of_the_broker_is_thrown_into_the_exchange() -> None:
    def patient() -> Exchange[str]:
        try:
            yield [("A",)]
        except redis.ConnectionError as error:
            (found,) = yield [OnRq.of("B")]
            return f"{error}, {found}"
        raise AssertionError

    parted = _Parted(patient())
    part = parted.go_on([])
    next(part)
    with pytest.raises(StopIteration) as caught:
        part.throw(redis.ConnectionError("away"))
    assert caught.value.value == [("B",)]
    with pytest.raises(StopIteration):
        next(parted.go_on(["here"]))
    assert parted.result == "away, here"


def test_an_exchange_that_asks_nobody_ends() -> None:
    def silent() -> Exchange[int]:
        yield from ()
        return 1

    assert played(silent()) == 1
