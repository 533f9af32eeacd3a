"""How messages look to a person. Text from outside cannot act on a terminal."""

from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream_bridge.inspection import message_views
from support.shown import NASTY, harmful


@given(text=NASTY, kind=st.sampled_from(["command", "reply"]), member=st.sampled_from(["params", "result", "error"]))
def test_nothing_that_strangers_wrote_into_a_message_can_act_on_a_terminal(text: str, kind: str, member: str) -> None:
    body = {"type": text, "saga_id": "saga42", "step": 1, member: {text: text}}
    for told in (body, body | {"compensating": True}):
        assert harmful(message_views.message(told, text, kind)) == []


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
    assert click.unstyle(message_views.message(body, "payment", kind)).rstrip() == line


def test_a_long_payload_is_cut() -> None:
    body = {"type": "A", "saga_id": "x", "step": 1, "params": "x" * 100_000}
    assert len(message_views.message(body, "payment", "command")) < 500
