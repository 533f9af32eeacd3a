"""The story of one saga in the core: `when` something happens to it, `expect` what the core decides."""

from typing import Any, Final, Self

import orjson
from msgspec.structs import replace

from sagastream.core.clock import STEADY
from sagastream.core.commands import Reply
from sagastream.core.decision import Event, decide
from sagastream.core.messages import Begin, Code, Due, Intervene, Verb
from sagastream.core.notices import Notice, done_body, parked_body
from sagastream.core.pauses import NOTHING_PAUSED, Pause, Paused, Resume
from sagastream.core.saga import Found, SagaState
from sagastream.core.sending import Published
from sagastream.core.steps import AS_PUBLISHED, StepDefinition
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Decision, Moment
from sagastream.errors import UnreadableSaga

BEGUN_MS: Final = 1_700_000_000_000


def step(
    transaction: str, service: str, params: object = None, compensation: str | None = AS_PUBLISHED, **options: Any
) -> StepDefinition:
    return StepDefinition(
        transaction=transaction, service=service, params=encode(params), compensation=compensation, **options
    )


RESERVE = step("ReserveInventory", "inventory", {"sku": "abc123", "quantity": 1})
CHARGE = step("ChargePayment", "payment", {"user_id": "u42", "amount": 99.99})
SHIP = step("CreateShipment", "shipping", {"order_id": "o123"})

PUBLISHED: Final[Published] = {
    "inventory": {"ReserveInventory": "ReleaseReservation"},
    "payment": {"ChargePayment": "RefundPayment"},
    "shipping": {"CreateShipment": "CancelShipment"},
}


class Story:
    """A saga, and what happens to it: `when` something comes, `expect` what follows.

    A second passes before each event, unless the test says otherwise. Chance shortens no delay.
    """

    def __init__(
        self,
        begin: Begin,
        published: Published,
        jitter: float,
        journal_bytes: int = 0,
        paused: Paused = NOTHING_PAUSED,
        *,
        pauses: tuple[Pause, ...] = (),
    ) -> None:
        self.published = published
        self.journal_bytes = journal_bytes
        self.jitter = jitter
        self.now_ms = BEGUN_MS - 1000
        self.watch = STEADY
        self.paused = paused
        self.pauses = pauses
        self.resumes: tuple[Resume, ...] = ()
        self.state: SagaState | None = None
        self.decision = Decision(state=None)
        self._when(begin)

    @property
    def saga(self) -> SagaState:
        assert self.state is not None
        return self.state

    # --- what happens

    def when_begun(self, *steps: StepDefinition, request_id: str | None, deadline_ms: int | None = None) -> Self:
        """Somebody asks for it again, or for another saga with its id."""
        return self._when(Begin(saga_id="saga42", steps=steps, request_id=request_id, deadline_ms=deadline_ms))

    def when(
        self,
        kind: str,
        number: int,
        *,
        unknown: bool = False,
        attempt: int | None = None,
        process: str | None = None,
        after_ms: int = 1000,
        **payload: object,
    ) -> Self:
        """A reply comes. `payload`: its result or error. `attempt`: the attempt that it answers; None: it does not
        say. `process`: who answers, in the same way."""
        members: dict[str, Any] = {name: encode(value) for name, value in payload.items()} | {"process": process}
        reply = Reply(type=kind, saga_id="saga42", step=number, unknown=unknown, attempt=attempt, **members)
        return self._when(reply, after_ms=after_ms)

    def when_due(self, after_ms: int | None = None) -> Self:
        """The saga is looked at this much later; by default exactly when it is due."""
        if after_ms is None:
            assert self.saga.due_ms is not None
            after_ms = max(0, self.saga.due_ms - self.now_ms)
        return self._when(Due(saga_id="saga42"), after_ms=after_ms)

    def when_asked(
        self,
        verb: Verb,
        reason: str = "as agreed",
        request_id: str | None = "op-1",
        *,
        now: bool = False,
        parked_at: str | None = None,
    ) -> Self:
        """An operator asks for something. `parked_at`: where they saw the saga parked; None: they do not say."""
        asked = Intervene(
            verb=verb, saga_id="saga42", reason=reason, now=now, parked_at=parked_at, request_id=request_id
        )
        return self._when(asked)

    def when_paused(self, *names: str) -> Self:
        """From now on these are paused, and nothing else: services, and commands as `service/command`."""
        self.paused = frozenset(names)
        return self

    def when_resumed(self, *resumes: Resume) -> Self:
        """Nothing is paused from now on, and a worker looks at the saga. `resumes`: who has resumed what, as far as the
        worker knows."""
        self.resumes = resumes
        return self.when_paused().when_due(after_ms=1000)

    # --- what it leads to

    def expect_command(self, service: str, body: str) -> Self:
        """Exactly one command, with this body. The body is given as the protocol writes it, and compared byte for
        byte."""
        assert [(c.service, c.body()) for c in self.decision.commands] == [(service, orjson.dumps(orjson.loads(body)))]
        return self

    def expect_sent(self, service: str, kind: str, number: int, attempt: int = 1) -> Self:
        """Exactly one command. Its answer is awaited for as long as the step says."""
        sent = [(c.service, c.type, c.step, c.attempt) for c in self.decision.commands]
        assert sent == [(service, kind, number, attempt)]
        assert self.saga.times_out_ms == self.now_ms + self.saga.step.definition.timeout_ms
        assert self.saga.send_again_ms is None
        return self

    def expect_told_the_result(self, result: bytes | None) -> Self:
        """The one compensation that is sent contains the result of its step."""
        assert [command.result for command in self.decision.commands] == [result]
        return self

    def expect_nothing_sent(self) -> Self:
        assert self.decision.commands == ()
        return self

    def expect_sent_again_in(self, ms: int) -> Self:
        """Nothing is sent now; the next attempt is sent after this long."""
        assert (self.saga.times_out_ms, self.saga.send_again_ms) == (None, self.now_ms + ms)
        assert self.saga.parked is None
        return self.expect_nothing_sent()

    def expect_waits(self, what: str) -> Self:
        assert self.saga.waiting_for == what
        return self

    def expect_status(self, status: str, reason: str | None = None) -> Self:
        assert (self.saga.status, self.saga.reason) == (status, reason)
        return self

    def expect_steps(self, *statuses: str) -> Self:
        assert tuple(step.status for step in self.saga.steps) == statuses
        return self

    def expect_outcome(self, body: str, to: str | None = None) -> Self:
        """The outcome is reported, addressed to the request `to`."""
        told = Notice(kind="outcome", saga_id="saga42", request_id=to, body=orjson.dumps(orjson.loads(body)))
        assert self.decision.notices[-1:] == (told,)
        assert self.decision.commands == ()
        return self

    def expect_notices(self, *told: str) -> Self:
        """Exactly these, in this order: kind, service and type."""
        notices = self.decision.notices
        assert tuple(f"{n.kind} {n.service or '-'} {orjson.loads(n.body)['type']}" for n in notices) == told
        return self

    def expect_parked(self, reason: str, status: str = "COMPENSATING") -> Self:
        """The saga is parked, and that is reported; it waits for nothing else."""
        self.expect_still_parked(reason, status)
        body = parked_body("saga42", status, reason)
        told = Notice(kind="parked", saga_id="saga42", request_id=self.saga.request_id, body=body)
        assert self.decision.notices[-1:] == (told,)
        return self

    def expect_still_parked(self, reason: str, status: str = "COMPENSATING") -> Self:
        assert (self.saga.status, self.saga.parked) == (status, reason)
        assert (self.saga.times_out_ms, self.saga.send_again_ms, self.saga.due_ms) == (None, None, None)
        return self.expect_waits("a person, it is parked").expect_nothing_sent()

    def expect_done(self, verb: Verb, to: str = "op-1") -> Self:
        """First of all the requester is told that the request was done."""
        told = Notice(kind="done", saga_id="saga42", request_id=to, body=done_body(verb, "saga42"))
        assert self.decision.notices[:1] == (told,)
        assert self.decision.quarantine is None
        return self

    def expect_refused(self, why: str, code: Code = Code.PRECONDITION_FAILED, to: str = "op-1") -> Self:
        """The requester is told why not, and nothing changed."""
        (told,) = self.decision.notices
        assert (told.kind, told.saga_id, told.request_id) == ("refused", "saga42", to)
        assert orjson.loads(told.body) == {"type": "error", "code": code, "text": f"saga saga42 {why}"}
        assert self.decision.quarantine is None
        return self.expect_nothing_changed()

    def expect_interventions(self, *kept: str) -> Self:
        """Exactly these, in this order: verb and reason."""
        assert tuple(f"{done.verb}: {done.reason}" for done in self.saga.interventions) == kept
        return self

    def expect_nothing_changed(self) -> Self:
        """Neither the saga nor anything else changed."""
        assert self.state is self.before
        return self.expect_nothing_sent()

    def expect_quarantined(self, reason: str) -> Self:
        assert self.decision.quarantine == reason
        assert self.decision.notices == ()
        return self.expect_nothing_changed()

    def expect_duplicate_counted(self) -> Self:
        """The duplicate is counted, and nothing else changed."""
        assert self.before is not None
        assert self.decision == Decision(state=replace(self.before, duplicates=self.before.duplicates + 1))
        return self

    def expect_late(self, number: int, result: object = None) -> Self:
        """The saga keeps that the step was done: when that was heard, and the result. Nothing else changed."""
        assert self.before is not None
        steps = list(self.before.steps)
        kept = None if result is None else encode(result)
        steps[number - 1] = replace(steps[number - 1], late_ms=self.now_ms, result=kept)
        assert self.decision == Decision(state=replace(self.before, steps=tuple(steps)))
        return self

    def expect_undone_late(self, number: int) -> Self:
        """The saga keeps when it was heard that the step was undone, and counts the reply. Nothing else changed."""
        assert self.before is not None
        late = replace(self.before.steps[number - 1], compensation_answered_ms=self.now_ms)
        counted = replace(self.before.with_step(number, late), duplicates=self.before.duplicates + 1)
        assert self.decision == Decision(state=counted)
        return self

    def _when(self, event: Event, *, after_ms: int = 1000) -> Self:
        self.before = self.state
        self.now_ms += after_ms
        moment = Moment(
            now_ms=self.now_ms,
            published=self.published,
            watch=self.watch,
            jitter=lambda _: self.jitter,
            journal_bytes=self.journal_bytes,
            paused=self.paused,
            pauses=self.pauses,
            resumes=self.resumes,
        )
        self.decision = decide(self.state, event, moment)
        self.state = readable(self.decision.state)
        return self


def readable(state: Found) -> SagaState | None:
    """The state of a saga whose hash can be read."""
    assert not isinstance(state, UnreadableSaga)
    return state


def given_saga(
    *steps: StepDefinition,
    published: Published = PUBLISHED,
    request_id: str | None = None,
    echo: bool = False,
    deadline_ms: int | None = None,
    hard: bool = False,
    jitter: float = 1.0,
    journal_bytes: int = 0,
    paused: Paused = NOTHING_PAUSED,
    pauses: tuple[Pause, ...] = (),
) -> Story:
    """A saga with these steps that has just begun. `hard`: it has a hard deadline. `paused`: what is; `pauses`: who
    paused it."""
    begin = Begin(
        saga_id="saga42",
        steps=steps,
        request_id=request_id,
        echo=echo,
        deadline_ms=deadline_ms,
        hard_deadline=hard,
    )
    return Story(begin, published, jitter, journal_bytes, paused, pauses=pauses)
