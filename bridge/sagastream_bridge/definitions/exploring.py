"""Tries a saga in every way, by the real core: each step is done, fails or stays unknown; each condition holds or does
not; each wait is signalled, declined or over; the saga is cancelled at any time; each undo is done or parked.

What is left out makes no difference to what is told. Attempts: only the last one counts. Texts and data. The order of
answers once the saga goes back: nothing is sent until all are there. Operators: what is parked stays parked.
"""

import time
from collections.abc import Iterator
from operator import le
from typing import Final, NamedTuple

from msgspec.structs import replace

from sagastream.core import graph
from sagastream.core.commands import Reply, failed, ok
from sagastream.core.decision import FAULT, Event, decide
from sagastream.core.messages import Begin
from sagastream.core.phases import UNDO, Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.sending import Published
from sagastream.core.steps import StepKind
from sagastream.core.transitions import Moment
from sagastream.errors import SagastreamError
from sagastream_bridge.definitions.happenings import command_answers, happenings
from sagastream_bridge.definitions.model import NOW_MS, SAGA_ID, Key, Model, answers
from sagastream_bridge.definitions.outcomes import Explored, Park, Some, Undone, What

#: The most states that are looked at, and for how long, unless a person asks for more. One of many steps takes long.
MOST_WORLDS: Final = 100_000
MOST_S: Final = 120


#: The answers to the questions that steps will ask again.
_Known = tuple[tuple[str, bool], ...]


class TooMany(SagastreamError):
    """The saga can be in more states than are looked at, or than can be looked at in time."""


class _After(NamedTuple):
    """A saga after an event."""

    state: SagaState
    known: dict[str, bool]  # all answers to the questions that steps have asked
    unbegun: int | None = None  # a step that should have begun by that, and could not


class _Back(NamedTuple):
    """How a saga goes back after one happening."""

    least: tuple[int, ...]  # of each group, how many steps are undone in any case
    most: dict[tuple[int, ...], SagaState]  # … at most, if nothing more could be; with the saga when that begins


def explore(
    begin: Begin, published: Published | None = None, most_worlds: int = MOST_WORLDS, most_s: float = MOST_S
) -> Explored:
    """Try a saga in every way.

    Args:
        begin: the saga.
        published: what its services publish. None: each step that names no compensation has one.
        most_worlds: how many states are looked at.
        most_s: for how many seconds.

    Raises TooMany.
    """
    return _Exploration(Model(begin, published), most_worlds, most_s).explored()


class _Exploration:
    def __init__(self, model: Model, most_worlds: int, most_s: float) -> None:
        self._model = model
        self._most_worlds, self._most_s = most_worlds, most_s
        self._until = time.monotonic() + most_s
        self._moment = Moment(now_ms=NOW_MS, published=model.published)
        self._seen: set[tuple[Key, _Known]] = set()
        self._waiting: list[tuple[SagaState, _Known]] = []
        self._back: dict[tuple[int, What], _Back] = {}  # by the group to which it happens, and what
        self._gone_back: dict[tuple[Key, _Known], dict[tuple[int, ...], SagaState]] = {}
        self._parks: dict[tuple[tuple[int, ...], What], set[int]] = {}  # the steps that wait for each
        self._stuck: set[tuple[int, tuple[int, ...]]] = set()
        self._ends: set[SagaStatus] = set()
        self._reached: set[int] = set()
        self._ancestors = graph.ancestors(model.begin.steps)

    def explored(self) -> Explored:
        for after in self._decided(None, self._model.begin, {}):
            self._go_on(None, after, None, 0)
        while self._waiting:
            going, answered = self._waiting.pop()
            for what, group, event, before in happenings(self._model, going):
                for after in self._decided(before, event, dict(answered)):
                    self._go_on(before, after, what, group)
        undone = tuple(row for group, what in sorted(self._back, key=_in_order) for row in self._rows(group, what))
        steps = range(1, len(self._model.groups_of) + 1)
        back = {number for row in undone for layer in row.order for some in layer for number in some.steps}
        parks = sorted(self._parks.items(), key=lambda park: (park[0][0], list(What).index(park[0][1])))
        return Explored(
            ends=tuple(status for status in SagaStatus if status in self._ends),
            undone=undone,
            parks=tuple(Park(what, at, tuple(sorted(waiting))) for (at, what), waiting in parks),
            never_reached=tuple(number for number in steps if self._model.groups_of[number] not in self._reached),
            never_undone=tuple(number for number in steps if self._model.undos[number - 1] and number not in back),
            worlds=self._worlds,
        )

    # --- forward

    def _decided(
        self, state: SagaState | None, event: Event, answered: dict[str, bool], known: dict[str, bool] | None = None
    ) -> Iterator[_After]:
        """The saga after an event: for each answer to the questions that its steps ask, and for each step that may fail
        to begin. `answered`: the answers that there are before; `known`: and those that are given now."""
        known = answered if known is None else known
        model = self._model
        if model.begin.input is not None:
            data = answers(known, model.variables)
            event = replace(event, input=data) if isinstance(event, Begin) else event
            state = state and replace(state, input=data)
        after = self._decide(state, event)
        asked = [(one, kind) for one, kind in model.asked(state, after) if one not in known]
        if not asked:
            yield _After(after, known)
            for number in model.may_not_have_begun(state, after, answered):
                yield _After(self._without(number, state, event), known, number)
            return
        variable, kind = asked[0]
        yield from self._decided(state, event, answered, known | {variable: True})
        # Of those that are alike, the first ones are answered yes: which ones makes no difference.
        yield from self._decided(state, event, answered, known | {one: False for one, other in asked if other == kind})

    def _without(self, number: int, state: SagaState | None, event: Event) -> SagaState:
        """The saga after an event if this step cannot begin: it asks for what is not there."""
        definition = self._model.unbuildable(number)
        if state is not None:
            step = replace(state.steps[number - 1], definition=definition)
            return self._decide(state.with_step(number, step), event)
        assert isinstance(event, Begin)
        steps = (*event.steps[: number - 1], definition, *event.steps[number:])
        return self._decide(None, replace(event, steps=steps))

    def _decide(self, state: SagaState | None, event: Event) -> SagaState:
        self._check_time()
        decision = decide(state, event, self._moment)
        assert isinstance(decision.state, SagaState)
        assert FAULT not in (decision.quarantine or ""), decision.quarantine
        return decision.state

    def _go_on(self, before: SagaState | None, after: _After, what: What | None, group: int) -> None:
        """Note what has become of the saga. If it goes on, look into that later."""
        state, known, unbegun = after
        if unbegun is not None:
            what, group = What.FAILS, self._model.groups_of[unbegun]
        self._note_parked(before, state, what)
        self._reached |= {self._model.groups_of[n] for n, step in enumerate(state.steps, 1) if step.phase not in _IDLE}
        if state.status is SagaStatus.COMPLETED:
            self._ends.add(state.status)
        elif state.cancelling is not None or state.status is not SagaStatus.PENDING:
            assert what is not None
            self._go_back(state, known, what, group)
        else:
            self._look_later(state, known)

    def _still_open(self, state: SagaState, known: dict[str, bool]) -> _Known:
        open_questions = self._model.open_questions(state)
        return tuple(sorted((one, holds) for one, holds in known.items() if one in open_questions))

    def _look_later(self, state: SagaState, known: dict[str, bool]) -> None:
        kept = self._still_open(state, known)
        key, plain = self._model.canonical(state)
        if (key, kept) in self._seen:
            return
        self._seen.add((key, kept))
        self._waiting.append((plain, kept))
        if self._worlds > self._most_worlds:
            text = f"the saga can be in more than {self._most_worlds} states, and no more were looked at"
            raise TooMany(f"{text}: --limit looks at more")

    @property
    def _worlds(self) -> int:
        return len(self._seen) + len(self._gone_back)

    def _check_time(self) -> None:
        if time.monotonic() > self._until:
            text = f"the saga can be in more states than could be looked at in {self._most_s} s: {self._worlds} were"
            raise TooMany(f"{text}; --seconds gives it more time")

    def _note_parked(self, before: SagaState | None, state: SagaState, what: What | None) -> None:
        """Note the steps that are parked now, and were not before. Of those that are being undone, see `_rows`."""
        for number, step in enumerate(state.steps, 1):
            if step.parked is None or step.phase in UNDO or (before and before.steps[number - 1].parked is not None):
                continue
            happened = What.UNKNOWN if what is None else what
            if what is What.FAILS and step.definition.kind is StepKind.PIVOT:
                happened = What.CANCELLED  # or it would wait for a signal to be sent again
            after = {other for other, above in enumerate(self._ancestors, 1) if number in above}
            self._parks.setdefault((self._model.alike(number), happened), set()).update(after)

    # --- back

    def _go_back(self, state: SagaState, known: dict[str, bool], what: What, group: int) -> None:
        """Let all that is out be done, fail, or stay unknown. The answers do not depend on each other, so all else that
        can be undone lies in between."""
        key, plain = self._model.canonical(state)
        at = key, self._still_open(state, known)
        if at not in self._gone_back:
            found = self._gone_back[at] = {}
            for outcome in range(3):
                for settled, known_then in self._settled(plain, known, outcome):
                    if settled.status in (SagaStatus.PENDING, SagaStatus.COMPLETED):
                        self._go_on(
                            settled, _After(settled, known_then), None, group
                        )  # its pivot was done, or is in doubt
                    else:
                        found[self._model.to_undo(settled)] = settled
                        self._note_end(settled)
        for undone, settled in self._gone_back[at].items():
            self._note_back(undone, settled, what, group)

    def _settled(
        self, state: SagaState, known: dict[str, bool], outcome: int
    ) -> Iterator[tuple[SagaState, dict[str, bool]]]:
        if state.cancelling is None:
            yield state, known
            return
        number = next(number for number, step in enumerate(state.steps, 1) if step.phase is Phase.OUT)
        what, reply = command_answers(number, state.steps[number - 1].command)[outcome]
        for after, known_then, unbegun in self._decided(state, reply, known):
            self._note_parked(state, after, what if unbegun is None else What.FAILS)
            yield from self._settled(after, known_then, outcome)

    def _note_end(self, state: SagaState) -> None:
        """Note whether the saga ends if each undo that somebody knows is done. Where most is to be undone, nobody may
        know how."""
        if SagaStatus.ABORTED not in self._ends and (after := self._undo(state, None)[1]).ended:
            self._ends.add(after.status)

    def _note_back(self, undone: tuple[int, ...], state: SagaState, what: What, group: int) -> None:
        least, most = self._back.get((group, what), _Back(undone, {}))
        if not any(_covers(other, undone) for other in most):
            most = {other: one for other, one in most.items() if not _covers(undone, other)} | {undone: state}
        self._back[group, what] = _Back(tuple(map(min, least, undone)), most)

    def _rows(self, group: int, what: What) -> Iterator[Undone]:
        """What is undone after that: a row for each way in which nothing more could be undone."""
        least, most = self._back[group, what]
        for undone, state in sorted(most.items(), reverse=True):
            layers, after = self._undo(state, None)
            for number in after.parked_steps:
                self._note_stuck(after, number, What.NO_UNDO)
            for number in (one for layer in layers for one in layer):
                at = self._model.groups_of[number]
                above = {self._model.groups_of[other] for other in self._ancestors[number - 1]}
                key = at, tuple(count for other, count in enumerate(undone) if other in above)
                if key not in self._stuck:
                    self._stuck.add(key)
                    self._note_stuck(self._undo(state, number)[1], number, What.UNDO_FAILS)
            order = tuple([self._some(layer, undone, least) for layer in layers])
            yield Undone(what, self._model.groups[group], order)

    def _some(self, layer: list[int], undone: tuple[int, ...], least: tuple[int, ...]) -> tuple[Some, ...]:
        """The steps of a row, by groups. `undone`: of each group, how many are undone in all rows together."""
        counts = dict.fromkeys((self._model.groups_of[number] for number in reversed(layer)), 0)
        for number in layer:
            counts[self._model.groups_of[number]] += 1
        return tuple(
            [
                Some(self._model.groups[at], max(least[at] - (undone[at] - count), 0), count)
                for at, count in counts.items()
            ]
        )

    def _undo(self, state: SagaState, stuck: int | None) -> tuple[list[list[int]], SagaState]:
        """The steps as they are undone, at once and one after the other, and the saga after that. `stuck`: the step
        whose compensation fails."""
        layers = []
        self._check_time()
        while out := [number for number, step in enumerate(state.steps, 1) if step.phase is Phase.UNDO_OUT]:
            layers.append(out)
            for number in out:
                command = state.steps[number - 1].command
                kind = failed(command) if number == stuck else ok(command)
                decision = decide(state, Reply(type=kind, saga_id=SAGA_ID, step=number), self._moment)
                assert isinstance(decision.state, SagaState)
                state = decision.state
        return layers, state

    def _note_stuck(self, state: SagaState, number: int, what: What) -> None:
        """Note that the undo of this step is parked; the saga is as far as it comes then."""
        waiting = self._parks.setdefault((self._model.alike(number), what), set())
        for other in self._ancestors[number - 1]:
            if self._model.needs_undo(state, other):
                waiting.update(self._model.alike(other))


#: Nothing has happened to the step.
_IDLE: Final = frozenset({Phase.WAITING, Phase.BYPASSED})


def _in_order(key: tuple[int, What]) -> tuple[int, int]:
    group, what = key
    return group, list(What).index(what)


def _covers(more: tuple[int, ...], less: tuple[int, ...]) -> bool:
    return all(map(le, less, more))
