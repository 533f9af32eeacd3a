"""The client for programs that run in an event loop."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Unpack, overload

from sagastream.client import beginning, looking, requests
from sagastream.client.answers import Accepted, Refused, Unsettled, granted, opened
from sagastream.client.begun_with import requested, takes_long
from sagastream.client.definition import Definition
from sagastream.client.durability import Durable
from sagastream.client.listing import Listing, ListStatus, Search, check_status
from sagastream.client.requests import (
    BeginOptions,
    PauseRequest,
    SagaRequest,
    StepRequest,
    StepsOptions,
    WaitRequest,
)
from sagastream.client.saga_verbs import AsyncSagaVerbs
from sagastream.client.store_verbs import AsyncStoreVerbs
from sagastream.client.waiting import Waiter, completed
from sagastream.core.causes import Cause
from sagastream.core.history_events import HistoryEvent
from sagastream.core.messages import Begin
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.errors import UnreadableSaga
from sagastream.store.finding import USUAL, Page, find_there, opened_page, to_filter


class AsyncSagaClient(AsyncSagaVerbs, AsyncStoreVerbs):
    """The sagas of a store, for the coroutines of one event loop. Close it, or use it as a context manager.

    Once that loop is closed, another one may use the client. While it is not, every call in another loop raises
    RuntimeError.

    The methods are those of SagaClient, with the same arguments, results and errors. Await them, except `list`, which
    is for `async for`. There is no `as_completed`: use `asyncio.gather`. One task reads the events stream for all
    coroutines that wait. It runs while any of them waits, and for at most half a second after that.
    """

    @overload
    async def begin(
        self, saga_id: str, steps: Sequence[StepRequest | WaitRequest | PauseRequest], **options: Unpack[StepsOptions]
    ) -> Accepted: ...
    @overload
    async def begin(
        self, definition: Definition, input: Any = None, *, saga_id: str, **options: Unpack[BeginOptions]
    ) -> Accepted: ...
    async def begin(self, *args: Any, durable: Durable | None = None, **named: Any) -> Accepted:
        """Begin a saga; awaits until the request is durable. See SagaClient.begin."""
        if takes_long(*args, **named):
            return await self.begin_request(await asyncio.to_thread(requested, *args, **named), durable=durable)
        return await self.begin_request(requested(*args, **named), durable=durable)

    async def begin_request(self, request: Begin, *, durable: Durable | None = None) -> Accepted:
        """Begin a saga from a parsed request; awaits until that is durable. See SagaClient.begin_request."""
        sealed = requests.sealed(self._codec, request, accept_sealed=self._accept_sealed)
        (answer,) = await self._run(beginning.begin(await self._opened(), [sealed], self._codec, durable=durable))
        return granted(answer)

    async def begin_many(
        self, sagas: Iterable[SagaRequest], *, durable: Durable | None = None
    ) -> list[Accepted | Refused | Unsettled]:
        """Begin many sagas; awaits until all requests are answered for. See SagaClient.begin_many."""
        accept_sealed = self._accept_sealed
        return await self._run(
            beginning.begin_many(self._layout, sagas, self._codec, accept_sealed=accept_sealed, durable=durable)
        )

    async def get(self, saga_id: str) -> SagaState | None:
        """Read a saga as it is now; awaits one round trip. See SagaClient.get."""
        return await self._run(looking.state(await self._looked(), saga_id, self._codec))

    async def why(self, saga_id: str) -> tuple[Cause, ...]:
        """Why a saga waits. See SagaClient.why."""
        return await self._run(looking.causes(await self._looked(), saga_id))

    async def history(self, saga_id: str) -> list[HistoryEvent]:
        """What happened to a saga, event by event. See SagaClient.history."""
        return await self._run(looking.events(await self._looked(), saga_id, self._codec))

    async def wait(self, saga: Accepted | str, timeout_s: float | None = None, *, check: bool = False) -> SagaState:
        """Await the end of a saga, or that it is parked. To wait for many sagas, use one task for each. See
        SagaClient.wait."""
        self._enter_loop()
        state = granted(await self._watcher.settled(Waiter.for_end_of(saga), timeout_s))
        return completed(state) if check else state

    async def find(
        self,
        *,
        limit: int = USUAL,
        cursor: str | None = None,
        **search: Unpack[Search],
    ) -> Page:
        """One page of the sagas that are looked for. See SagaClient.find."""
        finding = find_there(await self._looked(), to_filter(**search), limit, cursor)
        return opened_page(self._codec, await self._run(finding))

    def list(
        self, status: ListStatus | SagaStatus | None = None, limit: int | None = None
    ) -> AsyncIterator[SagaState | UnreadableSaga]:
        """The sagas of the store. Use it with `async for`, and without `await`; each page is awaited when it is needed.
        See SagaClient.list."""
        check_status(status)
        return self._listed(status, limit)

    async def _listed(
        self, status: ListStatus | SagaStatus | None, limit: int | None
    ) -> AsyncIterator[SagaState | UnreadableSaga]:
        listing = Listing(await self._looked(), status, limit)
        while page := await self._run(listing.next_page()):
            for found in page:
                yield opened(self._codec, found)
