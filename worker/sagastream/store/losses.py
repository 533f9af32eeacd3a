"""What a process saw of the store at several moments, compared with what is there now: is anything lost?

Rejected: the newest ids of the streams alone. Others write to the new master too, so after a moment the ids are as
high as before. Nobody else writes the heartbeat of this process, and the new master goes on telling where it took over.

Rejected: to call it a loss whenever the new master lacks bytes. Each Sentinel publishes a message at the master every
two seconds, and a master pings its replicas. Both move the offset, even of a former master that refuses all writes. But
a replica gets everything in order. So if the last heartbeat is there, all that was written before it is there too.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from sagastream.store.columns import iso

#: How old the last heartbeat may be at the first look that saw what the new master lacks. If it is older, much may have
#: been written since. A process that waits for an answer is silent for at most 5.5 s.
_FRESH_MS: Final = 6000

#: Of how many partitions of a node the evidence is told.
_TOLD: Final = 3

_YEAR_5138_MS: Final = 10**14

#: The id of a stream's entry, as numbers.
EntryId = tuple[int, int]


class Sight(Struct, frozen=True, kw_only=True):
    """How far the store was at one moment."""

    at_ms: int  # by the broker's clock
    history: str  # the replication id; "": the server does not tell
    offset: int = 0  # how many bytes this history has
    before: str = ""  # the replication id that this history continues; "": none
    taken_over_at: int = 0  # how many bytes that one had, for this server, when this server became the master
    #: The heartbeat of this process: of what was seen, as it was acknowledged; None: none. If this process writes none,
    #: the newest one of another.
    beat_ms: int | None = None
    read: Mapping[str, EntryId] = {}  # by stream: how far its group was read
    node: str = ""  # the id of the node of the cluster; "": it is not known, or there is no cluster


class Loss(Struct, frozen=True, kw_only=True):
    """What was written after `since_ms` is lost, or may be. Times are ms by the broker's clock."""

    since_ms: int | None  # None: nobody knows since when
    evidence: str
    found_ms: int
    found_by: str = ""  # the name of the process
    certain: bool = True  # False: the new master lacks bytes, and nobody can tell whether they were writes
    partitions: tuple[int, ...] | None = None  # the numbers of those that lost something, on a cluster; None: all

    @property
    def text(self) -> str:
        """What is told to people."""
        since = "at a time that nobody knows" if self.since_ms is None else f"after {when(self.since_ms)}"
        return f"{self.what} {since}, as {self.found_by} found at {when(self.found_ms)}"

    @property
    def what(self) -> str:
        """The beginning of a sentence."""
        where = "" if self.partitions is None else f" in {_named(self.partitions)}"
        return f"the store {'has' if self.certain else 'may have'} lost what was written{where}"

    def is_of(self, partition: int) -> bool:
        """Whether the partition with this number may have lost something."""
        return self.partitions is None or partition in self.partitions


class Switch(Struct, frozen=True, kw_only=True):
    """Another server is the master now. It has all that was written until `since_ms`, and what this process wrote."""

    since_ms: int
    lacking: int = 0  # how many bytes that came later are not there
    partitions: tuple[int, ...] | None = None  # the numbers of those that it has, on a cluster; None: all

    @property
    def text(self) -> str:
        """What is told to people."""
        what = "the broker" if self.partitions is None else _named(self.partitions)
        has = "have" if self.partitions is not None and len(self.partitions) > 1 else "has"
        told = f"{what} {has} a new master; it has all that this process saw until {when(self.since_ms)}"
        if not self.lacking:
            return told
        return (
            f"{told}. {self.lacking} bytes that came later are not there: mostly they are messages of Sentinels, but a "
            "client may have written at that moment"
        )


def compare(seen: Sequence[Sight], now: Sight, missing: str | None = None) -> Loss | Switch | None:
    """
    Args:
        seen: what the process saw before, the oldest first; at least one.
        now: what is there.
        missing: what this process wrote last and is not there; None: it is there, or was not looked for.

    Returns None if nothing is missing.
    """
    last = seen[-1]
    kept_ms: list[int] = []  # times until which nothing is lost
    evidence: list[str] = []
    # A group that was made anew, by this process or another, has read nothing.
    if last.beat_ms is not None and now.beat_ms is None and _has_read(last) and not _has_read(now):
        evidence.append("none of its streams is there as it was, nor the heartbeat")
    if now.history != last.history:  # else a person has set something back: nothing is lost by that
        evidence += [] if missing is None else [missing]
        evidence += _gone_back(last, now, kept_ms)
    certain = bool(evidence)
    lacking = 0
    if continued := now.history != last.history and now.before == last.history != "":
        whole = [sight.at_ms for sight in seen if sight.history == last.history and sight.offset <= now.taken_over_at]
        kept_ms += whole[-1:]
        lacking = max(0, last.offset - now.taken_over_at)
    if lacking and not certain and whole and _has_beat(seen, now):
        return Switch(since_ms=whole[-1], lacking=lacking)
    if lacking:
        evidence.append(f"the new master lacks {lacking} bytes of what the old one had written")
    if evidence:
        since_ms = max(kept_ms, default=None)
        return Loss(since_ms=since_ms, evidence="; ".join(evidence), found_ms=now.at_ms, certain=certain)
    return Switch(since_ms=last.at_ms) if continued else None


def has_only_moved(last: Sight, now: Sight) -> bool:
    """Whether another node of the cluster holds the partition now, to which all that was seen has moved. Nobody has to
    look whether it is whole: a node gives up a key once the other one has it."""
    is_another = "" != last.node != now.node != ""
    is_there = last.beat_ms is not None and now.beat_ms is not None and now.beat_ms >= last.beat_ms
    return is_another and is_there and now.before != last.history


def as_one(found: Mapping[int, Loss | Switch]) -> list[Loss | Switch]:
    """What was found of the partitions of one node, by their numbers, told as one; what is lost comes first."""
    losses = {number: one for number, one in found.items() if isinstance(one, Loss)}
    switches = {number: one for number, one in found.items() if isinstance(one, Switch)}
    told: list[Loss | Switch] = [_one_loss(losses)] if losses else []
    if switches:
        since_ms = min(one.since_ms for one in switches.values())
        lacking = max(one.lacking for one in switches.values())
        told.append(Switch(since_ms=since_ms, lacking=lacking, partitions=tuple(sorted(switches))))
    return told


def _one_loss(losses: Mapping[int, Loss]) -> Loss:
    told = [f"partition {number}: {loss.evidence}" for number, loss in sorted(losses.items())]
    if len(told) > _TOLD:
        told[_TOLD:] = [f"and the like of {len(told) - _TOLD} more"]
    known = [loss.since_ms for loss in losses.values() if loss.since_ms is not None]
    return Loss(
        since_ms=min(known) if len(known) == len(losses) else None,
        evidence="; ".join(told),
        found_ms=max(loss.found_ms for loss in losses.values()),
        certain=any(loss.certain for loss in losses.values()),
        partitions=tuple(sorted(losses)),
    )


def _has_beat(seen: Sequence[Sight], now: Sight) -> bool:
    """Whether the new master has the last heartbeat, from just before the bytes that it lacks."""
    beat_ms = seen[-1].beat_ms
    if beat_ms is None or now.beat_ms != beat_ms:
        return False
    later_ms = next(sight.at_ms for sight in seen if sight.history == now.before and sight.offset > now.taken_over_at)
    return abs(later_ms - beat_ms) <= _FRESH_MS  # one in the future was written before the clock was set back


def _has_read(sight: Sight) -> bool:
    return any(reached > (0, 0) for reached in sight.read.values())


def _gone_back(last: Sight, now: Sight, kept_ms: list[int]) -> Iterator[str]:
    """What is less far than it was. Adds to `kept_ms` how far it is."""
    if last.beat_ms is not None and now.beat_ms is not None and now.beat_ms < last.beat_ms:
        yield f"the heartbeat of {when(last.beat_ms)} is not there, but the one of {when(now.beat_ms)}"
        kept_ms.append(now.beat_ms)
    for stream, reached in last.read.items():
        if (found := now.read.get(stream)) is not None and found < reached:
            yield f"{stream} was read up to {_text(reached)}, and is read up to {_text(found)}"
            kept_ms.append(found[0])


def _named(partitions: Sequence[int]) -> str:
    return f"partition{'s' * (len(partitions) > 1)} {', '.join(map(str, partitions))}"


def when(ms: int) -> str:
    """A time, for people. Somebody may have written any number into the store."""
    return iso(ms) if 0 <= ms < _YEAR_5138_MS else f"{ms} ms"


def _text(entry_id: EntryId) -> str:
    return f"{entry_id[0]}-{entry_id[1]}"
