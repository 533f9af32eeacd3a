"""What the doctor says, and how it looks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import redis

from sagastream.console import describe, printable
from sagastream.core.causes import Cause, Evidence
from sagastream_bridge.inspection import screen
from sagastream_bridge.inspection.colours import styled

OK: Final = "ok"
WARNING: Final = "warning"
PROBLEM: Final = "problem"
REPAIRED: Final = "repaired"
_LEVELS: Final = {OK: "green", WARNING: "yellow", PROBLEM: "red", REPAIRED: "cyan"}
#: How far the lines of a finding after its first one are indented on a terminal.
_INDENT: Final = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    level: str  # ok, warning, problem, repaired
    about: str  # server, sagas, workers, service …
    text: str  # what was found
    do: tuple[str, ...] = ()  # what helps, one thing each
    kind: str | None = None  # of its cause, if it is one of sagastream.core.causes

    @property
    def line(self) -> str:
        """All of it, on one line."""
        return "; ".join((self.text, *self.do))


def ok(about: str, text: str) -> Finding:
    return Finding(level=OK, about=about, text=text)


def warning(about: str, text: str, *do: str, kind: str | None = None) -> Finding:
    return Finding(level=WARNING, about=about, text=text, do=do, kind=kind)


def problem(about: str, text: str, *do: str, kind: str | None = None) -> Finding:
    return Finding(level=PROBLEM, about=about, text=text, do=do, kind=kind)


def repaired(about: str, text: str) -> Finding:
    return Finding(level=REPAIRED, about=about, text=text)


def problem_of(about: str, text: str, cause: Cause) -> Finding:
    """A problem that is this cause."""
    return problem(about, text, *cause.do, kind=cause.kind)


def not_allowed(about: str, text: str, error: "redis.exceptions.NoPermissionError") -> Finding:
    """A problem that this user may not repair."""
    return problem(about, f"{text}; this user may not repair it, run this as one who may: {describe(error)}")


def cannot_tell(about: str, evidence: Evidence) -> Finding:
    """Nobody is heard, for a reason that has nothing to do with who is there."""
    text = "who is at work cannot be told: the broker takes no writes, so no process is heard"
    return warning(about, text, kind=evidence.broker[0].kind)


def lines(found: Finding, width: int | None = None) -> Iterator[str]:
    """A finding of the doctor; on one line, unless it is for a terminal of this width."""
    head = f"{styled(found.level.ljust(8), fg=_LEVELS.get(found.level))}  {printable(found.about):<12}  "
    if width is None:
        yield head + printable(found.line)
        return
    yield from screen.wrapped(head + printable(found.text), width, _INDENT)
    for line in found.do:
        yield from screen.advice(" " * _INDENT, printable(line), width)
