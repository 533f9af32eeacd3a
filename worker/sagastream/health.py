"""A file that is touched while a process hears from the broker: a liveness probe looks at how old it is.

A file, not a port: nothing listens, no firewall has to let anything through, and two processes on one host do not
collide.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sagastream.telemetry import Log

#: The file is touched at most this often, in seconds.
_EVERY_S: Final = 1.0

_log: Final = Log("health", "sagastream")


class HealthFile:
    """The file of one process. It is there once the broker has answered for the first time."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if it cannot be written."""
        path.touch()
        path.unlink()  # what a process before this one left says nothing about this one
        self._path = path
        self._touched = float("-inf")
        self._failed = False

    def beat(self, heard: float) -> None:
        """`heard`: when the broker last answered, by time.monotonic."""
        if heard < self._touched + _EVERY_S:
            return
        self._touched = time.monotonic()
        try:
            self._path.touch()
        except OSError as error:
            if not self._failed:
                self._failed = True
                _log.warning(f"cannot touch the health file: {error}")


@contextmanager
def health_file_at(path: Path | None) -> Iterator[HealthFile | None]:
    """The health file of a process, for as long as it works; None without a path."""
    if path is None:
        yield None
        return
    try:
        yield HealthFile(path)
    finally:
        path.unlink(missing_ok=True)
