"""How sagas and messages look to a person. Text from outside cannot act on a terminal."""

import unicodedata
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core.causes import Cause, CauseKind
from sagastream.core.filtering import Filter
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step, StepStatus
from sagastream.core.steps import StepDefinition
from sagastream.core.strict_json import encode
from sagastream.store.finding import Page
from sagastream_bridge.inspection import screen, views
from sagastream_bridge.inspection.findings import warning
from sagastream_bridge.inspection.lookup import Listing
from support.values import TRACEPARENT

NOW_MS = 1_700_000_000_000
HARMFUL = ("Cc", "Cf", "Cs", "Zl", "Zp")
#: Text as it may come from outside. It has no lone surrogates, since the decoder refuses them.
NASTY = st.text(
    st.characters(categories=["Cc", "Cf", "Zl", "Zp"]) | st.sampled_from("[2J31m;ab"),
    max_size=12,
)


def harmful(line: str) -> list[str]:
    """The characters that could act on a terminal, apart from click's own colours."""
    return [c for c in click.unstyle(line) if unicodedata.category(c) in HARMFUL]


def a_step(name: str = "ChargePayment", **members: Any) -> Step:
    definition = StepDefinition(transaction=name, service="payment", params=b'{"amount":99.99}')
    return Step(definition=definition, **members)


def a_saga(*steps: Step, status: SagaStatus = SagaStatus.PENDING, **members: Any) -> SagaState:
    saga = SagaState(
        saga_id="saga42",
        status=status,
        current_step=1,
        steps=steps,
        begun_ms=NOW_MS - 3_600_000,
        updated_ms=NOW_MS - 5_000,
    )
    return replace(saga, **members)


def shown(state: SagaState, *notes: str) -> str:
    return click.unstyle("\n".join(views.saga(state, NOW_MS, list(notes))))


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
        for line in [*views.saga(state, NOW_MS, [text]), views.row(state, NOW_MS)]:
            assert harmful(line) == []


@given(text=NASTY, kind=st.sampled_from(["command", "reply"]), member=st.sampled_from(["params", "result", "error"]))
def test_nothing_that_strangers_wrote_into_a_message_can_act_on_a_terminal(text: str, kind: str, member: str) -> None:
    body = {"type": text, "saga_id": "saga42", "step": 1, member: {text: text}}
    for told in (body, body | {"compensating": True}):
        assert harmful(views.message(told, text, kind)) == []


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
    for line in [*views.saga(saga, NOW_MS, []), views.row(saga, NOW_MS)]:
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
    assert click.unstyle(views.row(saga, NOW_MS)) == (
        "PARKED          60 m  saga42  parked: nobody knows what undoes it"
    )


def test_an_ended_saga_waits_for_nothing_and_its_row_has_the_reason() -> None:
    saga = a_saga(a_step(phase=Phase.FAILED), status=SagaStatus.ABORTED, reason="Step 1 failed: no")
    assert "waits" not in shown(saga)
    assert "ended" in shown(saga)
    assert click.unstyle(views.row(saga, NOW_MS)) == "ABORTED         60 m  saga42  Step 1 failed: no"


def test_the_row_of_a_live_saga_says_what_it_waits_for() -> None:
    assert click.unstyle(views.row(a_saga(a_step(phase=Phase.OUT, due_ms=NOW_MS + 5)), NOW_MS)) == (
        "PENDING         60 m  saga42  waits for payment to answer ChargePayment, step 1"
    )


@pytest.mark.parametrize(
    ("age_ms", "age"),
    [
        (-5, "0 s"),
        (999, "1 s"),
        (119_000, "119 s"),
        (119_999, "2 m"),
        (120_000, "2 m"),
        (7_199_999, "2 h"),
        (7_200_000, "2 h"),
        (172_800_000, "2 d"),
    ],
)
def test_ages_are_told_in_the_unit_that_suits_them(age_ms: int, age: str) -> None:
    assert f" {age}  saga42" in views.row(a_saga(a_step(), begun_ms=NOW_MS - age_ms), NOW_MS)


def test_a_row_has_the_attributes_of_the_saga_and_first_those_that_were_asked_for() -> None:
    saga = a_saga(
        a_step(phase=Phase.FAILED),
        status=SagaStatus.ABORTED,
        reason="no",
        attributes={"batch": 815, "customer": "c\x1b42", "shop": "s" * 64},
    )
    whole = click.unstyle(views.row(saga, NOW_MS, asked=["customer"]))
    assert whole == f"ABORTED         60 m  saga42  customer=c\\x1b42, batch=815, shop={'s' * 64}  no"
    narrow = click.unstyle(views.row(saga, NOW_MS, width=80))
    assert narrow == "ABORTED         60 m  saga42  batch=815, customer=c\\x1b…  no"


def test_a_list_on_a_terminal_says_what_stands_in_its_columns() -> None:
    page = Page(sagas=[a_saga(a_step(phase=Phase.OUT))], cursor=None, total=1, total_is_exact=True)
    listing = Listing(
        wanted=Filter(), is_first=True, page=page, now_ms=NOW_MS, live=1, parked=0, ended=0, unread=0, quarantined=0,
        standing=(), causes=[()],
    )  # fmt: skip
    heading, row = (click.unstyle(line) for line in views.rows(listing, 80))
    assert heading == "STATUS         BEGUN  SAGA, its attributes, and why it is there"
    assert (heading.index("BEGUN") + 5, row.index("60 m") + 4) == (20, 20)
    assert len([*views.rows(listing)]) == 1


@pytest.mark.parametrize(
    ("body", "kind", "line"),
    [
        (
            {"type": "ChargePayment", "saga_id": "x", "step": 2, "params": {"amount": 1}},
            "command",
            '-> payment    step 2  ChargePayment            params {"amount": 1}',
        ),
        (
            {"type": "ChargePayment_failed", "saga_id": "x", "step": 2, "error": "no"},
            "reply",
            '<- payment    step 2  ChargePayment_failed     error "no"',
        ),
        (
            {"type": "RefundPayment", "saga_id": "x", "step": 2, "compensating": True},
            "command",
            "-> payment    step 2  RefundPayment            compensating",
        ),
        ({"type": "RefundPayment_ok", "saga_id": "x", "step": 2}, "reply", "<- payment    step 2  RefundPayment_ok"),
    ],
)
def test_a_message_is_one_line_with_its_direction_and_payload(body: dict[str, Any], kind: str, line: str) -> None:
    assert click.unstyle(views.message(body, "payment", kind)).rstrip() == line


def test_a_long_payload_is_cut() -> None:
    body = {"type": "A", "saga_id": "x", "step": 1, "params": "x" * 100_000}
    assert len(views.message(body, "payment", "command")) < 500


@pytest.mark.parametrize("name", [*SagaStatus, *StepStatus, "SOMETHING"])
def test_a_status_is_padded_without_its_colour(name: str) -> None:
    assert click.unstyle(views.status(name, 14)) == name.ljust(14)


# --- on a terminal


def test_on_a_terminal_of_80_by_24_the_last_screen_says_why_and_what_helps() -> None:
    steps = [
        a_step(phase=Phase.COMPLETED, sent_ms=NOW_MS - 9_000, answered_ms=NOW_MS - 8_900, result=b'{"id":"p1"}')
        for _ in range(9)
    ]
    parked = a_step(phase=Phase.PARKED, parked="payment may have done it, and nobody knows what undoes it " * 2)
    text = "handlers hang: ChargePayment of saga saga41 has run for 38 s in process web1-4711-5f0c2a9e; queued for 40 s"
    remark = "on web1; it ends within 25 s, and others take over what it holds. With hard_timeout_ms it ends by itself"
    command = "sagastream cancel saga42 --now --reason TEXT --parked-at 10/transaction/20 --timeout 30 --by me"
    hangs = Cause(kind=CauseKind.HANGS, text=text, do=(f"kill 4711  # {remark}", command))
    saga = a_saga(*steps, parked, current_step=10)
    lines = [click.unstyle(line) for line in views.saga(saga, NOW_MS, [], [hangs], 80)]
    last = lines[-23:]
    assert "    kill 4711" in last
    assert "    " + command in last  # not broken, so that it can be copied
    assert all(len(line) <= 80 for line in lines if command not in line)
    words = " ".join(" ".join(last).split())
    for part in (text, f"you can kill 4711 # {remark} {command}", f"parked {saga.parked}".rstrip()):
        assert part in words
    # For other programs, each is one line.
    assert f"  you can  kill 4711  # {remark}" in list(views.saga(saga, NOW_MS, [], [hangs]))


def test_on_a_terminal_a_row_of_a_list_is_one_line() -> None:
    saga = a_saga(a_step(phase=Phase.PARKED, parked="an error " * 50))
    assert len(click.unstyle(views.row(saga, NOW_MS, (), 80))) <= 80
    assert views.row(saga, NOW_MS, (), 80).endswith("…")
    assert len(click.unstyle(views.row(saga, NOW_MS))) > 400


def test_on_a_terminal_what_helps_stands_below_a_finding() -> None:
    finding = warning("service shop", "no process of service shop is listening " * 3, "sagastream service M:N  # one")
    lines = [click.unstyle(line) for line in views.finding(finding, 80)]
    assert lines[-2:] == ["    sagastream service M:N", "           # one"]
    assert "" not in lines
    assert all(len(line) <= 80 for line in lines)
    assert list(views.finding(finding)) == [f"{views.styled('warning ', 'yellow')}  service shop  {finding.line}"]


def test_a_saga_that_belongs_to_a_trace_names_it() -> None:
    traced = a_saga(a_step(), traceparent=TRACEPARENT)
    assert "  trace    4bf92f3577b34da6a3ce929d0e0e4736" in list(views.saga(traced, NOW_MS, []))
    assert not any("trace" in line for line in views.saga(a_saga(a_step()), NOW_MS, []))


def test_a_picture_that_is_too_high_is_clipped_with_its_status_first() -> None:
    lines = [f"line {number} of a saga" for number in range(10)]
    assert screen.clipped(lines, 10, 80) == lines
    assert screen.clipped(lines, 4, 10)[:2] == ["line 0 of…", "line 1 of…"]
    assert screen.clipped(lines, 4, 80) == [*lines[:3], "… 7 more lines: without --watch, all are shown"]
    history = screen.clipped(lines, 4, 80, newest_last=True)
    assert history == [lines[0], "… 7 more lines: without --watch, all are shown", *lines[8:]]
    for height in (1, 2, 3):
        assert len(screen.clipped(lines, height, 80)) <= max(height, 2)
        assert len(screen.clipped(lines, height, 80, newest_last=True)) <= max(height, 2)


def test_pictures_take_the_place_of_each_other_on_a_screen_of_their_own() -> None:
    said: list[str] = []
    canvas = screen.Canvas(said.append)
    canvas.close()
    assert said == []
    canvas.draw(["one", "two"])
    canvas.draw(["three"])
    canvas.close()
    text = "".join(said)
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1
    assert text.endswith("\x1b[H\x1b[Jthree\x1b[?1049l")
