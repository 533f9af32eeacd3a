"""What the log of an embedded server says of how it ended."""

import contextlib
import os
from typing import Final

from sagastream.broker.home import Home

#: The log, in the home.
LOG: Final = "valkey.log"
#: How much of its end is read, in bytes.
_TAIL: Final = 1 << 16


def fault(home: Home, *, is_running: bool) -> str | None:
    """The last words of the server that ran last, or before the one that runs now; None: it ended in order."""
    lives = _end(home).split("Server initialized")
    if len(lives) > 1 and is_running:
        lives.pop()
    # Its last lines, of those that are warnings or errors, up to the start of the next one.
    last = lives[-1].split("oO0OoO0OoO0Oo", maxsplit=1)[0].splitlines()
    words = [line.partition(" # ")[2].strip() for line in last if " # " in line and "overcommit" not in line]
    ended_in_order = any("User requested shutdown" in line or "ready to exit" in line for line in last)
    crash = [word for word in words if "crashed by signal" in word]  # a report of many lines follows
    return None if ended_in_order or not words else "; ".join(crash or words[-2:])


def last_words(home: Home) -> str:
    """The last line of the log, and where to read more."""
    lines = [line for line in _end(home).splitlines() if line.strip()]
    words = lines[-1].split(" # ")[-1] if lines else "its log is empty"
    return f"{words} (more in {home / LOG})"


def _end(home: Home) -> str:
    """The end of the server's log; empty if there is none."""
    with contextlib.suppress(OSError), os.fdopen(home.open(LOG, os.O_RDONLY), "rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
        return log.read().decode(errors="replace")
    return ""
