"""Observers are told, and harm nothing; log records say to which call of a handler they belong."""

import asyncio
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.core.commands import Command
from sagastream.service.handlers import call, context_of
from sagastream.telemetry import (
    POINTS,
    HandlerFields,
    Log,
    Observer,
    Observers,
    Outcome,
    SharedLog,
    guarded,
    runs,
)
from support.observers import Notes, called_with


def a_command(step: int = 1) -> Command:
    return Command(service="shop", type="Charge", saga_id="o-1", step=step, attempt=2, params=b"{}", begun_ms=0)


class Broken(Observer):
    """Raises at one point."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    def comparison_lost(self, *, saga_id: str) -> None:
        self.calls += 1
        raise self.error


# --- observers


def test_every_method_of_an_observer_does_nothing_takes_keywords_only_and_says_what_they_are() -> None:
    assert {"turn_committed", "handler_finished", "outage_ended"} <= set(POINTS)
    for point in POINTS:
        method = getattr(Observer, point)
        first, *others = signature(method).parameters.values()
        assert first.name == "self"
        assert all(one.kind is one.KEYWORD_ONLY and one.annotation is not one.empty for one in others), point
        assert method.__doc__, point
        assert getattr(Observer(), point)(**{one.name: None for one in others}) is None


@pytest.mark.parametrize("point", POINTS)
def test_several_observers_are_all_told_in_turn(point: str) -> None:
    first, second = Notes(), Notes()
    getattr(Observers(first, second), point)(one=1, two=2)
    assert first.told == second.told == [(point, {"one": 1, "two": 2})]


@pytest.mark.parametrize("error", [ValueError("no\nway"), SystemExit(3), asyncio.CancelledError("x")])
def test_one_that_raises_is_logged_once_and_left_out(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    broken, notes = Broken(error), Notes()
    observers = Observers(broken, notes)
    for _ in range(3):
        observers.comparison_lost(saga_id="o-1")
    observers.stream_stuck(stream="s")
    assert broken.calls == 1
    assert notes.points == ["comparison_lost"] * 3 + ["stream_stuck"]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("sagastream.telemetry", "ERROR")
    assert record.getMessage().startswith(f"Broken.comparison_lost raised {type(error).__name__}: ")
    assert record.getMessage().isprintable()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_one_that_raises_in_many_threads_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    at_once = threading.Barrier(8)

    class Meeting(Observer):
        def comparison_lost(self, *, saga_id: str) -> None:
            at_once.wait(60)
            raise ValueError(saga_id)

    observers = Observers(Meeting())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: observers.comparison_lost(saga_id=str(n)), range(8)))
    assert len(caplog.records) == 1


def test_it_is_known_which_points_somebody_watches() -> None:
    observers = Observers(Broken(ValueError("no")), Observer())
    assert [point for point in POINTS if observers.watches(point)] == ["comparison_lost"]
    assert observers.watches("saga_moved", "comparison_lost")
    assert Observers(Observers(Notes())).watches("saga_moved")
    assert not Observers(Observer()).watches(*POINTS)


def test_who_is_left_out_watches_no_more(caplog: pytest.LogCaptureFixture) -> None:
    observers = Observers(Broken(ValueError("no")))
    observers.comparison_lost(saga_id="o-1")
    assert not observers.watches(*POINTS)


def test_a_method_that_lacks_an_argument_harms_nothing_either(caplog: pytest.LogCaptureFixture) -> None:
    class Outdated(Observer):
        def stream_stuck(self) -> None:  # type: ignore[override]
            raise AssertionError("it cannot be called")

    Observers(Outdated()).stream_stuck(stream="s")
    assert "Outdated.stream_stuck raised TypeError" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit()])
def test_what_is_to_end_the_process_does(error: BaseException) -> None:
    with pytest.raises(type(error)):
        Observers(Broken(error)).comparison_lost(saga_id="o-1")


@pytest.mark.parametrize("given", [Notes, object(), "me", 1])
def test_what_is_no_observer_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="an instance of a subclass of Observer"):
        guarded(given)


def test_nobody_is_nobody_and_several_stay_as_they_are() -> None:
    assert guarded(None) is None
    several = Observers(Notes())
    assert guarded(several) is several


def test_a_process_is_told_of_when_it_starts_and_however_it_stops() -> None:
    notes = Notes()
    with runs("worker", "worker 1", notes):
        assert notes.told == [("process_started", {"kind": "worker", "name": "worker 1"})]
    assert notes.told[1:] == [("process_stopped", {"kind": "worker", "name": "worker 1", "error": None})]
    error = ValueError("no")
    with pytest.raises(ValueError, match="no"), runs("worker", "worker 1", notes):
        raise error
    assert notes.told[-1] == ("process_stopped", {"kind": "worker", "name": "worker 1", "error": error})
    with runs("worker", "worker 1", None):
        pass


def test_what_all_share_in_a_process_speaks_for_the_one_that_runs_there(caplog: pytest.LogCaptureFixture) -> None:
    log = SharedLog("broker", "broker")
    log.warning("none")
    with runs("worker", "worker 1", None):
        log.warning("one")
        with runs("service", "service till 1", Notes()):
            log.warning("two", extra={"node": "n1:6379"})
    with pytest.raises(ValueError, match="no"), runs("worker", "worker 1", None):
        raise ValueError("no")
    log.warning("none")
    sources = [(record.getMessage(), record.__dict__["source"]) for record in caplog.records]
    assert sources == [("none", "broker"), ("one", "worker 1"), ("two", "broker"), ("none", "broker")]
    assert caplog.records[2].__dict__["node"] == "n1:6379"


def test_outcomes_are_words() -> None:
    assert list(Outcome) == ["ok", "rejected", "raised", "away"]


# --- log records


def fields(record: logging.LogRecord) -> list[object]:
    assert HandlerFields().filter(record)
    return [record.__dict__[name] for name in ("saga_id", "service", "step", "attempt")]


def a_record(**extra: object) -> logging.LogRecord:
    return logging.getLogger("shop").makeRecord("shop", logging.INFO, "f.py", 1, "text", (), None, extra=extra)


def test_a_record_of_a_handler_says_which_call_it_belongs_to() -> None:
    assert fields(a_record()) == [None] * 4
    with called_with(a_command(1)):
        assert fields(a_record()) == ["o-1", "shop", 1, 2]
        with called_with(a_command(2)):
            assert fields(a_record()) == ["o-1", "shop", 2, 2]
        assert fields(a_record()) == ["o-1", "shop", 1, 2]
    assert fields(a_record()) == [None] * 4


def test_a_record_of_a_compensation_says_that_it_is_one() -> None:
    def compensating(**extra: object) -> object:
        record = a_record(**extra)
        assert HandlerFields().filter(record)
        return record.__dict__["compensating"]

    assert compensating() is None
    with called_with(a_command()):
        assert compensating() is None
    with called_with(replace(a_command(), compensating=True)):
        assert compensating() is True
        assert compensating(compensating="so") == "so"


def test_the_call_ends_with_the_handler_that_raises() -> None:
    with pytest.raises(SystemExit):
        call(lambda _params, _context: sys.exit(1), a_command(), context_of(a_command()))
    assert fields(a_record()) == [None] * 4


def test_what_a_record_says_itself_holds() -> None:
    with called_with(a_command()):
        assert fields(a_record(step="charging", saga_id=None)) == [None, "shop", "charging", 2]


def test_each_thread_and_each_task_has_its_own_call() -> None:
    together = threading.Barrier(4)

    def in_thread(step: int) -> list[object]:
        with called_with(a_command(step)):
            together.wait(60)
            return fields(a_record())

    async def in_task(step: int) -> list[list[object]]:
        with called_with(a_command(step)):
            await asyncio.sleep(0)
            return [fields(a_record()), await asyncio.to_thread(lambda: fields(a_record()))]

    async def tasks() -> list[list[list[object]]]:
        return await asyncio.gather(*map(in_task, range(1, 5)))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(in_thread, range(1, 5))) == [["o-1", "shop", n, 2] for n in range(1, 5)]
    assert asyncio.run(tasks()) == [[["o-1", "shop", n, 2]] * 2 for n in range(1, 5)]


def test_a_traceback_of_ours_is_harmless_whoever_formats_it(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("\x1b[2J\ud800")
    Log("worker", "worker 1").error("it broke", exc_info=error)
    (record,) = caplog.records
    assert record.exc_info == (ValueError, error, None)
    assert logging.Formatter().format(record) == "it broke\nValueError: \\x1b[2J\\ud800"


def test_a_record_of_ours_names_its_process_and_is_one_harmless_line(caplog: pytest.LogCaptureFixture) -> None:
    Log("worker", "worker 1").warning("a saga\n\x1b[2J of 100%", extra={"saga_id": "o-1"})
    (record,) = caplog.records
    assert (record.name, record.__dict__["source"], record.__dict__["saga_id"]) == (
        "sagastream.worker",
        "worker 1",
        "o-1",
    )
    assert record.getMessage() == "a saga\\n\\x1b[2J of 100%"


def test_a_record_goes_out_where_the_factory_of_the_program_sets_a_field_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.service = "payments"
        return record

    logging.setLogRecordFactory(factory)
    try:
        Log("service", "service till 1").warning("it is late", extra={"service": "till"})
    finally:
        logging.setLogRecordFactory(before)
    (record,) = caplog.records
    assert (record.getMessage(), record.__dict__["service"]) == ("it is late", "payments")
    assert record.funcName == test_a_record_goes_out_where_the_factory_of_the_program_sets_a_field_of_ours.__name__


def test_a_handler_of_the_program_that_raises_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Sink(logging.Handler):
        calls = 0

        def emit(self, record: logging.LogRecord) -> None:
            Sink.calls += 1
            raise RuntimeError("the sink is away")

    sink = Sink()
    logging.getLogger().addHandler(sink)
    try:
        Log("service", "service till 1").error("it is late", exc_info=ValueError("x"))
    finally:
        logging.getLogger().removeHandler(sink)
    assert Sink.calls == 1
