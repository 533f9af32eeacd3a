"""How a saga that is a graph looks to a person, and as JSON."""

import json
from contextlib import suppress
from functools import partial
from typing import Any

import click
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.decision import decide
from sagastream.core.erasure import ERASE, without_data
from sagastream.core.history import history
from sagastream.core.phases import Phase
from sagastream.core.saga import Intervention, SagaState
from sagastream.core.transitions import Moment
from sagastream.core.why import why
from sagastream_bridge.inspection import lookup, saga_views
from sagastream_bridge.inspection.graph_views import STATES
from support.graphs import NOW_MS, PIVOT, TRAVEL, Played, Refused, at_work


def shown(played: Played) -> list[str]:
    causes = why(played.saga, at_work("flights", "hotels", "payments", now_ms=played.now_ms))
    return click.unstyle("\n".join(saga_views.saga(played.saga, played.now_ms, [], causes))).splitlines()


def as_json(played: Played) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        lookup.as_json(lookup.Found(state=played.saga, now_ms=played.now_ms, notes=[], causes=()))
    )
    return found


def test_each_step_says_its_id_what_it_comes_after_and_what_it_waits_for() -> None:
    definition = {"name": "travel", "version": 3, "sha256": "0" * 64}
    lines = shown(Played(definition=definition).ok(1, {"id": "f1"}))
    text = "\n".join(lines)
    assert "  from     definition travel, version 3" in lines
    assert '  input    {"user": "u1", "insured": false}' in lines
    assert "       id     flight" in lines
    assert "       after  none: it begins with the saga" in lines
    assert "       after  flight, insure" in lines
    assert "       now    BookHotel is out, until 22:14:20.000Z, in 60 s" in lines
    assert '       params {"for": "u1"}' in lines
    assert '       params {"flight": {"$ref": "/steps/flight/result/id"}}; not filled in yet' in lines
    assert "approve                  (signal)" in text
    assert "pause                    (pause)" in text
    assert '       when   {"eq": [{"$ref": "/input/insured"}, true]}' in lines


def test_what_was_erased_is_said_to_be_erased() -> None:
    """It was filled in once, and there was a reason."""
    saga = Played().ok(1, {"id": "f1"}).failed(2, "no room").ok(1).saga
    assert saga.ended
    done = Intervention(verb=ERASE, reason="law", at_ms=NOW_MS, actor="ada")
    erased = replace(without_data(saga), interventions=(done,))
    lines = click.unstyle("\n".join(saga_views.saga(erased, NOW_MS, []))).splitlines()
    params = [line for line in lines if line.startswith("       params")]
    assert set(params) == {"       params (erased)"}
    assert "  input    (erased)" in lines
    assert "       when   (erased)" in lines
    texts = [event.text for event in history(erased)]
    assert any(text.startswith("BookHotel failed") and text.endswith(": (erased)") for text in texts)
    assert "no reason given" not in "".join(texts)


def test_the_graph_is_drawn_with_the_state_of_each_step() -> None:
    drawn = [line for line in shown(Played().ok(1, {"id": "f1"})) if line[2:3] in "╭●│├○◆"]
    assert drawn == [
        "  ╭─╮",
        "  ● │   1  flight    BookFlight        done",
        "  │ ●   2  hotel     BookHotel         out",
        "  │ ●   3  insure    Insure            not begun",
        "  ├─╯",
        "  ○     4  approval  wait for approve  not begun",
        "  ◆     5  pay       Pay               not begun",
        "  ○     6  rest      pause             not begun",
    ]
    chain: dict[str, Any] = {"id": "a", "transaction": "A", "service": "hotels", "params": {}, "compensation": None}
    assert "●" not in "\n".join(shown(Played(chain)))


def test_every_phase_has_a_word_in_a_drawing() -> None:
    assert STATES.keys() == set(Phase)


def test_a_bypassed_step_and_a_wait_say_so_and_a_pause_its_end() -> None:
    played = Played().ok(1, {"id": "f1"}).ok(2)
    lines = shown(played)
    assert "       now    bypassed: its condition did not hold" in lines
    assert "       now    waits for signal approve until 2023-11-15T22:13:20.000Z, in 24 h" in lines
    played.due(60_000).signal("approve", {"by": "boss"}).ok(5)
    assert "  began 22:13:20.000Z, ended after 60 s" in "\n".join(shown(played)).replace("COMPLETED ", "")
    assert "       now    pauses until 22:15:20.000Z, in 60 s" in shown(played)
    assert '       params {"flight": "f1"}' in shown(played)


def test_signals_that_are_kept_are_shown_and_a_start_that_comes() -> None:
    played = Played(start_at_ms=NOW_MS + 3_600_000).signal("approve", {"by": "boss"})
    lines = shown(played)
    assert "  starts   23:13:20.000Z, in 60 m" in lines
    assert '  kept     signal approve, which came 22:13:20.000Z, 0 s ago: {"by": "boss"}' in lines
    assert "  signal approve 2023-11-14T22:13:20.000Z" in lines  # who has sent it is not known, and no reason is given
    assert "  waits    for its start, until 23:13:20.000Z, in 60 m" in lines


def test_a_start_that_had_passed_was_at_once() -> None:
    lines = shown(Played(start_at_ms=NOW_MS - 86_400_000))
    assert "  started  22:13:20.000Z, 0 s ago" in lines


def test_each_parked_step_is_told_with_its_verbs_and_no_advice_twice() -> None:
    retriable: dict[str, Any] = {"service": "mail", "params": {}, "kind": "retriable", "attempts": 1, "after": [1]}
    played = Played(PIVOT, {"transaction": "Tell"} | retriable, {"transaction": "Write"} | retriable)
    played.ok(1).failed(2, "bounced").failed(3, "no ink")
    lines = shown(played)
    assert "       now    parked at 2/transaction/1: Tell of step 2 failed: bounced" in lines
    assert "  parked   Tell of step 2 failed: bounced" in lines
    assert "  parked   Write of step 3 failed: no ink" in lines
    assert sum("--step 2 " in line for line in lines) == 3
    assert len({line for line in lines if "you can" in line}) == sum("you can" in line for line in lines)


def test_what_an_undo_is_told_is_shown() -> None:
    played = Played(*TRAVEL[:3]).ok(2, {"id": "h1"}).failed(1, "full")
    lines = shown(played)
    assert '       told   {"why": "Step 1 (flight) failed: full"}' in lines


def test_show_as_json_has_all_of_it_under_its_own_names() -> None:
    played = Played(start_at_ms=NOW_MS + 1000).signal("approve", decline="no")
    found = as_json(played)
    assert found["format"] == 2
    assert found["input"] == {"user": "u1", "insured": False}
    assert found["start_at"] == "2023-11-14T22:13:21.000Z"
    assert found["signals"] == [{"name": "approve", "at": "2023-11-14T22:13:20.000Z", "decline": "no"}]
    played = Played().ok(1, {"id": "f1"}).ok(2)
    found = as_json(played)
    steps = found["steps"]
    assert isinstance(steps, list)
    assert [step["phase"] for step in steps] == ["COMPLETED", "COMPLETED", "BYPASSED", "AWAITING", "WAITING", "WAITING"]
    assert [step["after"] for step in steps] == [[], [], [2], [1, 3], [4], [5]]
    assert (steps[0]["params"], steps[0]["template"]) == ({"for": "u1"}, {"for": {"$ref": "/input/user"}})
    assert steps[1]["compensation_params"] == {"why": {"$ref": "/failure/reason"}}
    assert steps[3]["wait"] == "approve"
    assert (steps[3]["timeout_ms"], steps[3]["on_timeout"]) == (86_400_000, "fail")
    assert steps[3]["times_out_at"] == "2023-11-15T22:13:20.000Z"
    assert steps[5]["wait_ms"] == 60_000


def test_a_plain_saga_has_none_of_it() -> None:
    plain: dict[str, Any] = {
        "transaction": "Do",
        "service": "hotels",
        "params": {"$ref": "/input/user"},
        "compensation": None,
    }
    body = Played(plain)
    assert "template" in json.dumps(as_json(body))
    state = decide(None, parse_begin({"saga_id": "s", "steps": [plain]}), Moment(now_ms=NOW_MS, published={})).state
    assert isinstance(state, SagaState)
    found = json.loads(lookup.as_json(lookup.Found(state=state, now_ms=NOW_MS, notes=[])))
    assert not {"format", "input", "signals", "definition"} & found.keys()
    assert not {"id", "after", "phase", "template"} & found["steps"][0].keys()
    assert found["steps"][0]["params"] == {"$ref": "/input/user"}


@st.composite
def graphs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Steps, waits and pauses, each after some of those before it."""
    steps: list[dict[str, Any]] = []
    for number in range(1, draw(st.integers(1, 6)) + 1):
        step: dict[str, Any] = draw(
            st.sampled_from(
                [
                    {"transaction": "Do", "service": "hotels", "params": {}, "compensation": "Undo", "attempts": 2},
                    {"transaction": "Do", "service": "hotels", "params": {}, "compensation": None},
                    {"transaction": "Do", "service": "flights", "params": {}, "retry_on": "a", "retry_within_ms": 500},
                    {"transaction": "Do", "service": "flights", "params": {"$ref": "/input/none"}},
                    {"transaction": "Do", "service": "nowhere", "params": {}, "when": {"eq": [1, number % 2]}},
                    {"wait": "a", "timeout_ms": 1000},
                    {"wait": "b", "timeout_ms": 1000, "on_timeout": "continue"},
                    {"wait_ms": 500},
                ]
            )
        )
        after = draw(st.none() | st.lists(st.integers(1, number - 1), unique=True) if number > 1 else st.none())
        steps.append(step | ({} if after is None else {"after": after}))
    return steps


@settings(max_examples=200)
@given(steps=graphs(), data=st.data(), starts=st.booleans())
def test_whatever_happens_to_a_graph_each_step_that_waits_says_why(
    steps: list[dict[str, Any]], data: st.DataObject, starts: bool
) -> None:
    played = Played(*steps, **({"start_at_ms": NOW_MS + 1000} if starts else {}))
    for _ in range(data.draw(st.integers(0, 12))):
        saga = played.saga
        if saga.ended:
            break
        out = [number for number, step in enumerate(saga.steps, 1) if step.in_flight]
        moves: list[Any] = [lambda: played.due(700)]
        moves += [partial(played.ok, number, {"id": "x"}) for number in out]
        moves += [partial(played.failed, number, "no") for number in out]
        moves += [partial(played.says, verb, step=at) for verb in ("retry", "skip") for at in saga.parked_steps]
        moves += [partial(played.signal, name) for name in ("a", "b")]
        moves.append(partial(played.says, "cancel"))
        with suppress(Refused):
            data.draw(st.sampled_from(moves))()
        _is_told(played)


def _is_told(played: Played) -> None:
    saga, now_ms = played.saga, played.now_ms
    causes = why(saga, at_work("flights", "hotels", now_ms=now_ms))
    told = {number for cause in causes for number in cause.facts.get("steps", ())}
    assert told == set(saga.active_steps)
    assert bool(causes) is not saga.ended
    text = "\n".join(saga_views.saga(saga, now_ms, [], causes, 80))
    for number in saga.parked_steps:
        assert f"--parked-at {saga.parked_place(number)}" in text
    assert as_json(played)["saga_id"] == saga.saga_id


def test_a_wait_that_went_on_without_its_signal_says_so() -> None:
    wait = {"wait": "go", "timeout_ms": 60_000, "on_timeout": "continue"}
    late, signalled = Played(wait).due(60_000), Played(wait).due(1000).signal("go")
    assert ["no signal came within 60 s" in "\n".join(shown(one)) for one in (late, signalled)] == [True, False]
