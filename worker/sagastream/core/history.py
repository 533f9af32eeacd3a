"""What happened to a saga, event by event, as far as it is known: its fields and its journal, put in order. Pure.

Each step has a course of its own; so have the people who asked for something, and the saga as a whole. The courses are
merged by time. So what happened to one step stays in its order, whatever the broker's clock did meanwhile.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from sagastream.core import graph
from sagastream.core.bulks import bulk_of
from sagastream.core.erasure import erasure
from sagastream.core.history_events import HistoryEvent, HistoryKind
from sagastream.core.journal import Note, notes
from sagastream.core.saga import Intervention, SagaState
from sagastream.core.step_history import StepHistory, counted


def history(state: SagaState) -> list[HistoryEvent]:
    """All events of a saga that are known, oldest first."""
    noted, is_erased = notes(state.journal), erasure(state) is not None
    courses = [_of_saga(noted), [_asked(done) for done in state.interventions]]
    settled = _settled_times(state)
    for number, step in enumerate(state.steps, 1):
        of_step = [note for note in noted if note.step == number]
        is_whole = all(note.what != "left out" for note in noted)
        course = StepHistory(
            step, number, of_step, is_whole=is_whole, settled_ms=settled[number - 1], is_erased=is_erased
        )
        courses += (course.events() if step.definition.shape.sends else course.events_of_wait(), course.beside())
    begun = HistoryEvent(kind=HistoryKind.BEGUN, at_ms=state.begun_ms, text=_begun(state))
    if state.ended:
        courses.append([_ended(state)])
    return [begun, *_merged(courses)]


def _begun(state: SagaState) -> str:
    if state.definition is None:
        return "begun"
    return f"begun, as version {state.definition.version} of {state.definition.name}"


def _ended(state: SagaState) -> HistoryEvent:
    text = f"ended, {state.status}" + (f": {state.reason}" if state.reason else "")
    return HistoryEvent(kind=HistoryKind.ENDED, at_ms=state.updated_ms, text=text, reason=state.reason)


def _of_saga(noted: Sequence[Note]) -> list[HistoryEvent]:
    """What happened to the saga as a whole between its begin and its end."""
    found = []
    for note in noted:
        if note.what == "deadline":
            text = note.why or "its deadline has come"
            found.append(HistoryEvent(kind=HistoryKind.DEADLINE, at_ms=note.at_ms, text=text, reason=note.why))
        elif note.what == "left out":
            text = f"{counted(note.count, 'event')} left out, the last of them at this time"
            found.append(HistoryEvent(kind=HistoryKind.LEFT_OUT, at_ms=note.at_ms, text=text))
    return found


def _asked(done: Intervention) -> HistoryEvent:
    by = "" if done.actor is None else f" by {done.actor}"
    bulk = bulk_of(done.request_id)
    of_many = "" if bulk is None else f", bulk {bulk}"
    text = f"{done.verb}{by}{of_many}" + (f": {done.reason}" if done.reason else "")
    return HistoryEvent(
        kind=HistoryKind.ASKED,
        at_ms=done.at_ms,
        text=text,
        step=done.step,
        verb=done.verb,
        reason=done.reason or None,
        actor=done.actor,
        bulk=bulk,
    )


#: Of events of the same time, those come first that lead to the others.
_CAUSES_FIRST: Final = {
    kind: rank
    for rank, kinds in enumerate(
        [
            (HistoryKind.ASKED, HistoryKind.DEADLINE, HistoryKind.RESUMED),
            (HistoryKind.DONE, HistoryKind.FAILED, HistoryKind.NOT_ANSWERED, HistoryKind.UNKNOWN, HistoryKind.LATE),
            (HistoryKind.UNDONE, HistoryKind.UNDO_FAILED, HistoryKind.UNDO_NOT_ANSWERED, HistoryKind.UNDO_UNKNOWN),
            (HistoryKind.BYPASSED, HistoryKind.IGNORED, HistoryKind.LEFT_OUT),
            (HistoryKind.PARKED,),
            (HistoryKind.SENT, HistoryKind.AWAITED),
            (HistoryKind.HELD, HistoryKind.UNDO_PUT_OFF, HistoryKind.UNDO_SENT),
            (HistoryKind.ENDED,),
        ]
    )
    for kind in kinds
}


def _merged(courses: Sequence[Sequence[HistoryEvent]]) -> Iterator[HistoryEvent]:
    """The events of all courses by time; those of one course in its order."""
    at = [0] * len(courses)
    times = [_times(course) for course in courses]

    def key(one: int) -> tuple[int, int, int]:
        event = courses[one][at[one]]
        undoes = event.kind in (HistoryKind.UNDO_SENT, HistoryKind.UNDO_PUT_OFF)  # the last step is undone first
        return times[one][at[one]], _CAUSES_FIRST[event.kind], -one if undoes else one

    while left := [one for one, course in enumerate(courses) if at[one] < len(course)]:
        first = min(left, key=key)
        yield courses[first][at[first]]
        at[first] += 1


def _times(course: Sequence[HistoryEvent]) -> list[int]:
    """By which time each event is sorted. One whose time is not known comes along with the next one; the last ones
    come last."""
    found, next_ms = [], _NEVER_MS
    for event in reversed(course):
        next_ms = next_ms if event.at_ms is None else event.at_ms
        found.append(next_ms)
    return found[::-1]


_NEVER_MS: Final = 1 << 62


def _settled_times(state: SagaState) -> list[int]:
    """When each step was done. A bypassed one: when the last of the steps was after which it comes."""
    start_ms = max(state.begun_ms, state.start_ms or 0)
    found: list[int] = []
    for number, step in enumerate(state.steps, 1):
        earlier = [found[one - 1] for one in graph.before(step.definition, number)]
        found.append(max(earlier, default=start_ms) if step.answered_ms is None else step.answered_ms)
    return found
