"""The attributes of a saga: names and values by which people find it. They are never sent to services, and never
sealed. Pure."""

import re
from collections.abc import Iterable
from typing import Any, Final
from unicodedata import category

from sagastream.errors import MalformedMessage

#: A whole number or a text.
Value = str | int
Attributes = dict[str, Value]

#: How many a saga may have.
MAX_ATTRIBUTES: Final = 8
#: The longest value, in bytes of UTF-8. It is part of the name of a key.
MAX_VALUE_BYTES: Final = 64
#: The largest number, either way: every language reads it from JSON without loss.
MAX_NUMBER: Final = 2**53 - 1
NAME_PATTERN: Final = re.compile("[a-z][a-z0-9_]{0,31}")
#: What a saga may be found by besides. An attribute with such a name would be taken for it.
RESERVED: Final = frozenset({"at", "begun", "definition", "error", "held", "newer", "older", "parked", "status"})
#: What a text must not have: control characters, halves of characters, separators of lines.
_UNFIT: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


def parse_attributes(value: Any, where: str) -> Attributes | None:
    """The member `attributes` of a saga_begin; None: there are none. `where`: the name of the member in the text of the
    MalformedMessage that is raised if something is wrong."""
    if not isinstance(value, dict):
        raise MalformedMessage(f"{where} must be an object of names and values")
    if len(value) > MAX_ATTRIBUTES:
        raise MalformedMessage(f"{where}: {len(value)} are too many, a saga may have {MAX_ATTRIBUTES}")
    for name, one in value.items():
        check_name(name, where)
        check_value(one, f"{where}: {name}")
    return dict(value) or None


def check_name(name: object, where: str) -> None:
    """Raises MalformedMessage if no attribute may have this name."""
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        what = "a name is 1 to 32 characters of a-z 0-9 _, the first a letter"
        raise MalformedMessage(f"{where}: {name!a:.80} is no name of an attribute: {what}")
    if name in RESERVED:
        raise MalformedMessage(f"{where}: {name} is taken, every saga is found by that: choose another name")


def check_value(value: object, where: str) -> None:
    """Raises MalformedMessage if no attribute may have this value."""
    if type(value) is int:
        if abs(value) > MAX_NUMBER:
            raise MalformedMessage(f"{where} must be a whole number between -2^53 and 2^53; write it as a text")
        return
    if not isinstance(value, str):
        raise MalformedMessage(f"{where} must be a text or a whole number")
    if any(category(one) in _UNFIT for one in value):
        raise MalformedMessage(f"{where} has a control character or half a character: a value is one line of text")
    if (size := len(value.encode())) > MAX_VALUE_BYTES:
        raise MalformedMessage(f"{where} has {size} bytes of UTF-8, at most {MAX_VALUE_BYTES} are allowed")


def named(texts: Iterable[str], where: str) -> dict[str, str]:
    """Attributes as people write them in a command line, each as NAME=VALUE; the values are texts. Raises
    MalformedMessage.

    `where`: the name of the option."""
    found: dict[str, str] = {}
    for text in texts:
        name, value = _named(text, where)
        if name in found:
            raise MalformedMessage(f"{where} names {name} twice: a saga has one value of it")
        found[name] = value
    return found


def _named(text: str, where: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise MalformedMessage(f"{where} {text!a:.80} is not NAME=VALUE")
    check_name(name, where)
    check_value(value, f"{where}: {name}")
    return name, value
