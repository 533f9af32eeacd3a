"""Every key name of the store. No other code builds key names, and no Lua script does.

All keys of one partition share the hash tag {p}, so that one script may change them all, on a cluster too.

    key                          type    written by              lives
    saga:{p}:requests            stream  clients, bridges        an entry: until the orchestrator has taken it
    saga:{p}:replies             stream  services                an entry: until the orchestrator has taken it
    saga:{p}:commands:<service>  stream  orchestrator            an entry: until the service has answered it
    saga:{p}:saga:<saga_id>      hash    orchestrator            while the saga is live, and ENDED_KEPT_MS after its end
    saga:{p}:timers              zset    orchestrator            a member: while its saga is live
    saga:{p}:ended               zset    orchestrator            a member: as long as its saga's hash
    saga:{p}:events              stream  orchestrator            about the newest EVENTS_KEPT entries
    saga:{p}:quarantine          stream  orchestrator, services  until a person deals with it
    saga:{p}:done:<service>:<h>  hash    services                DONE_KEPT_S after its last write
    saga:services:<service>      hash    services                always: its commands and what undoes each
    saga:alive                   zset    workers, services       a member: ALIVE_KEPT_MS after it was last heard
    saga:running                 hash    services                a field: while the process runs something for long
    saga:store                   hash    the first process       always: the number of partitions

<h> is the hour in which the saga began. The score of a live saga in timers is when it next needs attention, in ms by
the broker's clock; it is +inf if the saga is parked. The score in ended is when the saga ended; the score in alive is
when the process was last heard.
"""

from typing import Final

#: Partitions that this release runs. The names allow for more; the store remembers what it was laid out for.
PARTITIONS: Final = 1

#: The consumer group of the orchestrator's workers; a service's group has the service's name.
ORCHESTRATOR_GROUP: Final = "orchestrator"

#: About how many entries the events stream keeps. A reader that falls further behind reads the sagas instead.
EVENTS_KEPT: Final = 100_000

#: How long a saga is kept after it has ended, unless a worker is told otherwise, in milliseconds: 7 days.
ENDED_KEPT_MS: Final = 7 * 24 * 3600 * 1000

#: How long a process stays in alive after it was last heard, in milliseconds: a day. Its consumer may stay in the group
#: for as long, and a restart of the broker makes that consumer look as if it had just asked for entries.
ALIVE_KEPT_MS: Final = 24 * 3600 * 1000
#: At most this many processes are kept there, those that were heard last.
ALIVE_KEPT: Final = 10_000

#: How long a service keeps its records of what it did, after the last write to their hash, in seconds: 2 days.
DONE_KEPT_S: Final = 2 * 24 * 3600

_HOUR_MS: Final = 3600 * 1000

REQUESTS: Final = "saga:{0}:requests"
REPLIES: Final = "saga:{0}:replies"
TIMERS: Final = "saga:{0}:timers"
ENDED: Final = "saga:{0}:ended"
EVENTS: Final = "saga:{0}:events"
QUARANTINE: Final = "saga:{0}:quarantine"
ALIVE: Final = "saga:alive"
RUNNING: Final = "saga:running"
STORE: Final = "saga:store"


def saga(saga_id: str) -> str:
    return f"saga:{{0}}:saga:{saga_id}"


def commands(service: str) -> str:
    return f"saga:{{0}}:commands:{service}"


def is_inbox(stream: str) -> bool:
    """Whether this is a stream whose entries are read and acknowledged: requests, replies or commands."""
    return stream in (REQUESTS, REPLIES) or stream.startswith(commands(""))


def service(key: str) -> str:
    """The service whose stream of commands has this key."""
    return key.removeprefix(commands(""))


def saga_id(key: str) -> str:
    """The saga whose hash has this key."""
    return key.removeprefix(saga(""))


def done(service: str, begun_ms: int) -> str:
    """The key at which `service` records what it did for a saga that began at `begun_ms`. It is the same for every
    attempt of every step."""
    return f"saga:{{0}}:done:{service}:{begun_ms // _HOUR_MS}"


def published(service: str) -> str:
    return f"saga:services:{service}"
