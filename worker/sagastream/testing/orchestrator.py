"""The orchestrator of a test: the decisions of the core, on states in memory and a clock that never waits."""

import heapq
import random
from collections.abc import Mapping

from sagastream.core.back import no_answer
from sagastream.core.backoff import jitter
from sagastream.core.commands import Command, Reply
from sagastream.core.decision import Event, decide
from sagastream.core.indexing import held_names
from sagastream.core.journal import JOURNAL_BYTES
from sagastream.core.messages import Begin, Due, Intervene, Signal, ToSaga
from sagastream.core.pauses import Pause, Resume
from sagastream.core.phases import AWAITS, Phase
from sagastream.core.saga import SagaState
from sagastream.core.sending import Published
from sagastream.core.step_state import HELD_MS
from sagastream.core.strict_json import decode
from sagastream.core.transitions import Moment
from sagastream.errors import of_refusal
from sagastream.testing import story
from sagastream.testing.clock import Clock
from sagastream.testing.signals import Awaited
from sagastream.testing.story import Story


class InProcessOrchestrator:
    """Does what a worker does with a request, a reply, or a saga that is due. Each decision is committed at once."""

    def __init__(self, clock: Clock, told: Story, published: Published, *, seed: int) -> None:
        """`published`: read again for each decision. `seed`: for the random part of the delays between attempts."""
        self._clock = clock
        self._story = told
        self._published = published
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._states: dict[str, SagaState] = {}
        self._due: list[tuple[int, int, str]] = []  # when, the order in which they were entered, which saga
        self._entered = 0
        self._unread: list[Command] = []
        self._awaited: list[Awaited] = []
        self.sent: list[Command] = []
        self.pauses: dict[str, Pause] = {}  # by name
        self.resumes: dict[str, Resume] = {}  # the last one of each name

    @property
    def states(self) -> Mapping[str, SagaState]:
        """Every saga as it is now, by id."""
        return self._states

    @property
    def next_due_ms(self) -> int | None:
        """When the first saga is due; None: none is."""
        while self._due and self._states[self._due[0][2]].due_ms != self._due[0][0]:
            heapq.heappop(self._due)  # something else has moved it since
        return self._due[0][0] if self._due else None

    def request(self, request: Begin | ToSaga) -> None:
        """Raises RequestRefused, as a client does."""
        self._story_of(request.saga_id, _asked(request))
        self._decide(request.saga_id, request)

    def reply(self, reply: Reply) -> None:
        self._story_of(reply.saga_id, story.answered(reply))
        self._decide(reply.saga_id, reply)

    def do_due(self) -> None:
        """Decide on the saga that is due first, at the time at which it is due."""
        assert self.next_due_ms is not None
        at_ms, _, saga_id = self._due[0]
        self._clock.go_to(at_ms)
        state = self._states[saga_id]
        for number, step in enumerate(state.steps, 1):
            if step.due_ms is not None and step.due_ms <= self._clock.now_ms:
                if step.in_flight:
                    self._story_of(state.saga_id, f"step {number}: {step.command}: {decode(no_answer(step))}")
                break  # the others come next
        self._decide(state.saga_id, Due(saga_id=state.saga_id))

    def look_at_held(self) -> None:
        """Decide on the sagas that are held, as workers do when something is resumed."""
        for saga_id, state in list(self._states.items()):
            if held_names(state):
                self._decide(saga_id, Due(saga_id=saga_id))

    def _decide(self, saga_id: str, event: Event) -> None:
        before = self._states.get(saga_id)
        moment = Moment(
            now_ms=self._clock.now_ms,
            published=self._published,
            jitter=jitter(self._random.getrandbits(32)),
            journal_bytes=JOURNAL_BYTES,
            paused=frozenset(self.pauses),
            pauses=tuple(self.pauses.values()),
            resumes=tuple(self.resumes.values()),
        )
        decision = decide(before, event, moment)
        if isinstance(decision.state, SagaState):
            self._states[saga_id] = decision.state
            if (due_ms := decision.state.due_ms) is not None and due_ms < HELD_MS:
                self._entered += 1
                heapq.heappush(self._due, (due_ms, self._entered, saga_id))
        for text in story.changes(before, decision):
            self._story_of(saga_id, text)
        self._awaited += _begun_to_wait(before, decision.state)
        for command in decision.commands:
            self._story_of(saga_id, story.sent(command))
            self.sent.append(command)
            self._unread.append(command)
        for notice in decision.notices:
            if notice.kind == "refused":
                refused = decode(notice.body)
                raise of_refusal(refused["code"], refused["text"], saga_id)

    def take_commands(self) -> list[Command]:
        """The commands that were sent since this was last called."""
        taken, self._unread = self._unread, []
        return taken

    def take_awaited(self) -> list[Awaited]:
        """The steps that have begun to wait for a signal since this was last called."""
        taken, self._awaited = self._awaited, []
        return taken

    def time_left_ms(self, command: Command) -> int:
        """How long the answer to this command is still awaited, in ms; 0: nobody waits any more."""
        state = self._states[command.saga_id]
        step = state.steps[command.step - 1]
        is_out = (step.command, step.current_attempt) == (command.type, command.attempt)
        return step.times_out_ms - self._clock.now_ms if is_out and step.times_out_ms is not None else 0

    def _story_of(self, saga_id: str, text: str) -> None:
        self._story.add(self._clock.elapsed_ms, saga_id, text)


def _begun_to_wait(before: SagaState | None, after: object) -> list[Awaited]:
    if not isinstance(after, SagaState) or after is before:
        return []
    found = []
    for number, step in enumerate(after.steps, 1):
        was = None if before is None else before.steps[number - 1]
        if step.phase in AWAITS and (was is None or was.phase is not step.phase or was.due_ms != step.due_ms):
            name = step.definition.shape.wait if step.phase is Phase.AWAITING else step.definition.shape.retry_on
            if name is not None:
                found.append(Awaited(saga_id=after.saga_id, step=number, name=name))
    return found


def _asked(request: Begin | ToSaga) -> str:
    if isinstance(request, Begin):
        return f"it is to be run: {', '.join(step.transaction for step in request.steps)}"
    if isinstance(request, Signal):
        how = story.quote(request.payload) if request.declined is None else f"declined, {request.declined}"
        return f"the signal {request.name} comes: {how}"
    assert isinstance(request, Intervene)
    return f"an operator says {request.verb}: {request.reason}"
