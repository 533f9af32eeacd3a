"""A saga of a test, as the test holds it: how it is, what it has sent, what a person may ask of it."""

from collections.abc import Callable
from typing import Any, Final

from sagastream.core.commands import Command
from sagastream.core.history import history
from sagastream.core.history_events import HistoryEvent
from sagastream.core.messages import Verb
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.sealed_messages import open_command, open_state
from sagastream.testing.orchestrator import InProcessOrchestrator
from sagastream.testing.services import InProcessServices
from sagastream.testing.story import Story, headline
from sagastream.testing.tracebacks import without_ours

#: The reason of an operator, if the test does not give one.
REASON: Final = "as the test has it"


class Saga:
    """A saga of a test. Its properties say how it is now."""

    def __init__(
        self,
        saga_id: str,
        *,
        orchestrator: InProcessOrchestrator,
        services: InProcessServices,
        told: Story,
        intervene: Callable[..., None],
        signal: Callable[..., None],
    ) -> None:
        self.saga_id = saga_id
        self._orchestrator = orchestrator
        self._services = services
        self._story = told
        self._intervene = intervene
        self._signal = signal

    @property
    def state(self) -> SagaState:
        """The whole saga, as `SagaClient.get` returns it."""
        state = self._orchestrator.states[self.saga_id]
        return state if self._services.codec is None else open_state(self._services.codec, state)[0]

    @property
    def status(self) -> SagaStatus:
        """PENDING, COMPENSATING, COMPLETED or ABORTED."""
        return self.state.status

    @property
    def reason(self) -> str | None:
        """Why it is undone or was undone; None: it is not."""
        return self.state.reason

    @property
    def parked(self) -> str | None:
        """Why it waits for a person; None: it does not."""
        return self.state.parked

    @property
    def parked_at(self) -> str | None:
        """Where it is parked, as `retry` and the others take it; None: it is not."""
        return self.state.parked_at

    @property
    def sent(self) -> list[Command]:
        """The commands and compensations that it has sent, in order."""
        codec, sent = self._services.codec, self._orchestrator.sent
        return [open_command(codec, command) for command in sent if command.saga_id == self.saga_id]

    @property
    def commands(self) -> list[str]:
        """The names of the commands and compensations that it has sent, in order. One that was sent twice is there
        twice."""
        return [command.type for command in self.sent]

    @property
    def called(self) -> list[str]:
        """The names of the commands and compensations whose handlers were called, in order."""
        return [command.type for command in self._services.called if command.saga_id == self.saga_id]

    @property
    def history(self) -> list[HistoryEvent]:
        """What happened to it, as `SagaClient.history` says it. There are no processes here, so none is named."""
        return history(self.state)

    @property
    def results(self) -> list[Any]:
        """What the handler of each step returned; None if it returned None, or if that is not known."""
        return self.state.results

    @without_ours
    def cancel(
        self, reason: str = REASON, *, now: bool = False, actor: str | None = None, parked_at: str | None = None
    ) -> None:
        """As `SagaClient.cancel`; then the saga runs on, as in `Sagas.settle`. Raises RequestRefused."""
        more = named(now=now or None, actor=actor, parked_at=parked_at)
        self._intervene(Verb.CANCEL, self.saga_id, reason, **more)

    @without_ours
    def retry(
        self,
        reason: str = REASON,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
    ) -> None:
        """As `SagaClient.retry`; then the saga runs on, as in `Sagas.settle`. Raises RequestRefused."""
        self._intervene(Verb.RETRY, self.saga_id, reason, **named(actor=actor, parked_at=parked_at, step=step))

    @without_ours
    def skip(
        self,
        reason: str = REASON,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
    ) -> None:
        """As `SagaClient.skip`; then the saga runs on, as in `Sagas.settle`. Raises RequestRefused."""
        self._intervene(Verb.SKIP, self.saga_id, reason, **named(actor=actor, parked_at=parked_at, step=step))

    @without_ours
    def abandon(
        self,
        reason: str = REASON,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
        now: bool = False,
    ) -> None:
        """As `SagaClient.abandon`; then the saga runs on, as in `Sagas.settle`. Raises RequestRefused."""
        more = named(now=now or None, actor=actor, parked_at=parked_at, step=step)
        self._intervene(Verb.ABANDON, self.saga_id, reason, **more)

    @without_ours
    def signal(self, name: str, payload: Any = None, *, decline: str | None = None, actor: str | None = None) -> None:
        """As `SagaClient.signal`; then the saga runs on, as in `Sagas.settle`. Raises RequestRefused, and ScenarioError
        if this is not a signal."""
        self._signal(self.saga_id, name, payload, decline=decline, actor=actor)

    def explain(self) -> str:
        """What has happened to it, one line for each event."""
        return self._story.tell(self.state)

    def __repr__(self) -> str:
        return f"<{headline(self.state)}>"


def named(**members: Any) -> dict[str, Any]:
    """Those members of a request that are given."""
    return {name: value for name, value in members.items() if value is not None}
