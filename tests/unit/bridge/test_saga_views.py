"""How sagas look to a person. Text from outside cannot act on a terminal."""

import json
import re
from typing import Any

import click
import pytest
from hypothesis import given
from msgspec.structs import replace

from sagastream.core.causes import Cause, CauseKind
from sagastream.core.phases import Phase
from sagastream.core.saga import Intervention, SagaState, SagaStatus
from sagastream.core.strict_json import encode
from sagastream_bridge.inspection import list_views, lookup, saga_views
from support.shown import NASTY, NOW_MS, a_saga, a_step, harmful
from support.values import TRACEPARENT


def as_json(state: SagaState) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lookup.as_json(lookup.Found(state=state, now_ms=NOW_MS, notes=[])))
    assert json.loads(lookup.row_as_json(state))["not_undone"] == found["not_undone"]
    return found


def shown(state: SagaState, *notes: str) -> str:
    return click.unstyle("\n".join(saga_views.saga(state, NOW_MS, list(notes))))


# --- harm


@given(text=NASTY, other=NASTY)
def test_nothing_that_strangers_wrote_into_a_saga_can_act_on_a_terminal(text: str, other: str) -> None:
    step = a_step(
        phase=Phase.IN_DOUBT, result=encode({text: [other]}), error=encode(text), compensation="Undo", unknown=True
    )
    definition = replace(step.definition, params=encode({text: other}))
    step = replace(step, definition=definition)
    parked = replace(step, phase=Phase.UNDO_PARKED, parked=other)
    saga = a_saga(parked, reason=text, duplicates=1)
    for state in (
        replace(saga, status=SagaStatus.COMPENSATING),
        replace(saga, status=SagaStatus.ABORTED, steps=(step,)),
        replace(saga, status=SagaStatus.PENDING, steps=(step,), reason=None),
    ):
        for line in [*saga_views.saga(state, NOW_MS, [text]), list_views.row(state, NOW_MS)]:
            assert harmful(line) == []


@pytest.mark.parametrize("what", ["transaction", "service", "undone by", "saga_id"])
def test_names_from_a_store_that_others_write_to_cannot_act_on_a_terminal(what: str) -> None:
    nasty = "\x1b[2J\u202e"
    step = a_step(phase=Phase.UNDO_OUT, due_ms=NOW_MS, compensation=nasty if what == "undone by" else "Undo")
    if what == "transaction":
        step = replace(step, definition=replace(step.definition, transaction=nasty))
    if what == "service":
        step = replace(step, definition=replace(step.definition, service=nasty))
    saga = a_saga(step, status=SagaStatus.COMPENSATING)
    if what == "saga_id":
        saga = replace(saga, saga_id=nasty)
    for line in [*saga_views.saga(saga, NOW_MS, []), list_views.row(saga, NOW_MS)]:
        assert harmful(line) == []


# --- sense


def test_a_saga_is_shown_with_all_that_is_known_of_it() -> None:
    charged = a_step(
        phase=Phase.UNDO_OUT,
        due_ms=NOW_MS + 55_000,
        sent_ms=NOW_MS - 9_000,
        answered_ms=NOW_MS - 8_877,
        result=b'{"payment_id":"p1"}',
        compensation="RefundPayment",
        compensation_sent_ms=NOW_MS - 5_000,
    )
    failed = a_step("ShipGoods", phase=Phase.IN_DOUBT, error=b'"no address"', unknown=True)
    saga = a_saga(charged, failed, status=SagaStatus.COMPENSATING, reason="Step 2 failed: no address", duplicates=2)
    text = shown(saga, "no process of service payment has ever listened")
    for part in (
        "saga42  COMPENSATING",
        "began    2023-11-14T21:13:20.000Z  (60 m ago)",
        "(5 s ago)",
        "reason   Step 2 failed: no address",
        "waits    for payment to answer RefundPayment, step 1",
        "note     no process of service payment has ever listened",
        "ignored  2 replies",
        'params {"amount": 99.99}',
        'result {"payment_id": "p1"}',
        'error  "no address", and whether it had an effect is unknown',
        "answered after 123 ms",
        "undo by RefundPayment  sent 22:13:15.000",
    ):
        assert part in text
    assert "PARKED" not in text


def test_what_came_too_late_and_was_undone_is_said_to_be_undone() -> None:
    step = a_step(
        phase=Phase.COMPENSATED,
        unknown=True,
        late_ms=NOW_MS - 500,
        compensation="RefundPayment",
        compensation_sent_ms=NOW_MS - 900,
    )
    saga = a_saga(step, status=SagaStatus.ABORTED, reason="no", duplicates=1)
    text = shown(saga)
    assert "it was done after all, as was heard at 22:13:19.500Z, and is undone\n" in text
    ignored = "ignored  1 reply that came too late, or more than once; what a service does after it has undone a step,"
    assert f"{ignored} it undoes by itself" in text
    skipped = a_saga(a_step(phase=Phase.SKIPPED, late_ms=NOW_MS - 500), duplicates=1)
    assert "undone" not in shown(skipped)
    assert "undoes" not in shown(skipped)


def test_what_is_known_of_a_saga_stands_in_one_column() -> None:
    saga = a_saga(
        a_step(phase=Phase.PARKED, parked="no"),
        attributes={"customer": "c1"},
        traceparent=TRACEPARENT,
        deadline_ms=NOW_MS + 5,
        cancelling="no",
        duplicates=1,
        interventions=(SKIP, ABANDON),
        reason="no",
    )
    facts = [line for line in shown(saga, "a note").splitlines() if re.match("  [a-z]", line)]
    assert "  found by customer=c1" in facts
    assert len(facts) == 13
    assert [line for line in facts if not re.match(r"  [a-z ]{8} \S", line)] == []


SKIP = Intervention(verb="skip", reason="by hand", at_ms=NOW_MS - 400, actor="ada")
ABANDON = replace(SKIP, verb="abandon", actor="bob")
REFUND: dict[str, Any] = {"compensation": "RefundPayment", "compensation_sent_ms": NOW_MS - 900}
UNDO = REFUND | {"compensation_attempt": 3}


def test_what_still_stands_after_a_skip_or_an_abandon_is_said() -> None:
    """Otherwise it looks like a saga of which all was undone."""
    skipped, done = a_step(phase=Phase.UNDO_SKIPPED, **UNDO), a_step(phase=Phase.COMPLETED, **UNDO)
    late = replace(skipped, compensation_answered_ms=NOW_MS)
    aborted: dict[str, Any] = {"status": SagaStatus.ABORTED, "reason": "Step 3 failed: no"}
    saga = a_saga(
        skipped, late, skipped, interventions=(replace(SKIP, actor=None), SKIP, replace(SKIP, actor="eve")), **aborted
    )
    stays = "not undone: ChargePayment of step 1, skipped by eve; ChargePayment of step 3, skipped"
    assert f"\n  stays    {stays}\n" in shown(saga)
    assert click.unstyle(list_views.row(saga, NOW_MS)).endswith(f"  saga42  {stays}; Step 3 failed: no")
    assert [(one["step"], one["how"], one["actor"]) for one in as_json(saga)["not_undone"]] == [
        (1, "skipped", "eve"),
        (3, "skipped", None),
    ]
    doubt, undone = a_step(phase=Phase.IN_DOUBT, unknown=True), a_step(phase=Phase.COMPENSATED, **UNDO)
    saga = a_saga(skipped, done, doubt, undone, interventions=(SKIP, ABANDON), **aborted)
    text = shown(saga)
    assert (
        "  stays    not undone: ChargePayment of step 1, skipped by ada; ChargePayment of step 2, abandoned by bob; "
        "ChargePayment of step 3, which may have been done, abandoned by bob\n"
    ) in text
    assert "       undo abandoned: RefundPayment  sent 22:13:19.100Z (attempt 3)" in text
    assert "undo by" not in text
    # A step that needs no undo is not said to stand.
    assert "stays" not in shown(a_saga(a_step(phase=Phase.COMPLETED), undone, interventions=(SKIP,), **aborted))
    assert "stays" not in shown(a_saga(done, interventions=(ABANDON,), status=SagaStatus.COMPLETED))


@pytest.mark.parametrize(
    ("at_ms", "said"),
    [
        (NOW_MS, "22:13:20.000Z, 0 s ago"),
        (NOW_MS - 7_100, "22:13:12.900Z, 7 s ago"),
        (NOW_MS + 5_000, "22:13:25.000Z, in 5 s"),
        (NOW_MS + 24 * 3_600_000 - 30, "2023-11-15T22:13:19.970Z, in 24 h"),
        (NOW_MS + 3 * 3_600_000, "2023-11-15T01:13:20.000Z, in 3 h"),
    ],
)
def test_a_time_has_its_zone_and_its_date_unless_that_is_today(at_ms: int, said: str) -> None:
    saga = a_saga(a_step(phase=Phase.OUT, due_ms=at_ms), deadline_ms=at_ms)
    assert f"step 1, until {said}" in shown(saga)
    assert f"deadline {said}" in shown(saga)
    assert "sent 2023-11-12T22:13:20.000Z" in shown(a_saga(a_step(phase=Phase.OUT, sent_ms=NOW_MS - 2 * 86_400_000)))


def test_a_parked_saga_says_so_and_why() -> None:
    saga = a_saga(a_step(phase=Phase.UNDO_PARKED, parked="nobody knows what undoes it"), status=SagaStatus.COMPENSATING)
    assert "saga42  COMPENSATING  PARKED" in shown(saga)
    assert "parked   nobody knows what undoes it" in shown(saga)
    assert click.unstyle(list_views.row(saga, NOW_MS)) == ("PARKED          60 m  saga42  nobody knows what undoes it")


def test_an_ended_saga_waits_for_nothing_and_its_row_has_the_reason() -> None:
    saga = a_saga(a_step(phase=Phase.FAILED), status=SagaStatus.ABORTED, reason="Step 1 failed: no")
    assert "waits" not in shown(saga)
    assert "ended" in shown(saga)
    assert click.unstyle(list_views.row(saga, NOW_MS)) == "ABORTED         60 m  saga42  Step 1 failed: no"


# --- on a terminal


def test_on_a_terminal_of_80_by_24_the_last_screen_says_why_and_what_helps() -> None:
    steps = [
        a_step(phase=Phase.COMPLETED, sent_ms=NOW_MS - 9_000, answered_ms=NOW_MS - 8_900, result=b'{"id":"p1"}')
        for _ in range(9)
    ]
    parked = a_step(phase=Phase.PARKED, parked="payment may have done it, and nobody knows what undoes it " * 2)
    text = "handlers hang: ChargePayment of saga saga41 has run for 38 s in process web1-4711-5f0c2a9e; queued for 40 s"
    remark = "on web1; it ends within 25 s, and others take over what it holds. With hard_timeout_ms it ends by itself"
    command = "sagastream cancel saga42 --now --reason TEXT --parked-at 10/transaction/20 --timeout 30 --actor me"
    hangs = Cause(kind=CauseKind.HANGS, text=text, do=(f"kill 4711  # {remark}", command))
    saga = a_saga(*steps, parked, current_step=10)
    lines = [click.unstyle(line) for line in saga_views.saga(saga, NOW_MS, [], [hangs], 80)]
    last = lines[-23:]
    assert "    kill 4711" in last
    assert "    " + command in last  # not broken, so that it can be copied
    assert all(len(line) <= 80 for line in lines if command not in line)
    words = " ".join(" ".join(last).split())
    for part in (text, f"you can kill 4711 # {remark} {command}", f"parked {saga.parked}".rstrip()):
        assert part in words
    # For other programs, each is one line.
    assert f"  you can  kill 4711  # {remark}" in list(saga_views.saga(saga, NOW_MS, [], [hangs]))


def test_a_saga_that_belongs_to_a_trace_names_it() -> None:
    traced = a_saga(a_step(), traceparent=TRACEPARENT)
    assert "  trace    4bf92f3577b34da6a3ce929d0e0e4736" in list(saga_views.saga(traced, NOW_MS, []))
    assert not any("trace" in line for line in saga_views.saga(a_saga(a_step()), NOW_MS, []))
