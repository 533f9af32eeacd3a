"""What one turn does to one saga."""

from msgspec import Struct
from msgspec.structs import replace

from sagastream.broker.entries import Entry
from sagastream.core.commands import Command
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
    is_gone: bool = False  # there is no such saga: its timer goes, and all else that is told of it with the next sweep
    rearm: bool = False  # its timer is written anew, even if the saga itself does not change
    # What is left to a newer release, each with its format: an entry, or None for the saga's timer.
    left: list[tuple[Entry | None, int]] = []
    fill: bool = False  # put it into all its indexes, even if the saga itself does not change
    leaves: tuple[str, ...] = ()  # … and take it out of these, unless it is to be in them
    is_swept: bool = False  # there is no such saga: it leaves timers, ended, begun and those indexes
    is_full: bool = False  # it was not written, since a stream to which it appends takes no more entries
    fault: str | None = None  # why nothing could be decided on the saga when it was due
    _written: SagaState | None = None  # made when it is first asked for

    def add(
        self,
        entry: Entry | None,
        decision: Decision,
        *,
        gives_up: bool = False,
        is_begin: bool = False,
        leased: bool = False,
    ) -> None:
        """Add one more decision to those before it.

        Args:
            entry: what was decided on; None: the saga was due.
            gives_up: whether a command that the saga waits for no more was not answered.
            is_begin: whether the entry asks for a saga. If none may begin, as another saga has the id, the entry is set
                aside too: whoever asked was told that it is accepted, and may not see the news.
            leased: whether the saga was due by its timer, which was set to the end of the lease.
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
            self.is_gone = decision.state is None  # somebody has deleted its hash
            self.fault = decision.quarantine
            # Nothing was to be done: it was woken, and stays held; or its timer was wrong. It must not be due again
            # whenever a lease ends. What a fault holds up has a right timer, and is tried again then.
            stays = self.after is self.before and isinstance(self.after, SagaState)
            self.rearm = leased and stays and self.fault is None
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
        return self.after is self.before and not (
            self.entries or self.notices or self.is_gone or self.rearm or self.fault
        )

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


def filled(partition: Partition, state: SagaState, leaves: tuple[str, ...] = (), *, rearm: bool = False) -> Change:
    """What puts a saga into all its indexes, and takes it out of the others that are named. The saga itself stays."""
    return Change(
        partition=partition,
        saga_id=state.saga_id,
        before=state,
        after=state,
        fill=True,
        leaves=leaves,
        rearm=rearm,
    )


def swept(partition: Partition, saga_id: str, leaves: tuple[str, ...]) -> Change:
    """What takes a saga, as long as it has no hash, out of all in which it is. `leaves`: its indexes besides begun."""
    return Change(partition=partition, saga_id=saga_id, before=None, after=None, is_swept=True, leaves=leaves)


def gone(partition: Partition, saga_id: str) -> Change:
    """What has the next sweep take out a saga that has no hash."""
    return Change(partition=partition, saga_id=saga_id, before=None, after=None, is_gone=True)
