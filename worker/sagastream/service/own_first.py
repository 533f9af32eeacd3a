"""Where a process of a service looks for commands: first in the partitions that it prefers, then in all.

While each process finds enough in its own partitions, commands come in batches, and no two processes are in each
other's way. But no command may wait for a process whose hands are full while another one is idle. So a process that
finds nothing in its own partitions waits there only for a moment; then it waits in all of them. If a command comes from
another's partition, others may wait behind it: the process looks for them at once.

Rejected: to wait in its own partitions as long as a reading waits, and to look into the others now and then. If the one
that prefers a partition runs a handler of a second, each command there would wait for half a second, however many
processes are idle.
"""

import time
from collections.abc import Iterator
from typing import Final, NamedTuple

#: For how long a process waits in its own partitions before it waits in all, in milliseconds: longer than the next
#: command takes to come if there are many, and too short for a person to notice.
PATIENCE_MS: Final = 30


class Look(NamedTuple):
    """One reading."""

    everywhere: bool
    wait_ms: int | None  # None: it does not wait


class OwnFirst:
    """Which readings come next, by what the last ones have found."""

    def __init__(self) -> None:
        self._patience_ms = float(PATIENCE_MS)  # for how long it still waits in its own partitions alone
        self._was_elsewhere = False  # whether the last command came from another's partition

    def looks(self, block_ms: int) -> Iterator[Look]:
        """The readings, of which each comes if the one before has found nothing. Call `found` once one has found
        something."""
        if self._was_elsewhere:
            yield Look(everywhere=False, wait_ms=None)
            yield Look(everywhere=True, wait_ms=None)
            self._was_elsewhere = False
        left_ms = float(block_ms)
        if self._patience_ms > 0:
            began = time.monotonic()
            yield Look(everywhere=False, wait_ms=max(1, round(min(self._patience_ms, left_ms))))
            waited_ms = max(1.0, (time.monotonic() - began) * 1000)
            self._patience_ms -= waited_ms
            left_ms -= waited_ms
        if self._patience_ms <= 0:
            yield Look(everywhere=True, wait_ms=max(1, round(left_ms)))

    def found(self, *, elsewhere: bool) -> None:
        """A reading has found something. `elsewhere`: none of it in its own partitions."""
        self._was_elsewhere = elsewhere
        self._patience_ms = PATIENCE_MS
