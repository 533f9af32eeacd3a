"""How far the store is now, as its servers tell it: their replication id and offset, how far streams were read, and the
heartbeat of a process."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import redis
from msgspec import Struct

from sagastream.broker import wire
from sagastream.broker.exchange import Exchange, each_of, together
from sagastream.broker.scripting import Script
from sagastream.broker.server import facts
from sagastream.broker.wire import or_raise
from sagastream.store.keys import ALIVE_KEPT_MS, ORCHESTRATOR_GROUP, Partition, StoreKeys
from sagastream.store.losses import EntryId, Sight

_SIGHT: Final = Script("sight")
_SEEN: Final = Script("seen")


class Look(Struct, frozen=True, kw_only=True):
    """What was seen at one moment."""

    sight: Sight
    is_own: bool  # whether its heartbeat is that of the process that looks
    newest: tuple[bytes, int] | None = None  # whose heartbeat is the newest, and of when; None: nobody has asked
    written_ms: int | None = None  # the heartbeat that was written after that; None: none, or it was refused


def at_all(keys: StoreKeys, member: bytes, service: str | None, most: int, *, is_own: bool) -> Exchange[Look | None]:
    """Look at a store on one server; None: that is a replica.

    Args:
        member: of the heartbeat of the process that looks or, if not `is_own`, of another.
        service: of which the process is, if it is one of a service; else it follows sagas.
        most: at how many streams to look.
    """
    read = [_read(partition, service) for partition in keys.partitions[:most]]
    asked: list[wire.Words] = [("XINFO", "GROUPS", stream) for stream, _ in read]
    looking = _plainly([("TIME",), ("INFO", "replication"), ("ZSCORE", keys.alive, member), *asked])
    if is_own:
        answers, newest = (yield from looking), None
    else:
        answers, newest = yield from together(looking, _newest(keys.alive))
    clock, info, score, *groups = answers
    sight = _sight(clock, info, score, dict(zip(read, groups, strict=True)))
    return None if sight is None else Look(sight=sight, is_own=is_own, newest=newest)


def at_each(
    watched: Mapping[Partition, tuple[bytes, str | None]], service: str | None
) -> Exchange[tuple[dict[Partition, Look], list[redis.RedisError]]]:
    """Look at partitions of a cluster, each by itself. Returns also the errors of those that could not be looked at.

    `watched`: by partition: the name of the process whose heartbeat is looked at there; and if it is this one, and
    writes the next, the replication id that it saw there ("": it has seen none, and writes none yet).
    """
    looking = [_at_one(partition, *who, service) for partition, who in watched.items()]
    found = dict(zip(watched, (yield from each_of(looking)), strict=True))
    looks = {partition: look for partition, look in found.items() if isinstance(look, Look)}
    return looks, [error for error in found.values() if isinstance(error, redis.RedisError)]


def _at_one(partition: Partition, name: bytes, history: str | None, service: str | None) -> Exchange[Look | None]:
    read = _read(partition, service)
    looking: list[Exchange[Any]] = [_SIGHT.call([read[0], partition.seen], [name], reads_only=True)]
    if history:
        looking.append(_SEEN.call([partition.seen], [name, ALIVE_KEPT_MS, history]))
    answers, *written = yield from each_of(looking)
    clock, info, node, score, groups, newest = or_raise(answers)
    sight = _sight(clock, info, score, {read: groups}, "" if isinstance(node, redis.RedisError) else node.decode())
    if sight is None:
        return None
    if history is not None:
        return Look(sight=sight, is_own=True, written_ms=next((ms for ms in written if isinstance(ms, int)), None))
    return Look(sight=sight, is_own=False, newest=_of_newest(newest))


def _read(partition: Partition, service: str | None) -> tuple[str, str]:
    """A stream that the process reads, and its group."""
    if service is None:
        return partition.requests, ORCHESTRATOR_GROUP
    return partition.commands(service), service


def _plainly(commands: Sequence[wire.Words]) -> Exchange[list[Any]]:
    return (yield commands)


def _sight(clock: Any, info: Any, score: Any, groups: Mapping[tuple[str, str], Any], node: str = "") -> Sight | None:
    replication = facts(or_raise(info))
    if replication.get("role") not in (None, "master"):
        return None
    read = {
        stream: reached
        for (stream, group), answer in groups.items()
        if (reached := _reached(answer, group)) is not None
    }
    history, before = (replication.get(name, "") for name in ("master_replid", "master_replid2"))
    return Sight(
        at_ms=wire.milliseconds(or_raise(clock)),
        history=history,
        offset=_number(replication.get("master_repl_offset")),
        before=before if before.strip("0") else "",
        taken_over_at=max(0, _number(replication.get("second_repl_offset")) - 1),
        beat_ms=_milliseconds(score),
        read=read,
        node=node,
    )


def of_another(now: Sight, seen_ms: int | None) -> Sight:
    """The heartbeat of another process, which was of `seen_ms`, may be newer: that process lives, and has compared
    before it wrote it. An older one proves nothing: another server may have another clock."""
    is_there = seen_ms is not None and now.beat_ms is not None and now.beat_ms >= seen_ms
    return msgspec.structs.replace(now, beat_ms=seen_ms if is_there else None)


def _newest(beats: str) -> Exchange[tuple[bytes, int] | None]:
    """Whose heartbeat is the newest, and of when it is."""
    (answer,) = yield [("ZRANGE", beats, 0, 0, "REV", "WITHSCORES")]
    return _of_newest(answer)


def _of_newest(answer: Any) -> tuple[bytes, int] | None:
    if not answer or isinstance(answer, redis.RedisError):
        return None
    member, score = answer
    return None if (beat_ms := _milliseconds(score)) is None else (member, beat_ms)


def _number(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return 0


def _milliseconds(score: Any) -> int | None:
    if score is None or isinstance(score, redis.ResponseError):  # it is no zset: the heartbeat is refused too
        return None
    try:
        return int(float(score))
    except (ValueError, OverflowError):
        return None


def _reached(answer: Any, group: str) -> EntryId | None:
    """Up to which entry a group was read; None: there is no such group."""
    if isinstance(answer, redis.ResponseError):
        return None
    for words in answer:
        pairs = iter(words)
        about = dict(zip(pairs, pairs, strict=True))
        if about.get(b"name") == group.encode():
            ms, _, number = about[b"last-delivered-id"].partition(b"-")
            return int(ms), int(number)
    return None
