"""Pure: holes that releases of Redis and Valkey are known to have, and the releases that mended them.

Listed are those through which somebody who may do what users of sagastream may, run scripts and read streams, gets more
than that. Each is given with the first release that mended it, branch by branch. An older branch that is not listed got
no such release.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

_Version = tuple[int, ...]


class _Hole(NamedTuple):
    name: str
    harm: str
    since: _Version  # the first release that has it
    mended: Mapping[str, tuple[_Version, ...]]  # by the kind of server


_HOLES: Final = (
    _Hole(
        "CVE-2025-49844",
        "who may run scripts can run code in the server",
        (0,),
        {
            "Redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
            "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4), (9, 0, 0)),
        },
    ),
    _Hole(
        "CVE-2025-67733",
        "a script can forge answers to others on its connection",
        (0,),
        {"Valkey": ((7, 2, 12), (8, 0, 7), (8, 1, 6), (9, 0, 2))},
    ),
    _Hole(
        "CVE-2026-23479",
        "where maxmemory-clients is set, who may log in can run code in the server",
        (7, 2, 0),
        {
            "Redis": ((7, 2, 14), (7, 4, 9), (8, 2, 6), (8, 4, 3), (8, 6, 3)),
            "Valkey": ((7, 2, 14), (8, 0, 10), (8, 1, 7), (9, 0, 4)),
        },
    ),
    _Hole(
        "CVE-2026-81934",
        "where it speaks TLS, who reaches its port can run code in it",
        (0,),
        {"Redis": ((6, 2, 24), (7, 2, 16), (7, 4, 11), (8, 2, 9), (8, 4, 6), (8, 6, 6), (8, 8, 2), (8, 10, 1))},
    ),
    _Hole(
        "CVE-2026-56684",
        "where it speaks TLS, who may call CLIENT KILL can run code in it",
        (0,),
        {"Valkey": ((7, 2, 14), (8, 0, 10), (8, 1, 9), (9, 0, 5), (9, 1, 1))},
    ),
)


def holes(kind: str, version: str) -> str | None:
    """What is known against this release, and which to take instead; None: nothing.

    `kind`: Redis or Valkey. `version`: as INFO says it, such as 7.0.15.
    """
    here = _numbers(version)
    if here is None:
        return None
    open_ones = [hole for hole in _HOLES if _has(hole, kind, here)]
    if not open_ones:
        return None
    known = "; ".join(f"{hole.name}: {hole.harm}" for hole in open_ones)
    best = max(_next(hole.mended[kind], here) for hole in open_ones)
    take = ".".join(map(str, best))
    return f"{kind} {version} has known holes ({known}): take {take}, or what your distribution fixed under it"


def _has(hole: _Hole, kind: str, here: _Version) -> bool:
    mended = hole.mended.get(kind)
    if mended is None or here < hole.since:
        return False
    of_its_branch = [release for release in mended if release[:2] == here[:2]]
    return here < of_its_branch[0] if of_its_branch else here < mended[-1]


def _next(mended: tuple[_Version, ...], here: _Version) -> _Version:
    """The first release after this one in which a hole is mended."""
    return next(release for release in mended if release > here)


def _numbers(version: str) -> _Version | None:
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isascii() and part.isdigit() for part in parts) else None
