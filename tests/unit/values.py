"""JSON values for the tests, and what is said of malformed ones."""

from typing import Any

import pytest
from hypothesis import strategies as st

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
    """Lists in lists, this deep."""
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def complaint(call: Any, *args: Any, **kwargs: Any) -> str:
    """What is said of a malformed message."""
    with pytest.raises(MalformedMessage) as caught:
        call(*args, **kwargs)
    return str(caught.value)
