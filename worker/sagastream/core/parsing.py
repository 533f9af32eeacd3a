"""Reading messages strictly: out of the entries of streams, and out of decoded bodies.

Whoever reads an entry gets the message that it holds or, where it holds none, an Unreadable that says what is wrong,
and where.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from sagastream.core.messages import (
    ID_PATTERN,
    MAX_REASON_CHARS,
    REPLY_PATTERN,
    Begin,
    Code,
    Command,
    Intervene,
    Newer,
    Reply,
    Unreadable,
    Verb,
    is_id,
)
from sagastream.core.steps import (
    AS_PUBLISHED,
    FORMATS,
    MAX_ATTEMPTS,
    MAX_BACKOFF_MS,
    MAX_DEADLINE_MS,
    MAX_STEPS,
    MAX_TIMEOUT_MS,
    OPTIONS,
    PLAIN,
    StepDefinition,
    StepKind,
    usual_attempts,
)
from sagastream.core.strict_json import MAX_BYTES, MAX_REWRITTEN_BYTES, decode, encode, encode_payload, trimmed
from sagastream.errors import MalformedMessage

_D = TypeVar("_D", None, bytes)

_STEP_MEMBERS: Final = {"transaction", "service", "params", *OPTIONS}


#: The requests of operators, by the type of their body.
VERBS: Final = {f"saga_{verb}": verb for verb in Verb}


def read_request(fields: Mapping[bytes, bytes]) -> Begin | Intervene | Newer | Unreadable:
    """The entry of the requests stream."""
    request_id = None
    try:
        request_id = _request_id(fields)
        body = decode(fields.get(b"body", b""))
        kind = _type_of(body)
        if (number := _format_of(body, "the body")) > max(FORMATS):
            # Of such a request only what says where it belongs has a meaning that is known here.
            return Newer(format=number, saga_id=_name(body, "saga_id", "the body"), request_id=request_id)
        if kind in VERBS:
            return parse_intervene(body, request_id=request_id)
        if kind != "saga_begin":
            text = f"the orchestrator knows no request {kind}"
            return Unreadable(code=Code.NOT_SUPPORTED, text=text, request_id=request_id)
        return parse_begin(body, request_id=request_id, echo=b"trace" in fields)
    except MalformedMessage as error:
        return Unreadable(code=Code.MALFORMED, text=str(error), request_id=request_id)


def read_reply(fields: Mapping[bytes, bytes]) -> Reply | Unreadable:
    """The entry of the replies stream."""
    try:
        attempt = _number(fields, b"attempt") if b"attempt" in fields else None
        return parse_reply(decode(fields.get(b"body", b"")), unknown=b"unknown" in fields, attempt=attempt)
    except MalformedMessage as error:
        return Unreadable(code=Code.MALFORMED, text=str(error))


def read_command(service: str, fields: Mapping[bytes, bytes], sent_ms: int) -> Command | Newer | Unreadable:
    """The entry of a service's commands stream. `sent_ms`: when it was added, for entries made by hand."""
    try:
        if b"format" in fields and (number := _number(fields, b"format")) > max(FORMATS):
            return Newer(format=number)
        return _parse_command(service, fields, sent_ms)
    except MalformedMessage as error:
        return Unreadable(code=Code.MALFORMED, text=str(error))


def parse_begin(body: Any, *, request_id: str | None = None, echo: bool = False, called: str = "the body") -> Begin:
    """A decoded saga_begin body, checked; MalformedMessage says what is wrong and where. `called`: what it is to those
    who read that."""
    format_number = _known_format(body, called)
    _object(body, called, {"type", "msg_id", "saga_id", "steps", "deadline_ms", "format"})
    if body.get("type", "saga_begin") != "saga_begin":
        raise MalformedMessage("type is not saga_begin")
    saga_id = _name(body, "saga_id", called)
    steps = body.get("steps")
    if not isinstance(steps, list) or not 1 <= len(steps) <= MAX_STEPS:
        raise MalformedMessage(f"steps must be a list of 1 to {MAX_STEPS}")
    definitions = tuple(_parse_step(step, f"steps[{index}]") for index, step in enumerate(steps))
    _check_order(definitions)
    begin = Begin(
        saga_id=saga_id,
        steps=definitions,
        deadline_ms=_limit(body["deadline_ms"], "deadline_ms", called, MAX_DEADLINE_MS)
        if "deadline_ms" in body
        else None,
        request_id=request_id,
        echo=echo,
        format=format_number,
    )
    if sum(len(step.params) for step in definitions) > MAX_BYTES // 2 and len(begin.body()) > MAX_BYTES:
        # A number may be longer in the one way in which we write it.
        raise MalformedMessage(f"too large: {len(begin.body())} bytes, at most {MAX_BYTES}")
    return begin


def parse_intervene(body: Any, *, request_id: str | None = None, called: str = "the body") -> Intervene:
    """A decoded body of saga_cancel, saga_retry, saga_skip or saga_abandon, checked. `called`: as for parse_begin."""
    verb = VERBS[_type_of(body)]
    _known_format(body, called)
    _object(body, called, {"type", "msg_id", "saga_id", "reason", "format"})
    return Intervene(
        verb=verb,
        saga_id=_name(body, "saga_id", called),
        reason=parse_reason(body.get("reason")),
        request_id=request_id,
    )


def parse_reason(reason: object) -> str:
    """The reason that an operator gives, checked."""
    if not isinstance(reason, str) or not reason.strip() or len(reason) > MAX_REASON_CHARS:
        raise MalformedMessage(f"reason must be a text of 1 to {MAX_REASON_CHARS} characters: it stays with the saga")
    if reason != reason.encode(errors="replace").decode():
        raise MalformedMessage("reason must be a text that UTF-8 can say")  # an argument of a shell may be none
    return reason


def parse_reply(body: Any, *, unknown: bool = False, attempt: int | None = None) -> Reply:
    """A decoded reply body, checked. Members that the protocol does not name are ignored: the effect has happened
    whatever else a service likes to add."""
    return Reply(
        type=_type_of(body),
        saga_id=_name(body, "saga_id", "the body"),
        step=_step_number(body),
        result=trimmed(encode(body["result"])) if "result" in body else None,
        error=trimmed(encode(body["error"])) if "error" in body else None,
        unknown=unknown,
        attempt=attempt,
    )


def _parse_command(service: str, fields: Mapping[bytes, bytes], sent_ms: int) -> Command:
    body = decode(fields.get(b"body", b""))
    _object(body, "the body", None)
    compensating = body.get("compensating", False)
    if not isinstance(compensating, bool):
        raise MalformedMessage("compensating must be true or false")
    return Command(
        service=service,
        type=_name(body, "type", "the body"),
        saga_id=_name(body, "saga_id", "the body"),
        step=_step_number(body),
        params=_payload(fields, b"params", b"null") if compensating else encode(body.get("params")),
        result=_payload(fields, b"result", None),
        compensating=compensating,
        attempt=_number(fields, b"attempt", 1),
        begun_ms=_number(fields, b"begun_ms", sent_ms),
        not_after_ms=_number(fields, b"not_after_ms") if b"not_after_ms" in fields else None,
        retried=b"retried" in fields,
        compensation=_compensation(fields),
    )


def _compensation(fields: Mapping[bytes, bytes]) -> str | None:
    if b"compensation" not in fields:
        return AS_PUBLISHED
    name = fields[b"compensation"].decode(errors="replace")
    if name and not is_id(name):
        raise MalformedMessage("the field compensation must be a name, or empty")
    return name or None


def _number(fields: Mapping[bytes, bytes], name: bytes, default: int = 0) -> int:
    """A field of an entry that is a whole number, at most what a time in milliseconds needs."""
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


def _request_id(fields: Mapping[bytes, bytes]) -> str | None:
    if b"request_id" not in fields:
        return None
    request_id = fields[b"request_id"].decode(errors="replace")
    if not is_id(request_id):
        raise MalformedMessage("request_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    return request_id


def _parse_step(step: Any, where: str) -> StepDefinition:
    _object(step, where, _STEP_MEMBERS)
    options = {name: _OPTION_READERS[name](step, name, where) for name in OPTIONS if name in step}
    if "kind" in options:
        options.setdefault("attempts", usual_attempts(options["kind"]))
    transaction = _name(step, "transaction", where)
    if options.get("compensation") == transaction:
        raise MalformedMessage(f"{where}: a transaction cannot be its own compensation")
    return StepDefinition(
        transaction=transaction,
        service=_name(step, "service", where),
        params=trimmed(encode_payload(step.get("params"))),
        **options,
    )


def _undo(step: dict[str, Any], name: str, where: str) -> str | None:
    return None if step[name] is None else _name(step, name, where)


def _kind(step: dict[str, Any], name: str, where: str) -> StepKind:
    try:
        return StepKind(step[name])
    except ValueError:
        raise MalformedMessage(f"{where}: kind must be one of {', '.join(StepKind)}") from None


def _flag(step: dict[str, Any], name: str, where: str) -> bool:
    if not isinstance(step[name], bool):
        raise MalformedMessage(f"{where}: {name} must be true or false")
    return bool(step[name])


def _at_most(most: int) -> Callable[[dict[str, Any], str, str], int]:
    return lambda step, name, where: _limit(step[name], name, where, most)


#: How each option of a step is read.
_OPTION_READERS: Final[dict[str, Callable[[dict[str, Any], str, str], Any]]] = {
    "compensation": _undo,
    "kind": _kind,
    "timeout_ms": _at_most(MAX_TIMEOUT_MS),
    "attempts": _at_most(MAX_ATTEMPTS),
    "compensation_attempts": _at_most(MAX_ATTEMPTS),
    "backoff_ms": _at_most(MAX_BACKOFF_MS),
    "retry_failed": _flag,
}


def _check_order(steps: Sequence[StepDefinition]) -> None:
    """What can be undone comes first, then the pivot, then what is sure to be done in the end."""
    pivot = next((index for index, step in enumerate(steps) if step.kind is StepKind.PIVOT), None)
    for index, step in enumerate(steps):
        before = pivot is None or index < pivot
        if step.kind is StepKind.RETRIABLE and before:
            raise MalformedMessage(f"steps[{index}]: a retriable step needs a pivot before it")
        if step.kind is StepKind.RETRIABLE and step.compensation:
            raise MalformedMessage(f"steps[{index}]: a retriable step is never undone, and names no compensation")
        if not before and index != pivot and step.kind is not StepKind.RETRIABLE:
            what = (
                "there is one pivot at the most" if step.kind is StepKind.PIVOT else "after the pivot comes no way back"
            )
            raise MalformedMessage(f"steps[{index}]: {what}: the steps after it must be retriable")


def _format_of(body: Any, where: str) -> int:
    """The format of a decoded request; of one that does not say, the plain one."""
    number = body.get("format", PLAIN) if isinstance(body, dict) else PLAIN
    if type(number) is not int or number < 1:
        raise MalformedMessage(f"{where}: format must be a whole number from 1")
    return number


def _known_format(body: Any, where: str) -> int:
    """The same, of a request that this release is to carry out."""
    if (number := _format_of(body, where)) not in FORMATS:
        known = ", ".join(map(str, sorted(FORMATS)))
        raise MalformedMessage(f"{where}: format {number} is not known to this release, which knows {known}")
    return number


def _limit(number: Any, name: str, where: str, most: int) -> int:
    """A whole number from 1 to `most`."""
    if type(number) is not int or not 1 <= number <= most:
        raise MalformedMessage(f"{where}: {name} must be a whole number from 1 to {most}")
    return number


def _object(value: Any, where: str, known: set[str] | None) -> None:
    if not isinstance(value, dict):
        raise MalformedMessage(f"{where} is not a JSON object")
    if known is not None and not value.keys() <= known:
        raise MalformedMessage(f"{where} has an unknown member {min(value.keys() - known)[:128]!a}")


def _name(value: dict[str, Any], key: str, where: str, pattern: re.Pattern[str] = ID_PATTERN) -> str:
    name = value.get(key)
    if not isinstance(name, str) or not pattern.fullmatch(name):
        allowed = f"1 to {135 if pattern is REPLY_PATTERN else 128} characters of A-Z a-z 0-9 . _ : -"
        raise MalformedMessage(f"{where}: {key} " + (f"must be {allowed}" if key in value else "is missing"))
    return name


def _step_number(body: dict[str, Any]) -> int:
    step = body.get("step")
    if type(step) is not int or not 1 <= step <= MAX_STEPS:
        raise MalformedMessage(f"step must be a whole number from 1 to {MAX_STEPS}")
    return step


def _type_of(body: Any) -> str:
    """The type of a decoded body, checked."""
    _object(body, "the body", None)
    return _name(body, "type", "the body", REPLY_PATTERN)
