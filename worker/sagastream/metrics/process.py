"""What every process counts."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from sagastream.metrics import catalogue
from sagastream.metrics.catalogue import Metric
from sagastream.metrics.tally import Counter, Histogram, Labels, Look, Sample
from sagastream.telemetry import Observer

#: The kinds of streams; what else stands before the last colon of a key is not one of ours.
_STREAMS = frozenset({"requests", "interventions", "replies", "commands"})


class ProcessMetrics(Observer):
    """Counts what may happen in any process. `samples` may be called in another thread.

    What happens often is counted in subclasses, by one thread. What is counted here happens seldom: if two threads
    count at the same moment, one of the two may be missing.
    """

    def __init__(self, kind: str) -> None:
        """`kind`: worker, service, rq, bridge or store."""
        self._kind = kind
        self._labels = Labels()
        self._tallies: list[Counter | Histogram] = []
        self._looks: list[Look] = []
        self.is_away = False  # whether it cannot use the broker
        self._outages = self._counter(catalogue.OUTAGES)
        self._outage_s = self._counter(catalogue.OUTAGE_SECONDS)
        self._writes_lost = self._counter(catalogue.WRITES_LOST)
        self._quarantined = self._counter(catalogue.QUARANTINED)

    def _counter(self, metric: Metric) -> Counter:
        self._tallies.append(counter := Counter(metric, self._labels))
        return counter

    def _histogram(self, metric: Metric) -> Histogram:
        self._tallies.append(histogram := Histogram(metric, self._labels))
        return histogram

    def also(self, look: Look) -> None:
        """Tell this too, as it is when somebody asks."""
        self._looks.append(look)

    def samples(self) -> Iterator[Sample]:
        """All that was counted."""
        yield Sample(catalogue.PROCESS_INFO, (self._kind, _release()), 1)
        yield Sample(catalogue.BROKER_AWAY, (), int(self.is_away))
        for tally in self._tallies:
            yield from tally.samples()
        for look in self._looks:
            yield from look()

    def outage_began(self, **_: object) -> None:
        self.is_away = True
        self._outages.add()

    def outage_ended(self, *, duration_s: float, **_: object) -> None:
        self.is_away = False
        self._outage_s.add(by=max(0.0, duration_s))

    def writes_lost(self, **_: object) -> None:
        self._writes_lost.add()

    def entry_quarantined(self, *, stream: str, **_: object) -> None:
        what = stream.partition("}:")[2].partition(":")[0]
        self._quarantined.add(what if what in _STREAMS else "")


def _release() -> str:
    try:
        return version("sagastream")
    except PackageNotFoundError:  # its sources are on the path, and it is not installed
        return ""
