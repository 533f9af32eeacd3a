"""Reads the store for people: one saga with all that explains it, or many, one per line."""

import json
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import orjson
import redis

from sagastream.broker.connection import Broker
from sagastream.broker.wire import execute
from sagastream.client.blocking import SagaClient
from sagastream.client.listing import ListStatus
from sagastream.core.saga import SagaState, protocol_view
from sagastream.core.step_state import Step
from sagastream.errors import UnreadableSaga
from sagastream.store import heartbeat, layout, lineage, sagas
from sagastream.store.columns import iso
from sagastream.store.heartbeat import Kind
from sagastream.store.keys import StoreKeys
from sagastream.store.quarantine import Quarantine

#: Among how many of the newest quarantined entries to look for those of a saga.
_QUARANTINE_LOOK: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One saga, and what explains where it is."""

    state: SagaState | None
    now_ms: int
    notes: list[str]
    hint: str = ""  # if there is no such saga: why that may be


@dataclass(slots=True, kw_only=True)
class Listing:
    now_ms: int
    live: int
    ended: int
    unread: int  # requests that no worker has read yet
    quarantined: int
    worker_is_alive: bool
    states: list[SagaState] = field(default_factory=list)
    unreadable: list[UnreadableSaga] = field(default_factory=list)


def saga(broker: Broker, saga_id: str) -> Found:
    """Look up one saga. Raises UnreadableSaga."""
    client, keys = broker.client, layout.look(broker)
    states, now_ms = sagas.read(client, keys, [saga_id])
    state = states[saga_id]
    if isinstance(state, UnreadableSaga):
        raise state
    if state is None:
        unread = client.xlen(keys.of(saga_id).requests)
        hint = f" yet; requests that no worker has read: {unread}" if unread else ""
        hint += _no_worker(client, keys, bool(unread))
        hint += "".join(f"; {loss.text}" for loss in lineage.losses(client, keys))
        return Found(state=None, now_ms=now_ms, notes=[], hint=hint)
    notes = [
        f"{loss.text}: this saga may say other than what was done; see sagastream doctor --after-failover"
        for loss in lineage.losses(client, keys)
        if state.begun_ms < loss.found_ms
    ]
    if not state.ended and not state.parked:
        service = state.step.definition.service
        known = heartbeat.processes(client, keys, [service])
        theirs = [process for process in known if process.service == service]
        if not theirs:
            notes.append(f"no process of service {service} is listening")
        elif not any(process.is_alive for process in theirs):
            seconds = min(process.silent_ms for process in theirs) // 1000
            notes.append(f"no process of service {service} was heard for {seconds} s: it hangs or is dead")
        if not any(process.kind == Kind.WORKER and process.is_alive for process in known):
            notes.append("no worker is running")
    if not state.ended:
        notes += _quarantined(client, keys, saga_id)
    return Found(state=state, now_ms=now_ms, notes=notes)


def as_json(found: Found) -> str:
    """The SagaState of the protocol with all else that is known, as one JSON object."""
    state = found.state
    assert state is not None
    view = protocol_view(state)
    view |= {
        "reason": state.reason,
        "parked": state.parked,
        "cancelling": state.cancelling,
        "waiting_for": None if state.ended else state.waiting_for,
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
    view["steps"] = [step | _step_details(known) for step, known in zip(view["steps"], state.steps, strict=True)]
    return json.dumps(view, indent=2)  # plain ASCII: nothing in it can act on a terminal


def row_as_json(state: SagaState) -> str:
    """The row of a saga in a list, as one line of JSON."""
    row = {
        "saga_id": state.saga_id,
        "status": str(state.status),
        "waiting_for": None if state.ended else state.waiting_for,
        "parked": state.parked,
        "reason": state.reason,
        "begun_at": iso(state.begun_ms),
        "updated_at": iso(state.updated_ms),
    }
    return json.dumps(row)


def listing(broker: Broker, status: ListStatus | None, limit: int) -> Listing:
    """Sagas for a list, up to `limit`, and what cannot be read before the last of them."""
    store, keys = broker.client, layout.look(broker)
    pipeline = store.pipeline(transaction=False)
    for partition in keys.partitions:
        pipeline.zcard(partition.timers)
        pipeline.zcard(partition.ended)
        pipeline.xlen(partition.requests)
        pipeline.xlen(partition.interventions)
    counts = execute(pipeline)
    found = Listing(
        now_ms=sagas.read(store, keys, [])[1],
        live=sum(counts[0::4]),
        ended=sum(counts[1::4]),
        unread=sum(counts[2::4]) + sum(counts[3::4]),
        quarantined=len(Quarantine(store, keys)),
        worker_is_alive=heartbeat.worker_is_alive(store, keys),
    )
    for one in SagaClient(broker).list(status):
        if isinstance(one, UnreadableSaga):
            found.unreadable.append(one)
        else:
            found.states.append(one)
            if len(found.states) == limit:
                break
    return found


def _no_worker(client: "redis.Redis", keys: StoreKeys, matters: bool) -> str:
    if not matters or heartbeat.worker_is_alive(client, keys):
        return ""
    return ", and no worker is running: sagastream worker"


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
    }


def _value(payload: bytes | None) -> Any:
    return None if payload is None else orjson.loads(payload)


def _iso(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)
