"""Reading messages, strictly: from entries of streams (read_…) and from decoded bodies (parse_…).

Reading an entry gives the message in it, or else an Unreadable that says what is wrong and where. Parsing a body
raises MalformedMessage.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from sagastream.core import trace_context
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import MAX_PROCESS_CHARS, Command, Reply
from sagastream.core.members import checked_object, flag_in, format_of, known_format, name_in, step_number, type_of
from sagastream.core.messages import (
    MAX_ACTOR_CHARS,
    MAX_REASON_CHARS,
    PARKED_AT_PATTERN,
    SIGNAL,
    Begin,
    Code,
    Intervene,
    Newer,
    Signal,
    ToSaga,
    Unreadable,
    Verb,
    is_id,
)
from sagastream.core.shape_parsing import STEP_ID_PATTERN
from sagastream.core.steps import AS_PUBLISHED, FORMATS, MAX_STEPS
from sagastream.core.strict_json import MAX_REWRITTEN_BYTES, decode, encode, encode_payload, trimmed
from sagastream.errors import MalformedMessage

_D = TypeVar("_D", None, bytes)

#: The requests of operators, by the type of their body.
VERBS: Final = {f"saga_{verb}": verb for verb in Verb}


def read_request(fields: Mapping[bytes, bytes]) -> Begin | ToSaga | Newer | Unreadable:
    """The entry of the requests stream."""
    request_id = None
    try:
        request_id = _request_id(fields)
        body = decode(_body(fields))
        kind = type_of(body)
        if (number := format_of(body, "the body")) > max(FORMATS):
            # Of such a request this release only understands which saga it is for.
            return Newer(format=number, saga_id=name_in(body, "saga_id", "the body"), request_id=request_id)
        if kind in VERBS:
            return parse_intervene(body, request_id=request_id)
        if kind == SIGNAL:
            return parse_signal(body, request_id=request_id)
        if kind != "saga_begin":
            text = f"the orchestrator knows no request {kind}"
            return Unreadable(code=Code.NOT_SUPPORTED, text=text, request_id=request_id)
        traceparent, tracestate = trace_context.of_entry(fields)
        return parse_begin(
            body,
            request_id=request_id,
            echo=b"trace" in fields,
            traceparent=traceparent,
            tracestate=tracestate,
            plain=True,
        )
    except MalformedMessage as error:
        return Unreadable(code=Code.MALFORMED, text=str(error), request_id=request_id)


def read_reply(fields: Mapping[bytes, bytes], service: str | None = None) -> Reply | Unreadable:
    """The entry of a service's stream of replies. `service`: its name, if that is known."""
    try:
        attempt = _number(fields, b"attempt") if b"attempt" in fields else None
        unknown = b"unknown" in fields
        process = _process(fields[b"process"]) if b"process" in fields else None
        return parse_reply(decode(_body(fields)), unknown=unknown, attempt=attempt, process=process, service=service)
    except MalformedMessage as error:
        return Unreadable(code=Code.MALFORMED, text=str(error))


def read_command(service: str, fields: Mapping[bytes, bytes], sent_ms: int) -> Command | Newer | Unreadable:
    """The entry of a service's commands stream.

    `sent_ms`: when it was added. It counts as the begin of the saga in entries that people write by hand.
    """
    try:
        if b"format" in fields and (number := _number(fields, b"format")) > max(FORMATS):
            return Newer(format=number)
        return _parse_command(service, fields, sent_ms)
    except MalformedMessage as error:
        return Unreadable(code=Code.MALFORMED, text=str(error))


def parse_signal(body: Any, *, request_id: str | None = None, called: str = "the body") -> Signal:
    """A decoded body of saga_signal. `called`: as for parse_begin."""
    known_format(body, called)
    checked_object(body, called, {"type", "msg_id", "saga_id", "name", "payload", "decline", "actor", "by", "format"})
    if "payload" in body and "decline" in body:
        raise MalformedMessage(f"{called}: a signal has a payload or is a decline, not both")
    if "actor" in body and "by" in body:
        raise MalformedMessage(f"{called}: actor and by say the same: give one of them")
    declined = operator_text(body["decline"], "decline", MAX_REASON_CHARS) if "decline" in body else None
    named = next((name for name in ("actor", "by") if name in body), None)
    return Signal(
        saga_id=name_in(body, "saga_id", called),
        name=name_in(body, "name", called),
        payload=trimmed(encode_payload(body.get("payload"))),
        declined=declined,
        actor=None if named is None else operator_text(body[named], named, MAX_ACTOR_CHARS),
        request_id=request_id,
    )


def parse_intervene(body: Any, *, request_id: str | None = None, called: str = "the body") -> Intervene:
    """A decoded body of saga_cancel, saga_retry, saga_skip or saga_abandon. `called`: as for parse_begin."""
    verb = VERBS[type_of(body)]
    known_format(body, called)
    known = {"type", "msg_id", "saga_id", "reason", "actor", "parked_at", "step", "format"}
    checked_object(body, called, known | {"now"} if verb in (Verb.CANCEL, Verb.ABANDON) else known)
    return Intervene(
        verb=verb,
        saga_id=name_in(body, "saga_id", called),
        reason=operator_text(body.get("reason"), "reason", MAX_REASON_CHARS),
        now="now" in body and flag_in(body, "now", called),
        actor=operator_text(body["actor"], "actor", MAX_ACTOR_CHARS) if "actor" in body else None,
        parked_at=_parked_at(body["parked_at"], called) if "parked_at" in body else None,
        step=_step_meant(body["step"], called) if "step" in body else None,
        request_id=request_id,
    )


def _step_meant(step: object, called: str) -> int | str:
    if type(step) is int and 1 <= step <= MAX_STEPS:
        return step
    if isinstance(step, str) and STEP_ID_PATTERN.fullmatch(step):
        return step
    raise MalformedMessage(f"{called}: step must be the number of a step, from 1, or its id")


def _parked_at(place: object, called: str) -> str:
    if not isinstance(place, str) or not PARKED_AT_PATTERN.fullmatch(place):
        raise MalformedMessage(
            f"{called}: parked_at must be where the saga was seen parked: "
            "a step, transaction or compensation, and an attempt, such as 2/compensation/1"
        )
    return place


def operator_text(text: object, name: str, most: int, *, stays_with: str = "the saga") -> str:
    """A text that an operator gives."""
    if not isinstance(text, str) or not text.strip() or len(text) > most:
        raise MalformedMessage(f"{name} must be a text of 1 to {most} characters: it stays with {stays_with}")
    if text != text.encode(errors="replace").decode():
        raise MalformedMessage(f"{name} must be a text that UTF-8 can encode")  # an argument of a shell may not be
    return text


def parse_reply(
    body: Any,
    *,
    unknown: bool = False,
    attempt: int | None = None,
    process: str | None = None,
    service: str | None = None,
) -> Reply:
    """A decoded reply body. Members that the protocol does not name are ignored: whatever else a service adds, the
    effect has happened."""
    return Reply(
        type=type_of(body),
        saga_id=name_in(body, "saga_id", "the body"),
        step=step_number(body),
        result=trimmed(encode(body["result"])) if "result" in body else None,
        error=trimmed(encode(body["error"])) if "error" in body else None,
        unknown=unknown,
        attempt=attempt,
        process=process,
        service=service,
    )


def _parse_command(service: str, fields: Mapping[bytes, bytes], sent_ms: int) -> Command:
    body = decode(_body(fields))
    checked_object(body, "the body", None)
    compensating = body.get("compensating", False)
    if not isinstance(compensating, bool):
        raise MalformedMessage("compensating must be true or false")
    traceparent, tracestate = trace_context.of_entry(fields)
    return Command(
        service=service,
        type=name_in(body, "type", "the body"),
        saga_id=name_in(body, "saga_id", "the body"),
        step=step_number(body),
        params=_payload(fields, b"params", b"null") if compensating else encode(body.get("params")),
        result=_payload(fields, b"result", None),
        compensating=compensating,
        attempt=_number(fields, b"attempt", 1),
        begun_ms=_number(fields, b"begun_ms", sent_ms),
        not_after_ms=_number(fields, b"not_after_ms") if b"not_after_ms" in fields else None,
        retried=b"retried" in fields,
        compensation=_compensation(fields),
        undo=_payload(fields, b"undo", None) if compensating else None,
        input=_payload(fields, b"input", None),
        definition=_definition(fields),
        traceparent=traceparent,
        tracestate=tracestate,
        unrecorded_ms=_number(fields, b"unrecorded_ms") if b"unrecorded_ms" in fields else None,
    )


def _body(fields: Mapping[bytes, bytes]) -> bytes:
    if (body := fields.get(b"body")) is None:
        raise MalformedMessage("the entry has no field body")
    return body


def _compensation(fields: Mapping[bytes, bytes]) -> str | None:
    if b"compensation" not in fields:
        return AS_PUBLISHED
    name = fields[b"compensation"].decode(errors="replace")
    if name and not is_id(name):
        raise MalformedMessage("the field compensation must be a name, or empty")
    return name or None


def _definition(fields: Mapping[bytes, bytes]) -> str | None:
    if b"definition" not in fields:
        return None
    name = fields[b"definition"].decode(errors="replace")
    if not is_id(name):
        raise MalformedMessage("the field definition must be a name")
    return name


def _number(fields: Mapping[bytes, bytes], name: bytes, default: int = 0) -> int:
    """A field of an entry that is a whole number of at most 15 digits, which is enough for a time in milliseconds."""
    if (digits := fields.get(name)) is None:
        return default
    if not digits.isdigit() or len(digits) > 15:
        raise MalformedMessage(f"the field {name.decode()} must be a whole number")
    return int(digits)


def _payload(fields: Mapping[bytes, bytes], name: bytes, default: _D) -> bytes | _D:
    if name not in fields:
        return default
    decode(fields[name], MAX_REWRITTEN_BYTES)
    return fields[name]


def _process(name: bytes) -> str | None:
    """The name of a process, which is for people: whatever it is, the reply counts. None: it is no name."""
    text = name.decode(errors="replace").strip()[:MAX_PROCESS_CHARS]
    return text or None


def _request_id(fields: Mapping[bytes, bytes]) -> str | None:
    if b"request_id" not in fields:
        return None
    request_id = fields[b"request_id"].decode(errors="replace")
    if not is_id(request_id):
        raise MalformedMessage("request_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    return request_id
