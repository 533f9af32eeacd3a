"""Erasing what the store knows of sagas: params, results, errors, reasons and actors. Their course stays without them.

The hash stays, so that the saga cannot be begun a second time. The records of services stay, so that no command that
comes again has its effect again. Everything else of the saga is deleted, unless somebody still works on it: that is
named, and the caller erases again later.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from sagastream.broker.entries import REPLAYED
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.scripting import Script
from sagastream.broker.wire import Words, or_raise
from sagastream.core.messages import MAX_ACTOR_CHARS, MAX_REASON_CHARS, Code, is_id
from sagastream.core.parsing import operator_text
from sagastream.core.saga import Intervention, SagaState
from sagastream.core.service_records import newer_format
from sagastream.core.step_state import Step
from sagastream.core.strict_json import decode_any
from sagastream.errors import MalformedMessage, RequestRefused, UnreadableSaga
from sagastream.store import published, saga_hash
from sagastream.store.columns import iso, step_fields
from sagastream.store.keys import Partition, StoreKeys, moving
from sagastream.store.rewriting import rewritten
from sagastream.store.sagas import load

#: The verb of the intervention that stays with an erased saga.
ERASE: Final = "erase"
#: What stands in the place of a text.
ERASED: Final = "(erased)"
_NO_PARAMS: Final = b"null"
#: An answer that a service has recorded, with a result or an error.
_ANSWER: Final = re.compile(rb"(ok|failed) .+", re.DOTALL)
#: What may be the id of a saga in a text.
_ID: Final = re.compile(rb"[A-Za-z0-9._:-]+")

#: How many entries a page has: at first and while they are large, and while they are small.
_FIRST_PAGE: Final = 10
_PAGE: Final = 1000
_PAGE_BYTES: Final = 1 << 20
#: How many fields of a hash to look at in one call, and how many entries to delete.
_AT_ONCE: Final = 1000
#: How often to try to change a hash that others change meanwhile.
_TRIES: Final = 5

_REPLACE: Final = Script("replace")
_DROP_UNREAD: Final = Script("drop_unread")

_Fields = dict[bytes, bytes]
_IsOf = Callable[[_Fields], bool]


class Erased(Struct, kw_only=True):
    """What was erased, of one saga or of several, and what could not be."""

    hashes: int = 0  # how many sagas had something to erase in their hashes
    records: int = 0  # how many records of services had a result or an error
    commands: int = 0  # how many commands were deleted that nobody had read
    quarantined: int = 0  # how many quarantined messages were deleted
    events: int = 0  # how many events were deleted
    refused: dict[str, RequestRefused | UnreadableSaga] = {}  # sagas of which nothing was erased, by their ids
    left: list[str] = []  # what is still there, each with what to do; erase again then

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for is erased."""
        return not self.left and not self.refused


def erase(keys: StoreKeys, saga_ids: Collection[str], reason: str, actor: str | None) -> Exchange[Erased]:
    """Erase sagas that have ended, or that have no hash any more. See SagaClient.erase_many."""
    for saga_id in saga_ids:
        if not is_id(saga_id):
            raise MalformedMessage("saga_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    operator_text(reason, "reason", MAX_REASON_CHARS)
    if actor is not None:
        operator_text(actor, "actor", MAX_ACTOR_CHARS)
    erased = Erased()
    services = set((yield from published.services(keys)))
    begun: dict[Partition, dict[str, int | None]] = {}
    # The hashes first: a worker that holds a saga as it was cannot tell of it any more.
    for saga_id in dict.fromkeys(saga_ids):
        try:
            state, had_any = yield from _erase_hash(keys, saga_id, reason, actor)
        except (RequestRefused, UnreadableSaga) as error:
            erased.refused[saga_id] = error
            continue
        erased.hashes += had_any
        begun.setdefault(keys.of(saga_id), {})[saga_id] = None if state is None else state.begun_ms
        services |= {step.definition.service for step in state.steps} if state else set()
    for partition, sagas in begun.items():
        yield from _erase_elsewhere(partition, sorted(services), sagas, erased)
    return erased


def granted(erased: Erased) -> Erased:
    """What was erased of one saga. Raises what was the matter if it was refused."""
    for error in erased.refused.values():
        raise error
    return erased


def _erase_elsewhere(
    partition: Partition, services: list[str], sagas: Mapping[str, int | None], erased: Erased
) -> Exchange[None]:
    """Erase all but the hashes of these sagas of one partition. `sagas`: when each began; None: it has no hash."""
    is_of = _is_of(sagas)
    for saga_id, begun_ms in sagas.items():
        yield from _erase_records(partition, services, saga_id, begun_ms, erased)
    inward = [partition.requests, partition.interventions, *map(partition.replies, services)]
    for stream in inward:
        if found := (yield from _matching(stream, is_of)):
            # A reply says what became of a step, so it is not thrown away.
            text = f"{len(found)} of {stream}: a worker takes them, so erase again when one has run"
            erased.left.append(text)
    for service in services:
        yield from _drop_commands(partition, service, is_of, erased)
    aside = [partition.quarantine, *map(partition.quarantine_of, services)]
    for stream in aside:
        erased.quarantined += yield from _delete(stream, is_of)
    erased.events += yield from _delete(partition.events, is_of)
    streams = [*inward, *map(partition.commands, services), *aside]
    answers = yield [("EXISTS", moving(stream)) for stream in streams]
    for stream, answer in zip(streams, answers, strict=True):
        if or_raise(answer):
            text = f"{moving(stream)}: a repair was interrupted; sagastream doctor --repair ends it, then erase again"
            erased.left.append(text)
    since_ms = min((begun_ms or 0 for begun_ms in sagas.values()), default=0)
    others = dict.fromkeys((*inward, *map(partition.commands, services), *aside), 0)
    for stream, oldest_ms in {partition.events: since_ms, **others}.items():
        if (why := (yield from rewritten(stream, oldest_ms))) is not None:
            erased.left.append(why)


def without_data(state: SagaState) -> SagaState:
    """The saga without what anybody has given it besides names: params, results, errors, reasons and actors. Pure."""
    return replace(
        state,
        steps=tuple(map(_step_without_data, state.steps)),
        reason=state.reason and ERASED,
        cancelling=state.cancelling and ERASED,
        interventions=tuple(map(_intervention_without_data, state.interventions)),
    )


def _step_without_data(step: Step) -> Step:
    definition = replace(step.definition, params=_NO_PARAMS)
    return replace(step, definition=definition, result=None, error=None, compensation_error=None)


def _intervention_without_data(done: Intervention) -> Intervention:
    return done if done.verb == ERASE else replace(done, reason=ERASED, actor=done.actor and ERASED)


def _erase_hash(
    keys: StoreKeys, saga_id: str, reason: str, actor: str | None
) -> Exchange[tuple[SagaState | None, bool]]:
    """Returns the saga as it was (None: it has no hash), and whether something was erased."""
    for _ in range(_TRIES):
        states, now_ms = yield from load(keys, [saga_id])
        state = states[saga_id]
        if state is None:
            return None, False
        if isinstance(state, UnreadableSaga):
            raise state
        if not state.ended:
            raise RequestRefused(Code.PRECONDITION_FAILED, _not_ended(state))
        bare = without_data(state)
        if bare == state:
            return state, False
        done = Intervention(verb=ERASE, reason=reason, at_ms=now_ms, actor=actor)
        seen = ["version", str(state.version), "updated_at", iso(state.updated_ms)]
        # The version counts it, so no worker writes over it what it had read before.
        words: list[Any] = [*seen, *saga_hash.changed_fields(state, bare.with_intervention(done))]
        for number in range(1, len(state.steps) + 1):
            words += (step_fields(number).needed[2], _NO_PARAMS)
        if (yield from _REPLACE.call([keys.saga(saga_id)], [len(seen), *words])):
            return state, True
    raise RequestRefused(Code.PRECONDITION_FAILED, f"saga {saga_id} changes again and again: erase it later")


def _not_ended(state: SagaState) -> str:
    how = f"sagastream skip, retry or abandon {state.saga_id}" if state.parked else f"sagastream cancel {state.saga_id}"
    return (
        f"saga {state.saga_id} has not ended, and needs what would be erased: end it first ({how}), or wait for its end"
    )


def _erase_records(
    partition: Partition, services: list[str], saga_id: str, begun_ms: int | None, erased: Erased
) -> Exchange[None]:
    """Take the results and errors out of the records of services. The records stay, and say how each command ended."""
    if begun_ms is None:
        hashes = yield from _scanned(("SCAN",), ("MATCH", partition.records("*"), "COUNT", _AT_ONCE))
    else:
        hashes = [partition.done(service, begun_ms).encode() for service in services]
    for key in hashes:
        words = yield from _scanned(("HSCAN", key), ("MATCH", f"{saga_id}/*", "COUNT", _AT_ONCE))
        for field, record in dict(zip(words[::2], words[1::2], strict=True)).items():
            if newer_format(record) is not None:
                text = f"{key.decode()} has a record that only a newer release can read: erase with that release"
                erased.left.append(text)
            elif (found := _ANSWER.fullmatch(record)) is not None:
                change = [2, field, record, field, found[1] + b" "]
                erased.records += yield from _REPLACE.call([key.decode()], change)


def _scanned(command: Words, options: Words) -> Exchange[list[bytes]]:
    """All that SCAN or HSCAN finds. In a key that is not a hash, they find nothing."""
    cursor: bytes = b"0"
    found: list[bytes] = []
    while True:
        (answer,) = yield [(*command, cursor, *options)]
        if is_wrong_type(answer):
            return []
        cursor, page = or_raise(answer)
        found += page
        if cursor == b"0":
            return found


def _drop_commands(partition: Partition, service: str, is_of: _IsOf, erased: Erased) -> Exchange[None]:
    """Delete the commands that no process has read. The others are left: their processes may have effects to undo."""
    stream = partition.commands(service)
    found = yield from _matching(stream, is_of)
    dropped = 0
    for ids in _slices([entry_id for entry_id, is_replayed in found if not is_replayed]):
        dropped += yield from _DROP_UNREAD.call([stream], [service, *ids])
    erased.commands += dropped
    if held := len(found) - dropped:
        erased.left.append(f"{held} of {stream}: a process has read them, so erase again when {service} has answered")


def _delete(stream: str, is_of: _IsOf) -> Exchange[int]:
    """Delete the entries of a stream that nobody reads as a group. Returns how many."""
    deleted = 0
    for ids in _slices([entry_id for entry_id, _ in (yield from _matching(stream, is_of))]):
        (answer,) = yield [("XDEL", stream, *ids)]
        deleted += or_raise(answer)
    return deleted


def _matching(stream: str, is_of: _IsOf) -> Exchange[list[tuple[bytes, bool]]]:
    """The ids of those entries of a stream, each with whether it was put back into it. A key that is not a stream
    has none."""
    first, count = b"-", _FIRST_PAGE
    found: list[tuple[bytes, bool]] = []
    while True:
        (answer,) = yield [("XRANGE", stream, first, b"+", "COUNT", count)]
        page: Any = [] if is_wrong_type(answer) else or_raise(answer)
        for entry_id, words in page:
            fields = dict(zip(words[::2], words[1::2], strict=True))
            if is_of(fields):
                found.append((entry_id, REPLAYED in fields))
        if not page:
            return found
        first = b"(" + page[-1][0]
        is_small = sum(len(word) for _, words in page for word in words) < _PAGE_BYTES
        count = min(2 * count, _PAGE) if is_small else _FIRST_PAGE


def _is_of(saga_ids: Collection[str]) -> _IsOf:
    """Whether an entry belongs to one of these sagas. A body that is not a JSON object with the id of a saga belongs to
    each saga that it names."""
    names = {saga_id.encode() for saga_id in saga_ids}

    def is_of(fields: _Fields) -> bool:
        if fields.get(b"saga_id") in names:
            return True
        body = fields.get(b"body", b"")
        is_named = not names.isdisjoint(_ID.findall(body))
        if not is_named and b"\\u" not in body:  # an id may be written with escapes
            return False
        value = decode_any(body)
        if isinstance(value, dict) and isinstance(saga_id := value.get("saga_id"), str):
            return saga_id in saga_ids
        return is_named

    return is_of


def _slices(ids: list[bytes]) -> Iterator[list[bytes]]:
    return (ids[at : at + _AT_ONCE] for at in range(0, len(ids), _AT_ONCE))
