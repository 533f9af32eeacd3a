"""How long `begin` waits, and what it says meanwhile. It waits for the broker, for room in the store, for a worker and
for the end of its saga.
"""

import math
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import click

from sagastream_bridge.commands.terminal import safe, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from sagastream.broker.connection import Broker
    from sagastream.client.answers import Accepted
    from sagastream.client.blocking import SagaClient
    from sagastream.client.durability import Durable
    from sagastream.core.messages import Begin
    from sagastream.core.saga import SagaState
    from sagastream.store.keys import StoreKeys

_T = TypeVar("_T")

#: How long `begin` waits for a worker, and for services, to appear before it says that there is none, in seconds.
_GRACE_S: Final = 1.0
#: How long `begin --wait` waits until it says why the saga has not ended, in seconds, and looks again.
_SAY_WHY_AFTER_S: Final = 3.0


class Patience:
    """That of one `begin`. All of it is within one time limit, if there is one."""

    def __init__(self, broker: "Broker", timeout_s: float | None) -> None:
        """`timeout_s`: for all of it; None: without a limit."""
        from sagastream.broker.outage import Outage

        self._broker = broker
        self._timeout_s = timeout_s
        self._until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self._outage = Outage(broker, "sagastream begin", threading.Event())
        self._may_look: bool | None = None  # None: that was not asked yet, or there was no answer

    def opened(self) -> "StoreKeys":
        """The names of the store's keys. If the broker is away at the start, its url may be wrong, and that is an error
        at once. But if a Sentinel knows the master, another server is about to be it."""
        import redis

        from sagastream.broker.failures import NoMaster, is_outage, told
        from sagastream.store import layout

        try:
            return layout.check(self._broker)
        except NoMaster as error:
            if not error.is_watched:
                raise
        try:
            return self.read(lambda: layout.check(self._broker))
        except redis.RedisError as error:
            if not is_outage(error):
                raise
            text = f"the saga was not begun within {self._timeout_s:g} s: {told(error)}"
            raise click.ClickException(safe(text)) from None

    def read(self, read: "Callable[[], _T]") -> "_T":
        """Have something read from the store, however long the broker is away."""
        return self._outage.patiently(read, until=self._until)

    def tell(self, noticed: "Callable[[], str | None]") -> None:
        """Tell what was noticed in the store, if anything was."""
        if (text := self.look(noticed)) is not None:
            say(text, err=True)

    def look(self, read: "Callable[[], _T | None]") -> "_T | None":
        """What is read from the store; None if it cannot be read: the saga begins all the same."""
        import redis

        from sagastream.errors import SagastreamError

        with suppress(redis.RedisError, SagastreamError):
            return self.read(read)
        return None

    def begun(self, client: "SagaClient", request: "Begin", durable: "Durable | None") -> "Accepted":
        """Have the request accepted, however long the broker is away. `durable`: as for SagaClient.begin."""
        import redis

        from sagastream.broker.failures import NodeRefuses, is_outage, is_refusal, told

        saga_id, may_have_arrived = request.saga_id, False

        def begin() -> "Accepted":
            nonlocal may_have_arrived
            try:
                return client.begin_request(request, durable=durable)
            except redis.RedisError as error:
                may_have_arrived = may_have_arrived or not is_refusal(error)
                raise

        again = f"the request to begin saga {saga_id} may have arrived; begin it again, and nothing is done twice"
        try:
            return self._outage.patiently(lambda: self._once_there_is_room(begin), until=self._until)
        except redis.RedisError as error:
            if not is_outage(error) or isinstance(error, NodeRefuses):
                raise
            text = f"saga {saga_id} was not begun within {self._timeout_s:g} s: {told(error)}"
            if may_have_arrived:
                text = f"saga {saga_id} was not accepted within {self._timeout_s:g} s: {told(error)}; {again}"
            raise click.ClickException(safe(text)) from None
        except SystemExit:
            click.echo(again if may_have_arrived else f"saga {saga_id} was not begun", err=True)
            raise

    def _once_there_is_room(self, begin: "Callable[[], Accepted]") -> "Accepted":
        """What `begin` returns. While the store is full, it is called again if the time is limited: there may be no
        room for days."""
        from sagastream.errors import StoreFull

        said = False
        while True:
            try:
                return begin()
            except StoreFull as error:
                left_s = self._until - time.monotonic()
                if self._timeout_s is None or left_s <= 0:
                    raise
                if not said:
                    click.echo(safe(f"{error}; trying again for {self._timeout_s:g} s"), err=True)
                    said = True
                time.sleep(min(error.retry_after_s, left_s))

    def is_workerless(self, keys: "StoreKeys") -> bool | None:
        """Whether no worker shows up; None: that is not known. The broker was away until the time was up, or this user
        may not know."""
        import redis

        from sagastream.store import heartbeat

        if not self.may_look(keys):
            return None
        try:
            return not self._outage.patiently(
                lambda: _shows_up(lambda: heartbeat.worker_is_alive(self._broker.client, keys)), until=self._until
            )
        except redis.RedisError:
            return None

    def may_look(self, keys: "StoreKeys") -> bool:
        """Whether this user may know who is at work, and why sagas wait."""
        from sagastream.broker.exchange import run
        from sagastream.client import evidence

        if self._may_look is None:
            self._may_look = self.look(lambda: run(self._broker.client, evidence.may_look(keys)))
        return self._may_look is not False

    def strangers(self, keys: "StoreKeys", request: "Begin", *, workerless: bool) -> list[str]:
        """What the steps name that no service has: misspelt services and commands. It is empty in a store in which
        nothing is at work yet, and if the store cannot be read."""
        import redis

        from sagastream.broker.exchange import run
        from sagastream.client.evidence import survey
        from sagastream.core.steps import services_of
        from sagastream.core.why_service import unheard_of

        found: list[str] = []

        def are_there() -> bool:
            nonlocal found
            evidence = run(self._broker.client, survey(keys, services_of(request.steps)))
            is_new = workerless and not evidence.names
            found = [] if is_new or not evidence.hears else unheard_of(request.steps, evidence)
            return not found

        try:
            # Services start beside their worker. If that has not come, they have had their time.
            grace_s = 0.0 if workerless else _GRACE_S
            self._outage.patiently(lambda: _shows_up(are_there, grace_s), until=self._until)
        except redis.RedisError:
            return []
        return found

    def ended(self, client: "SagaClient", keys: "StoreKeys", accepted: "Accepted") -> "SagaState":
        """Wait for the end. If it takes long, say why, and again whenever that is something else."""
        saga_id, said = accepted.saga_id, ""
        try:
            while True:
                left_s = max(0.0, self._until - time.monotonic())
                try:
                    return client.wait(accepted, min(left_s, _SAY_WHY_AFTER_S))
                except TimeoutError:
                    kinds, lines = _why(client, saga_id) if self.may_look(keys) else ("", [""])
                if left_s <= _SAY_WHY_AFTER_S:
                    helps = [] if kinds == said else lines[1:]  # what was said before still stands above
                    text = f"saga {saga_id} has not ended within {self._timeout_s:g} s{lines[0]}"
                    raise click.ClickException("\n".join([text, *helps]))
                if kinds not in ("", said):
                    said = kinds
                    click.echo("\n".join([f"saga {saga_id} waits{lines[0]}", *lines[1:]]), err=True)
        except SystemExit:
            click.echo(f"saga {saga_id} goes on without this command: sagastream show {saga_id}", err=True)
            raise


def _why(client: "SagaClient", saga_id: str) -> tuple[str, list[str]]:
    """Why a saga waits: the kinds of the causes; what they are, as the end of a sentence; and below it what helps."""
    import redis

    from sagastream.broker.failures import is_outage, told
    from sagastream.core.why import headline
    from sagastream.errors import UnknownSaga

    try:
        causes = client.why(saga_id)
    except UnknownSaga as error:  # it is gone, or its request is: a person has deleted it, or the store lost writes
        return "", [safe(f": {error}")]
    except redis.RedisError as error:
        if not is_outage(error):
            raise
        return "", [safe(f": {told(error)}")]
    what = f": {headline(causes)}" if causes else ""
    return " ".join(cause.kind for cause in causes), [safe(what), *(safe(line) for one in causes for line in one.do)]


def _shows_up(is_there: "Callable[[], bool]", grace_s: float = _GRACE_S) -> bool:
    """Whether something is there, or comes within this time: it may be starting."""
    until = time.monotonic() + grace_s
    while not (there := is_there()) and time.monotonic() < until:
        time.sleep(0.05)
    return there
