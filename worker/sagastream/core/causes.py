"""The causes for which a live saga may wait, and the evidence from which why.py derives them. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct

from sagastream.core.pauses import Pause

#: For how long the handlers of a process that has to end may still run, unless it was told otherwise, in seconds.
GRACE_S: Final = 25.0


class CauseKind(StrEnum):
    """The closed list of causes. An older release may meet only these."""

    PARKED = "parked"  # a person must say how to go on
    BACKING_OFF = "backing_off"  # an attempt failed, and the next one has a time
    QUEUED = "queued"  # its command is behind others, for the processes of its service or for RQ workers
    RUNNING = "running"  # a process has its command
    HANGS = "hangs"  # a handler should have ended: the saga's own, or those in front of its command
    KILLS = "kills"  # processes took its command, one after the other, and did not live to answer it
    PROCESS_DEAD = "process_dead"  # the process that has its command is not heard any more
    HANDED_BACK = "handed_back"  # a process gave its command back, for another to take
    CANNOT_OPEN = "cannot_open"  # a process leaves its command to others, since it cannot open the sealed values of it
    NO_SERVICE = "no_service"  # no process of the service runs
    NO_COMMAND = "no_command"  # the service does not have the command, or none of its processes that run has it
    NO_RQ_WORKER = "no_rq_worker"  # its job waits in a queue that no RQ worker reads
    ANSWERED = "answered"  # a reply waits for a worker
    LOST = "lost"  # its command is not where a process would read it
    LATE = "late"  # its time has come, and no worker has seen to it
    SENT = "sent"  # its command is out; no more is known
    SETTLES = "settles"  # it goes back as soon as what is out is answered; of a saga that is a graph
    AWAITS_SIGNAL = "awaits_signal"  # a step waits for a signal
    AWAITS_RETRY = "awaits_retry"  # a command has failed, and is sent again when a signal comes
    PAUSES = "pauses"  # a step waits for a time
    PAUSED = "paused"  # somebody has paused its service, or its command: it is sent once that is resumed
    NOT_STARTED = "not_started"  # it was to begin later
    NO_WORKER = "no_worker"  # no worker runs, or all of them hang
    BROKER_FULL = "broker_full"  # the broker has no memory left for writes, or too little to begin sagas
    BROKER_READ_ONLY = "broker_read_only"  # the broker is a replica
    BROKER_DISK = "broker_disk"  # the broker cannot write to its disk, so it takes no writes
    BROKER_REPLICAS = "broker_replicas"  # the broker has fewer replicas than it wants, so it takes no writes


class Cause(Struct, frozen=True, kw_only=True):
    """One reason why a saga waits."""

    kind: CauseKind
    text: str  # what is the case, for people. It may hold text from outside: escape it before a terminal sees it
    do: tuple[str, ...] = ()  # what helps, one thing each; nothing: wait
    #: What it rests on. Names that end in _ms are times, in milliseconds since the epoch by the broker's clock.
    facts: Mapping[str, Any] = {}


# --- the evidence


class Reader(Struct, frozen=True, kw_only=True):
    """A worker, or a process of a service, that is alive or was heard not long ago."""

    name: str
    is_alive: bool
    silent_ms: int  # how long ago it was heard
    is_at_work: bool = True  # whether it was heard as lately as processes that work always are
    commands: frozenset[str] | None = None  # those that it has; None: it does not say


class Handler(Struct, frozen=True, kw_only=True):
    """A handler that has run for longer than a second."""

    process: str  # the name of its process
    saga_id: str
    step: int
    command: str
    since_ms: int
    not_after_ms: int | None = None  # its deadline; None: it has none
    timeout_ms: int | None = None  # if it has none: how long its saga waits for an attempt; None: that is not known
    overdue: bool = False  # whether it should have ended by now


class Unopened(Struct, frozen=True, kw_only=True):
    """A command that a process left to others, since it cannot open its sealed values."""

    process: str  # the name of the process
    saga_id: str
    step: int
    command: str
    why: str


class ServiceFacts(Struct, frozen=True, kw_only=True):
    """What is known about a service."""

    name: str
    processes: tuple[Reader, ...] = ()
    published: frozenset[str] | None = None  # its commands and compensations; None: it has never published any
    unread: int = 0  # how many commands no process has read yet
    handlers: tuple[Handler, ...] = ()  # of each process the oldest of those that run
    unopened: tuple[Unopened, ...] = ()  # of each process those that it met last
    hung: frozenset[str] = frozenset()  # the processes that begin nothing more: all their handlers are overdue

    @property
    def ever_was(self) -> bool:
        """Whether anything tells of a process of it, dead or alive."""
        return bool(self.processes) or self.published is not None

    @property
    def alive(self) -> list[Reader]:
        """Its processes that are alive."""
        return [process for process in self.processes if process.is_alive]

    @property
    def at_work(self) -> str:
        """How many of its processes are at work, in words. One that died a moment ago still counts as alive, but is not
        counted beside its successor."""
        number = sum(process.is_at_work for process in self.alive)
        quiet = len(self.alive) - number
        return f"{number}, and {quiet} not heard for some seconds" if quiet else str(number)

    def is_alive(self, name: str) -> bool:
        """Whether its process of this name is alive."""
        process = self.process(name)
        return process is not None and process.is_alive

    def process(self, name: str) -> Reader | None:
        """Its process of this name, dead or alive."""
        return next((process for process in self.processes if process.name == name), None)


class Evidence(Struct, frozen=True, kw_only=True):
    """What is known about a store."""

    now_ms: int  # by the broker's clock
    broker: tuple[Cause, ...] = ()  # what keeps the broker from taking writes
    workers: tuple[Reader, ...] = ()
    services: Mapping[str, ServiceFacts] = {}
    names: frozenset[str] = frozenset()  # of all services that have a process, or have published commands
    pauses: tuple[Pause, ...] = ()  # what is paused

    @property
    def hears(self) -> bool:
        """Whether processes can write that they are alive. If the store is full, they can."""
        return all(one.kind is CauseKind.BROKER_FULL for one in self.broker)

    def of(self, service: str) -> ServiceFacts:
        return self.services.get(service) or ServiceFacts(name=service)


class Whereabouts(StrEnum):
    """Where the command that is out was found."""

    UNREAD = "unread"  # in its stream, and no process has read it yet
    HELD = "held"  # a process has it, and has not answered yet
    SKIPPED = "skipped"  # in its stream, behind what the group has read, and held by nobody: nobody will read it
    GONE = "gone"  # not in its stream: it was answered or deleted
    UNKNOWN = "unknown"  # it was not looked for, or not found among the first


class Job(Struct, frozen=True, kw_only=True):
    """The RQ job of a command."""

    queue: str
    status: str  # as RQ writes it
    before: int | None = None  # how many jobs are in front of it in its queue; None: it is not in it
    workers: int = 0  # how many RQ workers read that queue
    start: str = ""  # the command that starts one …
    start_by_rq: str = ""  # … and RQ's own, with when it can be used: it knows no embedded broker
    worker: str = ""  # the RQ worker that runs it
    process: str = ""  # … and where that is: HOST, pid PID
    since_ms: int | None = None  # when it began
    limit_s: int | None = None  # how long it may take
    unopened: str = ""  # why the RQ worker that had it could not open the command; "": it could


class Place(Struct, frozen=True, kw_only=True):
    """Where a saga's command is."""

    where: Whereabouts = Whereabouts.UNKNOWN
    added_ms: int | None = None  # when it was added to its stream
    before: int = 0  # how many unread commands are in front of it …
    are_more: bool = False  # … or more: it has not counted further
    holder: str = ""  # the process that has it
    held_ms: int = 0  # how long ago it was delivered or, if that was later, its lease was renewed
    handed_back: bool = False  # … and gave it back
    deliveries: int = 0  # how often it was delivered
    takeovers: int = 0  # how often a process that took it over from another has begun it; of all attempts
    replies: int = 0  # how many replies wait for a worker
    job: Job | None = None
    unasked: str = ""  # why RQ's server could not be asked for its job; "": it could
