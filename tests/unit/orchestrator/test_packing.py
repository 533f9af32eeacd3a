"""How a turn's changes are packed for the script that commits them, read as the script's header says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from msgspec import msgpack
from msgspec.structs import replace

from sagastream.broker.entries import Entry
from sagastream.core.commands import Reply
from sagastream.core.decision import decide
from sagastream.core.messages import Begin, Due, Intervene, Verb
from sagastream.core.saga import Found, SagaState, SagaStatus
from sagastream.core.steps import TIMEOUT_MS, StepDefinition
from sagastream.core.transitions import Decision, Moment
from sagastream.errors import CorruptSaga
from sagastream.orchestrator.change import Change, filled, swept
from sagastream.orchestrator.packing import CommitArguments
from sagastream.store import keys
from sagastream.store.columns import iso
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.saga_hash import changed_fields
from support.stores import ONLY

KEPT_MS = {"ended": 1_000_000, "aborted": 1_000_000}
NOW_MS = 1_700_000_000_000
EARLIER_MS = NOW_MS - 60_000
PUBLISHED = {"inventory": {"Reserve": "Release"}, "payment": {"Charge": "Refund"}}

Word = str | int


@dataclass(frozen=True, kw_only=True)
class Append:
    """An entry that the script adds to a stream."""

    stream: str
    fields: dict[Word, Word]


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """One change as the script sees it."""

    key: str | None
    version: str
    updated: str
    timer: str
    member: str
    hash: list[Word]
    appends: list[Append]
    acknowledged: list[tuple[str, str]]


def pairs(words: Sequence[Any]) -> dict[Any, Any]:
    return dict(two_by_two(words))


def two_by_two(items: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def unpacked(*changes: Change) -> list[Unpacked]:
    """The changes, read from the keys and arguments in the order that the header of commit.lua gives."""
    arguments = CommitArguments(changes, NOW_MS, KEPT_MS)
    names, (packed,) = arguments.keys, arguments.args
    assert names[:3] == [ONLY.timers, ONLY.ended, ONLY.events]
    assert len(set(names)) == len(names)
    fixed, *head, read = msgpack.decode(packed)[:6]
    assert head == [keys.ORCHESTRATOR_GROUP, keys.EVENTS_KEPT, NOW_MS, KEPT_MS]
    indexes = indexes_of(arguments)
    return [_unpacked(names, fixed, len(indexes), change) for change in read]


def indexes_of(arguments: CommitArguments) -> list[str]:
    """The keys of the indexes, and of indexed if it is among them."""
    words = msgpack.decode(arguments.args[0])
    number, tells = [*words[6:], 0, 0][:2]
    found = arguments.keys[words[0] :][: number + tells]
    assert found[:1] in ([], [ONLY.begun])
    assert (ONLY.indexed in found[-1:]) == bool(tells)
    return found


def places_of(change: Change) -> tuple[dict[str, str], str, str | None]:
    """Its scores, by the key of the index; what indexed says of it then; what it must say before that (None: that does
    not matter)."""
    arguments = CommitArguments([change], NOW_MS, KEPT_MS)
    indexes = indexes_of(arguments)
    (packed,) = msgpack.decode(arguments.args[0])[5]
    places, told, before = [*packed[9:], None][:3]
    return {indexes[number - 1]: score for number, score in two_by_two(places)}, told, before


def _unpacked(names: list[str], fixed: int, indexes: int, change: list[Any]) -> Unpacked:
    key, version, updated, timer, member, fields, appends, entries = change[:8]

    def stream(index: int) -> str:
        assert 3 <= index <= fixed
        return names[index - 1]

    assert 0 <= key <= len(names) - fixed - indexes
    return Unpacked(
        key=names[fixed + indexes + key - 1] if key else None,
        version=version,
        updated=updated,
        timer=timer,
        member=member,
        hash=fields,
        appends=[Append(stream=stream(index), fields=pairs(words)) for index, words in two_by_two(appends)],
        acknowledged=[(stream(index), entry_id) for index, entry_id in two_by_two(entries)],
    )


def a_begin(saga_id: str = "saga42", *, request_id: str | None = None, echo: bool = False) -> Begin:
    steps = (
        StepDefinition(transaction="Reserve", service="inventory", params=b'{"sku":"abc123"}', compensation_attempts=1),
        StepDefinition(transaction="Charge", service="payment", params=b"7"),
    )
    return Begin(saga_id=saga_id, steps=steps, request_id=request_id, echo=echo)


def an_entry(entry_id: bytes, stream: str = ONLY.replies("work"), body: bytes = b"{}") -> Entry:
    return Entry(stream=stream, id=entry_id, fields={b"body": body, b"unknown": b"1"})


def a_reply(kind: str, step: int, saga_id: str = "saga42") -> Reply:
    result = b'{"id":"r1"}' if kind.endswith("_ok") else None
    return Reply(type=kind, saga_id=saga_id, step=step, result=result)


def a_change(
    before: Found,
    *events: Begin | Intervene | Reply,
    saga_id: str = "saga42",
    now_ms: int = NOW_MS,
    partition: Partition = ONLY,
) -> Change:
    """The change that these events make to a saga. They came as the entries 1-0, 2-0 and so on."""
    change = Change(partition=partition, saga_id=saga_id, before=before, after=before)
    for number, event in enumerate(events, 1):
        stream = partition.replies("work") if isinstance(event, Reply) else partition.requests
        change.add(
            an_entry(b"%d-0" % number, stream), decide(change.after, event, Moment(now_ms=now_ms, published=PUBLISHED))
        )
    return change


def a_saga(*events: Reply, version: int = 3, request_id: str | None = None, echo: bool = False) -> SagaState:
    """A saga after these replies, as it was loaded."""
    after = a_change(None, a_begin(request_id=request_id, echo=echo), *events, now_ms=EARLIER_MS).after
    return replace(known(after), version=version)


def known(state: Found) -> SagaState:
    """The saga, which exists and can be read."""
    assert isinstance(state, SagaState)
    return state


def test_a_new_saga_must_not_be_there_yet_and_is_written_whole_with_its_first_command() -> None:
    change = a_change(None, a_begin())
    (read,) = unpacked(change)
    assert (read.key, read.version, read.timer) == ("saga:{0}:saga:saga42", "", str(NOW_MS + TIMEOUT_MS))
    assert read.member == "saga42"
    assert read.hash == changed_fields(None, known(change.after))
    assert read.appends == [
        Append(
            stream="saga:{0}:commands:inventory",
            fields={
                "body": '{"type":"Reserve","saga_id":"saga42","step":1,"params":{"sku":"abc123"}}',
                "attempt": 1,
                "begun_ms": NOW_MS,
                "not_after_ms": NOW_MS + TIMEOUT_MS,
            },
        )
    ]
    assert read.acknowledged == [(ONLY.requests, "1-0")]


def test_a_saga_that_moves_names_the_version_it_was_loaded_with_and_writes_the_next() -> None:
    (read,) = unpacked(a_change(a_saga(version=3), a_reply("Reserve_ok", 1)))
    assert read.version == "3"
    assert pairs(read.hash)["version"] == 4
    assert read.timer == str(NOW_MS + TIMEOUT_MS)
    assert read.acknowledged == [(ONLY.replies("work"), "1-0")]


def test_a_saga_that_moves_names_the_time_of_its_last_change_for_one_that_was_begun_again_has_the_same_versions() -> (
    None
):
    before = a_saga()
    (read,) = unpacked(a_change(before, a_reply("Reserve_ok", 1)))
    assert read.updated == iso(before.updated_ms)
    (read,) = unpacked(a_change(None, a_begin()))
    assert read.updated == ""


def test_a_duplicate_does_not_make_a_saga_look_as_if_it_had_moved() -> None:
    (read,) = unpacked(a_change(a_saga(a_reply("Reserve_ok", 1)), a_reply("Reserve_ok", 1)))
    assert pairs(read.hash) == {"duplicates": 1, "version": 4}
    assert read.timer == str(EARLIER_MS + TIMEOUT_MS)


def test_a_duplicate_does_not_make_a_saga_end_once_more() -> None:
    saga = a_saga(a_reply("Reserve_ok", 1), a_reply("Charge_ok", 2))
    (read,) = unpacked(a_change(saga, a_reply("Charge_ok", 2)))
    assert pairs(read.hash) == {"duplicates": 1, "version": 4}
    assert read.timer == ""


def test_a_parked_saga_needs_no_attention_until_a_person_acts() -> None:
    saga = a_saga(a_reply("Reserve_ok", 1), a_reply("Charge_failed", 2))
    (read,) = unpacked(a_change(saga, a_reply("Release_failed", 1)))
    assert read.timer == "+inf"
    assert [append.fields["kind"] for append in read.appends] == ["parked"]


def test_a_saga_that_goes_on_after_it_was_parked_needs_attention_again() -> None:
    saga = a_saga(a_reply("Reserve_ok", 1), a_reply("Charge_failed", 2), a_reply("Release_failed", 1))
    assert saga.parked is not None
    asked = Intervene(verb=Verb.RETRY, saga_id="saga42", reason="as agreed", request_id="op-1")
    (read,) = unpacked(a_change(saga, asked))
    assert read.timer == str(NOW_MS + TIMEOUT_MS)
    assert [append.stream for append in read.appends] == [ONLY.commands("inventory"), ONLY.events]
    assert read.acknowledged == [(ONLY.requests, "1-0")]


def test_a_saga_that_is_to_be_sent_again_needs_attention_then() -> None:
    unknown = Reply(type="Reserve_failed", saga_id="saga42", step=1, unknown=True)
    change = a_change(a_saga(), unknown)
    again_ms = known(change.after).send_again_ms
    assert again_ms is not None
    assert again_ms > NOW_MS
    (read,) = unpacked(change)
    assert (read.timer, read.appends) == (str(again_ms), [])


def test_a_saga_needs_attention_when_its_deadline_is_if_that_comes_first() -> None:
    (read,) = unpacked(a_change(None, replace(a_begin(), deadline_ms=5000)))
    assert read.timer == str(NOW_MS + 5000)


def test_what_is_due_names_no_entry_and_none_is_acknowledged() -> None:
    change = due(a_saga())
    assert not change.is_empty
    (read,) = unpacked(change)
    assert (read.version, read.acknowledged, read.appends) == ("3", [], [])
    assert read.timer == str(known(change.after).send_again_ms)


def due(before: Found, *, now_ms: int = NOW_MS, leased: bool = False) -> Change:
    """This saga is due, or was thought to be."""
    change = Change(partition=ONLY, saga_id="saga42", before=before, after=before)
    assert change.is_empty
    decision = decide(before, Due(saga_id="saga42"), Moment(now_ms=now_ms, published=PUBLISHED))
    change.add(None, decision, leased=leased)
    return change


def test_a_saga_of_which_nothing_is_due_is_not_committed() -> None:
    assert due(a_saga(), now_ms=EARLIER_MS).is_empty
    assert due(CorruptSaga("damaged")).is_empty


def test_a_saga_that_is_gone_leaves_the_timers_as_long_as_it_is() -> None:
    change = due(None)
    assert not change.is_empty
    (read,) = unpacked(change)
    assert (read.key, read.version, read.timer, read.member) == (ONLY.saga("saga42"), "", "gone", "saga42")
    assert (read.hash, read.appends, read.acknowledged) == ([], [], [])


def test_a_saga_that_is_begun_anew_in_the_turn_in_which_it_was_found_gone_stays() -> None:
    change = a_change(None, a_begin())
    change.add(None, decide(change.after, Due(saga_id="saga42"), Moment(now_ms=NOW_MS, published=PUBLISHED)))
    (read,) = unpacked(change)
    assert read.timer == str(NOW_MS + TIMEOUT_MS)


def test_an_entry_that_changes_nothing_is_to_be_acknowledged_all_the_same() -> None:
    assert not a_change(a_saga(), a_begin()).is_empty
    nameless = Change(partition=ONLY, saga_id=None, before=None, after=None)
    nameless.add(an_entry(b"5-1"), Decision(state=None, quarantine="not JSON"))
    assert not nameless.is_empty


def test_several_messages_for_one_saga_are_one_change_and_one_version() -> None:
    (read,) = unpacked(a_change(a_saga(), a_reply("Reserve_ok", 1), a_reply("Charge_ok", 2)))
    assert pairs(read.hash)["version"] == 4
    assert pairs(read.hash)["status"] == "COMPLETED"
    assert [append.stream for append in read.appends] == ["saga:{0}:commands:payment", ONLY.events]
    assert read.acknowledged == [(ONLY.replies("work"), "1-0"), (ONLY.replies("work"), "2-0")]


def test_a_saga_that_ends_leaves_the_timers_and_tells_its_outcome() -> None:
    saga = a_saga(a_reply("Reserve_ok", 1), request_id="me-1")
    (read,) = unpacked(a_change(saga, a_reply("Charge_ok", 2)))
    assert read.timer == "ended"
    assert read.appends == [
        Append(
            stream=ONLY.events,
            fields={
                "kind": "outcome",
                "body": '{"type":"saga_completed","saga_id":"saga42","status":"COMPLETED"}',
                "saga_id": "saga42",
                "request_id": "me-1",
            },
        )
    ]


def test_a_compensation_carries_the_params_and_the_result_of_its_step_beside_its_body() -> None:
    (read,) = unpacked(a_change(a_saga(a_reply("Reserve_ok", 1)), a_reply("Charge_failed", 2)))
    assert read.appends == [
        Append(
            stream="saga:{0}:commands:inventory",
            fields={
                "body": '{"type":"Release","saga_id":"saga42","step":1,"compensating":true}',
                "attempt": 1,
                "begun_ms": EARLIER_MS,
                "retried": 1,
                "params": '{"sku":"abc123"}',
                "result": '{"id":"r1"}',
            },
        )
    ]


def test_a_compensation_of_a_step_without_a_result_carries_none() -> None:
    saga = a_saga(Reply(type="Reserve_ok", saga_id="saga42", step=1))
    (read,) = unpacked(a_change(saga, a_reply("Charge_failed", 2)))
    assert "result" not in read.appends[0].fields


def test_echoed_commands_and_replies_name_their_service() -> None:
    (read,) = unpacked(a_change(a_saga(echo=True), a_reply("Reserve_ok", 1)))
    events = [append.fields for append in read.appends if append.stream == ONLY.events]
    assert [(event["kind"], event["service"]) for event in events] == [("reply", "inventory"), ("command", "payment")]


def test_a_message_that_changes_nothing_is_acknowledged_and_the_saga_must_still_be_the_same() -> None:
    (read,) = unpacked(a_change(a_saga(version=3), a_begin()))
    assert (read.version, read.timer, read.hash, read.appends) == ("3", "", [], [])
    assert read.acknowledged == [(ONLY.requests, "1-0")]


def test_a_reply_for_no_saga_is_quarantined_as_long_as_there_is_none() -> None:
    (read,) = unpacked(a_change(None, a_reply("Reserve_ok", 1)))
    assert (read.key, read.version, read.timer, read.hash) == ("saga:{0}:saga:saga42", "", "", [])
    assert read.appends == [
        Append(
            stream=ONLY.quarantine,
            fields={
                "reason": "there is no saga saga42",
                "stream": ONLY.replies("work"),
                "entry_id": "1-0",
                "body": "{}",
                "fields": '{"unknown": "1"}',
            },
        )
    ]
    assert read.acknowledged == [(ONLY.replies("work"), "1-0")]


def test_an_entry_that_names_no_saga_is_compared_with_none() -> None:
    change = Change(partition=ONLY, saga_id=None, before=None, after=None)
    change.add(an_entry(b"5-1", ONLY.requests), Decision(state=None, quarantine="not JSON"))
    (read,) = unpacked(change)
    assert (read.key, read.version, read.timer, read.member, read.hash) == (None, "", "", "", [])
    assert [append.fields["reason"] for append in read.appends] == ["not JSON"]
    assert read.acknowledged == [(ONLY.requests, "5-1")]


def test_a_saga_that_cannot_be_read_is_not_compared() -> None:
    change = a_change(CorruptSaga("damaged"), a_reply("Reserve_ok", 1))
    assert change.key is None
    (read,) = unpacked(change)
    assert (read.key, read.version, read.timer, read.hash) == (None, "", "", [])
    assert [append.fields["reason"] for append in read.appends] == ["damaged"]
    assert CommitArguments([change], NOW_MS, KEPT_MS).keys == [
        ONLY.timers,
        ONLY.ended,
        ONLY.events,
        ONLY.quarantine,
        ONLY.replies("work"),
    ]


def test_a_change_names_the_hash_that_is_compared() -> None:
    assert Change(partition=ONLY, saga_id="saga42", before=None, after=None).key == ONLY.saga("saga42")
    assert a_change(a_saga(), a_reply("Reserve_ok", 1)).key == ONLY.saga("saga42")
    assert Change(partition=ONLY, saga_id=None, before=None, after=None).key is None


def test_the_refusal_of_a_saga_that_cannot_be_read_is_told_and_nothing_is_written() -> None:
    (read,) = unpacked(a_change(CorruptSaga("damaged"), a_begin(request_id="me-1")))
    assert (read.key, read.timer, read.hash) == (None, "", [])
    assert read.appends == [
        Append(
            stream=ONLY.events,
            fields={
                "kind": "refused",
                "body": '{"type":"error","code":13,"text":"damaged"}',
                "saga_id": "saga42",
                "request_id": "me-1",
            },
        )
    ]


def test_many_changes_share_their_streams_and_each_has_its_own_hash() -> None:
    nameless = Change(partition=ONLY, saga_id=None, before=None, after=None)
    nameless.add(an_entry(b"9-0"), Decision(state=None, quarantine="not JSON"))
    damaged = a_change(CorruptSaga("damaged"), a_reply("Reserve_ok", 1, "damaged"), saga_id="damaged")
    begins = [a_change(None, a_begin(f"saga{n}"), saga_id=f"saga{n}") for n in range(3)]
    read = unpacked(begins[0], nameless, begins[1], damaged, begins[2])
    assert [change.key for change in read] == [ONLY.saga("saga0"), None, ONLY.saga("saga1"), None, ONLY.saga("saga2")]
    for change in (read[0], read[2], read[4]):
        assert [append.stream for append in change.appends] == [ONLY.commands("inventory")]
    assert CommitArguments(begins, NOW_MS, KEPT_MS).keys == [
        ONLY.timers,
        ONLY.ended,
        ONLY.events,
        ONLY.commands("inventory"),
        ONLY.requests,
        ONLY.begun,
        *(ONLY.saga(f"saga{n}") for n in range(3)),
        ONLY.done("inventory", NOW_MS),
    ]


def looked_up(arguments: CommitArguments) -> dict[str, list[tuple[str, str, Word, str]]]:
    """By the key of the records: of the commands that are looked up there the record, the tombstone, the saga, and the
    body."""
    words = msgpack.decode(arguments.args[0])
    found: dict[str, list[tuple[str, str, Word, str]]] = {}
    for key, fields, places in words[9] if len(words) > 9 else []:
        those = zip(two_by_two(fields), two_by_two(places), strict=True)
        found[arguments.keys[key - 1]] = [
            (record, tombstone, words[5][change - 1][4], pairs(words[5][change - 1][6][place - 1])["body"])
            for (record, tombstone), (change, place) in those
        ]
    return found


def test_of_a_command_that_is_sent_for_the_first_time_it_is_looked_up_whether_anything_is_recorded() -> None:
    begins = [a_change(None, a_begin(f"saga{n}"), saga_id=f"saga{n}") for n in range(2)]
    assert looked_up(CommitArguments(begins, NOW_MS, KEPT_MS)) == {
        ONLY.done("inventory", NOW_MS): [
            (
                f"saga{n}/1/transaction/Reserve",
                f"saga{n}/1/transaction/(void)",
                f"saga{n}",
                f'{{"type":"Reserve","saga_id":"saga{n}","step":1,"params":{{"sku":"abc123"}}}}',
            )
            for n in range(2)
        ]
    }
    before = a_saga()
    now_ms = (before.step.times_out_ms or 0) + 1
    again = Change(partition=ONLY, saga_id="saga42", before=before, after=before)
    again.add(None, decide(before, Due(saga_id="saga42"), Moment(now_ms=now_ms + 10**6, published=PUBLISHED)))
    assert looked_up(CommitArguments([again], now_ms, KEPT_MS)) == {}


def test_in_one_call_so_many_commands_are_looked_up_as_it_can_take() -> None:
    begins = [a_change(None, a_begin(f"saga{n}"), saga_id=f"saga{n}") for n in range(600)]
    [asked] = looked_up(CommitArguments(begins, NOW_MS, KEPT_MS)).values()
    assert len(asked) == 512


def test_a_command_that_nobody_waits_for_any_more_is_named_with_its_stream_and_how_it_begins() -> None:
    before = a_saga()
    now_ms = (before.step.times_out_ms or 0) + 1
    change = Change(partition=ONLY, saga_id="saga42", before=before, after=before)
    change.add(None, decide(before, Due(saga_id="saga42"), Moment(now_ms=now_ms, published=PUBLISHED)), gives_up=True)
    [given_up] = change.given_up
    arguments = CommitArguments([change], now_ms, KEPT_MS)
    words = msgpack.decode(arguments.args[0])[5][0][8]
    command = before.step.definition
    assert words[1:3] == [command.service, before.step.sent_ms]
    assert arguments.keys[words[0] - 1] == ONLY.commands(command.service)
    assert words[3].encode() == given_up.beginning


def test_a_plain_saga_is_in_begun_once_and_in_no_other_index() -> None:
    begin = CommitArguments([a_change(None, a_begin())], NOW_MS, KEPT_MS)
    assert indexes_of(begin) == [ONLY.begun]
    assert len(msgpack.decode(begin.args[0])[5][0]) == 8
    later = CommitArguments([a_change(a_saga(), a_reply("Reserve_ok", 1))], NOW_MS, KEPT_MS)
    assert indexes_of(later) == []
    assert len(msgpack.decode(later.args[0])[5][0]) == 8


def test_a_saga_with_attributes_is_in_their_indexes_from_its_begin() -> None:
    begin = replace(a_begin(), attributes={"customer": "c42", "basket": 815})
    change = a_change(None, begin)
    begun_ms = str(known(change.after).begun_ms)
    names = ["customer=c42", "basket=815"]
    assert places_of(change) == ({ONLY.index(name): begun_ms for name in names}, orjson.dumps(names).decode(), "")
    reply = Change(partition=ONLY, saga_id="saga42", before=change.after, after=change.after)
    reply.add(None, decide(change.after, a_reply("Reserve_ok", 1), Moment(now_ms=NOW_MS, published=PUBLISHED)))
    assert indexes_of(CommitArguments([reply], NOW_MS, KEPT_MS)) == []


def test_what_is_rare_is_in_an_index_as_long_as_it_is_so() -> None:
    before = a_saga()
    failed = a_change(before, a_reply("Reserve_failed", 1))
    assert known(failed.after).status == "ABORTED"
    begun_ms = str(before.begun_ms)
    assert places_of(failed) == ({ONLY.index("status=ABORTED"): begun_ms}, '["status=ABORTED"]', "")
    undone = replace(before, status=SagaStatus.COMPENSATING)
    ends = Change(partition=ONLY, saga_id="saga42", before=undone, after=replace(undone, status=SagaStatus.COMPLETED))
    assert places_of(ends) == ({ONLY.index("status=COMPENSATING"): "gone"}, "", '["status=COMPENSATING"]')


def test_what_is_given_up_and_where_a_saga_stands_do_not_get_mixed_up() -> None:
    before = a_saga()
    now_ms = (before.step.times_out_ms or 0) + 1
    change = Change(partition=ONLY, saga_id="saga42", before=before, after=before)
    change.add(None, decide(before, Due(saga_id="saga42"), Moment(now_ms=now_ms, published=PUBLISHED)), gives_up=True)
    assert change.given_up
    change.after = replace(known(change.after), status=SagaStatus.ABORTED)
    packed = msgpack.decode(CommitArguments([change], now_ms, KEPT_MS).args[0])[5][0]
    assert len(packed) == 12
    assert packed[8]
    assert places_of(change) == ({ONLY.index("status=ABORTED"): str(before.begun_ms)}, '["status=ABORTED"]', "")


def test_a_saga_that_is_swept_leaves_all_its_indexes() -> None:
    change = swept(ONLY, "saga42", ("customer=c42",))
    assert places_of(change) == ({ONLY.index("customer=c42"): "gone", ONLY.begun: "gone"}, "", None)
    (read,) = unpacked(change)
    assert (read.key, read.version, read.timer, read.member) == (ONLY.saga("saga42"), "", "swept", "saga42")


def test_a_saga_that_is_filled_in_joins_all_its_indexes_and_leaves_others() -> None:
    state = replace(a_saga(), attributes={"customer": "c42"})
    change = filled(ONLY, state, ("customer=c42", "customer=c1"))
    score = str(state.begun_ms)
    scores = {ONLY.begun: score, ONLY.index("customer=c42"): score, ONLY.index("customer=c1"): "gone"}
    assert places_of(change) == (scores, '["customer=c42"]', None)
    (read,) = unpacked(change)
    assert (read.version, read.timer, read.hash) == (str(state.version), "", [])
    (read,) = unpacked(filled(ONLY, state, rearm=True))
    assert read.timer == str(state.due_ms)


def test_a_saga_of_which_nothing_is_due_gets_its_time_again_if_its_timer_had_another() -> None:
    state = a_saga()
    change = due(state, now_ms=EARLIER_MS, leased=True)
    assert not change.is_empty
    (read,) = unpacked(change)
    assert (read.version, read.timer, read.hash) == (str(state.version), str(state.due_ms), [])
    assert places_of(change) == ({}, "", "")  # it must be in no index
    assert due(state, now_ms=EARLIER_MS, leased=False).is_empty


def test_a_saga_that_a_fault_holds_up_stays_leased() -> None:
    change = Change(partition=ONLY, saga_id="saga42", before=a_saga(), after=None)
    change.after = change.before
    change.add(None, Decision(state=change.before, quarantine="a fault in sagastream"), leased=True)
    assert (change.rearm, change.fault) == (False, "a fault in sagastream")


# --- changes of several partitions


def test_changes_of_several_partitions_are_told_apart_by_how_many_each_has() -> None:
    one, two = StoreKeys("saga", ["0", "1"]).partitions
    changes = [a_change(None, a_begin(saga_id), saga_id=saga_id, partition=one) for saga_id in ("a", "b")]
    changes.append(a_change(a_saga(), a_reply("Reserve_ok", 1), partition=two))
    arguments = CommitArguments(changes, NOW_MS, KEPT_MS)
    words = msgpack.decode(arguments.args[0])
    assert len(words[5]) == 3
    assert words[6:9] == [2, False, [2, 1]]
    assert arguments.keys[:6] == [one.timers, one.ended, one.events, two.timers, two.ended, two.events]
    fixed = words[0]
    streams = {one.commands("inventory"), one.requests, two.commands("payment"), two.replies("work")}
    assert set(arguments.keys[6:fixed]) == streams
    assert arguments.keys[fixed : fixed + 2] == [one.begun, two.begun]
    assert arguments.keys[fixed + 2 :] == [
        *(one.saga("a"), one.saga("b"), two.saga("saga42")),
        *(one.done("inventory", NOW_MS), two.done("payment", EARLIER_MS)),
    ]


def test_the_indexes_of_several_partitions_have_numbers_of_their_own() -> None:
    one, two = StoreKeys("saga", ["0", "1"]).partitions
    changes = [swept(one, "a", ("status=PARKED",)), swept(two, "b", ("status=PARKED",))]
    arguments = CommitArguments(changes, NOW_MS, KEPT_MS)
    words = msgpack.decode(arguments.args[0])
    assert words[6:] == [4, 1, [1, 1]]
    indexes = [one.begun, two.begun, one.index("status=PARKED"), two.index("status=PARKED")]
    assert arguments.keys[words[0] :][:6] == [*indexes, one.indexed, two.indexed]
    assert [[indexes[number - 1] for number in change[9][::2]] for change in words[5]] == [indexes[::2], indexes[1::2]]
