"""What is written to stderr: the lines that people know, and JSON that any reader accepts."""

import json
import logging
import pickle
import sys
import unicodedata
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core.commands import Command
from sagastream.errors import SettingsError
from sagastream.log_output import JsonLines, TextLines, write_to_stderr
from sagastream.telemetry import Escaped, HandlerFields, Log, about
from support.observers import called_with
from support.values import TRACEPARENT

COMMAND = Command(service="shop", type="Charge", saga_id="o-1", step=2, attempt=3, params=b"{}", begun_ms=0)
UNDO = replace(COMMAND, type="Refund", compensating=True)
#: Characters that act on a terminal, are invisible, or are half of one.
NASTY = st.text(st.characters() | st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]))


class Nasty:
    """An object whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no\nrepr")


def a_record(message: object, *args: object, error: Any = None, **extra: Any) -> Any:
    name = "shop.till"
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    return logging.getLogger(name).makeRecord(name, logging.INFO, "f.py", 7, message, args, exc_info, extra=extra)


def raised(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


Install = Callable[..., logging.Logger]


@pytest.fixture
def install() -> Iterator[Install]:
    """Let records be written as in a process for which nobody has configured logging. Returns the root logger."""
    root, level = logging.getLogger(), logging.getLogger().level

    def installed(**environment: str) -> logging.Logger:
        root.handlers[:] = []  # pytest's own handler raises if a log call is wrong
        write_to_stderr(environment)
        return root

    yield installed
    root.handlers[:] = []
    root.setLevel(level)


def written(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


# --- text


def test_a_line_of_ours_is_the_name_of_the_process_and_the_text(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install()
    Log("worker", "worker \x1b[1m").warning("lost\nthe broker\u202e")
    assert capsys.readouterr() == ("", "worker \\x1b[1m: lost\\nthe broker\\u202e\n")


def test_a_line_of_ours_stays_as_it_is_while_a_handler_is_called(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install()
    with called_with(COMMAND):
        Log("broker", "service shop").warning("the broker is back", extra=about(COMMAND))
    assert written(capsys) == ["service shop: the broker is back"]


def test_a_line_of_a_handler_says_which_call_it_is_from(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install()
    log = logging.getLogger("shop.till")
    log.info("%s comes", "somebody")
    with called_with(COMMAND):
        log.info("took %d\n\x1b[2J", 5)
    log.info("and goes")
    assert written(capsys) == [
        "shop.till: somebody comes",
        "shop.till: took 5\\n\\x1b[2J [saga o-1, step 2, attempt 3]",
        "shop.till: and goes",
    ]


def test_a_line_of_a_compensation_says_that_it_is_one(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install()
    with called_with(UNDO):
        logging.getLogger("shop.till").info("gave back")
    assert written(capsys) == ["shop.till: gave back [saga o-1, step 2, compensation, attempt 3]"]


def test_a_line_says_the_trace_that_its_saga_belongs_to(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install()
    traced = replace(UNDO, traceparent=TRACEPARENT)
    with called_with(traced):
        logging.getLogger("shop.till").info("gave back")
        Log("broker", "service shop").warning("raised", extra=about(traced))
        Log("broker", "service shop").warning("the broker is back")
    trace = "trace 4bf92f3577b34da6a3ce929d0e0e4736"
    assert written(capsys) == [
        f"shop.till: gave back [saga o-1, step 2, compensation, attempt 3, {trace}]",
        f"service shop: raised [{trace}]",
        f"service shop: the broker is back [{trace}]",
    ]


def test_a_json_line_has_the_trace_as_a_member_and_none_if_there_is_none() -> None:
    assert "trace_id" not in orjson.loads(JsonLines().format(a_record("x", **about(COMMAND))))
    traced = about(replace(COMMAND, traceparent=TRACEPARENT))
    assert orjson.loads(JsonLines().format(a_record("x", **traced)))["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_line_of_others_shows_its_level_if_it_is_a_warning_or_more(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(SAGASTREAM_LOG_LEVEL="debug")
    logging.addLevelName(35, "LO\x07UD")
    with called_with(COMMAND):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, 35, logging.ERROR, logging.CRITICAL):
            logging.getLogger("shop.own").log(level, "watch out")
    call = "[saga o-1, step 2, attempt 3]"
    assert written(capsys) == [
        f"shop.own: watch out {call}",
        f"shop.own: watch out {call}",
        f"shop.own: WARNING: watch out {call}",
        f"shop.own: LO\\x07UD: watch out {call}",
        f"shop.own: ERROR: watch out {call}",
        f"shop.own: CRITICAL: watch out {call}",
    ]
    logging.getLogger("sagastreams").warning("of others too")
    assert written(capsys) == ["sagastreams: WARNING: of others too"]


def test_each_line_of_a_traceback_names_who_writes_it(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install()
    Log("service", "service shop").error("it broke", exc_info=raised("a\x07\nb"))
    first, *traceback = written(capsys)
    assert first == "service shop: it broke"
    assert traceback[0] == "service shop: Traceback (most recent call last):"
    assert traceback[-2:] == ["service shop: ValueError: a\\x07", "service shop: b"]


@given(text=NASTY, source=NASTY, extra=NASTY)
def test_nothing_in_a_line_acts_on_a_terminal(text: str, source: str, extra: str) -> None:
    for formatter in (TextLines(), JsonLines()):
        line = formatter.format(a_record(text, source=source, saga_id=extra, more=extra, **{f"x{extra}": extra}))
        assert [c for c in line if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")] == []
        assert len(line.splitlines()) <= 1


# --- JSON


def test_a_record_is_one_json_object() -> None:
    record = a_record("took %d", 5, amount=5, items=["a", 1.5], **about(COMMAND))
    told = orjson.loads(JsonLines().format(record))
    when = told.pop("time")
    assert told == {
        "level": "info",
        "logger": "shop.till",
        "message": "took 5",
        "amount": 5,
        "items": ["a", 1.5],
        "saga_id": "o-1",
        "service": "shop",
        "step": 2,
        "attempt": 3,
    }
    assert when.endswith("Z")
    assert datetime.fromisoformat(when).utcoffset() == timedelta(0)
    assert abs(datetime.fromisoformat(when).timestamp() - record.created) <= 0.001


def test_a_record_of_a_compensation_has_a_member_for_it() -> None:
    record = a_record("gave back")
    with called_with(UNDO):
        assert HandlerFields().filter(record)
    assert orjson.loads(JsonLines().format(record))["compensating"] is True


def test_what_is_not_known_is_not_there() -> None:
    record = a_record("plain")
    assert HandlerFields().filter(record)
    assert set(json.loads(JsonLines().format(record))) == {"time", "level", "logger", "message"}


def test_a_traceback_is_a_member() -> None:
    told = json.loads(JsonLines().format(a_record("it broke", error=raised("a\nb"))))
    assert told["message"] == "it broke"
    assert told["exception"].startswith("Traceback (most recent call last):\n")
    assert told["exception"].endswith("\nValueError: a\nb")


def test_what_we_say_is_escaped_once(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(SAGASTREAM_LOG_FORMAT="json")
    text = "lost\n\x1b[2J\u202e\u200b 100% \\n"
    Log("service", "service shop").error(text, exc_info=raised("a\x07\\n"))
    (line,) = written(capsys)
    assert line.isprintable()
    assert line.isascii()
    told = json.loads(line)
    assert told["message"] == text
    assert told["exception"].endswith("\nValueError: a\x07\\n")


def test_a_record_that_a_queue_hands_over_is_written_all_the_same() -> None:
    record = a_record(Escaped("a\nb"))
    assert json.loads(JsonLines().format(pickle.loads(pickle.dumps(record))))["message"] == "a\nb"
    prepared = QueueHandler(SimpleQueue()).prepare(record)
    assert TextLines().format(prepared) == r"shop.till: a\nb"


def test_what_a_user_gives_takes_no_place_of_ours() -> None:
    told = json.loads(JsonLines().format(a_record("mine", level="x", time="y", logger="z", exception="w")))
    assert (told["level"], told["logger"], told["message"], told["exception"]) == ("info", "shop.till", "mine", "w")
    assert told["time"].endswith("Z")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), None),
        ({1, 2}, "{1, 2}"),
        (10**30, str(10**30)),
        ("\ud800", "\\ud800"),
        (["\ud800"], "['\\ud800']"),
        (Nasty(), "RuntimeError: no\\nrepr"),
    ],
    ids=["nan", "set", "huge", "half", "half in a list", "nasty"],
)
def test_any_value_comes_out_as_strict_json(value: object, shown: object) -> None:
    assert orjson.loads(JsonLines().format(a_record("x", value=value)))["value"] == shown


@given(st.recursive(st.none() | st.booleans() | st.floats() | NASTY, st.lists, max_leaves=5), NASTY)
def test_every_record_is_read_by_a_strict_reader(value: object, text: str) -> None:
    told = orjson.loads(JsonLines().format(a_record(text, value=value, **{f"x{text}": 1})))
    if text.isprintable():
        assert told["message"] == text


# --- whatever comes


@pytest.mark.parametrize(
    ("message", "args"), [("%d eggs", ("many",)), (Nasty(), ()), ("%s", (Nasty(),)), ("%(a)s", ({},))]
)
@pytest.mark.parametrize("written_as", ["text", "json"])
def test_a_wrong_log_call_costs_its_own_line_only(
    install: Install, capsys: pytest.CaptureFixture[str], message: object, args: tuple[object, ...], written_as: str
) -> None:
    root = install(SAGASTREAM_LOG_FORMAT=written_as)
    root.handle(a_record(message, *args))
    root.handle(a_record("and on"))
    first, second = written(capsys)
    assert "this log call cannot be written" in first
    assert "and on" in second


def test_nobody_has_to_read_it(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    for gone in (None, closed()):
        monkeypatch.setattr(sys, "stderr", gone)
        Log("worker", "worker 1").info("started")


def closed() -> Any:
    stream = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115, PTH123 - closed on purpose
    stream.close()
    return stream


# --- settings


@pytest.mark.parametrize(
    ("level", "shown"), [("", "iwe"), ("debug", "diwe"), ("INFO", "iwe"), ("warning", "we"), ("error", "e")]
)
def test_the_level_is_the_least_that_is_written(
    install: Install, capsys: pytest.CaptureFixture[str], level: str, shown: str
) -> None:
    install(SAGASTREAM_LOG_LEVEL=level)
    for log in (logging.getLogger("shop"), Log("worker", "worker 1")):
        log.debug("d")
        log.info("i")
        log.warning("w")
        log.error("e")
    assert [line[-1] for line in written(capsys)] == [*shown, *shown]


def test_it_is_written_once_however_often_it_is_asked_for(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install()
    write_to_stderr({"SAGASTREAM_LOG_FORMAT": "json"})
    logging.getLogger("shop").info("once")
    (line,) = written(capsys)
    assert json.loads(line)["message"] == "once"


@pytest.mark.parametrize("variable", ["SAGASTREAM_LOG_FORMAT", "SAGASTREAM_LOG_LEVEL"])
def test_a_setting_that_is_none_is_told(install: Install, variable: str) -> None:
    with pytest.raises(SettingsError, match=rf"{variable} is 'xml\\x1b'; it must be one of "):
        install(**{variable: "xml\x1b"})
    assert logging.getLogger().handlers == []
