"""What services publish about themselves: that they exist, their commands, and the compensation of each.

A field of the hash is a command, its value is the compensation that undoes it; it is empty if there is nothing to undo.
A command that does not say has the value `?`. A compensation that is not, or no longer, the value of a command is the
value of a field with its name in brackets. So the hash names all that some release of the service has, and processes
of another release can tell what is not for them (service/releases.py).
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import redis

from sagastream.broker.exchange import Exchange, run
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.scripting import even_if_full
from sagastream.broker.wire import or_raise, round_trip
from sagastream.core.messages import is_id, is_service
from sagastream.core.sending import Published
from sagastream.store.keys import StoreKeys
from sagastream.store.scanning import keys_like

#: At most this many services in a store: a worker reads a stream of replies for each.
MAX_SERVICES: Final = 1024

#: The value of a command that does not say what undoes it. It is not a name, so it is passed over as a compensation.
UNSAID: Final = "?"


def publish(
    client: "redis.Redis",
    keys: StoreKeys,
    service: str,
    undone_by: Mapping[str, str | None],
    *,
    commands: Collection[str] = (),
    compensations: Collection[str] = (),
) -> list[str]:
    """Publish a service, and what it has. What was published before stays, and so does the compensation of a command
    that needs none by now: sagas that began with an older release of the service may still have to be undone. Returns
    the keys that hold something of another type, so that nothing could be published there.

    Args:
        undone_by: the compensation of each command that says it (None: it needs none).
        commands: the names of all commands.
        compensations: the names of all compensations.
    """
    before = all_of(client, keys, service)
    # Those of another release too, which runs beside this one or ran before it.
    others = {before.get(name, "") for name, undo in undone_by.items() if before.get(name) != undo}
    unnamed = (others | set(compensations)).difference(undone_by.values())
    # If another release undoes a command, this one does not take that away: sagas of the other may be under way.
    needless = {name for name, undo in undone_by.items() if not undo and not _is_undo(before.get(name, ""), name)}
    fields = {name: undo for name, undo in undone_by.items() if undo}
    fields |= dict.fromkeys(needless & before.keys(), "")
    fields |= {f"({name})": name for name in unnamed if is_id(name)}
    key = keys.published(service)
    writing: list[tuple[str, ...]] = [(keys.services, "SADD", keys.services, service)]
    if fields:
        writing.append((key, "HSET", key, *(word for pair in fields.items() for word in pair)))
    # What another release, or a person, says at this moment stands.
    new = dict.fromkeys(needless - before.keys(), "") | dict.fromkeys(set(commands).difference(undone_by), UNSAID)
    writing += [(key, "HSETNX", key, name, undo) for name, undo in new.items()]
    unusable: dict[str, None] = {}
    answers = round_trip(client, [even_if_full(*words) for words in writing])
    for (written, *_), answer in zip(writing, answers, strict=True):
        if is_wrong_type(answer):
            unusable[written] = None
        else:
            or_raise(answer)
    return list(unusable)


def _is_undo(name: str, command: str) -> bool:
    """Whether this can be the compensation of a command. A command does not undo itself: its `_ok` would count as that
    of its undo."""
    return is_id(name) and name != command


def all_of(client: "redis.Redis", keys: StoreKeys, service: str) -> dict[str, str]:
    """The whole hash of a service, which may hold anything; empty if it is not a hash."""
    try:
        found: Any = client.hgetall(keys.published(service))
    except redis.ResponseError as error:
        if is_wrong_type(error):
            return {}
        raise
    return {name.decode(errors="replace"): undo.decode(errors="replace") for name, undo in found.items()}


def claim_for_samples(client: "redis.Redis", keys: StoreKeys, names: Collection[str]) -> str | None:
    """Say that the services of these names are samples; unless a service that is none has one of the names, or commands
    wait for one. Nor if the samples are not there yet, and services of others are. Then nothing is written, and the
    name of such a service is returned."""
    members: Any = client.smembers(keys.samples)
    there = {name.decode(errors="replace") for name in members}
    for name in names:
        streams = [partition.commands(name) for partition in keys.partitions]
        if name not in there and client.exists(keys.published(name), *streams):
            return name
    others = () if there.issuperset(names) else run(client, services(keys))
    for name in others:
        if name not in there and client.exists(keys.published(name)):
            return name
    or_raise(*round_trip(client, [even_if_full(keys.samples, "SADD", keys.samples, *names)]))
    return None


def claim(client: "redis.Redis", keys: StoreKeys, name: str) -> bool:
    """Say that the service of this name is no sample. Returns whether it was one."""
    return bool(client.srem(keys.samples, name))


def services(keys: StoreKeys) -> Exchange[list[str]]:
    """The names of all services of the store, sorted. What sagastream did not write is left out."""
    (answer,) = yield [("SMEMBERS", keys.services)]
    if is_wrong_type(answer):
        return []  # the value at its key is not a set
    names = [name.decode(errors="backslashreplace") for name in or_raise(answer)]
    return sorted(filter(is_service, names))


def found_services(keys: StoreKeys) -> Exchange[list[str]]:
    """The names of all services that the store names, or that have a key in it, sorted: somebody may have deleted the
    names. It searches the names of all keys."""
    found = set((yield from services(keys)))
    for key in (yield from keys_like(keys.published("*"))):
        found.add(_text(key).removeprefix(keys.published("")))
    # One search for all partitions, unless each is on a node of its own.
    bases = [partition.base for partition in keys.partitions] if keys.apart else [f"{keys.prefix}:{{*}}:"]
    there: list[bytes] = []
    for base in bases:
        there += yield from keys_like(f"{base}[crq]*:*")  # commands, replies, quarantine
    for key in there:
        name = _text(key)
        if (partition := keys.partition_of(name)) is not None:
            what, _, service = name.removeprefix(partition.base).partition(":")
            if what in ("commands", "replies", "quarantine"):
                found.add(service)
    return sorted(filter(is_service, found))


def add_services(keys: StoreKeys, names: Collection[str]) -> Exchange[None]:
    """Add services to those of the store, so that every worker reads their replies."""
    (answer,) = yield [even_if_full(keys.services, "SADD", keys.services, *sorted(names))]
    if not is_wrong_type(answer):
        or_raise(answer)


def read(client: "redis.Redis", keys: StoreKeys, services: Collection[str]) -> Published:
    """See `look`."""
    return run(client, look(keys, services))


def look(keys: StoreKeys, services: Collection[str]) -> Exchange[dict[str, Mapping[str, str | None]]]:
    """The commands that these services publish, each with its compensation. One that does not say is left out."""
    answers = yield [("HGETALL", keys.published(service)) for service in services]
    found: dict[str, Mapping[str, str | None]] = {}
    for service, answer in zip(services, answers, strict=True):
        if is_wrong_type(answer):
            continue  # the value at its key is not a hash
        words = [word.decode(errors="replace") for word in or_raise(answer)]
        pairs = zip(words[::2], words[1::2], strict=True)
        found[service] = {
            command: undo or None for command, undo in pairs if is_id(command) and (not undo or _is_undo(undo, command))
        }
    return found


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
