"""The RQ jobs of steps, as the process of their service sees them: enqueued, looked at, taken back.

A job names no code. It holds the name of a service and the id of an entry of its commands. The service's own process
keeps that entry pending meanwhile (see dispatcher). The job does with the entry what that process would do: it looks up
the command, calls the handler, records and answers, and undoes what was overruled. So neither an effect nor its answer
needs the process that sent the job.
"""

import time
from collections.abc import Sequence
from typing import Any, Final

import redis
from msgspec import Struct
from rq import Queue
from rq.exceptions import DeserializationError
from rq.job import Job
from rq.results import Result
from rq.serializers import JSONSerializer

from sagastream.broker.wire import execute
from sagastream.core.commands import Command
from sagastream.rq_steps.job_meta import entry_and_left
from sagastream.rq_steps.queues import WORKER_COMMAND, waiting_for_worker
from sagastream.rq_steps.server import RqServer
from sagastream.service.declaration import Service
from sagastream.store.job_names import job_id
from sagastream.store.keys import ENDED_KEPT_MS

#: The function that every job names. It has to stay valid: jobs wait in Redis, and another release may run them.
RUN_STEP: Final = "sagastream.rq_runner.run_step"
#: How long RQ keeps a job that failed, in seconds: as long as its saga is kept.
_FAILED_KEPT_S: Final = ENDED_KEPT_MS // 1000
#: The statuses of a job that may still answer.
_LIVE: Final = {b"created", b"queued", b"started", b"deferred", b"scheduled", b"rate_limited", b"ready_to_enqueue"}
#: The error with which a job ends if the worker has another serializer.
_UNREADABLE: Final = f"{DeserializationError.__module__}.{DeserializationError.__name__}"


class JobState(Struct, frozen=True, kw_only=True):
    """What a job was like when it was looked at."""

    status: bytes | None = None  # as RQ writes it; None: there is no such job
    entry: str | None = None  # the entry that it is for
    left: bool = False  # its worker does not have the command, and another release of the service does
    abandoned: tuple[bytes, ...] = ()  # if its worker is not heard of any more: the executions that are left in RQ

    @property
    def is_live(self) -> bool:
        """Whether it may still answer."""
        return self.status in _LIVE and not self.abandoned

    def is_still(self, status: bytes | None, meta: bytes | None) -> bool:
        return (self.status, self.entry) == (status, entry_and_left(meta)[0])


class Jobs:
    """The jobs of one service. All of it raises redis.RedisError or, if RQ's server is not the broker, what
    RqServer.asking raises."""

    def __init__(self, server: RqServer, service: Service, prefix: str) -> None:
        """`prefix`: of the store."""
        self._server = server
        self._client = client = server.client
        self._prefix = prefix
        self._service = service
        self._queues = {name: Queue(name, connection=client, serializer=JSONSerializer) for name in service.queues}

    def id_of(self, command: Command, partition: int) -> str:
        return job_id(command, prefix=self._prefix, partition=partition)

    def enqueue(
        self,
        command: Command,
        entry_id: str,
        partition: int,
        *,
        time_limit_s: int,
        undoing: bool,
        again: bool,
        dead: JobState | None,
    ) -> None:
        """Enqueue the job of a command, unless it has a live one already.

        A job that has ended is replaced, unless it was for this same entry: then `turn` of the dispatcher answers for
        it.

        Args:
            partition: the number of that in which the entry is.
            time_limit_s: how long the job may take.
            undoing: the job is to undo what an earlier job of this entry may have done.
            again: the command was delivered before, so that somebody may have begun with it.
            dead: what a job was like that will not answer, whatever its status says.
        """
        queue = self._queue(command)
        one = self.id_of(command, partition)
        key = Job.key_for(one)
        with self._server.asking(), self._client.pipeline() as pipeline:
            while True:
                try:
                    _watch(pipeline, key)
                    status, meta = _hmget(pipeline, key)
                    is_dead = dead is not None and dead.is_still(status, meta)
                    if not is_dead and (status in _LIVE or (entry_and_left(meta)[0] == entry_id and not undoing)):
                        return
                    pipeline.multi()
                    self._erase(pipeline, queue, one, dead)
                    job = self._job(command, entry_id, partition, time_limit_s, again=again or status is not None)
                    queue.enqueue_job(job, pipeline)
                    pipeline.execute()
                    return
                except redis.WatchError:
                    continue  # somebody else has just enqueued it, or it has just ended

    def look(self, job_ids: Sequence[str]) -> list[JobState]:
        """What each of these jobs is like now."""
        pipeline = self._client.pipeline(transaction=False)
        for one in job_ids:
            pipeline.hmget(Job.key_for(one), ["status", "meta"])
        for queue in self._queues.values():
            pipeline.zrange(queue.started_job_registry.key, 0, -1, withscores=True)
        with self._server.asking():
            answers = execute(pipeline)
        executions: dict[str, list[tuple[bytes, float]]] = {}
        for found in answers[len(job_ids) :]:
            for member, heard_until in found:
                executions.setdefault(member.partition(b":")[0].decode(), []).append((member, heard_until))
        states = []
        for one, (status, meta) in zip(job_ids, answers, strict=False):
            begun = executions.get(one, [])
            is_heard = status != b"started" or any(heard_until >= time.time() for _, heard_until in begun)
            abandoned = () if is_heard else tuple(member for member, _ in begun)
            entry, left = entry_and_left(meta)
            states.append(JobState(status=status, entry=entry, left=left, abandoned=abandoned))
        return states

    def is_in_queue(self, command: Command, one: str) -> bool:
        """`one`: the id of its job."""
        with self._server.asking():
            return self._client.lpos(self._queue(command).key, one) is not None

    def take_back(self, command: Command, one: str) -> bool:
        """Delete the job of a command; False: it is being begun. `one`: its id."""
        key = Job.key_for(one)
        with self._server.asking(), self._client.pipeline() as pipeline:
            try:
                _watch(pipeline, key)
                if _hmget(pipeline, key)[0] != b"queued":
                    return False
                pipeline.multi()
                pipeline.delete(key)
                self._queue(command).remove(one, pipeline=pipeline)
                pipeline.execute()
            except redis.WatchError:
                return False
        return True

    def last_words(self, one: str) -> str:
        """What RQ says about the end of a job that failed, not escaped; "" if it says nothing. `one`: its id."""
        job = Job(one, connection=self._client, serializer=JSONSerializer)
        with self._server.asking():
            try:
                result = Result.fetch_latest(job, serializer=JSONSerializer)
            except redis.RedisError:
                raise
            except Exception:  # noqa: BLE001 - whatever RQ makes of what stands there
                return ""
        lines = (result.exc_string or "").strip().splitlines() if result else []
        words = lines[-1][:500] if lines else ""
        # The job ran in a worker with RQ's default serializer. If SagaWorker refuses a job, its own words say why.
        return f"{words}; run it with {WORKER_COMMAND}" if words.startswith(_UNREADABLE) else words

    def without_worker(self) -> dict[str, int]:
        """See queues.waiting_for_worker."""
        with self._server.asking():
            return waiting_for_worker(self._client, self._service.queues)

    def _queue(self, command: Command) -> Queue:
        registration = self._service.registration(command)
        assert registration is not None
        return self._queues[registration.queue or ""]

    def _erase(self, pipeline: Any, queue: Queue, one: str, dead: JobState | None) -> None:
        pipeline.delete(Job.key_for(one), f"{Result.get_key(one)}")  # type: ignore[no-untyped-call]
        for registry in (queue.failed_job_registry, queue.finished_job_registry, queue.canceled_job_registry):
            pipeline.zrem(registry.key, one)
        if dead is not None and dead.abandoned:
            # Because of these, RQ would consider the new job abandoned too.
            pipeline.zrem(queue.started_job_registry.key, *dead.abandoned)

    def _job(self, command: Command, entry_id: str, partition: int, time_limit_s: int, *, again: bool) -> Job:
        return Job.create(
            RUN_STEP,
            args=(self._service.name, entry_id, again, partition, self._prefix),
            connection=self._client,
            serializer=JSONSerializer,
            id=self.id_of(command, partition),
            timeout=time_limit_s,
            failure_ttl=_FAILED_KEPT_S,
            description=command.told,
            meta={"entry": entry_id},
        )


def _watch(pipeline: Any, key: str) -> None:
    pipeline.watch(key)


def _hmget(pipeline: Any, key: str) -> list[bytes | None]:
    found: list[bytes | None] = pipeline.hmget(key, "status", "meta")
    return found
