"""Which partitions one process prefers, by what it last heard of the others; core/sharing.py has the rule.

It hears of them in the answer to its heartbeat, so that costs no command. If the heartbeat is refused, it prefers all.
So it does if it hears of very many, which nobody runs: to compute their shares would take all its time.
"""

from collections.abc import Collection, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from sagastream.core.sharing import Sharer, preferred
from sagastream.core.steps import PLAIN

#: How long after the time within which a process should have been heard it is noticed that it was not, in ms.
_LATE_MS: Final = 10
#: If more than so many are heard that share partitions with each other, they do not: each prefers all.
MOST_SHARERS: Final = 512


class _Other(Struct, frozen=True):
    """What is read of a member of the heartbeat."""

    name: str
    kind: str
    service: str | None = None
    commands: frozenset[str] | None = None
    formats: frozenset[int] = frozenset({PLAIN})


class Preference:
    """The preference of one process. One thread changes it, others may read it."""

    def __init__(self, own: Sharer, *, kind: str, service: str | None, spares: bool, within_ms: int) -> None:
        """
        Args:
            own: the process.
            kind: it shares with others of this kind …
            service: … and of this service.
            spares: whether a process may prefer none, see sharing.shares.
            within_ms: the others count if they were heard at most this many milliseconds ago.
        """
        self._own = own
        self._kind = kind
        self._service = service
        self._spares = spares
        self._within_ms = within_ms
        self._partitions = 1
        self._known: dict[bytes, Sharer | None] = {}  # by their members
        self._others: frozenset[Sharer] = frozenset()
        #: The numbers of the partitions that it prefers; None: all. Replaced only if they change.
        self.numbers: frozenset[int] | None = None
        #: In how many milliseconds it can tell whether the one that was silent for longest is gone; None: it is alone.
        self.look_in_ms: int | None = None

    def join(self, partitions: int) -> None:
        """Set how many partitions the store has."""
        self._partitions = partitions
        self.forget()

    def forget(self) -> None:
        """Prefer all: nobody can say who else is there."""
        self._known, self._others = {}, frozenset()
        self.numbers = self.look_in_ms = None

    @property
    def is_alone(self) -> bool:
        """Whether it shares the partitions with nobody."""
        return self.numbers is None

    @property
    def asks(self) -> tuple[bytes | int, ...]:
        """What beat.lua is asked about the others; empty: nothing, since there is nothing to share."""
        if self._partitions == 1:
            return ()
        sieve = (
            b'"kind":"%b"' % self._kind.encode()
            if self._service is None
            else b'"service":"%b"' % self._service.encode()
        )
        return sieve, self._within_ms, MOST_SHARERS

    def heard(self, now_ms: int, words: Sequence[bytes], reading: Collection[str] | None = None) -> None:
        """
        Args:
            words: the others as beat.lua has told them: a member, its score, the next member …
            reading: the names of those that read; the others do not count. None: nobody can tell who reads.
        """
        scores = dict(zip(words[::2], words[1::2], strict=True))
        self._known = {
            member: self._known[member] if member in self._known else self._parsed(member) for member in scores
        }
        there = {
            member: other
            for member, other in self._known.items()
            if other is not None and (reading is None or other.name in reading)
        }
        others = frozenset(there.values())
        if others != self._others:
            self._others = others
            numbers = preferred(self._own, others, self._partitions, spares=self._spares)
            self.numbers = None if len(numbers) == self._partitions else numbers
        if self.numbers is None:
            self.look_in_ms = None
        else:
            silent_ms = max(now_ms - int(float(scores[member])) for member in there)
            self.look_in_ms = self._within_ms - silent_ms + _LATE_MS

    def _parsed(self, member: bytes) -> Sharer | None:
        """Another process of the same kind and service; None: it is none."""
        try:
            other = msgspec.json.decode(member, type=_Other)
        except (msgspec.DecodeError, RecursionError):
            return None  # sagastream did not write it
        if other.name == self._own.name or (other.kind, other.service) != (self._kind, self._service):
            return None
        return Sharer(name=other.name, formats=other.formats, commands=other.commands)
