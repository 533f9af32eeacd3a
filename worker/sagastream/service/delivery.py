"""A command as a process of its service holds it."""

from msgspec import Struct

from sagastream.broker.entries import Entry
from sagastream.core.commands import Command
from sagastream.core.service_actions import RUN, Count, Run, Undo
from sagastream.store.keys import Partition


class Delivery(Struct, frozen=True, kw_only=True, gc=False):
    """A command, the entry that it came as, and what is to be done with it."""

    entry: Entry
    command: Command
    partition: Partition  # of its entry
    done: str  # the key of the hash that holds the next two
    record: str  # the field that the answer is recorded under
    tombstone: str  # the field that is there once the step was undone
    seen: bytes = b""  # its record when it was looked up
    begun: int = 0  # if it was delivered before: how often its beginning was counted
    todo: Run | Undo = RUN

    @classmethod
    def of(cls, entry: Entry, command: Command, partition: Partition) -> "Delivery":
        return cls(
            entry=entry,
            command=command,
            partition=partition,
            done=partition.done(command.service, command.begun_ms),
            record=command.record,
            tombstone=command.tombstone,
        )

    def counter(self, what: Count) -> str:
        """The field of the records in which this is counted. Undos are counted by entry: one that is put back from the
        quarantine is tried as often again."""
        name = f"{what}/{self.entry.id.decode()}" if what is Count.UNDOS else what.value
        return f"{self.record}/{name}"
