"""Every key name of the store. Nothing else, no Lua script either, puts one together.

One partition's keys share the hash tag {p}, so that one script may change them all, on a cluster too.

    key                          type    written by              lives
    saga:{p}:requests            stream  clients, bridges        an entry: until the orchestrator took it
    saga:{p}:replies             stream  services                likewise
    saga:{p}:commands:<service>  stream  orchestrator            an entry: until the service answered it
    saga:{p}:saga:<saga_id>      hash    orchestrator            while the saga is live, and ENDED_KEPT_MS after it
    saga:{p}:timers              zset    orchestrator            a member: while its saga is live
    saga:{p}:ended               zset    orchestrator            a member: as long as its saga's hash
    saga:{p}:events              stream  orchestrator            capped at EVENTS_KEPT entries, about
    saga:{p}:quarantine          stream  orchestrator, services  until a person deals with it
    saga:{p}:done:<service>:<h>  hash    services                DONE_KEPT_S after its last write; h: hour of the saga
    saga:services:<service>      hash    services                for good: published commands -> compensations
    saga:alive                   zset    workers, services       a member: ALIVE_KEPT_MS after it was last heard
    saga:store                   hash    whoever comes first     for good: the number of partitions

The score of a live saga in timers is when it needs attention next, in ms by the broker's clock; +inf where it is
parked. The score in ended is when it ended, the score in alive when the process was last heard.
"""

from typing import Final

#: Partitions that this release runs. The names allow for more; the store remembers what it was laid out for.
PARTITIONS: Final = 1

#: The consumer group of the orchestrator's workers; a service's group has the service's name.
ORCHESTRATOR_GROUP: Final = "orchestrator"

#: About how many entries the events stream keeps; who falls further behind reads the states instead.
EVENTS_KEPT: Final = 100_000

#: How long a saga is kept once it has ended, unless a worker is told otherwise, in milliseconds: 7 days.
ENDED_KEPT_MS: Final = 7 * 24 * 3600 * 1000

#: How long a process stays in alive that is not heard any more, in milliseconds: as long as its name in its group.
ALIVE_KEPT_MS: Final = 60_000

#: How long a service's record of what it did outlives the last write to its hash, in seconds: 2 days.
DONE_KEPT_S: Final = 2 * 24 * 3600

_HOUR_MS: Final = 3600 * 1000

REQUESTS: Final = "saga:{0}:requests"
REPLIES: Final = "saga:{0}:replies"
TIMERS: Final = "saga:{0}:timers"
ENDED: Final = "saga:{0}:ended"
EVENTS: Final = "saga:{0}:events"
QUARANTINE: Final = "saga:{0}:quarantine"
ALIVE: Final = "saga:alive"
STORE: Final = "saga:store"


def saga(saga_id: str) -> str:
    return f"saga:{{0}}:saga:{saga_id}"


def commands(service: str) -> str:
    return f"saga:{{0}}:commands:{service}"


def is_inbox(stream: str) -> bool:
    """Whether this is a stream whose entries somebody reads and acknowledges: requests, replies, commands."""
    return stream in (REQUESTS, REPLIES) or stream.startswith(commands(""))


def service(key: str) -> str:
    """The service whose commands are at this key."""
    return key.removeprefix(commands(""))


def saga_id(key: str) -> str:
    """The saga whose hash stands at this key."""
    return key.removeprefix(saga(""))


def done(service: str, begun_ms: int) -> str:
    """Where `service` records what it did for a saga begun then: the same key for every attempt of every step."""
    return f"saga:{{0}}:done:{service}:{begun_ms // _HOUR_MS}"


def published(service: str) -> str:
    return f"saga:services:{service}"
