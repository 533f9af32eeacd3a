"""Bulks, as one worker carries them out, part by part: find the next sagas, note what is asked of them, send the
requests, and note the answers.

One worker at a time carries a bulk: it has the lease. What is asked is noted before it is sent. So if that worker dies
in between, another one sends the same requests, and each is done once. Workers take these requests as they take those
of operators, and tell the answers in the events; a worker that carries a bulk reads them there.

A worker hears along with its heartbeat whether there is anything to do. If not, bulks cost it nothing else.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import redis
from redis.exceptions import ResponseError

from sagastream.broker.entries import Entry
from sagastream.broker.exchange import Exchange, run
from sagastream.broker.failures import is_outage
from sagastream.broker.partial import passes_over
from sagastream.broker.scripting import added_even_if_full
from sagastream.broker.wire import or_raise
from sagastream.core.bulks import (
    Ask,
    Bulk,
    BulkResult,
    Next,
    after_answers,
    after_search,
    next_of,
    request_id,
    request_of,
    with_error,
)
from sagastream.core.saga import SagaState
from sagastream.errors import MalformedMessage
from sagastream.store import bulks, events
from sagastream.store.events import Place
from sagastream.store.finding import find
from sagastream.store.keys import StoreKeys
from sagastream.store.sagas import load
from sagastream.telemetry import Log

#: About how many bulks a worker hears at once; others wait until one of these has ended.
_MOST: Final = 16
#: How many sagas one part looks at, at most: the worker does nothing else meanwhile.
_LOOKED_AT: Final = 200
#: After a search, it lets so many times that time pass before the next one, for all else that it has to do.
_RESTS: Final = 3
#: How long a bulk is leased, in milliseconds, and how often that is renewed, in seconds.
_LEASE_MS: Final = 5_000
_RENEW_S: Final = 1.0
#: How often a worker looks for answers, in seconds.
_LOOK_EVERY_S: Final = 0.05
#: After this time without an answer, it looks at the sagas themselves, and asks again; so many times, in seconds.
_AGAIN_S: Final = 5.0
_TIMES: Final = 3
#: How long a bulk is left that another worker carries, or that the broker refuses to go on with, in seconds.
_ELSEWHERE_S: Final = 1.0
_PUT_OFF_S: Final = 10.0
_NO_ANSWER: Final = "no worker has answered; the request may still be done: see sagastream show"


class _Carried:
    """A bulk that this worker carries."""

    def __init__(self, bulk: Bulk) -> None:
        self.bulk = bulk
        self.go_on_at = 0.0  # when to do the next thing about it
        self.search_at = 0.0  # when to ask the next sagas, by its rate
        self.renew_at = time.monotonic() + _RENEW_S
        self.again_at = 0.0  # when to ask again
        self.times = 0  # how often what is open was sent
        self.place: Place = ()  # up to which event the answers were looked for


class Bulks:
    """The bulks of the store, as one worker knows and carries them."""

    def __init__(self, client: "redis.Redis", consumer: str, who: str) -> None:
        """`consumer`: the name by which it has leases. `who`: the name of the worker in the log."""
        self._client = client
        self._consumer = consumer
        self._log = Log("worker", who)
        self._keys: StoreKeys | None = None
        self._open: list[str] = []  # those about which somebody has to do something
        self._carried: dict[str, _Carried] = {}
        self._left_until: dict[str, float] = {}  # those that others carry, or that are put off

    def join(self, keys: StoreKeys) -> None:
        """Look for bulks in this store from now on."""
        self._keys = keys
        self._carried.clear()
        self._left_until.clear()

    def read(self) -> Exchange[None]:
        """Hear which bulks there is something to do about. A part of the heartbeat."""
        self._open = yield from bulks.open_ids(self._opened, _MOST)
        if self._left_until:
            self._left_until = {name: until for name, until in self._left_until.items() if name in self._open}

    def go_on(self) -> bool:
        """Do what is to be done now. Returns whether this worker carries any bulk, so that it looks again soon."""
        if not (self._open or self._carried):
            return False
        now = time.monotonic()
        for bulk_id in self._open:
            if bulk_id not in self._carried and self._left_until.get(bulk_id, 0.0) <= now:
                self._try(bulk_id, self._take(bulk_id))
        for bulk_id, one in list(self._carried.items()):
            if one.go_on_at <= now:
                self._try(bulk_id, self._step(one))
        return bool(self._carried)

    def leave(self) -> None:
        """Give back what this worker carries: it ends."""
        for bulk_id in list(self._carried):
            run(self._client, bulks.carry(self._opened, bulk_id, self._consumer, 0))
            del self._carried[bulk_id]

    @property
    def _opened(self) -> StoreKeys:
        assert self._keys is not None
        return self._keys

    def _try(self, bulk_id: str, part: Exchange[None]) -> None:
        """Do a part of a bulk. If the broker refuses it, the bulk is put off: the worker itself goes on."""
        try:
            run(self._client, part)
        except (redis.RedisError, MalformedMessage, ValueError) as error:
            if passes_over(self._client, error):
                self._drop(bulk_id, _ELSEWHERE_S)  # it needs all partitions: it waits for those that are away
                return
            if is_outage(error) or (isinstance(error, redis.RedisError) and not isinstance(error, ResponseError)):
                self._carried.pop(bulk_id, None)  # once the broker is back, it is read what was noted, and what not
                raise
            self._log.error(f"bulk {bulk_id} cannot go on, and is tried again: {error}")
            if (one := self._carried.get(bulk_id)) is not None:
                one.bulk = with_error(one.bulk, str(error))
                with suppress(ResponseError):
                    run(self._client, self._note(one))
            self._drop(bulk_id, _PUT_OFF_S)

    def _drop(self, bulk_id: str, for_s: float) -> None:
        self._carried.pop(bulk_id, None)
        self._left_until[bulk_id] = time.monotonic() + for_s

    def _take(self, bulk_id: str) -> Exchange[None]:
        bulk = yield from bulks.carry(self._opened, bulk_id, self._consumer, _LEASE_MS)
        if bulk is None:
            self._drop(bulk_id, _ELSEWHERE_S)
            return
        self._carried[bulk_id] = _Carried(bulk)

    def _note(self, one: _Carried, then: str = "", results: Sequence[BulkResult] = ()) -> Exchange[bool]:
        """Note how far it has come, and renew the lease. Returns whether this worker still carries it: otherwise,
        nothing was noted."""
        one.renew_at = time.monotonic() + _RENEW_S
        noted = yield from bulks.carry(
            self._opened, one.bulk.bulk_id, self._consumer, _LEASE_MS, then=then, progress=one.bulk, results=results
        )
        if noted is None:
            self._drop(one.bulk.bulk_id, _ELSEWHERE_S)
            return False
        one.bulk = noted
        return True

    def _step(self, one: _Carried) -> Exchange[None]:
        """Do what comes next about it."""
        now = time.monotonic()
        one.go_on_at = now + _LOOK_EVERY_S
        match next_of(one.bulk):
            case Next.SETTLE:
                yield from self._settle(one)
            case Next.SEARCH if one.search_at <= now:
                yield from self._search(one)
            case Next.END:
                if (yield from self._note(one, "end")) and one.bulk.ended:
                    bulk = one.bulk
                    text = f"bulk {bulk.bulk_id} is done: {bulk.verb} of {bulk.done} sagas, refused: {bulk.refused}"
                    self._log.info(text)
                    self._drop(bulk.bulk_id, _ELSEWHERE_S)
            case Next.REST:
                if (yield from self._note(one, "rest")) and next_of(one.bulk) is Next.REST:
                    self._drop(one.bulk.bulk_id, _ELSEWHERE_S)
            case _:
                if one.renew_at <= now:
                    yield from self._note(one)

    def _search(self, one: _Carried) -> Exchange[None]:
        """Find the next sagas, and ask them."""
        if not (yield from self._note(one)) or next_of(one.bulk) is not Next.SEARCH:
            return  # somebody has paused it meanwhile
        bulk, began = one.bulk, time.monotonic()
        page = yield from find(
            self._opened,
            bulk.wanted,
            bulk.part,
            bulk.cursor,
            counts=False,
            at_ms=bulk.begun_ms,
            looked_at=_LOOKED_AT,
        )
        one.bulk, results = after_search(bulk, page.sagas, map(str, page.unreadable), page.cursor)
        ended = time.monotonic()
        one.search_at = ended + max(len(one.bulk.open) / bulk.rate, _RESTS * (ended - began))
        one.times = 0
        if (yield from self._note(one, results=results)) and one.bulk.open:
            yield from self._send(one)

    def _send(self, one: _Carried) -> Exchange[None]:
        """Send what is open, from now on looking for the answers."""
        keys, bulk = self._opened, one.bulk
        one.place = yield from events.newest(keys.partitions)
        requests = [request_of(bulk, ask) for ask in bulk.open]
        adding = [added_even_if_full(keys.of(asked.saga_id).interventions, asked.fields()) for asked in requests]
        for answer in (yield adding):
            or_raise(answer)
        one.again_at = time.monotonic() + _AGAIN_S
        one.times += 1

    def _settle(self, one: _Carried) -> Exchange[None]:
        """Note the answers that are there. If some do not come, look at the sagas, and ask again."""
        if not one.times:  # another worker has noted them, and may have died before it sent them
            yield from self._send(one)
            return
        answers = yield from self._answers(one)
        if len(answers) < len(one.bulk.open) and one.again_at <= time.monotonic():
            answers |= yield from self._looked(one, answers)
        if answers or one.renew_at <= time.monotonic():
            one.bulk, results = after_answers(one.bulk, answers)
            if not (yield from self._note(one, results=results)):
                return
        if one.bulk.open and one.again_at <= time.monotonic():
            yield from self._send(one)

    def _answers(self, one: _Carried) -> Exchange[dict[Ask, str | None]]:
        """The answers that the events since the last look tell."""
        bulk, partitions = one.bulk, self._opened.partitions
        asked = {(ask.saga_id, request_id(bulk, ask)): ask for ask in bulk.open}
        portion = events.portion()
        answers: dict[Ask, str | None] = {}
        while True:
            found = yield from events.after(partitions, one.place, 1, portion)
            one.place = events.moved(partitions, one.place, found)
            for event in found:
                if (ask := asked.get(_about(event))) is not None:
                    answers[ask] = _told(event)
            if not found or len(answers) == len(asked):
                return answers

    def _looked(self, one: _Carried, answers: Mapping[Ask, str | None]) -> Exchange[dict[Ask, str | None]]:
        """What the sagas say of requests whose answers do not come: their records name those that were done."""
        rest = [ask for ask in one.bulk.open if ask not in answers]
        states, _ = yield from load(self._opened, [ask.saga_id for ask in rest])
        found: dict[Ask, str | None] = {}
        for ask in rest:
            state = states[ask.saga_id]
            if isinstance(state, SagaState) and state.has_taken(request_id(one.bulk, ask)):
                found[ask] = None
            elif one.times >= _TIMES:
                found[ask] = _NO_ANSWER
        return found


def _about(event: Entry) -> tuple[str, str]:
    """The saga and the request that an event is about."""
    fields = event.fields
    return fields.get(b"saga_id", b"").decode(errors="replace"), fields.get(b"request_id", b"").decode(errors="replace")


def _told(event: Entry) -> str | None:
    """Why a request was refused, as an event tells it; None: it was done."""
    if event.fields.get(b"kind") != b"refused":
        return None
    refusal = events.refusal(event.fields)
    return "refused" if refusal is None else str(refusal)
