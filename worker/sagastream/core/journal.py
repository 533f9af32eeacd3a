"""What a saga's own fields would forget: attempts that failed, why it was parked, answers that were ignored. Pure.

A saga says when each step was last sent and how it was answered. The next attempt overwrites that. So a decision that
overwrites something notes it first, in the journal of the saga: lines of JSON in one field of its hash, bounded in
bytes. What the fields say anyway is not noted: a saga whose steps all complete at the first attempt has no journal.
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from sagastream.core.commands import Reply, failed, ok
from sagastream.core.messages import Due
from sagastream.core.pauses import Pause, Resume, is_paused, names_of, pauses_of
from sagastream.core.phases import BACKING_OFF, IN_FLIGHT, Phase
from sagastream.core.saga import Found, SagaState
from sagastream.core.step_state import Step
from sagastream.core.steps import PLAIN
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Moment

#: How many bytes the journal of a saga has at most, if the worker is not told otherwise.
JOURNAL_BYTES: Final = 4096
#: The most that a journal may be allowed: the whole field is written again with each note.
MAX_JOURNAL_BYTES: Final = 1 << 20
#: Of a long error, a note keeps so many characters. The last error of a step stays whole, with the step.
_ERROR_CHARS: Final = 300
#: For how long a step may be held after the end of the pause, until a worker hears of that.
_HEARD_LATE_MS: Final = 10_000
#: Of this share of a full journal, the first notes are kept: they tell how the trouble began.
_FIRST: Final = 4

#: What a note is about. answered: an earlier attempt got the answer that is the last word; ignored: a reply said
#: nothing new.
What = Literal["attempt", "answered", "ignored", "parked", "held", "resumed", "put off", "deadline", "left out"]
#: How an attempt ended that was not the last word.
How = Literal["failed", "unknown", "not answered"]


#: No error was given. It is one object: a note leaves out a member only if that is the very default.
_NO_ERROR: Final = Raw()


class Said(Struct, frozen=True, array_like=True):
    """Who has paused or resumed something, and why: a pause is forgotten once it is over."""

    what: str  # the service, or the command of a service, as people name it
    actor: str | None  # None: they did not say
    reason: str  # empty: they did not say
    at_ms: int  # since when it was paused, or when it was resumed; 0: nobody knows


class Note(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a journal. Times are milliseconds since the epoch by the broker's clock."""

    what: What
    at_ms: int  # when it happened; of what was left out: when the last of it did
    step: int | None = None  # the number of the step
    undo: bool = False  # whether it is about the compensation of the step
    attempt: int | None = None  # which attempt of the command
    sent_ms: int | None = None  # of an attempt: when it was sent
    how: How | None = None  # of an attempt: how it ended
    error: Raw = _NO_ERROR  # of an attempt: JSON; empty: none was given
    process: str | None = None  # which process answered
    again_ms: int | None = None  # of an attempt: when the next one is to be sent
    type: str | None = None  # of a reply that was ignored
    why: str | None = None  # of a deadline, and of a step that is parked
    said: tuple[Said, ...] = ()  # of a step that is held: of each pause; of one that goes on: of each that was over
    count: int = 0  # how many notes were left out


_READER: Final = msgspec.json.Decoder(Note)


def notes(journal: bytes | None) -> list[Note]:
    """The notes of a journal, oldest first. What cannot be read, of a damaged one or of a newer release, is not there:
    nothing depends on it."""
    found = []
    for line in (journal or b"").split(b"\n"):
        try:
            found.append(_READER.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return found


def with_notes(before: Found, after: Found, event: object, moment: Moment) -> Found:
    """The saga after a decision, with all noted that its fields no longer say.

    Args:
        before, after: the saga before and after that decision.
        event: what was decided on.
        moment: says how many bytes the journal may have, and who has paused and resumed what.
    """
    if after is before or not isinstance(after, SagaState) or (not moment.paused and _is_usual(before, after, event)):
        return after
    now_ms = moment.now_ms
    found: list[Note] = []
    if isinstance(before, SagaState):
        if isinstance(event, Due) and before.is_over_deadline(now_ms) and _has_same_clock(before, after):
            found.append(Note(what="deadline", at_ms=now_ms, why=after.cancelling or after.reason))
        for number, (was, now) in enumerate(zip(before.steps, after.steps, strict=True), 1):
            if was is not now:
                found += _of_step(before, number, now, event, moment)
        if isinstance(event, Reply):
            after = _with_process(before, after, event)
            if after.duplicates > before.duplicates:
                found.append(_replied("ignored", before.steps[event.step - 1], event, now_ms))
    else:
        steps = list(enumerate(after.steps, 1))
        found += [_parked(number, step, now_ms) for number, step in steps if step.parked is not None]
        found += [_held(number, step, moment) for number, step in steps if step.is_held]
    return replace(after, journal=_appended(after.journal, found, moment.journal_bytes)) if found else after


def _is_usual(before: Found, after: SagaState, event: object) -> bool:
    """Whether nothing can have been overwritten: the usual course of a saga, which must not become slower."""
    if not isinstance(event, Reply):
        return before is None and after.format == PLAIN
    if after.format != PLAIN or event.process is not None or not isinstance(before, SagaState):
        return False
    was, now = before.steps[event.step - 1], after.steps[event.step - 1]
    return was.phase is Phase.OUT and was.attempt == 1 and now.phase is Phase.COMPLETED


def _has_same_clock(before: SagaState, after: SagaState) -> bool:
    """Whether the broker's clock was not found to be set: a saga that is due does nothing else then."""
    return (before.set_back_ms, before.set_forward_ms) == (after.set_back_ms, after.set_forward_ms)


def _of_step(before: SagaState, number: int, now: Step, event: object, moment: Moment) -> list[Note]:
    was = before.steps[number - 1]
    found, now_ms = [], moment.now_ms
    if _has_failed(was, now):
        found.append(_attempt(number, was, now, event, now_ms))
    elif isinstance(event, Reply) and event.step == number and _is_of_earlier_attempt(was, event):
        found.append(_replied("answered", was, event, now_ms))
    if now.parked is not None and now.parked is not was.parked:
        found.append(_parked(number, now, now_ms))
    if was.is_held and not now.is_held and isinstance(event, Due) and not _is_paused(was, moment):
        found.append(_resumed(number, was, before, moment))
    if now.is_held:
        if not was.is_held:
            found.append(_held(number, now, moment))
    elif now.phase is Phase.UNDO_BACKING_OFF and was.phase is not now.phase and now.compensation_attempt == 0:
        found.append(Note(what="put off", at_ms=now_ms, step=number, undo=True))
    return found


def _has_failed(was: Step, now: Step) -> bool:
    """Whether the attempt that was out has ended, and was not the last word: the next attempt overwrites when it was
    sent. What is the last word stays in the fields of the step."""
    if was.phase not in IN_FLIGHT:
        return False
    if was.phase is Phase.OUT:
        return now.phase in _TRIED_AGAIN or (now.phase is Phase.OUT and now.attempt > was.attempt)
    return now.phase in _UNDO_TRIED_AGAIN


_TRIED_AGAIN: Final = frozenset({Phase.BACKING_OFF, Phase.RETRY_AWAITED, Phase.PARKED})
_UNDO_TRIED_AGAIN: Final = frozenset({Phase.UNDO_BACKING_OFF, Phase.UNDO_PARKED})


def _attempt(number: int, was: Step, now: Step, event: object, now_ms: int) -> Note:
    undo = was.being_undone
    how: How = "not answered"
    if isinstance(event, Reply):
        how = "unknown" if event.unknown else "failed"
    error = now.compensation_error if undo else now.error
    return Note(
        what="attempt",
        at_ms=now_ms,
        step=number,
        undo=undo,
        attempt=was.current_attempt,
        sent_ms=was.compensation_sent_ms if undo else was.sent_ms,
        how=how,
        error=_NO_ERROR if error is None else Raw(_shortened(error)),
        process=event.process if isinstance(event, Reply) else None,
        again_ms=now.due_ms if now.phase in BACKING_OFF else None,
    )


def _shortened(error: bytes) -> bytes:
    if len(error) <= _ERROR_CHARS:
        return error
    value = msgspec.json.decode(error)
    text = value if isinstance(value, str) else error.decode()
    return encode(text[:_ERROR_CHARS] + "…") if len(text) > _ERROR_CHARS else error


def _parked(number: int, step: Step, now_ms: int) -> Note:
    return Note(what="parked", at_ms=now_ms, step=number, undo=step.being_undone, why=step.parked)


def _held(number: int, step: Step, moment: Moment) -> Note:
    pauses = pauses_of(step.definition.service, step.command, moment.pauses)
    said = tuple([_said(one, one.since_ms) for one in pauses])
    return Note(what="held", at_ms=moment.now_ms, step=number, undo=step.being_undone, said=said)


def _is_paused(step: Step, moment: Moment) -> bool:
    return is_paused(step.definition.service, step.command, moment.paused)


def _resumed(number: int, step: Step, before: SagaState, moment: Moment) -> Note:
    """The step was held, and is no longer paused. Several pauses may have held it: who ended each since then."""
    names, undo = names_of(step.definition.service, step.command), step.being_undone
    held = [note for note in notes(before.journal) if (note.what, note.step, note.undo) == ("held", number, undo)]
    ended = sorted([one for one in moment.resumes if one.name in names], key=lambda one: one.at_ms)
    since_ms = held[-1].at_ms - _HEARD_LATE_MS if held else None
    # If the journal does not say since when it was held, only the last one is known to count.
    ended = ended[-1:] if since_ms is None else [one for one in ended if one.at_ms >= since_ms]
    said = tuple([_said(one, one.at_ms) for one in ended])
    return Note(what="resumed", at_ms=moment.now_ms, step=number, undo=undo, said=said)


def _said(one: Pause | Resume, at_ms: int) -> Said:
    why = one.reason if len(one.reason) <= _ERROR_CHARS else one.reason[:_ERROR_CHARS] + "…"
    return Said(one.told, one.actor, why, at_ms)


def _is_of_earlier_attempt(was: Step, reply: Reply) -> bool:
    """Whether the step was settled by the answer to an attempt that was given up before. A late answer to the
    transaction of a step that is being undone settles nothing."""
    if not was.is_active or reply.attempt is None or _is_of_undo(was, reply) is not was.being_undone:
        return False
    return reply.attempt < was.current_attempt


def _is_of_undo(was: Step, reply: Reply) -> bool:
    transaction = was.definition.transaction
    return reply.type not in (ok(transaction), failed(transaction))


def _replied(what: What, was: Step, reply: Reply, now_ms: int) -> Note:
    return Note(
        what=what,
        at_ms=now_ms,
        step=reply.step,
        undo=_is_of_undo(was, reply),
        attempt=reply.attempt,
        process=reply.process,
        type=reply.type if what == "ignored" else None,
    )


def _with_process(before: SagaState, after: SagaState, reply: Reply) -> SagaState:
    """The saga with the process that gave the last word on a step noted with that step."""
    was, now = before.steps[reply.step - 1], after.steps[reply.step - 1]
    if reply.process is None or was is now:
        return after
    if now.answered_ms is not was.answered_ms or now.late_ms is not was.late_ms:
        return after.with_step(reply.step, replace(now, done_by=reply.process))
    if now.compensation_answered_ms is not was.compensation_answered_ms:
        return after.with_step(reply.step, replace(now, compensation_done_by=reply.process))
    return after


def _appended(journal: bytes | None, found: Sequence[Note], most: int) -> bytes:
    """The journal with more notes. If it is too long then, the oldest notes are left out, but for the very first."""
    text = b"\n".join(map(msgspec.json.encode, found))
    text = text if not journal else journal + b"\n" + text
    return text if len(text) <= most else _bounded(text.split(b"\n"), most)


def _bounded(lines: Sequence[bytes], most: int) -> bytes:
    first = 0  # how many of the first lines stay
    room = most // _FIRST
    while first < len(lines) and (room := room - len(lines[first]) - 1) >= 0 and b'"left out"' not in lines[first]:
        first += 1
    room = most - sum(len(line) + 1 for line in lines[:first]) - _LEFT_OUT_BYTES
    last = len(lines)  # from which one the last lines stay
    while last > first and (room := room - len(lines[last - 1]) - 1) >= 0:
        last -= 1
    dropped = notes(b"\n".join(lines[first:last]))
    count = sum(note.count if note.what == "left out" else 1 for note in dropped)
    left_out = Note(what="left out", at_ms=max((note.at_ms for note in dropped), default=0), count=count)
    return b"\n".join([*lines[:first], msgspec.json.encode(left_out), *lines[last:]])


#: A line that says what was left out has at most so many bytes.
_LEFT_OUT_BYTES: Final = 64
