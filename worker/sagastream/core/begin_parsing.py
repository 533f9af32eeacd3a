"""Reading the request to begin a saga, strictly, from a decoded body. MalformedMessage says what is wrong and where."""

import re
from typing import Any, Final, get_args

from msgspec.structs import replace

from sagastream.core.attributes import parse_attributes
from sagastream.core.members import checked_object, known_format, limit, name_in
from sagastream.core.messages import HARD, Begin, DeadlineKind, DefinedBy
from sagastream.core.shape_parsing import SHAPE_MEMBERS
from sagastream.core.step_parsing import parse_steps
from sagastream.core.steps import GRAPH, MAX_CARRIED_BYTES, MAX_DEADLINE_MS, MAX_STEPS, PLAIN
from sagastream.core.strict_json import MAX_BYTES, encode_payload, trimmed
from sagastream.errors import MalformedMessage

#: The members of a saga_begin, and those that only the format GRAPH has.
_OF_A_BEGIN: Final = {"type", "msg_id", "saga_id", "steps", "deadline_ms", "deadline", "format", "attributes"}
_OF_A_GRAPH: Final = {"input", "definition", "start_at_ms"}
SHA256_PATTERN: Final = re.compile("[0-9a-f]{64}")
#: The highest version of a definition, and the latest time at which a saga may be asked to begin: the
#: year 9998, since its deadline, which may be a year later, is still written with four digits of the year.
MAX_VERSION: Final = 10**9
MAX_START_MS: Final = 253_339_228_800_000
#: The year 2000. Whoever says an earlier start has counted seconds: no saga is as old.
MIN_START_MS: Final = 946_684_800_000


def parse_begin(
    body: Any,
    *,
    request_id: str | None = None,
    echo: bool = False,
    traceparent: str | None = None,
    tracestate: str | None = None,
    called: str = "the body",
    plain: bool = False,
) -> Begin:
    """A decoded saga_begin body. MalformedMessage says what is wrong and where.

    Args:
        called: the name of the body in that text.
        plain: it came over the wire: what it does not name has the default of the plain format. Otherwise it is of
            somebody who begins a saga here, and gets what is usual. So the defaults that people are given can change,
            and no saga with them that has begun.
    """
    number = known_format(body, called)
    if number == PLAIN and not plain and _beyond_plain(body) is not None and "format" not in body:
        number = GRAPH  # whoever begins a saga here need not name the format
    try:
        begin = _parse_begin(body, number, request_id=request_id, echo=echo, called=called, plain=plain)
        return begin if traceparent is None else replace(begin, traceparent=traceparent, tracestate=tracestate)
    except MalformedMessage:
        if number == PLAIN and (what := _beyond_plain(body)) is not None:
            raise MalformedMessage(f'{called}: {what} needs "format": {GRAPH}') from None
        raise


def _parse_begin(
    body: Any, format_number: int, *, request_id: str | None, echo: bool, called: str, plain: bool
) -> Begin:
    checked_object(body, called, _OF_A_BEGIN if format_number == PLAIN else _OF_A_BEGIN | _OF_A_GRAPH)
    if body.get("type", "saga_begin") != "saga_begin":
        raise MalformedMessage("type is not saga_begin")
    saga_id = name_in(body, "saga_id", called)
    has_input = "input" in body
    if has_input:
        checked_object(body["input"], f"{called}: input", None)
    definitions = parse_steps(body.get("steps"), plain=plain, format_number=format_number, has_input=has_input)
    begin = Begin(
        saga_id=saga_id,
        steps=definitions,
        deadline_ms=limit(body["deadline_ms"], "deadline_ms", called, MAX_DEADLINE_MS)
        if "deadline_ms" in body
        else None,
        hard_deadline=_is_hard(body, called),
        request_id=request_id,
        echo=echo,
        format=format_number,
        input=trimmed(encode_payload(body["input"])) if has_input else None,
        definition=_defined_by(body["definition"], called) if "definition" in body else None,
        start_ms=limit(body["start_at_ms"], "start_at_ms", called, MAX_START_MS) if "start_at_ms" in body else None,
        attributes=parse_attributes(body["attributes"], f"{called}: attributes") if "attributes" in body else None,
    )
    # A worker takes any start, since an older worker may have taken the same request already.
    if not plain and begin.start_ms is not None and begin.start_ms < MIN_START_MS:
        raise MalformedMessage(
            f"{called}: start_at_ms is before the year 2000: it counts milliseconds since 1970, not seconds"
        )
    check_size(begin, called)
    return begin


def check_size(begin: Begin, called: str, *, sealed: bool = False) -> None:
    """Raises MalformedMessage if a request is too large, or its input for so many steps. `called`: as for parse_begin;
    `sealed`: whether its values are sealed by now."""
    # A number may get longer when it is written again: 1e15 is written as 1000000000000000.0.
    if begin.payload_bytes > MAX_BYTES // 2 and (size := len(begin.body())) > MAX_BYTES:
        has = "sealed, it has " if sealed else ""
        raise MalformedMessage(f"too large: {has}{size} bytes, at most {MAX_BYTES}")
    if begin.input is not None and (size := len(begin.input)) > MAX_CARRIED_BYTES // MAX_STEPS:
        commands = sum(step.shape.sends for step in begin.steps)
        if size * commands > MAX_CARRIED_BYTES:
            has = f"sealed, {size}" if sealed else f"{size}"
            each = f"each of {commands} steps gets it with its command, and together that is at most"
            raise MalformedMessage(f"{called}: input: too large: {has} bytes; {each} {MAX_CARRIED_BYTES}")


def _beyond_plain(body: Any) -> str | None:
    """The first member that only the format GRAPH has; None: there is none."""
    if not isinstance(body, dict):
        return None
    if (of_saga := next((name for name in _OF_A_GRAPH if name in body), None)) is not None:
        return of_saga
    steps = body.get("steps")
    for number, step in enumerate(steps if isinstance(steps, list) else (), 1):
        if isinstance(step, dict) and not SHAPE_MEMBERS.isdisjoint(step):
            return f"{min(SHAPE_MEMBERS & step.keys())} of step {number}"
    return None


def _defined_by(value: Any, called: str) -> DefinedBy:
    where = f"{called}: definition"
    checked_object(value, where, {"name", "version", "sha256"})
    sha256 = value.get("sha256")
    if not isinstance(sha256, str) or not SHA256_PATTERN.fullmatch(sha256):
        raise MalformedMessage(f"{where}: sha256 must be 64 hexadecimal digits")
    version = limit(value.get("version"), "version", where, MAX_VERSION)
    return DefinedBy(name=name_in(value, "name", where), version=version, sha256=sha256)


def _is_hard(body: dict[str, Any], called: str) -> bool:
    if "deadline" not in body:
        return False
    if body["deadline"] not in (kinds := get_args(DeadlineKind)):
        raise MalformedMessage(f"{called}: deadline must be one of {', '.join(kinds)}")
    if "deadline_ms" not in body:
        raise MalformedMessage(f"{called}: deadline says how deadline_ms is meant, and deadline_ms is missing")
    return bool(body["deadline"] == HARD)
