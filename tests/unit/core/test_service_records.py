"""What a record of a service says."""

import pytest

from sagastream.core.service_records import newer_format


@pytest.mark.parametrize(("record", "number"), [
    (b"v2 ok 1", 2), (b"v9 ", 9), (b"v123456789 x", 123456789), (b"v1 ok 1", None), (b"v0 ok", None), (b"v02 ok", None),
    (b"v2", None), (b"V2 ok", None), (b" v2 ok", None), (b"v1234567890 ok", None), (b"ok v2 ok", None), (None, None),
    (b"", None), (b'ok {"payment_id":"p1"}', None), (b'failed "insufficient_funds"', None),
])  # fmt: skip
def test_a_record_that_begins_with_a_later_format_is_of_a_newer_release(
    record: bytes | None, number: int | None
) -> None:
    assert newer_format(record) == number
