"""The history of a saga: what its fields say, what its journal says, in the order in which it happened."""

from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.core.clock import Jump, Watch
from sagastream.core.erasure import without_data
from sagastream.core.history import history
from sagastream.core.history_events import HistoryEvent, HistoryKind
from sagastream.core.journal import JOURNAL_BYTES, notes
from sagastream.core.messages import Verb
from sagastream.core.pauses import Pause, Resume
from sagastream.core.saga import SagaState
from sagastream.core.steps import StepKind
from sagastream.store.saga_hash import changed_fields, read
from support.graph_stories import do, given_graph
from support.states import written
from support.stories import BEGUN_MS, CHARGE, RESERVE, Story, given_saga


def given(*steps: Any, **more: Any) -> Story:
    """A plain saga of a worker that keeps histories."""
    return given_saga(*steps, journal_bytes=JOURNAL_BYTES, **more)


def told(state: SagaState) -> list[str]:
    """Its history in short: when, in ms after the begin; what; of which step."""
    return [_told(event) for event in history(state)]


def _told(event: HistoryEvent) -> str:
    at = "?" if event.at_ms is None else str(event.at_ms - BEGUN_MS)
    attempt = f" #{event.attempt}" if event.attempt is not None else ""
    return f"{at} {event.kind}" + (f" {event.step}{attempt}" if event.step else "")


def test_a_saga_that_completes_has_no_journal_and_a_whole_history() -> None:
    story = given(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_ok", 2)
    assert story.saga.journal is None
    assert told(story.saga) == [
        "0 BEGUN",
        "0 SENT 1 #1",
        "1000 DONE 1 #1",
        "1000 SENT 2 #1",
        "2000 DONE 2 #1",
        "2000 ENDED",
    ]
    assert [event.text for event in history(story.saga)] == [
        "begun",
        "ReserveInventory sent to inventory",
        "ReserveInventory done after 1000 ms",
        "ChargePayment sent to payment",
        "ChargePayment done after 1000 ms",
        "ended, COMPLETED",
    ]


def test_a_saga_that_fails_at_once_and_is_undone_has_no_journal_either() -> None:
    story = given(RESERVE, CHARGE).when("ReserveInventory_ok", 1)
    story.when("ChargePayment_failed", 2, error="insufficient funds", process="pay-1")
    story.when("ReleaseReservation_ok", 1, process="inv-2")
    assert story.saga.journal is None
    assert told(story.saga)[-4:] == ["2000 FAILED 2 #1", "2000 UNDO_SENT 1 #1", "3000 UNDONE 1 #1", "3000 ENDED"]
    failed, _, undone, _ = history(story.saga)[-4:]
    assert (failed.process, failed.error_value) == ("pay-1", "insufficient funds")
    assert failed.text == "ChargePayment failed after 1000 ms by pay-1: insufficient funds"
    assert (undone.command, undone.process) == ("ReleaseReservation", "inv-2")


def test_each_attempt_that_failed_is_told_with_its_error_its_process_and_its_times() -> None:
    story = given(replace(RESERVE, retry_failed=True, timeout_ms=500))
    story.when_due().when_due()  # the first attempt is not answered
    story.when("ReserveInventory_failed", 1, error="busy", attempt=2, process="inv-1").when_due()
    story.when("ReserveInventory_ok", 1, attempt=3, process="inv-2")
    events = history(story.saga)
    assert [event.kind for event in events] == [
        "BEGUN",
        *["SENT", "NOT_ANSWERED"],
        *["SENT", "FAILED"],
        "SENT",
        "DONE",
        "ENDED",
    ]
    first, second, last = events[2], events[4], events[6]
    assert (first.at_ms, first.attempt, first.process) == (BEGUN_MS + 500, 1, None)
    assert first.text == "ReserveInventory not answered; to be sent again in 1000 ms: no answer within 500 ms"
    assert (second.attempt, second.process, second.error_value) == (2, "inv-1", "busy")
    assert second.text == "ReserveInventory failed by inv-1; to be sent again in 2000 ms: busy"
    assert second.again_ms == events[5].at_ms
    assert (last.process, last.text) == ("inv-2", "ReserveInventory done after 1000 ms by inv-2")


def test_an_attempt_that_fails_without_an_error_is_told_like_any_other() -> None:
    story = given(replace(RESERVE, retry_failed=True)).when("ReserveInventory_failed", 1, process="inv-1").when_due()
    assert [note.what for note in notes(story.saga.journal)] == ["attempt"]
    assert told(story.saga) == ["0 BEGUN", "0 SENT 1 #1", "1000 FAILED 1 #1", "2000 SENT 1 #2"]


def test_an_error_that_comes_again_is_told_once_in_a_row() -> None:
    story = given(replace(RESERVE, retry_failed=True, attempts=9))
    for attempt, error in enumerate(["busy", "busy", "away", "busy"], 1):
        story.when("ReserveInventory_failed", 1, error=error, attempt=attempt, process="inv-1").when_due()
    failed = [event for event in history(story.saga) if event.kind is HistoryKind.FAILED]
    assert [event.text.rpartition(": ")[2] for event in failed] == ["busy", "the same error", "away", "busy"]
    assert [event.error_value for event in failed] == ["busy", "busy", "away", "busy"]


def test_an_attempt_of_which_nobody_knows_what_it_did_names_its_process_before() -> None:
    story = given(replace(RESERVE, attempts=2))
    story.when("ReserveInventory_failed", 1, error="reset", process="inv-1", unknown=True)
    text = "ReserveInventory failed by inv-1, and may be done all the same; to be sent again in 1000 ms: reset"
    assert history(story.saga)[-1].text == text


BY_ADA = Pause(service="inventory", reason="they move", actor="ada")


def by(actor: str | None, reason: str, at_ms: int, command: str | None = None) -> Resume:
    """Somebody has resumed the service, so many milliseconds after the saga began."""
    return Resume(service="inventory", command=command, reason=reason, actor=actor, at_ms=BEGUN_MS + at_ms)


def test_a_step_that_is_held_says_who_paused_what_and_who_resumed_it() -> None:
    story = given(RESERVE, CHARGE, paused=frozenset({"inventory"}), pauses=(BY_ADA,))
    story.when_resumed(by("bob", "they have moved", 600)).when("ReserveInventory_ok", 1)
    assert told(story.saga) == [
        "0 BEGUN", "0 HELD 1", "1000 RESUMED 1", "1000 SENT 1 #1", "2000 DONE 1 #1", "2000 SENT 2 #1"
    ]  # fmt: skip
    held, resumed = history(story.saga)[1:3]
    assert held.text == "ReserveInventory held: service inventory is paused by ada: they move"
    assert (held.actor, held.reason) == ("ada", "they move")
    assert resumed.text == "ReserveInventory goes on: service inventory was resumed by bob: they have moved"
    assert (resumed.actor, resumed.reason, resumed.command) == ("bob", "they have moved", "ReserveInventory")


@pytest.mark.parametrize(
    ("resumes", "text"),
    [
        ((), "it is no longer paused"),  # its worker has not heard of it, or may not
        ((by(None, "", 500),), "service inventory was resumed"),
        ((by("bob", "old", -9_000_000),), "it is no longer paused"),  # of another pause, before the saga began
        ((by("bob", "x", -4000),), "service inventory was resumed by bob: x"),  # its worker had not heard yet
        ((Resume(service="payment", actor="bob", at_ms=BEGUN_MS + 5),), "it is no longer paused"),
        (
            (by("bob", "b", 900), by("ann", "a", 800, "ReserveInventory"), by("eve", "e", 850, "Other")),
            "ReserveInventory of service inventory was resumed by ann: a and service inventory was resumed by bob: b",
        ),
    ],
)
def test_a_step_that_goes_on_says_what_is_known_of_the_end_of_its_pause(resumes: tuple[Resume, ...], text: str) -> None:
    story = given(RESERVE, paused=frozenset({"inventory"}), pauses=(BY_ADA,)).when_resumed(*resumes)
    assert history(story.saga)[2].text == f"ReserveInventory goes on: {text}"


def test_a_worker_that_comes_late_says_how_long_ago_it_was_resumed() -> None:
    story = given(RESERVE, paused=frozenset({"inventory"}), pauses=(BY_ADA,))
    story.resumes = (by("bob", "moved", 1000),)
    story.when_paused().when_due(after_ms=3_601_000)
    assert told(story.saga)[1:] == ["0 HELD 1", "3601000 RESUMED 1", "3601000 SENT 1 #1"]
    assert history(story.saga)[2].text.endswith("service inventory was resumed 60 m before by bob: moved")


def test_a_held_step_that_is_given_up_or_cut_off_was_not_resumed() -> None:
    paused = frozenset({"inventory"})
    cancelled = given(RESERVE, paused=paused, pauses=(BY_ADA,)).when_asked(Verb.CANCEL, "no more")
    assert [event.kind for event in history(cancelled.saga)] == ["BEGUN", "HELD", "ASKED", "FAILED", "ENDED"]
    late = given(RESERVE, paused=paused, pauses=(BY_ADA,), deadline_ms=5000).when_due(after_ms=5000)
    assert "RESUMED" not in [event.kind for event in history(late.saga)]


def test_what_the_journal_keeps_of_a_pause_is_bounded() -> None:
    story = given(RESERVE, paused=frozenset({"inventory"}), pauses=(replace(BY_ADA, reason="x" * 500),))
    story.when_resumed(by("bob", "y" * 500, 0))
    held, resumed = history(story.saga)[1:3]
    assert held.text.endswith(f"by ada: {'x' * 300}…")
    assert resumed.text.endswith(f"by bob: {'y' * 300}…")


def test_what_a_bulk_asked_names_the_bulk() -> None:
    story = given(RESERVE).when_asked(Verb.CANCEL, "never mind", "bulk-0123456789ab-0")
    [asked] = [event for event in history(story.saga) if event.kind == "ASKED"]
    assert (asked.text, asked.bulk) == ("cancel, bulk 0123456789ab: never mind", "0123456789ab")


def test_a_step_is_held_after_its_command_was_done_and_between_attempts() -> None:
    story = given(RESERVE, replace(CHARGE, attempts=2)).when_paused("payment").when("ReserveInventory_ok", 1)
    story.when_due(after_ms=1000).when_resumed().when_paused("payment", "inventory")
    story.when("ChargePayment_failed", 2, error="reset", unknown=True).when_due().when_due(after_ms=1000)
    assert told(story.saga)[-6:] == [
        "1000 DONE 1 #1",
        "1000 HELD 2",
        "3000 RESUMED 2",
        "3000 SENT 2 #1",
        "4000 UNKNOWN 2 #1",
        "5000 HELD 2",
    ]


def test_an_undo_that_is_held_says_so() -> None:
    story = given(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when_paused("inventory")
    story.when("ChargePayment_failed", 2)
    assert told(story.saga)[-1] == "2000 HELD 1"
    assert history(story.saga)[-1].text == "ReleaseReservation held: it is paused"


def test_parked_and_how_it_went_on() -> None:
    story = given(replace(RESERVE, kind=StepKind.RETRIABLE, attempts=1))
    story.when("ReserveInventory_failed", 1, error="closed").when_asked(Verb.RETRY, "they are back")
    story.when("ReserveInventory_failed", 1, error="closed again", attempt=2).when_asked(Verb.SKIP, "by hand", "op-2")
    assert told(story.saga) == [
        "0 BEGUN",
        "0 SENT 1 #1",
        "1000 FAILED 1 #1",
        "1000 PARKED 1",
        "2000 ASKED",
        "2000 SENT 1 #2",
        "3000 FAILED 1 #2",
        "3000 PARKED 1",
        "4000 ASKED",
        "4000 ENDED",
    ]
    assert history(story.saga)[3].text == "parked: ReserveInventory of step 1 failed: closed"
    assert history(story.saga)[4].text == "retry: they are back"


def test_at_the_same_time_a_step_is_sent_before_what_its_failure_undoes() -> None:
    story = given(RESERVE, CHARGE)
    story.when("ReserveInventory_ok", 1, after_ms=0).when("ChargePayment_failed", 2, after_ms=0)
    assert told(story.saga) == [
        "0 BEGUN",
        "0 SENT 1 #1",
        "0 DONE 1 #1",
        "0 SENT 2 #1",
        "0 FAILED 2 #1",
        "0 UNDO_SENT 1 #1",
    ]


def test_attempts_to_undo() -> None:
    story = given(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    story.when("ReleaseReservation_failed", 1, error="closed", process="inv-1", unknown=True).when_due().when_due()
    story.when_due().when("ReleaseReservation_ok", 1, attempt=3)
    assert [event.kind for event in history(story.saga)][4:] == [
        "FAILED",
        "UNDO_SENT",
        "UNDO_UNKNOWN",
        "UNDO_SENT",
        "UNDO_NOT_ANSWERED",
        "UNDO_SENT",
        "UNDONE",
        "ENDED",
    ]


def test_a_step_that_is_given_up_and_was_done_after_all() -> None:
    story = given(replace(RESERVE, attempts=1)).when_due().when("ReserveInventory_ok", 1, process="inv-1")
    events = history(story.saga)
    assert [event.kind for event in events] == ["BEGUN", "SENT", "UNKNOWN", "UNDO_SENT", "LATE"]
    assert events[4].text == "ReserveInventory was done after all by inv-1"
    assert events[2].process is None


def test_an_answer_to_an_earlier_attempt_that_is_the_last_word() -> None:
    story = given(RESERVE).when_due().when_due().when("ReserveInventory_ok", 1, attempt=1)
    assert [event.kind for event in history(story.saga)] == [
        *["BEGUN", "SENT", "NOT_ANSWERED", "SENT", "LATE", "DONE", "ENDED"],
    ]
    assert history(story.saga)[4].text == "the answer to an earlier attempt came, attempt 1"


def test_a_late_answer_while_the_step_is_undone_is_told_where_it_came() -> None:
    story = given(replace(RESERVE, timeout_ms=500, attempts=1)).when_due()  # given up, and undone
    story.when("ReleaseReservation_failed", 1, error="busy", attempt=1).when_due()
    story.when("ReserveInventory_ok", 1, attempt=1)
    assert [one.split()[1] for one in told(story.saga)] == [
        *("BEGUN", "SENT", "UNKNOWN"),
        *("UNDO_SENT", "UNDO_FAILED", "UNDO_SENT", "LATE"),
    ]


def test_replies_that_were_ignored() -> None:
    story = given(RESERVE).when("ReserveInventory_ok", 1).when("ReserveInventory_ok", 1, attempt=1, process="inv-7")
    assert story.saga.duplicates == 1
    (event,) = [event for event in history(story.saga) if event.kind is HistoryKind.IGNORED]
    assert event.text == "the reply ReserveInventory_ok, attempt 1 by inv-7 was ignored: it came too late"


def test_a_cancel_and_a_deadline() -> None:
    story = given(RESERVE, deadline_ms=5000).when_due(6000)
    assert told(story.saga)[2:] == ["6000 DEADLINE"]
    assert history(story.saga)[2].text == "The deadline, 5000 ms after the begin, has passed"
    story = given(RESERVE).when_asked(Verb.CANCEL, "as they wish")
    assert [event.kind for event in history(story.saga)] == ["BEGUN", "SENT", "ASKED"]


def test_a_clock_that_was_set_is_not_taken_for_a_deadline() -> None:
    story = given(RESERVE, deadline_ms=5000)
    story.watch = Watch(since_ms=1, jumps=(Jump(until_ms=story.now_ms, by_ms=9000),))
    story.when_due(9000)
    assert story.saga.set_forward_ms
    assert HistoryKind.DEADLINE not in [event.kind for event in history(story.saga)]


# --- graphs


def test_a_graph_with_waits_and_a_bypassed_step() -> None:
    story = given_graph(
        do("a"),
        do("b", when={"eq": [1, 2]}),
        {"wait": "go", "timeout_ms": 1000},
        {"wait_ms": 50},
        journal_bytes=JOURNAL_BYTES,
    )
    story.when("A_ok", 1).when_signalled("go", b"7", actor="ann").when_due()
    assert told(story.saga) == [
        "0 BEGUN",
        "0 SENT 1 #1",
        "1000 DONE 1 #1",
        "1000 BYPASSED 2",
        "1000 AWAITED 3",
        "2000 ASKED",
        "2000 DONE 3",
        "2000 AWAITED 4",
        "2050 DONE 4",
        "2050 ENDED",
    ]
    assert [event.text for event in history(story.saga)][4:9] == [
        "waits for the signal go",
        "signal go by ann",
        "the signal go came",
        "waits for its pause",
        "its pause is over",
    ]


def test_why_a_step_could_not_be_sent_stays_known_after_a_retry() -> None:
    story = given_graph(
        do("p", kind="pivot"),
        do("a", kind="retriable", params={"$ref": "/input/x"}),
        input={},
        journal_bytes=JOURNAL_BYTES,
    ).when("P_ok", 1)
    assert [note.what for note in notes(story.saga.journal)] == ["parked"]
    story.when_asked(Verb.RETRY)
    assert [event.kind for event in history(story.saga)][3:] == ["PARKED", "ASKED", "PARKED"]


# --- what is kept


def test_a_journal_stays_within_its_bytes_and_says_how_many_events_it_left_out() -> None:
    story = given(replace(RESERVE, attempts=200, retry_failed=True))
    for attempt in range(1, 101):
        story.when("ReserveInventory_failed", 1, error=f"no {attempt}", attempt=attempt, process="p" * 30).when_due()
        assert len(story.saga.journal or b"") <= JOURNAL_BYTES
    assert len(story.saga.journal or b"") > JOURNAL_BYTES - 300
    noted = notes(story.saga.journal)
    kept = [note.attempt for note in noted if note.what == "attempt"]
    (left_out,) = [note for note in noted if note.what == "left out"]
    assert (kept[0], kept[-1]) == (1, 100)
    assert len(kept) + left_out.count == 100
    events = history(story.saga)
    assert [event.text for event in events if event.kind is HistoryKind.LEFT_OUT] == [
        f"{left_out.count} events are left out, the last of them at this time"
    ]
    times = [event.at_ms for event in events if event.at_ms is not None]
    assert times == sorted(times)


def test_of_a_long_error_the_journal_keeps_the_beginning() -> None:
    story = given(replace(RESERVE, retry_failed=True)).when("ReserveInventory_failed", 1, error="x" * 5000)
    (event,) = [event for event in history(story.saga) if event.kind is HistoryKind.FAILED]
    assert event.error_value == "x" * 300 + "…"
    assert story.saga.steps[0].error_value == "x" * 5000


@pytest.mark.parametrize("most", [1, 64, 200])
def test_a_journal_of_few_bytes_holds_little_and_harms_nothing(most: int) -> None:
    story = given_saga(replace(RESERVE, retry_failed=True), journal_bytes=most)
    for attempt in (1, 2):
        story.when("ReserveInventory_failed", 1, error="busy", attempt=attempt).when_due()
    assert len(story.saga.journal or b"") <= max(most, 64)
    assert history(story.saga)[-1].kind is HistoryKind.SENT


def test_without_a_journal_the_history_says_what_it_does_not_know() -> None:
    story = given_saga(replace(RESERVE, retry_failed=True))
    story.when("ReserveInventory_failed", 1, error="busy", process="inv-1").when_due()
    story.when("ReserveInventory_ok", 1, process="inv-1")
    assert (story.saga.journal, story.saga.steps[0].done_by) == (None, None)
    assert [event.text for event in history(story.saga)][1] == "1 earlier attempt is not kept in the history"


def test_a_hash_keeps_the_journal_and_the_processes_and_an_erasure_takes_it() -> None:
    story = given(replace(RESERVE, retry_failed=True), CHARGE)
    story.when("ReserveInventory_failed", 1, error="s3cret", process="inv-1").when_due()
    story.when("ReserveInventory_ok", 1, attempt=2, process="inv-2")
    story.when("ChargePayment_failed", 2, process="pay-1").when("ReleaseReservation_ok", 1, process="inv-3")
    fields = written(changed_fields(None, story.saga))
    assert (fields[b"step1.done_by"], fields[b"step1.compensation_done_by"]) == (b"inv-2", b"inv-3")
    found = read("saga42", fields)
    assert isinstance(found, SagaState)
    assert history(found) == history(story.saga)
    bare = without_data(story.saga)
    assert bare.journal is None
    assert written(changed_fields(story.saga, bare))[b"journal"] == b""


@pytest.mark.parametrize(
    "journal", [b"{", b"\xff\n[]", b'{"what":"dance","at_ms":1}', b"\n" * 50, b'{"what":"attempt"}']
)
def test_a_damaged_journal_is_left_aside(journal: bytes) -> None:
    story = given(RESERVE).when("ReserveInventory_ok", 1)
    damaged = replace(story.saga, journal=journal)
    assert history(damaged) == history(story.saga)
    assert isinstance(read("saga42", written(changed_fields(None, damaged))), SagaState)
