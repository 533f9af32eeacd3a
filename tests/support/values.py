"""Values that many unit tests need: JSON, malformed names and records, a command, an entry, complaints about input."""

from typing import Any

import pytest
from hypothesis import strategies as st

from sagastream.core.commands import Command
from sagastream.core.messages import Fields
from sagastream.errors import MalformedMessage

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


def nested_value(levels: int) -> Any:
    """Lists in lists, nested this deep."""
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def complaint(call: Any, *args: Any, **kwargs: Any) -> str:
    """The error text for a malformed message."""
    with pytest.raises(MalformedMessage) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def stored(fields: Fields) -> dict[bytes, bytes]:
    """The fields of an entry as the broker returns them."""
    return {name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()}


BAD_IDS = {
    "empty": "",
    "too long": "x" * 129,
    "a space": "a b",
    "a newline at the end": "saga42\n",
    "a slash": "a/b",
    "a brace": "{0}",
    "a bidirectional override": "saga\u202e24",
    "an emoji": "saga😀",
    "a letter that only looks like one": "s\u0430ga",
    "a digit of another script": "saga\u0664",
}


OTHER_TYPES = {"null": None, "true": True, "a number": 1, "a list": ["a"], "an object": {"a": "b"}}


#: The example of the W3C.
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def a_command(*, compensating: bool = False, attempt: int = 1) -> Command:
    return Command(
        service="payment",
        type="RefundPayment" if compensating else "ChargePayment",
        saga_id="saga42",
        step=2,
        params=b'{"amount":99.99}',
        result=b'{"payment_id":"p1"}' if compensating else None,
        compensating=compensating,
        attempt=attempt,
        begun_ms=1_700_000_000_000,
    )


def a_charge(*, compensating: bool = False, not_after_ms: int | None = None) -> Command:
    """A command as a handler is called with, or the one that undoes it: its third attempt, with an exact number."""
    return Command(
        service="payment",
        type="Refund" if compensating else "Charge",
        saga_id="saga42",
        step=2,
        params=b'{"n":18446744073709551615}',
        compensating=compensating,
        attempt=3,
        begun_ms=5,
        not_after_ms=not_after_ms,
    )


#: Values in place of a record that are not records.
GARBLED_RECORDS = [
    b"",
    b"ok",
    b"failed",
    b"ok{}",
    b"OK {}",
    b" ok {}",
    b"ok {",
    b"ok  ",
    b"ok yes",
    b"done {}",
    b'unknown {"payment_id":"p1"}',
    b"ok \xff",
    b"failed insufficient_funds",
    b'{"payment_id":"p1"}',
    b'ok {"payment_id":"p1"}}',
]
