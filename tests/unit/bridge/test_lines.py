"""Lines of the stdin protocol, read and written."""

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream_bridge.stdin.lines import MAX_LINE_BYTES, BadLine, Caller, Line, LineWriter, parse, read_lines

CALLER = Caller(src="c1", msg_id=7)


def a_line(**members: Any) -> bytes:
    body = {"type": "saga_begin", "msg_id": 1}
    return json.dumps({"src": "c1", "dest": "orchestrator", "body": body} | members).encode()


def complaint(line: bytes) -> BadLine:
    with pytest.raises(BadLine) as caught:
        parse(line)
    return caught.value


# --- lines as they come


def lines_of(path: Path, content: bytes) -> list[bytes]:
    path.write_bytes(content)
    wake, waker = os.pipe()
    try:
        with path.open("rb") as file:
            return [line for lines in read_lines(file.fileno(), wake) for line in lines]
    finally:
        os.close(wake)
        os.close(waker)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"one\n", [b"one"]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"one\n\n\ntwo\n", [b"one", b"", b"", b"two"]),
        (b"one\r\ntwo\r\n", [b"one\r", b"two\r"]),
        (b"\n", [b""]),
    ],
)
def test_lines_end_with_a_newline_or_with_the_input(tmp_path: Path, content: bytes, lines: list[bytes]) -> None:
    assert lines_of(tmp_path / "in", content) == lines


def test_lines_over_the_borders_of_a_reading_are_put_together(tmp_path: Path) -> None:
    lines = [bytes([65 + n % 26]) * (n * 997 % 100_000) for n in range(30)]
    assert lines_of(tmp_path / "in", b"".join(line + b"\n" for line in lines)) == lines


def test_a_line_of_full_size_is_read_whole(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "in", b"x" * MAX_LINE_BYTES + b"\ny\n") == [b"x" * MAX_LINE_BYTES, b"y"]


@pytest.mark.parametrize("size", [MAX_LINE_BYTES + 1, MAX_LINE_BYTES + 70_000, 5 * MAX_LINE_BYTES])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_is_too_long_is_known_as_such_and_the_next_one_is_read(
    tmp_path: Path, size: int, end: bytes
) -> None:
    long, *others = lines_of(tmp_path / "in", b"x" * size + end + (b"y\n" if end else b""))
    assert str(complaint(long)) == f"too long: over {MAX_LINE_BYTES} bytes"
    assert others == ([b"y"] if end else [])


def test_of_a_line_that_is_far_too_long_only_the_beginning_comes(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path / "in", b"x" * (5 * MAX_LINE_BYTES) + b"\n")
    assert MAX_LINE_BYTES < len(line) < MAX_LINE_BYTES + 100_000


# --- one line


def test_a_line_of_the_protocol_is_understood() -> None:
    line = parse(b'{"src": "c1", "dest": "orchestrator", "body": {"type": "saga_status", "msg_id": 7, "saga_id": "x"}}')
    assert line == Line(caller=CALLER, dest="orchestrator", body={"type": "saga_status", "msg_id": 7, "saga_id": "x"})
    assert line.type == "saga_status"


@pytest.mark.parametrize("line", [b"", b"{", b"NaN", b'{"src":"a","src":"b"}', b"\xff", b"hello", b"[" * 100_000])
def test_a_line_that_is_no_json_is_bad_and_nobody_can_be_told(line: bytes) -> None:
    assert complaint(line).caller is None


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"src": "c1"}, {"src": "c1", "dest": "x", "body": "y"}])
def test_a_line_that_is_no_object_with_a_body_is_bad_and_nobody_can_be_told(value: Any) -> None:
    error = complaint(json.dumps(value).encode())
    assert str(error) == "not an object with src, dest and body"
    assert error.caller is None


@pytest.mark.parametrize("src", [None, 1, True, ["c1"]])
def test_a_line_whose_src_is_no_string_is_bad_and_nobody_can_be_told(src: Any) -> None:
    error = complaint(a_line(src=src))
    assert str(error) == "src must be a string"
    assert error.caller is None


@pytest.mark.parametrize(
    "members",
    [
        {"dest": None},
        {"dest": 1},
        {"body": {"msg_id": 1}},
        {"body": {"type": 1, "msg_id": 1}},
        {"body": {"type": None, "msg_id": 1}},
    ],
)
def test_a_line_without_dest_or_type_is_bad_and_its_sender_can_be_told(members: dict[str, Any]) -> None:
    error = complaint(a_line(**members))
    assert str(error) == "dest and body.type must be strings"
    assert error.caller == Caller(src="c1", msg_id=1)


@pytest.mark.parametrize("msg_id", [True, False, 1.0, "1", "", [1], {}])
def test_a_msg_id_that_is_no_whole_number_is_bad_and_nobody_can_be_told(msg_id: Any) -> None:
    error = complaint(a_line(body={"type": "init", "msg_id": msg_id}))
    assert str(error) == "msg_id must be a whole number"
    assert error.caller is None


def test_a_line_need_not_have_a_msg_id() -> None:
    assert parse(a_line(body={"type": "init", "msg_id": None})).caller == Caller(src="c1", msg_id=None)
    assert parse(a_line(body={"type": "init"})).caller == Caller(src="c1", msg_id=None)


@pytest.mark.parametrize("msg_id", [0, -1, 2**63])
def test_any_whole_number_is_a_msg_id(msg_id: int) -> None:
    assert parse(a_line(body={"type": "init", "msg_id": msg_id})).caller == Caller(src="c1", msg_id=msg_id)


def test_white_space_around_a_line_is_nothing() -> None:
    assert parse(b"  " + a_line() + b"\r") == parse(a_line())


@given(st.binary(max_size=100))
def test_any_bytes_are_a_line_or_a_bad_one(text: bytes) -> None:
    with suppress(BadLine):
        parse(text)


# --- what is written


def test_answers_are_numbered_from_0_and_say_what_they_answer(capfd: pytest.CaptureFixture[str]) -> None:
    out = LineWriter(threading.Event())
    out.answer(CALLER, "init_ok")
    out.answer(Caller(src="c2", msg_id=None), "saga_completed", {"saga_id": "x"})
    assert capfd.readouterr().out == (
        '{"src": "orchestrator", "dest": "c1", "body": {"type": "init_ok", "in_reply_to": 7, "msg_id": 0}}\n'
        '{"src": "orchestrator", "dest": "c2", "body": {"type": "saga_completed", "msg_id": 1, "saga_id": "x"}}\n'
    )


def test_an_error_has_the_shape_of_the_protocol_and_takes_no_number(capfd: pytest.CaptureFixture[str]) -> None:
    out = LineWriter(threading.Event())
    out.error(CALLER, 12, "steps must be a list of 1 to 100")
    out.answer(CALLER, "init_ok")
    error, answer = capfd.readouterr().out.splitlines()
    assert error == (
        '{"src": "orchestrator", "dest": "c1", "body": {"type": "error", "in_reply_to": 7, "code": 12, '
        '"text": "steps must be a list of 1 to 100"}}'
    )
    assert json.loads(answer)["body"]["msg_id"] == 0


def test_a_message_between_others_is_passed_on_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    body = {"type": "ChargePayment", "saga_id": "saga42", "step": 2, "params": {"amount": 99.99}}
    LineWriter(threading.Event()).message("orchestrator", "payment", body)
    assert capfd.readouterr().out == (
        '{"src": "orchestrator", "dest": "payment", "body": {"type": "ChargePayment", "saga_id": "saga42", '
        '"step": 2, "params": {"amount": 99.99}}}\n'
    )


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\u202e", "ü", "\u2028", "\x9b"])
def test_whatever_strangers_write_a_line_is_one_line_of_plain_ascii(
    capfd: pytest.CaptureFixture[str], text: str
) -> None:
    LineWriter(threading.Event()).error(Caller(src=text, msg_id=1), 10, text)
    written = capfd.readouterr().out
    assert written.isascii()
    assert written.removesuffix("\n").isprintable()
    assert json.loads(written)["dest"] == text


def test_nothing_is_written_once_nobody_reads(capfd: pytest.CaptureFixture[str]) -> None:
    out = LineWriter(threading.Event())
    out.gone = True
    out.answer(CALLER, "init_ok")
    assert capfd.readouterr().out == ""
