"""Bad input: a table of classes, each with a name, and the messages into which they are put.

A class is one way to be wrong: a text that is not JSON, a value that a field must not have, a message that makes no
sense. `for_requests`, `for_replies`, `for_commands` and `for_lines` put each class into each place where it fits.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

#: Text on which a terminal would act, or that is invisible: each with a description.
NASTY_TEXT: Final = {
    "ANSI escape": "\x1b[2J\x1b[31mred",
    "operating system command": "\x1b]0;title\x07",
    "C1 control": "a\x9b31mb\x85c",
    "backspaces": "good\b\b\b\bevil",
    "carriage return": "good\revil",
    "newline": "saga42\nsagastream: all is well",
    "NUL": "a\x00b",
    "delete": "a\x7fb",
    "bidi override": "saga\u202e24",
    "bidi isolate": "\u2066a\u2069",
    "zero width": "sa\u200bga\u2060\ufeff",
    "line separator": "a\u2028b\u2029c",
    "language tag": "a\U000e0041b",
    "soft hyphen": "a\u00adb",
    "private use": "a\ue000b",
}

#: Texts in place of a value that are not JSON, or are larger than is accepted.
VALUES: Final[dict[str, bytes]] = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "-Infinity": b"-Infinity",
    "1e999": b"1e999",
    "-1e999": b"-1e999",
    "duplicate keys": b'{"a":1,"a":2}',
    "duplicate keys, one escaped": rb'{"a":1,"\u0061":2}',
    "lone high surrogate": rb'"\ud800"',
    "lone low surrogate": rb'"\udc00"',
    "surrogates in the wrong order": rb'"\udc00\ud800"',
    "surrogate as UTF-8": b'"\xed\xa0\x80"',
    "100,000 arrays, never closed": b"[" * 100_000,
    "100,000 objects, never closed": b'{"a":' * 100_000,
    "1,000 arrays": b"[" * 1000 + b"]" * 1000,
    "65 arrays": b"[" * 65 + b"]" * 65,
    "65 objects": b'{"a":' * 65 + b"1" + b"}" * 65,
    "5,000 digits": b"9" * 5000,
    "-5,000 digits": b"-" + b"9" * 5000,
    "2 to the 64th": b"18446744073709551616",
    "below 64 bits": b"-9223372036854775809",
    "10 MB of text": b'"' + b"x" * 10_000_000 + b'"',
    "10 MB of numbers": b"[" + b"1," * 5_000_000 + b"1]",
    "a byte over 1 MiB": b'"' + b"x" * (1 << 20) + b'"',
    "invalid UTF-8": b'"\xff\xfe"',
    "overlong UTF-8": b'"\xc0\xaf"',
    "cut UTF-8": b'"\xe2\x82"',
    "a NUL byte in a text": b'"a\x00b"',
    "a raw escape character in a text": b'"\x1b[2J"',
    "a raw tab in a text": b'"a\tb"',
    "an escape that is none": rb'"\x41"',
    "half an escape": rb'"\u12"',
    "a comma too many": b"[1,]",
    "a comma too few": b"[1 2]",
    "single quotes": b"'a'",
    "a comment": b"1/*one*/",
    "a hexadecimal number": b"0x10",
    "a leading zero": b"01",
    "a leading plus": b"+1",
    "no digits before the point": b".5",
    "no digits after the point": b"1.",
    "True as Python has it": b"True",
    "a bare word": b"undefined",
    "nothing": b"",
}  # fmt: skip

#: Changes to a whole message.
TEXTS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "empty": lambda _: b"",
    "white space": lambda _: b"  \t ",
    "one NUL byte": lambda _: b"\x00",
    "cut in the middle": lambda text: text[: len(text) // 2],
    "cut before its end": lambda text: text[:-1],
    "garbage after it": lambda text: text + b"garbage",
    "two messages": lambda text: text + text,
    "a brace after it": lambda text: text + b"}",
    "garbage before it": lambda text: b"garbage" + text,
    "a NUL byte after it": lambda text: text + b"\x00",
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "UTF-32": lambda text: text.decode().encode("utf-32-be"),
    "its type twice": lambda text: b'{"type":"Do_ok",' + text[1:],
    "its members twice": lambda text: text[:-1] + b"," + text[1:],
    "in an array": lambda text: b"[" + text + b"]",
    "as a text": lambda text: json.dumps(text.decode()).encode(),
    "null": lambda _: b"null",
    "a number": lambda _: b"1",
    "an empty array": lambda _: b"[]",
    "an empty object": lambda _: b"{}",
    "pickled": lambda _: b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01x\x94.",
}  # fmt: skip

#: Left out, as a value of a field.
MISSING: Final = object()

_OTHER_TYPES: Final[dict[str, Any]] = {"null": None, "an array": ["a"], "an object": {"a": "b"}}
NAMES: Final[dict[str, Any]] = (
    _OTHER_TYPES
    | {f"text with {what}": text for what, text in NASTY_TEXT.items()}
    | {
        "missing": MISSING,
        "true": True,
        "a number": 1,
        "empty text": "",
        "136 characters": "x" * 136,
        "a million characters": "x" * 1_000_000,
        "a space": "a b",
        "a newline at its end": "saga42\n",
        "a slash": "a/b",
        "a path": "../../etc/passwd",
        "a brace": "{0}",
        "an emoji": "saga\U0001f600",
        "a homoglyph": "s\u0430ga",
        "a full-width letter": "\uff53aga",
        "a digit of another script": "saga\u0664",
    }
)
IDS: Final = NAMES | {"129 characters": "x" * 129}
NUMBERS: Final[dict[str, Any]] = _OTHER_TYPES | {
    "true": True,
    "false": False,
    "zero": 0,
    "negative": -1,
    "negative zero": -0.0,
    "a float": 1.5,
    "a whole float": 1.0,
    "a large float": 1e308,
    "10 to the 30th": 10**30,
    "2 to the 63rd": 2**63,
    "a number as text": "1",
    "a text": "soon",
}
BOOLEANS: Final[dict[str, Any]] = _OTHER_TYPES | {"0": 0, "1": 1, "a float": 1.0, "a text": "true", "empty text": ""}
KINDS: Final[dict[str, Any]] = _OTHER_TYPES | {
    "true": True,
    "a number": 1,
    "capitals": "PIVOT",
    "empty text": "",
    "a newline at its end": "pivot\n",
    "an unknown kind": "optional",
    "a million characters": "x" * 1_000_000,
}
#: Fields of an entry that should be whole numbers.
ENTRY_NUMBERS: Final[dict[str, bytes]] = {
    "empty": b"",
    "negative": b"-1",
    "a float": b"1.5",
    "an exponent": b"1e3",
    "a word": b"soon",
    "white space before it": b" 1",
    "a newline at its end": b"1\n",
    "an underscore": b"1_0",
    "16 digits": b"1" * 16,
    "5,000 digits": b"1" * 5000,
    "digits of another script": "\u0661".encode(),
    "full-width digits": "\uff11".encode(),
    "invalid UTF-8": b"\xff",
    "a NUL byte": b"1\x00",
}

STEP: Final[dict[str, Any]] = {"transaction": "Do", "service": "work", "params": None}
PIVOT: Final = STEP | {"kind": "pivot"}
RETRIABLE: Final = STEP | {"kind": "retriable"}

#: Sagas that make no sense, although each member of them does.
SAGAS: Final[dict[str, Any]] = {
    "no steps": [],
    "101 steps": [STEP] * 101,
    "10,000 steps": [STEP] * 10_000,
    "a step that is null": [None],
    "a step that is text": ["Do"],
    "a step that is an array": [[STEP]],
    "a step that is empty": [{}],
    "a retriable step without a pivot": [RETRIABLE],
    "a pivot after a retriable step": [RETRIABLE, PIVOT],
    "two pivots": [PIVOT, PIVOT],
    "two pivots, one later": [STEP, PIVOT, RETRIABLE, PIVOT],
    "a compensatable step after the pivot": [PIVOT, STEP],
    "a retriable step with a compensation": [PIVOT, RETRIABLE | {"compensation": "Undo"}],
    "a transaction that is its own compensation": [STEP | {"compensation": "Do"}],
    "steps as an object": {"0": STEP},
    "steps as text": "Do",
    "steps that are null": None,
    "steps that are missing": MISSING,
}  # fmt: skip

_REASONS: Final[dict[str, Any]] = _OTHER_TYPES | {
    "missing": MISSING,
    "true": True,
    "a number": 1,
    "empty": "",
    "white space": " \t\n",
    "501 characters": "x" * 501,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """One bad input: `class_name` is its row in the table, `where` the place that it was put into."""

    class_name: str
    where: str
    body: bytes | None  # None: the entry has no such field
    fields: dict[str, bytes] = field(default_factory=dict)  # of the entry, beside the body

    @property
    def entry(self) -> dict[Any, Any]:
        body: dict[Any, Any] = {"nobody": "home"} if self.body is None else {"body": self.body}
        return body | self.fields


def written(message: Any) -> bytes:
    return json.dumps(message).encode()


def with_value(message: dict[str, Any], *path: str | int, value: Any) -> dict[str, Any]:
    """The message with another value at a path, or with none."""
    copy: dict[str, Any] = json.loads(json.dumps(message))
    place: Any = copy
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copy


def _no_json(message: dict[str, Any], *hole: str | int) -> Iterator[Bad]:
    """The message with texts that are not JSON, in place of one member and as a whole."""
    before, after = written(with_value(message, *hole, value="HOLE")).split(b'"HOLE"')
    for name, value in VALUES.items():
        yield Bad(class_name=f"value: {name}", where=str(hole[-1]), body=before + value + after)
    for name, change in TEXTS.items():
        yield Bad(class_name=f"text: {name}", where="body", body=change(written(message)))


def _wrong(message: dict[str, Any], kind: str, values: dict[str, Any], *path: str | int) -> Iterator[Bad]:
    for name, value in values.items():
        where = ".".join(map(str, path))
        yield Bad(class_name=f"{kind}: {name}", where=where, body=written(with_value(message, *path, value=value)))


def _strange_members(message: dict[str, Any], *paths: tuple[str | int, ...]) -> Iterator[Bad]:
    names = {"unknown": "timeout", "empty": "", "misspelt": "saga_ID", "dunder": "__proto__"}
    for path in paths:
        for what, name in (names | {f"with {what}": text for what, text in NASTY_TEXT.items()}).items():
            body = written(with_value(message, *path, name, value=1))
            yield Bad(class_name=f"member: {what}", where=".".join(map(str, path)) or "body", body=body)


def begins(message: dict[str, Any]) -> Iterator[Bad]:
    """Ways in which this saga_begin with one step can be wrong."""
    yield from _no_json(message, "steps", 0, "params")
    yield from _wrong(message, "id", IDS, "saga_id")
    for name in ("transaction", "service"):
        yield from _wrong(message, "id", IDS, "steps", 0, name)
    of_none = {name: value for name, value in IDS.items() if name not in ("missing", "null")}
    yield from _wrong(message, "id", of_none, "steps", 0, "compensation")
    for name in ("timeout_ms", "attempts", "compensation_attempts", "backoff_ms"):
        yield from _wrong(message, "number", NUMBERS, "steps", 0, name)
    yield from _wrong(message, "number", NUMBERS, "deadline_ms")
    yield from _wrong(message | {"deadline_ms": 5}, "kind", KINDS, "deadline")
    yield from _wrong(message, "boolean", BOOLEANS, "steps", 0, "retry_failed")
    yield from _wrong(message, "kind", KINDS, "steps", 0, "kind")
    yield from _wrong(message, "saga", SAGAS, "steps")
    yield from _strange_members(message, (), ("steps", 0))


def interventions() -> Iterator[Bad]:
    """Ways in which an operator's request can be wrong. Nobody has a saga `nobody`."""
    for verb in ("cancel", "retry", "skip", "abandon"):
        message = {"type": f"saga_{verb}", "saga_id": "nobody", "reason": "because"}
        yield Bad(class_name="no such saga", where=verb, body=written(message))
        yield from _wrong(message, "reason", _REASONS, "reason")
    of_none = {name: value for name, value in _REASONS.items() if name != "missing"}
    yield from _wrong(message, "reason", of_none, "actor")
    yield from _wrong(message | {"type": "saga_cancel"}, "boolean", BOOLEANS, "now")
    yield from _wrong(message, "id", IDS, "saga_id")
    yield from _strange_members(message, ())


def unknown_types(message: dict[str, Any]) -> Iterator[Bad]:
    types = NAMES | {"unknown type": "saga_delete", "another case": "SAGA_BEGIN", "a reply's": "Do_ok"}
    yield from _wrong(message, "type", types, "type")


def for_requests() -> list[Bad]:
    message = {"type": "saga_begin", "saga_id": "bad", "steps": [STEP]}
    bad = [*begins(message), *unknown_types(message)]
    return [*bad, Bad(class_name="entry: no body", where="body", body=None)]


def for_interventions() -> list[Bad]:
    return [*interventions(), Bad(class_name="entry: no body", where="body", body=None)]


#: Values that are not request ids; so nobody can be told.
def for_request_ids() -> list[Bad]:
    body = written({"type": "saga_begin", "saga_id": "bad", "steps": [STEP]})
    texts = {name: text for name, text in IDS.items() if isinstance(text, str)}
    return [
        Bad(class_name=f"id: {name}", where="request_id", body=body, fields={"request_id": text.encode()})
        for name, text in texts.items()
    ] + [Bad(class_name="value: invalid UTF-8", where="request_id", body=body, fields={"request_id": b"\xff"})]


def for_replies(saga_id: str) -> list[Bad]:
    """`saga_id`: a saga of one step, Do, that waits for its reply."""
    message = {"type": "Do_ok", "saga_id": saga_id, "step": 1, "result": None}
    refusal = {"type": "Do_failed", "saga_id": saga_id, "step": 1, "error": None}
    bad = [
        *_no_json(message, "result"),
        *_no_json(refusal, "error"),
        *_wrong(message, "id", IDS, "saga_id"),
        *_wrong(message, "type", NAMES | {"that answers nothing": "Done", "of another": "Undo_ok"}, "type"),
        *_wrong(message, "step", NUMBERS | {"missing": MISSING, "101": 101, "not of the saga": 2}, "step"),
        *_wrong(message, "id", {"of nobody": "nobody"}, "saga_id"),
        Bad(class_name="entry: no body", where="body", body=None),
    ]
    for name, value in ENTRY_NUMBERS.items():
        body = written(message)
        bad.append(Bad(class_name=f"entry number: {name}", where="attempt", body=body, fields={"attempt": value}))
    return bad


def for_commands() -> list[Bad]:
    message = {"type": "Do", "saga_id": "bad", "step": 1, "params": None}
    undo = {"type": "Undo", "saga_id": "bad", "step": 1, "compensating": True}
    bad = [
        *_no_json(message, "params"),
        *_wrong(message, "id", IDS, "saga_id"),
        *_wrong(message, "id", IDS, "type"),
        *_wrong(message, "step", NUMBERS | {"missing": MISSING, "101": 101}, "step"),
        *_wrong(undo, "boolean", BOOLEANS, "compensating"),
        Bad(class_name="entry: no body", where="body", body=None),
    ]
    for where in ("attempt", "begun_ms", "not_after_ms"):
        for name, value in ENTRY_NUMBERS.items():
            bad.append(
                Bad(class_name=f"entry number: {name}", where=where, body=written(message), fields={where: value})
            )
    for where in ("params", "result"):
        for name, value in VALUES.items():
            if name == "a byte over 1 MiB":
                continue  # what a service returned may be longer when it is written again
            bad.append(Bad(class_name=f"value: {name}", where=where, body=written(undo), fields={where: value}))
    return bad


def for_lines(service: str) -> list[bytes]:
    """Lines of the stdin protocol. They play the `service`. LINE in a text stands for the number of the line, so that
    the answers can be told apart."""
    lines = []

    def line(body: bytes, src: str = "c1", dest: str = "orchestrator") -> None:
        envelope = b'{"src":%s,"dest":%s,"body":' % (written(src), written(dest))
        lines.append(envelope + body + b"}")

    request = {"type": "saga_begin", "msg_id": "LINE", "saga_id": "bad", "steps": [STEP]}
    for bad in (*begins(request), *unknown_types(request)):
        line(bad.body or b"")
    for bad in interventions():
        line((bad.body or b"").replace(b"{", b'{"msg_id":"LINE",', 1))
    for kind in ("saga_status", "saga_await"):
        for value in (*IDS.values(), "nobody"):
            body = with_value({"type": kind, "saga_id": "x", "msg_id": "LINE"}, "saga_id", value=value)
            line(written(body))
        line(written({"type": kind, "saga_id": "nobody"}))
    reply = {"type": "Do_ok", "msg_id": "LINE", "saga_id": "bad", "step": 1, "result": None}
    for bad in (
        *_no_json(reply, "result"),
        *_wrong(reply, "id", IDS, "saga_id"),
        *_wrong(reply, "step", NUMBERS | {"missing": MISSING, "101": 101}, "step"),
        *_wrong(reply, "type", NAMES, "type"),
    ):
        line(bad.body or b"", src=service)
    whole = {"src": "c1", "dest": "orchestrator", "body": {"type": "init", "msg_id": "LINE"}}
    for name, change in TEXTS.items():
        # A blank line asks for nothing. Besides src, dest and body there may be any other member.
        if name not in ("empty", "white space", "its type twice"):
            lines.append(change(written(whole)))
    lines += [bad.body or b"" for bad in _wrong(whole, "src", OTHERS, "src")]
    lines += [bad.body or b"" for bad in _wrong(whole, "dest", OTHERS, "dest")]
    lines += [bad.body or b"" for bad in _wrong(whole, "body", OTHERS, "body")]
    message_ids = {name: value for name, value in OTHERS.items() if name not in ("null", "missing", "a number")}
    lines += [bad.body or b"" for bad in _wrong(whole, "msg_id", message_ids, "body", "msg_id")]
    for text in (*NASTY_TEXT.values(), "nobody", ""):
        line(written({"type": "init", "msg_id": "LINE"}), dest=text)
        line(written({"type": text, "msg_id": "LINE"}), src=text)
    return [text for text in lines if b"\n" not in text]


#: Values that are neither a text nor a message number nor a body.
OTHERS: Final[dict[str, Any]] = _OTHER_TYPES | {"missing": MISSING, "true": True, "a number": 1, "a float": 1.5}
