"""The client: begins sagas, looks at them, waits for their end, and sends the requests of operators.

How a saga ended is a value that methods return, not an error that they raise. What the client asks the broker is
written as exchanges, which `AsyncSagaClient` shares.
"""

import math
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Self, Unpack, overload

import redis

from sagastream.broker.connection import BLOCK_MS, Broker, broker_of
from sagastream.broker.exchange import run
from sagastream.broker.failures import is_outage
from sagastream.broker.outage import Outage
from sagastream.client import erasing, looking, requests
from sagastream.client.definition import Definition, deployable, deployer, requested
from sagastream.client.erasing import Erased
from sagastream.client.listing import Listing, ListStatus, Search
from sagastream.client.requests import (
    Accepted,
    PauseRequest,
    Refused,
    SagaRequest,
    StepRequest,
    Unsettled,
    WaitRequest,
)
from sagastream.client.waiting import WHO, Outcome, SagaWatcher, Settled, Waiter, check_timeout, completed
from sagastream.codecs.setting import codec_of
from sagastream.core.bulks import USUAL_RATE, Bulk, BulkResult, BulkVerb
from sagastream.core.causes import Cause
from sagastream.core.history_events import HistoryEvent
from sagastream.core.messages import Begin, DeadlineKind, Intervene, ToSaga, Verb
from sagastream.core.pauses import Pause
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.sealing import Codec
from sagastream.errors import UnreadableSaga
from sagastream.store import bulks, definitions, operations, pauses, quarantine
from sagastream.store.definitions import Deployed
from sagastream.store.finding import USUAL, Page, find, opened_page, to_filter
from sagastream.store.keys import StoreKeys
from sagastream.store.layout import Layout
from sagastream.store.operations import Operation
from sagastream.store.pauses import Heard, Written
from sagastream.store.quarantine import Quarantined
from sagastream.telemetry import Observer, guarded


class SagaClient:
    """The sagas of a store. Close it, or use it as a context manager.

    Threads may share one client. So may a process and the children that it forks: each opens its own connections.
    """

    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        observer: Observer | None = None,
        codec: Codec | None = None,
        accept_sealed: bool = False,
    ) -> None:
        """
        Args:
            broker: an open Broker, which the client does not close; or the url of one, as for Broker. By default the
                broker that the environment names, see Broker.
            observer: its methods for outages are called.
            codec: seals params, and opens what sagas hold. By default the one that the environment names, if it names
                one. Without a codec, what looks like a sealed value is refused.
            accept_sealed: without a codec, send what looks sealed as it is, since a program of yours has sealed it. Do
                not set this if anything in inputs, params or payloads comes from strangers.

        Raises BrokerError as Broker does, SettingsError if the environment names a codec that cannot be used, and
        TypeError if `broker` or `codec` is anything else.
        """
        self._codec = codec_of(codec)
        self._accept_sealed = accept_sealed
        self._owns_broker = not isinstance(broker, Broker)
        self._broker = broker_of(broker)
        self._redis: redis.Redis = self._broker.client
        self._layout = Layout(self._broker.prefix)
        self._outage = Outage(self._broker, WHO, threading.Event(), observer=guarded(observer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A Broker that was passed in stays open."""
        if self._owns_broker:
            self._broker.close()

    @overload
    def begin(
        self,
        saga_id: str,
        steps: Sequence[StepRequest | WaitRequest | PauseRequest],
        *,
        deadline_ms: int | None = None,
        deadline: DeadlineKind | None = None,
        input: dict[str, Any] | None = None,
        start_at: datetime | None = None,
        start_at_ms: int | None = None,
        attributes: Mapping[str, str | int] | None = None,
    ) -> Accepted: ...
    @overload
    def begin(
        self,
        definition: Definition,
        input: Any = None,
        *,
        saga_id: str,
        start_at: datetime | None = None,
        start_at_ms: int | None = None,
        attributes: Mapping[str, str | int] | None = None,
    ) -> Accepted: ...
    def begin(self, *args: Any, **named: Any) -> Accepted:
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

        Raises:
            MalformedMessage: the request is not valid; the text says what is wrong, and where. Nothing was sent.
            RequestRefused: another saga has the id. Nothing was sent.
            PackageMissing: the input cannot be checked, because a package is not installed. Nothing was sent.
            UnreadableSaga: the saga with this id cannot be read. Nothing was sent.
            redis.RedisError: the broker is away. The request may have arrived or not, so call again with the same id.
            TypeError: an argument is of the wrong kind, or `start_at` has no time zone.
        """
        return self.begin_request(requested(*args, **named))

    def begin_request(self, request: Begin) -> Accepted:
        """Like `begin`, for a parsed request."""
        sealed = requests.sealed(self._codec, request, accept_sealed=self._accept_sealed)
        (answer,) = run(self._redis, requests.begin(self._opened(), [sealed], self._codec))
        return requests.granted(answer)

    def begin_many(self, sagas: Iterable[SagaRequest]) -> list[Accepted | Refused | Unsettled]:
        """Begin many sagas; up to 128 of them take one round trip.

        Returns one answer for each saga, in their order: Accepted; Refused, with the reason; or Unsettled, if the
        broker went away meanwhile. Begin an unsettled saga again with the same id, as often as it takes.

        Raises:
            redis.RedisError: an error that is not an outage. Mend its cause, then begin all of the sagas again.
            TypeError: `sagas` is not a list of sagas.
        """
        beginning = requests.begin_many(self._layout, sagas, self._codec, accept_sealed=self._accept_sealed)
        return run(self._redis, beginning)

    def get(self, saga_id: str) -> SagaState | None:
        """The saga as it is now; None: there is no such saga, or no worker has read its request yet.

        Raises UnreadableSaga if the saga cannot be read: CorruptSaga if it is damaged, NewerFormat if only a newer
        release can read it.
        """
        return run(self._redis, looking.state(self._looked(), saga_id, self._codec))

    def why(self, saga_id: str) -> tuple[Cause, ...]:
        """Why a saga waits, as `sagastream show` says it: the first cause first; nothing if it has ended. If no worker
        has read its request yet: why. Some round trips: for people, not for polling.

        Raises UnknownSaga if there is no such saga, and no unread request by which it may still begin; UnreadableSaga
        if the saga cannot be read.
        """
        return run(self._redis, looking.causes(self._looked(), saga_id))

    def history(self, saga_id: str) -> list[HistoryEvent]:
        """What happened to a saga, event by event, oldest first, as far as it is known; nothing if no worker has read
        its request yet. One round trip.

        Raises as `why` does.
        """
        return run(self._redis, looking.events(self._looked(), saga_id, self._codec))

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
        state = requests.granted(outcome)
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
        many = requests.one_by_one(sagas, "ids, or of what begin returned")
        return self._as_completed(SagaWatcher(self._layout, map(Waiter.for_end_of, many), codec=self._codec), timeout_s)

    def _as_completed(self, watcher: SagaWatcher, timeout_s: float | None) -> Iterator[Outcome]:
        yield from self._settled(watcher, timeout_s)
        if watcher:
            assert timeout_s is not None
            raise run(self._redis, watcher.timeout_error(timeout_s))

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
        asking = requests.for_what_is_parked(self._opened(), request)
        return self.intervene(run(self._redis, asking), timeout_s)

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
        run(self._redis, watcher.start())
        run(self._redis, requests.append(keys, [request]))
        for outcome in self._settled(watcher, timeout_s):
            return requests.granted(outcome)
        assert timeout_s is not None
        raise run(self._redis, watcher.timeout_error(timeout_s))

    def pause(self, service: str, command: str | None = None, *, reason: str, actor: str | None = None) -> Heard:
        """Pause a service, or one of its commands: workers send nothing of it, no retries and no compensations
        either. What is out is finished and answered. Steps that would be sent are held until it is resumed; the
        deadlines of their sagas still count.

        Returns as soon as the workers that run have read it, usually within a second; until then, one may still send.
        What is returned names these workers, those that had not read it after 5 s, and those of an earlier release,
        which know no pauses. If it is paused already, the reason and the actor are written anew;
        `before` of what is returned is that pause. After `resume`, `left` is what else of the service stays paused.

        Args:
            service: its name. The store need not know it yet.
            command: the name of a command or a compensation; None: all of them.
            reason: why; it is shown wherever a saga waits for it.
            actor: who pauses it.

        Raises:
            MalformedMessage: a name, the reason or the actor is not valid.
            RequestRefused: 1,024 services and commands are paused.
            redis.exceptions.NoPermissionError: the user does not have the role operator.
            redis.RedisError: the broker is away. Pause it again: nothing is done twice.
        """
        keys = self._opened()
        return self._heard(keys, run(self._redis, pauses.pause(keys, service, command, reason, actor)))

    def resume(self, service: str, command: str | None = None, *, reason: str, actor: str | None = None) -> Heard:
        """Resume what was paused by this very name: workers send what was held, within seconds. Arguments as for
        `pause`; what is returned has the pause that has ended.

        Raises as `pause` does; RequestRefused if it is not paused.
        """
        keys = self._opened()
        return self._heard(keys, run(self._redis, pauses.resume(keys, service, command, reason, actor)))

    def paused(self) -> Sequence[Pause]:
        """All that is paused, by name."""
        return run(self._redis, pauses.read(self._looked()))

    def _heard(self, keys: StoreKeys, written: Written) -> Heard:
        until = time.monotonic() + pauses.WAIT_S
        while (heard := run(self._redis, pauses.heard(keys, written))).late and time.monotonic() < until:
            time.sleep(pauses.LOOK_EVERY_S)
        return heard

    def operations(self, limit: int = 50) -> Sequence[Operation]:
        """What people did that no saga tells of, the newest first, at most so many: what they paused, resumed, put
        back or dropped, and their bulks. The newest 10,000 are kept."""
        return run(self._redis, operations.newest(self._looked(), limit))

    def quarantined(self, limit: int = 50) -> Sequence[Quarantined]:
        """The messages that were set aside, the newest first, at most so many. Each has an `id`, the `reason`, and
        the message itself."""
        return run(self._redis, quarantine.newest(self._looked(), limit))

    def replay_quarantined(self, entry_id: str, *, reason: str | None = None, actor: str | None = None) -> Quarantined:
        """Put a message that was set aside back into the stream from which it came, to be read again.

        Args:
            entry_id: the `id` of the message.
            reason: why; `operations` tells it.
            actor: who asks; it is told, too.

        Raises:
            QuarantineError: there is no such message any more, or it cannot be put back.
            MalformedMessage: the reason or the actor is not valid.
            redis.RedisError: the broker is away. It may have been put back: look first.
        """
        return run(self._redis, quarantine.replay(self._opened(), entry_id, actor=actor, reason=reason))

    def drop_quarantined(self, entry_id: str, *, reason: str | None = None, actor: str | None = None) -> Quarantined:
        """Delete a message that was set aside. Arguments and errors are those of `replay_quarantined`."""
        return run(self._redis, quarantine.drop(self._opened(), entry_id, actor=actor, reason=reason))

    def deploy(self, definition: Definition, *, actor: str | None = None) -> int | None:
        """Keep this version of a definition in the store, and make it the current one. Sagas that have begun stay as
        they are. Returns the version that was current before; None: none was.

        Args:
            actor: who deploys it, for people.

        Raises:
            DefinitionError: the store has other content under this version.
            MalformedMessage: its schema is not a JSON Schema, or its example is not as the schema says.
            PackageMissing: it has a schema, and the package that checks it is not installed.
            redis.exceptions.NoPermissionError: the user has not the role deployer.
            redis.RedisError: the broker is away. Deploy it again: nothing is done twice.
        """
        return run(self._redis, definitions.deploy(self._opened(), deployable(definition), deployer(actor)))

    def definition(self, name: str, version: int | None = None) -> Definition:
        """A definition of the store, in its current version or in another one. Raises DefinitionError if there is
        none."""
        return Definition.of(run(self._redis, definitions.load(self._looked(), name, version)))

    def definitions(self) -> Sequence[Deployed]:
        """All definitions of the store, by name, each with all its versions."""
        return run(self._redis, definitions.listed(self._looked()))

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
        return run(self._redis, erasing.erase(self._looked(), saga_ids, reason, actor))

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
        has a cursor, there may be more. Sealed errors are searched as they are stored.

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
        return opened_page(self._codec, run(self._redis, find(self._looked(), to_filter(**search), limit, cursor)))

    def list(
        self, status: ListStatus | SagaStatus | None = None, limit: int | None = None
    ) -> Iterator[SagaState | UnreadableSaga]:
        """The sagas of the store, in the order of their begins, newest first. To find some among many, see `find`.

        They are read page by page, when the iterator needs them. One that begins or changes its status meanwhile may be
        missed; the others come once. If a saga cannot be read, its error comes behind those of its page: CorruptSaga or
        NewerFormat.

        Args:
            status: only sagas with this status; "PARKED": only parked sagas, which are PENDING or COMPENSATING.
            limit: at most this many sagas; None: all.

        Raises ValueError if `status` is not one of them.
        """
        listing = Listing(self._looked(), status, limit)
        pages = iter(lambda: run(self._redis, listing.next_page()), [])
        return (requests.opened(self._codec, found) for found in chain.from_iterable(pages))

    def begin_bulk(
        self,
        verb: BulkVerb | Verb,
        reason: str,
        *,
        actor: str | None = None,
        rate: int = USUAL_RATE,
        now: bool = False,
        **search: Unpack[Search],
    ) -> Bulk:
        """Have workers retry, skip, abandon or cancel all sagas that `find` would find now. Returns at once; the bulk
        goes on without this process. Each saga gets an ordinary request of an operator, which it does or refuses.

        Args:
            verb: "retry", "skip", "abandon" or "cancel".
            reason: why; it stays with each saga.
            actor: who asks; it stays with each saga too.
            rate: at most so many requests a second.
            now: as for `cancel` and `abandon`.

        The other arguments are those of `find`; at least one is needed. Without a `status`, a cancel is for sagas that
        are PENDING, and the other verbs for those that are parked. With `parked`, only steps are meant that are parked
        there. If several steps of a saga are meant, each is retried or skipped.

        Raises:
            MalformedMessage: an argument is not valid, or no saga can be as is asked for.
            RequestRefused: there are 1,000 bulks that have not ended.
            TypeError: an age is not a timedelta.
            redis.exceptions.NoPermissionError: the user has not the role operator.
            redis.RedisError: the broker is away. The bulk may have begun: see `bulks`.
        """
        asking = bulks.begin(self._opened(), verb, to_filter(**search), reason=reason, actor=actor, rate=rate, now=now)
        return run(self._redis, asking)

    def bulks(self) -> Sequence[Bulk]:
        """The bulks of the store, those first that began last. Each is kept for 7 days after it last went on."""
        return run(self._redis, bulks.listed(self._looked()))

    def bulk(self, bulk_id: str) -> Bulk:
        """A bulk, and how far it has come. Raises RequestRefused if there is none."""
        return run(self._redis, bulks.load(self._looked(), bulk_id))

    def bulk_results(self, bulk_id: str) -> Sequence[BulkResult]:
        """What has come of each request of a bulk, the oldest first; of a very large bulk, of the newest ones. What a
        saga did after that is in the saga."""
        return run(self._redis, bulks.results(self._looked(), bulk_id))

    def pause_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """Pause a bulk: no more sagas are asked until it is resumed. A part that was asked already, at most 50 sagas,
        is done. Returns the bulk after that.

        Raises MalformedMessage, RequestRefused if it is not RUNNING, or there is none; NoPermissionError and RedisError
        as `begin_bulk` does.
        """
        return self._turned(bulk_id, "pause", reason, actor)

    def resume_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """Let a paused bulk go on where it was. See `pause_bulk`."""
        return self._turned(bulk_id, "resume", reason, actor)

    def stop_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """End a bulk for ever: no more sagas are asked. See `pause_bulk`."""
        return self._turned(bulk_id, "stop", reason, actor)

    def _turned(self, bulk_id: str, verb: str, reason: str | None, actor: str | None) -> Bulk:
        return run(self._redis, bulks.turn(self._opened(), bulk_id, verb, actor=actor, reason=reason))

    def _opened(self) -> StoreKeys:
        return run(self._redis, self._layout.opened())

    def _looked(self) -> StoreKeys:
        return run(self._redis, self._layout.looked())

    def _settled(self, watcher: SagaWatcher, timeout_s: float | None) -> Iterator[Outcome]:
        """The outcomes of the waiters, one by one, until none is left or the time is up."""
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s

        def turn() -> Settled:
            left_ms = (deadline - time.monotonic()) * 1000
            return run(self._redis, watcher.turn(int(min(left_ms, BLOCK_MS))))

        while watcher:
            try:
                settled = self._outage.patiently(turn, until=deadline)
            except redis.RedisError as error:
                if not is_outage(error):
                    raise
                return
            yield from (outcome for _, outcome in settled)
            if not settled and time.monotonic() >= deadline:
                return
