"""The other releases of a service: what they have, and this process does not.

In every deploy two releases of a service share its commands. A process gets commands that only the other release has.
The hash in which all of them publish their commands tells it so. See `service_rules.without_handler`.
"""

from collections.abc import Sequence

from sagastream.core.commands import Command
from sagastream.core.messages import is_id
from sagastream.core.steps import AS_PUBLISHED
from sagastream.service.declaration import Service
from sagastream.service.delivery import Delivery
from sagastream.service.inbox import CommandInbox
from sagastream.service.report import ServiceReport


class OtherReleases:
    """What one process knows of the other releases of its service. Safe for several threads."""

    def __init__(self, service: Service, inbox: CommandInbox, report: ServiceReport) -> None:
        self._service = service
        self._inbox = inbox
        self._report = report
        self._told: set[str] = set()  # the names that it has reported

    def have(self, command: Command) -> bool:
        """Whether the service publishes this command, or this compensation. Raises redis.RedisError."""
        # Not cached: another release may publish it at any moment, and a wrong no aborts a saga.
        published = self._inbox.published()
        return is_id(command.type) and command.type in (published.values() if command.compensating else published)

    def undo_of(self, command: Command) -> str | None:
        """The compensation of a transaction: as the step or this process says, or else as the service publishes. None:
        it needs none; AS_PUBLISHED: nobody says. Raises redis.RedisError."""
        undo = self._service.undo_of(command)
        if command.compensation != AS_PUBLISHED:
            return undo
        has_it = self._service.registration(command) is not None
        if has_it and undo not in (AS_PUBLISHED, None):
            return undo
        # A process of another release may have done it. So that this one needs no undo, or does not know the command,
        # says nothing of what came of it. Nor does it if no release publishes it: that may have been deleted.
        published = self._inbox.published().get(command.type)
        if published and is_id(published) and published != command.type:
            return published
        return None if published == "" or (has_it and undo is None) else AS_PUBLISHED

    def leave(self, deliveries: Sequence[Delivery]) -> None:
        """Have processes of another release take these over at once. Says so once for each command."""
        for name in {delivery.command.type for delivery in deliveries} - self._told:
            self._told.add(name)
            self._report.left_to_others(name)
        self._inbox.leave(deliveries)
