"""How messages look to a person: those between the orchestrator and services, and those that were set aside."""

from typing import Any

from sagastream.console import printable
from sagastream.store.columns import iso
from sagastream.store.quarantine import Quarantined
from sagastream_bridge.inspection.colours import styled
from sagastream_bridge.inspection.formatting import shown


def message(body: dict[str, Any], service: str, kind: str) -> str:
    """A command or a reply on one line: who, what, and the payload."""
    arrow, fg = "->", "blue"
    if kind == "reply":
        arrow, fg = "<-", "red" if str(body["type"]).endswith("_failed") else "green"
    elif body.get("compensating"):
        fg = "yellow"
    said = next((f"{name} {shown(body[name])}" for name in ("params", "result", "error") if name in body), "")
    if body.get("compensating"):
        said = "compensating"
    name = styled(printable(str(body["type"])).ljust(24), fg=fg)
    return f"{arrow} {printable(service):<10} step {body['step']}  {name} {said}".rstrip()


def quarantined(message: Quarantined) -> str:
    """A quarantined message, on one line."""
    what = f"{message.kind} {message.saga_id}".strip() or "no message"
    return f"{message.id}  {iso(message.at_ms)}  {printable(what)}: {printable(message.reason)}"
