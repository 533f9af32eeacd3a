"""The lines of the stdin protocol: one JSON object each, {"src": …, "dest": …, "body": {"type": …, …}}."""

import json
import os
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sagastream.core.messages import Code
from sagastream.core.saga import SagaState, protocol_view
from sagastream.core.strict_json import MAX_BYTES, decode
from sagastream.errors import MalformedMessage, NewerFormat, RequestRefused, UnreadableSaga

#: The name of the orchestrator in `src` and `dest`.
ORCHESTRATOR: Final = "orchestrator"
#: The longest line that is read, in bytes.
MAX_LINE_BYTES: Final = MAX_BYTES
_CHUNK_BYTES: Final = 1 << 16
#: How often a write that nobody reads looks whether the process has to stop, in seconds.
_STOP_CHECK_S: Final = 0.2


#: Why a line is not done, as an error that the library raises.
Refusal = MalformedMessage | RequestRefused | UnreadableSaga


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom to answer: the `src` of a line, and the `msg_id` of its body (None: it has none)."""

    src: str
    msg_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    caller: Caller
    dest: str
    body: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.body["type"])


class BadLine(Exception):
    """A line that cannot be done. `caller`: whom to answer with this error code; None if that is not known."""

    def __init__(self, text: str, caller: Caller | None = None, code: int = Code.MALFORMED) -> None:
        super().__init__(text)
        self.caller = caller
        self.code = code


def code_of(refusal: Refusal) -> int:
    """The code of its error line."""
    if isinstance(refusal, RequestRefused):
        return refusal.code
    if isinstance(refusal, MalformedMessage):
        return Code.MALFORMED
    return Code.NOT_SUPPORTED if isinstance(refusal, NewerFormat) else Code.CRASH


def read_lines(fd: int, wake_fd: int) -> Iterator[list[bytes]]:
    """The lines of a file descriptor as they come, without line ends; each list has all lines that are there. Ends when
    the input ends, or when there is something to read from `wake_fd`.

    Of a line that is far longer than MAX_LINE_BYTES only the beginning comes, which is still too long to be parsed.
    """
    rest = b""
    while wake_fd not in (ready := select.select([fd, wake_fd], [], [])[0]):
        assert ready
        if not (chunk := os.read(fd, _CHUNK_BYTES)):
            if rest:
                yield [rest]
            return
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[: MAX_LINE_BYTES + 1]
        if lines:
            yield lines


def parse(line: bytes) -> Line:
    """Check one line. Raises BadLine."""
    if len(line) > MAX_LINE_BYTES:
        raise BadLine(f"too long: over {MAX_LINE_BYTES} bytes")
    try:
        value = decode(line)
    except MalformedMessage as error:
        raise BadLine(str(error)) from None
    if not isinstance(value, dict) or not isinstance(value.get("body"), dict):
        raise BadLine("not an object with src, dest and body")
    src, dest, body = value.get("src"), value.get("dest"), value["body"]
    if not isinstance(src, str):
        raise BadLine("src must be a string")
    msg_id = body.get("msg_id")
    if msg_id is not None and type(msg_id) is not int:
        raise BadLine("msg_id must be a whole number")
    caller = Caller(src=src, msg_id=msg_id)
    if not isinstance(dest, str) or not isinstance(body.get("type"), str):
        raise BadLine("dest and body.type must be strings", caller)
    return Line(caller=caller, dest=dest, body=body)


def told(state: SagaState) -> dict[str, Any]:
    """The members of an answer about a saga: the protocol's SagaState and, if it is live, what it waits for."""
    members: dict[str, Any] = {"state": protocol_view(state)}
    if not state.ended:
        members["waiting_for"] = state.waiting_for
    if state.parked is not None:
        members |= {"parked": state.parked, "parked_at": state.parked_at}
    return members


class LineWriter:
    """Writes whole lines to standard output, from any thread. `gone`: nobody reads them any more."""

    def __init__(self, stop: threading.Event) -> None:
        """`stop`: once it is set, no write waits for a reader that does not read."""
        self._stop = stop
        self._lock = threading.Lock()
        self._next_id = 0
        self.gone = False

    def answer(self, caller: Caller, kind: str, members: dict[str, Any] | None = None) -> None:
        """A message of the orchestrator, with a number, in reply to the caller."""
        body: dict[str, Any] = {"type": kind}
        if caller.msg_id is not None:
            body["in_reply_to"] = caller.msg_id
        with self._lock:
            body["msg_id"] = self._next_id
            self._next_id += 1
            self._write(ORCHESTRATOR, caller.src, body | (members or {}))

    def error(self, caller: Caller, code: int, text: str) -> None:
        """An error line. Its shape is fixed, so it has no number."""
        body = {"type": "error", "in_reply_to": caller.msg_id, "code": code, "text": text}
        with self._lock:
            self._write(ORCHESTRATOR, caller.src, body)

    def message(self, src: str, dest: str, body: dict[str, Any], besides: dict[str, Any] | None = None) -> None:
        """A message between the orchestrator and a service, unchanged. `besides`: more members of the line."""
        with self._lock:
            self._write(src, dest, body, besides)

    def _write(self, src: str, dest: str, body: dict[str, Any], besides: dict[str, Any] | None = None) -> None:
        if self.gone:
            return
        # Plain ASCII: whatever strangers wrote, a terminal gets only escapes.
        line = json.dumps({"src": src, "dest": dest, "body": body} | (besides or {})).encode() + b"\n"
        try:
            # Not by sys.stdout: a thread that is stuck in it, because nobody reads, would keep the process alive.
            while line:
                if select.select([], [1], [], _STOP_CHECK_S)[1]:
                    line = line[os.write(1, line[: select.PIPE_BUF]) :]
                elif self._stop.is_set():
                    self.gone = True
                    return
        except OSError:
            self.gone = True
