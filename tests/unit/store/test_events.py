"""The order of events."""

import pytest

from sagastream.store.events import sort_key


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (b"0-0", b"0-1"),
        (b"999-0", b"1000-0"),
        (b"1000-9", b"1000-10"),
        (b"1000-10", b"1001-0"),
        (b"1700000000000-18446744073709551614", b"1700000000000-18446744073709551615"),
    ],
)
def test_events_are_ordered_by_number_and_not_by_their_text(earlier: bytes, later: bytes) -> None:
    assert sort_key(earlier) < sort_key(later)
    assert sort_key(earlier) == sort_key(earlier)
