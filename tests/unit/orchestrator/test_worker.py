"""What a turn reads from its entries, how it decides on them, and when it looks for due sagas."""

import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest

from sagastream.broker.entries import Entry
from sagastream.core.backoff import jitter
from sagastream.core.commands import Reply
from sagastream.core.decision import Event
from sagastream.core.messages import Begin, Code, Due, Intervene, Unreadable, Verb
from sagastream.core.saga import Found, SagaState
from sagastream.core.sending import Published
from sagastream.core.steps import BACKOFF_MS, TIMEOUT_MS
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Moment
from sagastream.errors import CorruptSaga, NewerFormat
from sagastream.orchestrator import folding
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.due_sagas import DueSagas
from sagastream.orchestrator.room import Room
from sagastream.orchestrator.streams import Input, Streams
from support.stores import KEYS, ONLY

NOW_MS = 1_700_000_000_000
BEGIN = {"type": "saga_begin", "saga_id": "saga42", "steps": [{"transaction": "A", "service": "s", "params": 1}]}
REPLY = {"type": "A_ok", "saga_id": "saga42", "step": 1}


def folded(inputs: Sequence[Input], states: Mapping[str, Found], now_ms: int, published: Published) -> list[Change]:
    moment = Moment(now_ms=now_ms, published=published, jitter=jitter(random.getrandbits(32)))
    parts = folding.parts_of([(ONLY, inputs)])
    return [change for part in parts for change in folding.fold(part, states, moment)]


def a_request(body: object, **fields: bytes) -> Entry:
    return _entry(ONLY.requests, body, fields)


def of_an_operator(body: object, **fields: bytes) -> Entry:
    return _entry(ONLY.interventions, body, fields)


def a_reply(body: object, **fields: bytes) -> Entry:
    return _entry(ONLY.replies("s"), body, fields)


def _entry(stream: str, body: object, fields: dict[str, bytes]) -> Entry:
    raw = body if isinstance(body, bytes) else encode(body)
    return Entry(stream=stream, id=b"1-0", fields={b"body": raw} | {k.encode(): v for k, v in fields.items()})


def said(entry: Entry) -> Input:
    return Streams(KEYS, ["s"], Room("worker")).opened(entry)


def opened(entry: Entry) -> Event:
    """What an entry says."""
    same, event = said(entry)
    assert same is entry
    return event


def fold(*entries: Entry, state: Found = None, now_ms: int = NOW_MS) -> Any:
    (change,) = folded([said(entry) for entry in entries], {"saga42": state}, now_ms, {})
    return change


def known(state: Found) -> SagaState:
    """The saga, which exists and can be read."""
    assert isinstance(state, SagaState)
    return state


#: The saga is due.
DUE: Input = (None, Due(saga_id="saga42"))
CANCEL = {"type": "saga_cancel", "saga_id": "saga42", "reason": "ordered twice"}


def test_a_request_says_what_to_begin_for_whom_and_whether_to_echo_it() -> None:
    begin = opened(a_request(BEGIN, request_id=b"me-1", trace=b"1"))
    assert isinstance(begin, Begin)
    assert (begin.saga_id, begin.request_id, begin.echo) == ("saga42", "me-1", True)
    begin = opened(a_request(BEGIN))
    assert isinstance(begin, Begin)
    assert (begin.request_id, begin.echo) == (None, False)


def test_a_reply_says_whether_its_outcome_is_unknown() -> None:
    assert opened(a_reply(REPLY)) == Reply(type="A_ok", saga_id="saga42", step=1, service="s")
    assert opened(a_reply(REPLY, unknown=b"1")) == Reply(
        type="A_ok", saga_id="saga42", step=1, unknown=True, service="s"
    )


def test_a_reply_says_which_attempt_it_answers() -> None:
    assert opened(a_reply(REPLY, attempt=b"3")) == Reply(type="A_ok", saga_id="saga42", step=1, attempt=3, service="s")


def test_a_request_says_what_an_operator_asks_for() -> None:
    assert opened(of_an_operator(CANCEL, request_id=b"op-1")) == Intervene(
        verb=Verb.CANCEL, saga_id="saga42", reason="ordered twice", request_id="op-1"
    )


def test_what_an_entry_is_depends_on_its_stream() -> None:
    assert isinstance(opened(a_reply(BEGIN)), Unreadable)
    found = opened(a_request(REPLY))
    assert isinstance(found, Unreadable)
    assert found.code == Code.NOT_SUPPORTED


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff"])
def test_an_entry_that_cannot_be_understood_is_refused_or_quarantined_where_nobody_asked(body: bytes) -> None:
    asked, unasked, reply = a_request(body, request_id=b"me-1"), a_request(body), a_reply(body, request_id=b"me-1")
    (change,) = folded([said(entry) for entry in (asked, unasked, reply)], {}, NOW_MS, {})
    assert (change.saga_id, change.key, change.after) == (None, None, None)
    assert [entry for entry, _ in change.quarantined] == [unasked, reply]
    assert change.entries == [asked, unasked, reply]
    (notice,) = change.notices
    error = orjson.loads(notice.body)
    assert (notice.kind, notice.saga_id, notice.request_id) == ("refused", None, "me-1")
    assert (error["type"], error["code"], error["text"]) == ("error", 12, change.quarantined[0][1])


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
    damaged = CorruptSaga("damaged")
    change = fold(begin, done, state=damaged)
    assert change.quarantined == [(begin, "damaged"), (done, "damaged")]
    assert (change.before, change.after, change.key, change.commands) == (damaged, damaged, None, [])


def test_what_is_for_a_newer_release_is_neither_acknowledged_nor_set_aside_nor_answered() -> None:
    newer = a_request(BEGIN | {"format": 9}, request_id=b"me-1")
    [change] = folded([said(newer)], {"saga42": None}, NOW_MS, {})
    assert (change.is_empty, change.left) == (True, [(newer, 9)])
    inputs = [said(a_request(BEGIN, request_id=b"me-1")), said(a_reply(REPLY)), DUE]
    [change] = folded(inputs, {"saga42": NewerFormat("saga42", 9)}, NOW_MS, {})
    assert (change.is_empty, change.left) == (True, [(entry, 9) for entry, _ in inputs])


def test_what_comes_beside_a_request_for_a_newer_release_is_dealt_with() -> None:
    begin = a_request(BEGIN)
    change = fold(a_request(BEGIN | {"format": 9}), begin)
    assert (change.entries, change.quarantined, change.after.status) == ([begin], [], "PENDING")


def test_a_request_for_a_saga_that_cannot_be_read_is_refused_to_whoever_asked() -> None:
    change = fold(a_request(BEGIN, request_id=b"me-1"), state=CorruptSaga("damaged"))
    assert [(n.kind, n.saga_id, n.request_id) for n in change.notices] == [("refused", "saga42", "me-1")]
    assert change.quarantined == []


def test_sagas_do_not_mix_and_what_names_none_stands_apart() -> None:
    other = a_request(BEGIN | {"saga_id": "saga7"})
    bad = a_reply(b"{")
    inputs = [said(entry) for entry in (a_request(BEGIN), bad, other, bad)]
    changes = {c.saga_id: c for c in folded(inputs, {"saga42": None, "saga7": None}, NOW_MS, {})}
    assert set(changes) == {"saga42", "saga7", None}
    assert changes["saga7"].entries == [other]
    assert changes[None].entries == [bad, bad]
    assert changes[None].after is None


# --- what is due


def test_what_is_due_is_folded_after_what_has_come_for_the_same_saga() -> None:
    saga = fold(a_request(BEGIN)).after
    done = a_reply(REPLY)
    (change,) = folded([said(done), DUE], {"saga42": saga}, NOW_MS + TIMEOUT_MS, {})
    assert (change.before, known(change.after).status, change.entries) == (saga, "COMPLETED", [done])


def test_what_is_due_changes_a_saga_and_acknowledges_nothing() -> None:
    saga = fold(a_request(BEGIN)).after
    (change,) = folded([DUE], {"saga42": saga}, NOW_MS + TIMEOUT_MS, {})
    assert (change.entries, change.quarantined, change.commands) == ([], [], [])
    assert change.key == ONLY.saga("saga42")
    # Chance spreads what failed together over the second half of the delay.
    sent_again_ms = known(change.after).send_again_ms
    assert sent_again_ms is not None
    assert BACKOFF_MS / 2 <= sent_again_ms - NOW_MS - TIMEOUT_MS <= BACKOFF_MS


def test_chance_is_drawn_for_each_saga_anew() -> None:
    saga = fold(a_request(BEGIN)).after
    waits = {
        known(change.after).send_again_ms
        for _ in range(40)
        for change in folded([DUE], {"saga42": saga}, NOW_MS + TIMEOUT_MS, {})
    }
    assert len(waits) > 1


def test_what_is_due_of_a_saga_that_cannot_be_read_is_no_change() -> None:
    assert folded([DUE], {"saga42": CorruptSaga("damaged")}, NOW_MS, {}) == []


def test_what_is_due_of_a_saga_that_there_is_not_is_told_to_the_store() -> None:
    (change,) = folded([DUE], {"saga42": None}, NOW_MS, {})
    assert (change.is_gone, change.before, change.after, change.entries) == (True, None, None, [])


def test_what_is_looked_at_too_early_is_no_change() -> None:
    saga = fold(a_request(BEGIN)).after
    assert folded([DUE], {"saga42": saga}, NOW_MS + TIMEOUT_MS - 1, {}) == []


def test_a_saga_that_is_begun_and_cancelled_in_one_turn_waits_for_its_first_step() -> None:
    change = fold(a_request(BEGIN), of_an_operator(CANCEL, request_id=b"op-1"))
    assert (change.after.status, change.after.cancelling) == ("PENDING", "Cancelled: ordered twice")
    assert [command.type for command in change.commands] == ["A"]
    assert [notice.kind for notice in change.notices] == ["done"]


# --- when to look


def looking(*, at: float) -> DueSagas:
    """As much of a worker as decides when to look for due sagas."""
    due = DueSagas.__new__(DueSagas)
    due._at = at
    return due


def looks_in(due: DueSagas, *changes: Any) -> float:
    """In how many seconds it looks after these changes are committed."""
    committed = time.monotonic()
    due.again_with(changes, NOW_MS)
    return due._at - committed


def test_a_worker_looks_when_the_first_of_its_sagas_is_due() -> None:
    later, sooner = fold(a_request(BEGIN)), fold(a_request(BEGIN | {"deadline_ms": 20_000}))
    assert looks_in(looking(at=math.inf), later, sooner) == pytest.approx(20, abs=1)
    assert looks_in(looking(at=math.inf), later) == pytest.approx(TIMEOUT_MS / 1000, abs=1)


def test_a_worker_that_is_to_look_sooner_does_so() -> None:
    soon = time.monotonic() + 5
    due = looking(at=soon)
    looks_in(due, fold(a_request(BEGIN)))
    assert due._at == soon


def test_a_worker_does_not_look_for_what_waits_for_nothing() -> None:
    done = fold(a_request(BEGIN), a_reply(REPLY))
    quarantined = fold(a_reply(REPLY))
    assert looks_in(looking(at=math.inf), done, quarantined) == math.inf


def test_a_worker_takes_a_breath_before_it_looks_for_what_is_due_already() -> None:
    saga = fold(a_request(BEGIN), now_ms=NOW_MS - 2 * TIMEOUT_MS)
    assert 0 < looks_in(looking(at=math.inf), saga) < 1
