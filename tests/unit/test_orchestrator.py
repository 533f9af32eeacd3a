"""What a turn reads from its entries, and how it folds them over the sagas."""

from typing import Any

import orjson
import pytest

from sagastream import keys
from sagastream.errors import CorruptSaga
from sagastream.messages import Begin, Reply, encode
from sagastream.orchestrator import Letter, _fold, _open
from sagastream.saga import SagaState
from sagastream.streams import Entry

NOW_MS = 1_700_000_000_000
BEGIN = {"type": "saga_begin", "saga_id": "saga42", "steps": [{"transaction": "A", "service": "s", "params": 1}]}
REPLY = {"type": "A_ok", "saga_id": "saga42", "step": 1}


def a_request(body: object, **fields: bytes) -> Entry:
    return _entry(keys.REQUESTS, body, fields)


def a_reply(body: object, **fields: bytes) -> Entry:
    return _entry(keys.REPLIES, body, fields)


def _entry(stream: str, body: object, fields: dict[str, bytes]) -> Entry:
    raw = body if isinstance(body, bytes) else encode(body)
    return Entry(stream=stream, id=b"1-0", fields={b"body": raw} | {k.encode(): v for k, v in fields.items()})


def refusal(letter: Letter) -> tuple[str | None, dict[str, Any]]:
    """Who is told, and what."""
    assert letter.verdict is not None
    (notice,) = letter.verdict.notices
    assert notice.kind == "refused"
    return notice.request_id, orjson.loads(notice.body)


def quarantined(letter: Letter) -> str | None:
    assert letter.message is None
    assert letter.verdict is not None
    assert letter.verdict.notices == ()
    return letter.verdict.quarantine


def fold(*entries: Entry, state: SagaState | CorruptSaga | None = None) -> Any:
    (change,) = _fold([_open(entry) for entry in entries], {"saga42": state}, NOW_MS, {})
    return change


def test_a_request_says_what_to_begin_for_whom_and_whether_to_trace_it() -> None:
    message = _open(a_request(BEGIN, request_id=b"me-1", trace=b"1")).message
    assert isinstance(message, Begin)
    assert (message.saga_id, message.request_id, message.trace) == ("saga42", "me-1", True)
    message = _open(a_request(BEGIN)).message
    assert isinstance(message, Begin)
    assert (message.request_id, message.trace) == (None, False)


def test_a_reply_says_whether_its_outcome_is_unknown() -> None:
    assert _open(a_reply(REPLY)).message == Reply(type="A_ok", saga_id="saga42", step=1)
    assert _open(a_reply(REPLY, unknown=b"1")).message == Reply(type="A_ok", saga_id="saga42", step=1, unknown=True)


@pytest.mark.parametrize("body", [b"", b"{", b"NaN", b"[]", b'"x"', b"null", b'{"step":1}', b"\xff", b"[" * 100_000])
def test_a_reply_that_cannot_be_understood_is_quarantined(body: bytes) -> None:
    assert quarantined(_open(a_reply(body, request_id=b"me-1")))
    assert quarantined(_open(Entry(stream=keys.REPLIES, id=b"1-0", fields={})))


@pytest.mark.parametrize("body", [b"", b"{", b"NaN", b"[]", b'"x"', b"null", b'{"type":"saga_begin"}', b"\xff"])
def test_a_request_that_cannot_be_understood_is_refused_or_quarantined_where_nobody_asked(body: bytes) -> None:
    to, error = refusal(_open(a_request(body, request_id=b"me-1")))
    assert (to, error["type"], error["code"]) == ("me-1", "error", 12)
    assert quarantined(_open(a_request(body))) == error["text"]


def test_a_request_of_another_type_is_not_supported() -> None:
    to, error = refusal(_open(a_request({"type": "saga_dance"}, request_id=b"me-1")))
    assert (to, error["code"], error["text"]) == ("me-1", 10, "the orchestrator knows no request saga_dance")


@pytest.mark.parametrize("kind", ["", None, 7, "\x1b[2J", "x" * 10_000, "saga_begin\n"])
def test_a_request_whose_type_is_none_is_malformed(kind: object) -> None:
    to, error = refusal(_open(a_request(BEGIN | {"type": kind}, request_id=b"me-1")))
    assert (to, error["code"]) == ("me-1", 12)
    assert error["text"] == "the body: type must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"


@pytest.mark.parametrize("request_id", [b"", b"a b", b"\xff", b"x" * 129, b"a\n"])
def test_a_request_id_that_is_none_is_not_answered_to(request_id: bytes) -> None:
    assert quarantined(_open(a_request(BEGIN, request_id=request_id))) == (
        "request_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"
    )


def test_several_messages_for_one_saga_are_folded_one_over_the_other() -> None:
    begin, done = a_request(BEGIN), a_reply(REPLY)
    change = fold(begin, done)
    assert change.before is None
    assert change.after.status == "COMPLETED"
    assert [command.type for command in change.commands] == ["A"]
    assert [notice.kind for notice in change.notices] == ["outcome"]
    assert change.entries == [begin, done]


def test_a_reply_that_comes_before_its_saga_is_quarantined_and_the_saga_begins() -> None:
    early, begin = a_reply(REPLY), a_request(BEGIN)
    change = fold(early, begin)
    assert change.quarantined == [(early, "there is no saga saga42")]
    assert change.after.status == "PENDING"
    assert change.entries == [early, begin]


def test_messages_for_a_saga_that_cannot_be_read_are_quarantined_and_it_is_not_touched() -> None:
    begin, done = a_request(BEGIN), a_reply(REPLY)
    change = fold(begin, done, state=CorruptSaga("damaged"))
    assert change.quarantined == [(begin, "damaged"), (done, "damaged")]
    assert (change.before, change.after, change.compare, change.commands) == (None, None, False, [])


def test_sagas_do_not_mix_and_what_names_none_stands_apart() -> None:
    other = a_request(BEGIN | {"saga_id": "saga7"})
    bad = a_reply(b"{")
    letters = [_open(entry) for entry in (a_request(BEGIN), bad, other, bad)]
    changes = {c.saga_id: c for c in _fold(letters, {"saga42": None, "saga7": None}, NOW_MS, {})}
    assert set(changes) == {"saga42", "saga7", None}
    assert changes["saga7"].entries == [other]
    assert changes[None].entries == [bad, bad]
    assert changes[None].after is None
