"""How pages say what they show: the templates, and the words and tones that they use.

Everything that a template puts out is escaped twice: for HTML, and what is invisible or would act on a terminal that a
person copies it to.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import jinja2
import orjson
from markupsafe import Markup

from sagastream.codecs.setting import codec_of
from sagastream.console import printable
from sagastream.core.causes import Cause
from sagastream.core.durations import spoken
from sagastream.core.history_events import HistoryKind
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState
from sagastream.core.sealed_messages import opened_message
from sagastream.core.sealed_values import replaced
from sagastream.core.strict_json import encode
from sagastream.store.columns import iso
from sagastream.store.quarantine import Quarantined
from sagastream_bridge.dashboard import timeline
from sagastream_bridge.inspection.formatting import apart

FOLDER: Final = Path(__file__).parent
#: The longest JSON that a page shows of one value, in characters.
_MOST_JSON: Final = 8_000

#: The tone of each status and of each phase, a class of the style sheet.
_STATUS_TONES: Final[Mapping[str, str]] = {
    "PENDING": "live",
    "COMPENSATING": "back",
    "COMPLETED": "ok",
    "ABORTED": "gone",
    "PARKED": "bad",
}
PHASE_TONES: Final[Mapping[Phase, str]] = {
    Phase.WAITING: "idle",
    Phase.BYPASSED: "idle",
    Phase.AWAITING: "live",
    Phase.OUT: "live",
    Phase.BACKING_OFF: "back",
    Phase.RETRY_AWAITED: "back",
    Phase.PARKED: "bad",
    Phase.COMPLETED: "ok",
    Phase.SKIPPED: "idle",
    Phase.FAILED: "bad",
    Phase.IN_DOUBT: "bad",
    Phase.UNDO_OUT: "back",
    Phase.UNDO_BACKING_OFF: "back",
    Phase.UNDO_PARKED: "bad",
    Phase.COMPENSATED: "gone",
    Phase.UNDO_SKIPPED: "idle",
}

#: The tone of what happened, by the kind of the event in a history.
EVENT_TONES: Final[Mapping[HistoryKind, str]] = {
    **dict.fromkeys(HistoryKind, "idle"),
    **dict.fromkeys((HistoryKind.SENT, HistoryKind.AWAITED), "live"),
    **dict.fromkeys((HistoryKind.UNDO_SENT, HistoryKind.UNDO_PUT_OFF, HistoryKind.UNDONE), "back"),
    **dict.fromkeys((HistoryKind.DONE, HistoryKind.LATE), "ok"),
    **dict.fromkeys(
        (
            HistoryKind.FAILED,
            HistoryKind.NOT_ANSWERED,
            HistoryKind.UNKNOWN,
            HistoryKind.PARKED,
            HistoryKind.UNDO_FAILED,
            HistoryKind.UNDO_NOT_ANSWERED,
            HistoryKind.UNDO_UNKNOWN,
            HistoryKind.DEADLINE,
        ),
        "bad",
    ),
}


class Lines(str):
    """Text of several lines, each of which was made printable."""

    __slots__ = ()


def lines(text: str) -> Lines:
    return Lines("\n".join(map(printable, text.split("\n"))))


def pretty(data: bytes | None) -> Lines:
    """JSON as people read it, not too much of it; of what is still sealed in it, the key."""
    return Lines("") if data is None else as_json(orjson.loads(data))


def as_json(given: Any) -> Lines:
    """The same of a JSON value."""
    value: Any = replaced(given, lambda one: f"sealed with key {one.key}")
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if len(text) > _MOST_JSON:
        text = text[:_MOST_JSON] + f"\n… and {len(text) - _MOST_JSON} characters more: sagastream show ID --json"
    return lines(text)


def body(message: Quarantined) -> Lines:
    """The body of a message that was set aside: as JSON if it is some, with its values opened that can be."""
    opened = opened_message(codec_of(None), message.message)
    if message.message:
        with suppress(TypeError, RecursionError):  # it nests too deep to be written
            return pretty(encode(opened))
    return lines(message.body[:_MOST_JSON].decode(errors="backslashreplace"))


def age(ms: int | None, now_ms: int) -> Markup:
    """How long ago a time was, or how far it is away; the time itself for those who point at it."""
    if ms is None:
        return Markup("")
    return Markup('<time datetime="{0}" title="{0} UTC">{1}</time>').format(iso(ms), apart(ms, now_ms))


def size(count: float) -> str:
    """A number of bytes, short."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def command(text: str) -> Markup:
    """A thing that helps: a command to copy, and what is said about it. Or a sentence."""
    line, parted, remark = printable(text).partition("  # ")
    if not parted and not line.startswith(("sagastream ", "redis-cli ", "kill ", "rq ")):
        return Markup('<span class="remark">{}</span>').format(line)
    said = Markup('<span class="remark">{}</span>').format(remark) if parted else ""
    return Markup('<code class="command" data-copy>{}</code>{}').format(line, said)


def beside_kind(cause: Cause) -> str:
    """What a cause says, as it stands beside the word for its kind: that word need not be told twice."""
    word = re.escape(kind_of(cause))
    return re.sub(f"^{word}:? |^(step [^ ]+: ){word}: ", lambda found: found[1] or "", cause.text, count=1)


def kind_of(cause: Cause) -> str:
    return cause.kind.replace("_", " ")


def status_of(state: SagaState) -> str:
    return "PARKED" if state.parked else str(state.status)


def completed(state: SagaState) -> str:
    """How a saga that is COMPLETED has ended."""
    skipped = [state.told(at) for at, step in enumerate(state.steps, 1) if step.phase is Phase.SKIPPED]
    return (
        f"all steps are done, but for what was skipped: step {', '.join(skipped)}" if skipped else "all steps are done"
    )


def pill(text: str, tone: str | None = None) -> Markup:
    """A status: its word, with its colour beside it."""
    found = tone or _STATUS_TONES.get(text, "idle")
    return Markup('<span class="pill tone-{}">{}</span>').format(found, printable(text.lower()))


def environment(shown: Mapping[str, Any]) -> jinja2.Environment:
    """The templates. `shown`: names that all of them know."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        finalize=_finalized,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.filters |= {
        "age": age,
        "beside_kind": beside_kind,
        "as_json": as_json,
        "command": command,
        "completed": completed,
        "count": lambda number: f"{number:,}",
        "iso": iso,
        "kind": kind_of,
        "pill": pill,
        "pretty": pretty,
        "size": size,
        "spoken": spoken,
        "status": status_of,
        "took": timeline.took,
    }
    found.globals |= {"EVENT_TONES": EVENT_TONES, "PHASE_TONES": PHASE_TONES} | dict(shown)
    return found


def _finalized(value: Any) -> Any:
    """What a template puts out, harmless."""
    if value is None:
        return ""
    if isinstance(value, Markup | Lines) or not isinstance(value, str):
        return value
    return printable(value)
