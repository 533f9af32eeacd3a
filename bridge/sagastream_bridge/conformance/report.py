"""How findings look to a person. Everything that came from outside goes through `printable`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import click

from sagastream.console import printable
from sagastream_bridge.conformance.examination import COMMAND_CHECKS, SERVICE_CHECKS
from sagastream_bridge.conformance.promises import Finding, Verdict
from sagastream_bridge.conformance.trial import Case

_COLOURS: Final = {Verdict.KEPT: "green", Verdict.BROKEN: "red", Verdict.NOT_CHECKED: "yellow"}
_VERDICT_WIDTH: Final = max(map(len, Verdict))
_CHECK_WIDTH: Final = 30


def warning(service: str, cases: Sequence[Case], url: str) -> str:
    """What is asked before it begins."""
    names = ", ".join(case.command for case in cases)
    undone = "undone again where it has a compensation" if any(case.compensation for case in cases) else "NOT undone"
    times = COMMAND_CHECKS * len(cases) + SERVICE_CHECKS
    return printable(
        f"The service {service} at {url} is going to be sent {names}, more than {times} times, and does what it does: "
        f"{undone}. It should be a test environment. Go on?"
    )


def width(cases: Sequence[Case]) -> int:
    """Of the column of commands."""
    return max(len(case.command) for case in cases)


def rows(finding: Finding, width: int) -> Iterator[str]:
    """A finding as a row of a table; below it, where there is something to do or to know, what that is."""
    verdict = click.style(finding.verdict.ljust(_VERDICT_WIDTH), fg=_COLOURS[finding.verdict])
    yield f"{verdict}  {finding.check:<{_CHECK_WIDTH}}  {finding.command:<{width}}".rstrip()
    indent = " " * (_VERDICT_WIDTH + 2)
    for label, text in _details(finding):
        yield f"{indent}{label:<8}  {printable(text)}"


def line(finding: Finding) -> str:
    """A finding on one line."""
    details = [f"{label} {text}" for label, text in _details(finding)]
    about = f"{finding.check}, {finding.command}" if finding.command else finding.check
    return printable(f"{finding.verdict}: {about}" + (f": {'; '.join(details)}" if details else ""))


def summary(service: str, counts: Mapping[str, int]) -> str:
    return printable(f"service {service}: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict))


def _details(finding: Finding) -> list[tuple[str, str]]:
    if finding.verdict is Verdict.BROKEN:
        texts = (finding.promise, finding.expected, finding.came, finding.read_on)
        return list(zip(("promise", "expected", "came", "read"), texts, strict=True))
    if finding.verdict is Verdict.NOT_CHECKED:
        return [("because", finding.came)]
    return []
