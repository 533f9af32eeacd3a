"""Write log records to stderr, as text or as JSON. Only entry points of programs use this: the command line, and an RQ
worker if nobody has configured logging for it."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from sagastream.console import describe, printable
from sagastream.errors import SettingsError
from sagastream.telemetry import Escaped, HandlerFields

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
#: The command line stores its options in these variables, so that child processes inherit them.
FORMAT_VARIABLE: Final = "SAGASTREAM_LOG_FORMAT"
LEVEL_VARIABLE: Final = "SAGASTREAM_LOG_LEVEL"

#: The attributes that every record has, and those that formatters add. All others were passed with `extra`.
_USUAL: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def write_to_stderr(
    environment: Mapping[str, str] = os.environ, *, unless: Callable[[logging.LogRecord], bool] | None = None
) -> None:
    """Write all log records of this process to stderr from now on, in the format and from the level that the
    environment variables name; by default as text, from INFO. A second call replaces the first. `unless`: which records
    are not written.

    Raises SettingsError if a variable has a value that is not allowed.
    """
    written = _setting(environment, FORMAT_VARIABLE, FORMATS, "text")
    level = _setting(environment, LEVEL_VARIABLE, LEVELS, "info")
    handler = _Stderr()
    handler.setFormatter(JsonLines() if written == "json" else TextLines())
    handler.addFilter(HandlerFields())
    if unless is not None:
        handler.addFilter(lambda record: not unless(record))
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Stderr)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def _setting(environment: Mapping[str, str], variable: str, allowed: tuple[str, ...], default: str) -> str:
    value = environment.get(variable, "").lower() or default
    if value not in allowed:
        raise SettingsError(f"{variable} is {value[:50]!a}; it must be one of {', '.join(allowed)}")
    return value


class TextLines(logging.Formatter):
    """Records as `name: text`. `name` is the process or, if the record is not one of sagastream's, the logger. A record
    of a handler ends with the saga, the step and the attempt, and says if it is of a compensation; every record ends
    with the id of the trace that its saga belongs to, if there is one. A record of another
    logger than sagastream's shows its level, from WARNING on; the texts of sagastream say by themselves what is wrong.
    An exception follows, each line of its traceback with the name too."""

    def format(self, record: logging.LogRecord) -> str:
        name = getattr(record, "source", record.name)
        level = "" if record.levelno < logging.WARNING or _is_ours(record) else f"{record.levelname}: "
        lines = [level + _message(record) + _suffix(record), *_traceback(record).splitlines()]
        return "\n".join(printable(f"{name}: {line}") for line in lines)


class JsonLines(logging.Formatter):
    """Records as one JSON object a line: `time` (ISO 8601, UTC), `level`, `logger`, `message`, each value that was
    passed with `extra` and is not None, and `exception`, a traceback. ASCII only, so that nothing can act on a
    terminal: the reader of the JSON gets each text as it was, and has to escape it where it shows it."""

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            # JSON escapes all that could act. What is escaped already would reach the reader with its escapes.
            "message": record.msg.raw if isinstance(record.msg, Escaped) and not record.args else _message(record),
        }
        if text := _traceback(record):
            members["exception"] = text
        for name, value in vars(record).items():
            if name not in _USUAL and name not in members and value is not None:
                members[name] = value
        return "{" + ", ".join(f"{_json(name)}: {_json(value)}" for name, value in members.items()) + "}"


class _Stderr(logging.Handler):
    """Writes to sys.stderr as it is at that moment. Nothing is raised if nobody can read it."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None:  # it was closed before this program started
            return
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - values passed with `extra` may raise anything
            self.handleError(record)
            return
        with contextlib.suppress(OSError, ValueError):
            # In one call, so that the lines of several processes do not get mixed.
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - a handler's mistake in a log call must not look like a mistake of sagastream
        return f"{record.pathname}:{record.lineno}: this log call cannot be written: {describe(error)}"


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith("sagastream.")


def _suffix(record: logging.LogRecord) -> str:
    """Says to which call of a handler a record belongs, and to which trace. The messages of sagastream itself say the
    call already."""
    saga_id: object = getattr(record, "saga_id", None)
    trace_id: object = getattr(record, "trace_id", None)
    if saga_id is None:
        return ""
    trace = [] if trace_id is None else [f"trace {trace_id}"]
    if _is_ours(record):
        return f" [{trace[0]}]" if trace else ""
    step, attempt = getattr(record, "step", None), getattr(record, "attempt", None)
    compensation = ["compensation"] if getattr(record, "compensating", None) is True else []
    return f" [{', '.join([f'saga {saga_id}', f'step {step}', *compensation, f'attempt {attempt}', *trace])}]"


def _traceback(record: logging.LogRecord) -> str:
    # Not exc_text first: in records of sagastream it is escaped, see telemetry.Log.
    parts = [logging.Formatter().formatException(record.exc_info) if record.exc_info else record.exc_text]
    parts.append(record.stack_info)
    return "\n".join(part for part in parts if part)


def _json(value: object) -> str:
    """The value as JSON or, if it cannot be JSON, its repr as a JSON string."""
    import orjson  # the command line imports this module before it knows whether it needs orjson

    try:
        plain = orjson.loads(orjson.dumps(value))
    except Exception:  # noqa: BLE001 - the object may be of any class
        plain = _shown(value)
    return json.dumps(plain)


def _shown(value: object) -> str:
    try:
        return printable(value) if isinstance(value, str) else ascii(value)
    except Exception as error:  # noqa: BLE001 - its __repr__ may raise anything
        return describe(error)
