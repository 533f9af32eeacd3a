"""What single nodes or slots of a cluster refuse, while the cluster is there: a command that the user of one node may
not call, or the keys of a slot that is on its way. And that the cluster takes nothing, since too many of its masters
are away. Each is told once if it lasts, and once that it is over.

Nothing says that it is over. So each refusal is noted, and it is over if there was none for a while.
"""

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Final

from redis.exceptions import RedisError

from sagastream.broker.failures import is_cluster_down, node_name, plain, said_by, told
from sagastream.telemetry import SharedLog

#: What lasts for so long is told, in seconds: a slot that moves refuses its keys for moments.
_LASTS_S: Final = 1.0
#: It is over if nobody has met it for so long, in seconds. Whoever meets it tries again in less.
_OVER_S: Final = 3.0
#: Where the trouble is, as it is told, if the cluster is down as a whole.
_WHOLE: Final = "the cluster"
#: A node that says that the cluster is down is told of alone if that lasts for so long, in seconds: by then it is known
#: whether the others say the same.
_ALONE_S: Final = 3.0
#: At most so many are remembered.
_REMEMBERED: Final = 256
#: What is told of a trouble, and once it is over.
_Lines = tuple[str, str]
_log: Final = SharedLog("broker", "broker")


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
        self._told: dict[str, str] = {}  # where there is one that was told, with the line that says that it is over

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

    def look(self, masters: Collection[object] = (), away: Collection[object] = ()) -> None:
        """Tell what lasts, and what is over. `masters`: the addresses of the nodes with slots. `away`: of those that do
        not answer."""
        with self._lock:
            now_s = self._clock()
            self._met = {key: one for key, one in self._met.items() if now_s - one.last_s < _OVER_S}
            there = [(where, one) for (where, _), one in self._met.items() if one.matters]
            refused = [(where, one) for where, one in there if not is_cluster_down(one.error)]
            lasting = {where: _refusal(where, one.error) for where, one in refused if _lasts(one, now_s)}
            # A node that says that the cluster is down says it for each of its slots: the oldest counts.
            there.sort(key=lambda one: one[1].since_s, reverse=True)
            down = {said_by(one.error) or where: one for where, one in there if is_cluster_down(one.error)}
            lasting |= self._down(down, now_s, masters, away)
            new = {where: lines for where, lines in lasting.items() if where not in self._told}
            stays = {where for where, _ in refused} | down.keys() | ({_WHOLE} if down else set())
            ended = {where: over for where, over in self._told.items() if where not in stays}
            self._told = {where: over for where, over in self._told.items() if where in stays}
            self._told |= {where: over for where, (_, over) in new.items()}
        for line in [*(line for line, _ in new.values()), *ended.values()]:
            _log.warning(line)

    def _down(
        self, down: Mapping[str, _Trouble], now_s: float, masters: Collection[object], away: Collection[object]
    ) -> dict[str, _Lines]:
        """What to tell, by where it is. `down`: the nodes and slots that say that the cluster is down. While it is
        down as a whole, nodes come and go, and nothing is told of any of them alone."""
        if _WHOLE in self._told:
            return {}
        lasting = {where: one for where, one in down.items() if _lasts(one, now_s)}
        if lasting and masters and all(one in away or node_name(one) in down for one in masters):
            line = f"{_WHOLE} takes nothing: {_why_down(len(masters), away)}. Everything waits"
            return {_WHOLE: (line, f"{_WHOLE} takes commands again")}
        return {
            where: (f"{told(one.error)}. What needs it waits", f"{where} takes commands again")
            for where, one in lasting.items()
            if one.last_s - one.since_s >= _ALONE_S
        }


def _refusal(where: str, error: RedisError) -> _Lines:
    text = told(error)
    line = f"{text if where in text else f'{where}: {text}'}. What needs it waits; the others go on"
    return line, f"{where} does not refuse that any more: {plain(error)}"


def _why_down(masters: int, away: Collection[object]) -> str:
    """Why a cluster takes nothing. `masters`: how many it has; `away`: those of them that do not answer."""
    named = ", ".join(sorted(map(str, away)))
    if 2 * len(away) >= masters:
        return f"too many of its masters are away ({named})"
    if away:
        return f"{named} is away, and cluster-require-full-coverage is yes"
    return "its nodes do not find each other"


def _lasts(one: _Trouble, now_s: float) -> bool:
    return one.last_s - one.since_s >= _LASTS_S and now_s - one.last_s < _OVER_S
