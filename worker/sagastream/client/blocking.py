"""The client: begins sagas, looks at them, waits for their end, and sends the requests of operators.

How a saga ended is a value that methods return, not an error that they raise. What the client asks the broker is
written as exchanges, which `AsyncSagaClient` shares.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Unpack, overload

from sagastream.client import beginning, looking, requests
from sagastream.client.answers import Accepted, Refused, Unsettled, granted, opened
from sagastream.client.begun_with import requested
from sagastream.client.definition import Definition
from sagastream.client.durability import Durable
from sagastream.client.listing import Listing, ListStatus, Search
from sagastream.client.requests import (
    BeginOptions,
    PauseRequest,
    SagaRequest,
    StepRequest,
    StepsOptions,
    WaitRequest,
)
from sagastream.client.saga_verbs import SagaVerbs
from sagastream.client.store_verbs import StoreVerbs
from sagastream.client.waiting import Outcome, Waiter, check_timeout, completed
from sagastream.client.watcher import SagaWatcher
from sagastream.core.causes import Cause
from sagastream.core.history_events import HistoryEvent
from sagastream.core.messages import Begin
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.errors import UnreadableSaga
from sagastream.store.finding import USUAL, Page, find_there, opened_page, to_filter


class SagaClient(SagaVerbs, StoreVerbs):
    """The sagas of a store. Close it, or use it as a context manager.

    Threads may share one client. So may a process and the children that it forks: each opens its own connections.
    """

    @overload
    def begin(
        self, saga_id: str, steps: Sequence[StepRequest | WaitRequest | PauseRequest], **options: Unpack[StepsOptions]
    ) -> Accepted: ...
    @overload
    def begin(
        self, definition: Definition, input: Any = None, *, saga_id: str, **options: Unpack[BeginOptions]
    ) -> Accepted: ...
    def begin(self, *args: Any, durable: Durable | None = None, **named: Any) -> Accepted:
        """Begin a saga: of a definition, or of steps. Returns as soon as the request is durable, after one round trip.
        If the saga was begun before with the same id, and the same definition and input or the same steps, nothing is
        done twice.

        Args:
            saga_id: chosen by you, unique in the store: 1 to 128 characters of A-Z a-z 0-9 . _ : -
            steps: the steps, in order; docs/sagas.md and docs/graphs.md describe their members.
            deadline_ms: the saga is cancelled this many milliseconds after it began, if it has not ended by then.
            deadline: "hard": a command that is out by then is not waited for. By default it is.
            input: an object to which the steps of the saga may refer. Of a definition that names a class: an
                instance of it, or what can be read as one.
            start_at: do nothing before this time, by the broker's clock: a datetime with its time zone. The deadline
                counts from then.
            start_at_ms: the same in milliseconds since the epoch.
            attributes: by which people find the saga: at most 8 names (a-z 0-9 _), each with a text of at most 64 bytes
                or a whole number. Services never see them, and they are not sealed.
            definition: what the steps are made from. The version with which a saga began stays with it: to begin it
                again with another version of the same definition, and the same input, is the same begin.
            durable: "replica": return only when a replica of the broker has the request, too. By default the broker
                alone has it.

        Raises:
            NotReplicated: no replica has confirmed within a second that it has the request. It was accepted.
            MalformedMessage: the request is not valid; the text says what is wrong, and where. Nothing was sent.
            RequestRefused: another saga has the id. Nothing was sent.
            PackageMissing: the input cannot be checked, because a package is not installed. Nothing was sent.
            UnreadableSaga: the saga with this id cannot be read. Nothing was sent.
            redis.RedisError: the broker is away. The request may have arrived or not, so call again with the same id.
            TypeError: an argument is of the wrong kind, or `start_at` has no time zone.
        """
        return self.begin_request(requested(*args, **named), durable=durable)

    def begin_request(self, request: Begin, *, durable: Durable | None = None) -> Accepted:
        """Like `begin`, for a parsed request."""
        sealed = requests.sealed(self._codec, request, accept_sealed=self._accept_sealed)
        (answer,) = self._run(beginning.begin(self._opened(), [sealed], self._codec, durable=durable))
        return granted(answer)

    def begin_many(
        self, sagas: Iterable[SagaRequest], *, durable: Durable | None = None
    ) -> list[Accepted | Refused | Unsettled]:
        """Begin many sagas; up to 128 of them take one round trip. `durable`: as for `begin`.

        Returns one answer for each saga, in their order: Accepted; Refused, with the reason; or Unsettled, if the
        broker went away meanwhile, or no replica has confirmed that it has the saga, as `durable` asks. Begin an
        unsettled saga again with the same id, as often as it takes.

        Raises:
            redis.RedisError: an error that is not an outage. Mend its cause, then begin all of the sagas again.
            TypeError: `sagas` is not a list of sagas.
        """
        accept_sealed = self._accept_sealed
        return self._run(
            beginning.begin_many(self._layout, sagas, self._codec, accept_sealed=accept_sealed, durable=durable)
        )

    def get(self, saga_id: str) -> SagaState | None:
        """The saga as it is now; None: there is no such saga, or no worker has read its request yet.

        Raises UnreadableSaga if the saga cannot be read: CorruptSaga if it is damaged, NewerFormat if only a newer
        release can read it.
        """
        return self._run(looking.state(self._looked(), saga_id, self._codec))

    def why(self, saga_id: str) -> tuple[Cause, ...]:
        """Why a saga waits, as `sagastream show` says it: the first cause first; nothing if it has ended. If no worker
        has read its request yet: why. Some round trips: for people, not for polling.

        Raises UnknownSaga if there is no such saga, and no unread request by which it may still begin; UnreadableSaga
        if the saga cannot be read.
        """
        return self._run(looking.causes(self._looked(), saga_id))

    def history(self, saga_id: str) -> list[HistoryEvent]:
        """What happened to a saga, event by event, oldest first, as far as it is known; nothing if no worker has read
        its request yet. One round trip.

        Raises as `why` does.
        """
        return self._run(looking.events(self._looked(), saga_id, self._codec))

    def wait(self, saga: Accepted | str, timeout_s: float | None = None, *, check: bool = False) -> SagaState:
        """Wait until the saga has ended, or is parked and waits for a person. Return it as it is then. While the broker
        is away, the wait goes on.

        Args:
            saga: what `begin` returned, or the id of a saga, which need not exist yet.
            timeout_s: wait at most this many seconds. None: wait without a limit; if nobody begins the saga, that never
                ends.
            check: raise an error if the saga did not complete.

        Raises:
            SagaAborted: only with `check`: the saga was aborted. It has the reason and the step.
            SagaParked: only with `check`: the saga is parked. It has the reason and the step.
            RequestRefused: another saga has the id.
            UnreadableSaga: the saga cannot be read.
            TimeoutError: the saga did not end in time; it goes on by itself. The text says why it waits, or
                that there is no such saga.
            redis.RedisError: an error that is not an outage, so that waiting does not help.
            TypeError: `saga` is neither of the two, or `timeout_s` is not a number.
            ValueError: `timeout_s` is not a number of seconds from 0 on.
        """
        (outcome,) = self.as_completed([saga], timeout_s)
        state = granted(outcome)
        return completed(state) if check else state

    def as_completed(
        self, sagas: Iterable[Accepted | str], timeout_s: float | None = None
    ) -> Iterator[SagaState | Refused]:
        """Wait for many sagas together. Yields each as `wait` returns it, in the order in which they end. If `wait`
        would raise RequestRefused or UnreadableSaga for a saga, a Refused with that `error` is yielded instead.

        Args:
            sagas: what `begin` returned, or ids of sagas.
            timeout_s: wait at most this many seconds for all of them together.

        Raises TimeoutError when that time is up; redis.RedisError, TypeError and ValueError as `wait` does.
        """
        check_timeout(timeout_s)
        many = beginning.one_by_one(sagas, "ids, or of what begin returned")
        return self._as_completed(SagaWatcher(self._layout, map(Waiter.for_end_of, many), codec=self._codec), timeout_s)

    def _as_completed(self, watcher: SagaWatcher, timeout_s: float | None) -> Iterator[Outcome]:
        yield from self._settled(watcher, timeout_s)
        if watcher:
            assert timeout_s is not None
            raise self._run(watcher.timeout_error(timeout_s))

    def find(
        self,
        *,
        limit: int = USUAL,
        cursor: str | None = None,
        **search: Unpack[Search],
    ) -> Page:
        """Find sagas, a page at a time, in the order of their begins, newest first. A saga is found if it matches all
        that is given.

        A page costs bounded work. So it may have fewer sagas, or none, although others come after it: as long as it
        has a cursor, there may be more. Sealed errors are searched as they are stored. If nodes of a cluster are away,
        their sagas are left out; `partitions_away` of the page says of which partitions.

        Args:
            status: its status; "PARKED": it is parked, so it is also PENDING or COMPENSATING.
            definition: the name of its definition.
            where: attributes of it. A number is the same as its text.
            at: the command that it waits for, as "ChargePayment" or "payment/ChargePayment".
            parked: the command at which it is parked, in the same way.
            older: it began at least this long ago.
            newer: it began at most this long ago.
            error: a part of an error of it, or of why it is undone or parked. Case does not count.
            limit: at most so many sagas, up to 1000.
            cursor: of the page before. With other arguments than for that page, it is refused.

        Raises MalformedMessage if no saga can match, such as one with an attribute that none may have; ValueError for a
        limit that is not allowed, or a cursor that no page has had; TypeError.
        """
        return opened_page(self._codec, self._run(find_there(self._looked(), to_filter(**search), limit, cursor)))

    def list(
        self, status: ListStatus | SagaStatus | None = None, limit: int | None = None
    ) -> Iterator[SagaState | UnreadableSaga]:
        """The sagas of the store, in the order of their begins, newest first. To find some among many, see `find`.

        They are read page by page, when the iterator needs them. One that begins or changes its status meanwhile may be
        missed; the others come once. If a saga cannot be read, its error comes behind those of its page: CorruptSaga or
        NewerFormat. If nodes of a cluster are away, their sagas are left out, and redis.ConnectionError is raised at
        the end, after all others: it says which partitions these are.

        Args:
            status: only sagas with this status; "PARKED": only parked sagas, which are PENDING or COMPENSATING.
            limit: at most this many sagas; None: all.

        Raises ValueError if `status` is not one of them.
        """
        listing = Listing(self._looked(), status, limit)
        pages = iter(lambda: self._run(listing.next_page()), [])
        return (opened(self._codec, found) for found in chain.from_iterable(pages))
