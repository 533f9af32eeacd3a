"""What one turn does to one saga."""

from msgspec import Struct
from msgspec.structs import replace

from sagastream.broker.entries import Entry
from sagastream.core.commands import Command
from sagastream.core.indexing import held_names
from sagastream.core.messages import Code
from sagastream.core.notices import Notice
from sagastream.core.saga import Found, SagaState
from sagastream.core.sending import GivenUp, given_up
from sagastream.core.strict_json import value_of
from sagastream.core.transitions import Decision
from sagastream.errors import UnreadableSaga
from sagastream.store import saga_hash
from sagastream.store.keys import Partition


class Change(Struct, eq=False):
    """All that one turn does to one saga, in its partition. If `saga_id` is None: what it does about entries of the
    partition that name no saga."""

    partition: Partition
    saga_id: str | None
    before: Found
    after: Found
    commands: list[Command] = []
    notices: list[Notice] = []
    quarantined: list[tuple[Entry, str]] = []
    entries: list[Entry] = []  # to be acknowledged
    given_up: list[GivenUp] = []  # commands to be deleted, if nobody has read them
    rearm: bool = False  # correct its place in timers and ended, even if the saga itself does not change
    # What is left to a newer release, each with its format: an entry, or None for the saga's timer.
    left: list[tuple[Entry | None, int]] = []
    fill: bool = False  # put it into all its indexes, even if the saga itself does not change
    swept: tuple[str, ...] | None = None  # the indexes that it leaves; without `fill` begun, too: its hash is gone
    is_full: bool = False  # it was not written, since a stream to which it appends takes no more entries
    fault: str | None = None  # why nothing could be decided on the saga when it was due
    _written: SagaState | None = None  # made when it is first asked for

    def add(self, entry: Entry | None, decision: Decision, *, gives_up: bool = False, is_begin: bool = False) -> None:
        """Add one more decision to those before it.

        Args:
            entry: what was decided on; None: the saga was due.
            gives_up: whether a command that the saga waits for no more was not answered.
            is_begin: whether the entry asks for a saga. If none may begin, as another saga has the id, the entry is set
                aside too: whoever asked was told that it is accepted, and may not see the news.
        """
        if decision.left:
            self.left.append((entry, decision.left))
            return
        if gives_up and isinstance(self.after, SagaState) and isinstance(decision.state, SagaState):
            self.given_up += given_up(self.after, decision.state)
        self.after = decision.state
        self.commands += decision.commands
        self.notices += decision.notices
        if entry is None:
            # Somebody has deleted its hash, so its timer must go too. Or it was woken, and stays held.
            stays = self.after is self.before and isinstance(self.after, SagaState) and bool(held_names(self.after))
            self.rearm = decision.state is None or stays
            self.fault = decision.quarantine
            return
        self.entries.append(entry)
        if decision.quarantine is not None:
            self.quarantined.append((entry, decision.quarantine))
        elif is_begin and decision.notices and decision.notices[0].kind == "refused":
            refused = value_of(decision.notices[0].body)
            if refused["code"] == Code.PRECONDITION_FAILED:
                self.quarantined.append((entry, refused["text"]))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return self.after is self.before and not (self.entries or self.notices or self.rearm or self.fault)

    @property
    def written(self) -> Found:
        """The saga as it is once this is committed. Ask when all decisions are added."""
        if self._written is None:
            if self.after is self.before or not isinstance(self.after, SagaState):
                return self.after
            before = self.before if isinstance(self.before, SagaState) else None
            self._written = replace(self.after, version=saga_hash.next_version(before))
        return self._written

    @property
    def key(self) -> str | None:
        """The key of the hash that the commit compares; None if there is no saga, or the saga cannot be read."""
        if self.saga_id is None or isinstance(self.before, UnreadableSaga):
            return None
        return self.partition.saga(self.saga_id)
