"""A file that a process touches while the broker answers it. A liveness probe looks at the age of the file.

It is a file and not a port, so that nothing listens, no firewall needs a rule, and two processes on one host do not
collide.
"""

import errno
import os
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
    """The file of one process. It exists once the broker has answered for the first time."""

    def __init__(self, path: Path) -> None:
        """`path`: of this process alone. Raises OSError if the file cannot be written."""
        # A file that an earlier process left says nothing about this one. To touch it, to see if that can be done,
        # would have a probe find it fresh for a moment.
        path.unlink(missing_ok=True)
        path.parent.stat()
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        self._path = path
        self._touched = float("-inf")
        self._failed = False

    def beat(self, heard: float) -> None:
        """Touch the file if the broker has answered since. `heard`: when it last answered, by time.monotonic."""
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
    """The health file of a process while the process works; removed at the end. None if there is no path."""
    if path is None:
        yield None
        return
    try:
        yield HealthFile(path)
    finally:
        path.unlink(missing_ok=True)
