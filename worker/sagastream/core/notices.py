"""News of the orchestrator for all who follow it: the entries of the events stream, and the bodies of answers."""

from msgspec import Struct

from sagastream.core.messages import Fields
from sagastream.core.strict_json import encode


class Notice(Struct, frozen=True, kw_only=True, gc=False):
    """One entry of the events stream: news from the orchestrator for all who follow it."""

    kind: str  # outcome, parked, done, refused, command, reply
    body: bytes  # the message itself, JSON
    saga_id: str | None = None
    service: str | None = None  # of command and reply
    request_id: str | None = None  # of the request that it answers

    def fields(self) -> Fields:
        fields: Fields = {"kind": self.kind, "body": self.body}
        for name in ("saga_id", "service", "request_id"):
            if (value := getattr(self, name)) is not None:
                fields[name] = value
        return fields


def outcome_body(saga_id: str, status: str, reason: str | None) -> bytes:
    members = {"type": f"saga_{status.lower()}", "saga_id": saga_id, "status": status}
    if reason is not None:
        members["reason"] = reason
    return encode(members)


def parked_body(saga_id: str, status: str, reason: str) -> bytes:
    return encode({"type": "saga_parked", "saga_id": saga_id, "status": status, "reason": reason})


def done_body(verb: str, saga_id: str) -> bytes:
    """The answer to an operator's request that was done."""
    return encode({"type": f"saga_{verb}_ok", "saga_id": saga_id})


def error_body(code: int, text: str) -> bytes:
    return encode({"type": "error", "code": code, "text": text})
