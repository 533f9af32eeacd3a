"""The environment variables that processes read, and what in the environment looks like one of them and is none."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Final

#: All of them.
VARIABLES: Final = (
    "SAGASTREAM_ABORTED_RETENTION_DAYS",
    "SAGASTREAM_CODEC",
    "SAGASTREAM_DASHBOARD_TOKEN",
    "SAGASTREAM_HISTORY_BYTES",
    "SAGASTREAM_HOME",
    "SAGASTREAM_KEYS",
    "SAGASTREAM_LOG_FORMAT",
    "SAGASTREAM_LOG_LEVEL",
    "SAGASTREAM_MAXMEMORY",
    "SAGASTREAM_MAX_UNREAD",
    "SAGASTREAM_PARTITIONS",
    "SAGASTREAM_PREFIX",
    "SAGASTREAM_RETENTION_DAYS",
    "SAGASTREAM_SERVICES",
    "SAGASTREAM_TRACES",
)
_PREFIX: Final = "SAGASTREAM_"
#: How alike two names are, at least, that are taken for one: what comes after the prefix, or whole names. Somebody may
#: have variables of their own with our prefix.
_ALIKE: Final = 0.5
_ALIKE_AS_A_WHOLE: Final = 0.85


def complaints(environment: Mapping[str, str]) -> Iterator[str]:
    """What looks like a mistake, one line each. Otherwise nobody would notice: without keys, values are not sealed."""
    for name in sorted(environment.keys() - set(VARIABLES)):
        if not name.upper().startswith("SAG"):
            continue
        if name.startswith(_PREFIX):
            rests = [variable.removeprefix(_PREFIX) for variable in VARIABLES]
            near = get_close_matches(name.removeprefix(_PREFIX).upper(), rests, 1, _ALIKE)
            near = [_PREFIX + rest for rest in near]
        else:
            near = get_close_matches(name.upper(), VARIABLES, 1, _ALIKE_AS_A_WHOLE)
        if near:
            yield f"nothing reads the environment variable {name}; is it a misspelling of {near[0]}?"
