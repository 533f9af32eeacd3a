"""What the doctor says."""

from dataclasses import dataclass
from typing import Final

OK: Final = "ok"
WARNING: Final = "warning"
PROBLEM: Final = "problem"
REPAIRED: Final = "repaired"


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
