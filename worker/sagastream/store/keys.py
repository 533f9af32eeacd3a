"""Every key name of the store. No other code builds key names, and no Lua script does.

All keys of one partition share a hash tag, so that one script may change them all, on a cluster too. A saga lives
wholly in one partition. {0} is the tag of the first one; the tags of the others stand in saga:store.

    key                            type    written by              lives
    saga:{0}:requests              stream  clients, bridges        an entry: until the orchestrator has taken it
    saga:{0}:interventions         stream  clients, bridges        an entry: until the orchestrator has taken it
    saga:{0}:replies:<service>     stream  services                an entry: until the orchestrator has taken it
    saga:{0}:commands:<service>    stream  orchestrator            an entry: until the service has answered it
    saga:{0}:saga:<saga_id>        hash    orchestrator            while the saga is live, ENDED_KEPT_MS after its end
    saga:{0}:timers                zset    orchestrator            a member: while its saga is live
    saga:{0}:ended                 zset    orchestrator            a member: as long as its saga's hash
    saga:{0}:begun                 zset    orchestrator            a member: as long as its saga's hash
    saga:{0}:index:<name>=<value>  zset    orchestrator            a member: as long as that is so of its saga
    saga:{0}:indexed               hash    orchestrator            a field: as long as its saga is in such an index
    saga:{0}:events                stream  orchestrator            about the newest EVENTS_KEPT entries, at most 64 MiB
    saga:{0}:quarantine            stream  orchestrator            until a person deals with it; the newest 256 MiB
    saga:{0}:quarantine:<service>  stream  services                until a person deals with it
    saga:{0}:done:<service>:<h>    hash    services                DONE_KEPT_S after its last write
    saga:{0}:full                  string  orchestrator            FULL_KEPT_MS after a worker last saw no room: why
    saga:{0}:confirm               string  clients                 a minute: written to see whether a replica has it
    saga:{0}:seen                  zset    workers, services       on a cluster; a member: as long as in alive
    <a stream>:moving              stream  doctor                  until its entries are in the stream again
    <a stream>:copy                stream  operators               while a saga is erased: until it replaces the stream
    saga:services:<service>        hash    services                always: its commands and what undoes each
    saga:services                  set     services, orchestrator  always: the names of the services
    saga:definitions               set    deployers                always: the names of the definitions
    saga:definitions:<name>        hash   deployers                always: a field a version, and which one is current
    saga:samples                   set    sagastream up            until another process has the name: sample services
    saga:alive                     zset    workers, services       a member: ALIVE_KEPT_MS after it was last heard
    saga:running                   hash    services                a field: while the process runs something for long
    saga:store                     hash    the first process       always: the protocol, the partitions and their tags
    saga:paused                    hash    operators               a field: until somebody resumes what it names
    saga:operations                stream  operators               the newest 10,000 entries: what they did to the store
    saga:bulks                     zset    operators               a member: about as long as its bulk, at most 1,000
    saga:bulks:open                zset    operators, workers      a member: while workers have to do something about it
    saga:bulk:<id>                 hash    operators, workers      BULK_KEPT_MS after its last write
    saga:bulk:<id>:results         stream  workers                 the same; its newest 10,000 entries
    saga:losses                    hash    workers, services       until a person says that they are settled
    saga:told                      hash    workers                 the same, at most 7 days: ends that may be lost

<h> is the hour in which the saga began. The score of a live saga in timers is when it next needs attention, in ms by
the broker's clock; it is +inf if the saga is parked. The score in ended is when the saga ended; the score in begun and
in each index is when it began; the score in alive is when the process was last heard, that in seen when it last looked
at this partition; the score in bulks is when the bulk began, that in bulks:open when it was opened. indexed says of a
saga in which indexes it is, as a JSON list of their names, so that it can be taken out of them once its hash has
expired. `saga` is the prefix of the store: several stores on one server have several prefixes.

On a cluster a call may touch only keys of one slot. So the keys of the whole store have a hash tag there too, that of
the first partition: saga:{0}:alive. Only saga:store has none, since it is what says so.
"""

from binascii import crc_hqx
from collections.abc import Collection, Sequence
from copy import copy
from typing import Final, NamedTuple

from msgspec import Struct

from sagastream.broker.cluster_map import SLOTS
from sagastream.core.messages import is_service

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

#: How long a bulk is kept after something was last done about it, in milliseconds: 7 days.
BULK_KEPT_MS: Final = 7 * 24 * 3600 * 1000

#: How long clients are told that the store is full after a worker last saw it, in milliseconds. It looks about once a
#: second.
FULL_KEPT_MS: Final = 3_000

#: Of how long a time one hash has the records, in milliseconds: of the sagas that began within it.
HOUR_MS: Final = 3600 * 1000


class Partition(Struct, frozen=True):
    """One partition: the names of its keys."""

    number: int  # from 0
    base: str  # what they all begin with
    requests: str
    interventions: str
    timers: str
    ended: str
    events: str
    quarantine: str
    full: str
    begun: str
    indexed: str
    confirm: str
    seen: str

    @classmethod
    def of(cls, prefix: str, number: int, tag: str) -> "Partition":
        base = f"{prefix}:{{{tag}}}:"
        return cls(number, base, *(f"{base}{name}" for name in cls.__struct_fields__[2:]))

    def saga(self, saga_id: str) -> str:
        return f"{self.base}saga:{saga_id}"

    def index(self, name: str) -> str:
        """The sagas of which something is so; its name: see core/indexing.py."""
        return f"{self.base}index:{name}"

    def commands(self, service: str) -> str:
        return f"{self.base}commands:{service}"

    def replies(self, service: str) -> str:
        return f"{self.base}replies:{service}"

    def quarantine_of(self, service: str) -> str:
        """Where a service sets aside what it cannot read."""
        return f"{self.base}quarantine:{service}"

    @property
    def streams(self) -> list[str]:
        """The streams that do not belong to a service."""
        return [self.requests, self.interventions, self.events, self.quarantine]

    def streams_of(self, service: str) -> list[str]:
        """The streams of a service."""
        return [self.commands(service), self.replies(service), self.quarantine_of(service)]

    def done(self, service: str, begun_ms: int) -> str:
        """The key at which `service` records what it did for a saga that began at `begun_ms`. It is the same for every
        attempt of every step."""
        return f"{self.base}done:{service}:{begun_ms // HOUR_MS}"

    def records(self, service: str) -> str:
        """A pattern of all keys at which this service keeps records; `*`: every service."""
        return f"{self.base}done:{service}:*"

    def record_of(self, key: str) -> tuple[str, int] | None:
        """The service that keeps records at this key, and the hour of their sagas; None: it is no such key."""
        service, _, hour = key.removeprefix(f"{self.base}done:").partition(":")
        return (service, int(hour)) if is_service(service) and hour.isascii() and hour.isdigit() else None

    def saga_id(self, key: str) -> str:
        """The saga whose hash has this key."""
        return key.removeprefix(self.saga(""))


class Place(NamedTuple):
    """What a stream is whose entries are read and acknowledged."""

    partition: Partition
    what: str  # requests, interventions, replies or commands
    service: str  # whose replies or commands; else empty


class StoreKeys:
    """The names of all keys of a store."""

    def __init__(self, prefix: str, tags: Sequence[str], shared: str | None = None) -> None:
        """
        Args:
            tags: the hash tag of each partition, as layout reads them from the store.
            shared: the hash tag of the keys of the whole store, if it is on a cluster; None: they have none.
        """
        self.prefix = prefix
        self.tags = tuple(tags)
        self.shared = shared
        #: Whether each call must keep to the keys of one partition, or to those of the whole store.
        self.apart = shared is not None
        self.store = store(prefix)
        whole = prefix if shared is None else f"{prefix}:{{{shared}}}"
        self.alive = f"{whole}:alive"
        self.losses = f"{whole}:losses"
        self.told = f"{whole}:told"
        self.paused = f"{whole}:paused"
        self.operations = f"{whole}:operations"
        self.bulks = f"{whole}:bulks"
        self.bulks_open = f"{whole}:bulks:open"
        self.running = f"{whole}:running"
        self.services = f"{whole}:services"
        self.definitions = f"{whole}:definitions"
        self.samples = f"{whole}:samples"
        self._whole = whole
        self._all = tuple(Partition.of(prefix, number, tag) for number, tag in enumerate(tags))
        #: Its partitions, or those of them that are looked at: see `only`.
        self.partitions = self._all
        self._by_base = {partition.base: partition for partition in self._all}

    def only(self, numbers: Collection[int]) -> "StoreKeys":
        """The same store, of which somebody looks only at these partitions: nodes may be away that have the others."""
        keys = copy(self)
        keys.partitions = tuple(one for one in self._all if one.number in numbers)
        return keys

    def published(self, service: str) -> str:
        """What a service publishes."""
        return f"{self.services}:{service}"

    def definition(self, name: str) -> str:
        """All versions of a definition."""
        return f"{self.definitions}:{name}"

    def bulk(self, bulk_id: str) -> str:
        """What a bulk is, and how far it has come."""
        return f"{self._whole}:bulk:{bulk_id}"

    def bulk_results(self, bulk_id: str) -> str:
        """What has come of its requests."""
        return f"{self.bulk(bulk_id)}:results"

    def of(self, saga_id: str) -> Partition:
        """The partition in which a saga lives. The checksum is that of Redis Cluster, so every language has it."""
        if len(self._all) == 1:
            return self._all[0]
        return self._all[crc_hqx(saga_id.encode(), 0) % len(self._all)]

    def saga(self, saga_id: str) -> str:
        """The key of a saga's hash."""
        return self.of(saga_id).saga(saga_id)

    def in_calls(self, partitions: Sequence[Partition]) -> list[Sequence[Partition]]:
        """These partitions in groups: one call of a script may touch the keys of all partitions of a group. A call
        with few messages costs nearly as much as one with many. So on a single server they all go together."""
        if self.apart:
            return [(one,) for one in partitions]
        return [partitions] if partitions else []

    def partition_of(self, key: str) -> Partition | None:
        """The partition to which a key belongs; None: to none of this store."""
        return self._by_base.get(key[: key.find("}:") + 2])

    def place_of(self, stream: str) -> Place | None:
        """What this stream is; None: its entries are not read and acknowledged."""
        partition = self.partition_of(stream)
        if partition is None:
            return None
        what, colon, service = stream.removeprefix(partition.base).partition(":")
        if colon:
            return Place(partition, what, service) if what in ("replies", "commands") and is_service(service) else None
        return Place(partition, what, "") if what in ("requests", "interventions") else None


def store(prefix: str) -> str:
    """The key that says how the store is laid out."""
    return f"{prefix}:store"


def moving(stream: str) -> str:
    """Where a stream stands that takes no more entries, while its entries are moved to a new one. No service has a `:`
    in its name, so it is no service's stream."""
    return f"{stream}:moving"


def copy_of(stream: str) -> str:
    """Where a stream is copied to that is written anew."""
    return f"{stream}:copy"


def slot(tag: str) -> int:
    """The slot of a cluster in which all keys with this hash tag are."""
    return crc_hqx(tag.encode(), 0) % SLOTS
