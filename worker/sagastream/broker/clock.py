"""The broker's clock, as one process sees it: whether it was set back.

Redis keeps times by its own clock: when an entry was delivered, when a saga is due. If the clock is set back, whatever
has such a time would wait until the clock gets there a second time.
"""

from typing import Final

#: If a time is more than this ahead of the clock, in milliseconds, the clock was set back since.
AHEAD_MS: Final = 1_000


class BrokerClock:
    """The newest time that was seen, and how often the clock was found to be behind it."""

    def __init__(self) -> None:
        self.set_back = 0  # how often it was found to be set back
        self._newest_ms = 0

    def saw(self, ms: int) -> None:
        """This time was written by the clock, in milliseconds."""
        self._newest_ms = max(self._newest_ms, ms)

    def is_now(self, now_ms: int) -> int:
        """The clock says this. Returns by how much it was set back since it was last asked, in ms; 0: it was not."""
        back_ms, self._newest_ms = self._newest_ms - now_ms, now_ms
        if back_ms <= AHEAD_MS:
            return 0
        self.set_back += 1
        return back_ms
