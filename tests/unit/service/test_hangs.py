"""Handlers that run for too long: which are told of, what others see, and when the process is to end."""

import threading
from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.broker.entries import Entry
from sagastream.core.commands import Command
from sagastream.core.service_actions import RUN, Run, Undo
from sagastream.core.service_rules import refusal
from sagastream.service.context import Context
from sagastream.service.declaration import Service
from sagastream.service.delivery import Delivery
from sagastream.service.hangs import Hangs
from sagastream.service.in_flight import Held, InFlight
from sagastream.service.report import ServiceReport
from sagastream.store.running import OLDEST, Busy, LongRun
from support.stores import ONLY
from support.values import a_charge

NOW_S = 1000.0
NOW_MS = 1_700_000_000_000


def charge(params: Any, context: Context) -> None:
    """A handler that does nothing."""


class Process:
    """What one process runs, at a time that the test moves. `hard_timeout_ms`: of its service."""

    def __init__(self, *, slots: int = 1, hard_timeout_ms: int | None = None) -> None:
        service = Service("payment", concurrency=slots, hard_timeout_ms=hard_timeout_ms)
        service.command("Charge", compensation=None)(charge)
        [self._registration] = service.registrations
        self._in_flight = InFlight(slots, 30.0)
        self._begun = 0
        self.now_s = NOW_S
        self.hangs = Hangs(
            self._in_flight,
            slots=slots,
            now_ms=lambda: self.now_ms,
            time_for=lambda _: self.now_ms,
            report=ServiceReport("service payment p-1", None),
        )

    @property
    def now_ms(self) -> int:
        return NOW_MS + round((self.now_s - NOW_S) * 1000)

    def begins(
        self, *, for_s: float | None, todo: Run | Undo = RUN, at: tuple[str, bytes] | None = None, **changes: Any
    ) -> Held:
        """A command begins. `for_s`: how long its answer is waited for. `at`: where its entry stands."""
        self._begun += 1
        not_after_ms = None if for_s is None else self.now_ms + round(for_s * 1000)
        command = replace(a_charge(not_after_ms=not_after_ms), saga_id=f"s{self._begun}", **changes)
        held = self._held(command, todo, at or ("commands", b"%d-0" % self._begun))
        self._in_flight.add([held])
        assert self._in_flight.begin(self.now_s) is held
        return held

    def ends(self, held: Held) -> None:
        self._in_flight.end(held)

    def after(self, seconds: float) -> Hangs:
        """So much later it was looked at what runs."""
        self.now_s += seconds
        self.hangs.look(self.now_s)
        return self.hangs

    def _held(self, command: Command, todo: Run | Undo, at: tuple[str, bytes]) -> Held:
        entry = Entry(stream=at[0], id=at[1], fields={})
        return Held(
            delivery=replace(Delivery.of(entry, command, ONLY), todo=todo),
            command=command,
            registration=self._registration,
            record=command.record,
            since_s=self.now_s,
        )


def test_a_handler_is_told_of_once_when_it_is_past_its_deadline(caplog: pytest.LogCaptureFixture) -> None:
    process = Process(slots=2)
    process.begins(for_s=2)
    process.after(2)
    assert caplog.messages == []
    for _ in range(3):
        process.after(1)
    [text] = caplog.messages
    assert text == (
        f"Charge of saga s1, step 2, attempt 3 (handler {__name__}.charge) still runs after 3.0 s, 1.0 s past "
        "its deadline; declare hard_timeout_ms, so that a process whose handler hangs ends and is started again"
    )
    assert caplog.records[0].__dict__["saga_id"] == "s1"


def test_two_whose_entries_have_one_id_in_two_partitions_are_each_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    process = Process(slots=3)
    for stream in ("first", "second"):
        process.begins(for_s=2, at=(stream, b"7-0"))
        process.after(0.01)
    for _ in range(4):
        process.after(1)
    told = [text.split(",")[0] for text in caplog.messages if "still runs" in text]
    assert sorted(told) == ["Charge of saga s1", "Charge of saga s2"]


def test_it_is_told_of_again_if_it_was_called_again(caplog: pytest.LogCaptureFixture) -> None:
    process = Process()
    held = process.begins(for_s=2)
    process.after(3)
    process.ends(held)
    process.after(1)
    process.begins(for_s=2)
    process.after(3)
    assert sum("still runs" in text for text in caplog.messages) == 2


@pytest.mark.parametrize("todo", [RUN, Undo(refusal=refusal(a_charge()))], ids=["retriable", "an undo"])
def test_a_handler_without_a_deadline_is_told_of_after_a_minute(
    todo: Run | Undo, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process()
    # What is to be undone has no deadline, whatever its command had.
    process.begins(for_s=None if todo is RUN else 1, todo=todo)
    process.after(59)
    assert caplog.messages == []
    assert not process.after(2).blocked
    [text] = caplog.messages
    assert "still runs after 61.0 s; declare hard_timeout_ms" in text


def test_the_line_of_code_is_told_at_which_it_hangs(caplog: pytest.LogCaptureFixture) -> None:
    process, waits, ends = Process(), threading.Event(), threading.Event()

    def hang() -> None:
        waits.set()
        ends.wait()  # here

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        waits.wait()
        process.begins(for_s=1).thread = thread.ident or 0
        process.after(2)
    finally:
        ends.set()
        thread.join()
    line = hang.__code__.co_firstlineno
    assert any(f"now at {__file__}:{line + place}" in caplog.text for place in (1, 2))


def test_the_process_is_blocked_when_each_slot_is_taken_by_what_should_have_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    process = Process(slots=2)
    first = process.begins(for_s=2)
    assert not process.after(3).blocked
    process.begins(for_s=2)
    assert not process.after(1).blocked
    assert process.after(2).blocked
    process.after(1)
    told = [text for text in caplog.messages if text.startswith("handlers:")]
    assert told == ["handlers: all 2 should have ended by now; this process does nothing more: start it again"]
    process.ends(first)
    assert not process.after(1).blocked


def test_what_others_see_is_what_runs_for_a_second_or_more() -> None:
    process = Process(slots=3)
    assert process.hangs.busy(process.now_s) is None
    process.begins(for_s=2)
    process.now_s += 0.5
    process.begins(for_s=None)
    assert process.hangs.busy(process.now_s) is None
    process.now_s += 0.6
    first = LongRun(
        saga_id="s1", step=2, command="Charge", attempt=3, since_ms=NOW_MS, not_after_ms=NOW_MS + 2000, overdue=False
    )
    assert process.hangs.busy(process.now_s) == Busy(slots=3, long=1, overdue=0, oldest=(first,))
    process.now_s += 1
    busy = process.hangs.busy(process.now_s)
    second = LongRun(saga_id="s2", step=2, command="Charge", attempt=3, since_ms=NOW_MS + 500)
    assert busy == Busy(slots=3, long=2, overdue=1, oldest=(replace(first, overdue=True), second))


def test_of_very_many_others_see_the_oldest_and_the_numbers_of_all() -> None:
    process = Process(slots=50)
    for _ in range(50):
        process.begins(for_s=2)
    process.now_s += 3
    busy = process.hangs.busy(process.now_s)
    assert busy is not None
    assert (busy.long, busy.overdue, len(busy.oldest), busy.hangs) == (50, 50, OLDEST, True)
    assert [one.saga_id for one in busy.oldest] == [f"s{number}" for number in range(1, OLDEST + 1)]


def test_what_runs_for_longer_than_its_hard_timeout_is_found_and_the_rest_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    process = Process(slots=2, hard_timeout_ms=5000)
    hung = process.begins(for_s=60)
    process.now_s += 3
    other = process.begins(for_s=60)
    assert process.after(1.9).expired is None
    assert process.after(0.2).expired is hung
    assert not process.hangs.only_hangs(process.now_s)
    process.ends(other)
    assert process.hangs.only_hangs(process.now_s)
    process.after(10)
    # Its deadline has not passed, so that is not said of it; and the error below says what comes of it.
    [runs] = [text for text in caplog.messages if "still runs" in text]
    assert runs == f"Charge of saga s1, step 2, attempt 3 (handler {__name__}.charge) still runs after 5.1 s"
    [told] = [text for text in caplog.messages if "hard timeout" in text]
    assert told == (
        f"Charge of saga s1, step 2, attempt 3 (handler {__name__}.charge) ran for longer than its hard "
        "timeout of 5 s; the process leaves what it holds to others and ends with exit code 75"
    )
