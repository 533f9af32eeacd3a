"""A bulk, one verb for all sagas that a filter finds: what it says, what it asks of each, what comes next. Pure.

Workers carry it out, one at a time, part by part. What is to be asked is written into the bulk before it is sent. So a
worker that takes a bulk over sends the very same requests, and a saga does each of them once.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from sagastream.core.filtering import Filter, is_at
from sagastream.core.messages import MAX_ACTOR_CHARS, MAX_REASON_CHARS, Intervene, Verb
from sagastream.core.parsing import operator_text
from sagastream.core.saga import SagaState
from sagastream.errors import MalformedMessage

#: How many requests a second a bulk sends at most: usually, and the most that somebody may ask for.
USUAL_RATE: Final = 200
MOST_RATE: Final = 2_000
#: A part has at most so many sagas, and about so many parts are sent a second.
_MOST_OF_A_PART: Final = 50
_PARTS_A_SECOND: Final = 4
#: The longest text of a refusal that is kept, in characters.
_MOST_CHARS: Final = 500
#: About which sagas each verb can be, if nobody says with which status.
_STATUS: Final = {Verb.CANCEL: "PENDING", Verb.RETRY: "PARKED", Verb.SKIP: "PARKED", Verb.ABANDON: "PARKED"}
_ENDED: Final = ("COMPLETED", "ABORTED")
_REQUEST_ID: Final = re.compile(r"bulk-([0-9a-f]{12})-\d{1,3}", re.ASCII)


#: What a bulk may ask of sagas.
BulkVerb = Literal["retry", "skip", "abandon", "cancel"]


class BulkState(StrEnum):
    """Where a bulk is. DONE and STOPPED are its ends."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    DONE = "DONE"  # all sagas were asked that there were
    STOPPED = "STOPPED"  # somebody has ended it before


class Ask(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is asked of one saga, and not answered yet."""

    saga_id: str
    place: str | None = None  # where it was seen parked, if the verb is for what is parked

    @property
    def step(self) -> str:
        """The number of the step that is meant; `0`: the whole saga."""
        return "0" if self.place is None else self.place.partition("/")[0]


class BulkResult(Struct, frozen=True, kw_only=True):
    """What has come of one request of a bulk."""

    saga_id: str  # empty: the saga cannot be read, and `refused` names it
    refused: str | None = None  # why it was refused; None: it was done


class Bulk(Struct, frozen=True, kw_only=True):
    """One verb for all sagas that a filter finds, and how far it has come.

    Times are milliseconds since the epoch by the broker's clock."""

    bulk_id: str
    verb: Verb
    filter: Filter  # which sagas; ages count from its begin
    reason: str  # why; it stays with each saga
    actor: str | None = None  # who asked for it; this too
    now: bool = False  # of cancel and abandon: do not wait for commands that are out
    rate: int = USUAL_RATE  # so many requests a second, at most
    state: BulkState = BulkState.RUNNING
    begun_ms: int = 0
    updated_ms: int = 0  # when a worker, or an operator, last did something about it
    ended_ms: int | None = None  # None: it has not ended
    total: int = 0  # how many sagas there were when it began
    total_is_exact: bool = False  # False: there were at least so many
    found: int = 0  # how many of them it has come to
    asked: int = 0  # how many requests were sent: if several steps of a graph are parked, one for each
    done: int = 0  # … of which so many were done
    refused: int = 0  # so many sagas or steps did not allow it
    last_error: str | None = None  # why it does not get on; None: it does
    cursor: str | None = None  # where it goes on to search
    searched: bool = False  # whether all sagas were searched
    open: tuple[Ask, ...] = ()  # what was asked, and is not answered yet

    @property
    def ended(self) -> bool:
        """Whether it is DONE or STOPPED."""
        return self.state in (BulkState.DONE, BulkState.STOPPED)

    @property
    def wanted(self) -> Filter:
        """Its filter, for sagas that had begun when it began."""
        return replace(self.filter, older_ms=self.filter.older_ms or 0)

    @property
    def part(self) -> int:
        """How many sagas are asked together."""
        return max(1, min(_MOST_OF_A_PART, self.rate // _PARTS_A_SECOND))


class Next(StrEnum):
    """What a worker does next about a bulk."""

    SETTLE = "settle"  # what was asked is to be answered first
    SEARCH = "search"  # find the next sagas, and ask them
    END = "end"  # it is done
    REST = "rest"  # somebody has paused or stopped it


def next_of(bulk: Bulk) -> Next:
    """What comes next."""
    if bulk.open:
        return Next.SETTLE
    if bulk.state is not BulkState.RUNNING:
        return Next.REST
    return Next.END if bulk.searched else Next.SEARCH


def checked(verb: str, wanted: Filter, reason: str, actor: str | None, *, rate: int, now: bool) -> Bulk:
    """A bulk that may begin, without an id. Raises MalformedMessage, which says what is wrong."""
    if verb not in list(Verb):
        raise MalformedMessage(f"a bulk can {', '.join(Verb)}, not {verb!a:.40}")
    kind = Verb(verb)
    if not wanted.body():
        raise MalformedMessage("a bulk needs a search that says which sagas are meant; for all: status")
    if wanted.status in _ENDED:
        raise MalformedMessage(f"a saga that has ended, {wanted.status}, takes no {kind}")
    if kind is Verb.CANCEL and wanted.status == "COMPENSATING":
        raise MalformedMessage("a saga that is COMPENSATING is undone already, and takes no cancel")
    if now and kind not in (Verb.CANCEL, Verb.ABANDON):
        raise MalformedMessage(f"now is for cancel and abandon, not for {kind}")
    if type(rate) is not int or not 1 <= rate <= MOST_RATE:
        raise MalformedMessage(f"rate must be a whole number from 1 to {MOST_RATE} a second, not {rate!r:.40}")
    operator_text(reason, "reason", MAX_REASON_CHARS, stays_with="each saga")
    if actor is not None:
        operator_text(actor, "actor", MAX_ACTOR_CHARS, stays_with="each saga")
    return Bulk(bulk_id="", verb=kind, filter=filter_of(kind, wanted), reason=reason, actor=actor, now=now, rate=rate)


def filter_of(verb: Verb, wanted: Filter) -> Filter:
    """The same filter; if it names no status, limited to sagas for which the verb is."""
    if wanted.status is not None or (wanted.parked is not None and verb is not Verb.CANCEL):
        return wanted
    return replace(wanted, status=_STATUS[verb])


def asks_of(bulk: Bulk, state: SagaState) -> list[Ask] | str:
    """What is asked of a saga that was found; or why nothing is."""
    if bulk.verb is Verb.CANCEL:
        return [Ask(saga_id=state.saga_id)]  # with a place it would say that the step was not done
    where = bulk.filter.parked
    meant = [n for n in state.parked_steps if where is None or is_at(state.steps[n - 1], where)]
    if not meant:
        return f"it is not parked: it waits for {state.waiting_for}"
    if bulk.verb is Verb.ABANDON:  # it ends the whole saga
        meant = meant[:1]
    return [Ask(saga_id=state.saga_id, place=state.parked_place(number)) for number in meant]


def request_of(bulk: Bulk, ask: Ask) -> Intervene:
    """The request that asks it. Whoever sends it, and however often, it is the same: so it is done once."""
    return Intervene(
        verb=bulk.verb,
        saga_id=ask.saga_id,
        reason=bulk.reason,
        now=bulk.now,
        actor=bulk.actor,
        parked_at=ask.place,
        request_id=request_id(bulk, ask),
    )


def request_id(bulk: Bulk, ask: Ask) -> str:
    """The id of a request. A saga is asked once for each step, so this tells its requests apart; a saga has no other of
    a bulk."""
    return f"bulk-{bulk.bulk_id}-{ask.step}"


def bulk_of(request_id: str | None) -> str | None:
    """The id of the bulk that has sent a request; None: somebody else did."""
    if request_id is None or (found := _REQUEST_ID.fullmatch(request_id)) is None:
        return None
    return found[1]


def after_search(
    bulk: Bulk, states: Iterable[SagaState], unreadable: Iterable[str], cursor: str | None
) -> tuple[Bulk, list[BulkResult]]:
    """The bulk after these sagas were found, which are to be asked now; and the results of those that cannot be asked.

    `unreadable`: why sagas cannot be read. `cursor`: where the search goes on; None: it is at its end."""
    asks: list[Ask] = []
    results = [BulkResult(saga_id="", refused=why[:_MOST_CHARS]) for why in unreadable]
    found = len(results)
    for state in states:
        found += 1
        asked = asks_of(bulk, state)
        if isinstance(asked, str):
            results.append(BulkResult(saga_id=state.saga_id, refused=asked[:_MOST_CHARS]))
        else:
            asks += asked
    after = replace(
        bulk,
        found=bulk.found + found,
        asked=bulk.asked + len(asks),
        refused=bulk.refused + len(results),
        cursor=cursor,
        searched=cursor is None,
        open=tuple(asks),
        last_error=None,
    )
    return after, results


def with_error(bulk: Bulk, text: str) -> Bulk:
    """The bulk, which does not get on for now: why."""
    return replace(bulk, last_error=text[:_MOST_CHARS])


def after_answers(bulk: Bulk, answers: Mapping[Ask, str | None]) -> tuple[Bulk, list[BulkResult]]:
    """The bulk after these requests were answered: why each was refused; None: it was done."""
    told = {ask: answers[ask] for ask in bulk.open if ask in answers}
    results = [
        BulkResult(saga_id=ask.saga_id, refused=None if why is None else why[:_MOST_CHARS]) for ask, why in told.items()
    ]
    done = sum(why is None for why in told.values())
    after = replace(
        bulk,
        done=bulk.done + done,
        refused=bulk.refused + len(told) - done,
        open=tuple(ask for ask in bulk.open if ask not in told),
        last_error=None,
    )
    return after, results
