"""Every metric: its name, what it counts, its labels. Nothing else names one, and docs/metrics.md lists them all.

No label holds the id of a saga: the number of series must not grow with the number of sagas.
"""

from typing import Final, Literal, NamedTuple


class Metric(NamedTuple):
    """One metric. Names of counters end in `_total`; those that end in `_seconds` or `_bytes` count in these units."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # of a histogram: the upper bounds of its buckets, but for the last, +Inf

    @property
    def series(self) -> frozenset[str]:
        """The names under which Prometheus has it."""
        ends = ("_bucket", "_count", "_sum") if self.kind == "histogram" else ("",)
        return frozenset(self.name + end for end in ends)


_STEP: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_SAGA: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 86400.0)
_HANDLER: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TURN: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_SIZE: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_COMMAND: Final = ("service", "command", "direction")

# --- every process

PROCESS_INFO: Final = Metric(
    "sagastream_process_info", "gauge", "1: a process of sagastream, and its release.", ("kind", "version")
)
BROKER_AWAY: Final = Metric("sagastream_broker_away", "gauge", "1 while the process cannot use the broker, else 0.")
OUTAGES: Final = Metric("sagastream_broker_outages_total", "counter", "How often the process lost the broker.")
OUTAGE_SECONDS: Final = Metric(
    "sagastream_broker_outage_seconds_total", "counter", "How long those outages took that are over."
)
WRITES_LOST: Final = Metric(
    "sagastream_writes_lost_total", "counter", "How often the process noticed that the store has lost writes."
)
QUARANTINED: Final = Metric(
    "sagastream_quarantined_total", "counter", "Messages that the process has set aside.", ("stream",)
)

# --- a worker

OUT_OF_REACH: Final = Metric(
    "sagastream_partitions_away",
    "gauge",
    "Partitions that the worker cannot reach, of those that it works on: their node is away or refuses it, their slot "
    "is moving, or a key is damaged.",
)
BEGUN: Final = Metric("sagastream_sagas_begun_total", "counter", "Sagas that the worker has begun.", ("definition",))
SAGA_SECONDS: Final = Metric(
    "sagastream_saga_duration_seconds",
    "histogram",
    "From the begin of a saga to its end; its count is that of the sagas that have ended.",
    ("definition", "outcome"),
    _SAGA,
)
PARKED: Final = Metric(
    "sagastream_sagas_parked_total", "counter", "How often a saga was parked, by where.", ("service", "command")
)
STEP_SECONDS: Final = Metric(
    "sagastream_step_duration_seconds",
    "histogram",
    "From the sending of a command to the end of that attempt, as the worker sees it, queues included; its count is "
    "that of the attempts.",
    (*_COMMAND, "outcome"),
    _STEP,
)
LOST: Final = Metric(
    "sagastream_comparisons_lost_total",
    "counter",
    "Changes that had to be decided again, because another worker was faster.",
)
TURN_SECONDS: Final = Metric(
    "sagastream_commit_duration_seconds", "histogram", "How long a turn took to decide and to commit.", bounds=_TURN
)
TURN_SAGAS: Final = Metric("sagastream_commit_sagas", "histogram", "How many sagas a turn has changed.", bounds=_SIZE)
MESSAGES: Final = Metric("sagastream_messages_total", "counter", "Messages and timers on which the worker has decided.")
STUCK: Final = Metric(
    "sagastream_streams_stuck_total",
    "counter",
    "How often the worker said that a stream holds sagas up: once a minute for each.",
)

# --- a process of a service, and an RQ worker

HANDLER_SECONDS: Final = Metric(
    "sagastream_handler_duration_seconds",
    "histogram",
    "How long one call of a handler took.",
    (*_COMMAND, "outcome"),
    _HANDLER,
)
HELD: Final = Metric("sagastream_commands_in_flight", "gauge", "Commands that the process holds.", ("service",))
RUNNING: Final = Metric("sagastream_handlers_running", "gauge", "Handlers that run now.", ("service",))

# --- a store

STORE_UP: Final = Metric("sagastream_store_up", "gauge", "1: the figures of the store could be read, else 0.")
LIVE: Final = Metric(
    "sagastream_store_live_sagas",
    "gauge",
    "Live sagas; each counts once, as PENDING, COMPENSATING or PARKED.",
    ("status",),
)
PARKED_AT: Final = Metric(
    "sagastream_store_parked_sagas", "gauge", "Parked sagas, by where they are parked.", ("service", "command")
)
PAUSED: Final = Metric(
    "sagastream_store_paused_seconds",
    "gauge",
    "For how long a service, or one of its commands, has been paused; an empty command: the whole service.",
    ("service", "command"),
)
HELD_SAGAS: Final = Metric(
    "sagastream_store_held_sagas",
    "gauge",
    "Sagas that are held at a service, since it or one of its commands is paused.",
    ("service",),
)
ENDED: Final = Metric("sagastream_store_ended_sagas", "gauge", "Ended sagas that are still kept.")
OLDEST: Final = Metric(
    "sagastream_store_oldest_live_saga_seconds", "gauge", "The age of the oldest live saga; 0: there is none."
)
REQUESTS: Final = Metric(
    "sagastream_store_requests", "gauge", "Requests that no worker has taken yet: begin, or intervention.", ("kind",)
)
TIMER_LAG: Final = Metric(
    "sagastream_store_timer_lag_seconds", "gauge", "How long ago the longest overdue saga was due; 0: none is overdue."
)
PROCESSES: Final = Metric(
    "sagastream_store_processes",
    "gauge",
    "Processes that are alive: workers, or those of a service.",
    ("kind", "service"),
)
COMMANDS: Final = Metric(
    "sagastream_store_commands",
    "gauge",
    "Commands without an answer: unread, or held by a process that has read them.",
    ("service", "state"),
)
OLDEST_COMMAND: Final = Metric(
    "sagastream_store_oldest_command_seconds", "gauge", "The age of the oldest such command; 0: none.", ("service",)
)
REPLIES: Final = Metric(
    "sagastream_store_replies", "gauge", "Answers of a service that no worker has taken yet.", ("service",)
)
OVERDUE: Final = Metric(
    "sagastream_store_overdue_handlers", "gauge", "Handlers that should have ended by now.", ("service",)
)
SET_ASIDE: Final = Metric(
    "sagastream_store_quarantined",
    "gauge",
    "Messages in the quarantine, by the service that set them aside; empty: workers did.",
    ("service",),
)
LOSSES: Final = Metric(
    "sagastream_store_losses", "gauge", "Losses of writes that nobody has said are settled; 0: none was found."
)
PARTITIONS_AWAY: Final = Metric(
    "sagastream_store_partitions_away",
    "gauge",
    "Partitions whose node of a cluster is away: the other figures leave them out.",
)
MEMORY: Final = Metric(
    "sagastream_store_memory_bytes", "gauge", "Memory that the server uses; of a cluster, the node that is fullest."
)
MEMORY_LIMIT: Final = Metric("sagastream_store_memory_limit_bytes", "gauge", "Its maxmemory; absent: it has no limit.")

#: All of them, by name.
ALL: Final = {one.name: one for one in tuple(globals().values()) if isinstance(one, Metric)}
