"""Reading members of decoded JSON objects, strictly. Each function raises MalformedMessage if something is wrong.

`where`: the name of the object in the text of that error.
"""

import re
from difflib import get_close_matches
from typing import Any

from sagastream.core.commands import REPLY_PATTERN
from sagastream.core.messages import ID_PATTERN, SERVICE_PATTERN
from sagastream.core.steps import FORMATS, MAX_STEPS, PLAIN
from sagastream.errors import MalformedMessage


def checked_object(value: Any, where: str, known: set[str] | None) -> None:
    """Check that this is an object with no members but the known ones; None: with any members."""
    if not isinstance(value, dict):
        raise MalformedMessage(f"{where} is not a JSON object")
    if known is not None and not value.keys() <= known:
        unknown = min(value.keys() - known)[:128]
        near = get_close_matches(unknown, sorted(known - value.keys()), 1)
        meant = f"; is it a misspelling of {near[0]}?" if near else ""
        raise MalformedMessage(f"{where} has an unknown member {unknown!a}{meant}")


def name_in(value: dict[str, Any], key: str, where: str, pattern: re.Pattern[str] = ID_PATTERN) -> str:
    """The member of this key, which must be a name."""
    name = value.get(key)
    if not isinstance(name, str) or not pattern.fullmatch(name):
        characters = "A-Z a-z 0-9 . _ -" if pattern is SERVICE_PATTERN else "A-Z a-z 0-9 . _ : -"
        allowed = f"1 to {135 if pattern is REPLY_PATTERN else 128} characters of {characters}"
        raise MalformedMessage(f"{where}: {key} " + (f"must be {allowed}" if key in value else "is missing"))
    return name


def type_of(body: Any) -> str:
    """The type of a decoded body."""
    checked_object(body, "the body", None)
    return name_in(body, "type", "the body", REPLY_PATTERN)


def format_of(body: Any, where: str) -> int:
    """The format of a decoded request; a request that names none has the plain one."""
    number = body.get("format", PLAIN) if isinstance(body, dict) else PLAIN
    if type(number) is not int or number < 1:
        raise MalformedMessage(f"{where}: format must be a whole number from 1")
    return number


def known_format(body: Any, where: str) -> int:
    """The format of a request that this release is asked to carry out."""
    if (number := format_of(body, where)) not in FORMATS:
        known = ", ".join(map(str, sorted(FORMATS)))
        raise MalformedMessage(f"{where}: format {number} is not known to this release, which knows {known}")
    return number


def step_number(body: dict[str, Any]) -> int:
    """The number of the step that a command or reply names."""
    step = body.get("step")
    if type(step) is not int or not 1 <= step <= MAX_STEPS:
        raise MalformedMessage(f"step must be a whole number from 1 to {MAX_STEPS}")
    return step


def limit(number: Any, name: str, where: str, most: int) -> int:
    """This number, which must be whole and from 1 to `most`. `name`: of the member that it is the value of."""
    if type(number) is not int or not 1 <= number <= most:
        raise MalformedMessage(f"{where}: {name} must be a whole number from 1 to {most}")
    return number


def flag_in(step: dict[str, Any], name: str, where: str) -> bool:
    """The member of this name, which must be true or false."""
    if not isinstance(step[name], bool):
        raise MalformedMessage(f"{where}: {name} must be true or false")
    return bool(step[name])
