"""Examines a store: is the broker set up to keep it, does every saga in it have a reason to move, is somebody at work?

`Doctor.examine` yields findings one by one. With `repair`, what can be set right is set right. Every other problem says
what to do.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Final

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.failures import is_outage, is_silent
from sagastream.client.evidence import survey
from sagastream.codecs.setting import codec_of
from sagastream.core.bulks import BulkState
from sagastream.core.causes import CauseKind, Evidence
from sagastream.core.durations import spoken
from sagastream.core.why import no_worker
from sagastream.core.why_out import SET_BACK
from sagastream.core.why_waits import pause_told, pauses_nothing
from sagastream.errors import SettingsError
from sagastream.store import bulks, heartbeat, layout, lineage, published, reach, sagas
from sagastream.store.heartbeat import Kind, Process
from sagastream.store.keys import ORCHESTRATOR_GROUP
from sagastream.store.quarantine import Quarantine
from sagastream.store.reach import ranges
from sagastream_bridge.inspection import bulk_views, rq_check, server_check, sharing
from sagastream_bridge.inspection.findings import Finding, cannot_tell, ok, problem, problem_of, warning
from sagastream_bridge.inspection.indexes import SagaCheck
from sagastream_bridge.inspection.key_check import KeyCheck, central
from sagastream_bridge.inspection.service_check import ServiceCheck
from sagastream_bridge.inspection.strays import strays
from sagastream_bridge.inspection.streams import StreamCheck

#: How far the broker's clock may be behind what was written before that is told, in milliseconds.
_AHEAD_MS: Final = 1_000
#: For how long a request may be unread, in milliseconds. A worker that prefers its partition takes it at once.
_UNREAD_MS: Final = 10_000
#: A worker notes at least this often that it goes on with a bulk, in milliseconds, unless all are very busy.
_BULK_MOVES_WITHIN_MS: Final = 30_000
#: At most so many processes are named.
_NAMED: Final = 8


class Doctor:
    def __init__(self, broker: Broker, *, repair: bool = False) -> None:
        """`repair`: set right what can be set right; else only report it. Raises StoreMismatch."""
        self._broker = broker
        self._client = broker.client
        self._unreadable: redis.RedisError | None = None  # why it is not known how the store is laid out
        try:
            self._reach = run(self._client, reach.look(layout.look(broker), scripts=True))
        except redis.RedisError as error:
            if not (broker.is_cluster and is_outage(error)):
                raise
            self._unreadable = error
            return
        self._keys = self._reach.keys
        self._is_there = bool(self._client.exists(self._keys.store))
        self._sagas = SagaCheck(self._client, self._keys, repair=repair)
        self._streams = StreamCheck(self._client, repair=repair)
        self._key_check = KeyCheck(self._client, repair=repair)
        self._repair = repair

    def examine(self) -> Iterator[Finding]:
        is_known = self._unreadable is None and (self._is_there or not self._broker.is_cluster)
        yield from server_check.examine(self._broker, self._keys if is_known else None)
        if self._unreadable is not None:
            text = f"how the store is laid out cannot be read: {self._unreadable}"
            yield problem("store", f"{text}; so nothing else can be examined, and no process can start")
            return
        if not self._is_there:
            yield from self._of_no_store()
        yield from self._left_out()
        if self._reach.shared is not None:
            yield problem("store", f"{self._reach.shared}: who is at work and what is paused cannot be read")
            yield from self._of_partitions()
            return
        for loss in lineage.losses(self._client, self._keys):
            remedy = "see sagastream doctor --after-failover; once that is dealt with: sagastream doctor --settled"
            yield problem("failover", f"{loss.text}: {loss.evidence}", remedy)
        if not (yield from self._of_partitions()):
            return  # then nothing else can be read
        services = {service for service, _ in self._sagas.waiting}
        services |= set(run(self._client, published.services(self._keys)))
        evidence = run(self._client, survey(self._keys, services))
        service_check = ServiceCheck(
            self._client,
            self._keys,
            evidence,
            sagas_seen=self._sagas,
            streams=self._streams,
            key_check=self._key_check,
        )
        processes = heartbeat.processes(self._client, self._keys, services)
        yield from self._workers(evidence, [process for process in processes if process.kind == Kind.WORKER])
        for service in sorted(services):
            yield from service_check.examine(service)
            yield from self._sharing(f"service {service}", [one for one in processes if one.service == service])
        yield from self._paused(evidence, processes)
        yield from self._bulks(evidence.now_ms)
        yield from self._clock(processes)
        yield from rq_check.examine(self._broker, self._keys.prefix)
        if quarantined := len(Quarantine(self._client, self._keys)):
            yield warning(
                "quarantine", f"messages that were set aside: {quarantined}", "see sagastream quarantine list"
            )

    def _of_no_store(self) -> Iterator[Finding]:
        number = len(self._keys.tags)
        text = f"there is none yet: the first process makes it, with {number} partition{'s' * (number > 1)}"
        if self._broker.is_cluster and number == 1:
            more = "sagastream init --partitions N, before any other process starts"
            yield warning("store", f"{text}, so one node does all the work", more)
        else:
            yield ok("store", text)

    def _left_out(self) -> Iterator[Finding]:
        """Which partitions cannot be examined. Why a node does not answer was told of the node."""
        silent = {number for number, error in self._reach.away.items() if is_silent(error)}
        rest = {number: error for number, error in self._reach.away.items() if number not in silent}
        for text in reach.left_out(self._keys, rest):
            yield problem("partitions", text)
        if silent:
            which = f"{ranges(silent)} of {len(self._keys.tags)}"
            yield warning("partitions", f"no node answers for {which}: what follows leaves them out")

    def _of_partitions(self) -> Generator[Finding, None, bool]:
        """What stands in the partitions that can be reached. Returns whether their keys have the right types."""
        needed = central(self._keys, shared=self._reach.shared is None)
        wrong_types = list(self._key_check.types(needed))
        yield from wrong_types
        if wrong_types:
            return False
        yield from self._key_check.kept(needed)
        for partition in self._keys.partitions:
            for stream in partition.streams:
                yield from self._streams.renew(stream)
                yield from self._streams.size(stream)
        yield from self._sagas.examine()
        yield from strays(self._client, self._keys, repair=self._repair)
        yield from self._sealed()
        return True

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
            yield cannot_tell("workers", evidence)
        elif dead is None:
            at_work = sum(worker.is_alive for worker in workers)
            yield ok("workers", f"at work: {at_work}; entries waiting or in flight: {waiting}")
            yield from self._unread(evidence.now_ms)
        elif waiting or self._sagas.live:
            yield problem_of("workers", f"{dead.text}; requests that wait: {waiting}", dead)
        elif workers:
            yield warning("workers", dead.text, *dead.do, kind=dead.kind)
        else:
            yield ok("workers", "none is running, and there is nothing to do")
        yield from self._formats(workers)
        yield from self._sharing("workers", workers)
        yield from self._unseen(workers)
        for stream in streams:
            yield from self._streams.examine(stream, ORCHESTRATOR_GROUP)

    def _unread(self, now_ms: int) -> Iterator[Finding]:
        """Partitions of which nobody reads the requests, although workers are said to be alive."""
        since: dict[int, int] = {}
        for one in self._keys.partitions:
            for stream in (one.requests, one.interventions):
                added_ms = self._streams.unread_since(stream, ORCHESTRATOR_GROUP)
                if added_ms is not None and now_ms - added_ms > _UNREAD_MS:
                    since[one.number] = min(added_ms, since.get(one.number, added_ms))
        if since:
            waits_ms = now_ms - min(since.values())
            text = f"requests in partitions {ranges(since)} were not read for {spoken(waits_ms)}"
            why = "more come than workers can do, or the workers that prefer these partitions do not run"
            yield warning("workers", f"{text}: {why}")

    def _sharing(self, about: str, processes: Sequence[Process]) -> Iterator[Finding]:
        """Who prefers which partitions."""
        if (text := sharing.line(processes, len(self._keys.tags))) is not None:
            yield ok(about, text)

    def _unseen(self, workers: Sequence[Process]) -> Iterator[Finding]:
        """Workers that are heard and do not read. In a store of one partition, nothing depends on who is heard."""
        names = sorted(one.name for one in workers if one.beats and one.is_alive and one.unseen_ms is None)
        if names and len(self._keys.partitions) > 1:
            named = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            what = f"workers are heard that read nothing, so nobody runs them: {named}"
            then = "they get no partitions; any user who may write a heartbeat can have written them"
            yield warning("workers", f"{what}; {then}", "redis-cli MONITOR  # shows the address that writes them")

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

    def _clock(self, processes: Sequence[Process]) -> Iterator[Finding]:
        """Times that the broker's clock has not reached yet: it was set back."""
        now_ms = sagas.read(self._client, self._keys, [])[1]
        ahead = {
            # On a cluster, an entry has the time of its own node: see cluster_check.of_clocks.
            "the newest entry of a stream": 0 if self._keys.apart else self._streams.newest_ms - now_ms,
            "the last change of a saga": self._sagas.ahead_ms,
            "the last heartbeat of a process": max((-process.silent_ms for process in processes), default=0),
        }
        what, ahead_ms = max(ahead.items(), key=lambda item: item[1])
        if ahead_ms > _AHEAD_MS:
            text = f"{what} is {spoken(ahead_ms)} ahead of the broker's clock: the clock was set back"
            yield problem("clock", f"{text}. {SET_BACK}", "set the clock right")
