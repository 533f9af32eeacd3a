"""What the meta data of a job say. The service's process and the job's worker write them, and anybody else may."""

import json
from typing import Final

#: Its worker has left the command to another release of the service.
LEFT: Final = "left"
#: … or to a worker that has the key: why it could not open the command. For people.
UNOPENED: Final = "unopened"


def entry_and_left(meta: bytes | None) -> tuple[str | None, bool]:
    """The entry that it is for (None: they do not say), and whether its worker has left it."""
    try:
        found = json.loads(meta or b"null")
        entry = found["entry"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, False
    return (entry if isinstance(entry, str) else None), found.get(LEFT) is True


def unopened(meta: bytes | None) -> str:
    """Why the worker of a job could not open its command; "": it could, or somebody else has written there."""
    try:
        why = json.loads(meta or b"null")[UNOPENED]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return why[:1000] if isinstance(why, str) else ""
