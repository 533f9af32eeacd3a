"""Counts as plain numbers, and the labels that they are counted under.

prometheus_client has counters of its own. They take a lock for each number, and twenty times as long: 5 % of a worker's
time. Here a count is an integer that one thread changes, and the thread that is asked copies it.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from sagastream.metrics.catalogue import Metric

#: At most this many values of a label are told apart; the others are counted as OTHER.
MOST_VALUES: Final = 200
#: At most this many combinations of labels a metric has.
MOST_SERIES: Final = 2000
#: Stands for all other values of a label.
OTHER: Final = "other"


class Times:
    """How many durations, or sizes, fell into each bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Sample(NamedTuple):
    """A metric under one combination of labels."""

    metric: Metric
    labels: tuple[str, ...]
    value: float | Times


class Values:
    """The values of one label that are told apart: the first ones that came."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def bounded(self, value: str) -> str:
        """The value, or OTHER."""
        if value not in self._known:
            if len(self._known) >= MOST_VALUES:
                return OTHER
            self._known.add(value)
        return value


class Labels:
    """The values of all labels of a process. The same value is the same under every metric."""

    def __init__(self) -> None:
        self._of: dict[str, Values] = {}

    def bounded(self, metric: Metric, values: tuple[str, ...]) -> tuple[str, ...]:
        """These values of the labels of a metric, or OTHER in the place of some."""
        named = zip(metric.labels, values, strict=True)
        return tuple([self._of.setdefault(name, Values()).bounded(value) for name, value in named])


class Counter:
    """A counter. Changed by one thread, or under a lock."""

    def __init__(self, metric: Metric, labels: Labels) -> None:
        self._metric = metric
        self._labels = labels
        self._of: dict[tuple[str, ...], float] = {} if metric.labels else {(): 0}

    def add(self, *values: str, by: float = 1) -> None:
        if values not in self._of:
            values = self._labels.bounded(self._metric, values)
            if values not in self._of and len(self._of) >= MOST_SERIES:
                values = (OTHER,) * len(values)
        self._of[values] = self._of.get(values, 0) + by

    def samples(self) -> Iterator[Sample]:
        for key, value in list(self._of.items()):
            yield Sample(self._metric, key, value)


class Histogram:
    """A histogram. Whoever counts much keeps what `of` returns."""

    def __init__(self, metric: Metric, labels: Labels) -> None:
        self._metric = metric
        self._labels = labels
        self._of: dict[tuple[str, ...], Times] = {}

    def of(self, *values: str) -> Times:
        """Where to count under these labels."""
        key = self._labels.bounded(self._metric, values)
        if (found := self._of.get(key)) is None:
            if len(self._of) >= MOST_SERIES:
                key = (OTHER,) * len(key)
            found = self._of.setdefault(key, Times(self._metric.bounds))
        return found

    def samples(self) -> Iterator[Sample]:
        for key, value in list(self._of.items()):
            yield Sample(self._metric, key, value)


#: Looks at something that is counted elsewhere.
Look = Callable[[], Iterator[Sample]]
