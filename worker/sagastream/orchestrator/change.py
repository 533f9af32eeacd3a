"""What one turn does to one saga."""

from dataclasses import dataclass, field

from msgspec.structs import replace

from sagastream.broker.group_reader import Entry
from sagastream.core.messages import Command, Notice
from sagastream.core.saga import Found, SagaState
from sagastream.core.transitions import Decision
from sagastream.errors import UnreadableSaga
from sagastream.store import keys, saga_hash


@dataclass(slots=True)
class Change:
    """All that one turn does to one saga (or, where `saga_id` is None, about entries that name no saga)."""

    saga_id: str | None
    before: Found
    after: Found
    commands: list[Command] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    quarantined: list[tuple[Entry, str]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)  # to be acknowledged
    rearm: bool = False  # set its place in timers and ended right, whether it moves or not
    # What is left to a newer release: entries, or None where the saga is due; each with its format.
    left: list[tuple[Entry | None, int]] = field(default_factory=list)

    def add(self, entry: Entry | None, decision: Decision) -> None:
        """Fold one more decision over those before it. `entry`: what it answers; None: its time had come."""
        if decision.left:
            self.left.append((entry, decision.left))
            return
        self.after = decision.state
        self.commands += decision.commands
        self.notices += decision.notices
        if entry is None:
            self.rearm = decision.state is None  # somebody has deleted its hash: nothing waits for it any more
            return
        self.entries.append(entry)
        if decision.quarantine is not None:
            self.quarantined.append((entry, decision.quarantine))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return self.after is self.before and not self.entries and not self.notices and not self.rearm

    @property
    def written(self) -> Found:
        """What the saga is once this is committed."""
        if self.after is self.before or not isinstance(self.after, SagaState):
            return self.after
        before = self.before if isinstance(self.before, SagaState) else None
        return replace(self.after, version=saga_hash.next_version(before))

    @property
    def key(self) -> str | None:
        """The hash that is compared; there is none to compare where the saga cannot be read."""
        return None if self.saga_id is None or isinstance(self.before, UnreadableSaga) else keys.saga(self.saga_id)
