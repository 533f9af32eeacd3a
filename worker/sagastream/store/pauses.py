"""What is paused: services, and single commands of services. Workers send nothing of it until it is resumed.

One hash: a field for each, `service` or `service/command`; its value says in JSON who paused it, why and since when.

    redis-cli HGETALL saga:paused
"""

from collections.abc import Collection
from typing import Any, Final, NamedTuple

import msgspec
import redis
from msgspec import Struct

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_denied, is_wrong_type
from sagastream.broker.scripting import even_if_full
from sagastream.broker.wire import milliseconds, or_raise
from sagastream.core.messages import MAX_ACTOR_CHARS, MAX_REASON_CHARS, Code, is_id, is_service
from sagastream.core.parsing import operator_text
from sagastream.core.pauses import Pause, Resume, name_of_pause
from sagastream.errors import MalformedMessage, RequestRefused
from sagastream.store import heartbeat, operations
from sagastream.store.heartbeat import Kind
from sagastream.store.keys import StoreKeys

#: At most so many: each worker reads them about once a second.
MAX_PAUSES: Final = 1024
#: For how long a caller waits until the workers have read what it has written, and how often it looks, in seconds.
WAIT_S: Final = 5.0
LOOK_EVERY_S: Final = 0.1
#: Among so many of the newest operations it is looked for who has resumed what.
_LOOKED_BACK: Final = 1000
#: A worker reads what is paused along with its heartbeat, in one round trip. On a cluster, the two are answered by two
#: nodes, and one may be so much later, in milliseconds.
_ONE_ROUND_TRIP_MS: Final = 100


class _Value(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The value of a field, in JSON. Members that only a newer release writes are ignored."""

    reason: str = ""
    actor: str | None = None
    since_ms: int = 0


def read(keys: StoreKeys) -> Exchange[list[Pause]]:
    """All that is paused, by name. A name that makes no sense is left out. If a value makes none, its name counts:
    somebody wants that to be paused."""
    (answer,) = yield [("HGETALL", keys.paused)]
    if is_wrong_type(answer):
        return []
    words = iter(or_raise(answer))
    pauses = [_pause(name.decode(errors="backslashreplace"), value) for name, value in zip(words, words, strict=True)]
    return sorted([one for one in pauses if one is not None], key=lambda one: one.name)


def _pause(name: str, value: bytes) -> Pause | None:
    service, slash, command = name.partition("/")
    if not is_service(service) or (slash and not is_id(command)):
        return None
    try:
        said = msgspec.json.decode(value, type=_Value)
    except (msgspec.DecodeError, RecursionError):
        said = _Value()
    return Pause(service=service, command=command or None, reason=said.reason, actor=said.actor, since_ms=said.since_ms)


class Written(NamedTuple):
    """What was paused or resumed, and when."""

    pause: Pause
    at_ms: int
    before: Pause | None = None  # of a pause: the one that was there already
    left: tuple[Pause, ...] = ()  # of a resume: what else of the service stays paused


def pause(keys: StoreKeys, service: str, command: str | None, reason: str, actor: str | None) -> Exchange[Written]:
    """Pause a service, or one command of it. If it is paused, the reason and the actor are written anew.

    Raises MalformedMessage if a name, the reason or the actor is not valid, and RequestRefused if too much is paused.
    """
    name = _checked(service, command, reason, actor)
    clock, there, count = yield [("TIME",), ("HGET", keys.paused, name), ("HLEN", keys.paused)]
    known = _pause(name, or_raise(there) or b"")
    if there is None and or_raise(count) >= MAX_PAUSES:
        text = f"{MAX_PAUSES} services and commands are paused, the most that may be: pause whole services instead"
        raise RequestRefused(Code.PRECONDITION_FAILED, text)
    now_ms = milliseconds(or_raise(clock))
    since_ms = known.since_ms if known is not None and known.since_ms else now_ms
    value = msgspec.json.encode(_Value(reason=reason, actor=actor, since_ms=since_ms))
    (answer,) = yield [even_if_full(keys.paused, "HSET", keys.paused, name, value)]
    _allowed(answer)
    yield from operations.note(keys, "pause", name, actor=actor, reason=reason)
    written = Pause(service=service, command=command, reason=reason, actor=actor, since_ms=since_ms)
    return Written(written, now_ms, before=known if there is not None else None)


def resume(keys: StoreKeys, service: str, command: str | None, reason: str, actor: str | None) -> Exchange[Written]:
    """Resume what was paused by this very name. Returns the pause that has ended.

    Raises MalformedMessage as `pause` does, and RequestRefused if it is not paused.
    """
    name = _checked(service, command, reason, actor)
    there = {one.name: one for one in (yield from read(keys))}
    if (ended := there.get(name)) is None:
        raise RequestRefused(Code.PRECONDITION_FAILED, _not_paused(service, command, there.values()))
    # In one round trip: a worker that sees that the pause is over looks who has ended it.
    note = operations.words_of_note(keys, "resume", name, actor=actor, reason=reason)
    answer, noted, clock = yield [("HDEL", keys.paused, name), note, ("TIME",)]
    _allowed(answer)
    operations.noted(noted)
    left = tuple(one for one in there.values() if one.service == service and one is not ended)
    return Written(ended, milliseconds(or_raise(clock)), left=left)


def resumed(keys: StoreKeys) -> Exchange[list[Resume]]:
    """Who has last resumed what, as far back as it is looked for; nothing for a user who may not know it, since an
    earlier release has printed its rights."""
    try:
        newest = yield from operations.newest(keys, _LOOKED_BACK)
    except redis.ResponseError as error:
        if not is_denied(error):
            raise
        return []
    found: dict[str, Resume] = {}
    for one in newest:
        service, slash, command = one.what.partition("/")
        if one.verb == "resume" and one.what not in found and is_service(service) and (not slash or is_id(command)):
            found[one.what] = Resume(
                service=service, command=command or None, reason=one.reason, actor=one.actor or None, at_ms=one.at_ms
            )
    return list(found.values())


def _allowed(answer: Any) -> None:
    if isinstance(answer, redis.ResponseError) and is_denied(answer):
        text = f"only a user with the role operator may pause and resume; sagastream acl operator prints one ({answer})"
        raise redis.exceptions.NoPermissionError(text)
    or_raise(answer)


def _checked(service: str, command: str | None, reason: str, actor: str | None) -> str:
    """The name of the pause. Raises MalformedMessage."""
    if not is_service(service):
        raise MalformedMessage(f"{service!a:.140} is no name of a service: that is 1 to 128 of A-Z a-z 0-9 . _ -")
    if command is not None and not is_id(command):
        raise MalformedMessage(f"{command!a:.140} is no name of a command: that is 1 to 128 of A-Z a-z 0-9 . _ : -")
    operator_text(reason, "reason", MAX_REASON_CHARS, stays_with="the pause")
    if actor is not None:
        operator_text(actor, "actor", MAX_ACTOR_CHARS, stays_with="the pause")
    return name_of_pause(service, command)


def _not_paused(service: str, command: str | None, there: Collection[Pause]) -> str:
    of_it = [one.told for one in there if one.service == service]
    what = f"service {service}" if command is None else f"command {command} of service {service}"
    instead = f"; paused of it: {', '.join(of_it)}" if of_it else ""
    return f"{what} is not paused{instead}"


class Heard(Struct, frozen=True, kw_only=True):
    """What was paused or resumed, and which of the workers that run know it: their names."""

    pause: Pause
    before: Pause | None = None  # of a pause: the one that was there already, of which it keeps the time
    left: tuple[Pause, ...] = ()  # of a resume: what else of the service stays paused
    known: tuple[str, ...] = ()  # those that have read it
    late: tuple[str, ...] = ()  # those that have not yet: they hang, or are away from the broker
    ignorant: tuple[str, ...] = ()  # those of an earlier release: they send all the same


def heard(keys: StoreKeys, written: Written) -> Exchange[Heard]:
    """Which of the workers that are alive have read what was written. Each reads it along with its heartbeat."""
    (clock,) = yield [("TIME",)]
    now_ms = milliseconds(or_raise(clock))
    alive = [one for one in (yield from heartbeat.look(keys, ())) if one.kind == Kind.WORKER and one.is_alive]
    those = [one for one in alive if one.pauses]
    late = {one.name for one in those if now_ms - one.silent_ms < written.at_ms + _ONE_ROUND_TRIP_MS}
    return Heard(
        pause=written.pause,
        before=written.before,
        left=written.left,
        known=tuple(one.name for one in those if one.name not in late),
        late=tuple(sorted(late)),
        ignorant=tuple(one.name for one in alive if not one.pauses),
    )
