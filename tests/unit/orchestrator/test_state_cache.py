"""What a worker presumes about the sagas that messages name, without reading them."""

from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.broker.entries import Entry
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Reply
from sagastream.core.decision import Event, decide
from sagastream.core.messages import Begin, Due, Intervene, Unreadable, Verb
from sagastream.core.saga import Found, SagaState
from sagastream.core.steps import StepDefinition
from sagastream.core.transitions import Moment
from sagastream.errors import CorruptSaga
from sagastream.orchestrator import state_cache
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.state_cache import StateCache
from support.stores import ONLY

MOMENT = Moment(now_ms=1_760_000_000_000, published={"payment": {"Charge": "Refund"}})


def a_begin(saga_id: str = "s1", *, params: bytes = b"1") -> Begin:
    step = StepDefinition(transaction="Charge", service="payment", params=params)
    return Begin(saga_id=saga_id, steps=(step, step))


def a_reply(step: int = 1, kind: str = "Charge_ok", saga_id: str = "s1", **more: Any) -> Reply:
    return Reply(type=kind, saga_id=saga_id, step=step, **{"attempt": 1} | more)


def an_input(event: Event, *, again: bool = False) -> tuple[Entry | None, Event]:
    return Entry(stream="any", id=b"1-1", fields={}, again=again), event


def a_change(before: Found, event: Event, saga_id: str = "s1") -> Change:
    change = Change(partition=ONLY, saga_id=saga_id, before=before, after=before)
    change.add(an_input(event)[0], decide(before, event, MOMENT))
    return change


def begun(saga_id: str = "s1", *, params: bytes = b"1") -> Change:
    return a_change(None, a_begin(saga_id, params=params), saga_id)


def remembering(*changes: Change) -> StateCache:
    found = StateCache()
    found.keep(changes, [])
    return found


def known(state: Found) -> SagaState:
    assert isinstance(state, SagaState)
    return state


def test_a_begin_is_presumed_to_be_of_a_saga_that_there_is_not_yet() -> None:
    assert StateCache().presume([an_input(a_begin())]) == {"s1": None}


def test_a_begin_of_a_saga_that_was_begun_here_is_not() -> None:
    assert remembering(begun()).presume([an_input(a_begin())]) == {}


def test_a_reply_that_is_waited_for_finds_the_saga_as_it_was_committed() -> None:
    change = begun()
    presumed = remembering(change).presume([an_input(a_reply())])
    assert presumed == {"s1": replace(known(change.after), version=1)}
    later = a_change(presumed["s1"], a_reply())
    assert known(remembering(change, later).presume([an_input(a_reply(2))])["s1"]).version == 2


def test_of_a_saga_that_was_committed_as_it_is_the_version_is_the_same() -> None:
    state = replace(known(begun().after), version=7)
    change = a_change(state, a_reply(kind="Strange_ok"))  # quarantined
    assert remembering(change).presume([an_input(a_reply())]) == {"s1": state}


@pytest.mark.parametrize(
    "reply",
    [
        a_reply(2),
        a_reply(kind="Refund_ok"),
        a_reply(kind="Charge_failed", unknown=True, attempt=2),
        a_reply(saga_id="s2"),
    ],
    ids=["of another step", "of another command", "that another attempt failed", "of another saga"],
)
def test_a_reply_that_is_not_waited_for_may_mean_that_another_worker_has_moved_the_saga(reply: Reply) -> None:
    assert remembering(begun()).presume([an_input(reply)]) == {}


@pytest.mark.parametrize(
    "event",
    [
        Intervene(verb=Verb.CANCEL, saga_id="s1", reason="why"),
        Due(saga_id="s1"),
        Unreadable(code=12, text="garbage"),  # type: ignore[arg-type]
    ],
    ids=["an operator's request", "the time that has come", "garbage"],
)
def test_other_events_say_nothing_about_their_saga(event: Event) -> None:
    assert remembering(begun()).presume([an_input(event)]) == {}


def test_what_was_delivered_before_may_have_been_done_by_somebody() -> None:
    found = remembering(begun())
    assert found.presume([an_input(a_reply(), again=True)]) == {}
    assert found.presume([an_input(a_begin("s2"), again=True)]) == {}
    assert found.presume([(None, Due(saga_id="s1"))]) == {}


def test_whatever_else_is_said_of_a_saga_in_the_turn_the_reply_that_it_waits_for_tells_what_it_is() -> None:
    found = remembering(begun())
    cancel = an_input(Intervene(verb=Verb.CANCEL, saga_id="s1", reason="why"))
    assert found.presume([cancel, an_input(a_reply())]).keys() == {"s1"}
    assert found.presume([an_input(a_reply()), cancel]).keys() == {"s1"}


def test_what_was_not_committed_is_forgotten() -> None:
    found = remembering(begun())
    change = a_change(found.presume([an_input(a_reply())])["s1"], a_reply())
    found.keep([change], [change])
    assert found.presume([an_input(a_reply())]) == {}
    assert found.presume([an_input(a_reply(2))]) == {}


def test_a_saga_that_has_ended_is_forgotten() -> None:
    state = known(begun().after)
    found = remembering(begun(), a_change(state, a_reply(kind="Charge_failed")))
    assert found.presume([an_input(a_begin())]) == {"s1": None}


@pytest.mark.parametrize("after", [None, CorruptSaga("damaged")])
def test_a_saga_that_is_gone_or_damaged_is_forgotten(after: Found) -> None:
    found = remembering(begun(), Change(partition=ONLY, saga_id="s1", before=after, after=after))
    assert found.presume([an_input(a_reply())]) == {}


def test_entries_that_name_no_saga_are_no_saga() -> None:
    found = remembering(Change(partition=ONLY, saga_id=None, before=None, after=None))
    assert found.presume([an_input(Unreadable(code=12, text="garbage"))]) == {}  # type: ignore[arg-type]


def test_sagas_that_carry_much_are_not_remembered() -> None:
    found = remembering(begun("light", params=b"1" * 1000), begun("heavy", params=b"1" * 10_000))
    inputs = [an_input(a_reply(saga_id=saga_id)) for saga_id in ("light", "heavy")]
    assert found.presume(inputs).keys() == {"light"}


def test_nor_are_those_of_which_much_was_said() -> None:
    state = known(begun().after)
    step, change = state.steps[0], begun()
    for said in ("result", "error", "compensation_error"):
        change.after = state.with_step(1, replace(step, **{said: b'"' + b"x" * 10_000 + b'"'}))
        assert remembering(change).presume([an_input(a_reply())]) == {}, said


def test_nor_are_graphs_whose_conditions_or_compensation_params_are_long() -> None:
    for member in ({"when": {"ne": ["x" * 5000, 1]}}, {"compensation_params": "x" * 5000}):
        step = {"transaction": "Charge", "service": "payment", **member}
        begin = parse_begin({"saga_id": "s1", "input": {}, "steps": [step]})
        found = remembering(a_change(None, begin))
        assert found.presume([an_input(a_reply())]) == {}, member


def test_of_sagas_of_many_steps_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_cache, "_STEPS", 6)
    found = remembering(*(begun(f"s{number}") for number in range(1, 5)))  # of two steps each
    waited_for = [an_input(a_reply(saga_id=f"s{number}")) for number in range(1, 6)]
    assert found.presume(waited_for).keys() == {"s2", "s3", "s4"}
    state = found.presume(waited_for)["s2"]
    found.keep([a_change(state, a_reply(kind="Charge_failed", saga_id="s2"), "s2"), begun("s5")], [])  # s2 has ended
    assert found.presume(waited_for).keys() == {"s3", "s4", "s5"}
    found.keep([a_change(found.presume(waited_for)["s3"], a_reply(saga_id="s3"), "s3")], [])  # it counts once
    assert found.presume([*waited_for, an_input(a_reply(2, saga_id="s3"))]).keys() == {"s3", "s4", "s5"}


def test_of_many_sagas_those_that_were_heard_of_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_cache, "_SAGAS", 3)
    found = remembering(*(begun(f"s{number}") for number in range(1, 4)))
    state = found.presume([an_input(a_reply())])["s1"]
    found.keep([a_change(state, a_reply()), begun("s4"), begun("s5")], [])
    waited_for = [an_input(a_reply(2 if number == 1 else 1, saga_id=f"s{number}")) for number in range(1, 6)]
    assert found.presume(waited_for).keys() == {"s1", "s4", "s5"}
