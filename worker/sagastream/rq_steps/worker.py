"""The RQ worker of steps.

RQ imports and calls whatever a job in Redis names. SagaWorker does not: it runs the steps of the services with which it
was started, and refuses every other job.
"""

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, ClassVar, Final, TypeVar

import redis
from rq import Queue, Worker, get_current_job
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.logutils import colorizer
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from sagastream.broker.connection import DEFAULT_PREFIX, Broker
from sagastream.broker.failures import is_outage
from sagastream.broker.outage import Outage
from sagastream.codecs.setting import codec_of, seals_with
from sagastream.console import printable, summary
from sagastream.errors import BrokerError, JobRefused, ServiceError, SettingsError
from sagastream.log_output import write_to_stderr
from sagastream.rq_steps.connection import Connection
from sagastream.rq_steps.job_meta import LEFT, UNOPENED
from sagastream.rq_steps.jobs import RUN_STEP
from sagastream.rq_steps.queues import SERVICES_VARIABLE, WORKER_COMMAND
from sagastream.rq_steps.server import RQ_VARIABLE, RqAway, RqServer, rq_url
from sagastream.rq_steps.services import LOADED, coverage, load_services
from sagastream.service.handlers import Interrupted
from sagastream.service.runner import ServiceRunner, Worked
from sagastream.store.layout import MAX_PARTITIONS
from sagastream.telemetry import Log, Observer, guarded, runs
from sagastream.tracing.setting import watched

_T = TypeVar("_T")

_ENTRY_ID: Final = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)
#: The fields of a job in Redis that are used. None of them makes RQ import, call, fetch or repeat anything.
_BELIEVED: Final = frozenset(
    b"data created_at origin enqueued_at started_at ended_at timeout status description meta "
    b"failure_ttl result_ttl worker_name last_heartbeat".split()
)
#: How long what ends a job is put off at a time, in seconds. To pack a large command takes about as long.
_A_MOMENT_S: Final = 0.001
_WHO: Final = "rq worker"
_LOG: Final = Log("rq", _WHO)


class JobTimedOut(Interrupted):
    """A job takes too long. It is not an Exception, so that neither a handler nor the runner swallows it."""


class _TimeLimit(UnixSignalDeathPenalty):
    def __init__(self, timeout: int, exception: type[BaseException], **options: Any) -> None:
        kind = JobTimedOut if exception is JobTimeoutException else exception
        super().__init__(timeout, kind, **options)  # type: ignore[no-untyped-call]

    def handle_death_penalty(self, signum: int, frame: FrameType | None) -> None:
        """Raise what ends the job. hiredis 3.5 crashes if that is raised while it packs a command with a number in it,
        as our code and that of redis-py have it do. Then it is raised a moment later."""
        while frame is not None and frame.f_code.co_name == self.handle_death_penalty.__name__:
            frame = frame.f_back  # the signal has come again, in the midst of this
        if frame is not None and "pack_command" in frame.f_code.co_names:
            signal.setitimer(signal.ITIMER_REAL, _A_MOMENT_S)
            return
        super().handle_death_penalty(signum, frame)  # type: ignore[no-untyped-call]


def run_step(
    service: object, entry_id: object, again: object, partition: object = 0, prefix: object = DEFAULT_PREFIX
) -> str:
    """The job: answer one command of a service.

    Args:
        service: the name of one of the services of this worker.
        entry_id: the id of an entry of the service's commands.
        again: whether the command was delivered before, so that somebody may have begun with it.
        partition: the number of that in which the command is.
        prefix: of the store.

    Returns what became of it, for people. Raises JobRefused.
    """
    if not isinstance(service, str) or service not in LOADED:
        have = ", ".join(LOADED) or f"none; it is to be started as {WORKER_COMMAND}"
        raise JobRefused(f"this worker does not run the service {printable(str(service)[:200])}; it runs {have}")
    if not isinstance(entry_id, str) or not _ENTRY_ID.fullmatch(entry_id):
        raise JobRefused("the job does not name the entry of a command")
    if type(partition) is not int or not 0 <= partition < MAX_PARTITIONS or not isinstance(prefix, str):
        raise JobRefused("the job does not name a partition of a store")
    try:
        broker = Broker(os.environ["REDIS_URL"], prefix=prefix)
    except BrokerError as error:
        raise JobRefused(str(error)) from None
    runner = ServiceRunner(broker, LOADED[service], threading.Event(), observer=SagaWorker.watching)
    # The process that has sent the job has read the command from there, so this one can work there.
    outage = Outage(broker, runner.name, threading.Event(), observer=SagaWorker.watching, has_worked=True)
    try:
        worked = outage.patiently(lambda: runner.work_on(entry_id.encode(), partition, again=bool(again)))
        if worked is Worked.LEFT and (job := get_current_job()) is not None:
            job.meta[LEFT] = True  # the service's process has it run again, by whichever worker takes it then
            if (why := runner.unopened) is not None:
                job.meta[UNOPENED] = why
            job.save_meta()  # type: ignore[no-untyped-call]
        return str(worked)
    finally:
        broker.close()


class SagaJob(Job):
    """A job in Redis, of which only the fields are used that `Jobs.enqueue` writes."""

    def restore(self, raw_data: Any) -> Any:
        super().restore({name: value for name, value in raw_data.items() if name in _BELIEVED})
        self.description = printable((self.description or "")[:500])

    @classmethod
    def fetch(cls, id: str, connection: Any = None, serializer: Any = None) -> Job:  # noqa: A002 - RQ's name
        try:
            return super().fetch(id, connection=connection, serializer=serializer)
        except (NoSuchJobError, redis.ConnectionError, redis.TimeoutError):
            raise
        except Exception as error:
            # RQ passes over a job that does not exist. A job that it cannot read ends its workers, one after another.
            _LOG.warning(f"passed over the job {id!a}, which cannot be read: {summary(error)}")
            raise NoSuchJobError(f"the job {id!a} cannot be read") from error

    @property
    def func(self) -> Any:
        if self.func_name != RUN_STEP or self.instance is not None:
            name = printable(str(self.func_name)[:200])
            raise JobRefused(f"this worker runs the steps of sagas only, not {name}")
        return run_step


class SagaWorker(Worker):
    """`rq worker -w sagastream.rq_runner.SagaWorker QUEUE…`: runs the steps of SAGASTREAM_SERVICES and nothing else,
    whatever serializer or job class the command line names. If RQ_URL is set, its jobs are there."""

    death_penalty_class = _TimeLimit
    #: Is told what happens here: to be set by a subclass, which RQ's command line can name, or on the worker.
    observer: Observer | None = None
    #: The same for the jobs of this process, made harmless; set when the worker starts.
    watching: ClassVar[Observer | None] = None

    def __init__(
        self, queues: str | Queue | Sequence[str] | Sequence[Queue], name: str | None = None, **options: Any
    ) -> None:
        given = [queues] if isinstance(queues, str | Queue) else queues
        for queue in given:
            if isinstance(queue, Queue):
                options.setdefault("connection", queue.connection)
        if (url := rq_url()) is not None:  # RQ's command line knows --url, and REDIS_URL, which names the broker
            try:
                options["connection"] = Connection.from_url(url, driver_info=None)
            except ValueError as error:
                raise SystemExit(f"{_WHO}: {RQ_VARIABLE} is not usable: {error}") from None
        options |= {"job_class": SagaJob, "queue_class": Queue, "serializer": JSONSerializer}
        # By name: the Queue objects of RQ's command line would read the jobs with pickle.
        names = [queue.name if isinstance(queue, Queue) else queue for queue in given]
        super().__init__(names, name, **options)

    def work(self, *args: Any, **options: Any) -> bool:
        """Raises SystemExit, with what to do about it, if a service cannot be loaded, or RQ cannot work with the server
        that it is to use."""
        try:
            _have_logs_written()
            load_services(re.split(r"[,\s]+", os.environ.get(SERVICES_VARIABLE, "")))
            name = next(iter(LOADED)) if len(LOADED) == 1 else "sagastream-rq-worker"
            SagaWorker.watching = guarded(watched(name, self.observer, forks=True))
            broker = Broker(os.environ["REDIS_URL"])
            self._server = RqServer(broker, self.connection)
            with contextlib.suppress(redis.RedisError, RqAway), self._server.asking():
                self._server.check()  # if it is away, it is waited for when the worker is registered
        except (BrokerError, ServiceError, SettingsError) as error:
            raise SystemExit(printable(f"{_WHO}: {error}")) from None
        for line in coverage(self.queue_names(), LOADED.values()):
            _LOG.log(logging.WARNING if line.startswith("warning: ") else logging.INFO, line)
        for service in LOADED.values():
            if (codec := codec_of(service.codec)) is not None:
                _LOG.info(f"{seals_with(codec)} what steps of {service.name} return")
        self._outage = Outage(
            self._server, _WHO, threading.Event(), observer=SagaWorker.watching, called=self._server.called
        )
        try:
            with runs("rq", self.name, SagaWorker.watching):
                return super().work(*args, **options)
        except redis.RedisError as error:  # of RQ's server: only jobs ask the broker, in processes of their own
            if not self._server.is_apart:
                raise
            raise SystemExit(printable(f"{_WHO}: {self._server.told(error)}")) from None
        finally:
            broker.close()

    # RQ itself waits only for a server that it cannot reach, and only while it waits for a job. Any other error ends
    # its worker. What follows is what it calls when the worker starts, and while it lives.

    def register_birth(self) -> None:
        self._patiently(super().register_birth)

    def set_state(self, *args: Any, **options: Any) -> None:
        self._patiently(lambda: super(SagaWorker, self).set_state(*args, **options))

    def run_maintenance_tasks(self) -> None:
        self._patiently(super().run_maintenance_tasks)

    def check_for_suspension(self, *args: Any, **options: Any) -> None:
        self._patiently(lambda: super(SagaWorker, self).check_for_suspension(*args, **options))

    def dequeue_job_and_maintain_ttl(self, *args: Any, **options: Any) -> Any:
        return self._patiently(lambda: super(SagaWorker, self).dequeue_job_and_maintain_ttl(*args, **options))

    def execute_job(self, *args: Any, **options: Any) -> None:
        """If RQ's server goes away meanwhile, the work horse goes on and answers. What RQ then does not note down, the
        service's process finds out, as it does of a worker that has died."""
        try:
            super().execute_job(*args, **options)
        except redis.RedisError as error:
            if not is_outage(error):
                raise
            if self.horse_pid:
                self.wait_for_horse()
                self._horse_pid = 0
            self._patiently(self.heartbeat)

    def maintain_heartbeats(self, *args: Any, **options: Any) -> None:
        self._outage.once(lambda: super(SagaWorker, self).maintain_heartbeats(*args, **options))

    def heartbeat(self, *args: Any, **options: Any) -> None:
        self._patiently(lambda: super(SagaWorker, self).heartbeat(*args, **options))

    def teardown(self) -> None:
        self._outage.once(super().teardown)

    def _patiently(self, call: Callable[[], _T]) -> _T:
        return self._outage.patiently(call)


def _have_logs_written() -> None:
    """As RQ has its own lines written when a worker starts: unless somebody has configured the root logger. RQ's own
    lines are written once, by RQ if that has been configured. Raises SettingsError."""
    rq_log = logging.getLogger("rq.worker")
    if not logging.getLogger().handlers:
        write_to_stderr()
        rq_log.propagate = not rq_log.handlers
    if not rq_log.handlers:
        colorizer.notty = True  # its colours would be shown as escapes


def run_worker(broker: Broker, services: Sequence[str], observer: Observer | None = None) -> None:
    """Run a SagaWorker for these services (MODULE:NAME) until it is told to stop. Raises ServiceError, SettingsError,
    BrokerError, and redis.RedisError if the broker is away at the start. If RQ's server is, that is a BrokerError."""
    broker.check_server()
    server = RqServer(broker)  # raises if RQ_URL is not usable
    try:
        server.check()  # before RQ asks it: RQ's errors do not say which server they are about
    except redis.RedisError as error:
        if not server.is_apart:
            raise
        raise BrokerError(server.told(error)) from None
    finally:
        server.close()
    os.environ |= {"REDIS_URL": broker.url, SERVICES_VARIABLE: ",".join(services)}
    worker = SagaWorker(load_services(services), connection=Connection.from_url(server.url, driver_info=None))
    worker.observer = observer
    worker.work()
