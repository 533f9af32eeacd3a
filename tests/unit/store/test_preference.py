"""What a process makes of what it hears of the others."""

import json
from typing import Any

import pytest

from sagastream.core.sharing import Sharer
from sagastream.store.preference import MOST_SHARERS, Preference

NOW_MS = 1_700_000_000_000
WITHIN_MS = 1_500
ALL = frozenset(range(4))


def a_preference(*, service: str | None = None, partitions: int = 4, spares: bool = True) -> Preference:
    own = Sharer(name="me", formats=frozenset({1, 2}), commands=None if service is None else frozenset({"Do"}))
    kind = "worker" if service is None else "service"
    made = Preference(own, kind=kind, service=service, spares=spares, within_ms=WITHIN_MS)
    made.join(partitions)
    return made


def a_member(name: str, **changes: Any) -> bytes:
    return json.dumps({"name": name, "kind": "worker", "formats": [1, 2], "pauses": True} | changes).encode()


def heard(preference: Preference, *members: bytes, silent_ms: int = 0) -> frozenset[int]:
    """What it prefers once it has heard of these."""
    words = [word for member in members for word in (member, b"%d" % (NOW_MS - silent_ms))]
    preference.heard(NOW_MS, words)
    return ALL if preference.numbers is None else preference.numbers


def test_it_asks_for_nothing_in_a_store_of_one_partition() -> None:
    assert a_preference(partitions=1).asks == ()
    assert a_preference().asks == (b'"kind":"worker"', WITHIN_MS, MOST_SHARERS)
    assert a_preference(service="till").asks == (b'"service":"till"', WITHIN_MS, MOST_SHARERS)


def test_one_that_is_alone_prefers_all() -> None:
    preference = a_preference()
    assert heard(preference, a_member("me")) == ALL
    assert preference.is_alone
    assert preference.look_in_ms is None


def test_two_share_and_both_compute_the_same() -> None:
    mine = heard(a_preference(), a_member("me"), a_member("other"))
    other = Preference(
        Sharer(name="other", formats=frozenset({1, 2})), kind="worker", service=None, spares=True, within_ms=WITHIN_MS
    )
    other.join(4)
    theirs = heard(other, a_member("me"), a_member("other"))
    assert mine | theirs == ALL
    assert len(mine) == len(theirs) == 2


def test_it_is_the_same_object_until_somebody_comes_or_goes() -> None:
    preference = a_preference()
    heard(preference, a_member("me"), a_member("other"))
    before = preference.numbers
    heard(preference, a_member("other"), a_member("me"), silent_ms=700)
    assert preference.numbers is before
    heard(preference, a_member("me"))
    assert preference.numbers is None


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b'"kind":"worker"',
        b"[" * 5000 + b'"kind":"worker"',
        a_member("other", kind="rq-worker"),
        a_member("other", service="till"),
        a_member("other", formats="1"),
        a_member("other", kind="left"),
        a_member("other", formats=[1]),  # … of an earlier release, which leaves to others what it does not know
    ],
)
def test_what_is_none_of_its_kind_takes_nothing_from_it(member: bytes) -> None:
    assert heard(a_preference(), a_member("me"), member) == ALL


def test_a_process_of_a_service_shares_with_those_that_have_all_its_commands() -> None:
    def told(*commands: str) -> bytes:
        return a_member("other", kind="service", service="till", commands=commands)

    assert len(heard(a_preference(service="till"), told("Do", "Undo"))) == 2
    assert heard(a_preference(service="till"), told("Undo")) == ALL
    assert heard(a_preference(service="till"), told("Do").replace(b"till", b"hotel")) == ALL


def test_of_more_workers_than_partitions_some_prefer_none_and_of_a_service_all_prefer_one() -> None:
    others = [f"p{number}" for number in range(8)]
    crowds = [[f"p{crowd}-{number}" for number in range(5)] for crowd in range(20)]
    assert {len(heard(a_preference(), *map(a_member, crowd))) for crowd in crowds} == {0, 1}
    theirs = [a_member(name, kind="service", service="till", commands=["Do"]) for name in others]
    assert len(heard(a_preference(service="till", spares=False), *theirs)) == 1


def test_it_looks_again_when_the_one_that_was_silent_for_longest_would_be_gone() -> None:
    preference = a_preference()
    heard(preference, a_member("me"), a_member("other"), silent_ms=1_200)
    assert preference.look_in_ms is not None
    assert WITHIN_MS - 1_200 < preference.look_in_ms <= WITHIN_MS - 1_200 + 20


def test_if_nobody_can_say_who_is_there_it_prefers_all() -> None:
    preference = a_preference()
    heard(preference, a_member("me"), a_member("other"))
    preference.forget()
    assert preference.numbers is None


def test_only_those_count_that_read() -> None:
    preference = a_preference()
    words = [word for name in ("me", "one", "two") for word in (a_member(name), b"%d" % (NOW_MS - 100))]
    preference.heard(NOW_MS, words, {"me", "two"})
    mine = preference.numbers
    preference.heard(NOW_MS, words, {"me", "one", "two", "three"})
    assert preference.numbers != mine
    preference.heard(NOW_MS, words, {"two"})
    assert preference.numbers == mine
    preference.heard(NOW_MS, words, set())
    assert (preference.numbers, preference.look_in_ms) == (None, None)
    preference.heard(NOW_MS, words, None)  # nobody can tell
    assert preference.numbers is not None
