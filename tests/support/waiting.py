"""Waiting for a condition, never for a time.

A limit is there for a test that fails: it is generous, because one that passes on a loaded machine must not meet it."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T | None], *, what: str, timeout_s: float = 60.0) -> T:
    """The first true value of `condition`; fails the test if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)
    return value
