"""What single nodes or slots of a cluster refuse, while the cluster is there: a command that the user of one node may
not call, or the keys of a slot that is on its way. It is told once if it lasts, and once that it is over.

Nothing says that it is over. So each refusal is noted, and it is over if there was none for a while.
"""

import threading
from collections.abc import Callable
from typing import Final

from redis.exceptions import RedisError

from sagastream.broker.failures import plain, told
from sagastream.telemetry import Log

#: What lasts for so long is told, in seconds: a slot that moves refuses its keys for moments.
_LASTS_S: Final = 1.0
#: It is over if nobody has met it for so long, in seconds. Whoever meets it tries again in less.
_OVER_S: Final = 3.0
#: At most so many are remembered.
_REMEMBERED: Final = 256
_log: Final = Log("broker", "broker")


class _Trouble:
    def __init__(self, error: RedisError, now_s: float) -> None:
        self.error = error
        self.since_s = self.last_s = now_s
        self.matters = False  # whether something waits because of it: some refusals hold up nothing


class Troubles:
    """Those of one cluster. All of it may be used by several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._met: dict[tuple[str, str], _Trouble] = {}  # by where it is, and the text of the error
        self._told: set[str] = set()  # where there is one that was told

    def __bool__(self) -> bool:
        """Whether something was refused lately, or the end of one has still to be logged."""
        return bool(self._met or self._told)

    def met(self, where: str, error: RedisError, *, matters: bool = False) -> None:
        """This is refused there."""
        with self._lock:
            now_s, key = self._clock(), (where, str(error))
            if (one := self._met.get(key)) is None:
                if len(self._met) >= _REMEMBERED:
                    return
                one = self._met[key] = _Trouble(error, now_s)
            one.last_s = now_s
            one.matters = one.matters or matters

    def lasting(self, where: str) -> RedisError | None:
        """What is refused there, if it lasts."""
        with self._lock:
            now_s = self._clock()
            there = (one for (place, _), one in self._met.items() if place == where)
            return next((one.error for one in there if _lasts(one, now_s)), None)

    def refusing(self, error: RedisError) -> set[str]:
        """Where the same was refused lately."""
        with self._lock:
            now_s = self._clock()
            return {
                where
                for (where, _), one in self._met.items()
                if now_s - one.last_s < _OVER_S and plain(one.error) == plain(error)
            }

    def look(self) -> None:
        """Tell what lasts, and what is over."""
        with self._lock:
            now_s = self._clock()
            self._met = {key: one for key, one in self._met.items() if now_s - one.last_s < _OVER_S}
            lasting = {where: one.error for (where, _), one in self._met.items() if one.matters and _lasts(one, now_s)}
            new = {where: error for where, error in lasting.items() if where not in self._told}
            ended = self._told - {where for (where, _), one in self._met.items() if one.matters}
            self._told = (self._told | new.keys()) - ended
        for where, error in new.items():
            text = told(error)
            _log.warning(f"{text if where in text else f'{where}: {text}'}. What needs it waits; the others go on")
        for where in ended:
            _log.warning(f"{where} does not refuse that any more")


def _lasts(one: _Trouble, now_s: float) -> bool:
    return one.last_s - one.since_s >= _LASTS_S and now_s - one.last_s < _OVER_S
