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
    text: str  # what was found and, if it is a problem, what to do


def ok(about: str, text: str) -> Finding:
    return Finding(level=OK, about=about, text=text)


def warning(about: str, text: str) -> Finding:
    return Finding(level=WARNING, about=about, text=text)


def problem(about: str, text: str) -> Finding:
    return Finding(level=PROBLEM, about=about, text=text)


def repaired(about: str, text: str) -> Finding:
    return Finding(level=REPAIRED, about=about, text=text)
