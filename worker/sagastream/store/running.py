"""What the processes of services have been running for long: the hash `saga:running`.

    redis-cli HGETALL saga:running

A process writes here what it has been running for a second or more, along with its heartbeat. What runs fast is never
written. The field of a process is removed when it runs nothing for long any more, when it ends, and when it is
forgotten. If a process was killed, its field stands for as long as its member of the heartbeat does: ask the heartbeat
whether it is alive.
"""

from typing import Any, Final

import msgspec
from msgspec import Struct

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.wire import or_raise
from sagastream.store.keys import StoreKeys

#: What runs for less than this is not written, in seconds.
LONG_S: Final = 1.0
#: A process writes at most this many commands, the oldest ones.
OLDEST: Final = 10


class LongRun(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A command whose handler has been running for long. Times are ms by the broker's clock."""

    saga_id: str
    step: int
    command: str  # its name; if it is being undone, that of the compensation
    compensating: bool = False
    attempt: int = 1
    since_ms: int  # when its handler was called
    not_after_ms: int | None = None  # its deadline; None: it has none
    overdue: bool = False  # whether it runs for longer than it should: past its deadline or, without one, for too long


class Unopened(Struct, frozen=True, kw_only=True):
    """A command that a process leaves to others, since it cannot open the values of it."""

    saga_id: str
    step: int
    command: str  # its name; if it is being undone, that of the compensation
    why: str


class Busy(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one process has been running for long, and what it leaves to others."""

    slots: int  # how many handlers it runs at once, at most
    long: int  # how many it has been running for long
    overdue: int  # how many of them run for longer than they should
    oldest: tuple[LongRun, ...] = ()  # at most OLDEST, those that have run longest first
    unopened: tuple[Unopened, ...] = ()  # at most OLDEST, those that it met last

    @property
    def hangs(self) -> bool:
        """Whether it can do nothing more: each of its slots is taken by a handler that should have ended."""
        return self.overdue >= self.slots


def encode(busy: Busy | None) -> bytes:
    """The value of a process's field; empty if it runs nothing for long."""
    return b"" if busy is None else msgspec.json.encode(busy)


def look(keys: StoreKeys) -> Exchange[dict[str, Busy]]:
    """What each process runs, by the name of the process; dead ones may be among them. What sagastream did not write is
    passed over."""
    (answer,) = yield [("HGETALL", keys.running)]
    if is_wrong_type(answer):
        return {}  # as `doctor` reports
    words: Any = iter(or_raise(answer))
    found = {}
    for name, value in zip(words, words, strict=True):
        try:
            found[name.decode()] = msgspec.json.decode(value, type=Busy)
        except (msgspec.DecodeError, ValueError, RecursionError):
            continue
    return found
