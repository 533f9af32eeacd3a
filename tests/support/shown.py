"""Sagas to be shown to a person, and text that would do harm there."""

import unicodedata
from typing import Any

import click
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.core.steps import StepDefinition

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
