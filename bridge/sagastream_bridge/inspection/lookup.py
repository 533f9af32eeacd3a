"""Reads the store for people: one saga with all that explains it, or many, one per line."""

import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import orjson
import redis
from msgspec.structs import asdict, replace

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.failures import brief
from sagastream.broker.wire import execute
from sagastream.client.evidence import explain, explained, may_look, survey
from sagastream.codecs.setting import codec_of
from sagastream.core.causes import Cause
from sagastream.core.durations import spoken
from sagastream.core.filtering import Filter
from sagastream.core.history import history
from sagastream.core.indexing import PARKED
from sagastream.core.not_undone import not_undone
from sagastream.core.saga import SagaState, protocol_view
from sagastream.core.sealed_messages import open_state
from sagastream.core.step_state import Step
from sagastream.core.why import no_worker
from sagastream.core.why_out import SET_BACK
from sagastream.errors import UnreadableSaga
from sagastream.rq_steps import asking
from sagastream.store import damage, layout, lineage, published, reach, sagas
from sagastream.store.columns import iso
from sagastream.store.finding import Page, find, opened_page
from sagastream.store.keys import StoreKeys
from sagastream.store.losses import Loss
from sagastream.store.quarantine import Quarantine
from sagastream.store.reach import Reach
from sagastream_bridge.inspection import graph_views, history_views

#: Among how many of the newest quarantined entries to look for those of a saga.
_QUARANTINE_LOOK: Final = 1000
#: Of a list, so many sagas are explained together; for each, so many entries of a stream are looked at at most.
_EXPLAINED_AT_ONCE: Final = 50
_LOOKED_AT: Final = 100
#: How far the last change of a saga may be ahead of the broker's clock before that is told, in milliseconds.
_AHEAD_MS: Final = 1_000
#: How long a list goes on to look for sagas until its page is full, in seconds.
_GOES_ON_S: Final = 2.0
_MAY_NOT_LOOK: Final = "this user may not look at the rest of the store; sagastream acl client prints one that may"
_AFTER_FAILOVER: Final = "see sagastream doctor --after-failover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One saga, and what explains where it is."""

    state: SagaState | None
    now_ms: int
    notes: list[str]
    causes: tuple[Cause, ...] = ()  # why it waits or, if there is no such saga, why it may not be there yet


@dataclass(slots=True, kw_only=True)
class Listing:
    """One page of sagas, and what there is to say of the store."""

    wanted: Filter
    is_first: bool  # whether the page is the first one
    page: Page
    now_ms: int
    live: int
    parked: int  # of those that are live
    ended: int
    unread: int  # requests that no worker has read yet
    quarantined: int
    standing: tuple[Cause, ...]  # why none of them moves, if that is so
    reach: Reach  # what could be reached of the store: the list is of that
    causes: list[tuple[Cause, ...]] = field(default_factory=list)  # why each saga of the page waits


def saga(broker: Broker, saga_id: str) -> Found:
    """Look up one saga, with all its values opened that can be. Raises UnreadableSaga, and SettingsError if the
    environment names a codec that cannot be used."""
    client = broker.client
    found = run(client, reach.look(layout.look(broker)))
    return reach.despite_refusals(client, found, lambda there: _saga(client, there, saga_id))


def _saga(client: "redis.Redis", found: Reach, saga_id: str) -> Found:
    if found.shared is not None:
        return _unexplained(client, found, saga_id, brief(found.shared))
    keys = found.keys
    if not run(client, may_look(keys)):
        return _unexplained(client, found, saga_id, _MAY_NOT_LOOK)
    state, causes, now_ms = asking.run(client, explained(keys, saga_id))
    if isinstance(state, UnreadableSaga):
        raise state
    number = keys.of(saga_id).number
    losses = [loss for loss in lineage.losses(client, keys) if loss.is_of(number)]
    if state is None:
        notes = [f"{loss.text}; {_AFTER_FAILOVER}" for loss in losses]
        notes += _quarantined(client, keys, saga_id)  # its saga_begin may have been refused
        return Found(state=None, now_ms=now_ms, notes=notes, causes=causes)
    notes = [
        f"{loss.text}: this saga may say other than what was done; {_AFTER_FAILOVER}"
        for loss in losses
        if state.begun_ms < loss.found_ms and not _is_older(state, loss)
    ]
    if (ahead_ms := max(state.begun_ms, state.updated_ms) - now_ms) > _AHEAD_MS:
        notes.append(f"the broker's clock was set back by {spoken(ahead_ms)} or more. {SET_BACK}")
    if not state.ended:
        notes += _quarantined(client, keys, saga_id)
    state, unopened = open_state(codec_of(None), state)
    notes += _sealed(unopened)
    return Found(state=state, now_ms=now_ms, notes=notes, causes=causes)


def _unexplained(client: "redis.Redis", found: Reach, saga_id: str, why_not: str) -> Found:
    """The same if what is known of the whole store cannot be read, and so not why the saga waits."""
    states, now_ms = sagas.read(client, found.keys, [saga_id])
    state = states[saga_id]
    if isinstance(state, UnreadableSaga):
        raise state
    notes = [f"why it waits cannot be told: {why_not}"]
    if state is not None:
        notes = [] if state.ended else notes
        state, unopened = open_state(codec_of(None), state)
        notes += _sealed(unopened)
    return Found(state=state, now_ms=now_ms, notes=notes)


def _sealed(unopened: Mapping[str, str]) -> list[str]:
    """What cannot be opened, for each reason. `unopened`: see open_state."""
    places: dict[str, list[str]] = {}
    for place, why in unopened.items():
        step, _, field = place.partition("/")
        what = f"{field} of step {step}" if step != "0" else f"what came with signal {field.partition('/')[2]}"
        places.setdefault(why, []).append(what if field else place)
    return [
        f"cannot open {', '.join(those)}: {why if len(those) == 1 else re.sub('^it is ', 'they are ', why)}"
        for why, those in places.items()
    ]


def _is_older(state: SagaState, loss: Loss) -> bool:
    """Whether it had ended before what is lost was written: its end is there, and nothing came after that."""
    return state.ended and loss.since_ms is not None and state.updated_ms < loss.since_ms


def as_json(found: Found, *, with_history: bool = False) -> str:
    """The SagaState of the protocol with all else that is known, as one JSON object."""
    state = found.state
    assert state is not None
    view = protocol_view(state)
    view |= {
        "reason": state.reason,
        "parked": state.parked,
        "parked_at": state.parked_at,
        "cancelling": state.cancelling,
        "not_undone": list(map(asdict, not_undone(state))),
        "waiting_for": None if state.ended else state.waiting_for,
        "why": _causes(found.causes),
        "notes": found.notes,
        "begun_at": iso(state.begun_ms),
        "updated_at": iso(state.updated_ms),
        "times_out_at": _iso(state.times_out_ms),
        "send_again_at": _iso(state.send_again_ms),
        "deadline_at": _iso(state.deadline_ms),
        "hard_deadline": state.hard_deadline,
        "interventions": [
            {"verb": done.verb, "reason": done.reason, "at": iso(done.at_ms), "actor": done.actor}
            for done in state.interventions
        ],
        "duplicates": state.duplicates,
        "version": state.version,
    }
    view |= graph_views.as_json(state)
    view["steps"] = [
        step | _step_details(known) | graph_views.step_as_json(state, number)
        for number, (step, known) in enumerate(zip(view["steps"], state.steps, strict=True), 1)
    ]
    if with_history:
        view["history"] = history_views.as_json(history(state))
    return json.dumps(view, indent=2)  # plain ASCII: nothing in it can act on a terminal


def row_as_json(state: SagaState, causes: Sequence[Cause] = ()) -> str:
    """The row of a saga in a list, as one line of JSON."""
    row = {
        "saga_id": state.saga_id,
        "status": str(state.status),
        "waiting_for": None if state.ended else state.waiting_for,
        "why": _causes(causes),
        "parked": state.parked,
        "parked_at": state.parked_at,
        "reason": state.reason,
        "not_undone": list(map(asdict, not_undone(state))),
        "begun_at": iso(state.begun_ms),
        "updated_at": iso(state.updated_ms),
        "attributes": state.attributes or {},
    }
    return json.dumps(row)


def page_as_json(page: Page, left_out: Collection[int] = ()) -> str:
    """What is to be known of a page besides its sagas, as one line of JSON. `left_out`: the partitions that could not
    be reached."""
    line: dict[str, Any] = {"cursor": page.cursor, "total": page.total, "total_is_exact": page.total_is_exact}
    if left_out:
        line["partitions_away"] = sorted(left_out)
    return json.dumps(line)


def listing(broker: Broker, wanted: Filter, limit: int, cursor: str | None) -> Listing:
    """One page of the sagas that are looked for, and what there is to say of the store. Raises ValueError for a cursor
    that is not of this search."""
    store = broker.client
    reached = run(store, damage.reached(layout.look(broker)))
    try:
        return reach.despite_refusals(store, reached, lambda there: _listing(store, there, wanted, limit, cursor))
    except redis.ResponseError as error:
        raise run(store, damage.explained(reached.keys, error)) from None


def _listing(store: "redis.Redis", reached: Reach, wanted: Filter, limit: int, cursor: str | None) -> Listing:
    keys, is_known = reached.keys, reached.shared is None
    page = opened_page(codec_of(None), _page(store, keys, wanted, limit, cursor))
    pipeline = store.pipeline(transaction=False)
    for partition in keys.partitions:
        pipeline.zcard(partition.timers)
        pipeline.zcard(partition.index(PARKED))
        pipeline.zcard(partition.ended)
        pipeline.xlen(partition.requests)
        pipeline.xlen(partition.interventions)
    counts = execute(pipeline)
    evidence = run(store, survey(keys, ())) if is_known else None
    found = Listing(
        wanted=wanted,
        is_first=cursor is None,
        page=page,
        now_ms=sagas.read(store, keys, [])[1],
        live=sum(counts[0::5]),
        parked=sum(counts[1::5]),
        ended=sum(counts[2::5]),
        unread=sum(counts[3::5]) + sum(counts[4::5]),
        quarantined=len(Quarantine(store, keys)) if is_known else 0,
        standing=() if evidence is None else evidence.broker or no_worker(evidence),
        reach=reached,
    )
    if evidence is None:
        found.causes = [() for _ in page.sagas]
        return found
    for at in range(0, len(page.sagas), _EXPLAINED_AT_ONCE):
        found.causes += asking.run(store, explain(keys, page.sagas[at : at + _EXPLAINED_AT_ONCE], _LOOKED_AT))
    return found


def service_in_place_of_command(broker: Broker, wanted: Filter) -> tuple[str, str] | None:
    """If a filter names a service where a command belongs: the part of the filter, and the service."""
    asked = [(part, name) for part in ("at", "parked") if (name := getattr(wanted, part)) is not None]
    if not asked:
        return None
    services = run(broker.client, published.services(layout.look(broker)))
    return next(((part, name) for part, name in asked if name in services), None)


def _page(store: "redis.Redis", keys: StoreKeys, wanted: Filter, limit: int, cursor: str | None) -> Page:
    """A page. If looking at as many sagas as one page may does not fill it, the search goes on for some time."""
    until = time.monotonic() + _GOES_ON_S
    page = run(store, find(keys, wanted, limit, cursor))
    while page.cursor is not None and len(page.sagas) < limit and time.monotonic() < until:
        more = run(store, find(keys, wanted, limit - len(page.sagas), page.cursor))
        page = replace(
            more,
            sagas=page.sagas + more.sagas,
            unreadable=page.unreadable + more.unreadable,
            looked_at=page.looked_at + more.looked_at,
        )
    return page


def _causes(causes: Sequence[Cause]) -> list[dict[str, Any]]:
    """Causes as JSON values; times as everywhere in JSON for people: ISO 8601, with names that end in _at."""
    return [
        {"kind": str(cause.kind), "text": cause.text, "do": list(cause.do)}
        | {
            name.removesuffix("_ms") + "_at" if name.endswith("_ms") else name: _iso(value)
            if name.endswith("_ms")
            else value
            for name, value in cause.facts.items()
        }
        for cause in causes
    ]


def _quarantined(client: "redis.Redis", keys: StoreKeys, saga_id: str) -> list[str]:
    """Why messages that name this saga were quarantined; looks at the newest ones only."""
    newest = islice(Quarantine(client, keys).newest_first(), _QUARANTINE_LOOK)
    about = (message for message in newest if message.saga_id == saga_id)
    return [
        f"{message.kind or 'a message'} was quarantined as {message.id}: {message.reason}"
        for message in islice(about, 5)
    ]


def _step_details(step: Step) -> dict[str, Any]:
    return {
        "service": step.definition.service,
        "kind": str(step.definition.kind),
        "attempt": step.attempt,
        "error": _value(step.error),
        "done_by": step.done_by,
        "unknown": step.unknown,
        "skipped": step.skipped,
        "sent_at": _iso(step.sent_ms),
        "answered_at": _iso(step.answered_ms),
        "late_at": _iso(step.late_ms),
        "compensation": step.compensation or step.definition.compensation or None,
        "compensation_attempt": step.compensation_attempt,
        "compensation_error": _value(step.compensation_error),
        "compensation_sent_at": _iso(step.compensation_sent_ms),
        "compensation_answered_at": _iso(step.compensation_answered_ms),
        "compensation_done_by": step.compensation_done_by,
    }


def _value(payload: bytes | None) -> Any:
    return None if payload is None else orjson.loads(payload)


def _iso(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)
