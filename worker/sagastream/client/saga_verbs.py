"""What somebody asks of one saga: an operator's verbs, a signal, to have it erased."""

from collections.abc import Collection
from typing import Any

from msgspec.structs import replace

from sagastream.broker.exchange import Exchange
from sagastream.client import erasing, requests
from sagastream.client.access import Access, AsyncAccess
from sagastream.client.answers import granted
from sagastream.client.erasing import Erased
from sagastream.client.waiting import Waiter, check_timeout
from sagastream.client.watcher import SagaWatcher
from sagastream.core.messages import Intervene, ToSaga, Verb
from sagastream.core.saga import SagaState
from sagastream.store.keys import StoreKeys
from sagastream.store.sagas import load


class SagaVerbs(Access):
    """For callers that block."""

    def cancel(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        now: bool = False,
        actor: str | None = None,
        parked_at: str | None = None,
    ) -> SagaState:
        """Cancel a saga: it is undone once the commands that are out are answered, but not after its pivot. See
        `intervene`.

        Args:
            now: do not wait for the answers. A step whose command is out may have been done, and is undone too. If it
                is the pivot, and nothing undoes it, the saga is parked.
            actor: who asks; it stays with the saga.
            parked_at: `parked_at` of the saga as you saw it. You say by this that the step was not done at which it is
                parked. If it is no longer parked there, this is refused.
        """
        request = requests.to_intervene(Verb.CANCEL, saga_id, reason, now=now, actor=actor, parked_at=parked_at)
        return self.intervene(request, timeout_s)

    def retry(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
    ) -> SagaState:
        """Retry a parked saga: the command at which it is parked is sent again. See `intervene`.

        Args:
            actor: who asks; it stays with the saga.
            parked_at: `parked_at` of the saga as you saw it; by default as it is now. If it is no longer parked there
                when a worker reads this, it is refused.
            step: the number or id of the step that is meant. Without it, the request is refused if several are parked.
        """
        return self._settle_parked(
            requests.to_intervene(Verb.RETRY, saga_id, reason, actor=actor, parked_at=parked_at, step=step),
            timeout_s,
        )

    def skip(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
    ) -> SagaState:
        """Let a parked saga go on as if the step or compensation at which it is parked were done. Arguments as for
        `retry`; see `intervene`."""
        return self._settle_parked(
            requests.to_intervene(Verb.SKIP, saga_id, reason, actor=actor, parked_at=parked_at, step=step),
            timeout_s,
        )

    def abandon(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
        now: bool = False,
    ) -> SagaState:
        """End a parked saga as it is: ABORTED, and nothing more is undone. Arguments as for `retry`; see `intervene`.

        `now`: even while commands of other steps are out. They count as unknown. Without it, that is refused.
        """
        return self._settle_parked(
            requests.to_intervene(Verb.ABANDON, saga_id, reason, actor=actor, parked_at=parked_at, step=step, now=now),
            timeout_s,
        )

    def signal(
        self,
        saga_id: str,
        name: str,
        payload: Any = None,
        timeout_s: float | None = None,
        *,
        decline: str | None = None,
        actor: str | None = None,
    ) -> SagaState:
        """Send a signal to a saga, for a step that waits for it, or will wait for it. If the step does not wait yet,
        the saga keeps the signal. If no step will wait for it, it is refused. See `intervene`.

        Args:
            name: of the signal, as the step names it.
            payload: any JSON value: the result of the step.
            decline: in place of a payload: why the step fails.
            actor: who signals; it stays with the saga.
        """
        request = requests.to_signal(saga_id, name, payload, decline=decline, actor=actor)
        return self.intervene(request, timeout_s)

    def _settle_parked(self, request: Intervene, timeout_s: float | None) -> SagaState:
        check_timeout(timeout_s)
        asking = _at_what_is_parked(self._opened(), request)
        return self.intervene(self._run(asking), timeout_s)

    def intervene(self, request: ToSaga, timeout_s: float | None = None) -> SagaState:
        """Send a request about a saga, and wait until a worker has taken it. Return the saga as it is then.

        `request` needs a request_id: if it is sent again with the same one, it is done once. `timeout_s`: wait at most
        this many seconds; None: without a limit.

        Raises:
            UnknownSaga: there is no such saga.
            RequestRefused: its present state does not allow this.
            UnreadableSaga: the saga cannot be read.
            TimeoutError: no worker has taken the request in time. It is in the store, and a worker will take it.
            redis.RedisError: the broker is away. The request may have arrived or not.
        """
        check_timeout(timeout_s)
        request = requests.to_send(self._codec, request, accept_sealed=self._accept_sealed)
        keys = self._opened()
        watcher = SagaWatcher(self._layout, [Waiter(saga_id=request.saga_id, request=request)], codec=self._codec)
        self._run(watcher.start(request.saga_id))
        self._run(requests.append(keys, [request]))
        for outcome in self._settled(watcher, timeout_s):
            return granted(outcome)
        assert timeout_s is not None
        raise self._run(watcher.timeout_error(timeout_s))

    def erase(self, saga_id: str, reason: str, *, actor: str | None = None) -> Erased:
        """Erase the input, params, results, errors, reasons and actors of a saga that has ended, and the messages that
        hold them.

        Its course stays: the steps, their times and status, and that it was erased. So it cannot be begun again, and no
        command that comes again has its effect again. The server's files keep the data until they are written anew.

        Args:
            saga_id: its id. If the store has no such saga any more, what is left of it elsewhere is erased.
            reason: why. It stays with the saga, so it must not hold what is erased.
            actor: who asks; it stays with the saga too.

        Returns what was erased, in `before` that it had been erased before, in `unknown` that there is no such saga,
        and in `left` what is still in use: erase again when that has ended.

        Raises:
            MalformedMessage: the id, the reason or the actor is not valid.
            RequestRefused: the saga has not ended.
            UnreadableSaga: the saga cannot be read.
            redis.exceptions.NoPermissionError: the user has not the role operator.
            redis.RedisError: the broker is away. A part may have been erased, so erase again.
        """
        return erasing.granted(self.erase_many([saga_id], reason, actor=actor))

    def erase_many(self, saga_ids: Collection[str], reason: str, *, actor: str | None = None) -> Erased:
        """Like `erase`, for many sagas: each stream of the store is searched once for all of them. A saga that has not
        ended, or that cannot be read, is not erased; `refused` has the error."""
        return self._run(erasing.erase(self._looked(), saga_ids, reason, actor))


class AsyncSagaVerbs(AsyncAccess):
    """For event loops. The arguments, results and errors are those of SagaVerbs."""

    async def cancel(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        now: bool = False,
        actor: str | None = None,
        parked_at: str | None = None,
    ) -> SagaState:
        """Cancel a saga; awaits until a worker has taken the request. See SagaClient.cancel."""
        request = requests.to_intervene(Verb.CANCEL, saga_id, reason, now=now, actor=actor, parked_at=parked_at)
        return await self.intervene(request, timeout_s)

    async def retry(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
    ) -> SagaState:
        """Retry a parked saga; awaits until a worker has taken the request. See SagaClient.retry."""
        return await self._settle_parked(
            requests.to_intervene(Verb.RETRY, saga_id, reason, actor=actor, parked_at=parked_at, step=step),
            timeout_s,
        )

    async def skip(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
    ) -> SagaState:
        """Skip what a saga is parked at; awaits until a worker has taken the request. See SagaClient.skip."""
        return await self._settle_parked(
            requests.to_intervene(Verb.SKIP, saga_id, reason, actor=actor, parked_at=parked_at, step=step),
            timeout_s,
        )

    async def abandon(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
        now: bool = False,
    ) -> SagaState:
        """End a parked saga as it is; awaits until a worker has taken the request. See SagaClient.abandon."""
        return await self._settle_parked(
            requests.to_intervene(Verb.ABANDON, saga_id, reason, actor=actor, parked_at=parked_at, step=step, now=now),
            timeout_s,
        )

    async def signal(
        self,
        saga_id: str,
        name: str,
        payload: Any = None,
        timeout_s: float | None = None,
        *,
        decline: str | None = None,
        actor: str | None = None,
    ) -> SagaState:
        """Signal to a saga; awaits until a worker has taken it. See SagaClient.signal."""
        request = requests.to_signal(saga_id, name, payload, decline=decline, actor=actor)
        return await self.intervene(request, timeout_s)

    async def _settle_parked(self, request: Intervene, timeout_s: float | None) -> SagaState:
        check_timeout(timeout_s)
        asking = _at_what_is_parked(await self._opened(), request)
        return await self.intervene(await self._run(asking), timeout_s)

    async def intervene(self, request: ToSaga, timeout_s: float | None = None) -> SagaState:
        """Send an operator's request; awaits until a worker has taken it. See SagaClient.intervene."""
        self._enter_loop()
        request = requests.to_send(self._codec, request, accept_sealed=self._accept_sealed)
        waiter = Waiter(saga_id=request.saga_id, request=request)
        return granted(await self._watcher.settled(waiter, timeout_s))

    async def erase(self, saga_id: str, reason: str, *, actor: str | None = None) -> Erased:
        """Erase what the store knows of a saga that has ended. See SagaClient.erase."""
        return erasing.granted(await self.erase_many([saga_id], reason, actor=actor))

    async def erase_many(self, saga_ids: Collection[str], reason: str, *, actor: str | None = None) -> Erased:
        """Erase what the store knows of sagas that have ended. See SagaClient.erase_many."""
        return await self._run(erasing.erase(await self._looked(), saga_ids, reason, actor))


def _at_what_is_parked(keys: StoreKeys, request: Intervene) -> Exchange[Intervene]:
    """A request to retry, skip or abandon. If the caller does not say where the saga is parked, it is looked up: by the
    time that a worker reads the request, the saga may be parked at another step. If it is parked at several steps, it
    is not: then it is refused, with the list of them."""
    if request.parked_at is not None:
        return request
    found = (yield from load(keys, [request.saga_id]))[0][request.saga_id]
    if not isinstance(found, SagaState):
        return request
    number = found.parked_steps[0] if len(found.parked_steps) == 1 else None
    if request.step is not None:
        number = found.number_of(request.step)
    return request if number is None else replace(request, parked_at=found.parked_place(number))
