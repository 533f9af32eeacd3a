"""The entries that a process has taken lately.

On a cluster, one may come twice as new: a reading that still waited at a node that hung has got it, too.
"""

from itertools import islice
from typing import Final

from sagastream.broker.entries import Entry

#: So many are remembered: more than come within service_rules.NEW_MS.
_REMEMBERED: Final = 1 << 14


class Taken:
    """Those of one process."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, bytes], None] = {}  # where they stand, the oldest first

    def is_first(self, entry: Entry) -> bool:
        """Take an entry. Returns whether it was not taken before."""
        if entry.at in self._at:
            return False
        self._at[entry.at] = None
        if len(self._at) > _REMEMBERED:
            self._at = dict(islice(self._at.items(), _REMEMBERED // 2, None))
        return True
