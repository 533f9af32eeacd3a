"""Faults on the nodes of a cluster, while real processes run sagas in all partitions of a store on it."""

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.failures import is_outage
from sagastream.client.blocking import SagaClient
from sagastream.errors import StoreFull
from sagastream.store.keys import Partition
from support.clusters import Cluster, Node
from support.faults import Scale, World, plan
from support.processes import Commands
from support.servers import OwnServer
from support.waiting import until

#: How many sagas of one partition may be under way at once: so few that a partition that is away holds up nobody.
_IN_FLIGHT: Final = 6


class ClusterWorld(World):
    """A world whose broker is a cluster. Each partition has a client of its own that begins sagas, one after the other:
    if a partition is away, the clients of the others go on."""

    def __init__(self, cluster: Cluster, commands: Commands, *, partitions: int = 6) -> None:
        # A world needs no more of a server than its url and its brokers, unless it is told to do something to it.
        super().__init__(cast(OwnServer, cluster), commands, Scale(sagas=0, factor=1), partitions=partitions)
        self.cluster = cluster

    def may_lose_writes(self) -> None:
        """Replicas take over that are behind."""
        self.store_forgets = True
        self.may_end_otherwise()

    def partitions_of(self, node: Node) -> list[Partition]:
        """Those whose slots this node holds now."""
        return [one for one in self.keys.partitions if self.cluster.node_of(one.timers) is node]

    def tail(self) -> str:
        try:
            tail = super().tail()
        except redis.RedisError as error:
            tail = f"{error}\n{self.said()[-4000:]}"
        return f"{self.cluster.described()}\n{tail}"

    def said(self) -> str:
        """What all processes have written on stderr."""
        return (self._commands.folder / "stderr.log").read_text(errors="replace")

    @contextlib.contextmanager
    def fed(self) -> Iterator[None]:
        """Within this, sagas begin in each partition all the time."""
        stop, errors = threading.Event(), list[BaseException]()
        threads = [threading.Thread(target=self._feed, args=(one, stop, errors)) for one in self.keys.partitions]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        for error in errors:
            raise error

    def _feed(self, partition: Partition, stop: threading.Event, errors: list[BaseException]) -> None:
        numbers = (n for n in itertools.count() if self.keys.of(f"s{n}") is partition)
        begun = 0
        try:
            with contextlib.closing(Broker(self.cluster.url)) as broker:
                client = SagaClient(broker)
                while not stop.is_set():
                    with contextlib.suppress(redis.RedisError):
                        if begun - broker.client.zcard(partition.ended) >= _IN_FLIGHT:
                            stop.wait(0.005)
                            continue
                    self.begin(next(numbers), client, stop)
                    begun += 1
        except BaseException as error:  # noqa: BLE001 - raised again where feeding ends
            errors.append(error)

    def begin(self, number: int, client: SagaClient, stop: threading.Event) -> None:
        wanted = plan(number, **self.options)
        while not stop.is_set():
            try:
                client.begin(wanted.saga_id, wanted.steps)
            except (redis.RedisError, StoreFull) as error:
                if isinstance(error, redis.RedisError) and not is_outage(error):
                    raise
                self.figures["begins sent again"] += 1
                stop.wait(0.02)
            else:
                self._plans[wanted.saga_id] = wanted
                return

    def ended(self, partitions: Sequence[Partition] | None = None) -> dict[str, int]:
        """How many sagas have ended in each of these partitions (in all of them), by its timers. Waits until their
        nodes say it."""
        those = self.keys.partitions if partitions is None else partitions

        def told() -> dict[str, int] | None:
            with contextlib.suppress(redis.RedisError):
                return {one.timers: int(self.cluster.node_of(one.ended).ask("ZCARD", one.ended)) for one in those}
            return None

        return until(told, what="it is told how many have ended", timeout_s=30)

    def goes_on(self, partitions: Sequence[Partition] | None = None, *, by: int = 3) -> None:
        """Wait until so many more sagas have ended in each of these partitions (in all of them)."""
        before = self.ended(partitions)

        def have_ended() -> bool:
            self.assert_all_live()
            now = self.ended(partitions)
            return all(now[one] >= before[one] + by for one in before)

        try:
            until(have_ended, what="sagas end in each partition", timeout_s=60)
        except AssertionError as error:
            raise AssertionError(f"{error}: {before}, {self.ended(partitions)}\n{self.tail()}") from None

    def rate(self, partitions: Sequence[Partition], seconds: float) -> float:
        """How many sagas end there in a second, for so long."""
        before = sum(self.ended(partitions).values())
        threading.Event().wait(seconds)  # it is measured
        return (sum(self.ended(partitions).values()) - before) / seconds


@contextlib.contextmanager
def world_on(cluster: Cluster, commands: Commands, **options: Any) -> Iterator[ClusterWorld]:
    """A world on this cluster, which ends with it."""
    try:
        made = ClusterWorld(cluster, commands, **options)
        yield made
        made.close()
    finally:
        commands.end()
        cluster.stop()
