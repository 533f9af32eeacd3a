"""How lists of sagas look to a person."""

import click
import pytest

from sagastream.core.filtering import Filter
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaStatus
from sagastream.store.finding import Page
from sagastream.store.reach import Reach
from sagastream_bridge.inspection import list_views
from sagastream_bridge.inspection.lookup import Listing
from support.shown import NOW_MS, a_saga, a_step
from support.stores import KEYS


def test_the_row_of_a_live_saga_says_what_it_waits_for() -> None:
    assert click.unstyle(list_views.row(a_saga(a_step(phase=Phase.OUT, due_ms=NOW_MS + 5)), NOW_MS)) == (
        "PENDING         60 m  saga42  waits for payment to answer ChargePayment, step 1"
    )


@pytest.mark.parametrize(
    ("age_ms", "age"),
    [
        (-5, "0 s"),
        (999, "1 s"),
        (119_000, "119 s"),
        (119_999, "2 m"),
        (120_000, "2 m"),
        (7_199_999, "2 h"),
        (7_200_000, "2 h"),
        (172_800_000, "2 d"),
    ],
)
def test_ages_are_told_in_the_unit_that_suits_them(age_ms: int, age: str) -> None:
    assert f" {age}  saga42" in list_views.row(a_saga(a_step(), begun_ms=NOW_MS - age_ms), NOW_MS)


def test_a_row_has_the_attributes_of_the_saga_and_first_those_that_were_asked_for() -> None:
    saga = a_saga(
        a_step(phase=Phase.FAILED),
        status=SagaStatus.ABORTED,
        reason="no",
        attributes={"batch": 815, "customer": "c\x1b42", "shop": "s" * 64},
    )
    whole = click.unstyle(list_views.row(saga, NOW_MS, asked=["customer"]))
    assert whole == f"ABORTED         60 m  saga42  customer=c\\x1b42, batch=815, shop={'s' * 64}  no"
    narrow = click.unstyle(list_views.row(saga, NOW_MS, width=80))
    assert narrow == "ABORTED         60 m  saga42  batch=815, customer=c\\x1b…  no"


def test_a_list_on_a_terminal_says_what_stands_in_its_columns() -> None:
    page = Page(sagas=[a_saga(a_step(phase=Phase.OUT))], cursor=None, total=1, total_is_exact=True)
    listing = Listing(
        wanted=Filter(), is_first=True, page=page, now_ms=NOW_MS, live=1, parked=0, ended=0, unread=0, quarantined=0,
        standing=(), reach=Reach(KEYS, {}, None), causes=[()],
    )  # fmt: skip
    heading, row = (click.unstyle(line) for line in list_views.rows(listing, 80))
    assert heading == "STATUS         BEGUN  SAGA, its attributes, and why it is there"
    assert (heading.index("BEGUN") + 5, row.index("60 m") + 4) == (20, 20)
    assert len([*list_views.rows(listing)]) == 1


def test_on_a_terminal_a_row_of_a_list_is_one_line() -> None:
    saga = a_saga(a_step(phase=Phase.PARKED, parked="an error " * 50))
    assert len(click.unstyle(list_views.row(saga, NOW_MS, (), 80))) <= 80
    assert list_views.row(saga, NOW_MS, (), 80).endswith("…")
    assert len(click.unstyle(list_views.row(saga, NOW_MS))) > 400
