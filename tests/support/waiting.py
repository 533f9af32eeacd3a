"""Waiting for a condition, never for a time; and time limits that hold on a busy machine too."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T | None], *, what: str, timeout_s: float = 120.0) -> T:
    """The first true value of `condition`. Fails the test if there is none in time.

    A test that passes does not wait for the limit, so the limit is generous: even a busy machine must not reach it.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)
    return value


def until_no_more(happens: Callable[[], bool], *, within_s: float, what: str, timeout_s: float = 60.0) -> None:
    """Wait until it does not happen for so long. What is under way at first may still happen."""
    quiet_since = began = time.monotonic()
    while (now := time.monotonic()) - quiet_since < within_s:
        if happens():
            quiet_since = now
        assert now - began < timeout_s, f"still after {timeout_s:g} s: {what}"
        time.sleep(0.01)


@contextmanager
def takes_less_than(seconds: float) -> Iterator[None]:
    """Fails the test if the work within this takes longer than it may on an idle machine."""
    slow, began = slowness(), time.monotonic()
    yield
    took = time.monotonic() - began
    slow = max(slow, slowness())
    assert took < seconds * slow, f"it took {took:.1f} s, on a machine that is busy with others {slow:.1f} times over"


def slowness() -> float:
    """How many times longer a calculation takes now than on an idle machine; at least 1."""
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < 0.05:
        pass
    return max(1.0, (time.monotonic() - began) / 0.05)
