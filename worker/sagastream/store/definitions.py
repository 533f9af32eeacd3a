"""The definitions of a store: each with all its versions, one of which is current.

A version is written once, and never changes. So whoever reads it needs no script, and two deployments at once can only
differ in which version is current at the end. Sagas hold their own steps: nothing here changes one that has begun.

    3             {"definition": {...}, "sha256": ..., "deployed_at": ..., "actor": ...}
    current       3
    since, actor  when `current` was last set, and who did it
"""

from collections.abc import Sequence
from typing import Any, Final

import orjson
from msgspec import Struct

from sagastream.broker import wire
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.wire import or_raise
from sagastream.core.begin_parsing import MAX_VERSION
from sagastream.core.definition import SagaDefinition, parse
from sagastream.core.messages import is_service
from sagastream.errors import DefinitionError, MalformedMessage
from sagastream.store.columns import iso
from sagastream.store.keys import StoreKeys

_CURRENT: Final = "current"


class Version(Struct, frozen=True, kw_only=True):
    """A version of a definition, as the store has it."""

    definition: SagaDefinition
    deployed_at: str  # ISO 8601, in UTC
    actor: str | None  # who deployed it


class Deployed(Struct, frozen=True, kw_only=True):
    """A definition of the store."""

    name: str
    current: int | None  # the version by which sagas begin now; None: none was made current, or this is damaged
    since: str | None  # since when, ISO 8601 in UTC
    actor: str | None  # who made it current
    versions: Sequence[Version]  # ascending
    damaged: Sequence[str] = ()  # the fields that cannot be read


def deploy(keys: StoreKeys, definition: SagaDefinition, actor: str | None) -> Exchange[int | None]:
    """Add this version of a definition, if it is not there, and make it the current one. Returns the version that was
    current before; None: none was, or that was damaged. If it raised a redis.RedisError, deploy it again: nothing is
    done twice.

    Raises DefinitionError if the store has other content under this version, or something else than definitions. The
    current version stays then.
    """
    name, version = definition.name, definition.version
    key = keys.definition(name)
    time, held = yield [("TIME",), ("HMGET", key, str(version), _CURRENT)]
    now = iso(wire.milliseconds(or_raise(time)))
    known, current = _fields(held, key)
    if known is None:
        record = {"definition": definition.body, "sha256": definition.sha256, "deployed_at": now, "actor": actor}
        added = yield [
            ("SADD", keys.definitions, name),
            ("HSETNX", key, str(version), orjson.dumps(record)),
            ("HMGET", key, str(version), _CURRENT),  # somebody else may have deployed it meanwhile
        ]
        known, current = [or_raise(answer) for answer in added][-1]
    there = _read(name, version, known)
    if there.definition.sha256 != definition.sha256:
        who = "" if there.actor is None else f" by {there.actor}"
        when = f"it was deployed on {there.deployed_at}{who}"
        raise DefinitionError(f"version {version} of {name} has other content in the store: {when}; raise the version")
    if current != str(version).encode():
        (answer,) = yield [("HSET", key, _CURRENT, str(version), "since", now, "actor", actor or "")]
        or_raise(answer)
    return _number(current)


def load(keys: StoreKeys, name: str, version: int | None = None) -> Exchange[SagaDefinition]:
    """A definition in its current version, or in another one. Raises DefinitionError if there is none, or it is
    damaged."""
    if not is_service(name):
        raise DefinitionError(f"{name!r:.200} is not the name of a definition: 1 to 128 of A-Z a-z 0-9 . _ -")
    key = keys.definition(name)
    if version is None:
        (held,) = yield [("HMGET", key, _CURRENT)]
        (current,) = _fields(held, key)
        if current is None:
            raise DefinitionError(f"the store has no definition {name}: sagastream deploy FILE brings one")
        version = _number(current)
        if version is None:
            raise DefinitionError(
                f"the store says that version {current!a:.80} of {name} is current: it is damaged; deploy {name} again"
            )
    (held,) = yield [("HMGET", key, str(version))]
    (known,) = _fields(held, key)
    if known is None:
        text = f"the store has no version {version} of the definition {name}"
        raise DefinitionError(f"{text}: sagastream definitions lists what it has")
    return _read(name, version, known).definition


def listed(keys: StoreKeys) -> Exchange[list[Deployed]]:
    """All definitions, by name."""
    (held,) = yield [("SMEMBERS", keys.definitions)]
    found = [] if is_wrong_type(held) else [name.decode(errors="backslashreplace") for name in or_raise(held)]
    names = sorted(filter(is_service, found))
    if not names:
        return []
    answers = yield [("HGETALL", keys.definition(name)) for name in names]
    return [
        _deployed(name, or_raise(answer))
        for name, answer in zip(names, answers, strict=True)
        if answer and not is_wrong_type(answer)
    ]


def _deployed(name: str, answer: Sequence[bytes]) -> Deployed:
    words = iter(answer)
    fields = {field.decode(errors="backslashreplace"): value for field, value in zip(words, words, strict=True)}
    of_current = {
        field: fields.pop(field, b"").decode(errors="backslashreplace") for field in (_CURRENT, "since", "actor")
    }
    versions, damaged = [], []
    for field, record in fields.items():
        try:
            versions.append(_read(name, int(field), record))
        except (DefinitionError, ValueError):
            damaged.append(field)
    return Deployed(
        name=name,
        current=_number(of_current[_CURRENT].encode()),
        since=of_current["since"] or None,
        actor=of_current["actor"] or None,
        versions=sorted(versions, key=lambda one: one.definition.version),
        damaged=sorted(damaged),
    )


def _fields(held: Any, key: str) -> list[Any]:
    if is_wrong_type(held):
        raise DefinitionError(f"the key {key} holds no definition: another program wrote there")
    fields: list[Any] = or_raise(held)
    return fields


def _number(current: bytes | None) -> int | None:
    """The version that is current; None: none is, or what the store says is damaged."""
    if current is None or not current.isdigit() or len(current) > len(str(MAX_VERSION)):
        return None
    return int(current)


def _read(name: str, version: int, record: bytes) -> Version:
    """A version, which must be what was deployed: sagas say that they were made from it."""
    try:
        found = orjson.loads(record)
        definition = parse(found["definition"])
        told = {"name": name, "version": version, "sha256": found["sha256"]}
        if definition.by.body() != told:
            raise ValueError("its content is not that of its name, version and sha256")
        return Version(definition=definition, deployed_at=str(found["deployed_at"]), actor=found.get("actor"))
    except (ValueError, TypeError, KeyError, AttributeError, MalformedMessage) as error:
        raise DefinitionError(f"version {version} of {name} is damaged in the store: {error!s:.200}") from None
