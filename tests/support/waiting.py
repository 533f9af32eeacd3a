"""Waiting for a condition, never for a time; and time limits that hold on a busy machine too."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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
    slow = slowness()
    with _slowness_meanwhile() as meanwhile:
        began = time.monotonic()
        yield
        took = time.monotonic() - began
    slow = max(slow, meanwhile(), slowness())
    assert took < seconds * slow, f"it took {took:.1f} s, on a machine that is busy with others {slow:.1f} times over"


@contextmanager
def _slowness_meanwhile() -> Iterator[Callable[[], float]]:
    """How many times longer a thread took than on an idle machine, on average: because of others it waited for a core,
    not for this process."""
    ended, ratio = threading.Event(), [1.0]

    def sample() -> None:
        before = _ran_and_waited()
        while not ended.wait(0.1):
            used = time.thread_time()
            while time.thread_time() - used < 0.01:
                pass
            ran, waited = (now - then for now, then in zip(_ran_and_waited(), before, strict=True))
            ratio[0] = 1 + waited / ran

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield lambda: ratio[0]
    finally:
        ended.set()
        thread.join()


def _ran_and_waited() -> tuple[int, int]:
    """For how long this thread has had a core, and has waited for one, in nanoseconds."""
    ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return int(ran), int(waited)


def slowness() -> float:
    """How many times longer a calculation takes now than on an idle machine; at least 1."""
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < 0.05:
        pass
    return max(1.0, (time.monotonic() - began) / 0.05)
