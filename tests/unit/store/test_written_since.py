"""What a process remembers of what it wrote, until it has looked whether that is there."""

from sagastream.store import written_since
from sagastream.store.written_since import WrittenSince


def test_all_that_was_written_since_the_look_before_the_last_is_looked_for() -> None:
    written: WrittenSince[int] = WrittenSince()
    written.note(1, range(30))
    written.note(2, [99])
    assert written.all(1) == [*range(30)]
    assert written.last(1) == [*range(14, 30)]
    assert sorted(written.all(None)) == [*range(30), 99]
    written.looked(1)
    written.note(1, [30])
    assert written.all(1) == [*range(31)]
    written.looked(1)
    assert (written.all(1), written.all(2)) == ([30], [99])


def test_the_last_ones_stay_while_nothing_is_written() -> None:
    written: WrittenSince[int] = WrittenSince()
    written.note(None, [1, 2])
    for _ in range(3):
        written.looked(None)
    assert written.all(None) == written.last(None) == [1, 2]


def test_what_is_of_another_moment_is_forgotten() -> None:
    written: WrittenSince[int] = WrittenSince()
    for number in (None, 1, 2):
        written.note(number, [0])
        written.looked(number)
        written.note(number, [1])
    written.forget([1])
    assert written.all(None) == written.all(2) == [0, 1]


def test_not_more_is_remembered_than_may_be() -> None:
    written: WrittenSince[int] = WrittenSince()
    for n in range(5 * written_since._MOST):
        written.note(0, [n])
    assert written_since._MOST <= len(written.all(0)) <= 2 * written_since._MOST
    assert written.all(0)[-1] == 5 * written_since._MOST - 1
