"""The time of a cluster: that of the one node that has the keys of the whole store, and so the heartbeat.

Each node has a clock of its own. If a process asked now one node for the time and now another, the clock would seem to
be set back and forward all the time. So TIME is asked of that node, and about once a second. In between, and while the
node is away, this process goes on from there by its own clock. As long as that node was never heard, any other node is
asked. In a transaction, TIME goes to the node of the transaction.

If that node's clock is set, other processes may learn it up to a second before this one. Whoever would do harm with an
old time says so (`wants_news`): then the node is asked at once.
"""

from collections.abc import Callable
from typing import Any, Final

from sagastream.broker.clock import ahead_s, own_s

#: How often the node is asked, in seconds.
_ASK_EVERY_S: Final = 1.0


class ClusterTime:
    """What one process knows of it. All of it may be used by several threads."""

    def __init__(self, clock: Callable[[], float] = own_s) -> None:
        """`clock`: the process's own, in seconds."""
        self._clock = clock
        #: In which slot the keys of the whole store are; None: nobody has said it. Then any node is asked.
        self.slot: int | None = None
        self._ahead_s: float | None = None  # how far the node's clock is ahead of the process's own
        self._asked_s = float("-inf")  # when the node was asked last
        self._answered_s = float("-inf")  # when the question was asked that it has answered last
        self._wanted_s = float("-inf")  # somebody needs the answer to a question that is not older than this

    @property
    def is_known(self) -> bool:
        return self._ahead_s is not None

    def asks(self) -> float | None:
        """The time now by the process's clock, if the caller is to ask the node; None: do not ask."""
        now_s = self._clock()
        # If several threads want news, each asks until one has an answer. If the node is away, all stop after a second.
        is_old = self._answered_s < self._wanted_s and now_s - self._wanted_s < _ASK_EVERY_S
        if self.is_known and not is_old and now_s - self._asked_s < _ASK_EVERY_S:
            return None
        self._asked_s = now_s
        return now_s

    def wants_news(self) -> None:
        """Have the node asked when the time is asked for next: what it told before is not new enough."""
        self._wanted_s = self._clock()

    def told(self, answer: Any, asked_s: float) -> None:
        """The node has answered TIME, which was asked at `asked_s`. The answer may have arrived long before it is
        read."""
        seconds, micros = answer
        self._answered_s = max(self._answered_s, asked_s)
        told_s = int(seconds) + int(micros) / 1e6
        self._ahead_s = ahead_s(self._ahead_s, told_s=told_s, asked_s=asked_s, answered_s=self._clock())

    def now(self) -> list[bytes]:
        """The time now, as TIME answers it. It must be known."""
        assert self._ahead_s is not None
        micros = round((self._clock() + self._ahead_s) * 1e6)
        return [b"%d" % (micros // 1_000_000), b"%d" % (micros % 1_000_000)]
