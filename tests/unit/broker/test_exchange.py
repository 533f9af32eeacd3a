"""Exchanges that share their round trips."""

from collections.abc import Sequence
from typing import Any

import pytest
import redis

from sagastream.broker.exchange import Exchange, together
from sagastream.broker.wire import Words


def asks(name: str, *counts: int) -> Exchange[list[Any]]:
    """An exchange that sends so many commands in each of its round trips. Returns all the answers."""
    found: list[Any] = []
    for trip, count in enumerate(counts, 1):
        answers = yield [(name, trip, number) for number in range(count)]
        found += answers
    return found


def refuses(why: Exception) -> Exchange[None]:
    yield [("PING",)]
    raise why


def played(exchange: Exchange[Any]) -> tuple[list[list[Words]], Any]:
    """The round trips of an exchange whose commands are answered with themselves, and its result."""
    trips: list[list[Words]] = []
    try:
        commands: Sequence[Words] = next(exchange)
        while True:
            trips.append(list(commands))
            commands = exchange.send(list(commands))
    except StopIteration as end:
        return trips, end.value


def test_what_one_of_two_raises_does_not_end_the_other() -> None:
    seen: list[str] = []

    def looks() -> Exchange[None]:
        yield [("PING",)]
        seen.append("one")
        yield [("PING",)]
        seen.append("two")

    with pytest.raises(redis.ResponseError, match="NOGROUP"):
        played(together(refuses(redis.ResponseError("NOGROUP")), looks()))
    assert seen == ["one", "two"]


@pytest.mark.parametrize("first", [(1,), (2, 1), (1, 0, 3)])
@pytest.mark.parametrize("second", [(1,), (3,), (1, 2, 1, 1)])
def test_two_at_once_ask_in_the_same_round_trips_and_each_gets_its_own_answers(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    trips, found = played(together(asks("a", *first), asks("b", *second)))
    assert found == (played(asks("a", *first))[1], played(asks("b", *second))[1])
    assert len(trips) == max(len(first), len(second))
    for commands in trips:
        names = [words[0] for words in commands]
        assert names == sorted(names)  # the commands of the first come before those of the second


@pytest.mark.parametrize("number", [0, 1])
def test_what_one_of_two_raises_is_raised(number: int) -> None:
    why = redis.ResponseError("OOM")
    both: list[Exchange[Any]] = [asks("a", 1, 1), asks("b", 1, 1)]
    both[number] = refuses(why)
    with pytest.raises(redis.ResponseError, match="OOM"):
        played(together(*both))
