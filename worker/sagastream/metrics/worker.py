"""What a worker counts. This runs for each change of a saga, so it is written for speed."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

from sagastream.core.journal import notes
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.metrics import catalogue
from sagastream.metrics.process import ProcessMetrics
from sagastream.metrics.tally import MOST_SERIES, Sample, Times
from sagastream.telemetry import Move

_WAITING: Final = Phase.WAITING
_OUT: Final = Phase.OUT
_UNDO_OUT: Final = Phase.UNDO_OUT
_COMPLETED: Final = Phase.COMPLETED
_COMPENSATED: Final = Phase.COMPENSATED
_DO: Final = "transaction"
_UNDO: Final = "compensation"
#: From these a step can still complete: an earlier attempt is answered late.
_MAY_COMPLETE_LATE: Final = frozenset({Phase.BACKING_OFF, Phase.PARKED, Phase.RETRY_AWAITED})
#: … and from these it can still be undone.
_MAY_BE_UNDONE_LATE: Final = frozenset({Phase.UNDO_BACKING_OFF, Phase.UNDO_PARKED})
_BOUNDS: Final = catalogue.STEP_SECONDS.bounds


class WorkerMetrics(ProcessMetrics):
    """Counts for one worker, in whose thread it is called: no count needs a lock."""

    def __init__(self) -> None:
        super().__init__("worker")
        self.partitions_away_now = 0
        self._step_s = self._histogram(catalogue.STEP_SECONDS)
        self._saga_s = self._histogram(catalogue.SAGA_SECONDS)
        self._begun = self._counter(catalogue.BEGUN)
        self._parked = self._counter(catalogue.PARKED)
        self._lost = self._counter(catalogue.LOST)
        self._messages = self._counter(catalogue.MESSAGES)
        self._stuck = self._counter(catalogue.STUCK)
        self._turn_s = self._histogram(catalogue.TURN_SECONDS).of()
        self._turn_sagas = self._histogram(catalogue.TURN_SAGAS).of()
        #: Where to count what nearly every change does: by service and transaction, by definition. No key is a member
        #: of an enum: to hash one is a call in Python.
        self._done: dict[tuple[str, str], Times] = {}
        self._completed: dict[str, Times] = {}
        self._aborted: dict[str, Times] = {}

    def samples(self) -> Iterator[Sample]:
        yield from super().samples()
        yield Sample(catalogue.OUT_OF_REACH, (), self.partitions_away_now)

    def partitions_away(self, *, numbers: tuple[int, ...], **_: object) -> None:
        self.partitions_away_now = len(numbers)

    def turn_committed(
        self, *, sagas: int, messages: int, duration_s: float, moves: Sequence[Move], **_: object
    ) -> None:
        self._turn_s.add(duration_s)
        self._turn_sagas.add(sagas)
        self._messages.add(by=messages)
        done = self._done
        for before, after in moves:
            if before is None:
                self._begun.add(_name(after))
                continue
            now_ms = after.updated_ms
            for was, now in zip(before.steps, after.steps, strict=False):
                if was is now or (phase := was.phase) is _WAITING:
                    continue
                if phase is _OUT and now.phase is _COMPLETED and was.sent_ms is not None:
                    # Written out: this is what nearly every change of a saga does.
                    definition = now.definition
                    times = done.get((definition.service, definition.transaction)) or self._times_of(now)
                    took_s = (now_ms - was.sent_ms) / 1000
                    times.counts[bisect_left(_BOUNDS, took_s)] += 1
                    times.sum += took_s if took_s > 0 else 0.0
                else:
                    self._count_seldom(was, now, after)
            if after.ended:
                if not before.ended:
                    self._count_end(after)
            elif (parked := after.parked) is not None and parked != before.parked:
                self._count_parked(after)

    def comparison_lost(self, **_: object) -> None:
        self._lost.add()

    def stream_stuck(self, **_: object) -> None:
        self._stuck.add()

    def _times_of(self, step: Step) -> Times:
        """Where to count the attempts of its transaction that were done."""
        service, command = step.definition.service, step.definition.transaction
        times = self._step_s.of(service, command, _DO, "ok")
        if len(self._done) < MOST_SERIES:
            self._done[service, command] = times
        return times

    def _count_end(self, saga: SagaState) -> None:
        known = self._completed if saga.status is SagaStatus.COMPLETED else self._aborted
        name = _name(saga)
        if (times := known.get(name)) is None:
            times = self._saga_s.of(name, saga.status.lower())
            if len(known) < MOST_SERIES:
                known[name] = times
        times.add(max(0, saga.updated_ms - saga.begun_ms) / 1000)

    def _count_parked(self, saga: SagaState) -> None:
        step = saga.steps[saga.parked_steps[0] - 1]
        self._parked.add(step.definition.service, step.command)

    def _count_seldom(self, was: Step, now: Step, saga: SagaState) -> None:
        """Whatever is not the usual case: an attempt that failed or was done late, or an undo."""
        definition, now_ms = now.definition, saga.updated_ms
        service, command = definition.service, definition.transaction
        if was.phase is _OUT and (now.phase is not _OUT or now.attempt != was.attempt):
            outcome = "ok" if now.phase is _COMPLETED else "unknown" if now.unknown else "failed"
            _add(self._step_s.of(service, command, _DO, outcome), was.sent_ms, now_ms)
        elif now.phase is _COMPLETED and was.phase in _MAY_COMPLETE_LATE and was.sent_ms is not None:
            _add(self._step_s.of(service, command, _DO, "ok"), was.sent_ms, now_ms)
        if (undo := now.compensation) is None or was.phase is now.phase is not _UNDO_OUT:
            return
        if was.phase is _UNDO_OUT and (
            now.phase is not _UNDO_OUT or now.compensation_attempt != was.compensation_attempt
        ):
            outcome = "ok" if now.phase is _COMPENSATED else _how_undo_failed(was, now, saga)
            _add(self._step_s.of(service, undo, _UNDO, outcome), was.compensation_sent_ms, now_ms)
        elif now.phase is _COMPENSATED and was.phase in _MAY_BE_UNDONE_LATE:
            _add(self._step_s.of(service, undo, _UNDO, "ok"), was.compensation_sent_ms, now_ms)


def _how_undo_failed(was: Step, now: Step, saga: SagaState) -> str:
    """Whether an attempt to undo a step has failed, or nobody knows. The step does not say so, since it is undone again
    in both cases. The journal does, unless it is off or too full: then only what timed out is known to be unknown."""
    if not now.being_undone:
        return "unknown"  # somebody abandoned the saga while it was out
    undo = was.compensation_attempt
    for note in reversed(notes(saga.journal)):
        if note.what == "attempt" and note.undo and note.attempt == undo and note.sent_ms == was.compensation_sent_ms:
            step = saga.steps[(note.step or 1) - 1]
            if step.definition is was.definition:
                return "failed" if note.how == "failed" else "unknown"
    return "unknown" if was.due_ms is not None and was.due_ms <= saga.updated_ms else "failed"


def _name(saga: SagaState) -> str:
    """The definition from which it was made; empty: it was made from none."""
    return "" if saga.definition is None else saga.definition.name


def _add(times: Times, sent_ms: int | None, now_ms: int) -> None:
    if sent_ms is not None:
        times.add(max(0, now_ms - sent_ms) / 1000)
