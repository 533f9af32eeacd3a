"""What the scripts do, in Python, without a server. For the scripts of services, this is the code of the library's test
kit.

test_mirror.py makes the same calls to the scripts on real servers and to these functions, and compares the results.
"""

from sagastream.testing.records import Answered, Recalled, Records, answer, recall

#: The version, and the time of the last change. In a world where no saga is begun again, the version is enough.
_Compared = int | tuple[int, int]

__all__ = ["Answered", "Recalled", "Records", "answer", "commits", "recall"]


def commits(there: _Compared | None, seen: _Compared | None) -> bool:
    """Whether commit.lua writes a change, given what the saga is and what it was when it was read. None: there is no
    saga."""
    return there == seen
