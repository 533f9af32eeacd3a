"""What others wrote, made harmless for whoever reads it on a terminal or in a log."""


def printable(text: str) -> str:
    """`text` on one line with every character that a terminal could act on, or that hides, written as an escape:
    control characters, line breaks, bidirectional overrides, lone surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def describe(error: BaseException) -> str:
    """The kind and text of an error, whatever its text is like."""
    try:
        return printable(f"{type(error).__name__}: {error}"[:500])
    except Exception:  # noqa: BLE001 - it is the user's class, and its __str__ may do anything
        return type(error).__name__
