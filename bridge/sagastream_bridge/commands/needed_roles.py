"""Which role a command needs: a user who was denied something is told its name."""

from collections.abc import Mapping
from typing import Any, Final

#: As `sagastream acl` takes it, by the name of the command: the role with the fewest rights that will do. What is not
#: here is for an administrator, or asks the store nothing.
_ROLES: Final[Mapping[str, str]] = {
    "worker": "worker",
    "service": "service --service NAME [--queue QUEUE]",
    "rq-worker": "rq-worker --service NAME",
    "bridge": "bridge [--service NAME]",
    "begin": "begin-only",
    **dict.fromkeys(("signal", "cancel", "retry", "skip", "abandon"), "client"),
    **dict.fromkeys(("show", "list", "operations", "paused", "bulk", "metrics", "dashboard"), "inspector"),
    **dict.fromkeys(("quarantine list", "quarantine show", "doctor"), "inspector"),
    **dict.fromkeys(("pause", "resume", "erase", "drop-commands"), "operator"),
    **dict.fromkeys(("quarantine replay", "quarantine drop"), "operator"),
    **dict.fromkeys(("deploy", "definitions", "graph", "lint", "explore"), "deployer"),
}
#: … and if the command has one of these options.
_WITH: Final[Mapping[str, Mapping[str, str]]] = {
    "doctor": dict.fromkeys(("repair", "after_failover", "settled"), "doctor"),
    "dashboard": {"allow_actions": "operator"},
}


def role_of(command: str, options: Mapping[str, Any]) -> str | None:
    """The role that a command needs, as `sagastream acl` takes it. `command`: its name, below that of its group."""
    more = (role for option, role in _WITH.get(command, {}).items() if options.get(option))
    return next(more, _ROLES.get(command))
