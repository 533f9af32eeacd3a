"""What the scripts do, in Python, without a server: those of services are the library's own, for its test kit.

test_mirror.py has the same calls made to the scripts on real servers and to these functions, and compares.
"""

from sagastream.testing.records import Answered, Recalled, Records, answer, recall

#: The version, and the time of the last change; in a world in which nothing is begun anew the version will do.
_Compared = int | tuple[int, int]

__all__ = ["Answered", "Recalled", "Records", "answer", "commits", "recall"]


def commits(there: _Compared | None, seen: _Compared | None) -> bool:
    """Whether commit.lua writes a change, by what there is of a saga and what was seen of it. None: there is none."""
    return there == seen
