"""What the scripts do, in Python, without a server: those of services are the library's own, for its test kit.

test_mirror.py has the same calls made to the scripts on real servers and to these functions, and compares.
"""

from sagastream.testing.records import Answered, Recalled, Records, answer, recall

__all__ = ["Answered", "Recalled", "Records", "answer", "commits", "recall"]


def commits(version_there: int | None, version_seen: int | None) -> bool:
    """Whether commit.lua writes a change. None: there is no such saga."""
    return version_there == version_seen
