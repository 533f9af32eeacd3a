"""The answers of a service's process: collected, and sent. Record, reply and acknowledgement are one script call."""

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate

import redis
from msgspec.structs import replace

from sagastream.broker import scripting
from sagastream.broker.entries import BATCH, REPLAYED, Entry
from sagastream.broker.exchange import Exchange, run
from sagastream.broker.failures import is_outage, is_wrong_type
from sagastream.broker.group_reader import GroupReader
from sagastream.broker.partial import passes_over
from sagastream.broker.portions import BYTES, in_all
from sagastream.broker.wire import Words, or_raise, round_trip
from sagastream.core import service_rules
from sagastream.core.commands import Command
from sagastream.core.service_actions import Answer, Requeue
from sagastream.service.damaged import DamagedStreams
from sagastream.service.delivery import Delivery
from sagastream.service.last_sent import LastSent
from sagastream.service.packing import Quarantined, Ready, entry_of, packed, size_of
from sagastream.service.records import Records
from sagastream.store.keys import Partition, StoreKeys
from sagastream.telemetry import Log, Observer, Observers, about, guarded


class Outbox:
    """The answers that are ready, of all partitions; `send` sends them. Safe for several threads."""

    def __init__(
        self,
        client: "redis.Redis",
        service: str,
        *,
        consumer: str,
        reader: GroupReader,
        records: Records,
        observer: Observer | None,
        log: Log,
    ) -> None:
        """
        Args:
            consumer: holds the commands that are answered, see `answer_for`; and the name of this process in answers.
            reader: of those commands. What it reads may come along with the answers.
        """
        self._client = client
        self._service = service
        self._process = self._holder = consumer
        self._reader = reader
        self._records = records
        self._observer = guarded(observer)
        self._log = log
        self._answer = scripting.Script("answer")
        self._partitions: Mapping[str, Partition] = {}  # by the stream of their commands
        self._calls: Sequence[Mapping[str, Partition]] = ()  # the same: those whose keys one call may touch
        self._lock = threading.Lock()  # of _ready: one thread may read while others answer
        self._sending = threading.Lock()  # so that no answer is sent twice
        self._ready: list[Ready] = []  # until the broker has them
        self._ready_bytes = 0  # about how large they are
        #: Why the last `send` has left some unsent: their node of a cluster is away, or a key is damaged; None: it has
        #: left none.
        self.away: redis.RedisError | None = None
        #: The streams of commands whose answers cannot be written, since a key there is damaged.
        self.damaged = DamagedStreams(log)
        self._oldest_s = 0.0  # since when the first of them waits, by time.monotonic
        self._last_sent = LastSent()
        #: Of the answers that were sent last, the records that the store no longer has. See lineage.Missing.
        self.missing = self._last_sent.missing

    def join(self, keys: StoreKeys) -> None:
        """Answer the commands of this store from now on."""
        calls = keys.in_calls(keys.partitions)
        self._calls = [{one.commands(self._service): one for one in together} for together in calls]
        self._partitions = {stream: one for together in self._calls for stream, one in together.items()}

    def answer_for(self, consumer: str) -> None:
        """Answer what this consumer holds from now on."""
        self._holder = consumer

    def answer(self, delivery: Delivery, answer: Answer) -> None:
        """Have a command answered with the next `send`."""
        self._add((delivery, answer))

    def quarantine(self, entry: Entry, reason: str) -> None:
        """Have an entry quarantined with the next `send`."""
        entry_id = entry.id.decode()
        extra = {"service": self._service, "stream": entry.stream, "entry_id": entry_id}
        self._add(Quarantined(entry, reason))
        self._log.warning(f"quarantined the entry {entry_id}: {reason}", extra=extra)

    def quarantine_unrecordable(self, delivery: Delivery) -> None:
        """The same of a command whose answer cannot be recorded."""
        text = f"its answer cannot be recorded: {delivery.done} is not a hash; delete that key, then replay this entry"
        self.quarantine(delivery.entry, text)

    def send(self, ahead: int = 0) -> list[Delivery]:
        """Send the answers that are ready; none is forgotten before the broker has it. If only some nodes of a cluster
        are away, the answers for them stay ready.

        `ahead`: how many new commands the same round trip may bring, for the next reading; 0 unless it is the caller's
        turn to read.

        Returns the commands that were overruled and are to be undone here: their step has failed, or was undone, while
        the handler ran.
        """
        overruled: list[Delivery] = []
        if not self._ready:
            self.away = None
            return overruled
        with self._sending:
            left = self.damaged.left_alone()  # the streams whose node of a cluster is away, or that are damaged
            away: redis.RedisError | None = None
            while ready := self._for_a_call(self._of_others_than(left)):
                try:
                    overruled += self._send(ready, ahead)
                except redis.RedisError as error:
                    streams = {entry_of(one).stream for one in ready}
                    if is_wrong_type(error):
                        self.damaged.found(streams & self._ready_streams(), self._partitions, error)
                    elif not passes_over(self._client, error):
                        raise
                    left |= streams
                    away = error
            if left:
                self._oldest_s = time.monotonic()
                away = away or self.away  # it was found a moment ago
            self.away = away
        return overruled

    def _ready_streams(self) -> set[str]:
        with self._lock:
            return {entry_of(one).stream for one in self._ready}

    def ready(self) -> set[tuple[str, bytes]]:
        """Where the entries stand that are ready to be sent away."""
        with self._lock:
            return {entry_of(one).at for one in self._ready}

    @property
    def unsent(self) -> list[Command]:
        """The commands whose answers the broker does not have yet."""
        with self._lock:
            return [one[0].command for one in self._ready if not isinstance(one, Quarantined)]

    @property
    def is_heavy(self) -> bool:
        """Whether the answers that are ready are so large that they are sent now, however few they are."""
        return self._ready_bytes > BYTES

    def lingers(self, longest_s: float) -> bool:
        """Whether an answer has waited to be sent for so long."""
        return bool(self._ready) and time.monotonic() - self._oldest_s >= longest_s

    def _add(self, one: Ready) -> None:
        with self._lock:
            if not self._ready:
                self._oldest_s = time.monotonic()
            self._ready.append(one)
            self._ready_bytes += size_of(one)

    def _of_others_than(self, streams: Collection[str]) -> list[Ready]:
        """The first that are ready, except those of these streams."""
        if not streams:
            return self._ready[:BATCH]
        with self._lock:
            return [one for one in self._ready if entry_of(one).stream not in streams][:BATCH]

    def _for_a_call(self, ready: Sequence[Ready]) -> list[Ready]:
        """Those that one script call can answer: of partitions whose keys it may touch, and not too large together."""
        if len(self._calls) > 1 and ready:
            together = next(one for one in self._calls if entry_of(ready[0]).stream in one)
            ready = [one for one in ready if entry_of(one).stream in together]
        if not self.is_heavy:
            return list(ready)
        sizes = accumulate(map(size_of, ready))
        return list(ready[: max(1, sum(size <= BYTES for size in sizes))])

    def _send(self, ready: Sequence[Ready], ahead: int) -> list[Delivery]:
        """Send these in one call. Returns the commands that were overruled and are to be undone here."""
        try:
            numbers = self._answer_all(ready, ahead)
        except redis.ResponseError as error:
            if is_outage(error) or len(streams := {entry_of(one).stream for one in ready}) == 1:
                self._set_aside(ready, error)
                return []
            return self._send_apart(ready, sorted(streams))
        overruled: list[Delivery] = []
        if numbers:
            overruled = self._overruled(ready, numbers)
        else:
            self._last_sent.note(ready, self._partitions, self._records.now_s)
        with self._lock:
            self._drop(ready)
            self._oldest_s = time.monotonic()
        self.damaged.went(ready, self._partitions)
        if self._observer is not None:
            _tell_sent(self._observer, ready, numbers)
        return overruled

    def _send_apart(self, ready: Sequence[Ready], streams: Sequence[str]) -> list[Delivery]:
        """Send those of each partition by themselves: what is damaged in one holds up no other. Raises what is wrong
        with one of them when all are sent."""
        self._reader.renew()  # what came along with the answer is read again
        overruled: list[Delivery] = []
        refused: redis.ResponseError | None = None
        for stream in streams:
            try:
                overruled += self._send([one for one in ready if entry_of(one).stream == stream], 0)
            except redis.ResponseError as error:
                refused = refused or error
        if refused is not None:
            raise refused
        return overruled

    def _drop(self, sent: Sequence[Ready]) -> None:
        """They are no longer ready: they were sent."""
        if self._ready[len(sent) - 1] is sent[-1]:  # so they are the first: they stand in order
            del self._ready[: len(sent)]
        else:
            gone = {id(one) for one in sent}
            self._ready = [one for one in self._ready if id(one) not in gone]
        self._ready_bytes = sum(map(size_of, self._ready))

    def _answer_all(self, ready: Sequence[Ready], ahead: int) -> list[int]:
        """Send these. Returns the numbers, from 1, of those that were overruled, as answer.lua does."""
        keys, args = packed(ready, self._partitions, self._service, holder=self._holder, process=self._process)
        answering: Exchange[list[int]] = self._answer.call(keys=keys, args=args)
        if ahead:
            answering = self._reader.read_along(answering, in_all(ahead))
        return run(self._client, answering)

    def _overruled(self, ready: Sequence[Ready], numbers: Iterable[int]) -> list[Delivery]:
        """Of the answers that were overruled: the commands that this process undoes. The others are added to their
        stream again, where they stay until a process has undone them."""
        undone_here: list[Delivery] = []
        requeued: list[tuple[Delivery, Requeue]] = []
        for number in numbers:
            one = ready[abs(number) - 1]
            assert not isinstance(one, Quarantined)  # it has no tombstone
            delivery, answer = one
            todo = service_rules.overruled(delivery.command, answer.reply, is_held=number > 0)
            if isinstance(todo, Requeue):
                requeued.append((delivery, todo))
            else:
                undone_here.append(replace(delivery, todo=todo))
        if requeued:
            adding: list[Words] = []
            for delivery, todo in requeued:
                # It may be there twice, if the answer is lost: then it is undone twice, which does no harm.
                fields = delivery.entry.fields | {REPLAYED: b"1"} | ({b"result": todo.result} if todo.result else {})
                adding.append(scripting.added_even_if_full(delivery.entry.stream, fields))
            for answer in round_trip(self._client, adding):
                or_raise(answer)
            for delivery, _ in requeued:
                command = delivery.command
                text = f"{command.told}, was done after it was refused"
                self._log.warning(f"{text}, and others had answered it: sent again, to be undone", extra=about(command))
        return undone_here

    def _set_aside(self, ready: Sequence[Ready], error: redis.ResponseError) -> None:
        """The answers could not be sent: quarantine the commands of those that cannot be recorded. Raises the error if
        that is not the reason."""
        deliveries = [one[0] for one in ready if not isinstance(one, Quarantined)]
        unusable = self._records.unusable(deliveries, error)
        with self._lock:
            aside = [one[0] for one in self._ready if not isinstance(one, Quarantined) and one[0].done in unusable]
            self._ready = [one for one in self._ready if isinstance(one, Quarantined) or one[0].done not in unusable]
        for delivery in aside:
            self.quarantine_unrecordable(delivery)
        self._reader.renew()  # what came along with the answer is read again


def _tell_sent(observer: Observers, sent: Sequence[Ready], overruled: Collection[int]) -> None:
    """`overruled`: the numbers of those that were not accepted, as answer.lua returns them."""
    if not observer.watches("answer_sent"):
        sent = [one for one in sent if isinstance(one, Quarantined)]
    for number, one in enumerate(sent, 1):
        if isinstance(one, Quarantined):
            entry = one.entry
            observer.entry_quarantined(stream=entry.stream, entry_id=entry.id.decode(), reason=one.reason)
        elif number not in overruled and -number not in overruled:
            observer.answer_sent(command=one[0].command, reply=one[1].reply)
