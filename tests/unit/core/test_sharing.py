"""Who prefers which partition, for any processes and any number of partitions."""

import random
from collections import Counter
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.core import sharing
from sagastream.core.sharing import Sharer, all_preferred, preferred, shares
from sagastream.store.preference import MOST_SHARERS
from support.worst import cpu_ms

NAMES = st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=24)
PARTITIONS = st.integers(1, 64)


@given(names=NAMES, partitions=PARTITIONS, spares=st.booleans())
def test_each_partition_has_a_process_and_none_has_two_more_than_another(
    names: set[str], partitions: int, spares: bool
) -> None:
    found = shares(names, partitions, spares=spares)
    assert found.keys() == names
    assert set().union(*found.values()) == set(range(partitions))
    numbers = [len(those) for those in found.values()]
    if spares or len(names) <= partitions:
        assert max(numbers) - min(numbers) <= 1
        assert sum(numbers) == partitions
    else:
        assert set(numbers) == {1}
        readers = Counter(number for those in found.values() for number in those)
        assert max(readers.values()) == -(-len(names) // partitions)


@given(names=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12), partitions=PARTITIONS)
def test_all_compute_the_same_in_whatever_order_they_heard_of_the_others(names: list[str], partitions: int) -> None:
    assert shares(names, partitions, spares=True) == shares(names[::-1], partitions, spares=True)


@pytest.mark.parametrize(("before", "after"), [(4, 3), (3, 4), (8, 7), (2, 1), (1, 2)])
def test_if_one_comes_or_goes_most_partitions_stay_where_they_are(before: int, after: int) -> None:
    """At least as many move as the one that came or went has, so that all have as many. The mean of many sets of
    processes is asserted: of a few, more may move."""
    partitions, moved, needed = 48, 0, 0
    for world in range(60):
        names = [f"host-{world}-{number}" for number in range(max(before, after))]
        was = _owners(names[:before], partitions)
        now = _owners(names[:after], partitions)
        moved += sum(was[one] != now[one] for one in range(partitions))
        needed += partitions // max(before, after)
    assert moved <= 2 * needed


@pytest.mark.parametrize("spares", [True, False])
def test_of_many_more_processes_than_partitions_only_the_first_of_each_are_looked_at(spares: bool) -> None:
    """The same comes of it as if all were sorted."""
    chance = random.Random(18)
    for partitions in (1, 2, 5, 16):
        names = {f"p{chance.random()}" for _ in range(partitions * 8)}
        ranks = {name: sharing._ranks(name, partitions) for name in names}
        free, owners = set(range(partitions)), dict[str, int]()
        for _, name, partition in sorted(
            ((ranks[name][partition], name, partition) for name in names for partition in free), reverse=True
        ):
            if partition in free and name not in owners:
                owners[name] = partition
                free.remove(partition)
        found = shares(names, partitions, spares=spares)
        assert {name: found[name] for name in owners} == {name: frozenset({one}) for name, one in owners.items()}


@pytest.mark.parametrize("spares", [True, False])
@pytest.mark.parametrize(("partitions", "most_ms"), [(16, 10), (256, 400)])
def test_shares_of_the_most_processes_that_share_take_bounded_time(
    partitions: int, most_ms: float, spares: bool
) -> None:
    names = [f"host-{number}" for number in range(MOST_SHARERS)]
    assert cpu_ms(lambda: shares(names, partitions, spares=spares), enough_ms=0.8 * most_ms) < most_ms


def _owners(names: list[str], partitions: int) -> dict[int, str]:
    return {number: name for name, those in shares(names, partitions, spares=True).items() for number in those}


def a_sharer(name: str, *, formats: set[int] | None = None, commands: set[str] | None = None) -> Sharer:
    has = None if commands is None else frozenset(commands)
    return Sharer(name=name, formats=frozenset({1, 2} if formats is None else formats), commands=has)


def test_one_alone_prefers_all() -> None:
    assert preferred(a_sharer("a"), [], 16, spares=True) == frozenset(range(16))


@pytest.mark.parametrize(
    ("own", "other", "counts"),
    [
        ({"formats": {1, 2}}, {"formats": {1}}, False),
        ({"formats": {1}}, {"formats": {1, 2}}, True),
        ({"commands": {"Do", "Undo"}}, {"commands": {"Do"}}, False),
        ({"commands": {"Do"}}, {"commands": {"Do", "Undo"}}, True),
        ({"commands": {"Do"}}, {"commands": None}, False),
        ({"commands": None}, {"commands": {"Do"}}, False),
    ],
)
def test_only_those_count_that_can_do_as_much(
    own: dict[str, set[int]], other: dict[str, set[int]], counts: bool
) -> None:
    mine = preferred(a_sharer("a", **own), [a_sharer("b", **other)], 16, spares=True)  # type: ignore[arg-type]
    assert len(mine) == (8 if counts else 16)


SHARERS = st.lists(
    st.builds(
        Sharer,
        name=st.text(min_size=1, max_size=4),
        formats=st.frozensets(st.integers(1, 3), min_size=1),
        commands=st.none() | st.frozensets(st.sampled_from(["Do", "Undo", "Pay"])),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda one: one.name,
)


@given(sharers=SHARERS, partitions=st.integers(1, 20), spares=st.booleans())
def test_whatever_a_process_can_do_each_partition_is_preferred_by_one_that_can_do_it(
    sharers: list[Sharer], partitions: int, spares: bool
) -> None:
    prefers = {one.name: preferred(one, sharers, partitions, spares=spares) for one in sharers}
    for able in sharers:
        of_those = [prefers[one.name] for one in sharers if one.stands_in_for(able)]
        assert frozenset().union(*of_those) == frozenset(range(partitions))


@given(sharers=SHARERS, partitions=st.integers(1, 20), spares=st.booleans())
def test_what_each_of_many_prefers_is_what_it_computes_itself(
    sharers: list[Sharer], partitions: int, spares: bool
) -> None:
    found = all_preferred(sharers, partitions, spares=spares)
    assert found == {one.name: preferred(one, sharers, partitions, spares=spares) for one in sharers}


def test_what_many_prefer_is_computed_once_for_all_that_can_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = Mock(side_effect=shares)
    monkeypatch.setattr(sharing, "shares", computed)
    assert len(all_preferred([a_sharer(f"a{n}") for n in range(200)], 16, spares=False)) == 200
    assert computed.call_count == 1
