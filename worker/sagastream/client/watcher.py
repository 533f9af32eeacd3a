"""Watches sagas for those who wait: when to look at which saga, and whom that settles.

The hashes are the truth. Events only say which saga to look at: they are capped, a store may lose some, and anybody can
write one. So every saga that somebody waits for is looked at now and then, whatever the events say.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

import redis

from sagastream.broker.entries import Entry
from sagastream.broker.exchange import Exchange, together
from sagastream.broker.failures import is_outage
from sagastream.broker.wire import or_raise
from sagastream.client import refusals, timing_out
from sagastream.client.answers import Refused, opened
from sagastream.client.following import Following
from sagastream.client.waiting import Outcome, Settled, Waiter
from sagastream.core.messages import Begin, Code
from sagastream.core.saga import Found
from sagastream.core.sealing import Codec
from sagastream.store import events
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.layout import Layout
from sagastream.store.sagas import load_there

#: Events after which to look at the saga itself.
_LOOK_AT: Final = (b"outcome", b"parked", b"done")
#: How often to look at sagas without an event, in seconds, and at how many in one round trip.
_SWEEP_EVERY_S: Final = 1.0
_AT_ONCE: Final = 500
#: At which look that finds no saga its refusal is looked for.
_LOOKS_BACK_AT: Final = 2


class SagaWatcher:
    """Watches sagas for waiters, as one reader of the events stream. A waiter that is settled is removed.

    What it does is exchanges, so that clients that block and clients in an event loop share it. An exchange changes the
    watcher only between its round trips: several threads can use one through `exchange.locked`.
    """

    def __init__(
        self,
        layout: Layout,
        waiters: Iterable[Waiter] = (),
        *,
        in_order: bool = False,
        in_all: bool = False,
        codec: Codec | None = None,
    ) -> None:
        """
        Args:
            in_order: settle a waiter only after the caller has dealt with all events (`heard`) up to the one that
                settled it. Without that, settle it at once.
            in_all: follow all partitions, since waiters may be added for any of them. Without that, only those of these
                waiters are followed.
            codec: opens the sealed values of the sagas that settle waiters.
        """
        self._layout = layout
        self._codec = codec
        self._in_order = in_order
        self._in_all = in_all
        self._keys: StoreKeys | None = None
        self._waiters: dict[str, list[Waiter]] = {}
        self._to_look: dict[str, None] = {}  # the sagas to look at, in the order in which that became known
        self._unknown: set[str] = set()  # the sagas that were not there at the last look
        self._following = Following()
        self._dealt_with: dict[int, bytes] = {}  # by partition, the last event that the caller has dealt with
        # What a look has found in a partition, and its newest event after that look: the saga's own are not newer.
        self._found: list[tuple[Partition, bytes, Settled]] = []
        self._refused: dict[Waiter, Refused] = {}  # by a worker, which may have taken the same saga for another
        self._absent: Counter[Waiter] = Counter()  # at how many looks their saga was not there
        self.heard: Sequence[Entry] = ()  # the events that the last turn read of sagas that somebody waits for
        self._failure: redis.RedisError | None = None  # why the last turn failed
        self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
        for waiter in waiters:
            self.add(waiter)

    def __bool__(self) -> bool:
        return bool(self._waiters)

    def add(self, waiter: Waiter) -> None:
        self._waiters.setdefault(waiter.saga_id, []).append(waiter)
        self._to_look[waiter.saga_id] = None

    def discard(self, waiter: Waiter) -> bool:
        """Whether this one was still waiting. It waits no more."""
        waiters = self._waiters.get(waiter.saga_id, [])
        if waiter not in waiters:
            return False
        waiters.remove(waiter)
        self._refused.pop(waiter, None)
        self._absent.pop(waiter, None)
        if not waiters:
            del self._waiters[waiter.saga_id]
            self._unknown.discard(waiter.saga_id)
        return True

    def waiting_for(self, saga_id: str) -> Sequence[Waiter]:
        """All who wait for this saga."""
        return tuple(self._waiters.get(saga_id, ()))

    def timeout_error(self, timeout_s: float, waiter: Waiter | None = None) -> Exchange[TimeoutError]:
        """What to raise when the time is up of one waiter, or of all of them together. The text says why the saga
        waits, or the first of them: that takes some round trips, so not if the time to wait was none."""
        waiters = [waiter] if waiter is not None else [one for alike in self._waiters.values() for one in alike]
        unbegun = next((one for one in waiters if one.saga_id in self._unknown and one.unbegun), None)
        away = self._why_away(waiters[0])
        return (yield from timing_out.error(self._layout, waiters, timeout_s, away, unbegun))

    def turn(self, block_ms: int) -> Exchange[Settled]:
        """Look at the sagas that must be read. If that settles no waiter, read events, and wait for them up to
        `block_ms` milliseconds; below 1, read none. Call it again after the result of the last call, and `heard`, were
        dealt with; and after an error."""
        self.heard = ()
        self._dealt_with = self._following.after.copy()
        try:
            yield from self._take_place()
            settled = self._due()
            while self._to_look and not settled:
                settled = yield from self.look()
            if not settled and block_ms > 0:
                settled = yield from self._read(block_ms)
        except redis.RedisError as error:
            self.lose_place()
            self._failure = error
            raise
        self._failure = None
        return settled

    def lose_place(self) -> None:
        """The events may be others than before."""
        self._following.lose_all()

    def is_in_place(self, saga_id: str) -> bool:
        """Whether all that is not known yet of a saga comes after the events that were read."""
        return self._keys is not None and self._following.is_in_place(self._keys.of(saga_id))

    def start(self, saga_id: str | None = None) -> Exchange[None]:
        """Take the place in the events from which to read on. All news of a request that is sent from now on come
        after it. `saga_id`: raise redis.RedisError if the node of this saga is away."""
        self.lose_place()
        yield from self._take_place()
        if saga_id is not None and (why := self._following.away.get(self._of(saga_id).number)) is not None:
            raise why

    def _take_place(self) -> Exchange[None]:
        """The same for partitions that are not in place yet, or no more. Their sagas are looked at after that."""
        self._keys = keys = yield from self._layout.opened()
        placed = {one.number for one in (yield from self._following.take_place(self._followed()))}
        if not placed:
            return
        for number in placed:
            after = self._following.after[number]
            self._dealt_with[number] = min(self._dealt_with.get(number, after), after, key=events.sort_key)
        self._found = [one for one in self._found if one[0].number not in placed]
        self._to_look |= {one: None for one in self._waiters if keys.of(one).number in placed}

    def _followed(self) -> Collection[Partition]:
        assert self._keys is not None
        return self._keys.partitions if self._in_all else dict.fromkeys(map(self._keys.of, self._waiters))

    def _of(self, saga_id: str) -> Partition:
        assert self._keys is not None
        return self._keys.of(saga_id)

    def _why_away(self, waiter: Waiter) -> redis.RedisError | None:
        """Why a saga cannot be read now."""
        if self._failure is not None or self._keys is None:
            return self._failure
        return self._following.away.get(self._of(waiter.saga_id).number)

    def look(self) -> Exchange[Settled]:
        """Look at the next sagas that are to be looked at. Several may do so side by side."""
        saga_ids = list(islice(self._to_look, _AT_ONCE))
        return (yield from self.look_at(saga_ids)) if saga_ids else ()

    def look_at(self, saga_ids: Sequence[str]) -> Exchange[Settled]:
        """Look at these sagas, whether or not they are to be looked at."""
        for saga_id in saga_ids:  # now: what is heard of one from here on may be too new for the answer
            self._to_look.pop(saga_id, None)
        newest: dict[Partition, bytes] = {}
        try:
            self._keys = keys = yield from self._layout.opened()
            if self._in_order:
                looked, newest = yield from together(load_there(keys, saga_ids), self._newest(saga_ids))
            else:
                looked = yield from load_there(keys, saga_ids)
            states, away = looked
            for saga_id, why in away.items():
                self._following.lose_place(keys.of(saga_id), why)
            if not states:
                self._following.check(self._followed())
        except BaseException:
            self._to_look |= dict.fromkeys(saga_ids)
            raise
        self._unknown.difference_update(states)
        self._unknown.update(one for one, state in states.items() if state is None and one in self._waiters)
        waiters = [waiter for saga_id in states for waiter in self._waiters.get(saga_id, ())]
        yield from self._look_back(keys, [waiter for waiter in waiters if states[waiter.saga_id] is None])
        found = [
            (waiter, opened(self._codec, outcome))
            for waiter in waiters
            if (outcome := self._outcome(waiter, states[waiter.saga_id]))
        ]
        if not self._in_order:
            return self._settle(found)
        for partition, place in newest.items():
            if those := [one for one in found if keys.of(one[0].saga_id) == partition]:
                self._found.append((partition, place, those))
        return self._due()

    def _newest(self, saga_ids: Iterable[str]) -> Exchange[dict[Partition, bytes]]:
        """The newest events of the partitions of these sagas, whose nodes answer."""
        partitions = list(dict.fromkeys(map(self._of, saga_ids)))
        answers = yield [events.words_of_newest(one) for one in partitions]
        return {
            one: events.newest_in(or_raise(answer))
            for one, answer in zip(partitions, answers, strict=True)
            if not (isinstance(answer, redis.RedisError) and is_outage(answer))
        }

    def _look_back(self, keys: StoreKeys, waiters: Sequence[Waiter]) -> Exchange[None]:
        """Find out whether the requests of these were refused before they were waited for. Their sagas are not there.

        Most of these begin a moment later, and that is heard. So it is looked for once, at the second look.
        """
        begun = [one for one in waiters if isinstance(one.request, Begin) and one not in self._refused]
        self._absent.update(begun)
        asked = {one: one.request for one in begun if self._absent[one] == _LOOKS_BACK_AT}
        if asked:
            refused = yield from refusals.of_requests(keys, [one for one in asked.values() if isinstance(one, Begin)])
            for waiter, request in asked.items():
                if request is not None and (refusal := refused.get(request.request_id or "")) is not None:
                    self._refused[waiter] = Refused(saga_id=waiter.saga_id, error=refusal)

    def _outcome(self, waiter: Waiter, found: Found) -> Outcome | None:
        # If there is no such saga, the refusal was not about one that has its id.
        return self._refused.get(waiter) if found is None else waiter.outcome(found, self._codec)

    def _due(self) -> Settled:
        """Settle those whose events the caller has dealt with."""
        due: list[tuple[Waiter, Outcome]] = []
        left = []
        for one in self._found:
            reached = self._dealt_with.get(one[0].number, b"0-0")
            if events.sort_key(one[1]) <= events.sort_key(reached):
                due += one[2]
            else:
                left.append(one)
        self._found = left
        return self._settle(due)

    def _read(self, block_ms: int) -> Exchange[Settled]:
        entries = yield from self._following.read(self._followed(), block_ms)
        heard: list[Entry] = []
        refused: list[tuple[Waiter, Outcome]] = []
        for entry in entries:
            saga_id = entry.fields.get(b"saga_id", b"").decode(errors="replace")
            if saga_id not in self._waiters:
                continue
            heard.append(entry)
            kind = entry.fields.get(b"kind")
            if kind in _LOOK_AT:
                self._to_look[saga_id] = None
            elif kind == b"refused":
                refused += self._refusals(saga_id, entry.fields)
        self.heard = heard
        if not entries:
            self._look_anew()
        if time.monotonic() >= self._sweep_at:
            self._sweep()
        return self._settle(refused)

    def _look_anew(self) -> None:
        """There are no more events, so those that the last looks wait for are lost: the next look waits for fewer."""
        for _, _, found in self._found:
            self._to_look |= dict.fromkeys(waiter.saga_id for waiter, _ in found)
        self._found.clear()

    def _refusals(self, saga_id: str, fields: Mapping[bytes, bytes]) -> list[tuple[Waiter, Outcome]]:
        request_id = fields.get(b"request_id", b"").decode(errors="replace")
        asked = [one for one in self._waiters[saga_id] if one.request and one.request.request_id == request_id]
        if (refusal := events.refusal(fields)) is None:
            return []
        refused = Refused(saga_id=saga_id, error=refusal)
        if self._codec is not None and refusal.code == Code.PRECONDITION_FAILED:
            # A worker cannot open the params: it may have been the same saga, sealed with another key.
            begun = [waiter for waiter in asked if isinstance(waiter.request, Begin)]
            self._to_look |= dict.fromkeys(waiter.saga_id for waiter in begun)
            self._refused |= dict.fromkeys(begun, refused)
            asked = [waiter for waiter in asked if waiter not in begun]
        return [(waiter, refused) for waiter in asked]

    def _sweep(self) -> None:
        """Have some sagas looked at, and others the next time. Those whose nodes are away are once these are back."""
        self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
        for saga_id in list(islice(self._waiters, _AT_ONCE)):
            self._waiters[saga_id] = self._waiters.pop(saga_id)
            if self.is_in_place(saga_id):
                self._to_look[saga_id] = None

    def _settle(self, found: Settled) -> Settled:
        """Those of them who have not been settled before."""
        return [one for one in found if self.discard(one[0])]
