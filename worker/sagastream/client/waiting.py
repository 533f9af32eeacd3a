"""What becomes of sagas, as those see it who wait for it: which sagas are waited for, when each is to be looked at, and
what settles the waiting.

The hashes are the truth; the events only say which of them to look at. Events are capped, and a store may lose some, so
every saga that is waited for is looked at now and then whatever the events say.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Self

import redis

from sagastream.broker.exchange import Exchange
from sagastream.client.requests import Accepted, Refused, Unsettled, conflicting
from sagastream.core.messages import Begin, Intervene
from sagastream.core.saga import Found, SagaState, SagaStatus, Step, StepStatus, begun_with
from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage, RequestRefused, SagaAborted, SagaParked, UnreadableSaga
from sagastream.store import events
from sagastream.store.sagas import load

#: The name of a client in the log.
WHO: Final = "sagastream client"
#: Events after which the saga itself is looked at.
_LOOK_AT: Final = (b"outcome", b"parked", b"done")
#: How often sagas are looked at without an event, in seconds, and of how many a round trip may ask.
_SWEEP_EVERY_S: Final = 1.0
_AT_ONCE: Final = 500

Outcome = SagaState | Refused

#: What to do with what cannot be waited for.
_INSTEAD: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    (SagaState, ": give its saga_id"),
    (Refused, ": it was not begun, and its error says why"),
    (Unsettled, ": begin it again first"),
    ((list, tuple, set, dict), ": for many there is as_completed"),
)


def check_timeout(timeout_s: float | None) -> None:
    """Raises TypeError or ValueError for what is no time to wait."""
    given: object = timeout_s
    if given is None:
        return
    said = f"timeout_s must be a number of seconds from 0 on, or None to wait for as long as it takes, not {given!r}"
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(said)
    if not 0 <= given < math.inf:
        raise ValueError(said)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wait:
    """Somebody waits: for the end of a saga or, with an operator's request, for that to be done."""

    saga_id: str
    request: Begin | Intervene | None = None

    @classmethod
    def end_of(cls, saga: Accepted | str) -> Self:
        """Raises TypeError for what is neither."""
        given: object = saga
        if isinstance(given, str):
            return cls(saga_id=given)
        if isinstance(given, Accepted):
            return cls(saga_id=given.saga_id, request=given.begin)
        hint = next((hint for kinds, hint in _INSTEAD if isinstance(given, kinds)), "")
        raise TypeError(f"to be waited for: what begin returned, or the id of a saga, not {type(given).__name__}{hint}")

    def outcome(self, found: Found) -> Outcome | None:
        """What settles it, with the saga as it stands; None: nothing yet."""
        if isinstance(found, UnreadableSaga):
            return Refused(saga_id=self.saga_id, error=found)
        if found is None:
            return None
        if isinstance(self.request, Intervene):
            return found if found.has_taken(self.request.request_id) else None
        if self.request is not None and not begun_with(found, self.request):
            return conflicting(self.saga_id)
        return found if found.ended or found.parked is not None else None

    @property
    def unbegun(self) -> str:
        """What there is to say where there is no such saga yet."""
        if isinstance(self.request, Intervene):
            return ""  # whether there is one is for the worker to say
        if self.request is None:
            return f"there is no saga {self.saga_id} yet"
        return f"no worker has begun {self.saga_id} yet"

    def late(self, timeout_s: float, why: str, *, others: int = 0) -> TimeoutError:
        """What to raise where the time is up. `others`: how many more wait."""
        if isinstance(self.request, Intervene):
            return TimeoutError(
                f"no worker has taken the {self.request.verb} of saga {self.saga_id} within {timeout_s:g} s{why}; "
                "it is in the store, and the next one will do it, or refuse it"
            )
        which = f"saga {self.saga_id} and {others} more have" if others else f"saga {self.saga_id} has"
        return TimeoutError(f"{which} not ended within {timeout_s:g} s{why}")


Settled = Sequence[tuple[Wait, Outcome]]


class Awaited:
    """All that one reader of the events stream waits for. What is settled is waited for no more."""

    def __init__(self, waits: Iterable[Wait] = ()) -> None:
        self._waits: dict[str, list[Wait]] = {}
        self._to_look: dict[str, None] = {}  # the sagas to be looked at, in the order in which they came up
        self._unknown: set[str] = set()  # the sagas that were not there when they were looked at
        self._after: bytes | None = None  # the last event that was read
        self.in_place = False  # whether what is to come after `_after` is all that is not known yet
        self.away: redis.RedisError | None = None  # why the last turn failed
        self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
        for wait in waits:
            self.add(wait)

    def __bool__(self) -> bool:
        return bool(self._waits)

    def add(self, wait: Wait) -> None:
        self._waits.setdefault(wait.saga_id, []).append(wait)
        self._to_look[wait.saga_id] = None

    def discard(self, wait: Wait) -> None:
        waits = self._waits.get(wait.saga_id, [])
        if wait in waits:
            waits.remove(wait)
            if not waits:
                del self._waits[wait.saga_id]
                self._unknown.discard(wait.saga_id)

    def late(self, timeout_s: float, wait: Wait | None = None) -> TimeoutError:
        """What to raise where the time is up that one of the waits has, or all of them have together."""
        waits = [wait] if wait is not None else [one for waits in self._waits.values() for one in waits]
        if self.away is not None:
            why = f" (the broker is away: {self.away})"
        else:
            why = next((f": {one.unbegun}" for one in waits if one.saga_id in self._unknown and one.unbegun), "")
        return waits[0].late(timeout_s, why, others=len(waits) - 1)

    def turn(self, block_ms: int) -> Exchange[Settled]:
        """Look at what is to be looked at or, where that settles nothing, read events for up to `block_ms`, none if
        that is below 1. To be called again where it raised."""
        try:
            if not self.in_place:
                yield from self.start()
            settled: Settled = ()
            while self._to_look and not settled:
                settled = yield from self.look()
            if not settled and block_ms > 0:
                settled = yield from self._read(block_ms)
        except redis.RedisError as error:
            self.in_place = False
            self.away = error
            raise
        self.away = None
        return settled

    def start(self) -> Exchange[None]:
        """Take the place in the events stream from which to read on. All news of a request that is sent from now on
        come after it."""
        newest = yield from events.newest()
        if self._after is None or events.order(newest) < events.order(self._after):
            self._after = newest  # there was none, or it is of a store that has lost its last events
        self._to_look = dict.fromkeys(self._waits)
        self.in_place = True

    def look(self) -> Exchange[Settled]:
        """Look at sagas that are to be looked at; several may do so side by side."""
        saga_ids = list(islice(self._to_look, _AT_ONCE))
        if not saga_ids:
            return ()
        for saga_id in saga_ids:  # now: what is heard of one from here on may be too new for the answer
            del self._to_look[saga_id]
        try:
            states, _ = yield from load(saga_ids)
        except BaseException:
            self._to_look |= dict.fromkeys(saga_ids)
            raise
        self._unknown.difference_update(saga_ids)
        self._unknown.update(one for one in saga_ids if states[one] is None and one in self._waits)
        waits = [wait for saga_id in saga_ids for wait in self._waits.get(saga_id, ())]
        return self._settle([(wait, outcome) for wait in waits if (outcome := wait.outcome(states[wait.saga_id]))])

    def _read(self, block_ms: int) -> Exchange[Settled]:
        assert self._after is not None
        entries = yield from events.after(self._after, block_ms)
        refused: list[tuple[Wait, Outcome]] = []
        for entry in entries:
            self._after = entry.id
            saga_id = entry.fields.get(b"saga_id", b"").decode(errors="replace")
            if saga_id not in self._waits:
                continue
            kind = entry.fields.get(b"kind")
            if kind in _LOOK_AT:
                self._to_look[saga_id] = None
            elif kind == b"refused":
                refused += self._refusals(saga_id, entry.fields)
        if time.monotonic() >= self._sweep_at:
            self._sweep()
        return self._settle(refused)

    def _refusals(self, saga_id: str, fields: Mapping[bytes, bytes]) -> list[tuple[Wait, Outcome]]:
        request_id = fields.get(b"request_id", b"").decode(errors="replace")
        asked = [one for one in self._waits[saga_id] if one.request and one.request.request_id == request_id]
        try:
            body = decode(fields[b"body"])
            refused = Refused(saga_id=saga_id, error=RequestRefused(body["code"], body["text"]))
        except (KeyError, TypeError, MalformedMessage):  # whoever wrote that, it is no refusal of ours
            return []
        return [(wait, refused) for wait in asked]

    def _sweep(self) -> None:
        """Have some sagas looked at; others the next time."""
        self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
        for saga_id in list(islice(self._waits, _AT_ONCE)):
            self._waits[saga_id] = self._waits.pop(saga_id)
            self._to_look[saga_id] = None

    def _settle(self, settled: Settled) -> Settled:
        for wait, _ in settled:
            self.discard(wait)
        return settled


def completed(state: SagaState) -> SagaState:
    """The saga itself. Raises SagaAborted or SagaParked where it has not completed."""
    if state.status is SagaStatus.COMPLETED:
        return state
    if state.parked is not None:
        step = state.current_step
        raise SagaParked(state.saga_id, state.parked, step, state.command, state.step.definition.service)
    failed = [number for number, step in enumerate(state.steps, 1) if _has_failed(step)]
    reason = state.reason or "no reason is known"
    if not failed:
        raise SagaAborted(state.saga_id, reason)
    definition = state.steps[failed[0] - 1].definition
    raise SagaAborted(state.saga_id, reason, failed[0], definition.transaction, definition.service)


def _has_failed(step: Step) -> bool:
    """Whether it is on account of this step that its saga went back; one whose outcome is unknown is undone too."""
    return step.status is StepStatus.FAILED or (step.status is StepStatus.COMPENSATED and step.unknown)
