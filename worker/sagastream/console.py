"""What a person sees: text of strangers made harmless, and the one way to say a line on stderr."""

import sys


def printable(text: str) -> str:
    """`text` on one line with every character that a terminal could act on, or that hides, written as an escape:
    control characters, line breaks, bidirectional overrides, lone surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(who: str, what: str) -> None:
    """One line on stderr."""
    print(printable(f"{who}: {what}"), file=sys.stderr, flush=True)
