"""Which recorded reply answers which attempt. Reading and answering run on real servers, in functional/."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.command_inbox import _recorded
from sagastream.messages import Reply

BODY = b'{"type":"A_ok","saga_id":"x","step":1,"result":7}'
REPLY = Reply(type="A_ok", saga_id="x", step=1, result=b"7")


@pytest.mark.parametrize(
    ("kind", "recorded", "attempt", "stands"),
    [
        ("ok", 1, 1, True),
        ("ok", 1, 7, True),  # what was done stays done
        ("ok", 7, 1, True),
        ("failed", 1, 1, True),
        ("failed", 1, 2, False),  # a later attempt may succeed
        ("failed", 3, 2, True),
        ("failed", 9, 10, False),  # compared as numbers
        ("failed", 10, 9, True),
        ("unknown", 1, 1, False),
    ],
)
def test_a_record_answers_its_attempt_and_what_was_done_answers_all(
    kind: str, recorded: int, attempt: int, stands: bool
) -> None:
    assert _recorded(f"{kind} {recorded} ".encode() + BODY, attempt) == (REPLY if stands else None)


def test_where_nothing_is_recorded_nothing_is_answered() -> None:
    assert _recorded(None, 1) is None


@given(garbage=st.binary(max_size=40))
def test_a_garbled_record_answers_nothing(garbage: bytes) -> None:
    assert _recorded(garbage, 1) is None
    assert _recorded(b"ok 1 " + garbage, 1) is None
