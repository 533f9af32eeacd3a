"""What a page says after something was done."""

import secrets
import threading
from typing import Final, NamedTuple

#: So many texts are kept for the pages that come next.
_KEPT: Final = 1_000


class Told(NamedTuple):
    """What became of an action, in words."""

    level: str  # ok or problem
    text: str


class Outcomes:
    """What became of actions, for the page that a browser asks for next. Its address only has a key: nobody can make a
    link that shows a text of theirs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, Told] = {}

    def keep(self, level: str, text: str) -> str:
        """Returns the key."""
        key = secrets.token_urlsafe(12)
        with self._lock:
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = Told(level, text)
        return key

    def told(self, key: str | None) -> Told | None:
        return None if key is None else self._kept.get(key)
