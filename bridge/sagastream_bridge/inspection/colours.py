"""The colours of words on a terminal, for people who can see them; a word always says the same."""

from typing import Final

#: The codes of colours, as terminals take them (ECMA-48, "select graphic rendition").
_SGR: Final = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36}
_COLOURS: Final = {
    "COMPLETED": "green",
    "PENDING": "cyan",
    "COMPENSATING": "yellow",
    "COMPENSATED": "yellow",
    "ABORTED": "red",
    "FAILED": "red",
}

#: The colours of the states of steps in a drawing.
_STATES: Final = {
    "done": "green",
    "out": "cyan",
    "waiting": "cyan",
    "failed": "red",
    "unknown": "red",
    "undone": "yellow",
    "being undone": "yellow",
}


def styled(text: str, fg: str | None = None, *, bold: bool = False) -> str:
    """The text with terminal escapes for a colour of `_SGR`, or bold. click.echo removes them if the output is not a
    terminal."""
    begin = (f"\x1b[{_SGR[fg]}m" if fg else "") + ("\x1b[1m" if bold else "")
    return f"{begin}{text}\x1b[0m" if begin else text


def status(text: str, width: int = 0) -> str:
    """A status in its colour."""
    return styled(text.ljust(width), fg=_COLOURS.get(text))


def state_of_step(text: str) -> str:
    """The state of a step in a drawing, in its colour."""
    return styled(text, fg="red" if "PARKED" in text else _STATES.get(text))
