"""The figures of a store as metrics."""

from collections.abc import Iterator
from typing import Final

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.failures import is_denied, is_outage, told
from sagastream.broker.outage import OutageReport
from sagastream.errors import BrokerError, SagastreamError
from sagastream.metrics import catalogue
from sagastream.metrics.process import ProcessMetrics
from sagastream.metrics.tally import Labels, Sample
from sagastream.telemetry import Log
from sagastream_bridge.inspection.figures import Figures, FiguresReader

_WHO: Final = "sagastream metrics"


class StoreMetrics(ProcessMetrics):
    """The figures of a store, read when somebody asks."""

    def __init__(self, broker: Broker, *, waits: bool = True) -> None:
        """`waits`: whether it waits for a broker that is away, and says so. Raises StoreMismatch, and redis.RedisError
        if the broker refuses this process, or is away and is not waited for."""
        super().__init__("store")
        self._reader = FiguresReader(broker)
        self._report = OutageReport(broker, _WHO, self)
        self._log = Log("metrics", _WHO)
        self._fault = ""  # why the figures could not be read when they were last asked for
        try:
            self._reader.find_store()
        except redis.RedisError as error:
            if not (waits and is_outage(error)):
                raise
            self._failed(error)

    def samples(self) -> Iterator[Sample]:
        """All of it. The store is read first, as that shows whether the broker is away."""
        of_store = list(self._look())
        yield from super().samples()
        yield from of_store

    def samples_or_raise(self) -> Iterator[Sample]:
        """The same, or redis.RedisError or SagastreamError if the store cannot be read."""
        of_store = list(self._of_store())
        yield from super().samples()
        yield from of_store

    def _look(self) -> Iterator[Sample]:
        try:
            found = list(self._of_store())
        except (redis.RedisError, SagastreamError) as error:
            self._failed(error)
            yield Sample(catalogue.STORE_UP, (), 0)
            return
        self._succeeded()
        yield from found

    def _of_store(self) -> Iterator[Sample]:
        try:
            figures = self._reader.now()
        except redis.RedisError as error:
            if not is_denied(error):
                raise
            text = "the user in REDIS_URL may not read the figures of the store; sagastream acl inspector prints one"
            raise BrokerError(f"{text} that may ({error})") from error
        yield Sample(catalogue.STORE_UP, (), 1)
        # One series stands for all services beyond the bound, so what counts there is added up.
        added: dict[Sample, float] = {}
        labels = Labels()
        for metric, values, value in samples(figures):
            assert isinstance(value, int | float)
            key = Sample(metric, labels.bounded(metric, values), 0)
            is_age = metric in (catalogue.OLDEST_COMMAND, catalogue.PAUSED)
            added[key] = max(added.get(key, 0), value) if is_age else added.get(key, 0) + value
        for (metric, values, _), value in added.items():
            yield Sample(metric, values, value)

    def _failed(self, error: redis.RedisError | SagastreamError) -> None:
        """Tell it once, and not at each scrape."""
        if isinstance(error, redis.RedisError) and is_outage(error):
            if not self.is_away:
                self._report.began(error)
            return
        fault = told(error) if isinstance(error, redis.RedisError) else str(error)
        if fault != self._fault:
            self._fault = fault
            self._log.error(f"the figures of the store cannot be read: {fault}")

    def _succeeded(self) -> None:
        if self.is_away:
            self._report.ended()
        if self._fault:
            self._fault = ""
            self._log.warning("the figures of the store can be read again")


def samples(figures: Figures) -> Iterator[Sample]:
    """All figures, with the values of their labels as they are."""
    live = figures.live
    for status, number in live.by_status.items():
        yield Sample(catalogue.LIVE, (status,), number)
    for (service, command), number in live.parked_at.items():
        yield Sample(catalogue.PARKED_AT, (service, command), number)
    yield Sample(catalogue.ENDED, (), figures.ended)
    yield Sample(catalogue.OLDEST, (), (figures.oldest_live_ms or 0) / 1000)
    yield Sample(catalogue.REQUESTS, ("begin",), figures.requests)
    yield Sample(catalogue.REQUESTS, ("intervention",), figures.interventions)
    yield Sample(catalogue.TIMER_LAG, (), figures.timer_lag_ms / 1000)
    yield Sample(catalogue.PROCESSES, ("worker", ""), figures.workers)
    yield Sample(catalogue.SET_ASIDE, ("",), figures.quarantined)
    yield Sample(catalogue.LOSSES, (), figures.losses)
    yield Sample(catalogue.PARTITIONS_AWAY, (), figures.partitions_away)
    yield Sample(catalogue.MEMORY, (), figures.memory_bytes)
    if figures.memory_limit_bytes is not None:
        yield Sample(catalogue.MEMORY_LIMIT, (), figures.memory_limit_bytes)
    for pause in figures.pauses:
        # Of a pause that does not say since when, only that there is one.
        paused_ms = max(0, figures.at_ms - pause.since_ms) if pause.since_ms else 0
        yield Sample(catalogue.PAUSED, (pause.service, pause.command or ""), paused_ms / 1000)
    for service, number in figures.held_sagas.items():
        yield Sample(catalogue.HELD_SAGAS, (service,), number)
    for one in figures.services:
        yield Sample(catalogue.PROCESSES, ("service", one.name), one.processes)
        yield Sample(catalogue.COMMANDS, (one.name, "unread"), one.unread)
        yield Sample(catalogue.COMMANDS, (one.name, "held"), one.held)
        yield Sample(catalogue.OLDEST_COMMAND, (one.name,), (one.oldest_command_ms or 0) / 1000)
        yield Sample(catalogue.REPLIES, (one.name,), one.replies)
        yield Sample(catalogue.OVERDUE, (one.name,), one.overdue)
        yield Sample(catalogue.SET_ASIDE, (one.name,), one.quarantined)
