"""Why sagas wait: the evidence, gathered from the store; core/why.py says what follows from it.

Nothing here writes. What a user may not read, or what is not there, is left out: then less is said. On a cluster, what
a node has that is away is left out too; only the keys of the whole store must be there. Every read is bounded.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import redis

from sagastream.broker import server
from sagastream.broker.exchange import Exchange, all_of, together
from sagastream.broker.failures import is_outage
from sagastream.broker.wire import Words, milliseconds, or_raise, unless_refused
from sagastream.client.command_search import LOOKED_AT, find
from sagastream.core.causes import Cause, CauseKind, Evidence, Handler, Reader, ServiceFacts, Unopened
from sagastream.core.saga import Found, SagaState
from sagastream.core.steps import services_of
from sagastream.core.why import why, why_absent
from sagastream.errors import UnreadableSaga
from sagastream.store import heartbeat, pauses, running
from sagastream.store.heartbeat import Kind, Process
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.running import OLDEST, Busy, LongRun
from sagastream.store.sagas import load, timeouts

#: If a saga moves while it is looked at, it is looked at again, this often at most.
_LOOKS: Final = 3
#: Of at most so many handlers it is asked how long their sagas wait for them.
_TIMES_ASKED: Final = 200
#: The settings that say whether the server takes no more writes after it could not save, or without replicas.
_SETTINGS: Final = ("save", "stop-writes-on-bgsave-error", "min-replicas-to-write")


class Explained(NamedTuple):
    """A saga, and why it waits."""

    found: Found
    causes: tuple[Cause, ...]  # none if it has ended, or cannot be read
    now_ms: int  # by the broker's clock


def may_look(keys: StoreKeys) -> Exchange[bool]:
    """Whether this user may look for why sagas wait. Who only begins sagas may not."""
    return (yield from server.may(("ZRANGE", keys.alive, 0, -1), ("HVALS", keys.losses)))


def explained(keys: StoreKeys, saga_id: str) -> Exchange[Explained]:
    """A saga as it is now, and why it waits; if there is none, why it may not have begun yet."""
    is_unasked = False
    for is_last in (False,) * _LOOKS + (True,):
        states, now_ms = yield from load(keys, [saga_id])
        state = states[saga_id]
        if state is None:
            causes = yield from _absent(keys, saga_id)
            if causes or is_unasked:
                return Explained(None, causes, now_ms)
            is_unasked = True  # its request may have been read in between: then the saga is there now
            continue
        if isinstance(state, UnreadableSaga):
            return Explained(state, (), now_ms)
        ((causes, has_moved),) = yield from _explain(keys, [state], LOOKED_AT)
        if is_last or not has_moved:
            break
    return Explained(state, causes, now_ms)


def explain(
    keys: StoreKeys, states: Sequence[SagaState], look_at: int = LOOKED_AT
) -> Exchange[list[tuple[Cause, ...]]]:
    """Why each of these sagas waits. `look_at`: at most so many entries of a stream are looked at for each."""
    return [causes for causes, _ in (yield from _explain(keys, states, look_at))]


def _explain(
    keys: StoreKeys, states: Sequence[SagaState], look_at: int
) -> Exchange[list[tuple[tuple[Cause, ...], bool]]]:
    """For each, why it waits, and whether it has moved meanwhile."""
    live = [state for state in states if not state.ended]
    if not live:
        return [((), False) for _ in states]
    services = services_of(step.definition for state in live for step in state.steps)
    evidence = yield from survey(keys, services, dict.fromkeys(keys.of(state.saga_id) for state in live))
    found_places = yield from all_of([find(keys, state, look_at) for state in states])
    versions = yield [("HGET", keys.saga(state.saga_id), "version") for state in states]
    found = []
    for state, places, version in zip(states, found_places, versions, strict=True):
        # If it has moved, a command was answered while it was looked for: where that is says nothing any more.
        has_moved = version != b"%d" % state.version
        found.append((why(state, evidence, None if has_moved else places), has_moved))
    return found


def _absent(keys: StoreKeys, saga_id: str) -> Exchange[tuple[Cause, ...]]:
    partition = keys.of(saga_id)
    evidence = yield from survey(keys, (), [partition])
    requests, full = yield [("XLEN", partition.requests), ("GET", partition.full)]
    text = unless_refused(full, None)
    return why_absent(evidence, unless_refused(requests, 0), None if text is None else _text(text))


def survey(keys: StoreKeys, services: Collection[str], partitions: Collection[Partition] = ()) -> Exchange[Evidence]:
    """What is known about a store, and about these services in it. `partitions`: on a cluster, those whose nodes are
    asked what is wrong with them."""
    names = sorted(services)
    of_services = together(running.look(keys), all_of([_service(keys, name) for name in names]))
    troubles = troubles_of_broker(partitions if keys.apart else ())
    processes, ((now_ms, broker), ((busy, facts), paused)) = yield from together(
        heartbeat.look(keys, names), together(troubles, together(of_services, pauses.read(keys)))
    )
    late = yield from _past_their_time(keys, [one for process in processes for one in _runs(process, busy)], now_ms)
    known = {process.service for process in processes if process.service is not None}
    strangers = [one.name for one in facts if one.published is None and one.name not in known]
    known |= (yield from _that_publish(keys)) if strangers else set()
    return Evidence(
        now_ms=now_ms,
        broker=broker,
        workers=tuple(_reader(process) for process in processes if process.kind == Kind.WORKER),
        services={one.name: _with_processes(one, processes, busy, late) for one in facts},
        names=frozenset(known),
        pauses=tuple(paused),
    )


def _service(keys: StoreKeys, name: str) -> Exchange[ServiceFacts]:
    """What is known about a service, without its processes."""
    streams = [partition.commands(name) for partition in keys.partitions]
    asked: list[Words] = [("HGETALL", keys.published(name))]
    asked += [("XLEN", stream) for stream in streams]
    asked += [("XPENDING", stream, name) for stream in streams]
    published, *answers = yield asked
    words = unless_refused(published, [])
    lengths, held = answers[: len(streams)], answers[len(streams) :]
    # What others wait for in partitions that are away is not known.
    there = [(length, pending) for length, pending in zip(lengths, held, strict=True) if not _is_away(length, pending)]
    unread = sum(unless_refused(length, 0) - unless_refused(pending, [0])[0] for length, pending in there)
    commands = {_text(word) for word in words if word}
    return ServiceFacts(name=name, published=frozenset(commands) if words else None, unread=max(0, unread))


def _is_away(*answers: Any) -> bool:
    return any(isinstance(answer, redis.RedisError) and is_outage(answer) for answer in answers)


def _runs(process: Process, busy: Mapping[str, Busy]) -> Sequence[LongRun]:
    return busy[process.name].oldest if process.name in busy and process.service is not None else ()


def _past_their_time(keys: StoreKeys, runs: Sequence[LongRun], now_ms: int) -> Exchange[dict[LongRun, int]]:
    """Those that have run for longer than their sagas wait for an attempt, each with that time in ms. Their processes
    do not know it: a compensation, and what must be done in the end, have no deadline."""
    asked = sorted((one for one in runs if one.not_after_ms is None), key=lambda one: one.since_ms)[:_TIMES_ASKED]
    waits = (yield from timeouts(keys, [(one.saga_id, one.step) for one in asked])) if asked else []
    return {
        one: wait_ms
        for one, wait_ms in zip(asked, waits, strict=True)
        if wait_ms is not None and now_ms - one.since_ms > wait_ms
    }


def _with_processes(
    facts: ServiceFacts, processes: Collection[Process], busy: Mapping[str, Busy], late: Mapping[LongRun, int]
) -> ServiceFacts:
    """The same, with its processes and what they run. `late`: see `_past_their_time`."""
    own = [process for process in processes if process.service == facts.name]
    told = {process.name: busy[process.name] for process in own if process.name in busy}
    handlers = [
        Handler(
            process=name,
            saga_id=run.saga_id,
            step=run.step,
            command=run.command,
            since_ms=run.since_ms,
            not_after_ms=run.not_after_ms,
            timeout_ms=late.get(run),
            overdue=run.overdue or run in late,
        )
        for name, one in told.items()
        for run in one.oldest
    ]
    return ServiceFacts(
        name=facts.name,
        processes=tuple(map(_reader, own)),
        published=facts.published,
        unread=facts.unread,
        handlers=tuple(handlers),
        unopened=tuple(
            Unopened(process=name, saga_id=left.saga_id, step=left.step, command=left.command, why=left.why)
            for name, one in told.items()
            for left in one.unopened
        ),
        hung=frozenset(name for name, one in told.items() if _hangs(one, late)),
    )


def _hangs(busy: Busy, late: Collection[LongRun]) -> bool:
    """Whether each slot of a process is taken by a handler that should have ended. If it has more slots than it tells
    of, those that have run longest stand for the others."""
    overdue = [one.overdue or one in late for one in busy.oldest]
    return busy.hangs or (busy.long >= busy.slots and all(overdue) and len(overdue) >= min(busy.slots, OLDEST))


def _reader(process: Process) -> Reader:
    commands = None if process.commands is None else frozenset(process.commands)
    return Reader(
        name=process.name,
        is_alive=process.is_alive,
        is_at_work=process.is_at_work,
        silent_ms=process.silent_ms,
        commands=commands,
    )


def _that_publish(keys: StoreKeys) -> Exchange[set[str]]:
    """The names of the services that have published commands."""
    (answer,) = yield [("SMEMBERS", keys.services)]
    names = [_text(name) for name in unless_refused(answer, [])]
    sizes = (yield [("HLEN", keys.published(name)) for name in names]) if names else []
    return {name for name, size in zip(names, sizes, strict=True) if unless_refused(size, 0)}


# --- the broker


def troubles_of_broker(partitions: Collection[Partition] = ()) -> Exchange[tuple[int, tuple[Cause, ...]]]:
    """The time, and what keeps the broker from taking writes. `partitions`: see `survey`."""
    (clock, infos), settings = yield from together(_time_and_info(partitions), server.settings(*_SETTINGS))
    found: dict[str, Cause] = {}
    for info in infos:
        facts = server.facts(unless_refused(info, b""))
        found |= {one.text: one for one in _troubles(facts, settings)}
    return milliseconds(or_raise(clock)), tuple(found.values())


def _time_and_info(partitions: Collection[Partition]) -> Exchange[tuple[Any, list[Any]]]:
    """`INFO` is told by the node of the key before it."""
    asked: list[Words] = [words for one in partitions for words in (("EXISTS", one.timers), ("INFO",))] or [("INFO",)]
    clock, *answers = yield [("TIME",), *asked]
    return clock, [answer for answer, words in zip(answers, asked, strict=True) if words[0] == "INFO"]


def _troubles(info: Mapping[str, str], settings: Mapping[str, str]) -> tuple[Cause, ...]:
    """`info`: what INFO says. `settings`: those of _SETTINGS, as far as they are known."""
    if info.get("role", "master") != "master":
        text = "the broker is a replica, and takes no writes"
        return (Cause(kind=CauseKind.BROKER_READ_ONLY, text=text, do=("set REDIS_URL to its master",)),)
    saves = settings.get("save", "") != "" and settings.get("stop-writes-on-bgsave-error") == "yes"
    wrong = [
        name
        for name, counts in (("aof_last_write_status", True), ("rdb_last_bgsave_status", saves))
        if counts and info.get(name, "ok") != "ok"
    ]
    if wrong:
        text = f"the broker cannot write to its disk, and takes no writes ({', '.join(wrong)}: err)"
        do = ("look at its log and its disk; it goes on by itself once it can write",)
        return (Cause(kind=CauseKind.BROKER_DISK, text=text, do=do),)
    good = info.get("min_slaves_good_slaves")  # it is there only if the server wants some
    # A user who may not read the setting knows that it is at least 1.
    wanted = int(settings.get("min-replicas-to-write") or 1)
    if good is not None and int(good) < wanted:
        text = (
            "the broker has too few replicas, and takes no writes: "
            f"{good} keep up with it; it wants {settings.get('min-replicas-to-write', 'at least 1')}"
        )
        do = ("look at its replicas, or set min-replicas-to-write lower",)
        return (Cause(kind=CauseKind.BROKER_REPLICAS, text=text, do=do, facts={"replicas": int(good)}),)
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if most and used >= most:
        text = f"the broker is full, and takes only what sagas need that have begun: {used} of {most} bytes are used"
        do = ("raise maxmemory, or wait until ended sagas have expired; sagastream doctor says what takes it",)
        facts = {"used_bytes": used, "most_bytes": most}
        return (Cause(kind=CauseKind.BROKER_FULL, text=text, do=do, facts=facts),)
    return ()


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")
