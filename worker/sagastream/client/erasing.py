"""Erasing what the store knows of sagas: inputs, params, results, errors, reasons, actors and
attributes. Their course stays.

The hash stays, so that the saga cannot be begun a second time. The records of services stay, so that no command that
comes again has its effect again. Everything else of the saga is deleted, unless somebody still works on it: that is
named, and the caller erases again later.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, NamedTuple

import redis
from msgspec import Struct

from sagastream.broker.entries import REPLAYED
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_denied, is_wrong_type
from sagastream.broker.scripting import Script
from sagastream.broker.wire import or_raise
from sagastream.core.belonging import Belonging, Fields
from sagastream.core.erasure import ERASE, erasure, without_data
from sagastream.core.indexing import index_names
from sagastream.core.messages import MAX_ACTOR_CHARS, MAX_REASON_CHARS, Code, is_id
from sagastream.core.parsing import operator_text
from sagastream.core.saga import Intervention, SagaState
from sagastream.core.service_records import newer_format
from sagastream.core.steps import services_of
from sagastream.errors import MalformedMessage, RequestRefused, UnreadableSaga
from sagastream.store import indexes, published, reach, saga_hash
from sagastream.store.columns import iso
from sagastream.store.keys import Partition, StoreKeys, moving
from sagastream.store.quarantine import shown_id
from sagastream.store.rewriting import rewritten
from sagastream.store.sagas import load
from sagastream.store.scanning import fields_like, keys_like

#: An answer that a service has recorded, with a result or an error.
_ANSWER: Final = re.compile(rb"(ok|failed) .+", re.DOTALL)

#: How many entries a page has: at first and while they are large, and while they are small.
_FIRST_PAGE: Final = 10
_PAGE: Final = 1000
_PAGE_BYTES: Final = 1 << 20
#: How many entries to delete in one call.
_AT_ONCE: Final = 1000
#: How often to try to change a hash that others change meanwhile.
_TRIES: Final = 5

_REPLACE: Final = Script("replace")
_DROP_UNREAD: Final = Script("drop_unread")


class Erased(Struct, kw_only=True):
    """What was erased, of one saga or of several, and what could not be."""

    hashes: int = 0  # how many sagas were erased that had not been before, or had got something since
    records: int = 0  # how many records of services had a result or an error
    commands: int = 0  # how many commands were deleted that nobody had read
    quarantined: int = 0  # how many quarantined messages were deleted
    events: int = 0  # how many events were deleted
    before: dict[str, Intervention] = {}  # sagas that had been erased before, by their ids: when, by whom and why
    #: Ids of which there is no saga: it has expired, or the id is wrong. By each: how many records and messages of it
    #: were found all the same.
    unknown: dict[str, int] = {}
    refused: dict[str, RequestRefused | UnreadableSaga] = {}  # sagas of which nothing was erased, by their ids
    left: list[str] = []  # what is still there, each with what to do; erase again then

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for is erased."""
        return not self.left and not self.refused

    @property
    def was_any(self) -> bool:
        """Whether something was erased, now or before: then files and copies elsewhere may still hold it."""
        counts = (self.hashes, self.records, self.commands, self.quarantined, self.events)
        return any(counts) or bool(self.before)


def erase(keys: StoreKeys, saga_ids: Collection[str], reason: str, actor: str | None) -> Exchange[Erased]:
    """Erase sagas that have ended, or that have no hash any more. See SagaClient.erase_many."""
    try:
        return (yield from _erase(keys, saga_ids, reason, actor))
    except redis.ResponseError as error:
        if not is_denied(error):
            raise
        text = f"only a user with the role operator may erase; sagastream acl operator prints one ({error})"
        raise redis.exceptions.NoPermissionError(text) from None


def _check(saga_ids: Collection[str], reason: str, actor: str | None) -> None:
    for saga_id in saga_ids:
        if not is_id(saga_id):
            what = "an id is 1 to 128 characters of A-Z a-z 0-9 . _ : -"
            raise MalformedMessage(f"{saga_id!a:.140} is no id of a saga, so nothing was erased: {what}")
    operator_text(reason, "reason", MAX_REASON_CHARS)
    if actor is not None:
        operator_text(actor, "actor", MAX_ACTOR_CHARS)


def _erase(whole: StoreKeys, saga_ids: Collection[str], reason: str, actor: str | None) -> Exchange[Erased]:
    _check(saga_ids, reason, actor)
    erased = Erased()
    reached = yield from reach.look(whole)
    if reached.shared is not None:
        raise reached.shared  # nobody knows the services
    keys = reached.keys
    if reached.away:
        missed = {saga_id for saga_id in saga_ids if keys.of(saga_id).number in reached.away}
        saga_ids = [saga_id for saga_id in saga_ids if saga_id not in missed]
        erased.left += [f"{what}; when it is back, erase all again" for what in reached.told()]
        if missed:
            erased.left.append(f"nothing was erased of {_named(sorted(missed))}: their partitions are left out")
    services = set((yield from published.found_services(keys)))
    begun: dict[str, int | None] = {}
    # The hashes first: a worker that holds a saga as it was cannot tell of it any more.
    for saga_id in dict.fromkeys(saga_ids):
        try:
            state = yield from _erase_hash(keys, saga_id, reason, actor, erased)
        except (RequestRefused, UnreadableSaga) as error:
            erased.refused[saga_id] = error
            continue
        kept = index_names(state and without_data(state))
        yield from indexes.leave_others(keys.of(saga_id), saga_id, kept)
        begun[saga_id] = None if state is None else state.begun_ms
        services |= services_of(step.definition for step in state.steps) if state else set()
    found: Counter[str] = Counter()
    for saga_id, begun_ms in begun.items():
        found[saga_id] += yield from _erase_records(keys.of(saga_id), sorted(services), saga_id, begun_ms, erased)
    if begun:
        for partition in keys.partitions:  # somebody may have sent a message to the wrong one
            found += yield from _erase_messages(partition, sorted(services), Belonging(begun), erased)
    erased.unknown |= {saga_id: found[saga_id] for saga_id, begun_ms in begun.items() if begun_ms is None}
    return erased


def granted(erased: Erased) -> Erased:
    """What was erased of one saga. Raises what was the matter if it was refused."""
    for error in erased.refused.values():
        raise error
    return erased


def _erase_messages(
    partition: Partition, services: list[str], sagas: Belonging, erased: Erased
) -> Exchange[Counter[str]]:
    """Erase what the streams of a partition hold of these sagas. Returns how many entries of each were found."""
    found: Counter[str] = Counter()
    inward = [partition.requests, partition.interventions, *map(partition.replies, services)]
    for stream in inward:
        if entries := (yield from _matching(stream, sagas.of_message)):
            found.update(_owners(entries))
            # A reply says what became of a step, so it is not thrown away.
            erased.left.append(_held(stream, entries, len(entries), "which a worker takes", "one has run"))
    commands = [partition.commands(service) for service in services]
    for service, stream in zip(services, commands, strict=True):
        found.update((yield from _drop_commands(stream, service, sagas, erased)))
    aside = {partition.quarantine: "", **{partition.quarantine_of(service): service for service in services}}
    for stream, service in aside.items():
        both = yield from _matching(stream, sagas.of_quarantined, sagas.is_undecided)
        entries = [entry for entry in both if entry.sagas]
        found.update(_owners(entries))
        erased.quarantined += yield from _delete(stream, entries)
        if undecided := [shown_id(partition, service, entry.id.decode()) for entry in both if not entry.sagas]:
            erased.left.append(_undecided(undecided))
    entries = yield from _matching(partition.events, sagas.of_event)
    found.update(_owners(entries))
    erased.events += yield from _delete(partition.events, entries)
    others = [*inward, *commands, *aside]
    answers = yield [("EXISTS", moving(stream)) for stream in others]
    for stream, answer in zip(others, answers, strict=True):
        if or_raise(answer):
            text = f"{moving(stream)}: a repair was interrupted; sagastream doctor --repair ends it, then erase again"
            erased.left.append(text)
    for stream in (partition.events, *others):
        if (why := (yield from rewritten(stream))) is not None:
            erased.left.append(why)
    return found


def _erase_hash(
    keys: StoreKeys, saga_id: str, reason: str, actor: str | None, erased: Erased
) -> Exchange[SagaState | None]:
    """Returns the saga as it was; None: it has no hash."""
    for _ in range(_TRIES):
        states, now_ms = yield from load(keys, [saga_id])
        state = states[saga_id]
        if state is None:
            return None
        if isinstance(state, UnreadableSaga):
            raise state
        if not state.ended:
            raise RequestRefused(Code.PRECONDITION_FAILED, _not_ended(state))
        bare, before = without_data(state), erasure(state)
        if bare == state and before is not None:
            erased.before[saga_id] = before
            return state
        done = Intervention(verb=ERASE, reason=reason, at_ms=now_ms, actor=actor)
        seen = ["version", str(state.version), "updated_at", iso(state.updated_ms)]
        # The version counts it, so no worker writes over it what it had read before.
        words: list[Any] = [*seen, *saga_hash.changed_fields(state, bare.with_intervention(done))]
        for number, step in enumerate(bare.steps, 1):
            words += saga_hash.data_of_definition(number, step.definition)
        if (yield from _REPLACE.call([keys.saga(saga_id)], [len(seen), *words])):
            erased.hashes += 1
            return state
    raise RequestRefused(Code.PRECONDITION_FAILED, f"saga {saga_id} changes again and again: erase it later")


def _not_ended(state: SagaState) -> str:
    what = f"saga {state.saga_id} has not ended, and needs what would be erased"
    if state.parked:
        how = f"sagastream abandon {state.saga_id} --reason TEXT ends it as it is; sagastream show says what else does"
    elif state.may_be_cancelled:
        how = f"wait for its end; sagastream cancel {state.saga_id} --reason TEXT has it undone"
    else:
        how = f"wait for its end; sagastream show {state.saga_id} says what it waits for"
    return f"{what}: {how}"


def _erase_records(
    partition: Partition, services: list[str], saga_id: str, begun_ms: int | None, erased: Erased
) -> Exchange[int]:
    """Take the results and errors out of the records of services. The records stay, and say how each command ended.
    Returns how many were there."""
    if begun_ms is None:
        hashes = yield from keys_like(partition.records("*"))
    else:
        hashes = [partition.done(service, begun_ms).encode() for service in services]
    number = 0
    for key in hashes:
        for field, record in (yield from fields_like(key, f"{saga_id}/*")).items():
            number += 1
            if newer_format(record) is not None:
                text = f"{key.decode()} has a record that only a newer release can read: erase with that release"
                erased.left.append(text)
            elif (found := _ANSWER.fullmatch(record)) is not None:
                change = [2, field, record, field, found[1] + b" "]
                erased.records += yield from _REPLACE.call([key.decode()], change)
    return number


def _drop_commands(stream: str, service: str, sagas: Belonging, erased: Erased) -> Exchange[Iterator[str]]:
    """Delete the commands that no process has read. The others are left: their processes may have effects to undo.
    Returns the sagas of all of them."""
    entries = yield from _matching(stream, sagas.of_message)
    dropped = 0
    for ids in _slices([entry.id for entry in entries if not entry.is_replayed]):
        dropped += yield from _DROP_UNREAD.call([stream], [service, *ids])
    erased.commands += dropped
    if number := len(entries) - dropped:
        still = {entry.id for entry in (yield from _matching(stream, sagas.of_message))}
        held = [entry for entry in entries if entry.id in still] or entries
        who = f"which a process of {service} has read"
        then = "it has answered; sagastream doctor names one that hangs"
        erased.left.append(_held(stream, held, number, who, then))
    return _owners(entries)


def _held(stream: str, entries: Sequence["_Entry"], number: int, by: str, then: str) -> str:
    """What is told of entries that are still in use."""
    sagas = list(dict.fromkeys(_owners(entries)))
    names = _named(sagas)
    what = "entry" if number == 1 else "entries"
    return f"{stream} still holds {number} {what} of {names}, {by}: erase {names} again when {then}"


def _named(sagas: Sequence[str]) -> str:
    return ", ".join(sagas[:5]) + (f" and {len(sagas) - 5} more" if len(sagas) > 5 else "")


def _undecided(ids: Sequence[str]) -> str:
    """What is told of quarantined messages that may belong to anybody."""
    shown = " ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
    what = "sagastream quarantine show tells what is left of it, drop deletes it"
    return f"a quarantined message was cut, so that nobody can tell whose it is: {what}: {shown}"


class _Entry(NamedTuple):
    """An entry of a stream that belongs to some of the sagas."""

    id: bytes
    is_replayed: bool  # whether it was put back into its stream: somebody may have read it before
    sagas: set[str]  # empty: nobody can tell


def _owners(entries: Sequence[_Entry]) -> Iterator[str]:
    """The sagas to which these entries belong; of each entry each."""
    return (saga_id for entry in entries for saga_id in sorted(entry.sagas))


def _delete(stream: str, entries: Sequence[_Entry]) -> Exchange[int]:
    """Delete the entries of a stream that nobody reads as a group. Returns how many."""
    deleted = 0
    for ids in _slices([entry.id for entry in entries]):
        (answer,) = yield [("XDEL", stream, *ids)]
        deleted += or_raise(answer)
    return deleted


def _matching(
    stream: str, owners: Callable[[Fields], set[str]], is_undecided: Callable[[Fields], bool] = lambda _: False
) -> Exchange[list[_Entry]]:
    """Those entries of a stream that belong to the sagas, or may. A key that is not a stream has none."""
    first, count = b"-", _FIRST_PAGE
    found: list[_Entry] = []
    while True:
        (answer,) = yield [("XRANGE", stream, first, b"+", "COUNT", count)]
        page: Any = [] if is_wrong_type(answer) else or_raise(answer)
        for entry_id, words in page:
            fields = dict(zip(words[::2], words[1::2], strict=True))
            if (sagas := owners(fields)) or is_undecided(fields):
                found.append(_Entry(entry_id, REPLAYED in fields, sagas))
        if not page:
            return found
        first = b"(" + page[-1][0]
        is_small = sum(len(word) for _, words in page for word in words) < _PAGE_BYTES
        count = min(2 * count, _PAGE) if is_small else _FIRST_PAGE


def _slices(ids: list[bytes]) -> Iterator[list[bytes]]:
    return (ids[at : at + _AT_ONCE] for at in range(0, len(ids), _AT_ONCE))
