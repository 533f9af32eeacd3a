"""Who is told what, and how long the end of input is delayed for it."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.broker.connection import Broker
from sagastream.client.answers import Refused, unread
from sagastream.client.requests import to_begin, to_intervene
from sagastream.core.messages import Begin, Verb
from sagastream.core.saga import SagaState, SagaStatus, protocol_view
from sagastream.errors import CorruptSaga, NewerFormat, RequestRefused
from sagastream_bridge.stdin.follower import Asker, Follower
from sagastream_bridge.stdin.lines import Caller, LineWriter, Refusal, code_of

CALLER = Caller(src="c", msg_id=7)


def a_begin(saga_id: str, *, echo: bool = False) -> Asker:
    """Somebody who began a saga."""
    begin = to_begin({"saga_id": saga_id, "steps": [{"transaction": "Do", "service": "work"}]})
    return Asker(caller=CALLER, saga_id=saga_id, request=replace(begin, echo=echo))


def an_await(saga_id: str) -> Asker:
    return Asker(caller=CALLER, saga_id=saga_id)


def an_operator(saga_id: str) -> Asker:
    return Asker(caller=CALLER, saga_id=saga_id, request=to_intervene(Verb.RETRY, saga_id, "as agreed"))


def a_saga(asker: Asker, **changes: Any) -> SagaState:
    begin = asker.request if isinstance(asker.request, Begin) else a_begin(asker.saga_id).begin
    assert begin is not None
    return replace(unread(begin), **changes)


Make = Callable[..., Follower]


@pytest.fixture
def refused() -> list[tuple[Asker, Refusal]]:
    return []


@pytest.fixture
def make(refused: list[tuple[Asker, Refusal]]) -> Make:
    """A follower whose broker is never used."""

    def made(*askers: Asker, outcomes: bool = True, served: tuple[str, ...] = ()) -> Follower:
        follower = Follower(
            Broker("redis://nowhere.invalid"),
            LineWriter(threading.Event()),
            outcomes=outcomes,
            served=served,
            refused=lambda asker, why: refused.append((asker, why)),
        )
        for asker in askers:
            follower.add(asker)
        return follower

    return made


def written(capfd: pytest.CaptureFixture[str]) -> list[tuple[str, str, dict[str, Any]]]:
    lines = map(json.loads, capfd.readouterr().out.splitlines())
    return [(line["src"], line["dest"], line["body"]) for line in lines]


# --- answers


def test_each_who_asked_is_answered_in_the_words_of_the_request(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    begun, waiting, operator = a_begin("a"), an_await("a"), an_operator("a")
    done = a_saga(begun, status=SagaStatus.COMPLETED)
    failed = a_saga(begun, status=SagaStatus.ABORTED, reason="no")
    follower = make(begun, waiting, operator, again := a_begin("a"))
    follower._answer_all([(begun, done), (waiting, done), (operator, done), (again, failed)])
    members: list[dict[str, Any]] = [
        {"type": "saga_completed", "saga_id": "a", "status": "COMPLETED"},
        {"type": "saga_await_ok", "state": protocol_view(done)},
        {"type": "saga_retry_ok", "state": protocol_view(done)},
        {"type": "saga_aborted", "saga_id": "a", "status": "ABORTED", "reason": "no"},
    ]
    assert written(capfd) == [
        ("orchestrator", "c", body | {"in_reply_to": 7, "msg_id": number}) for number, body in enumerate(members)
    ]


def test_without_outcomes_only_who_began_a_saga_hears_nothing_of_its_end(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    follower = make(begun := a_begin("a"), waiting := an_await("a"), outcomes=False)
    done = a_saga(begun, status=SagaStatus.COMPLETED)
    follower._answer_all([(begun, done), (waiting, done)])
    assert [body["type"] for _, _, body in written(capfd)] == ["saga_await_ok"]
    assert follower.wait_until_answered(0, threading.Event()) == []


@pytest.mark.parametrize(
    ("why", "code"),
    [
        (RequestRefused(22, "another"), 22),
        (CorruptSaga("garbled"), 13),
        (NewerFormat("a", 9), 10),
    ],
)
def test_a_refusal_is_handed_on_with_its_code(
    make: Make, refused: list[tuple[Asker, Refusal]], why: Any, code: int
) -> None:
    follower = make(begun := a_begin("a"))
    follower._answer_all([(begun, Refused(saga_id="a", error=why))])
    assert refused == [(begun, why)]
    assert code_of(why) == code


# --- messages


def an_event(kind: str, saga_id: str = "a", **fields: str) -> dict[bytes, bytes]:
    fields = {"kind": kind, "saga_id": saga_id, "service": "work", "body": '{"type": "Do"}'} | fields
    return {name.encode(): value.encode() for name, value in fields.items()}


def test_messages_are_told_of_a_saga_that_somebody_began_with_a_trace(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    follower = make(a_begin("a"), a_begin("a", echo=True), a_begin("b"), an_await("c"), an_operator("d"))
    for saga_id in "abcd":
        follower._tell(an_event("command", saga_id))
        follower._tell(an_event("reply", saga_id))
    assert written(capfd) == [("orchestrator", "work", {"type": "Do"}), ("work", "orchestrator", {"type": "Do"})]


def test_commands_of_a_service_that_is_played_here_are_told_where_they_are_handed_out(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    follower = make(a_begin("a", echo=True), served=("work",))
    follower._tell(an_event("command"))
    follower._tell(an_event("reply"))
    follower._tell(an_event("command", service="other"))
    assert [(src, dest) for src, dest, _ in written(capfd)] == [("work", "orchestrator"), ("orchestrator", "other")]


# --- who waits


def test_the_first_begin_of_a_saga_is_the_one_that_is_known(make: Make) -> None:
    follower = make(an_await("a"), an_operator("a"))
    assert follower.begin_of("a") is None
    assert follower.begin_of("b") is None
    follower.add(first := a_begin("a"))
    follower.add(a_begin("a"))
    assert follower.begin_of("a") is first.begin


def test_waiting_ends_with_the_time_and_names_each_saga_once(make: Make) -> None:
    follower = make(an_await("a"), a_begin("b"), a_begin("a"))
    assert follower.wait_until_answered(0, threading.Event()) == ["a", "b"]


def test_waiting_ends_when_it_is_to_stop(make: Make) -> None:
    stop = threading.Event()
    stop.set()
    assert make(an_await("a")).wait_until_answered(60, stop) == ["a"]


@pytest.mark.parametrize("last", ["an answer", "a refusal"])
def test_waiting_ends_when_the_last_answer_was_written_and_not_before(
    make: Make, refused: list[tuple[Asker, Refusal]], capfd: pytest.CaptureFixture[str], last: str
) -> None:
    follower = make(asker := a_begin("a"))
    told_at_the_end: list[int] = []

    def wait() -> None:
        assert follower.wait_until_answered(60, threading.Event()) == []
        told_at_the_end.append(len(written(capfd)) + len(refused))

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    error = RequestRefused(22, "another")
    done = a_saga(asker, status=SagaStatus.COMPLETED)
    follower._answer_all([(asker, done if last == "an answer" else Refused(saga_id="a", error=error))])
    waiter.join(60)
    assert told_at_the_end == [1]
