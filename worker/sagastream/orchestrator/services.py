"""The services of the store, as one worker knows them: it reads the replies of each."""

from collections.abc import Collection, Sequence

import redis

from sagastream.broker.exchange import Exchange, all_of, run, together
from sagastream.broker.partial import ran
from sagastream.core.messages import Begin, Code, Unreadable
from sagastream.core.steps import services_of
from sagastream.orchestrator.bulks import Bulks
from sagastream.orchestrator.pauses import Pauses
from sagastream.orchestrator.room import Room
from sagastream.orchestrator.streams import Input
from sagastream.store import published
from sagastream.store.heartbeat import Heartbeat
from sagastream.store.keys import StoreKeys
from sagastream.store.published import MAX_SERVICES


class KnownServices:
    """The services that a worker knows. It is told of new ones along with its heartbeat: it takes the place of that in
    the worker's reader."""

    def __init__(self, client: "redis.Redis", heartbeat: Heartbeat, room: Room, pauses: Pauses, bulks: Bulks) -> None:
        """`room`, `pauses` and `bulks`: are looked at along with the heartbeat, too."""
        self._client = client
        self._room = room
        self._pauses = pauses
        self._bulks = bulks
        self._heartbeat = heartbeat
        self._keys: StoreKeys | None = None
        self.names: frozenset[str] = frozenset()
        self._untold: frozenset[str] = frozenset()  # those of them that the store may not have
        self._has_joined = False

    def join(self, keys: StoreKeys) -> None:
        """Read them from this store from now on. If the node of a cluster is away that keeps them, those count that are
        known, if any are."""
        self._keys = keys
        self._heartbeat.join(keys)
        self._room.join(keys)
        self._pauses.join(keys)
        self._bulks.join(keys)
        read = ran(self._client, together(self._read(), together(self._pauses.read(), self._bulks.read())))
        if isinstance(read, redis.RedisError) and not self._has_joined:
            raise read
        self._has_joined = True

    @property
    def due_s(self) -> float:
        return self._heartbeat.due_s

    @property
    def is_alone(self) -> bool:
        return self._heartbeat.is_alone

    @property
    def preferred(self) -> frozenset[int] | None:
        """The numbers of the partitions that the worker prefers; None: all."""
        return self._heartbeat.preference.numbers

    def beat(self) -> Exchange[None]:
        # A heartbeat that is refused must not keep the worker from hearing of new services.
        looking = [self._read(), self._pauses.read(), self._bulks.read(), self._room.look(self.preferred)]
        refused, _ = yield from together(_caught(self._heartbeat.beat()), all_of(looking))
        if refused is not None:
            raise refused

    def end(self, *, holds: bool) -> Exchange[None]:
        yield from self._heartbeat.end(holds=holds)

    def add(self, names: Collection[str]) -> None:
        """Add services to the store before the first command is sent to them, so that each worker reads their
        replies. If the node of a cluster is away that keeps them, they are added later: a process of the service adds
        it as well, when it starts."""
        if not self.names.issuperset(names) and (new := set(names) - self.names):
            assert self._keys is not None
            if isinstance(ran(self._client, published.add_services(self._keys, new)), redis.RedisError):
                self._untold |= new
            self.names |= new

    def tell_again(self) -> None:
        """Add all services that it knows to the store again: the store may have lost the last of them, and a worker
        that comes later must read their replies, too."""
        if self.names:
            assert self._keys is not None
            run(self._client, published.add_services(self._keys, self.names))

    def admit(self, inputs: Sequence[Input]) -> list[Input]:
        """The same inputs. The services of the sagas that begin are added to the store; if it would have too many, the
        begin is refused."""
        found: list[Input] = []
        added: set[str] = set()
        for entry, event in inputs:
            if isinstance(event, Begin):
                new = services_of(event.steps) - self.names
                if new and len(self.names | added | new) > MAX_SERVICES:
                    found.append((entry, _one_too_many(event)))
                    continue
                added |= new
            found.append((entry, event))
        self.add(added)
        return found

    def _read(self) -> Exchange[None]:
        # A name that is gone from the set stays known here: commands may be out that this worker has sent.
        assert self._keys is not None
        if self._untold:
            yield from published.add_services(self._keys, self._untold)
            self._untold = frozenset()
        found = yield from published.services(self._keys)
        if not self.names.issuperset(found):
            self.names |= set(found)


def _one_too_many(begin: Begin) -> Unreadable:
    text = f"the store has {MAX_SERVICES} services, the most that it may have; saga {begin.saga_id} names another one"
    return Unreadable(code=Code.PRECONDITION_FAILED, text=text, request_id=begin.request_id, saga_id=begin.saga_id)


def _caught(beat: Exchange[None]) -> Exchange[redis.ResponseError | None]:
    """The error with which the broker refuses it."""
    try:
        yield from beat
    except redis.ResponseError as error:
        return error
    return None
