"""News of the orchestrator, as it is written into the events stream."""

import orjson

from sagastream.core.notices import Notice, error_body, outcome_body, parked_body


def test_a_parked_saga_is_told_with_its_status_and_the_reason() -> None:
    assert parked_body("saga42", "COMPENSATING", "bank is closed") == (
        b'{"type":"saga_parked","saga_id":"saga42","status":"COMPENSATING","reason":"bank is closed"}'
    )


def test_outcomes_have_the_bodies_of_the_protocol() -> None:
    assert outcome_body("saga42", "COMPLETED", None) == (
        b'{"type":"saga_completed","saga_id":"saga42","status":"COMPLETED"}'
    )
    assert outcome_body("saga42", "ABORTED", "Step 2 failed: insufficient_funds") == (
        b'{"type":"saga_aborted","saga_id":"saga42","status":"ABORTED","reason":"Step 2 failed: insufficient_funds"}'
    )


def test_an_error_has_its_code_and_text() -> None:
    assert orjson.loads(error_body(22, "no")) == {"type": "error", "code": 22, "text": "no"}


def test_a_notice_says_what_there_is_to_say() -> None:
    assert Notice(kind="refused", body=b"{}", request_id="me-1").fields() == {
        "kind": "refused",
        "body": b"{}",
        "request_id": "me-1",
    }
    assert Notice(kind="command", body=b"{}", saga_id="saga42", service="payment").fields() == {
        "kind": "command",
        "body": b"{}",
        "saga_id": "saga42",
        "service": "payment",
    }
