"""What is fitted to a terminal: colours, findings, pictures."""

import click
import pytest

from sagastream.core.saga import SagaStatus
from sagastream.core.step_state import StepStatus
from sagastream_bridge.inspection import colours, findings, screen
from sagastream_bridge.inspection.findings import warning


@pytest.mark.parametrize("name", [*SagaStatus, *StepStatus, "SOMETHING"])
def test_a_status_is_padded_without_its_colour(name: str) -> None:
    assert click.unstyle(colours.status(name, 14)) == name.ljust(14)


def test_on_a_terminal_what_helps_stands_below_a_finding() -> None:
    finding = warning("service shop", "no process of service shop is listening " * 3, "sagastream service M:N  # one")
    lines = [click.unstyle(line) for line in findings.lines(finding, 80)]
    assert lines[-2:] == ["    sagastream service M:N", "           # one"]
    assert "" not in lines
    assert all(len(line) <= 80 for line in lines)
    assert list(findings.lines(finding)) == [f"{colours.styled('warning ', 'yellow')}  service shop  {finding.line}"]


def test_a_picture_that_is_too_high_is_clipped_with_its_status_first() -> None:
    lines = [f"line {number} of a saga" for number in range(10)]
    assert screen.clipped(lines, 10, 80) == lines
    assert screen.clipped(lines, 4, 10)[:2] == ["line 0 of…", "line 1 of…"]
    assert screen.clipped(lines, 4, 80) == [*lines[:3], "… 7 more lines: without --watch, all are shown"]
    history = screen.clipped(lines, 4, 80, newest_last=True)
    assert history == [lines[0], "… 7 more lines: without --watch, all are shown", *lines[8:]]
    for height in (1, 2, 3):
        assert len(screen.clipped(lines, height, 80)) <= max(height, 2)
        assert len(screen.clipped(lines, height, 80, newest_last=True)) <= max(height, 2)


def test_pictures_take_the_place_of_each_other_on_a_screen_of_their_own() -> None:
    said: list[str] = []
    canvas = screen.Canvas(said.append)
    canvas.close()
    assert said == []
    canvas.draw(["one", "two"])
    canvas.draw(["three"])
    canvas.close()
    text = "".join(said)
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1
    assert text.endswith("\x1b[H\x1b[Jthree\x1b[?1049l")
