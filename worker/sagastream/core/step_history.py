"""What happened to one step of a saga: its fields and its notes, put in order. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from sagastream.core.back import quote
from sagastream.core.durations import spoken
from sagastream.core.erasure import ERASED
from sagastream.core.history_events import HistoryEvent, HistoryKind
from sagastream.core.journal import Note, Said
from sagastream.core.phases import Phase
from sagastream.core.step_state import Step, StepStatus


class StepHistory:
    """The events of one step: those that follow each other, and those beside them."""

    def __init__(
        self, step: Step, number: int, noted: Sequence[Note], *, is_whole: bool, settled_ms: int, is_erased: bool
    ) -> None:
        """
        Args:
            noted: the notes of this step.
            is_whole: whether the journal has left out nothing.
            settled_ms: when the step was bypassed, if it was.
            is_erased: whether its saga was erased. Then there may have been an error that is gone.
        """
        self._is_erased = is_erased
        self._number = number
        self._step = step
        self._settled_ms = settled_ms
        self._noted = noted
        self._is_whole = is_whole

    def events(self) -> list[HistoryEvent]:
        """Of a step that sends a command."""
        step = self._step
        if step.phase is Phase.BYPASSED:
            return [self._event(HistoryKind.BYPASSED, self._settled_ms, "bypassed")]
        found = [*self._attempts(undo=False), *self._settled(), *self._attempts(undo=True), *self._undone()]
        if step.parked is not None and not any(note.why == step.parked for note in self._noted):
            found.append(self._event(HistoryKind.PARKED, None, f"parked: {step.parked}", undo=step.being_undone))
        return found

    def events_of_wait(self) -> list[HistoryEvent]:
        """Of a step that waits for a signal or a time."""
        step = self._step
        if step.phase is Phase.BYPASSED:
            return self.events()
        wait = step.definition.shape.wait
        what = "its pause" if wait is None else f"the signal {wait}"
        found = [self._of_note(note) for note in self._noted]
        if step.sent_ms is not None:
            found.append(self._event(HistoryKind.AWAITED, step.sent_ms, f"waits for {what}"))
        if step.answered_ms is not None:
            if step.phase is Phase.FAILED:
                text = f"failed: {self._quoted(step.error)}"
                found.append(self._event(HistoryKind.FAILED, step.answered_ms, text, error=step.error))
            else:
                text = f"{what} is over" if wait is None or step.result is None else f"{what} came"
                found.append(self._event(HistoryKind.DONE, step.answered_ms, text))
        return sorted(found, key=lambda event: event.at_ms or 0)

    def _attempts(self, *, undo: bool) -> Iterator[HistoryEvent]:
        """What is noted of the attempts of a command, and the last one, of which the fields say when it was sent."""
        step = self._step
        last = step.compensation_attempt if undo else step.attempt
        sent_ms = step.compensation_sent_ms if undo else step.sent_ms
        kind = HistoryKind.UNDO_SENT if undo else HistoryKind.SENT
        noted = [note for note in self._noted if note.undo is undo and note.what != "ignored"]
        known = {note.attempt for note in noted if note.what == "attempt"}
        forgotten = sum(attempt not in known for attempt in range(1, last))
        if forgotten and self._is_whole:
            text = f"{counted(forgotten, 'earlier attempt')} not kept in the history"
            yield self._event(HistoryKind.LEFT_OUT, None, text, undo=undo)
        is_to_tell = sent_ms is not None and last not in known
        for note in noted:
            comes_before = note.what == "attempt" or (note.what == "resumed" and note.at_ms == sent_ms)
            if is_to_tell and sent_ms is not None and note.at_ms >= sent_ms and not comes_before:
                yield self._event(kind, sent_ms, self._sent(last, undo=undo), undo=undo, attempt=last)
                is_to_tell = False
            if note.what == "attempt":
                yield self._event(
                    kind, note.sent_ms, self._sent(note.attempt, undo=undo), undo=undo, attempt=note.attempt
                )
            yield self._of_note(note)
        if is_to_tell:
            yield self._event(kind, sent_ms, self._sent(last, undo=undo), undo=undo, attempt=last)

    def _sent(self, attempt: int | None, *, undo: bool) -> str:
        again = f", attempt {attempt}" if attempt is not None and attempt > 1 else ""
        return f"{self._command(undo=undo)} sent to {self._step.definition.service}{again}"

    def _settled(self) -> Iterator[HistoryEvent]:
        """How its transaction ended for good."""
        if self._step.answered_ms is not None:
            yield self._last_word(self._step, self._step.answered_ms)

    def beside(self) -> list[HistoryEvent]:
        """What was heard of the step when it was on with something else."""
        step, found = self._step, [self._of_note(note) for note in self._noted if note.what == "ignored"]
        if step.late_ms is not None:
            text = f"{step.definition.transaction} was done after all{_by(step.done_by)}"
            found.append(self._event(HistoryKind.LATE, step.late_ms, text, process=step.done_by))
        return sorted(found, key=lambda event: event.at_ms or 0)

    def _last_word(self, step: Step, at_ms: int) -> HistoryEvent:
        name, process = step.definition.transaction, None if step.late_ms is not None else step.done_by
        attempt, took = self._of_last_word(at_ms, undo=False)
        error = step.error if attempt is not None else None
        why = f": {self._quoted(step.error)}" if attempt is not None else ""
        kind = HistoryKind.DONE
        how = f"done{took}{_by(process)}"
        if step.phase is Phase.FAILED:
            kind = HistoryKind.FAILED
            how = f"failed{took}{_by(process)}{why}" if attempt is not None else f"is not tried again{_by(process)}"
        elif step.unknown:
            kind = HistoryKind.UNKNOWN
            how = f"given up{took}{_by(process)}, and may have been done{why}"
        return self._event(kind, at_ms, f"{name} {how}", attempt=attempt, process=process, error=error)

    def _of_last_word(self, at_ms: int, *, undo: bool) -> tuple[int | None, str]:
        """Which attempt the last word is about, and how long that took, in words. None: it is not about an attempt: the
        last one was told before."""
        step, noted = self._step, [note for note in self._noted if note.undo is undo]
        if (answered := next((note for note in noted if note.what == "answered"), None)) is not None:
            return answered.attempt, ""
        last = step.compensation_attempt if undo else step.attempt
        sent_ms = step.compensation_sent_ms if undo else step.sent_ms
        if sent_ms is None or any(note.what == "attempt" and note.attempt == last for note in noted):
            return None, ""
        return last, f" after {_spoken(at_ms - sent_ms)}"

    def _undone(self) -> Iterator[HistoryEvent]:
        step, at_ms = self._step, self._step.compensation_answered_ms
        if at_ms is None:
            return
        attempt, took = self._of_last_word(at_ms, undo=True)
        if step.status is not StepStatus.COMPENSATED:
            took = " after all"
        process = step.compensation_done_by
        text = f"{self._command(undo=True)} done{took}{_by(process)}"
        yield self._event(HistoryKind.UNDONE, at_ms, text, undo=True, attempt=attempt, process=process)

    def _of_note(self, note: Note) -> HistoryEvent:
        command = self._command(undo=note.undo)
        if note.what == "parked":
            return self._event(HistoryKind.PARKED, note.at_ms, f"parked: {note.why}", undo=note.undo)
        if note.what in ("held", "resumed"):
            return self._of_pause(note, command)
        if note.what == "put off":
            return self._event(HistoryKind.UNDO_PUT_OFF, note.at_ms, f"{command} put off, to be sent later", undo=True)
        which = "" if note.attempt is None else f", attempt {note.attempt}"
        if note.what != "attempt":
            ignored = note.what == "ignored"
            what = f"the answer to an earlier attempt came{which}{_by(note.process)}"
            if ignored:
                what = f"the reply {note.type}{which}{_by(note.process)} was ignored: it came too late"
            kind = HistoryKind.IGNORED if ignored else HistoryKind.LATE
            return self._event(kind, note.at_ms, what, undo=note.undo, attempt=note.attempt, process=note.process)
        error = bytes(note.error) or None
        text = f"{command} {'not answered' if note.how == 'not answered' else 'failed'}{_by(note.process)}"
        if note.how == "unknown":
            text += ", and may be done all the same"
        if note.again_ms is not None:
            text += f"; to be sent again in {_spoken(note.again_ms - note.at_ms)}"
        # A long error stands before nothing that one looks for, and stands there once.
        text += f": {'the same error' if self._is_told_again(note) else quote(error)}"
        return self._event(
            _KINDS[note.how or "failed", note.undo],
            note.at_ms,
            text,
            undo=note.undo,
            attempt=note.attempt,
            process=note.process,
            error=error,
            again_ms=note.again_ms,
        )

    def _of_pause(self, note: Note, command: str) -> HistoryEvent:
        """The step is held, or goes on: who has paused what, or resumed it."""
        is_held = note.what == "held"
        if is_held:
            why = " and ".join([f"{one.what} is paused{_by_whom(one)}" for one in note.said]) or "it is paused"
            text = f"{command} held: {why}"
        else:
            ends = [f"{one.what} was resumed{_ago(note.at_ms - one.at_ms)}{_by_whom(one)}" for one in note.said]
            text = f"{command} goes on: {' and '.join(ends) or 'it is no longer paused'}"
        first = note.said[0] if note.said else None
        return self._event(
            HistoryKind.HELD if is_held else HistoryKind.RESUMED,
            note.at_ms,
            text,
            undo=note.undo,
            reason=None if first is None else first.reason or None,
            actor=None if first is None else first.actor,
        )

    def _is_told_again(self, note: Note) -> bool:
        """Whether the attempt before it that is noted failed with the very same error."""
        tried = [one for one in self._noted if one.what == "attempt" and one.undo is note.undo]
        at = next(at for at, one in enumerate(tried) if one is note)
        return at > 0 and bool(note.error) and tried[at - 1].error == note.error

    def _quoted(self, error: bytes | None) -> str:
        return ERASED if error is None and self._is_erased else quote(error)

    def _command(self, *, undo: bool) -> str:
        return (self._step.compensation or "its compensation") if undo else self._step.definition.transaction

    def _event(
        self, kind: HistoryKind, at_ms: int | None, text: str, *, undo: bool = False, **more: Any
    ) -> HistoryEvent:
        definition = self._step.definition
        return HistoryEvent(
            kind=kind,
            at_ms=at_ms,
            text=text,
            step=self._number,
            command=self._step.compensation if undo else definition.transaction,
            service=definition.service or None,
            **more,
        )


_KINDS: Final = {
    ("failed", False): HistoryKind.FAILED,
    ("unknown", False): HistoryKind.UNKNOWN,
    ("not answered", False): HistoryKind.NOT_ANSWERED,
    ("failed", True): HistoryKind.UNDO_FAILED,
    ("unknown", True): HistoryKind.UNDO_UNKNOWN,
    ("not answered", True): HistoryKind.UNDO_NOT_ANSWERED,
}


def _by(process: str | None) -> str:
    return "" if process is None else f" by {process}"


def _by_whom(said: Said) -> str:
    by = f" by {said.actor}" if said.actor else ""
    return f"{by}: {said.reason}" if said.reason else by


def _ago(ms: int) -> str:
    """By how much a worker came later: when none ran, for example. A second is usual."""
    return f" {spoken(ms)} before" if ms >= _LATE_MS else ""


#: A worker that comes so much later is late.
_LATE_MS: Final = 10_000


def counted(count: int, what: str) -> str:
    """So many of something, and the verb."""
    return f"{count} {what} is" if count == 1 else f"{count} {what}s are"


def _spoken(ms: int) -> str:
    """How long something took. If the clock was set meanwhile, nobody knows."""
    return f"{ms} ms" if 0 <= ms < _TOLD_IN_MS else spoken(max(ms, 0))


_TOLD_IN_MS: Final = 10_000
