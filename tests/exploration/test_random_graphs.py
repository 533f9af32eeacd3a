"""Random walks through graphs that are too large for every interleaving: the rules hold after each decision, and a saga
whose services answer in the end ends, with every effect done or undone."""

from typing import Any, Final

import pytest
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exploration import rules
from sagastream.core import back
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.clock import STEADY, by_the_clock
from sagastream.core.commands import Command, Reply, failed, ok, reply_to
from sagastream.core.decision import Event, decide
from sagastream.core.indexing import held_names
from sagastream.core.messages import Begin, Due, Intervene, Signal, Verb
from sagastream.core.moves import released
from sagastream.core.pauses import NOTHING_PAUSED, Paused
from sagastream.core.phases import Phase
from sagastream.core.saga import KeptSignal, SagaState, SagaStatus
from sagastream.core.step_state import HELD_MS
from sagastream.core.steps import GRAPH
from sagastream.core.transitions import Decision, Moment

BEGUN_MS: Final = 1_700_000_000_000
SERVICE: Final = "work"
PUBLISHED: Final = {SERVICE: {"Do": "Undo"}}
NAMES: Final = ("go", "on")
#: Commands that nobody answers any more, and what their services would say.
OK, FAILED, UNKNOWN = "ok", "failed", "unknown"
_N_IS_1: Final = {"eq": [{"$ref": "/input/n"}, 1]}
KINDS: Final = (*(OK,) * 3, FAILED, UNKNOWN, "due", "due", "early", "signal", "ask", "help", "again", "pause", "resume")


@st.composite
def begins(draw: st.DrawFn) -> Begin:
    """A graph of up to 8 steps of every kind."""
    count = draw(st.integers(1, 8))
    pivot = draw(st.none() | st.integers(1, count))
    steps = []
    for number in range(1, count + 1):
        step: dict[str, Any] = draw(st.sampled_from(["wait", "pause", *["command"] * 6]).map(_bare))
        first = 1 if pivot is None or number <= pivot else pivot
        if number == pivot:
            step = _bare("command") | {"kind": "pivot", "compensation": draw(st.sampled_from([None, "Undo"]))}
            step["after"] = list(range(1, number))
        elif pivot is not None and number == pivot + 1:
            step["after"] = [pivot]
        elif number > 1 and draw(st.booleans()):
            earlier = st.lists(st.integers(first, number - 1), max_size=3)
            step["after"] = draw(earlier) or ([pivot] if pivot is not None and number > pivot else [])
        if number != pivot and draw(st.integers(0, 3)) == 0:
            step["when"] = draw(st.sampled_from([True, False, _N_IS_1, {"exists": _of_one_before(step, number)}]))
        if "transaction" in step:
            step |= draw(_options(number, pivot))
        steps.append(step)
    body: dict[str, Any] = {"saga_id": "s", "format": GRAPH, "input": {"n": draw(st.integers(0, 1))}, "steps": steps}
    if draw(st.booleans()):
        body |= {"deadline_ms": draw(st.integers(1, 200_000)), "deadline": draw(st.sampled_from(["soft", "hard"]))}
    if draw(st.integers(0, 4)) == 0:
        body["start_at_ms"] = BEGUN_MS + 5000
    return parse_begin(body, request_id="begin", plain=True)


def _bare(kind: str) -> dict[str, Any]:
    if kind == "wait":
        return {"wait": NAMES[0], "timeout_ms": 50_000}
    return {"wait_ms": 500} if kind == "pause" else {"transaction": "Do", "service": SERVICE}


def _of_one_before(step: dict[str, Any], number: int) -> dict[str, Any]:
    before = step.get("after", [number - 1] * (number > 1))
    return {"$ref": f"/steps/{before[0]}/result" if before else "/input/m"}


@st.composite
def _options(draw: st.DrawFn, number: int, pivot: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "attempts": draw(st.integers(1, 2)),
        "compensation_attempts": draw(st.integers(1, 2)),
        "retry_failed": draw(st.booleans()),
        "timeout_ms": draw(st.sampled_from([1000, 60_000])),
    }
    if draw(st.booleans()):
        # Without a default it may find nothing, and then its step fails or is parked.
        reference = {"$ref": "/input/n"} if draw(st.booleans()) else {"$ref": "/input/m"}
        options["params"] = {"a": reference | draw(st.sampled_from([{}, {"default": 7}]))}
    if pivot is not None and number > pivot:
        return options | {"kind": "retriable"}
    if draw(st.integers(0, 2)) == 0:
        options |= {"retry_on": NAMES[1], "retry_within_ms": 20_000}
    if number != pivot and draw(st.integers(0, 3)) == 0:
        options["compensation_params"] = {"why": {"$ref": "/failure"}, "own": {"$ref": f"/steps/{number}/result"}}
    return options


CHANCES = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 100)), max_size=50)


class Walk:
    """A saga, the commands that were sent, and what its services have done."""

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.now_ms = BEGUN_MS
        self.state: SagaState | None = None
        self.sent: list[Command] = []
        self.told: list[Reply] = []
        self.present: set[int] = set()  # steps whose effect is there
        self.final: dict[tuple[int, bool], str] = {}  # what a service has recorded of a command, for good
        self.refused: dict[Command, str] = {}
        self.asked = 0
        self.watch = STEADY
        self.paused: Paused = NOTHING_PAUSED
        self.events = 0
        self.first_sent: dict[int, int] = {}  # the number of the event that sent a step first
        self.kept: list[tuple[KeptSignal, int]] = []  # the signals that were kept, with the number of the event
        self.happens(begin)

    @property
    def saga(self) -> SagaState:
        assert self.state is not None
        return self.state

    def passes(self, ms: int) -> None:
        """So much time passes."""
        self.now_ms += ms

    def comes(self, kind: str, pick: int) -> None:
        self.passes(10)
        saga = self.saga
        if kind in ("ok", "failed", "unknown"):
            if self.sent:
                self.answers(self.sent[pick % len(self.sent)] if pick % 3 else self.sent[-1], kind)
        elif kind == "again" and self.told:
            self.happens(self.told[pick % len(self.told)])
        elif kind == "signal":
            self.asked += 1
            what: dict[str, Any] = {"declined": "no"} if pick % 4 == 0 else {"payload": b"1"}
            self.signals(Signal(saga_id="s", name=NAMES[pick % 2], request_id=f"signal {self.asked}", **what))
        elif kind == "ask":
            self.asks(list(Verb)[pick % 4] if pick % 5 else Verb.CANCEL, now=pick % 2 == 0)
        elif kind == "help":
            if saga.parked_steps:
                self.asks([Verb.RETRY, Verb.SKIP][pick % 2], step=saga.parked_steps[pick % len(saga.parked_steps)])
        elif kind in ("pause", "resume"):
            self.pauses([SERVICE, f"{SERVICE}/Do", f"{SERVICE}/Undo"][pick % 3] if kind == "pause" else None)
        elif (due_ms := _next_ms(saga)) is not None:
            due_ms = due_ms if kind == "due" else (self.now_ms + due_ms) // 2
            self.passes(max(due_ms - self.now_ms, 0))
            self.happens(Due(saga_id="s"))

    def pauses(self, name: str | None) -> None:
        """This is paused from now on, and nothing else; None: nothing is. Then a worker looks at what is held."""
        self.paused = NOTHING_PAUSED if name is None else frozenset([name])
        if name is None and held_names(self.saga):
            self.happens(Due(saga_id="s"))

    def signals(self, signal: Signal) -> None:
        self.happens(signal)

    def asks(self, verb: Verb, *, now: bool = False, step: int | None = None) -> None:
        self.asked += 1
        now = now and verb in (Verb.CANCEL, Verb.ABANDON)
        self.happens(
            Intervene(verb=verb, saga_id="s", reason="why", now=now, step=step, request_id=f"request {self.asked}")
        )

    def answers(self, command: Command, how: str) -> None:
        """The service answers a command as a service does: what it has recorded, it says again; what was undone is not
        done any more."""
        key = (command.step, command.compensating)
        how = self.final.get(key, self.refused.get(command, how))
        if how == OK:
            self.final[key] = OK
            if command.compensating:
                self.present.discard(command.step)
                self.final.setdefault((command.step, False), FAILED)
            elif (command.step, True) not in self.final:
                self.present.add(command.step)
        elif how == FAILED and not command.retried:
            self.final[key] = FAILED
        elif how == FAILED and command.compensating:
            self.refused[command] = FAILED  # here, each attempt of an undo comes to one process only
        kind = ok(command.type) if how == OK else failed(command.type)
        payload = {"result": b"5"} if how == OK else {"error": b'"no"'}
        self.happens(replace(reply_to(command, kind, unknown=how == UNKNOWN, **payload), service=SERVICE))

    def happens(self, event: Event) -> Decision:
        before = by_clock = self.state
        moment = Moment(now_ms=self.now_ms, published=PUBLISHED, watch=self.watch, paused=self.paused)
        decided = decide(before, event, moment)
        after = decided.state
        assert isinstance(after, SagaState)
        if before is not None and before.due_ms is not None:
            by_clock = by_the_clock(before, self.now_ms, self.watch)
        broken = rules.broken_by_decision(by_clock, event, decided, self.now_ms, self.paused)
        assert broken is None, f"{event}: {broken}"
        if isinstance(event, Due) and before is not None and before.due_ms is not None:
            # What is due is done at once; otherwise it would be due again and again.
            is_due = before.due_ms <= self.now_ms or released(before, moment) is not before
            assert (after is not before) == is_due if by_clock is before else after == by_clock
        if by_clock is not None:
            self.judge(by_clock, event, after)
        self.notes(before, after)
        if isinstance(event, Reply):
            self.told.append(event)
        self.sent += decided.commands
        self.state = after
        return decided

    def judge(self, before: SagaState, event: Event, after: SagaState) -> None:
        """A signal that came before the command of a step was out does not send it again, and does not give it up."""
        for number, (was, now) in enumerate(zip(before.steps, after.steps, strict=True), 1):
            name = was.definition.shape.retry_on
            if name is None or was.phase is not Phase.OUT or not isinstance(event, Reply | Due):
                continue
            if (now.phase is Phase.OUT and now.attempt > was.attempt) or b"was declined" in (now.error or b""):
                taken = next(one for one in before.signals if one.name == name)
                came = next(came for one, came in self.kept if one is taken)
                assert came > self.first_sent[number], f"step {number} took a signal from before it was sent"

    def notes(self, before: SagaState | None, after: SagaState) -> None:
        """Keep what was sent and what came with this event."""
        self.events += 1
        known = () if before is None else before.signals
        self.kept += [(one, self.events) for one in after.signals if not any(one is other for other in known)]
        for number, step in enumerate(after.steps, 1):
            if step.attempt:
                self.first_sent.setdefault(number, self.events)

    def ends(self) -> None:
        """Nothing is paused, all services answer, and an operator helps where somebody must."""
        self.pauses(None)
        for number in range(40 * len(self.begin.steps)):
            saga = self.saga
            if saga.ended:
                return
            out = [step for step in enumerate(saga.steps, 1) if step[1].in_flight]
            if out:
                at, step = out[number % len(out)]
                same = (one for one in reversed(self.sent) if (one.step, one.compensating) == (at, step.being_undone))
                command = next(same)
                self.passes(10)
                self.answers(command, OK)
            elif held_names(saga):
                self.pauses(None)  # it was not looked at, since the clock was set
            elif saga.due_ms is not None:
                self.comes("due", 0)
            else:
                at = saga.parked_steps[number % len(saga.parked_steps)]
                # What cannot be built, or was answered for good, is not done by trying it again.
                stuck = number > 20 * len(self.begin.steps) or self.final.get((at, False)) == FAILED
                self.asks(Verb.SKIP if stuck else Verb.RETRY, step=at)
        raise AssertionError(f"it goes on forever: {self.saga}")


def _next_ms(saga: SagaState) -> int | None:
    """When the saga is due; None: only if it is resumed, or never."""
    return None if saga.due_ms is None or saga.due_ms >= HELD_MS else saga.due_ms


def walked(begin: Begin, chances: list[tuple[str, int]]) -> Walk:
    walk = Walk(begin)
    for kind, pick in chances:
        walk.comes(kind, pick)
    return walk


def check(walk: Walk) -> None:
    """Of a saga that has ended, every effect stands or is undone as it says."""
    saga = walk.saga
    if any(done.verb.startswith("abandon") for done in saga.interventions):
        return
    for number, step in enumerate(saga.steps, 1):
        if saga.status is SagaStatus.ABORTED and not step.skipped and step.definition.compensation is not None:
            assert number not in walk.present, f"ABORTED, and step {number} remains done"
        if saga.status is SagaStatus.COMPLETED and step.phase is Phase.COMPLETED and step.definition.shape.sends:
            assert number in walk.present, f"COMPLETED, and step {number} was not done"


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(begin=begins(), chances=CHANCES)
def test_whatever_happens_to_a_graph_the_rules_hold_and_it_ends(begin: Begin, chances: list[tuple[str, int]]) -> None:
    walk = walked(begin, chances)
    walk.ends()
    note(walk.saga.status)
    check(walk)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(begin=begins(), chances=CHANCES)
def test_so_they_do_if_all_compensations_but_one_are_put_off(begin: Begin, chances: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(back, "AT_ONCE_BYTES", 1)
        walk = walked(begin, chances)
        walk.ends()
    note(walk.saga.status)
    check(walk)
