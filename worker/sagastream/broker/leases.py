"""The leases on the pending entries of a consumer group: who may hold an entry, and for how long.

A consumer renews the leases on what it holds, or hands it back. If a lease is over, another consumer claims the entry.
The lease of an entry begins when the entry was delivered or renewed, by the broker's clock.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from sagastream.broker import partial, scripting, wire
from sagastream.broker.entries import BATCH, Entry, entries_of, report_deleted
from sagastream.broker.exchange import Exchange
from sagastream.broker.portions import Portion
from sagastream.broker.wire import or_raise
from sagastream.telemetry import Log

if TYPE_CHECKING:
    import redis

#: Look for abandoned entries at least this often, in seconds.
_CLAIM_EVERY_S: Final = 2.0
#: How often to forget consumers that are gone, in seconds; and after which time without a read one is gone, in ms.
_FORGET_EVERY_S: Final = 30.0
_GONE_MS: Final = 60_000
#: The idle time that is set on an entry which is handed back, in milliseconds: longer than any lease.
HANDED_BACK_MS: Final = 24 * 3600 * 1000
#: Of how many entries one script call changes the lease: far fewer than it can take, so that nobody waits for long.
_HELD_AT_ONCE: Final = 1000
#: If abandoned entries are not for this process, the next look for them comes after so many times as long as this one
#: took: however many there are, they cost little of the reader's time. It comes after so many seconds at least, so that
#: a process which can hold only one entry also reads new ones; and after so many at most.
_REST: Final = 20
_SHORTEST_REST_S: Final = 0.5
_LONGEST_REST_S: Final = 10.0


class Leases:
    """The leases on the entries of a group, as one of its consumers renews, gives up and claims them."""

    def __init__(self, client: "redis.Redis", *, group: str, consumer: str, lease_ms: int, log: Log) -> None:
        """`lease_ms`: how long another consumer may hold an entry before this one takes it over."""
        self._client = client
        self._group = group
        self._consumer = consumer
        self._lease_ms = lease_ms
        self._log = log
        self._hold = scripting.Script("hold")
        self._forget = scripting.Script("forget")
        self._recount = scripting.Script("recount")
        # By stream: where the search for abandoned entries goes on. Empty: it is finished.
        self._abandoned: dict[str, bytes | str] = {}
        self._claiming: list[str] = []  # those of which the next page is claimed
        # … and where the search goes on for entries that were delivered at a time which has not come yet.
        self._ahead_of_time: dict[str, bytes | str] = {}
        self._look_began = 0.0  # when it began to look for abandoned entries, by time.monotonic
        self._next_look = 0.0
        self._no_look_until = 0.0  # since the clock went forward
        self._next_forget = 0.0

    # --- what this consumer holds

    def renew(self, entries: Sequence[Entry]) -> set[tuple[str, bytes]]:
        """Renew the lease on these. Returns where those stand that this consumer does not hold any more."""
        return self._hold_all(entries, 0)

    def hand_back(self, entries: Sequence[Entry]) -> set[tuple[str, bytes]]:
        """Have others take these over at once. This consumer, too, may come by them again. Returns where those stand
        that it did not hold any more."""
        return self._hold_all(entries, HANDED_BACK_MS)

    def leave_to_newer(self, entries: Sequence[Entry]) -> None:
        """Hand back what only a newer release knows. It comes by again and again until a process of that takes it."""
        self.hand_back(entries)
        if any(entry.taken_over for entry in entries):
            now = time.monotonic()
            rest_s = min(max(_REST * (now - self._look_began), _SHORTEST_REST_S), _LONGEST_REST_S)
            self._next_look = max(self._next_look, now + rest_s)

    def _hold_all(self, entries: Sequence[Entry], idle_ms: int) -> set[tuple[str, bytes]]:
        """Set for how long these count as held, in one round trip; 0 renews the lease. Returns where those stand that
        this consumer does not hold any more."""
        by_stream: dict[str, list[bytes]] = {}
        for entry in entries:
            by_stream.setdefault(entry.stream, []).append(entry.id)
        if not by_stream:
            return set()
        holding = [self._holding(stream, ids, idle_ms) for stream, ids in by_stream.items()]
        held = partial.run_all(self._client, holding)
        still: list[tuple[str, bytes]] = []
        for (stream, asked), ids in zip(by_stream.items(), held, strict=True):
            # If its node is away, nobody can take them over either.
            still += [(stream, entry_id) for entry_id in (asked if isinstance(ids, RedisError) else ids)]
        return {entry.at for entry in entries}.difference(still)

    def _holding(self, stream: str, ids: Sequence[bytes], idle_ms: int) -> Exchange[list[bytes]]:
        held: list[bytes] = []
        for at in range(0, len(ids), _HELD_AT_ONCE):
            args: list[str | bytes | int] = [self._group, self._consumer, idle_ms, *ids[at : at + _HELD_AT_ONCE]]
            held += yield from self._hold.call([stream], args)
        return held

    # --- what others have held for too long

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to claim, and it is not time to look for more, or for consumers that are gone."""
        return not self._abandoned and time.monotonic() < min(self._look_at, self._next_forget)

    @property
    def is_time_to_look(self) -> bool:
        """Whether to look for abandoned entries again."""
        return time.monotonic() >= self._look_at

    @property
    def _look_at(self) -> float:
        return max(self._next_look, self._no_look_until)

    @property
    def is_time_to_forget(self) -> bool:
        """Whether to look for consumers that are gone again."""
        return time.monotonic() >= self._next_forget

    @property
    def is_looking(self) -> bool:
        """Whether there may be more abandoned entries."""
        return bool(self._abandoned)

    def look(self, streams: Sequence[str]) -> None:
        """Begin to look for abandoned entries of these streams; `claims` goes on."""
        self._look_began = time.monotonic()
        self._next_look = self._look_began + min(self._lease_ms / 2000, _CLAIM_EVERY_S)
        left = dict(self._ahead_of_time)
        while left:
            left = self._count_from_now(left)
        self._abandoned = dict.fromkeys(streams, "0-0")

    def look_soon(self) -> None:
        """Have the next look come at once."""
        self._next_look = 0.0

    def claims(self, portion: Portion) -> list[wire.Words]:
        """The commands that claim the next page of what other consumers have held for longer than the lease: of each
        stream or, if entries are large, of some. `claimed` takes their answers."""
        self._claiming = list(self._abandoned)[: portion.count]
        count = portion.share(len(self._claiming), BATCH)
        who = (self._group, self._consumer, self._lease_ms)
        return [("XAUTOCLAIM", stream, *who, self._abandoned[stream], "COUNT", count) for stream in self._claiming]

    def claimed(self, answers: Sequence[Any]) -> list[Entry]:
        """The entries that are this consumer's now. Raises redis.ResponseError if an answer is one."""
        entries: list[Entry] = []
        for stream, answer in zip(self._claiming, answers, strict=True):
            if partial.passes_over(self._client, answer, or_damaged=True):
                del self._abandoned[stream]  # the next look is soon; and the next reading tells of another type
                continue
            following, page, *deleted = or_raise(answer)
            if deleted and deleted[0]:
                report_deleted(self._log, stream, deleted[0])
            entries += entries_of([(stream.encode(), page)], again=True, taken_over=True)
            if following == b"0-0":  # only this is the end: an earlier page may be empty
                del self._abandoned[stream]
            else:
                self._abandoned[stream] = following
        return entries

    def forget_gone(self, streams: Sequence[str]) -> None:
        """Remove consumers that are gone from the group on these streams, now that what they held was taken over."""
        self._next_forget = time.monotonic() + _FORGET_EVERY_S
        forgetting = [self._forget.call([stream], [self._group, _GONE_MS]) for stream in streams]
        partial.run_all(self._client, forgetting)

    # --- the broker's clock

    def clock_set_back(self, streams: Sequence[str]) -> None:
        """The clock was set back, or may have been. Before the next look, leases that began at a time which has not
        come yet are counted from then on."""
        self._ahead_of_time = dict.fromkeys(streams, "")

    def clock_went_forward(self) -> None:
        """All leases look as if they were over. Whoever lives renews them before the next look."""
        self._abandoned = {}
        self._no_look_until = time.monotonic() + self._lease_ms / 1000

    def _count_from_now(self, left: Mapping[str, bytes | str]) -> dict[str, bytes | str]:
        """Have leases that began at a time which has not come yet count from now: those of the next page of the pending
        entries of each stream. `left`: after which entry the page of each comes. Returns the same for the pages that
        are left. Streams whose node is away have their turn before the next look."""
        args = [(stream, [self._group, after, _HELD_AT_ONCE]) for stream, after in left.items()]
        answers = partial.run_all(self._client, [self._recount.call([stream], words) for stream, words in args])
        following = {}
        for (stream, _), last in zip(args, answers, strict=True):
            if isinstance(last, RedisError):
                continue
            del self._ahead_of_time[stream]
            if last:
                following[stream] = self._ahead_of_time[stream] = last
        return following
