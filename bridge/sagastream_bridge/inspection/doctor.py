"""Examines a store: is the broker set up to keep it, does every saga in it have a reason to move, is somebody at work?

`Doctor.examine` yields findings one by one. With `repair`, what can be set right is set right. Every other problem says
what to do.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.launch import MEMORY_VARIABLE
from sagastream.client.evidence import explain, survey, troubles_of_broker
from sagastream.codecs.setting import codec_of
from sagastream.console import describe
from sagastream.core.bulks import BulkState
from sagastream.core.causes import Cause, CauseKind, Evidence, ServiceFacts
from sagastream.core.durations import spoken
from sagastream.core.pauses import pauses_of
from sagastream.core.saga import SagaState
from sagastream.core.why import no_worker
from sagastream.core.why_out import SET_BACK, fails, hangs, nobody
from sagastream.core.why_waits import pause_told, pauses_nothing
from sagastream.errors import SettingsError
from sagastream.orchestrator.room import FULL_AT, ROOM_AT
from sagastream.store import bulks, heartbeat, layout, lineage, published, sagas
from sagastream.store.heartbeat import Kind, Process
from sagastream.store.keys import ORCHESTRATOR_GROUP, StoreKeys
from sagastream.store.quarantine import Quarantine
from sagastream_bridge.inspection import bulk_views, memory
from sagastream_bridge.inspection.findings import (
    OK,
    PROBLEM,
    REPAIRED,
    WARNING,
    Finding,
    ok,
    problem,
    repaired,
    warning,
)
from sagastream_bridge.inspection.holes import holes
from sagastream_bridge.inspection.indexes import SagaCheck, Waiting
from sagastream_bridge.inspection.strays import strays
from sagastream_bridge.inspection.streams import StreamCheck
from sagastream_bridge.inspection.unread import unread

#: What findings about holes of the server are about.
SECURITY: Final = "security"
#: How far the broker's clock may be behind what was written before that is told, in milliseconds.
_AHEAD_MS: Final = 1_000
#: The causes of which a service's findings tell, if sagas wait for it.
_OF_A_SERVICE: Final = (CauseKind.NO_COMMAND, CauseKind.KILLS, CauseKind.PROCESS_DEAD)
#: So many sagas are named of those whose command cannot be opened for the same reason.
_NAMED: Final = 3
#: At most so many entries of a stream are looked at for each of them.
_LOOKED_AT: Final = 100
#: A worker notes at least this often that it goes on with a bulk, in milliseconds, unless all are very busy.
_BULK_MOVES_WITHIN_MS: Final = 30_000
_CANNOT_TELL: Final = "who is at work cannot be told: the broker takes no writes, so no process is heard"

__all__ = ["OK", "PROBLEM", "REPAIRED", "WARNING", "Doctor", "Finding"]


class Doctor:
    def __init__(self, broker: Broker, *, repair: bool = False) -> None:
        """`repair`: set right what can be set right; else only report it. Raises StoreMismatch."""
        self._broker = broker
        self._client = broker.client
        self._keys = layout.look(broker)
        self._sagas = SagaCheck(self._client, self._keys, repair=repair)
        self._streams = StreamCheck(self._client, repair=repair)
        self._repair = repair

    def examine(self) -> Iterator[Finding]:
        yield from self._server()
        yield from self._memory()
        for loss in lineage.losses(self._client, self._keys):
            remedy = "see sagastream doctor --after-failover; once that is dealt with: sagastream doctor --settled"
            yield problem("failover", f"{loss.text}: {loss.evidence}", remedy)
        wrong_types = list(self._types(_central(self._keys)))
        yield from wrong_types
        if wrong_types:
            return  # then nothing else can be read
        yield from self._kept(_central(self._keys))
        for partition in self._keys.partitions:
            for stream in partition.streams:
                yield from self._streams.renew(stream)
                yield from self._streams.size(stream)
        yield from self._sagas.examine()
        yield from strays(self._client, self._keys, repair=self._repair)
        yield from self._sealed()
        services = {service for service, _ in self._sagas.waiting}
        services |= set(run(self._client, published.services(self._keys)))
        evidence = run(self._client, survey(self._keys, services))
        self._explain(evidence)
        processes = heartbeat.processes(self._client, self._keys, services)
        yield from self._workers(evidence, [process for process in processes if process.kind == Kind.WORKER])
        for service in sorted(services):
            yield from self._service(service, evidence)
        yield from self._paused(evidence, processes)
        yield from self._bulks(evidence.now_ms)
        yield from self._clock(processes)
        yield from self._jobs()
        if quarantined := len(Quarantine(self._client, self._keys)):
            yield warning(
                "quarantine", f"messages that were set aside: {quarantined}", "see sagastream quarantine list"
            )

    # --- the server

    def _server(self) -> Iterator[Finding]:
        info: Any = self._client.info()
        kind, version = (
            ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info["redis_version"])
        )
        name = f"{kind} {version}"
        if int(str(info["redis_version"]).split(".", maxsplit=1)[0]) < 7:
            yield problem("server", f"{name} is too old: Redis 7.0 or Valkey 8 or later is needed")
        else:
            yield ok("server", name)
        if (known := holes(kind, str(version))) is not None:
            yield warning(SECURITY, known)
        _, troubles = run(self._client, troubles_of_broker())
        for cause in troubles:
            if cause.kind is not CauseKind.BROKER_FULL:  # of which _memory tells, earlier
                yield _problem("server", cause.text, cause)
        if not info["aof_enabled"]:
            yield problem("durability", "appendonly is off: a crash loses what was accepted", "set appendonly yes")
        else:
            yield self._fsync()

    def _fsync(self) -> Finding:
        if (mode := self._broker.appendfsync()) is None:
            return warning("durability", "appendonly is on; the server does not say with which appendfsync")
        if mode != "always":
            return warning(
                "durability", f"appendfsync is {mode}: a power cut loses what was accepted last", "set always"
            )
        return ok("durability", "appendonly with appendfsync always")

    def _memory(self) -> Iterator[Finding]:
        info: Any = self._client.info("memory")
        used, most = int(info["used_memory"]), int(info["maxmemory"])
        if info["maxmemory_policy"] != "noeviction":
            policy = info["maxmemory_policy"]
            yield problem("memory", f"maxmemory-policy is {policy}: it may drop sagas", "set noeviction")
        elif most and used >= FULL_AT * most:
            yield self._full(used, most)
        else:
            yield ok("memory", f"{used // 2**20} MiB used, " + (f"at most {most // 2**20} MiB" if most else "no limit"))

    def _full(self, used: int, most: int) -> Finding:
        """What fills the store, and what helps."""
        services = run(self._client, published.services(self._keys))
        parts = memory.parts(self._client, self._keys, services)
        parts.append(memory.Part("all else", max(0, used - sum(part.bytes for part in parts))))
        taken = ", ".join(f"{part.what} {part.bytes // 1024} KiB" for part in parts)
        state = f"{used / most:.0%} of maxmemory ({most / 2**20:.0f} MiB) is used"
        begins = f"sagas begin again below {ROOM_AT:.0%}, and what has begun goes on"
        more = f"{max(2 * most, 2 * used) // 2**20}mb"
        how = f"CONFIG SET maxmemory {more}"
        if self._broker.embedded is not None:
            how = f"stop all, then start it with {MEMORY_VARIABLE}={more}"
        return problem(
            "memory",
            f"{state}: {begins}. That is about: {taken}",
            f"raise it: {how}",
            "or keep less from now on: fewer --retention-days, small results",
        )

    def _types(self, wanted: Mapping[str, str]) -> Iterator[Finding]:
        for key, kind in wanted.items():
            found: Any = self._client.type(key)
            if found.decode() not in (kind, "none"):
                yield problem("keys", f"{key} is a {found.decode()}, not a {kind}: something else has written there")

    def _kept(self, names: Iterable[str]) -> Iterator[Finding]:
        """Keys that the server is to delete at some time, though they are always needed."""
        pipeline = self._client.pipeline(transaction=False)
        for key in (keys := list(names)):
            pipeline.pttl(key)
        for key, left_ms in zip(keys, pipeline.execute(), strict=True):
            if left_ms < 0:
                continue
            text = f"{key} expires in {spoken(left_ms)}, with all that is in it: something else has set that"
            if not self._repair:
                yield problem("keys", f"{text}; sagastream doctor --repair keeps it")
                continue
            try:
                self._client.persist(key)
                yield repaired("keys", f"{text}; it is kept now")
            except redis.exceptions.NoPermissionError as error:
                yield problem(
                    "keys", f"{text}; this user may not repair it, run this as one who may: {describe(error)}"
                )

    def _sealed(self) -> Iterator[Finding]:
        """With which keys values are sealed: so a person knows whether a key is still needed."""
        counts = self._sagas.sealed
        try:
            seals = codec_of(None) is not None
        except SettingsError as error:
            yield problem("values", str(error))
            seals = True
        if not seals and all(key is None for key, _ in counts):
            return
        parts = [
            ("not sealed" if key is None else f"key {key}") + f" ({counts[key, True]} live, {counts[key, False]} ended)"
            for key in sorted({key for key, _ in counts}, key=lambda key: (key is None, key or ""))
        ]
        if parts:
            yield ok("values", f"sagas by how their values are sealed: {', '.join(parts)}")

    # --- who works

    def _workers(self, evidence: Evidence, workers: Sequence[Process]) -> Iterator[Finding]:
        streams = [name for one in self._keys.partitions for name in (one.requests, one.interventions)]
        waiting = sum(self._client.xlen(stream) for stream in streams)
        (dead,) = no_worker(evidence) or (None,)
        if not evidence.hears:
            yield warning("workers", _CANNOT_TELL, kind=evidence.broker[0].kind)
        elif dead is None:
            at_work = sum(worker.is_alive for worker in workers)
            yield ok("workers", f"at work: {at_work}; entries waiting or in flight: {waiting}")
        elif waiting or self._sagas.live:
            yield _problem("workers", f"{dead.text}; requests that wait: {waiting}", dead)
        elif workers:
            yield warning("workers", dead.text, *dead.do, kind=dead.kind)
        else:
            yield ok("workers", "none is running, and there is nothing to do")
        yield from self._formats(workers)
        for stream in streams:
            yield from self._streams.examine(stream, ORCHESTRATOR_GROUP)

    def _service(self, service: str, evidence: Evidence) -> Iterator[Finding]:
        partitions = self._keys.partitions
        commands = [partition.commands(service) for partition in partitions]
        replies = [partition.replies(service) for partition in partitions]
        streams = [stream for partition in partitions for stream in partition.streams_of(service)]
        if wrong_types := list(self._types(dict.fromkeys(streams, "stream"))):
            yield from wrong_types
            return
        yield from self._kept([*streams, self._keys.published(service)])
        for stream in streams:
            yield from self._streams.renew(stream)
            yield from self._streams.size(stream)
        if not evidence.hears:
            yield warning(f"service {service}", _CANNOT_TELL, kind=evidence.broker[0].kind)
        else:
            yield from self._readers(service, evidence, sum(self._client.xlen(stream) for stream in commands))
            if evidence.of(service).ever_was:  # otherwise its attempts only time out, and nothing has a log
                yield from self._failing(service, evidence)
        for stream in commands:
            yield from self._streams.examine(stream, service)
        for stream in replies:
            yield from self._streams.examine(stream, ORCHESTRATOR_GROUP)

    def _readers(self, service: str, evidence: Evidence, entries: int) -> Iterator[Finding]:
        """Who works for a service, and what its sagas wait for. `entries`: how many are in its streams."""
        about, facts = f"service {service}", evidence.of(service)
        waiting = {command: one for (name, command), one in self._sagas.waiting.items() if name == service}
        if (cause := nobody(facts, evidence.names, evidence.now_ms)) is None:
            is_well = any(process.is_at_work and process.name not in facts.hung for process in facts.alive)
            text = f"at work: {facts.at_work}; entries waiting or in flight: {entries}"
            yield ok(about, text) if is_well else warning(about, text)
            yield from self._hanging(about, facts, waiting, evidence.now_ms)
            yield from self._unopened(about, facts, waiting.values())
            for command, one in waiting.items():
                yield from self._stuck(about, command, one)
        elif waiting:
            named = "; ".join(f"sagas that wait for {command}: {one.named}" for command, one in waiting.items())
            of_sagas = (told for one in waiting.values() for told in self._causes(one) if told.kind is cause.kind)
            yield _problem(about, f"{cause.text}; {named}", next(of_sagas, cause))
            for command, one in waiting.items():
                yield from self._stuck(about, command, one, kinds=(CauseKind.KILLS,))
        elif entries:
            yield from self._leftover(service, cause, entries)
        elif facts.processes:
            yield warning(about, cause.text, *cause.do, kind=cause.kind)
        else:
            yield ok(about, "none is running, and there is nothing to do")

    def _explain(self, evidence: Evidence) -> None:
        """Find out why sagas wait: of those that wait for the same, the ones that have waited longest; and those whose
        command a process cannot open."""
        first = {state.saga_id: state for one in self._sagas.waiting.values() for state, _ in one.first}
        states = list(first.values())
        left = {one.saga_id for facts in evidence.services.values() for one in facts.unopened}
        more, _ = sagas.read(self._client, self._keys, sorted(left - first.keys()))
        states += [state for state in more.values() if isinstance(state, SagaState)]
        causes = run(self._client, explain(self._keys, states, _LOOKED_AT))
        self._why = {state.saga_id: found for state, found in zip(states, causes, strict=True)}

    def _causes(self, waiting: Waiting) -> Iterator[Cause]:
        """Why its first sagas wait; of one that has several commands out, those causes that are of this one."""
        for state, number in waiting.first:
            for cause in self._why[state.saga_id]:
                if number in cause.facts.get("steps", (number,)):
                    yield cause

    def _paused(self, evidence: Evidence, processes: Sequence[Process]) -> Iterator[Finding]:
        """What somebody has paused, and which sagas wait for that."""
        for one in evidence.pauses:
            held, later = (
                ", ".join(found.named for of, found in those.items() if one.holds(*of))
                for those in (self._sagas.held, self._sagas.between)
            )
            later = later and f"; between two attempts, and held when it is time for the next one: {later}"
            do = f"sagastream resume {one.words} --reason TEXT  # sends what is held"
            text = f"{pause_told(one, evidence.now_ms)}; sagas that are held: {held or 'none'}{later}"
            if not held and (nothing := pauses_nothing(one, evidence)):
                text += f"; {nothing}"
            yield warning(f"service {one.service}", text, do, kind=CauseKind.PAUSED)
        ignorant = [one.name for one in processes if one.kind == Kind.WORKER and one.is_alive and not one.pauses]
        if evidence.pauses and ignorant:
            text = f"workers of an earlier release send although it is paused: {', '.join(ignorant)}"
            yield problem("workers", text, "update them, or stop them")

    def _bulks(self, now_ms: int) -> Iterator[Finding]:
        """The bulks that have not ended: does a worker carry each that runs?"""
        for one in run(self._client, bulks.listed(self._keys)):
            about, told = f"bulk {one.bulk_id}", f"{one.verb}, {one.state}: {bulk_views.progress(one)}"
            silent_ms = now_ms - one.updated_ms
            if one.ended:
                continue
            if one.state is BulkState.PAUSED:
                yield ok(about, f"{told}; sagastream bulk {one.bulk_id} --resume has it go on")
            elif one.last_error is not None:
                yield problem(about, f"{told}; it cannot go on: {one.last_error}")
            elif silent_ms > _BULK_MOVES_WITHIN_MS:
                text = f"{told}; no worker has gone on with it for {spoken(silent_ms)}"
                yield problem(about, text, "sagastream worker  # starts one; one of an earlier release knows no bulks")
            else:
                yield ok(about, told)

    def _hanging(
        self, about: str, facts: ServiceFacts, waiting: Mapping[str, Waiting], now_ms: int
    ) -> Iterator[Finding]:
        """Of each live process the oldest handler that should have ended, and who waits for that."""
        alive = {process.name for process in facts.alive}
        overdue = sorted((one for one in facts.handlers if one.overdue), key=lambda one: one.since_ms, reverse=True)
        for one in {one.process: one for one in overdue if one.process in alive}.values():
            cause = hangs(one, now_ms)
            text = f"saga {one.saga_id}: {cause.text}"
            if one.process not in facts.hung:
                yield warning(about, text, *cause.do, kind=cause.kind)
                continue
            text += ". All slots of its process are taken so: it begins nothing more"
            for command, behind in waiting.items():
                if any(_is_behind(found, one.process, one.saga_id) for found in self._causes(behind)):
                    text += f"; sagas that wait for {command}: {behind.named}"
            yield _problem(about, text, cause)

    def _unopened(self, about: str, facts: ServiceFacts, waiting: Iterable[Waiting]) -> Iterator[Finding]:
        """Commands that nobody has done yet, since a process cannot open them: each key that is missing, each fault."""
        looked_at = [state.saga_id for one in waiting for state, _ in one.first]
        found: dict[str, tuple[Cause, list[str]]] = {}
        for saga_id in dict.fromkeys([*looked_at, *(one.saga_id for one in facts.unopened)]):
            for cause in self._why.get(saga_id, ()):
                if cause.kind is CauseKind.CANNOT_OPEN:
                    found.setdefault(cause.text, (cause, []))[1].append(saga_id)
        for text, (cause, ids) in found.items():
            named = ", ".join(ids[:_NAMED]) + (" …" if len(ids) > _NAMED else "")
            yield problem(about, f"{text}; sagas: {named}", cause.do[0], kind=cause.kind)

    def _stuck(
        self, about: str, command: str, waiting: Waiting, kinds: Sequence[CauseKind] = _OF_A_SERVICE
    ) -> Iterator[Finding]:
        """What keeps the sagas that wait for a command, besides what hangs."""
        causes = {cause.kind: cause for cause in reversed([*self._causes(waiting)]) if cause.kind in kinds}
        for cause in causes.values():
            text = f"{cause.text}; sagas that wait for {command}: {waiting.named}"
            # What a dead process has is taken over by another, if there is nothing else to do.
            yield _problem(about, text, cause) if cause.do else warning(about, text, kind=cause.kind)

    def _failing(self, service: str, evidence: Evidence) -> Iterator[Finding]:
        """Commands of a service whose attempts fail again and again."""
        for (name, command), failing in self._sagas.failing.items():
            if name == service:
                cause = fails(*failing.first[0])
                paused = pauses_of(service, command, evidence.pauses)
                held = f"; no more are sent: {paused[0].told} is paused" if paused else ""
                text = f"{cause.text}{held}; sagas: {failing.named}"
                yield warning(f"service {service}", text, *cause.do, kind=cause.kind)

    def _leftover(self, service: str, cause: Cause, entries: int) -> Iterator[Finding]:
        """Commands of a service that nobody runs, though no saga is known to wait for it."""
        unwanted = len(unread(self._client, self._keys, service).unwanted)
        text = f"{cause.text}; commands that no saga is known to wait for: {entries}"
        drops = (f"sagastream drop-commands {service}  # drops {unwanted} of them",) if unwanted else ()
        if unwanted == entries:
            yield warning(f"service {service}", text, *drops, kind=cause.kind)
        else:  # a process has read the others, and may have done something about them
            yield problem(f"service {service}", text, *cause.do, *drops, kind=cause.kind)

    def _formats(self, workers: Sequence[Process]) -> Iterator[Finding]:
        """What only some of the workers know, and what none of them does."""
        alive = [process for process in workers if process.is_alive]
        known = {number for process in alive for number in process.formats}
        for number in sorted(known):
            if behind := [process.name for process in alive if number not in process.formats]:
                names = ", ".join(behind)
                text = f"no saga of format {number} begins while workers run that do not know it: {names}"
                yield warning("workers", text)
        for number, sagas_of_it in sorted(self._sagas.newer.items()):
            text = f"sagas of format {number}: {sagas_of_it}; only a newer release can tell more of them"
            if number in known:
                yield ok("sagas", text)
            else:
                yield problem("sagas", f"{text}, and no worker of it is running: start one")

    def _jobs(self) -> Iterator[Finding]:
        """Steps that wait in queues of RQ that no worker reads."""
        # Imported here: that takes longer than the rest of the command.
        from sagastream.rq_steps.jobs import START_WORKER, queues_of_sagas, start_worker, waiting_for_worker

        try:
            waiting = waiting_for_worker(self._client, queues_of_sagas(self._client, self._keys.prefix))
        except redis.ResponseError as error:
            yield warning("rq", f"what waits in RQ's queues cannot be read: {describe(error)}")
            return
        for queue, jobs in waiting.items():
            text = f"no RQ worker works on it; jobs that wait: {jobs}"
            do = (f"{START_WORKER}  # starts one", f"{start_worker(queue)}  # so does this, if REDIS_URL is set")
            yield problem(f"queue {queue}", text, *do, kind=CauseKind.NO_RQ_WORKER)

    def _clock(self, processes: Sequence[Process]) -> Iterator[Finding]:
        """Times that the broker's clock has not reached yet: it was set back."""
        now_ms = sagas.read(self._client, self._keys, [])[1]
        ahead = {
            "the newest entry of a stream": self._streams.newest_ms - now_ms,
            "the last change of a saga": self._sagas.ahead_ms,
            "the last heartbeat of a process": max((-process.silent_ms for process in processes), default=0),
        }
        what, ahead_ms = max(ahead.items(), key=lambda item: item[1])
        if ahead_ms > _AHEAD_MS:
            text = f"{what} is {spoken(ahead_ms)} ahead of the broker's clock: the clock was set back"
            yield problem("clock", f"{text}. {SET_BACK}", "set the clock right")


def _problem(about: str, text: str, cause: Cause) -> Finding:
    """A problem that is this cause."""
    return problem(about, text, *cause.do, kind=cause.kind)


def _is_behind(cause: Cause, process: str, saga_id: str) -> bool:
    """Whether a saga waits for the handler of another one that hangs in this process."""
    return cause.kind is CauseKind.HANGS and (cause.facts.get("process"), cause.facts.get("saga_id")) == (
        process,
        saga_id,
    )


def _central(keys: StoreKeys) -> dict[str, str]:
    """The types of the keys that everything needs."""
    types = {keys.alive: "zset", keys.running: "hash", keys.services: "set", keys.paused: "hash"}
    for one in keys.partitions:
        types |= dict.fromkeys((one.requests, one.interventions, one.events, one.quarantine), "stream")
        types |= dict.fromkeys((one.timers, one.ended, one.begun), "zset")
        types[one.indexed] = "hash"
    return types
