"""How many entries a reading takes, by the bytes of those before."""

from sagastream.broker.entries import Entry
from sagastream.broker.portions import BYTES, Portion


def entries(count: int, size: int) -> list[Entry]:
    return [Entry(stream="s", id=b"1-%d" % number, fields={b"body": b"x" * size}) for number in range(count)]


def test_it_begins_with_few_and_grows_while_entries_are_small() -> None:
    portion = Portion(128)
    assert portion.count == 16
    counts = []
    while not portion.is_full:
        assert portion.saw(entries(1, 100)) == 1
        counts.append(portion.count)
    assert counts == [32, 64, 128]


def test_nothing_read_says_nothing() -> None:
    portion = Portion(128)
    assert portion.saw([]) == 0
    assert portion.count == 16


def test_it_shrinks_at_once_when_entries_are_large_and_grows_again() -> None:
    portion = Portion(1024)
    for _ in range(10):
        portion.saw(entries(3, 100))
    assert portion.is_full
    portion.saw(entries(8, 1 << 20))
    assert portion.count == 8
    portion.saw(entries(2, 100))
    assert portion.count == 16


def test_a_turn_takes_as_many_as_fit_and_at_least_one() -> None:
    portion = Portion(128)
    assert portion.saw(entries(16, BYTES // 4)) == 4
    assert portion.count == 4
    assert portion.saw(entries(2, 2 * BYTES)) == 1
    assert portion.count == 1


def test_streams_share_what_is_taken() -> None:
    portion = Portion(128)
    assert portion.share(4, 128) == 4
    assert portion.share(4, 3) == 3
    assert portion.share(100, 128) == 1


def test_streams_share_what_a_reading_takes_if_the_last_entries_were_large() -> None:
    portion = Portion(1024)
    portion.saw(entries(8, 1 << 20))
    assert portion.of({"a": 2, "b": 3}) == {"a": 2, "b": 3}
    assert portion.of({"a": 128, "b": 2}) == {"a": 4, "b": 2}


def test_of_more_streams_than_entries_some_are_read_each_time_others() -> None:
    portion = Portion(2)
    wanted = dict.fromkeys("abc", 128)
    assert portion.of(wanted) == wanted  # all that it may ever take
    portion = Portion(1024)
    portion.saw(entries(4, 4 << 20))
    assert portion.count == 2
    read = [list(portion.of(wanted)) for _ in range(3)]
    assert read == [["c", "a"], ["b", "c"], ["a", "b"]]
    assert portion.of(wanted) == {"c": 1, "a": 1}
