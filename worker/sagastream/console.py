"""Text from outside, made safe to show on a terminal or in a log."""


def printable(text: str) -> str:
    """`text` on one line. Each character on which a terminal could act, or that is invisible, is escaped: control
    characters, line breaks, bidirectional overrides, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(text: str, most: int = 200) -> str:
    """`text` on one line, of at most so many characters before escaping; if it is cut off, it ends with an ellipsis."""
    return printable(text if len(text) <= most else text[: most - 1] + "…")


def describe(error: BaseException) -> str:
    """The class and the text of an error, on one line of at most 500 characters before escaping."""
    return printable(summary(error))


def summary(error: BaseException) -> str:
    """The same, not escaped: for messages that a Log takes, since it escapes them itself."""
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:  # noqa: BLE001 - it may be a user's class, whose __str__ may raise anything
        return type(error).__name__
