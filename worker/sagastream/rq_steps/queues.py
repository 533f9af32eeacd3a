"""RQ's queues and jobs, for people who look after them: what waits for a worker, and how one is started."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import redis
from rq import Queue, Worker
from rq.job import Job
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from sagastream.broker.connection import DEFAULT_PREFIX
from sagastream.broker.exchange import Exchange
from sagastream.broker.wire import or_raise
from sagastream.core import causes
from sagastream.core.commands import Command
from sagastream.rq_steps import job_meta
from sagastream.rq_steps.asking import OnRq
from sagastream.rq_steps.server import RQ_VARIABLE, rq_url
from sagastream.store.job_names import begins, job_id

#: The services of a SagaWorker: MODULE:NAME, with commas or spaces between them.
SERVICES_VARIABLE: Final = "SAGASTREAM_SERVICES"
#: The command that starts the worker which runs the jobs.
WORKER_COMMAND: Final = "rq worker -w sagastream.rq_runner.SagaWorker"
#: … and one that does so for an embedded broker too.
START_WORKER: Final = "sagastream rq-worker MODULE:NAME"


def start_worker(queue: str) -> str:
    """The command of RQ that starts a worker for a queue. RQ finds the broker by REDIS_URL alone."""
    apart = f' --url "${RQ_VARIABLE}"' if rq_url() else ""
    return f"{SERVICES_VARIABLE}=MODULE:NAME {WORKER_COMMAND}{apart} {queue}"


def if_set() -> str:
    """Where that command can be used."""
    return f"if REDIS_URL and {RQ_VARIABLE} are set" if rq_url() else "if REDIS_URL is set"


def waiting_for_worker(client: "redis.Redis", queues: Iterable[str]) -> dict[str, int]:
    """The queues in which jobs wait although no RQ worker is registered for them, and how many jobs wait in each.

    A worker that was killed stays registered until RQ has not heard of it for some minutes. Raises redis.RedisError.
    """
    waiting = {}
    for name in queues:
        # Not by rq.Worker.all, which deletes registrations and reads whatever they name.
        workers: Any = client.smembers(WORKERS_BY_QUEUE_KEY % name)
        if not (workers and client.exists(*workers)) and (jobs := Queue(name, connection=client).count):
            waiting[name] = jobs
    return waiting


def job_of(command: Command, *, prefix: str, partition: int) -> Exchange[causes.Job | None]:
    """The job of a command, as RQ has it now; None: there is none. `prefix`: of the store. To be run by asking.run.
    Raises redis.RedisError."""
    one = job_id(command, prefix=prefix, partition=partition)
    fields = ("status", "origin", "worker_name", "started_at", "timeout", "meta")
    (found,) = yield [OnRq.of("HMGET", Job.key_for(one), *fields)]
    *words, meta = [None] * 6 if isinstance(found, redis.ResponseError) else or_raise(found)
    status, origin, worker, started, limit = (None if word is None else word.decode(errors="replace") for word in words)
    if status is None or origin is None:
        return None
    queue = origin
    key = Queue.redis_queue_namespace_prefix + queue
    before, registered = yield [OnRq.of("LPOS", key, one), OnRq.of("SMEMBERS", WORKERS_BY_QUEUE_KEY % queue)]
    workers = or_raise(registered)
    alive, place = yield [
        OnRq.of("EXISTS", *(workers or ["rq:worker:"])),
        OnRq.of("HMGET", f"{Worker.redis_worker_namespace_prefix}{worker}", "hostname", "pid"),
    ]
    host, pid = (None, None) if isinstance(place, redis.ResponseError) else or_raise(place)
    return causes.Job(
        queue=queue,
        status=status,
        before=or_raise(before),
        workers=or_raise(alive) if workers else 0,
        start=START_WORKER,
        start_by_rq=f"{start_worker(queue)}  # so does this, {if_set()}",
        worker=worker or "",
        process=f"{host.decode(errors='replace')}, pid {pid.decode(errors='replace')}" if host and pid else "",
        since_ms=_ms(started),
        limit_s=int(limit) if limit and limit.isdigit() and len(limit) <= 9 else None,
        unopened=job_meta.unopened(meta) if status == "finished" else "",
    )


def _ms(moment: str | None) -> int | None:
    """A time as RQ writes it, in milliseconds since the epoch; None: there is none."""
    try:
        found = datetime.fromisoformat(moment or "")
    except ValueError:
        return None
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def queues_of_sagas(client: "redis.Redis", store: str = DEFAULT_PREFIX) -> list[str]:
    """The queues whose oldest job is a step of a saga, of any service of the store with this prefix. Raises
    redis.RedisError."""
    found: Any = client.smembers(Queue.redis_queues_keys)
    prefix = Queue.redis_queue_namespace_prefix
    beginnings = tuple(f"{begins(store)}{mark}".encode() for mark in ("-", "_p"))
    oldest: dict[str, Any] = {key.decode(errors="replace"): client.lindex(key, 0) for key in found}
    return sorted(
        key.removeprefix(prefix)
        for key, job in oldest.items()
        if key.startswith(prefix) and job is not None and job.startswith(beginnings)
    )
