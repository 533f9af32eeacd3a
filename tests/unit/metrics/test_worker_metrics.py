"""What a worker counts of the changes that it commits, by sagas that are played through the core."""

from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.core.journal import JOURNAL_BYTES
from sagastream.core.messages import DefinedBy
from sagastream.metrics import catalogue
from sagastream.metrics.catalogue import Metric
from sagastream.metrics.tally import MOST_SERIES, MOST_VALUES, OTHER, Times
from sagastream.metrics.worker import WorkerMetrics
from support.graphs import Played
from support.scenes import do


class Counted(Played):
    """A saga in the hands of the core, whose changes are counted."""

    journal_bytes = JOURNAL_BYTES

    def __init__(self, *steps: dict[str, Any], **members: Any) -> None:
        self.metrics = WorkerMetrics()
        super().__init__(*steps, **members)

    def _decide(self, event: Any) -> "Counted":
        before = self.state
        super()._decide(event)
        moves = [(before, self.saga)]
        self.metrics.turn_committed(sagas=1, messages=1, commands=0, duration_s=0.01, moves=moves)
        return self

    def later(self, ms: int) -> "Counted":
        self.now_ms += ms
        return self


def counts(metrics: WorkerMetrics, metric: Metric) -> dict[tuple[str, ...], float]:
    """How often each series of a metric was counted."""
    return {
        labels: sum(value.counts) if isinstance(value, Times) else value
        for which, labels, value in metrics.samples()
        if which is metric
    }


def seconds(metrics: WorkerMetrics, metric: Metric, *labels: str) -> float:
    (value,) = [value for which, found, value in metrics.samples() if (which, found) == (metric, labels)]
    assert isinstance(value, Times)
    return value.sum


def steps(saga: Counted) -> dict[tuple[str, ...], float]:
    """How often each kind of attempt has ended: (command, direction, outcome)."""
    return {labels[1:]: number for labels, number in counts(saga.metrics, catalogue.STEP_SECONDS).items()}


def test_a_saga_that_completes() -> None:
    saga = Counted(do(1, after=[]), do(2, "Pay", service="till", after=[1]))
    saga.later(200).ok(1)
    saga.later(3_000).ok(2)
    assert steps(saga) == {("Do", "transaction", "ok"): 1, ("Pay", "transaction", "ok"): 1}
    assert seconds(saga.metrics, catalogue.STEP_SECONDS, "till", "Pay", "transaction", "ok") == 3
    assert counts(saga.metrics, catalogue.BEGUN) == {("",): 1}
    assert counts(saga.metrics, catalogue.SAGA_SECONDS) == {("", "completed"): 1}
    assert seconds(saga.metrics, catalogue.SAGA_SECONDS, "", "completed") == pytest.approx(3.2)
    assert counts(saga.metrics, catalogue.TURN_SAGAS) == {(): 3}
    assert counts(saga.metrics, catalogue.MESSAGES) == {(): 3}


def test_a_saga_that_goes_back() -> None:
    saga = Counted(do(1, compensation="Undo"), do(2, "Pay"))
    saga.ok(1).failed(2)
    saga.later(40).ok(1)
    assert steps(saga) == {
        ("Do", "transaction", "ok"): 1,
        ("Pay", "transaction", "failed"): 1,
        ("Undo", "compensation", "ok"): 1,
    }
    assert seconds(saga.metrics, catalogue.STEP_SECONDS, "work", "Undo", "compensation", "ok") == pytest.approx(0.04)
    assert counts(saga.metrics, catalogue.SAGA_SECONDS) == {("", "aborted"): 1}


def test_attempts_that_fail_or_time_out_count_each() -> None:
    saga = Counted(do(1, attempts=5, timeout_ms=1_000, retry_failed=True))
    saga.failed(1).due()  # its next attempt is sent
    saga.due()  # that one times out
    saga.due().ok(1)
    assert steps(saga) == {
        ("Do", "transaction", "failed"): 1,
        ("Do", "transaction", "unknown"): 1,
        ("Do", "transaction", "ok"): 1,
    }


def test_an_attempt_that_is_done_late_counts_as_done() -> None:
    saga = Counted(do(1, attempts=5, timeout_ms=1_000, retry_failed=True))
    saga.due()
    saga.later(10).ok(1)
    assert steps(saga) == {("Do", "transaction", "unknown"): 1, ("Do", "transaction", "ok"): 1}


def test_a_compensation_that_fails_counts_each_time_and_parks_the_saga_once() -> None:
    saga = Counted(do(1, compensation="Undo", compensation_attempts=2), do(2))
    saga.ok(1).failed(2).failed(1)
    saga.due().failed(1)
    assert steps(saga)[("Undo", "compensation", "failed")] == 2
    assert counts(saga.metrics, catalogue.PARKED) == {("work", "Undo"): 1}
    saga.says("skip")
    assert counts(saga.metrics, catalogue.PARKED) == {("work", "Undo"): 1}
    assert counts(saga.metrics, catalogue.SAGA_SECONDS) == {("", "aborted"): 1}


def test_a_compensation_that_times_out_or_whose_handler_raises_is_unknown() -> None:
    saga = Counted(do(1, compensation="Undo", compensation_attempts=4, timeout_ms=1_000), do(2, compensation="Undo"))
    saga.ok(1).failed(2)
    saga.due()  # nobody answers
    saga.due()._reply(1, "failed", unknown=True)  # its handler raises
    saga.due().failed(1)  # it is rejected
    saga.due().ok(1)
    undone = {labels[2]: number for labels, number in steps(saga).items() if labels[1] == "compensation"}
    assert undone == {"unknown": 2, "failed": 1, "ok": 1}


def test_without_a_journal_a_compensation_that_timed_out_is_known_as_such() -> None:
    saga = Counted(do(1, compensation="Undo", compensation_attempts=4, timeout_ms=1_000), do(2))
    saga.ok(1).failed(2)
    before = saga.saga
    saga.due()
    later = replace(saga.saga, journal=None)
    metrics = WorkerMetrics()
    metrics.turn_committed(sagas=1, messages=1, commands=0, duration_s=0.0, moves=[(before, later)])
    assert counts(metrics, catalogue.STEP_SECONDS) == {("work", "Undo", "compensation", "unknown"): 1}


def test_steps_that_send_nothing_are_no_commands() -> None:
    saga = Counted({"id": "asked", "wait": "approve", "timeout_ms": 1_000}, do(1, after=["asked"]))
    saga.signal("approve", 1).ok(2)
    assert steps(saga) == {("Do", "transaction", "ok"): 1}


def test_sagas_count_by_their_definition() -> None:
    saga = Counted(do(1))
    defined = replace(saga.saga, definition=DefinedBy(name="travel", version=3, sha256="0" * 64))
    saga.metrics.turn_committed(sagas=1, messages=1, commands=1, duration_s=0.0, moves=[(None, defined)])
    assert counts(saga.metrics, catalogue.BEGUN) == {("",): 1, ("travel",): 1}


def test_a_clock_that_was_set_back_counts_as_no_time() -> None:
    saga = Counted(do(1))
    saga.later(-5_000).ok(1)
    assert seconds(saga.metrics, catalogue.STEP_SECONDS, "work", "Do", "transaction", "ok") == 0
    assert seconds(saga.metrics, catalogue.SAGA_SECONDS, "", "completed") == 0


def test_names_that_nobody_expects_do_not_make_endless_series() -> None:
    saga = Counted(do(1))
    for number in range(MOST_SERIES + 10):
        other = replace(saga.saga, definition=DefinedBy(name=f"d{number}", version=1, sha256="0" * 64))
        saga.metrics.turn_committed(sagas=1, messages=1, commands=1, duration_s=0.0, moves=[(None, other)])
    found = counts(saga.metrics, catalogue.BEGUN)
    assert len(found) == MOST_VALUES + 1
    assert sum(found.values()) == MOST_SERIES + 11
    assert found[OTHER,] == MOST_SERIES + 11 - MOST_VALUES
