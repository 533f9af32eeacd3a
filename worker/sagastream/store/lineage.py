"""Has the store lost what it had accepted? Each process compares what it saw of the store with what is there now.

A failover to a replica that lags loses writes, and so does a restart from an older file. The server tells nobody. So
each process remembers, along with its heartbeat, how far the store was: the replication id and offset, how far its
streams were read, and its own heartbeat. If any of these goes back, the store has lost what was written since.
`losses.compare` says so; `Lineage` asks, tells, and keeps what was found in the store, for `sagastream doctor`.

On a cluster each node has a history of its own, and a partition has that of the node that holds it. So each partition
is looked at by itself, and has a heartbeat of its own, `seen`, which moves along with it.

Two threads of a process may look at once: one waits for a node that hangs, the other shows meanwhile that the process
is alive. Then nobody knows which of the two saw the store first, so only one of them counts. What is older would look
like a store that has gone back.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import redis

from sagastream.broker.exchange import Exchange, each_of, locked
from sagastream.broker.failures import NodeAway, is_outage, is_wrong_type
from sagastream.broker.scripting import even_if_full
from sagastream.broker.wire import or_raise
from sagastream.store import looks
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.looks import Look
from sagastream.store.losses import EntryId, Loss, Sight, Switch, as_one, compare, has_only_moved, when
from sagastream.telemetry import Log, Observer

#: How many looks are remembered, to say since when writes are lost. A process looks about once a second.
_REMEMBERED: Final = 120
#: At most this many streams, or partitions of a cluster, are looked at each time. All streams of one server go back
#: together; of the partitions of a cluster, each time others are looked at.
_AT_ONCE: Final = 16

#: Looks for what the process wrote last. It is called with the time by the broker's clock in ms; the number of the
#: partition (None: all, of a store on one server); and whether the server has another history: then it looks for all
#: that was written since the last look. Returns what is missing.
Missing = Callable[[int, int | None, bool], Exchange[list[str]]]


class _Trace:
    """What was seen of one partition of a cluster, or of a whole store."""

    def __init__(self, remembered: int) -> None:
        self.seen: deque[Sight] = deque(maxlen=remembered)
        self.compared = 0  # how many looks were compared and remembered
        self.gone: list[str] = []  # what was missing when it was looked at last
        self.beat_ms: int | None = None  # the heartbeat of this process there, on a cluster
        self.heard: tuple[bytes, int] | None = None  # the newest heartbeat of others, if this process writes none
        #: The node that holds the partition; "": it is not known.
        self.node = ""


class Lineage:
    """Remembers for one process how far the store was, and tells if it goes back."""

    def __init__(
        self,
        who: str,
        *,
        area: str,
        service: str | None = None,
        observer: Observer | None = None,
        missing: Missing | None = None,
    ) -> None:
        """
        Args:
            who: the name of the process, as its log records have it.
            area: of its log, see Log.
            service: the service that it is a process of; None: it follows sagas.
            missing: what was missing before the replication id changed is no loss: it has expired, or somebody has
                deleted it.
        """
        self._who = who
        self._log = Log(area, who)
        self._observer = observer
        self._missing = missing
        self._service = service
        self._traces: dict[int | None, _Trace] = {}  # by the number of the partition; None: of all
        self._turn = 0  # with which partition the next look begins, if there are too many
        self.reached: dict[str, EntryId] = {}  # by stream: the furthest that its group was seen; never changed in place
        #: How often the store, or a partition of it, went on from another moment or in another place than this process
        #: saw: its server has another replication id, or it has lost writes. Each server that starts gives itself a new
        #: replication id, and so does a replica that becomes the master; so the run id would say nothing more.
        self.changes = 0
        self._changed: dict[int | None, int] = {}  # … which of them was the last of a partition; None: of all
        # … and from when on each may differ from what this process saw, by the broker's clock in ms (None: nobody
        # knows); until that is taken.
        self._since: dict[int | None, int | None] = {}
        # Those that are not kept in the store yet, by replication id. What is read along with a look may fail, and end
        # it early.
        self._to_keep: dict[str, bytes] = {}
        self._refused = ""
        self._lock = threading.Lock()  # of all that a look changes

    def has_changed(self, number: int | None = None, since_ms: int | None = None) -> None:
        """The partition with this number, or the whole store (None), goes on from another moment. What was written
        there after `since_ms` may be lost; None: nobody knows since when."""
        self.changes += 1
        self._changed[number] = self.changes
        before_ms = self._since.get(number, since_ms)
        self._since[number] = None if since_ms is None or before_ms is None else min(since_ms, before_ms)

    def taken(self) -> dict[int | None, int | None]:
        """From when on partitions may differ from what this process saw, by their numbers (None: all), as it has found
        since it was last asked. It need not have found a loss: if a write got no answer, nobody knows whether it was
        kept."""
        found, self._since = self._since, {}
        return found

    def changed_since(self, changes: int, keys: StoreKeys) -> list[Partition]:
        """The partitions that go on from another moment since `changes` was so much."""
        if self._changed.get(None, 0) > changes:
            return list(keys.partitions)
        return [partition for partition in keys.partitions if self._changed.get(partition.number, 0) > changes]

    def look(self, keys: StoreKeys, member: bytes, beat_ms: int | None) -> Exchange[None]:
        """Look how far the store is, compare, tell and remember. Before the next heartbeat is written. What cannot be
        looked at now is passed over.

        Args:
            member: of this process, in the heartbeat; empty: it writes none, and looks at the newest one of another.
            beat_ms: the time that its last heartbeat had, as it was acknowledged; None: it wrote none yet.
        """
        yield from locked(self._look(keys, member, beat_ms), self._lock)

    def _look(self, keys: StoreKeys, member: bytes, beat_ms: int | None) -> Exchange[None]:
        try:
            if keys.apart:
                yield from self._look_at_partitions(keys, writes=bool(member))
            else:
                yield from self._look_at_all(keys, member, beat_ms)
            # All processes find the same loss: the first one keeps it.
            for history, kept in list(self._to_keep.items()):
                (answer,) = yield [even_if_full(keys.losses, "HSETNX", keys.losses, history, kept)]
                or_raise(answer)  # a new master may refuse writes until it has a replica; the next look keeps it
                self._to_keep.pop(history, None)
        except (redis.ResponseError, NodeAway) as error:
            self._cannot(error)

    def _cannot(self, error: redis.RedisError) -> None:
        if not is_outage(error) and str(error) != self._refused:
            self._refused = str(error)
            self._log.warning(f"cannot look whether the store has lost writes: {error}")

    def _look_at_all(self, keys: StoreKeys, member: bytes, beat_ms: int | None) -> Exchange[None]:
        trace = self._trace(None, _REMEMBERED)
        watched = member or (trace.heard or (b"", 0))[0]
        before = trace.compared
        found = yield from looks.at_all(keys, watched, self._service, _AT_ONCE, is_own=bool(member))
        if found is None:
            return  # a replica: it may lag, and the process cannot work with it anyway
        gone: list[str] = []
        if trace.seen and self._missing and trace.compared == before:
            is_another = found.sight.history != trace.seen[-1].history
            gone = yield from self._missing(found.sight.at_ms, None, is_another)
        if trace.compared != before:
            return  # another look was compared meanwhile, and this one may be older
        if member:
            trace.beat_ms = beat_ms
        if (told := self._compared(trace, None, found, gone)) is not None:
            self._tell(told, found.sight.history)

    def _look_at_partitions(self, keys: StoreKeys, *, writes: bool) -> Exchange[None]:
        """Look at each partition by itself, or at some of them; and at all of a node of which one has changed."""
        remembered = max(1, _REMEMBERED * _AT_ONCE // max(len(keys.partitions), _AT_ONCE))
        traces = {partition: self._trace(partition.number, remembered) for partition in keys.partitions}
        asked = self._chosen(traces)
        looked_at: set[Partition] = set()
        while asked:
            watched = {partition: self._watched(traces[partition], writes=writes) for partition in asked}
            before = {partition: traces[partition].compared for partition in asked}
            found, errors = yield from looks.at_each(watched, self._service)
            for error in errors:
                self._cannot(error)
            changed = yield from self._look_through({one: (traces[one], look) for one, look in found.items()}, before)
            looked_at.update(asked)
            asked = [one for one, trace in traces.items() if trace.node in changed and one not in looked_at]

    def _watched(self, trace: _Trace, *, writes: bool) -> tuple[bytes, str | None]:
        """See looks.at_each."""
        if writes:
            return self._who.encode(), trace.seen[-1].history if trace.seen else ""
        return (trace.heard or (b"", 0))[0], None

    def _look_through(
        self, found: Mapping[Partition, tuple[_Trace, Look]], before: Mapping[Partition, int]
    ) -> Exchange[set[str]]:
        """Compare what was found of these partitions. Returns on which nodes those were that have changed.

        `before`: how many looks at each were compared when this one began. If there are more by now, this one may be
        older than they are, and does not count.
        """
        missing = {
            one: self._missing(look.sight.at_ms, one.number, look.sight.history != trace.seen[-1].history)
            for one, (trace, look) in found.items()
            if trace.seen and self._missing and trace.compared == before[one]
        }
        gone = dict(zip(missing, (yield from each_of([*missing.values()])), strict=True))
        told: dict[str, dict[int, Loss | Switch]] = {}  # by replication id, which every node has for itself
        changed: set[str] = set()
        for partition, (trace, look) in found.items():
            answer, changes = gone.get(partition, []), self.changes
            if trace.compared != before[partition]:
                continue
            if isinstance(answer, redis.RedisError):
                self._cannot(answer)
                continue  # the next look sees both
            if (one := self._compared(trace, partition.number, look, answer)) is not None:
                told.setdefault(look.sight.history, {})[partition.number] = one
            if changes != self.changes and trace.node:
                changed.add(trace.node)
            trace.node = look.sight.node
            trace.beat_ms = trace.beat_ms if look.written_ms is None else look.written_ms
        for history, those in told.items():
            for each in as_one(those):
                self._tell(each, history)
        return changed

    def _chosen(self, traces: Mapping[Partition, _Trace]) -> list[Partition]:
        """At which to look now: at all or, if they are too many, at one of each node and at others in turn."""
        if len(traces) <= _AT_ONCE:
            return list(traces)
        those = [*traces][self._turn :] + [*traces][: self._turn]
        self._turn = (self._turn + _AT_ONCE // 2) % len(traces)
        of_nodes = {traces[partition].node: partition for partition in reversed(those)}
        chosen = list(dict.fromkeys([*of_nodes.values(), *those]))
        return chosen[: max(_AT_ONCE, len(of_nodes))]

    def _trace(self, number: int | None, remembered: int) -> _Trace:
        if (trace := self._traces.get(number)) is None:
            trace = self._traces[number] = _Trace(remembered)
        return trace

    def _compared(self, trace: _Trace, number: int | None, look: Look, gone: list[str]) -> Loss | Switch | None:
        """Compare what is there with what was seen before, and remember it. `gone`: what of that which the process
        wrote last is not there. Returns what is to be told."""
        now = look.sight if look.is_own else looks.of_another(look.sight, trace.beat_ms)
        found = None
        if trace.seen:
            last = msgspec.structs.replace(trace.seen[-1], beat_ms=trace.beat_ms)
            missing = next((one for one in gone if one not in trace.gone), None)
            trace.gone = gone
            found = compare([*list(trace.seen)[:-1], last], now, missing)
            if found is not None or (now.history != last.history and not has_only_moved(last, now)):
                self.has_changed(number, last.at_ms if found is None else found.since_ms)
            if found is not None:
                trace.seen.clear()
        trace.seen.append(now)
        trace.compared += 1
        trace.heard = look.newest
        if not look.is_own:
            trace.beat_ms = None if look.newest is None else look.newest[1]
        self.reached = self.reached | {
            stream: max(reached, self.reached.get(stream, reached)) for stream, reached in now.read.items()
        }
        return found

    def _tell(self, found: Loss | Switch, history: str) -> None:
        if isinstance(found, Switch):
            self._log.info(found.text)
            return
        since = "" if found.since_ms is None else f" after {when(found.since_ms)}"
        self._log.warning(
            f"{found.what}{since}: {found.evidence}; to see which sagas say other than what was "
            "done: sagastream doctor --after-failover"
        )
        if self._observer is not None:
            self._observer.writes_lost(since_ms=found.since_ms, evidence=found.evidence)
        self._to_keep[history or "unknown"] = msgspec.json.encode(msgspec.structs.replace(found, found_by=self._who))


def losses(client: "redis.Redis", keys: StoreKeys) -> list[Loss]:
    """What processes have found to be lost, and nobody has called settled yet; the oldest first."""
    try:
        kept: Any = client.hvals(keys.losses)
    except redis.ResponseError as error:
        if is_wrong_type(error):
            return []
        raise
    found = []
    for value in kept:
        try:
            found.append(msgspec.json.decode(value, type=Loss))
        except (msgspec.DecodeError, RecursionError):
            continue  # sagastream did not write it
    return sorted(found, key=lambda loss: loss.found_ms)


def settle(client: "redis.Redis", keys: StoreKeys) -> None:
    """Forget the losses: somebody has dealt with what is lost."""
    client.delete(keys.losses, keys.told)
