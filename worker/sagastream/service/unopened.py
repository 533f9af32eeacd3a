"""Opens the values of commands for one process. What it cannot open is left to others, told once, and written where
`show` finds it."""

import threading
from typing import Final

import redis
from msgspec.structs import replace

from sagastream.console import printable
from sagastream.core.commands import Command, Reply
from sagastream.core.sealed_messages import open_command, sealed_reply
from sagastream.core.sealing import Codec
from sagastream.errors import CannotOpen, SagastreamError
from sagastream.service.report import ServiceReport
from sagastream.store.running import OLDEST, Busy, Unopened

#: A process comes by what it has left every ten seconds or more often. What it has not met for so long, in seconds, was
#: taken by another one, or is gone.
_MET_WITHIN_S: Final = 30.0
#: How many of them it remembers, at most.
_REMEMBERED: Final = 1000


class UnopenedCommands:
    """Opens the values of commands, seals those of replies, and remembers what could not be opened. Safe for several
    threads."""

    def __init__(self, codec: Codec | None, report: ServiceReport) -> None:
        """`codec`: None if values are neither sealed nor opened here."""
        self.codec = codec
        #: Why the one could not be opened that was met last; None: there was none.
        self.last: str | None = None
        self._report = report
        self._lock = threading.Lock()
        self._met: dict[Unopened, float] = {}  # when, by time.monotonic
        self._told: set[str] = set()

    def opened(self, command: Command, now_s: float) -> Command | None:
        """The command as its handler gets it; None: it cannot be opened. `now_s`: by time.monotonic."""
        try:
            return open_command(self.codec, command)
        except CannotOpen as error:
            self._remember(command, error, now_s)
            return None

    def sealed(self, command: Command, reply: Reply) -> Reply:
        """The reply of a handler as it is sent. Raises as `sealing.seal` does; but of what the codec raises only the
        type, since it becomes the error of the reply, which is not sealed."""
        try:
            return sealed_reply(self.codec, command, reply)
        except (SagastreamError, redis.RedisError):  # in the codec's own words, and outages
            raise
        except Exception as error:  # noqa: BLE001 - whatever a codec raises
            raise SagastreamError(f"the codec cannot seal the result: {type(error).__name__}") from None

    def with_busy(self, busy: Busy | None, slots: int, now_s: float) -> Busy | None:
        """What a process tells of itself, with what it could not open lately. `slots`: see Busy."""
        if not self._met:
            return busy
        with self._lock:
            self._met = {one: met_s for one, met_s in self._met.items() if now_s - met_s < _MET_WITHIN_S}
            unopened = tuple(sorted(self._met, key=lambda one: -self._met[one])[:OLDEST])
        if not unopened:
            return busy
        busy = busy or Busy(slots=slots, long=0, overdue=0)
        return replace(busy, unopened=unopened)

    def _remember(self, command: Command, error: CannotOpen, now_s: float) -> None:
        one = Unopened(saga_id=command.saga_id, step=command.step, command=command.type, why=printable(str(error)))
        self.last = one.why
        with self._lock:
            self._met[one] = now_s
            while len(self._met) > _REMEMBERED:
                del self._met[next(iter(self._met))]
            # Once for each key and each fault, not for each command: there may be very many.
            is_new = one.why not in self._told
            if is_new and len(self._told) < _REMEMBERED:
                self._told.add(one.why)
        if is_new:
            self._report.cannot_open(command, error)
