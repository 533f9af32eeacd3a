"""Reads streams as a member of a consumer group: no entry is lost, and those of a dead reader are taken over.

A delivered entry stays *pending* until it is acknowledged, which only the scripts that commit its effect do. So a
reader looks in three places: its own pending entries (it may not have received them: the answer was lost with a
connection), entries that another reader has held for longer than the lease, and new entries.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import redis

from sagastream.broker import exchange, partial, scripting, wire
from sagastream.broker.clock import BrokerClock, own_s
from sagastream.broker.entries import Entry, entries_of
from sagastream.broker.exchange import Exchange, together
from sagastream.broker.failures import NodeAway, is_deleted, is_wrong_type
from sagastream.broker.groups import Groups
from sagastream.broker.heard import Heard, Heartbeat
from sagastream.broker.leases import Leases
from sagastream.broker.nodes import give_up_waiting, nodes_of
from sagastream.broker.own_entries import OwnEntries
from sagastream.broker.portions import Counts, batches
from sagastream.broker.preferred import PreferredStreams, Prefers
from sagastream.broker.read_ahead import ReadAhead
from sagastream.broker.redelivered import EntryId, Redelivered
from sagastream.broker.wire import or_raise
from sagastream.telemetry import Log

_T = TypeVar("_T")

#: How many streams a line of the log names.
_NAMED: Final = 5
#: An id after which no entry comes.
_AFTER_ALL: Final = f"{(1 << 64) - 2}-0"


def consumer_name() -> str:
    """A name for this process in its consumer groups. No name is used twice: a namesake would take its entries."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class GroupReader:
    """Reads streams as one consumer of a group."""

    def __init__(
        self,
        client: "redis.Redis",
        *,
        group: str,
        consumer: str,
        who: str | None = None,
        lease_ms: int,
        on_join: Callable[[], Sequence[str]],
        heartbeat: Heartbeat | None = None,
        reached: Callable[[], Mapping[str, EntryId]] | None = None,
        prefers: Prefers = lambda: None,
        helps: bool = False,
    ) -> None:
        """
        Args:
            who: the name of the process, as its log records have it; by default that of the consumer.
            lease_ms: how long another reader may hold an entry before this one takes it over.
            on_join: called before the first reading, and before the first reading after an outage or after a group was
                deleted: by then, it may be another store. Returns the streams that are to be read.
            heartbeat: is sent along with the readings.
            reached: by stream: how far its group was, as the process saw it besides. With it, what a group gives again,
                since somebody has deleted it or set it back, counts as delivered before.
            prefers: which of the streams it prefers. It reads the others only if it is told to.
            helps: whether it takes over from dead readers in the others, too; more seldom.
        """
        self.streams: list[str] = []  # those that it may read
        self._prefers = prefers
        self._preferred = PreferredStreams(prefers)
        self._helps = helps
        self.now_ms = 0  # by the broker's clock, when it last gave new entries, or had none …
        self.between_s = (0.0, 0.0)  # … which was between these two moments, by `own_s`
        self.clock = BrokerClock()
        self._client = client
        self._group = group
        self._consumer = consumer
        self._log = Log("broker", who or consumer)
        self.leases = Leases(client, group=group, consumer=consumer, lease_ms=lease_ms, log=self._log)
        self._lease_ms = lease_ms
        self._on_join = on_join
        self._heartbeat = heartbeat
        self._heard = Heard(heartbeat, self._log)
        self._leave = scripting.Script("leave")
        self._groups = Groups(client, group, self._log)
        #: Streams that `counts` leaves out for a while: a reading waits for the others.
        self.left_out: frozenset[str] = frozenset()
        self._own = OwnEntries(client, group=group, consumer=consumer, log=self._log)
        self._redelivered = Redelivered()
        self._reached = reached
        self._was_deleted = False  # a stream or a group, since it last joined
        self._ahead = ReadAhead(lease_ms)
        self._cuts = 0  # of nodes of a cluster, after which it has read again what it holds
        #: Of the streams from which the last reading took new entries, at most how many it took of each.
        self.asked: Mapping[str, int] = {}
        self._joined = False

    def recover(self) -> None:
        """Let the next read start from the beginning: an answer may have been lost, or it may be another store."""
        self._joined = False
        self._ahead.forget()

    def renew(self) -> None:
        """Let the next readings return what this consumer holds already, which renews its lease."""
        self._ahead.forget()  # this is among it
        self._cuts = partial.cuts(self._client)
        self._own.again(self.streams)
        if nodes_of(self._client) is not None:
            give_up_waiting(self._client, self._group, self._consumer)  # what came there is among it, too, …
            self._own.again_later(self.streams)  # … or comes at this moment

    def renew_later(self, streams: Iterable[str]) -> None:
        """The same for these streams, in a moment: nothing could be done about what it holds of them."""
        self._own.again_later(streams)

    def read(self, block_ms: int | None, counts: Counts | None = None, *, everywhere: bool = False) -> list[Entry]:
        """The entries to work on now, at most BATCH per stream and, if they are large, at most portions.BYTES bytes:
        own pending ones, else abandoned ones, else new ones.

        Args:
            block_ms: how long to wait for new entries if no stream has any; None: not at all.
            counts: of the streams that are read, at most how many new entries; by default BATCH of each. If it leaves a
                stream out, no new entries of that stream are read, and the reading does not wait.
            everywhere: whether new entries are read from all streams, and not only from those that it prefers.
        """
        if self._ahead.is_stale:  # others may have taken some over; those that it still holds are read again
            self.renew()
        if entries := self._ahead.taken():
            return entries
        try:
            if not self._joined:
                self._join()
            self._choose()
            streams = self.streams if everywhere else self.mine
            entries = self._take_held() or self._take_new(counts or batches, streams, block_ms)
            return self._ahead.for_a_turn(entries)
        except redis.ResponseError as error:
            self._deleted(error)
            return []

    @property
    def mine(self) -> list[str]:
        """The streams that it prefers."""
        return self._preferred.names

    @property
    def has_more(self) -> bool:
        """Whether entries were read that are left for the next turn."""
        return bool(self._ahead)

    @property
    def is_joined(self) -> bool:
        """Whether `on_join` was called, and all since then has gone well."""
        return self._joined

    @property
    def _may_read_ahead(self) -> bool:
        """Whether the next reading will be of new entries, and none were read ahead yet. Without the first condition, a
        reader that always reads ahead would never take over what dead readers held."""
        is_settled = self._joined and bool(self.mine) and self._preferred.is_current
        is_settled = is_settled and partial.cuts(self._client) == self._cuts
        return is_settled and not (self._own or self._ahead) and self.leases.is_idle

    def follow(self, streams: Sequence[str]) -> None:
        """Read these streams too, from now on."""
        if more := [stream for stream in streams if stream not in self.streams]:
            self.streams += self._groups.made(more)

    def read_along(self, first: Exchange[_T], counts: Counts) -> Exchange[_T]:
        """The exchange and, if the next reading will be of new entries, a reading ahead in its first round trip. The
        next reading must come soon: the entries are this reader's from now on."""
        if not self._may_read_ahead or not (wanted := counts(self.mine)):
            return (yield from first)
        found, _ = yield from together(first, self._read_ahead(wanted))
        return found

    def show_up(self) -> None:
        """Show that this consumer is alive. Redis 7.0 does not count a reading that finds nothing, unless it is one of
        own entries."""
        if streams := list(self.mine):  # none: another thread is joining, or it prefers none
            asking = _plainly([self._reading(dict.fromkeys(streams, _AFTER_ALL), 1)])
            (answer,) = exchange.run(self._client, self._heard.along(asking))
            if not partial.passes_over(self._client, answer):
                or_raise(answer)
        elif self._joined:
            exchange.run(self._client, self._heard.alone())

    def leave(self) -> None:
        """Leave the group, and leave to others what this consumer still holds."""
        leaving = [self._leave.call([stream], [self._group, self._consumer]) for stream in self.streams]
        give_up_waiting(self._client, self._group, self._consumer)
        held = partial.run_all(self._client, leaving)  # an error counts as held: nobody knows
        if self._heartbeat is not None:
            partial.ran(self._client, self._heartbeat.end(holds=any(held)))

    def _read_ahead(self, counts: Mapping[str, int]) -> Exchange[None]:
        self._ahead.begins()
        try:
            reading = self._read_new(self._ahead.portion.of(counts), self.mine)
            self._ahead.has((yield from self._heard.along(reading)))
        except (redis.ResponseError, NodeAway) as error:
            if not partial.passes_over(self._client, error):  # else the next reading meets it, too
                self._deleted(error)

    def _join(self) -> None:
        streams = self._on_join()
        if self._heartbeat is not None:
            # Before it has a consumer: a consumer without a heartbeat is taken for a process of an earlier release.
            exchange.run(self._client, self._heard.beat(self._heartbeat))
        self.streams = []
        self._groups.anew()
        self.streams += self._groups.made(streams)
        self._preferred = PreferredStreams(self._prefers)
        self._preferred.choose(self.streams)
        if self._was_deleted:
            # Whoever has made the group again: it gives what it gave before.
            (clock,) = wire.round_trip(self._client, [("TIME",)])
            self._redelivered.all_until(streams, wire.milliseconds(or_raise(clock)))
            self._was_deleted = False
        self.renew()
        # Before this process came, the clock may have been set back.
        self.leases.clock_set_back(self.streams)
        self._joined = True

    def _choose(self) -> None:
        """Read the streams that it prefers by now. What it holds of others stays its own until that is done."""
        if self._heard.comes_first:
            exchange.run(self._client, self._heard.first())
        if self._preferred.choose(self.streams):
            self.leases.look_soon()  # whoever preferred them may be dead
            if self.clock.changes:
                self.leases.clock_set_back(self.mine)

    def _was_cut(self) -> None:
        """A node of the cluster was cut off, or is back. Read again what it may have given, and what is missing."""
        self.follow(self._groups.left_out)
        self.renew()

    def _deleted(self, error: redis.RedisError) -> None:
        """If a stream or group was deleted, let the next read create it again. Raises any other error."""
        if is_wrong_type(error):
            self.recover()  # one of them is no stream any more: the others are read
            return
        if not is_deleted(error):
            raise error
        more = len(self.streams) - _NAMED
        names = ", ".join(self.streams[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        self._log.warning(f"a stream or group of {names} was deleted; created it again")
        self._was_deleted = True
        self.recover()

    def _take_held(self) -> list[Entry]:
        """Own pending entries, else abandoned ones."""
        if partial.cuts(self._client) != self._cuts:
            self._was_cut()
        while self._own:
            if entries := exchange.run(self._client, self._heard.along(self._own.page(self._ahead.portion))):
                return entries
        if self.leases.is_time_to_look:
            self._ask_time()  # if the clock went forward, it is not time any more
        if self.leases.is_time_to_look:
            self.leases.look(self._preferred.and_others_in_turn() if self._helps else self.mine)
            self.show_up()
            self.follow(self._groups.left_out)
        while self.leases.is_looking:
            claiming = _plainly(self.leases.claims(self._ahead.portion))
            if entries := self.leases.claimed(exchange.run(self._client, self._heard.along(claiming))):
                return entries
        if self.leases.is_time_to_forget:
            self.leases.forget_gone(self.mine)
        return []

    def _take_new(self, counts: Counts, of: Sequence[str], block_ms: int | None) -> list[Entry]:
        block_ms = None if block_ms is None else self._heard.waits(block_ms)
        wanted = counts(of) if of else {}
        if not wanted:
            time.sleep((block_ms or 0) / 1000)
            return []
        entries = self._read_now(self._ahead.portion.of(wanted), of, block_ms)
        if not entries and len(self.asked) < len(wanted):  # what was read did not wait, and the rest may have some
            return self._read_now(dict.fromkeys(wanted, 1), of, block_ms)
        return entries

    def _read_now(self, counts: Mapping[str, int], of: Sequence[str], block_ms: int | None) -> list[Entry]:
        found = partial.ran(self._client, self._heard.along(self._read_new(counts, of, block_ms)))
        if isinstance(found, redis.RedisError):  # all of them are away, but others of the cluster are not
            time.sleep((block_ms or 0) / 1000)
            return []
        return found

    def _read_new(
        self, counts: Mapping[str, int], of: Sequence[str], block_ms: int | None = None
    ) -> Exchange[list[Entry]]:
        """New entries; sets `now_ms` when they are there. It waits only if it reads all of these streams."""
        self.asked = counts
        # The first reading waits for all streams, with one count for all. Others read the rest, those with the same
        # count together.
        least = min(counts.values())
        block = block_ms if counts.keys() | self.left_out >= set(of) else None
        readings = [self._reading(dict.fromkeys(counts, ">"), least, block)]
        for most in sorted({count for count in counts.values() if count > least}):
            those = [stream for stream, count in counts.items() if count == most]
            readings.append(self._reading(dict.fromkeys(those, ">"), most - least))
        asked_s = own_s()
        before = None if self._reached is None else self._redelivered.before(self._reached())
        *answers, clock = yield [*readings, ("TIME",)]
        if not all(isinstance(answer, redis.RedisError) for answer in answers):
            # What others have given must not be lost because some nodes are away.
            answers = [None if partial.passes_over(self._client, answer) else answer for answer in answers]
        entries = [entry for answer in answers for entry in entries_of(or_raise(answer))]
        self.now_ms, self.between_s = wire.milliseconds(or_raise(clock)), (asked_s, own_s())
        if before is not None:
            entries = self._redelivered.looked_at(answers, entries, self.now_ms, before)
        self.clock_says(self.now_ms, asked_s)
        return entries

    def clock_says(self, now_ms: int, asked_s: float) -> None:
        """The broker has told its time. `asked_s`: when it was asked, by `own_s`."""
        back_ms = self.clock.is_now(now_ms, asked_s, own_s())
        if back_ms > 0:
            self._log.warning(
                f"the broker's clock was set back by {round(back_ms / 1000)} s: "
                "what waits for a time, or is held by a process that is gone, waits from now on"
            )
            self.leases.clock_set_back(self.streams)
        elif back_ms < 0:
            self._log.warning(
                f"the broker's clock went forward by {round(-back_ms / 1000)} s at once: "
                "sagas that wait for a time wait for as long as they would have"
            )
            self.leases.clock_went_forward()

    def _ask_time(self) -> None:
        """Hear whether the clock went forward since the last reading."""
        asked_s = own_s()
        answer = partial.ran(self._client, _plainly([("TIME",)]))
        if not isinstance(answer, redis.RedisError):
            self.clock_says(wire.milliseconds(or_raise(answer[0])), asked_s)

    def _reading(self, after: Mapping[str, str | bytes], count: int, block_ms: int | None = None) -> wire.Words:
        block: wire.Words = () if block_ms is None else ("BLOCK", block_ms)
        group = ("XREADGROUP", "GROUP", self._group, self._consumer)
        return (*group, "COUNT", count, *block, "STREAMS", *after.keys(), *after.values())


def _plainly(commands: Sequence[wire.Words]) -> Exchange[list[Any]]:
    return (yield commands)
