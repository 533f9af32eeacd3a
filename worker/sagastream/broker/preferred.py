"""The streams that a reader prefers, among those that it may read: others read the rest."""

from collections.abc import Callable, Collection, Sequence
from typing import Final

#: The streams that a reader prefers, as its heartbeat has it; None: all. It returns the same object as long as nothing
#: has changed.
Prefers = Callable[[], Collection[str] | None]

#: After this many looks, it has looked at each stream that it does not prefer.
_LOOKS: Final = 4


class PreferredStreams:
    """The choice of one reader, and when it changes."""

    def __init__(self, prefers: Prefers) -> None:
        self._prefers = prefers
        self._chosen: Collection[str] | None = None  # what `names` was made of …
        self._among: Sequence[str] = ()  # … and of which streams
        self._looks = 0
        #: Those of the streams that it prefers.
        self.names: list[str] = []

    @property
    def is_current(self) -> bool:
        """Whether nothing has changed since it chose."""
        return self._prefers() is self._chosen

    def choose(self, streams: Sequence[str]) -> bool:
        """Choose among these. Returns whether it prefers some that it did not prefer before."""
        if self.is_current and len(streams) == len(self._among):
            return False
        before = set(self.names)
        self._chosen, self._among = self._prefers(), tuple(streams)
        self.names = [one for one in streams if self._chosen is None or one in self._chosen]
        return not before.issuperset(self.names)

    def and_others_in_turn(self) -> list[str]:
        """Those that it prefers, and some of the others: different ones each time."""
        mine = set(self.names)
        others = [one for one in self._among if one not in mine]
        self._looks = (self._looks + 1) % _LOOKS
        return [*self.names, *others[self._looks :: _LOOKS]]
