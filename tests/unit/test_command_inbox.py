"""What a service reads and answers, packed for the script that sends the answers, read as its header says."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream import keys
from sagastream.command_inbox import MAX_DELIVERIES, CommandInbox, Delivery, _stands
from sagastream.messages import Command, Reply, failed, ok, reply_to
from sagastream.streams import Entry


@pytest.mark.parametrize(
    ("record", "attempt", "stands"),
    [
        (None, 1, False),
        (b"ok 1 {}", 1, True),
        (b"ok 1 {}", 7, True),  # what was done stays done
        (b"ok 7 {}", 1, True),
        (b"failed 1 {}", 1, True),
        (b"failed 1 {}", 2, False),  # a later attempt may succeed
        (b"failed 3 {}", 2, True),
        (b"failed 9 {}", 10, False),  # compared as numbers
        (b"failed 10 {}", 9, True),
        (b"unknown 1 {}", 1, False),
    ],
)
def test_a_record_answers_its_attempt_and_what_was_done_answers_all(
    record: bytes | None, attempt: int, stands: bool
) -> None:
    assert _stands(record, attempt) is stands


@given(body=st.binary(max_size=40), attempt=st.integers(1, 99))
def test_what_a_recorded_reply_says_does_not_matter(body: bytes, attempt: int) -> None:
    assert _stands(b"ok %d " % attempt + body, attempt)
    assert _stands(b"failed %d " % attempt + body, attempt)
    assert not _stands(b"failed %d " % attempt + body, attempt + 1)


# --- a service's inbox, without a broker


class Client:
    """As much of a client as an inbox takes: scripts that keep what they are called with, records, deliveries."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], bytes] = {}
        self.times_delivered = 1
        self.calls: list[tuple[list[str], list[Any]]] = []
        self.fails = False
        self._answers: list[Any] = []

    def register_script(self, _text: str) -> Any:
        return self._call

    def _call(self, keys: list[str], args: list[Any]) -> None:
        if self.fails:
            raise ConnectionError("gone")
        self.calls.append((list(keys), list(args)))

    def pipeline(self, *, transaction: bool) -> "Client":
        assert not transaction
        return self

    def hget(self, key: str, field: str) -> None:
        self._answers.append(self.records.get((key, field)))

    def xpending_range(self, *_: object) -> None:
        self._answers.append([{"times_delivered": self.times_delivered}])

    def execute(self, *, raise_on_error: bool) -> list[Any]:
        answers, self._answers = self._answers, []
        return answers


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer as the script sees it."""

    entry_id: bytes
    stream: str
    record: str | None
    field: str
    kind: str
    attempt: int
    fields: dict[Any, Any]


def an_inbox(client: Client, *entries: Entry, **options: Any) -> CommandInbox:
    """The inbox of the service payment, with these entries to read."""
    anything: Any = client
    inbox = CommandInbox(anything, "payment", consumer="me", lease_ms=1000, on_join=lambda: None, **options)
    reader: Any = inbox.reader
    left = [list(entries)]
    reader.read = lambda block_ms, count: left.pop() if left else []
    return inbox


def sent(client: Client) -> list[Answer]:
    """The answers of the only call, read in the order that the header of answer.lua gives."""
    ((names, words),) = client.calls
    assert names[:3] == [keys.commands("payment"), keys.REPLIES, keys.QUARANTINE]
    assert len(set(names)) == len(names)
    group, kept, *words = words
    assert (group, kept) == ("payment", keys.DONE_KEPT_S)
    answers = []
    while words:
        entry_id, target, record, field, kind, attempt, count, *words = words
        fields, words = words[:count], words[count:]
        assert len(fields) == count
        assert fields[0] in ("body", "reason")  # what follows on the first name is what is recorded
        answers.append(
            Answer(
                entry_id=entry_id,
                stream=names[target - 1],
                record=names[record - 1] if record else None,
                field=field,
                kind=kind,
                attempt=attempt,
                fields=dict(zip(fields[::2], fields[1::2], strict=True)),
            )
        )
    return answers


def a_command(**members: Any) -> Command:
    command = Command(service="payment", type="Charge", saga_id="saga42", step=2, params=b"1", begun_ms=5)
    return replace(command, **members)


def an_entry(command: Command, entry_id: bytes = b"1-0", *, redelivered: bool = False) -> Entry:
    fields = {
        name.encode(): value if isinstance(value, bytes) else str(value).encode()
        for name, value in command.fields().items()
    }
    return Entry(stream=keys.commands("payment"), id=entry_id, fields=fields, redelivered=redelivered)


RECORDS = keys.done("payment", 5)
RECORD = (RECORDS, "saga42/2/transaction")


def test_a_command_that_comes_for_the_first_time_is_to_be_done() -> None:
    client = Client()
    client.records[RECORD] = b"ok 1 {}"  # nobody asks for it
    inbox = an_inbox(client, entry := an_entry(a_command()))
    assert inbox.read(0) == [Delivery(entry=entry, command=a_command())]
    inbox.send()
    assert client.calls == []


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (reply_to(a_command(), ok("Charge"), result=b"7"), "ok"),
        (reply_to(a_command(), failed("Charge"), error=b'"no"'), "failed"),
        (reply_to(a_command(), failed("Charge"), error=b'"?"', unknown=True), "unknown"),
    ],
)
def test_an_answer_says_what_is_to_be_recorded_and_where(reply: Reply, kind: str) -> None:
    client = Client()
    inbox = an_inbox(client, an_entry(a_command()))
    (delivery,) = inbox.read(0)
    inbox.reply(delivery, reply)
    assert client.calls == []
    inbox.send()
    fields: dict[str, Any] = dict(reply.fields())
    assert sent(client) == [
        Answer(
            entry_id=b"1-0",
            stream=keys.REPLIES,
            record=RECORDS,
            field="saga42/2/transaction",
            kind=kind,
            attempt=1,
            fields=fields,
        )
    ]


def test_answers_to_sagas_of_one_hour_share_their_record_and_others_have_their_own() -> None:
    client = Client()
    hour_ms = 3_600_000
    commands = [a_command(), a_command(step=3), a_command(begun_ms=hour_ms)]
    inbox = an_inbox(client, *(an_entry(command, b"%d-0" % n) for n, command in enumerate(commands, 1)))
    for delivery in inbox.read(0):
        inbox.reply(delivery, reply_to(delivery.command, ok("Charge")))
    inbox.send()
    assert [answer.record for answer in sent(client)] == [RECORDS, RECORDS, keys.done("payment", hour_ms)]
    assert [answer.entry_id for answer in sent(client)] == [b"1-0", b"2-0", b"3-0"]


def test_no_answer_is_forgotten_before_the_broker_has_it_and_none_is_sent_twice() -> None:
    client = Client()
    inbox = an_inbox(client, an_entry(a_command()))
    (delivery,) = inbox.read(0)
    inbox.reply(delivery, reply_to(delivery.command, ok("Charge")))
    client.fails = True
    with pytest.raises(ConnectionError):
        inbox.send()
    client.fails = False
    inbox.send()
    inbox.send()
    assert len(sent(client)) == 1


def test_an_entry_that_is_no_command_is_quarantined_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    client = Client()
    entry = Entry(stream=keys.commands("payment"), id=b"1-0", fields={b"body": b"\x1b[2J"})
    inbox = an_inbox(client, entry)
    assert inbox.read(0) == []
    inbox.send()
    (answer,) = sent(client)
    assert (answer.stream, answer.record, answer.kind) == (keys.QUARANTINE, None, "unknown")
    assert answer.fields == entry.quarantined(str(answer.fields["reason"]))
    assert "service payment" in (told := capsys.readouterr().err)
    assert "quarantined the entry 1-0: not JSON" in told


@pytest.mark.parametrize(("redelivered", "attempt"), [(True, 1), (False, 2)])
def test_what_was_done_before_is_answered_from_its_record(redelivered: bool, attempt: int) -> None:
    client = Client()
    client.records[RECORD] = b"ok 1 {}"
    inbox = an_inbox(client, an_entry(a_command(attempt=attempt), redelivered=redelivered))
    assert inbox.read(0) == []
    inbox.send()
    (answer,) = sent(client)
    # Unknown: the script must not record this reply, but send the recorded one in its place.
    assert (answer.stream, answer.record, answer.kind, answer.attempt) == (keys.REPLIES, RECORDS, "unknown", attempt)


@pytest.mark.parametrize("record", [None, b"failed 1 {}"])
def test_what_was_not_done_before_is_to_be_done(record: bytes | None) -> None:
    client = Client()
    if record is not None:
        client.records[RECORD] = record
    inbox = an_inbox(client, an_entry(a_command(attempt=2), redelivered=True))
    assert [delivery.command.attempt for delivery in inbox.read(0)] == [2]


def test_a_command_that_nobody_lives_to_answer_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    client = Client()
    client.times_delivered = MAX_DELIVERIES + 1
    inbox = an_inbox(client, an_entry(a_command(), redelivered=True))
    assert inbox.read(0) == []
    inbox.send()
    (answer,) = sent(client)
    assert (answer.kind, answer.fields["unknown"]) == ("unknown", 1)
    assert b"Charge_failed" in answer.fields["body"]
    assert "gave up on step 2 of saga saga42" in capsys.readouterr().err


@pytest.mark.parametrize(("times", "most"), [(MAX_DELIVERIES, MAX_DELIVERIES), (1000, None)])
def test_a_command_that_is_taken_over_less_often_or_by_people_is_not_given_up(times: int, most: int | None) -> None:
    client = Client()
    client.times_delivered = times
    inbox = an_inbox(client, an_entry(a_command(), redelivered=True), max_deliveries=most)
    assert len(inbox.read(0)) == 1
