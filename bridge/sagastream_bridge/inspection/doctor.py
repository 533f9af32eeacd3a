"""Examines a store: is the broker set up to keep it, and does every saga in it have a reason to move?

`Doctor.examine` yields findings one by one. A failover that loses writes can leave sagas in wrong places of the
indexes: with `repair`, those are set right. Every other problem says what to do.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.group_reader import is_no_group
from sagastream.broker.wire import or_raise
from sagastream.console import describe
from sagastream.core.saga import SagaState
from sagastream.errors import CorruptSaga, NewerFormat
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.worker import LEASE_MS
from sagastream.store import heartbeat, layout, lineage, published, saga_hash, sagas
from sagastream.store.heartbeat import Kind, Process
from sagastream.store.keys import ORCHESTRATOR_GROUP, Partition, StoreKeys
from sagastream.store.quarantine import Quarantine

#: How many sagas to examine in one transaction of the broker.
_PAGE: Final = 100
#: For how many sagas to report the same finding.
_SHOWN: Final = 10
#: How late a worker may be for a saga that is due before that is a problem, in milliseconds.
_LATE_MS: Final = 30_000
#: How long a reader may hold an entry before that is a problem, in milliseconds.
_HELD_MS: Final = 120_000

#: An entry that leave.lua has given back looks as if it had been held for longer than this, in seconds.
_HANDED_BACK_S: Final = 86_000

OK: Final = "ok"
WARNING: Final = "warning"
PROBLEM: Final = "problem"
REPAIRED: Final = "repaired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    level: str  # ok, warning, problem, repaired
    about: str  # server, sagas, workers, service …
    text: str  # what was found and, if it is a problem, what to do


class Doctor:
    def __init__(self, broker: Broker, *, repair: bool = False) -> None:
        """`repair`: set right what can be set right; else only report it. Raises StoreMismatch."""
        self._client = broker.client
        self._keys = layout.look(broker)
        self._repair = repair
        self._store = Store(broker.client)
        self._services: set[str] = set()  # that live sagas wait for
        self._processes: list[Process] = []
        self._newer: Counter[int] = Counter()  # sagas by their format, of those that only a newer release can read
        self._live = self._parked = self._ended = self._overdue = 0
        self._wrong: Counter[str] = Counter()  # how often the same was found of a saga

    def examine(self) -> Iterator[Finding]:
        yield from self._server()
        yield from self._memory()
        for loss in lineage.losses(self._client, self._keys):
            remedy = "see sagastream doctor --after-failover; once that is dealt with: sagastream doctor --settled"
            yield _problem("failover", f"{loss.text}: {loss.evidence}; {remedy}")
        wrong_types = list(self._types(_central(self._keys)))
        yield from wrong_types
        if wrong_types:
            return  # then nothing else can be read
        yield from self._sagas()
        self._services |= set(run(self._client, published.services(self._keys)))
        self._processes = heartbeat.processes(self._client, self._keys, self._services)
        workers = [process for process in self._processes if process.kind == Kind.WORKER]
        partitions = self._keys.partitions
        requests = [name for one in partitions for name in (one.requests, one.interventions)]
        yield from self._readers("workers", requests, workers, "sagastream worker", is_needed=bool(self._live))
        yield from self._formats(workers)
        for stream in requests:
            yield from self._held(stream, ORCHESTRATOR_GROUP)
        for service in sorted(self._services):
            yield from self._service(service)
        yield from self._jobs()
        if quarantined := len(Quarantine(self._client, self._keys)):
            yield _warning("quarantine", f"messages that were set aside: {quarantined}; see sagastream quarantine list")

    def _service(self, service: str) -> Iterator[Finding]:
        partitions = self._keys.partitions
        commands = [partition.commands(service) for partition in partitions]
        replies = [partition.replies(service) for partition in partitions]
        aside = [partition.quarantine_of(service) for partition in partitions]
        if wrong_types := list(self._types(dict.fromkeys([*commands, *replies, *aside], "stream"))):
            yield from wrong_types
            return
        theirs = [process for process in self._processes if process.service == service]
        yield from self._readers(f"service {service}", commands, theirs, "sagastream service MODULE:NAME")
        for stream in commands:
            yield from self._held(stream, service)
        for stream in replies:
            yield from self._held(stream, ORCHESTRATOR_GROUP)

    # --- the server

    def _server(self) -> Iterator[Finding]:
        info: Any = self._client.info()
        name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
        if int(str(info["redis_version"]).split(".", maxsplit=1)[0]) < 7:
            yield _problem("server", f"{name} is too old: Redis 7.0 or Valkey 8 or later is needed")
        elif info["role"] != "master":
            yield _problem("server", f"{name} is a replica: nothing can be written to it; set REDIS_URL to its master")
        else:
            yield _ok("server", name)
        if not info["aof_enabled"]:
            yield _problem("durability", "appendonly is off: a crash loses what was accepted; set appendonly yes")
        elif info.get("aof_last_write_status", "ok") != "ok":
            yield _problem(
                "durability", "the last write to the append-only file failed; look at the server's log and disk"
            )
        else:
            yield self._fsync()

    def _fsync(self) -> Finding:
        try:
            found: Any = self._client.config_get("appendfsync")
        except redis.ResponseError:
            found = {}
        if (mode := found.get("appendfsync")) is None:
            return _warning("durability", "appendonly is on; the server does not say with which appendfsync")
        if mode != "always":
            return _warning(
                "durability", f"appendfsync is {mode}: a power cut loses what was accepted last; set always"
            )
        return _ok("durability", "appendonly with appendfsync always")

    def _memory(self) -> Iterator[Finding]:
        info: Any = self._client.info("memory")
        used, most = int(info["used_memory"]), int(info["maxmemory"])
        if info["maxmemory_policy"] != "noeviction":
            policy = info["maxmemory_policy"]
            yield _problem("memory", f"maxmemory-policy is {policy}: it may drop sagas; set noeviction")
        elif most and used > 0.9 * most:
            yield _problem(
                "memory", f"{used} of {most} bytes are used: when all are, everything waits; raise maxmemory"
            )
        else:
            yield _ok(
                "memory", f"{used // 2**20} MiB used, " + (f"at most {most // 2**20} MiB" if most else "no limit")
            )

    def _types(self, wanted: Mapping[str, str]) -> Iterator[Finding]:
        for key, kind in wanted.items():
            found: Any = self._client.type(key)
            if found.decode() not in (kind, "none"):
                yield _problem("keys", f"{key} is a {found.decode()}, not a {kind}: something else has written there")

    # --- sagas

    def _sagas(self) -> Iterator[Finding]:
        for partition in self._keys.partitions:
            names = self._client.scan_iter(partition.saga("*"), _PAGE)
            found = (partition.saga_id(key.decode(errors="backslashreplace")) for key in names)
            while page := list(islice(found, _PAGE)):
                yield from self._page(partition, page)
            yield from self._strangers(partition)
        for what, times in self._wrong.items():
            if times > _SHOWN:
                level = REPAIRED if self._repair else PROBLEM
                yield Finding(level=level, about="sagas", text=f"… and {times - _SHOWN} more, of which each {what}")
        if self._overdue:
            text = f"{self._overdue} should have moved more than {_LATE_MS // 1000} s ago: no worker sees to them"
            yield _problem("sagas", text)
        if not self._wrong and not self._overdue:
            yield _ok("sagas", f"{self._live} live, {self._ended} ended; each live one has a reason to move")
        if self._parked:
            text = f"parked, waiting for a person: {self._parked}; see sagastream list --status parked"
            yield _warning("sagas", text)

    def _page(self, partition: Partition, saga_ids: list[str]) -> Iterator[Finding]:
        try:
            # In one transaction: the hash of a saga and its places in the indexes change together.
            (seconds, micros), *answers = self._places(partition, saga_ids, transaction=True)
        except redis.OutOfMemoryError:  # it refuses transactions; and commits, so nothing moves
            (seconds, micros), *answers = self._places(partition, saga_ids, transaction=False)
        now_ms = seconds * 1000 + micros // 1000
        for at, saga_id in enumerate(saga_ids):
            fields, timer, ended, ttl = answers[4 * at : 4 * at + 4]
            if isinstance(fields, redis.ResponseError):
                yield from self._found("stands at a key that holds no hash", saga_id)
                continue
            state = saga_hash.read(saga_id, or_raise(fields))
            if isinstance(state, CorruptSaga):
                yield from self._found(f"stands still until its fields are mended: {state}", saga_id)
            elif isinstance(state, NewerFormat):
                self._newer[state.format] += 1
            elif isinstance(state, SagaState):
                self._count(state)
                what = _misplaced(state, now_ms, timer, ended, ttl)
                if what is not None:
                    mend = Change(partition=partition, saga_id=saga_id, before=state, after=state, rearm=True)
                    yield from self._found(what, saga_id, mend)
                elif timer is not None and timer < now_ms - _LATE_MS:
                    self._overdue += 1

    def _places(self, partition: Partition, saga_ids: list[str], *, transaction: bool) -> list[Any]:
        """The time; then for each saga its hash, its scores in timers and ended, and when it expires."""
        pipeline = self._client.pipeline(transaction=transaction)
        pipeline.time()
        for saga_id in saga_ids:
            pipeline.hgetall(partition.saga(saga_id))
            pipeline.zscore(partition.timers, saga_id)
            pipeline.zscore(partition.ended, saga_id)
            pipeline.pttl(partition.saga(saga_id))
        return pipeline.execute(raise_on_error=False)

    def _count(self, state: SagaState) -> None:
        if state.ended:
            self._ended += 1
            return
        self._live += 1
        if state.parked is not None:
            self._parked += 1
        else:
            self._services.add(state.step.definition.service)

    def _strangers(self, partition: Partition) -> Iterator[Finding]:
        """Sagas in timers that are not there."""
        members = (member.decode(errors="backslashreplace") for member, _ in self._client.zscan_iter(partition.timers))
        while page := list(islice(members, _PAGE)):
            pipeline = self._client.pipeline(transaction=False)
            for saga_id in page:
                pipeline.exists(partition.saga(saga_id))
            for saga_id, there in zip(page, pipeline.execute(), strict=True):
                if not there:
                    change = Change(partition=partition, saga_id=saga_id, before=None, after=None, rearm=True)
                    yield from self._found("is waited for, and is gone: somebody has deleted its hash", saga_id, change)

    def _found(self, what: str, saga_id: str, mend: Change | None = None) -> Iterator[Finding]:
        """Something is wrong with a saga. `mend`: what sets it right. Of many alike, the first ones are reported."""
        mended = mend is not None and self._repair
        if mend is not None and self._repair:
            _, now_ms = sagas.read(self._client, self._keys, [])
            if self._store.commit([mend], now_ms)[0]:
                return  # it has moved meanwhile, so it is right by now
        self._wrong[what] += 1
        if self._wrong[what] <= _SHOWN:
            remedy = "" if mend is None else "; set right" if mended else "; sagastream doctor --repair sets it right"
            yield Finding(level=REPAIRED if mended else PROBLEM, about="sagas", text=f"saga {saga_id} {what}{remedy}")

    # --- who works

    def _readers(
        self, about: str, streams: Sequence[str], known: Sequence[Process], command: str, *, is_needed: bool = False
    ) -> Iterator[Finding]:
        """Who reads these streams. `known`: the processes that do, dead or alive. `is_needed`: whether somebody has to,
        even if nothing waits in them."""
        waiting = sum(self._client.xlen(stream) for stream in streams)
        is_needed = is_needed or bool(waiting)
        if alive := sum(process.is_alive for process in known):
            yield _ok(about, f"{alive} at work, entries waiting or in flight: {waiting}")
        elif known:
            seconds = min(process.silent_ms for process in known) // 1000
            say = _problem if is_needed else _warning
            text = f"nobody was heard for {seconds} s: hung or dead; entries that wait: {waiting}; if dead: {command}"
            yield say(about, text)
        elif is_needed:
            yield _problem(about, f"none is running, entries that wait: {waiting}; {command}")
        else:
            yield _ok(about, "none is running, and there is nothing to do")

    def _formats(self, workers: Sequence[Process]) -> Iterator[Finding]:
        """What only some of the workers know, and what none of them does."""
        alive = [process for process in workers if process.is_alive]
        known = {number for process in alive for number in process.formats}
        for number in sorted(known):
            if behind := [process.name for process in alive if number not in process.formats]:
                names = ", ".join(behind)
                text = f"no saga of format {number} begins while workers run that do not know it: {names}"
                yield _warning("workers", text)
        for number, sagas_of_it in sorted(self._newer.items()):
            text = f"sagas of format {number}: {sagas_of_it}; only a newer release can tell more of them"
            if number in known:
                yield _ok("sagas", text)
            else:
                yield _problem("sagas", f"{text}, and no worker of it is running: start one")

    def _jobs(self) -> Iterator[Finding]:
        """Steps that wait in queues of RQ that no worker reads."""
        # Imported here: that takes longer than the rest of the command.
        from sagastream.rq_steps.jobs import queues_of_sagas, start_worker, waiting_for_worker

        try:
            waiting = waiting_for_worker(self._client, queues_of_sagas(self._client, self._keys.prefix))
        except redis.ResponseError as error:
            yield _warning("rq", f"what waits in RQ's queues cannot be read: {describe(error)}")
            return
        for queue, jobs in waiting.items():
            yield _problem(f"queue {queue}", f"no RQ worker works on it, {jobs} jobs wait: {start_worker(queue)}")

    def _held(self, stream: str, group: str) -> Iterator[Finding]:
        """Entries that a reader has held for long."""
        try:
            held: Any = self._client.xpending_range(stream, group, "-", "+", 10, idle=_HELD_MS)
        except redis.ResponseError as error:
            if is_no_group(error):
                return
            raise
        for entry in held:
            seconds, times = entry["time_since_delivered"] // 1000, entry["times_delivered"]
            what = (
                f"was held by {entry['consumer'].decode(errors='replace')} for {seconds} s (delivered {times} times): "
                "it takes long, or nobody is there to take it over"
            )
            if seconds >= _HANDED_BACK_S:
                what = "was handed back, and waits for somebody to take it over"
            yield _warning(stream, f"{entry['message_id'].decode()} {what}")


def _central(keys: StoreKeys) -> dict[str, str]:
    """The types of the keys that everything needs."""
    types = {keys.alive: "zset", keys.running: "hash", keys.services: "set"}
    for one in keys.partitions:
        types |= dict.fromkeys((one.requests, one.interventions, one.events, one.quarantine), "stream")
        types |= dict.fromkeys((one.timers, one.ended), "zset")
    return types


def _misplaced(state: SagaState, now_ms: int, timer: float | None, ended: float | None, ttl_ms: int) -> str | None:
    """What is wrong with a saga's places in the indexes; None: nothing."""
    if state.ended:
        if timer is not None:
            return "has ended, and is still waited for"
        if ended is None:
            return "has ended, and is not in the list of ended sagas"
        return "has ended, and would be kept forever" if ttl_ms == -1 else None
    if ttl_ms != -1:
        return "is live, and its hash would expire"
    if timer is None:
        return "is live, and nobody would look at it again: it is in no timer"
    if state.due_ms is None:
        return None if timer == float("inf") else "is parked, and has a timer"
    leased = state.due_ms <= now_ms and timer <= now_ms + LEASE_MS
    return None if timer == state.due_ms or leased else "is live, and its timer is not the time that its hash says"


def _ok(about: str, text: str) -> Finding:
    return Finding(level=OK, about=about, text=text)


def _warning(about: str, text: str) -> Finding:
    return Finding(level=WARNING, about=about, text=text)


def _problem(about: str, text: str) -> Finding:
    return Finding(level=PROBLEM, about=about, text=text)
