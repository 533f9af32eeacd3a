"""Which sagas a filter finds, and which indexes say it."""

from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.core.filtering import Filter, matches, parse_filter
from sagastream.core.indexing import index_names
from sagastream.core.messages import DefinedBy, Verb
from sagastream.core.saga import SagaState
from sagastream.errors import MalformedMessage
from support.stories import CHARGE, RESERVE, given_saga

NOW_MS = 1_700_000_100_000


def parked() -> SagaState:
    """A saga that is parked at the undo of its first step."""
    story = given_saga(replace(RESERVE, compensation="Release", compensation_attempts=1), replace(CHARGE, attempts=1))
    story.when("ReserveInventory_ok", 1, result={"id": "r1"})
    story.when("ChargePayment_failed", 2, error="Insufficient funds: é")
    story.when("Release_failed", 1, error="closed")
    assert story.saga.parked
    return replace(
        story.saga,
        begun_ms=NOW_MS - 60_000,
        attributes={"customer": "c42", "basket": 815},
        definition=DefinedBy(name="order", version=3, sha256="a" * 64),
    )


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({}, True),
        ({"status": "PARKED"}, True),
        ({"status": "COMPENSATING"}, True),
        ({"status": "PENDING"}, False),
        ({"definition": "order"}, True),
        ({"definition": "orde"}, False),
        ({"where": {"customer": "c42"}}, True),
        ({"where": {"customer": "c42", "basket": "815"}}, True),
        ({"where": {"basket": 815}}, True),
        ({"where": {"customer": "c42", "basket": 816}}, False),
        ({"where": {"shop": "c42"}}, False),
        ({"at": "Release"}, True),
        ({"at": "inventory/Release"}, True),
        ({"at": "payment/Release"}, False),
        ({"at": "ReserveInventory"}, False),
        ({"parked": "Release"}, True),
        ({"parked": "inventory/Release"}, True),
        ({"parked": "ChargePayment"}, False),
        ({"older_ms": 60_000}, True),
        ({"older_ms": 60_001}, False),
        ({"newer_ms": 60_000}, True),
        ({"newer_ms": 59_999}, False),
        ({"error": "insufficient"}, True),
        ({"error": "FUNDS: É"}, True),
        ({"error": "closed"}, True),
        ({"error": "sold out"}, False),
        ({"status": "PARKED", "error": "closed", "at": "Release", "where": {"basket": 815}}, True),
        ({"status": "PARKED", "error": "closed", "at": "Release", "where": {"basket": 1}}, False),
    ],
)
def test_a_saga_is_found_if_all_is_so_that_is_asked_for(body: dict[str, Any], found: bool) -> None:
    wanted = parse_filter(body, "the search")
    assert matches(parked(), wanted, NOW_MS) is found
    assert parse_filter(wanted.body(), "the search") == wanted
    # Whoever is found is in all of the indexes that are searched.
    if found:
        assert set(wanted.index_names) <= set(index_names(parked()))


def test_a_completed_saga_waits_for_nothing() -> None:
    ended = given_saga(RESERVE).when("ReserveInventory_ok", 1).saga
    assert ended.ended
    assert not matches(ended, Filter(at="ReserveInventory"), NOW_MS)
    assert matches(ended, Filter(status="COMPLETED"), NOW_MS)
    assert index_names(ended) == ()


def test_a_saga_that_is_cancelled_is_found_by_the_reason() -> None:
    story = given_saga(RESERVE, CHARGE)
    story.when_asked(Verb.CANCEL, "Customer called")
    assert matches(story.saga, Filter(error="customer called"), NOW_MS)


@pytest.mark.parametrize(
    ("body", "names", "by_index"),
    [
        ({}, [], True),
        ({"older_ms": 5}, [], True),
        ({"status": "PARKED"}, ["status=PARKED"], True),
        ({"status": "ABORTED", "newer_ms": 5}, ["status=ABORTED"], True),
        ({"status": "PENDING"}, [], False),
        ({"status": "COMPLETED"}, [], False),
        ({"definition": "order"}, ["definition=order"], True),
        ({"where": {"basket": 815}}, ["basket=815"], True),
        ({"where": {"basket": 815, "customer": "c"}}, ["basket=815", "customer=c"], False),
        ({"definition": "order", "status": "PARKED"}, ["definition=order", "status=PARKED"], False),
        ({"parked": "till/Charge"}, ["parked=till/Charge"], True),
        ({"parked": "Charge"}, ["status=PARKED"], False),
        ({"parked": "till/Charge", "status": "PENDING"}, ["parked=till/Charge"], False),
        ({"at": "Charge"}, [], False),
        ({"error": "closed"}, [], False),
        ({"error": "closed", "definition": "order"}, ["definition=order"], False),
    ],
)
def test_the_indexes_that_say_it(body: dict[str, Any], names: list[str], by_index: bool) -> None:
    wanted = parse_filter(body, "the search")
    assert (wanted.index_names, wanted.is_by_index) == (names, by_index)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ([], "the search is not a JSON object"),
        ({"stauts": "PARKED"}, "unknown member 'stauts'; is it a misspelling of status"),
        ({"status": "parked"}, "status must be one of PENDING, COMPENSATING, COMPLETED, ABORTED, PARKED"),
        ({"status": 1}, "status must be a text"),
        ({"error": ""}, "error must be a text of 1 to 512 characters"),
        ({"at": "payment/"}, "at must be COMMAND or SERVICE/COMMAND, not 'payment/'"),
        ({"parked": "a/b/c"}, "parked must be COMMAND or SERVICE/COMMAND, not 'a/b/c'"),
        ({"older_ms": 7_200_000, "newer_ms": 3_600_000}, "older than 2 h and newer than 1 h together find nothing"),
        ({"older_ms": -1}, "older_ms must be a whole number of milliseconds"),
        ({"newer_ms": True}, "newer_ms must be a whole number of milliseconds"),
        ({"where": []}, "where must be an object"),
        ({"where": {"Customer": "c"}}, "no name of an attribute"),
        ({"where": {"status": "c"}}, "status is taken"),
        ({"where": {"n": None}}, "n must be a text or a whole number"),
    ],
)
def test_what_no_saga_can_be_is_refused(body: Any, text: str) -> None:
    with pytest.raises(MalformedMessage) as refused:
        parse_filter(body, "the search")
    assert text in str(refused.value)
