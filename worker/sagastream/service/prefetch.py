"""How many commands a process of a service reads at once."""

from collections.abc import Callable
from typing import Final

from sagastream.broker.entries import BATCH
from sagastream.service.in_flight import InFlight

#: For how long the commands of one reading keep a slot busy, in seconds: no other process can run them meanwhile.
_BATCH_S: Final = 0.2
#: The least that a command is taken to need, in seconds.
_SHORTEST_S: Final = 1e-6


class Prefetch:
    """Reads as many commands as the free slots run in a short time, by how long the last commands took."""

    def __init__(self, in_flight: InFlight, limit: Callable[[], int] | None = None) -> None:
        """`limit`: how many more commands can be dispatched to run outside this process; None: none are."""
        self._in_flight = in_flight
        self._limit = limit
        self._command_s = _BATCH_S  # how long a command takes, smoothed
        self._in_batches = False  # whether the last reading brought more than one command

    def count(self) -> int:
        """How many commands to read now."""
        count = min(BATCH, self._in_flight.room() * max(1, int(_BATCH_S / self._command_s)))
        return count if self._limit is None else min(count, self._limit())

    def took(self, seconds: float) -> None:
        """A handler has run for so long."""
        self._command_s = 0.8 * self._command_s + 0.2 * max(seconds, _SHORTEST_S)

    def came(self, commands: int) -> None:
        """A reading has brought so many commands."""
        self._in_batches = commands > 1

    @property
    def may_read_ahead(self) -> bool:
        """Whether the next commands may come along with the answers to the last ones. Not if commands come one by one:
        then the next one is still to be sent, and has to be waited for."""
        return self._in_batches and self._in_flight.is_empty and self._limit is None
