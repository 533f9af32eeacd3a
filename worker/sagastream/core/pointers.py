"""JSON Pointers (RFC 6901): where a value stands in another one. Pure."""

import re
from typing import Any, Final

from sagastream.core.sealed_values import NAME, sealed_value

#: The most characters of a pointer or a name that a text quotes.
_QUOTED_CHARS: Final = 128
#: A name that a text quotes as it is.
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_.$-]{1,64}")
_BAD_ESCAPE: Final = re.compile(r"~(?![01])")
#: The index of an item: no sign, no leading zero, no digits of other scripts. No list is longer than this can say.
INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")


def tokens_of(pointer: str) -> tuple[str, ...]:
    """The names and indexes in a pointer, from the outermost. Raises ValueError with what is wrong."""
    if not pointer:
        return ()
    if pointer[0] != "/":
        raise ValueError("it must begin with /")
    if "~" not in pointer:
        return tuple(pointer[1:].split("/"))
    if _BAD_ESCAPE.search(pointer):
        raise ValueError("in a name, ~ is written ~0, and / is written ~1")
    return tuple([token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/")])


def below(pointer: str, token: str | int) -> str:
    """The pointer to a member or an item of what a pointer finds."""
    return f"{pointer}/{token.replace('~', '~0').replace('/', '~1') if isinstance(token, str) else token}"


def follow(value: Any, tokens: tuple[str, ...]) -> tuple[int, Any]:
    """How many of the tokens lead to something in a value, and to what. Nothing is found inside a sealed value."""
    for done, token in enumerate(tokens):
        if isinstance(value, dict):
            if token not in value or (token == NAME and sealed_value(value) is not None):
                return done, value
            value = value[token]
        elif isinstance(value, list) and INDEX.fullmatch(token) and int(token) < len(value):
            value = value[int(token)]
        else:
            return done, value
    return len(tokens), value


def why_nothing(value: Any, token: str) -> str:
    """Why a token finds nothing in a value, as what is said of it: `has no member total`."""
    if isinstance(value, dict):
        return f"has no member {named(token)}"
    if not isinstance(value, list):
        return f"is {kind_of(value)}"
    if INDEX.fullmatch(token):
        return f"has {len(value)} items, and the index {token} is too high"
    return f"is a list, and {named(token)} is not an index"


def kind_of(value: Any) -> str:
    """What kind of JSON value this is, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        return "a list"
    return "an object" if sealed_value(value) is None else "a sealed value"


def shown(pointer: str) -> str:
    """A pointer in a text, shortened if it is long."""
    return pointer if len(pointer) <= _QUOTED_CHARS else f"{pointer[:_QUOTED_CHARS]}…"


def named(token: str) -> str:
    """A name in a text: as it is if it is plain, or else quoted."""
    return token if _PLAIN_NAME.fullmatch(token) else f"{token[:64]!a}"
