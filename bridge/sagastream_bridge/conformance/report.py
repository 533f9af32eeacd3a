"""How findings look to a person. All text from outside goes through `printable`."""

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from sagastream.console import printable
from sagastream_bridge.conformance.examination import COMMAND_CHECKS, SERVICE_CHECKS
from sagastream_bridge.conformance.promises import Finding, Verdict
from sagastream_bridge.conformance.trial import Case
from sagastream_bridge.inspection import colours

_COLOURS: Final = {Verdict.KEPT: "green", Verdict.BROKEN: "red", Verdict.NOT_CHECKED: "yellow"}
_VERDICT_WIDTH: Final = max(map(len, Verdict))
_CHECK_WIDTH: Final = 30
#: The least width of the text beside a label, however narrow the terminal is.
_LEAST_WIDTH: Final = 20
#: On average, with those that undo.
_COMMANDS_A_CHECK: Final = 3


@dataclass(frozen=True, slots=True)
class Report:
    """Tells findings as soon as they are there: a table on a terminal, else a line each."""

    write: Callable[[str], object]
    columns: int | None  # of the terminal; None if there is none
    width: int  # of the column of commands
    as_json: bool

    def tell(self, findings: Iterable[Finding]) -> list[Finding]:
        """All of them, once they are told."""
        found = []
        for alike in ([one] for one in findings) if self.as_json else grouped(findings):
            found += alike
            for text in self._lines(alike):
                self.write(text)
        return found

    def _lines(self, alike: Sequence[Finding]) -> Iterator[str]:
        if self.as_json:
            yield json.dumps(asdict(alike[0]))
        elif self.columns is not None:
            yield from rows(as_one(alike), self.width, self.columns)
        else:
            yield line(as_one(alike))


def warning(service: str, cases: Sequence[Case], url: str) -> str:
    """The question before the check begins."""
    names = ", ".join(case.command for case in cases)
    undone = "undoes them if it can" if any(case.compensation for case in cases) else "does NOT undo them"
    checks = COMMAND_CHECKS * len(cases) + SERVICE_CHECKS
    return printable(
        f"This sends about {round(checks * _COMMANDS_A_CHECK, -1)} commands ({names}) to the service {service} at "
        f"{url}, which does them for real and {undone}. It should be a test environment."
    )


def width(cases: Sequence[Case]) -> int:
    """The width of the column of commands."""
    return max((len(case.command) for case in cases), default=0)


def grouped(findings: Iterable[Finding]) -> Iterator[list[Finding]]:
    """Each finding alone; but findings in a row that were not checked for the same reason come together."""
    alike: list[Finding] = []
    for finding in findings:
        if alike and (finding.verdict is not Verdict.NOT_CHECKED or finding.came != alike[0].came):
            yield alike
            alike = []
        if finding.verdict is Verdict.NOT_CHECKED:
            alike.append(finding)
        else:
            yield [finding]
    if alike:
        yield alike


def as_one(alike: Sequence[Finding]) -> Finding:
    """The findings of one group as one finding, for people."""
    [first, *more] = alike
    return replace(first, check=f"{first.check} and {len(more)} more") if more else first


def rows(finding: Finding, width: int, columns: int) -> Iterator[str]:
    """A finding as a row of a table and, below it, what there is to do or to know. `columns`: of the terminal."""
    verdict = colours.styled(finding.verdict.ljust(_VERDICT_WIDTH), fg=_COLOURS[finding.verdict])
    yield f"{verdict}  {finding.check:<{_CHECK_WIDTH}}  {finding.command:<{width}}".rstrip()
    indent = " " * (_VERDICT_WIDTH + 2)
    for label, text in _details(finding):
        first = f"{indent}{label:<8}  "
        # One column stays free: some terminals begin a new line when the last column is full.
        room = max(columns - 1 - len(first), _LEAST_WIDTH)
        pieces = textwrap.wrap(printable(text), room, break_on_hyphens=False) or [""]
        yield first + pieces[0]
        yield from (" " * len(first) + piece for piece in pieces[1:])


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
    return [("only", finding.only)] if finding.only else []
