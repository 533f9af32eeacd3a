"""All ways that a saga can go: what is undone, where it is parked, how it ends."""

import json
import random
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Reply, failed, ok
from sagastream.core.decision import decide
from sagastream.core.messages import Begin, Due, Intervene, Signal, Verb
from sagastream.core.phases import AWAITS, TO_UNDO, UNDO, Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.steps import StepKind
from sagastream.core.transitions import Moment
from sagastream_bridge.definitions.begins import begin_of
from sagastream_bridge.definitions.documents import Document
from sagastream_bridge.definitions.exploring import MOST_WORLDS, TooMany, explore
from sagastream_bridge.definitions.lasting import longest
from sagastream_bridge.definitions.model import Model
from sagastream_bridge.definitions.outcomes import Explored, What
from unit.bridge.test_definitions import JOURNEY, run, written

ONCE: dict[str, Any] = {"attempts": 1, "compensation_attempts": 1}
PIVOT: dict[str, Any] = {"kind": "pivot", "compensation": None}
RETRIABLE: dict[str, Any] = {"kind": "retriable", "compensation": None}


def step(*after: int, **members: Any) -> dict[str, Any]:
    return {"transaction": "Do", "service": "work", "compensation": "Undo", **ONCE, "after": list(after)} | members


def begin(*steps: dict[str, Any], **members: Any) -> Begin:
    return parse_begin({"saga_id": "s", "input": {}, "steps": list(steps)} | members)


def chain(*steps: dict[str, Any]) -> Begin:
    """A saga of the plain format."""
    plain = [{name: one[name] for name in one if name != "after"} for one in steps]
    request = parse_begin({"saga_id": "s", "steps": plain})
    assert request.format == 1
    return request


def undone(found: Explored, what: What, *steps: int) -> list[list[list[tuple[tuple[int, ...], int, int]]]]:
    """What is undone after this has happened to these steps: groups of steps, with the least and the most of each."""
    rows = [row for row in found.undone if (row.what, row.steps) == (what, steps)]
    return [[[tuple(some) for some in layer] for layer in row.order] for row in rows]  # type: ignore[misc]


# --- what is told


def test_a_definition_is_explored_whatever_its_attributes_need() -> None:
    body = {"name": "o", "version": 1, "steps": [{"transaction": "Do", "service": "work"}]}
    document = Document("test", body | {"attributes": {"customer": {"$ref": "/input/customer"}}})
    assert len(begin_of(document, None).begin.steps) == 1


def test_a_plain_chain() -> None:
    found = explore(chain(step(), step(), step(**PIVOT), step(**RETRIABLE)))
    assert found.ends == (SagaStatus.COMPLETED, SagaStatus.ABORTED)
    assert undone(found, What.FAILS, 1) == [[]]
    assert undone(found, What.UNKNOWN, 2) == [[[((2,), 1, 1)], [((1,), 1, 1)]]]
    assert undone(found, What.CANCELLED, 2) == [[[((2,), 0, 1)], [((1,), 1, 1)]]]
    assert undone(found, What.FAILS, 3) == [[[((2,), 1, 1)], [((1,), 1, 1)]]]
    assert undone(found, What.UNKNOWN, 3) == []  # it is parked
    assert [tuple(park) for park in found.parks] == [
        (What.UNDO_FAILS, (1,), ()),
        (What.UNDO_FAILS, (2,), (1,)),
        (What.UNKNOWN, (3,), (4,)),
        (What.FAILS, (4,), ()),
        (What.UNKNOWN, (4,), ()),
    ]
    assert (found.never_reached, found.never_undone) == ((), ())


def test_what_is_beside_a_step_that_fails_is_undone_if_it_was_done() -> None:
    found = explore(begin(step(), step(1), step(1, compensation=None), step(2, 3)))
    assert undone(found, What.FAILS, 3) == [[[((2,), 0, 1)], [((1,), 1, 1)]]]
    assert undone(found, What.FAILS, 4) == [[[((2,), 1, 1)], [((1,), 1, 1)]]]


def test_ten_at_once_are_one_group_and_take_no_time() -> None:
    ten = tuple(range(2, 12))
    began = time.process_time()
    found = explore(begin(step(), *[step(1, service=f"s{number}") for number in ten], step(*ten)))
    assert time.process_time() - began < 5
    assert found.worlds < 100
    assert undone(found, What.FAILS, *ten) == [[[(ten, 0, 9)], [((1,), 1, 1)]]]
    assert undone(found, What.UNKNOWN, 12) == [[[((12,), 1, 1)], [(ten, 10, 10)], [((1,), 1, 1)]]]
    assert (What.UNDO_FAILS, ten, (1,)) in found.parks


def test_ten_branches_that_are_alike_take_no_time() -> None:
    heads, ends = tuple(range(2, 22, 2)), tuple(range(3, 23, 2))
    branches = [one for head in heads for one in (step(1, service=f"s{head}"), step(head, compensation=None))]
    began = time.process_time()
    found = explore(begin(step(), *branches, step(*ends)))
    assert time.process_time() - began < 5
    assert found.worlds < 1000
    assert undone(found, What.FAILS, *ends) == [[[(heads, 1, 10)], [((1,), 1, 1)]]]
    assert undone(found, What.FAILS, 22) == [[[(heads, 10, 10)], [((1,), 1, 1)]]]


def test_branches_that_are_not_alike_are_told_one_by_one() -> None:
    alike, other = step(1), step(1, compensation=None)
    found = explore(begin(step(), alike, alike, other, step(4), step(2, 3, 5)))
    assert {row.steps for row in found.undone} == {(1,), (2, 3), (4,), (5,), (6,)}


def test_two_branches_of_which_one_is_taken() -> None:
    when = {"eq": [{"$ref": "/input/by"}, "air"]}
    found = explore(begin(step(), step(1, when=when), step(1, when={"not": when}), step(2, 3)))
    assert undone(found, What.FAILS, 4) == [
        [[((2,), 0, 1)], [((1,), 1, 1)]],
        [[((3,), 0, 1)], [((1,), 1, 1)]],
    ]
    assert found.never_reached == ()


def test_conditions_that_say_something_else_hold_in_every_combination() -> None:
    steps = [step(1, when={"exists": {"$ref": f"/input/{number}"}}) for number in range(10)]
    found = explore(begin(step(), *steps, step(*range(2, 12))))
    assert undone(found, What.FAILS, 12) == [[[(tuple(range(2, 12)), 0, 10)], [((1,), 1, 1)]]]
    assert found.worlds < 1000


def test_a_step_that_no_condition_lets_begin_is_told() -> None:
    found = explore(begin(step(), step(1, when=False), step(2)))
    assert found.never_reached == (2,)
    assert found.never_undone == (2,)


def test_waits_and_retries() -> None:
    wait = {"wait": "approval", "timeout_ms": 5, "after": [1]}
    retried = step(1, retry_on="again", retry_within_ms=5)
    found = explore(begin(step(), wait, retried, step(2, 3, **PIVOT), {"wait": "end", "timeout_ms": 5}))
    for what in (What.DECLINED, What.NOT_SIGNALLED):
        # Its failure is not the last word, since it may be sent again. So it counts as unknown.
        assert undone(found, what, 2) == [[[((3,), 1, 1)], [((1,), 1, 1)]]]
        assert undone(found, what, 3) == [[[((3,), 1, 1)], [((1,), 1, 1)]]]
        assert (what, (5,), ()) in found.parks
    assert undone(found, What.FAILS, 3) == []  # it waits to be sent again


def test_a_step_that_waits_to_be_sent_again_fails_if_it_cannot_be_sent() -> None:
    retried = step(1, params={"$ref": "/input/of"}, retry_on="again", retry_within_ms=5)
    found = explore(begin(step(), retried, step(2)))
    assert undone(found, What.FAILS, 2) == [[[((1,), 1, 1)]]]
    assert undone(found, What.DECLINED, 2) == [[[((2,), 1, 1)], [((1,), 1, 1)]]]


def test_what_waits_fails_if_its_condition_cannot_be_decided() -> None:
    by_age, by_size = ({"wait_ms": 5, "when": {"gt": [{"$ref": f"/input/{name}"}, 10]}} for name in ("age", "size"))
    found = explore(begin(step(), by_age, step(2, **PIVOT), by_size))
    assert undone(found, What.FAILS, 2) == [[[((1,), 1, 1)]]]
    assert [tuple(park) for park in found.parks if park.steps == (4,)] == [(What.FAILS, (4,), ())]


def test_beside_a_step_that_fails_before_it_is_sent_nothing_begins() -> None:
    told = step(1, params={"$ref": "/input/of"})
    found = explore(begin(step(), told, step(1, retry_on="again", retry_within_ms=5)))
    assert undone(found, What.FAILS, 2) == [[[((3,), 0, 1)], [((1,), 1, 1)]]]


def test_a_pivot_that_may_be_sent_again_is_parked_if_that_is_declined() -> None:
    pay = step(1, **PIVOT, retry_on="topped_up", retry_within_ms=5)
    found = explore(begin(step(), pay, step(2, **RETRIABLE)))
    whats = {park.what for park in found.parks if park.steps == (2,)}
    assert whats == {What.UNKNOWN, What.DECLINED, What.NOT_SIGNALLED, What.CANCELLED}


def test_what_services_publish_counts() -> None:
    steps = [step() for _ in range(4)]
    for one, name in zip(steps, ("Reserve", "Look", "Pay", "Ship"), strict=True):
        one["transaction"] = name
        del one["compensation"]
    steps[2]["kind"] = "pivot"
    steps[3] |= RETRIABLE
    found = explore(chain(*steps), {"work": {"Reserve": "Release", "Look": None}})
    assert undone(found, What.FAILS, 3) == [[[((1,), 1, 1)]]]
    found = explore(chain(*steps), {"work": {"Look": None, "Pay": "PayBack"}})
    assert undone(found, What.UNKNOWN, 3) == [[[((3,), 1, 1)]]]
    assert (What.NO_UNDO, (1,), ()) in found.parks


def test_it_can_end_although_nobody_knows_how_to_undo_most_of_it() -> None:
    steps = [{"transaction": "Do", "service": "work", "after": []}] * 2
    found = explore(begin(*steps), {"work": {}})
    assert found.ends == (SagaStatus.COMPLETED, SagaStatus.ABORTED)  # both may fail: then nothing is to be undone
    assert found.parks


def test_more_states_than_are_looked_at_are_an_error() -> None:
    with pytest.raises(TooMany, match="more than 10 states"):
        explore(chain(*[step() for _ in range(20)]), most_worlds=10)


def test_more_states_than_can_be_looked_at_in_time_are_an_error() -> None:
    chance = random.Random(1)
    graph = [step(*sorted(chance.sample(range(1, at), min(at - 1, chance.randint(0, 3))))) for at in range(1, 101)]
    began = time.monotonic()
    with pytest.raises(
        TooMany, match=r"more states than could be looked at in 0.5 s: \d+ were; --seconds gives it more"
    ):
        explore(begin(*graph), most_s=0.5)
    assert time.monotonic() - began < 10


def test_a_long_chain_is_soon_done() -> None:
    began = time.process_time()
    found = explore(chain(*[step() for _ in range(100)]))
    assert time.process_time() - began < 30
    assert len(found.undone) == 300


# --- against all orders in which things can happen, one step at a time


#: What a member of the input may be; None: it is not there, and no step can begin that asks for it.
VALUES: tuple[bool | None, ...] = (True, False, None)


def _inputs(request: Begin) -> Iterator[dict[str, bool]]:
    """All inputs of which the steps of this saga take something. Of what is only copied, it makes no difference what it
    is."""
    asked = b"".join(one.shape.when or b"" for one in request.steps)
    told = b"".join(one.params for one in request.steps)
    some = {name: VALUES[: 3 * (f"/{name}".encode() in asked) or 1] for name in "ab"}
    some |= {name: VALUES[::2][: 1 + (f"/{name}".encode() in told)] for name in "cd"}
    for values in product(*some.values()):
        yield {name: value for name, value in zip(some, values, strict=True) if value is not None}


class Plainly:
    """The same by force: every event in every order, no step stands for another."""

    def __init__(self, request: Begin) -> None:
        self.moment = Moment(now_ms=1, published={})
        self.back: dict[tuple[What, int], set[frozenset[int]]] = {}  # what may have to be undone, after each cause
        self.parks: set[tuple[What, int]] = set()
        self.ends: set[SagaStatus] = set()
        todo = [self._begun(replace(request, input=json.dumps(one).encode())) for one in _inputs(request)]
        seen = set(todo)
        while todo:
            state, causes = todo.pop()
            if state.ended:
                self.ends.add(state.status)
            for what, number, event, before in self._events(state):
                after = decide(before, event, self.moment).state
                assert isinstance(after, SagaState)
                if after == before:
                    continue
                self._note_parked(before, after, what, number)
                goes_back = after.cancelling is not None or after.status is not SagaStatus.PENDING
                was_forward = state.cancelling is None and state.status is SagaStatus.PENDING
                then = causes
                if was_forward and (unbegun := self._unbegun(state, after)):
                    then = unbegun
                elif was_forward:
                    out = [n for n, one in enumerate(state.steps, 1) if one.phase is Phase.OUT or one.phase in AWAITS]
                    then = frozenset((What.CANCELLED, n) for n in out) if number == 0 else frozenset({(what, number)})
                if not goes_back:
                    then = frozenset()
                if after.status is not SagaStatus.PENDING and state.status is SagaStatus.PENDING:
                    self._note_back(after, then)
                world = (self._plain(after), then)
                if world not in seen:
                    seen.add(world)
                    todo.append(world)

    def _begun(self, request: Begin) -> tuple[SagaState, frozenset[tuple[What, int]]]:
        first = decide(None, request, self.moment).state
        assert isinstance(first, SagaState)
        unbegun = self._unbegun(None, first)
        self._note_parked(None, first, What.FAILS, 0)
        if first.status is not SagaStatus.PENDING:
            self._note_back(first, unbegun)
        return self._plain(first), unbegun

    def _note_back(self, state: SagaState, causes: frozenset[tuple[What, int]]) -> None:
        back = {n for n, one in enumerate(state.steps, 1) if one.phase in TO_UNDO and one.definition.compensation}
        if state.status is SagaStatus.COMPLETED:
            return
        for cause in causes:
            self.back.setdefault(cause, set()).add(frozenset(back))

    @staticmethod
    def _unbegun(before: SagaState | None, after: SagaState) -> frozenset[tuple[What, int]]:
        """The step before the pivot that could not begin."""
        return frozenset(
            (What.FAILS, at)
            for at, one in enumerate(after.steps, 1)
            if one.phase is Phase.FAILED and one.attempt == 0
            if one.definition.shape.wait is None or b"has no member" in (one.error or b"")
            if before is None or before.steps[at - 1].phase is Phase.WAITING
        )

    def _note_parked(self, before: SagaState | None, after: SagaState, what: What, number: int) -> None:
        for at, one in enumerate(after.steps, 1):
            was = None if before is None else before.steps[at - 1]
            if one.parked is not None and (was is None or was.parked is None):
                happened = What.UNDO_FAILS if one.phase in UNDO else what
                if one.phase is Phase.PARKED and (was is None or was.phase is Phase.WAITING):
                    happened = What.FAILS  # it has not begun
                elif one.definition.kind is StepKind.PIVOT and happened is What.FAILS:
                    happened = What.CANCELLED
                self.parks.add((happened, at))

    def _events(self, state: SagaState) -> Iterator[tuple[What, int, Any, SagaState]]:
        for number, one in enumerate(state.steps, 1):
            if one.phase in (Phase.OUT, Phase.UNDO_OUT):
                for what, kind, unknown in (
                    (What.FAILS, ok, False),
                    (What.FAILS, failed, False),
                    (What.UNKNOWN, failed, True),
                ):
                    reply = Reply(type=kind(one.command), saga_id="s", step=number, unknown=unknown)
                    yield what, number, reply, state
            elif one.phase in AWAITS:
                shape = one.definition.shape
                if (name := shape.wait if one.phase is Phase.AWAITING else shape.retry_on) is not None:
                    yield What.FAILS, number, Signal(saga_id="s", name=name), state
                    yield What.DECLINED, number, Signal(saga_id="s", name=name, declined="no"), state
                yield What.NOT_SIGNALLED, number, Due(saga_id="s"), state.with_step(number, replace(one, due_ms=1))
        yield What.CANCELLED, 0, Intervene(verb=Verb.CANCEL, saga_id="s", reason="r"), state

    def _plain(self, state: SagaState) -> SagaState:
        return replace(
            state,
            reason=state.reason and "r",
            cancelling=state.cancelling and "c",
            interventions=(),
            compensating_steps=(),
            failed_step=None,
            current_step=1,
            steps=tuple(
                replace(
                    one,
                    error=None,
                    compensation_error=None,
                    parked=one.parked and "p",
                    attempt=min(one.attempt, 1),
                    tried_before=0,
                )
                for one in state.steps
            ),
        )


HOLDS_A = {"eq": [{"$ref": "/input/a"}, True]}
HOLDS_B = {"eq": [{"$ref": "/input/b"}, True]}


@st.composite
def sagas(draw: st.DrawFn) -> Begin:
    count = draw(st.integers(1, 5))
    pivot = draw(st.sampled_from([None, *range(1, count + 1)]))
    steps: list[dict[str, Any]] = []
    unused = ["c", "d"]
    for number in range(1, count + 1):
        if pivot is not None and number == pivot:
            after: Any = range(1, number)
        elif pivot is not None and number > pivot:
            after = draw(st.sets(st.integers(pivot, number - 1), min_size=1))
        else:
            after = draw(st.sets(st.integers(1, number - 1))) if number > 1 else ()
        kind = PIVOT if number == pivot else RETRIABLE if pivot is not None and number > pivot else {}
        if not kind and draw(st.integers(0, 4)) == 0:
            continues = draw(st.sampled_from(["fail", "continue"]))
            steps.append({"wait": f"w{number}", "timeout_ms": 1000, "on_timeout": continues, "after": sorted(after)})
        else:
            own: dict[str, Any] = {} if kind else {"compensation": draw(st.sampled_from(["Undo", "Undo", None]))}
            if kind is not RETRIABLE and draw(st.integers(0, 4)) == 0:
                own |= {"retry_on": f"r{number}", "retry_within_ms": 1000}
            if draw(st.integers(0, 3)) == 0:
                own["params"] = {"$ref": f"/input/{unused.pop()}"} if unused else None
            steps.append(step(*sorted(after), **{**own, **kind}))
        if number != pivot and draw(st.integers(0, 3)) == 0:
            steps[-1]["when"] = draw(st.sampled_from([HOLDS_A, {"not": HOLDS_A}, HOLDS_B]))
    return begin(*steps)


@st.composite
def branched(draw: st.DrawFn) -> Begin:
    """Branches at once, of which many are alike, and a step after some of them."""
    kinds = st.sampled_from([("Undo",), ("Undo", "Undo"), ("Undo", "Undo"), (None, "Undo")])
    guards = st.sampled_from([None, None, None, HOLDS_A, {"not": HOLDS_A}, HOLDS_B])
    steps: list[dict[str, Any]] = []
    ends = []
    for kind in draw(st.lists(kinds, min_size=2, max_size=3)):
        if len(steps) + len(kind) > 5:
            break
        for at, undo in enumerate(kind):
            steps.append(step(*([len(steps)] if at else []), compensation=undo))
            if (guard := draw(guards)) is not None:
                steps[-1]["when"] = guard
        ends.append(len(steps))
    joined = draw(st.sets(st.sampled_from(ends)))
    return begin(*steps, *([step(*sorted(joined))] if joined and len(steps) < 5 else []))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(sagas() | branched())
@example(begin(step(), step(), step(), step(1, 2)))
@example(begin(step(), step(1), step(), step(3), step(2, 4)))
@example(begin(step(when=HOLDS_A), step(when={"not": HOLDS_A}), step(when=HOLDS_A)))
@example(begin(step(when={"not": HOLDS_A}), step(1), step(when=HOLDS_B), step(3)))
@example(begin(step(), step(1, params={"$ref": "/input/c"}, retry_on="r", retry_within_ms=5), step(1)))
@example(begin(step(), step(1, when=HOLDS_A), step(1, retry_on="r", retry_within_ms=5)))
@example(begin(step(), {"wait_ms": 5, "when": HOLDS_A}, step(2, **PIVOT), {"wait_ms": 5, "when": HOLDS_B}))
@example(begin(step(), step(1, **PIVOT, retry_on="r", retry_within_ms=5)))
def test_what_is_found_is_what_all_orders_lead_to(request: Begin) -> None:
    found, plainly, groups = explore(request), Plainly(request), Model(request, None).groups
    assert set(found.ends) == plainly.ends
    # Of steps that are alike, it may be that only the first one can fail: if they have the same condition, it is the
    # first to ask.
    backs: dict[tuple[What, tuple[int, ...]], set[frozenset[int]]] = {}
    for (what, number), back in plainly.back.items():
        (at,) = (group for group in groups if number in group)
        backs.setdefault((what, at), set()).update(back)
    assert {(row.what, row.steps) for row in found.undone} == backs.keys()
    for (what, at), back in backs.items():
        rows = [row for row in found.undone if (row.what, row.steps) == (what, at)]
        for group in groups:
            counts = [len(one & set(group)) for one in back]
            some = [[one for layer in row.order for one in layer if one.steps == group] for row in rows]
            assert max(sum(one.most for one in row) for row in some) == max(counts)
            least = [sum(one.least for one in row) for row in some]
            assert max(least) <= min(counts)
            if all(len(row) == 1 for row in some):
                assert set(least) == {min(counts)}
    parks = {(what, group) for what, number in plainly.parks for group in groups if number in group}
    assert {(park.what, park.steps) for park in found.parks} == parks


# --- how long


def test_the_longest_way_counts_attempts_backoff_waits_and_the_undo() -> None:
    slow = {"timeout_ms": 1000, "attempts": 3, "backoff_ms": 100, "compensation_attempts": 2}
    request = begin(
        step(**slow), step(1, **slow), {"wait_ms": 50_000, "after": [1]}, step(2, 3, **PIVOT, timeout_ms=10)
    )
    done = 3 * 1000 + 100 + 200
    undone = done + 50_000 + 10 + 2 * (2 * 1000 + 100)
    assert longest(request, Model(request, None)) == (done + 50_000 + 10, undone, ())


def test_a_deadline_cuts_what_comes_before_the_pivot() -> None:
    request = begin(
        step(timeout_ms=60_000, attempts=10),
        step(1, **PIVOT, timeout_ms=5000),
        step(2, **RETRIABLE | {"attempts": 2, "timeout_ms": 1000, "backoff_ms": 100}),
        deadline_ms=100_000,
    )
    assert longest(request, Model(request, None)) == (100_000 + 60_000 + 2100, 160_000 + 60_000, ())


def test_a_wait_for_a_retry_ends_in_a_failure_and_each_retry_takes_its_own_time() -> None:
    retried = {"timeout_ms": 1000, "attempts": 1, "retry_on": "topped_up", "retry_within_ms": 60_000}
    request = begin(step(timeout_ms=10, attempts=1), step(1, **retried), step(2, **PIVOT | retried | {"timeout_ms": 5}))
    # The pivot fails last, and nothing is undone of itself.
    undo = 10 + 1000
    done = 10 + 1000 + 5
    times = longest(request, Model(request, None))
    assert (times.completed_ms, times.each_retry) == (done, ((2, 61_000), (3, 60_005)))
    assert times.undone_ms == done + 60_000 + undo
    # A deadline ends the wait, as a cancel does.
    by_deadline = begin(step(**retried), step(1, **PIVOT, timeout_ms=5), deadline_ms=20_000)
    assert longest(by_deadline, Model(by_deadline, None)).undone_ms == 20_000 + 1000 + 1000


# --- the command


def test_the_command_tells_it(tmp_path: Path) -> None:
    result = run("explore", written(tmp_path, JOURNEY), "--items", "1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("7 steps, tried in every way: ")
    assert "  each list that a step with `each` names has 1 item (see --items)" in lines
    at = lines.index("  6 pay")
    assert lines[at + 1 : at + 4] == [
        "    fails -> 2 flight, 4 extras.0, 3 hotel?",
        "    stays unknown -> 6 pay, then 2 flight, 4 extras.0, 3 hotel?",
        "    the saga is cancelled meanwhile -> 6 pay?, then 2 flight, 4 extras.0, 3 hotel?",
    ]
    assert "  6 pay: its undo fails; waiting for that: 2 flight, 3 hotel, 4 extras.0" in lines


@pytest.mark.parametrize(
    ("count", "what", "order"),
    [
        (2, "fails", "the other?, then 1 start"),
        (3, "fails", "0 to 2 of the others, then 1 start"),
        (3, "stays unknown", "1 to 3 of them, then 1 start"),
        (3, "the saga is cancelled meanwhile", "0 to 3 of them, then 1 start"),
    ],
)
def test_steps_that_are_alike_are_told_as_one(tmp_path: Path, count: int, what: str, order: str) -> None:
    steps = [step(id="start"), *[step(1, id=name) for name in "abc"[:count]], step(*range(2, count + 2), id="end")]
    lines = run("explore", written(tmp_path, {"saga_id": "s", "steps": steps})).stdout.splitlines()
    assert f"    {what} -> {order}" in lines
    names = ", ".join(f"{number} {name}" for number, name in zip(range(2, 5), "abc"[:count], strict=False))
    at = lines.index(f"  {count + 2} end")
    assert lines[at + 1] == f"    fails -> {names}, then 1 start"
    assert lines[lines.index(f"  any of {names}") + 1 :]


def test_two_runs_in_json_are_compared_line_by_line(tmp_path: Path) -> None:
    place = written(tmp_path, JOURNEY)
    text = run("explore", place, "--json").stdout
    assert run("explore", place, "--json").stdout == text
    found = json.loads(text)
    assert found["steps"][3:5] == ["extras.0", "extras.1"]
    order = [[{"steps": [2, 4, 5], "least": 3, "most": 3}, {"steps": [3], "least": 0, "most": 1}]]
    assert {"step": [6], "what": "declined", "order": order} in found["undone"]
    assert len([line for line in text.splitlines() if '"what"' in line]) == len(found["undone"]) + len(found["parks"])


@pytest.mark.parametrize(
    ("options", "steps", "note"),
    [
        ([], 8, "has the items of the example"),
        (["--items", "0"], 6, "has 0 items"),
        (["--items", "1"], 7, "has 1 item"),
    ],
)
def test_how_many_items_there_are(tmp_path: Path, options: list[str], steps: int, note: str) -> None:
    place = written(tmp_path, JOURNEY | {"example": {"extras": ["a", "b"]}})
    lines = run("explore", place, *options).stdout.splitlines()
    assert lines[0].startswith(f"{steps} steps, ")
    assert f"  each list that a step with `each` names {note} (see --items)" in lines


def test_services_are_read_from_a_file_and_from_python(tmp_path: Path) -> None:
    steps = [{"transaction": "ReserveInventory", "service": "inventory"}, {"transaction": "Pay", "service": "payment"}]
    place = written(tmp_path, {"saga_id": "s1", "steps": steps})
    services = tmp_path / "services.json"
    services.write_text('{"payment": {"Pay": null}}')
    result = run("explore", place, "--services", str(services), "--services", "sagastream_stubs.inventory:service")
    assert "    stays unknown -> 1 ReserveInventory" in result.stdout
    assert "names no compensation" not in result.stdout
    result = run("explore", place, "--services", str(services))
    assert "  1 ReserveInventory: nobody knows its undo" in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("services", "why"),
    [
        ("[]", "it must say what undoes each command"),
        ('{"payment": {"Pay": 1}}', "payment: it must say what undoes each command"),
        ("{", "not JSON"),
    ],
)
def test_a_file_of_services_that_cannot_be_read_is_one_line(tmp_path: Path, services: str, why: str) -> None:
    place = written(tmp_path, {"saga_id": "s1", "steps": [{"transaction": "Pay", "service": "payment"}]})
    (tmp_path / "services.json").write_text(services)
    result = run("explore", place, "--services", str(tmp_path / "services.json"))
    assert result.exit_code == 2
    assert why in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_would_be_refused_is_not_explored(tmp_path: Path) -> None:
    result = run("explore", written(tmp_path, {"saga_id": "s1", "steps": [{"transaction": "Pay"}]}))
    assert result.exit_code == 2
    assert "step 1: service is missing (sagastream lint finds all that is wrong)" in result.stderr


@pytest.mark.parametrize(
    ("steps", "options", "why"),
    [
        (
            [],
            ("--items", "0"),
            "this one would have 0: 0 of /input/all (each list that a step with `each` names has 0 i",
        ),
        (
            [{"id": "b", "each": {"$ref": "/input/all/0/some"}, "transaction": "Do", "service": "work"}],
            (),
            "input/all/0 is null (each list that a step with `each` names has 2 items; say `example` in",
        ),
    ],
)
def test_if_no_input_can_be_made_up_it_is_said_what_helps(
    tmp_path: Path, steps: list[Any], options: tuple[str, ...], why: str
) -> None:
    each = {"id": "a", "each": {"$ref": "/input/all"}, "transaction": "Do", "service": "work"}
    result = run("explore", written(tmp_path, {"name": "o", "version": 1, "steps": [each, *steps]}), *options)
    assert result.exit_code == 2
    assert why in result.stderr
    assert result.stderr.count("\n") == 1


def test_too_many_states_are_one_line(tmp_path: Path) -> None:
    result = run("explore", written(tmp_path, JOURNEY), "--limit", "5")
    assert result.exit_code == 2
    assert "more than 5 states" in result.stderr
    assert f"[default: {MOST_WORLDS}]" in " ".join(run("explore", "--help").stdout.split())
