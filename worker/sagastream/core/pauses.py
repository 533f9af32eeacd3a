"""What is paused: a service, or one of its commands. Pure."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

#: What is paused, for decisions: services, each by its name, and commands, each as `service/command`.
Paused = frozenset[str]
NOTHING_PAUSED: Final[Paused] = frozenset()


class Pause(Struct, frozen=True, kw_only=True):
    """Nothing is sent of a service, or of one of its commands, until somebody resumes it."""

    service: str
    command: str | None = None  # the command, or the compensation; None: all of them
    reason: str = ""  # why
    actor: str | None = None  # who paused it; None: they did not say
    since_ms: int = 0  # since when, in milliseconds since the epoch by the broker's clock; 0: nobody knows

    @property
    def name(self) -> str:
        """What it is called in the store."""
        return name_of_pause(self.service, self.command)

    def holds(self, service: str, command: str) -> bool:
        """Whether this command of this service is paused by it."""
        return self.service == service and self.command in (None, command)

    @property
    def told(self) -> str:
        """How people name what is paused."""
        return told(self.service, self.command)

    @property
    def words(self) -> str:
        """How the command line names it: `SERVICE` or `SERVICE COMMAND`."""
        return self.service if self.command is None else f"{self.service} {self.command}"


class Resume(Struct, frozen=True, kw_only=True):
    """Somebody has resumed a service, or one of its commands."""

    service: str
    command: str | None = None  # as it was paused
    reason: str = ""  # why; empty: they did not say
    actor: str | None = None  # who; None: they did not say
    at_ms: int  # when, in milliseconds since the epoch by the broker's clock

    @property
    def name(self) -> str:
        """The name of the pause that has ended."""
        return name_of_pause(self.service, self.command)

    @property
    def told(self) -> str:
        """How people name what was paused."""
        return told(self.service, self.command)


def told(service: str, command: str | None) -> str:
    """How people name a service, or one of its commands."""
    return f"service {service}" if command is None else f"{command} of service {service}"


def name_of_pause(service: str, command: str | None = None) -> str:
    """What a pause of a service, or of one of its commands, is called. No service has a `/` in its name."""
    return service if command is None else f"{service}/{command}"


def is_paused(service: str, command: str, paused: Paused) -> bool:
    """Whether this command of this service is paused, or the whole service is."""
    return bool(paused) and any(name in paused for name in names_of(service, command))


def names_of(service: str, command: str) -> tuple[str, str]:
    """The names of the pauses by which this command of this service can be paused: that of its service first."""
    return service, name_of_pause(service, command)


def pauses_of(service: str, command: str, pauses: Iterable[Pause]) -> list[Pause]:
    """The pauses by which this command is paused: that of its service first."""
    return sorted([one for one in pauses if one.holds(service, command)], key=lambda one: one.command is not None)
