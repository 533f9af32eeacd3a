"""A saga as it stands: its status, its steps, and what happened to it."""

from enum import StrEnum
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from sagastream.core.attributes import Attributes
from sagastream.core.messages import DefinedBy
from sagastream.core.phases import DONE, IN_FLIGHT, Phase
from sagastream.core.step_state import Step
from sagastream.core.steps import PLAIN, PLAIN_SHAPE, StepKind
from sagastream.core.strict_json import value_of
from sagastream.core.trace_context import trace_id
from sagastream.errors import UnreadableSaga

_WAITING: Final = Phase.WAITING
#: How many steps of a graph `waiting_for` names.
_TOLD: Final = 3
#: The most that a saga counts of how far the broker's clock was set, either way, in ms: more than from 1970 to 9999.
MAX_SET_BACK_MS: Final = 10**15
#: A saga keeps at most this many interventions, the newest ones; see _least.
MAX_INTERVENTIONS: Final = 100
#: About how many bytes a long one of them takes.
_INTERVENTION_BYTES: Final = 1000


class SagaStatus(StrEnum):
    """Where a saga is. COMPLETED and ABORTED are its ends."""

    PENDING = "PENDING"  # its steps are being done, or it is parked at one
    COMPENSATING = "COMPENSATING"  # its steps are being undone, or it is parked at a compensation
    COMPLETED = "COMPLETED"  # all its steps were done, or skipped by an operator
    ABORTED = "ABORTED"  # it failed or was cancelled, and its steps were undone, or left as they are by an operator


class Intervention(Struct, frozen=True, kw_only=True, gc=False):
    """What an operator, or the saga's deadline, did about a saga."""

    verb: str  # cancel, "cancel now", retry, skip, abandon, erase; or "too late": a pivot was done before a cancel
    reason: str  # why, in the operator's words
    at_ms: int  # when, in milliseconds since the epoch by the broker's clock
    actor: str | None = None  # who asked for it, in their own words; None: they did not say
    request_id: str | None = None  # of the request: it is done once, even if it arrives more than once
    step: int | None = None  # of a graph: which step was retried, skipped or abandoned

    @property
    def is_signal(self) -> bool:
        """Whether it is a signal, and not an operator's verb."""
        return self.verb.startswith(("signal ", "decline "))


class KeptSignal(Struct, frozen=True, kw_only=True, gc=False):
    """A signal that came before the step that will wait for it."""

    name: str  # of the signal
    payload: bytes = b"null"  # JSON; the result of the step that waits
    declined: str | None = None  # why the step fails; None: it does not
    at_ms: int  # when it came


class SagaState(Struct, frozen=True, kw_only=True, gc=False):
    """A saga at one moment: what clients return, what the decision core works on, and what the store keeps.

    It does not change. Ask for the saga again to see what has happened to it since. Times are milliseconds since the
    epoch by the broker's clock. Steps count from 1.

    A live saga always waits for something: for its start; or for one of its steps at least, which is in flight, backing
    off, held, parked, or waits for a signal or a time.
    """

    saga_id: str  # its id, as in the request that began it
    steps: tuple[Step, ...]  # all of its steps, in order, each with its own status, result and error
    status: SagaStatus  # where the saga is
    current_step: (
        int  # the number of the first step that is active (of those that are being undone, the last one); once
    )
    # the saga has ended, the last one that was active
    reason: str | None = None  # why it is undone or was undone; None: it is not
    cancelling: str | None = None  # why it will be undone as soon as what is out is answered; None: it will not
    compensating_steps: tuple[int, ...] = ()  # the numbers of the steps whose undo was begun, in that order
    begun_ms: int  # when it began
    updated_ms: int  # when it last changed
    deadline_ms: int | None = None  # when it is cancelled, if it has not ended by then; None: never
    hard_deadline: bool = False  # whether a command that is out at the deadline counts as unknown from then on
    set_back_ms: int = 0  # by how much the broker's clock was set back while it waited, as far as a worker noticed it
    set_forward_ms: int = 0  # the same of a clock that went forward at once, such as one that is set right again
    interventions: tuple[Intervention, ...] = ()  # what was done about it from outside, the newest 100, oldest first
    duplicates: int = 0  # how many replies were ignored because they said nothing new
    request_id: str | None = None  # the id of the request that began it
    echo: bool = False  # whether its messages are published as events too: the field `trace` of the request
    format: int = PLAIN  # one of FORMATS
    input: bytes | None = None  # what its steps may refer to, a JSON object; None: it has none
    definition: DefinedBy | None = None  # which definition its steps were made from
    start_ms: int | None = None  # it does nothing before this time
    signals: tuple[KeptSignal, ...] = ()  # those that came before the steps that will wait for them, oldest first
    failed_step: int | None = (
        None  # the number of the step that failed first, so that it is undone; of a plain saga None
    )
    attributes: Attributes | None = None  # by which people find it; None: it has none
    traceparent: str | None = None  # the span within which it was begun, see trace_context; None: within no trace
    tracestate: str | None = None  # what tracing systems have added to that
    journal: bytes | None = None  # what its other members no longer say, see journal.py; history.py reads it
    version: int = 0  # how many commits have changed it; 0: not stored yet. Only the store sets it

    @property
    def ended(self) -> bool:
        """Whether it is COMPLETED or ABORTED."""
        # By identity: this is asked some twenty times a turn, and an enum of strings compares as strings.
        return self.status is SagaStatus.COMPLETED or self.status is SagaStatus.ABORTED

    @property
    def trace_id(self) -> str | None:
        """The id of the trace that it belongs to, in hexadecimal; None: it was begun within no trace."""
        return None if self.traceparent is None else trace_id(self.traceparent)

    @property
    def results(self) -> list[Any]:
        """What the transaction of each step returned; None if it returned None, or no result is known."""
        return [step.result_value for step in self.steps]

    @property
    def completed_steps(self) -> tuple[int, ...]:
        """The numbers of the steps whose transactions are known to have completed, even if they were undone since."""
        steps = enumerate(self.steps, 1)
        return tuple([number for number, step in steps if step.phase is not _WAITING and step.completed])

    @property
    def weight(self) -> int:
        """About how many bytes its params, results and errors take, and what else it was given."""
        weight = 0 if self.format == PLAIN else self._weight_of_graph
        weight += len(self.interventions) * _INTERVENTION_BYTES
        if self.journal is not None:
            weight += len(self.journal)
        for step in self.steps:
            weight += len(step.definition.params)
            if step.result is not None:
                weight += len(step.result)
            if step.error is not None:
                weight += len(step.error)
            if step.compensation_error is not None:
                weight += len(step.compensation_error)
        return weight

    @property
    def _weight_of_graph(self) -> int:
        """What only a graph has."""
        weight = 0 if self.input is None else len(self.input)
        for kept in self.signals:
            weight += len(kept.payload) + len(kept.declined or "")
        for step in self.steps:  # written out, as in `weight`: this is asked for every commit
            if step.built is not None:
                weight += len(step.built)
            if step.built_undo is not None:
                weight += len(step.built_undo)
            if step.parked is not None:
                weight += len(step.parked)
            if (shape := step.definition.shape) is PLAIN_SHAPE:
                continue
            if shape.when is not None:
                weight += len(shape.when)
            if shape.compensation_params is not None:
                weight += len(shape.compensation_params)
        return weight

    @property
    def step(self) -> Step:
        """The current step."""
        return self.steps[self.current_step - 1]

    @property
    def is_to_start(self) -> bool:
        """Whether it has not started yet: it waits for its start."""
        if self.start_ms is None or self.status is not SagaStatus.PENDING:
            return False
        return all(step.phase is _WAITING for step in self.steps)

    @property
    def active_steps(self) -> list[int]:
        """The numbers of the steps that wait for something."""
        return [number for number, step in enumerate(self.steps, 1) if step.is_active]

    @property
    def parked_steps(self) -> list[int]:
        """The numbers of the steps that are parked."""
        return [number for number, step in enumerate(self.steps, 1) if step.parked is not None]

    def number_of(self, name: int | str) -> int | None:
        """The number of the step with this number or id; None: it has no such step."""
        for number, step in enumerate(self.steps, 1):
            if name in (number, step.definition.shape.id):
                return number
        return None

    def name_of(self, number: int) -> str:
        """How people name a step: by its id or else by its number."""
        return self.steps[number - 1].definition.shape.id or str(number)

    def told(self, number: int) -> str:
        """A step as texts for people name it: `4 (pay)`, or `4` if it has no id."""
        name = self.steps[number - 1].definition.shape.id
        return str(number) if name is None else f"{number} ({name})"

    @property
    def past_pivot(self) -> bool:
        """Whether its pivot was done, so that it can no longer be undone."""
        pivots = (step for step in self.steps if step.definition.kind is StepKind.PIVOT)
        return any(step.phase in DONE for step in pivots)

    @property
    def may_be_cancelled(self) -> bool:
        """Whether a cancel is possible: the saga is PENDING, not past its pivot, and not being cancelled already."""
        return self.status is SagaStatus.PENDING and self.cancelling is None and not self.past_pivot

    @property
    def may_be_cancelled_now(self) -> bool:
        """Whether a cancel that says `now` is possible: as any other, and also if the saga is being cancelled and waits
        for an answer; but not at a parked step, since such a cancel does not say that the step was not done."""
        return self.status is SagaStatus.PENDING and self.parked is None and not self.past_pivot

    @property
    def is_cut_off(self) -> bool:
        """Whether its deadline, when it comes, cuts off the command that is out. A command that was sent later, because
        an operator said retry, is waited for."""
        if not self.hard_deadline or (deadline_ms := self.deadline_now_ms) is None:
            return False
        out = [step.sent_ms for step in self.steps if step.in_flight]
        return any(sent_ms is not None and sent_ms < deadline_ms for sent_ms in out)

    @property
    def deadline_now_ms(self) -> int | None:
        """When its deadline comes by the broker's clock, which may have been set since the begin."""
        if self.deadline_ms is None:
            return None
        return max(self.deadline_ms - self.set_back_ms + self.set_forward_ms, 0)

    @property
    def deadline_counts(self) -> bool:
        """Whether its deadline, when it comes, changes anything."""
        return self.may_be_cancelled or (self.cancelling is not None and self.is_cut_off)

    def is_over_deadline(self, now_ms: int) -> bool:
        """Whether its deadline has come, and changes anything."""
        comes_ms = self.deadline_now_ms
        return comes_ms is not None and comes_ms <= now_ms and self.deadline_counts

    @property
    def parked(self) -> str | None:
        """Why a step of it stands still until a person acts; None: none does. If several do: why the first one does."""
        for step in self.steps:
            if step.parked is not None:
                return step.parked
        return None

    @property
    def parked_at(self) -> str | None:
        """Where it is parked: step, `transaction` or `compensation`, and how often that was sent, such as
        `2/compensation/10`; None: it is not parked. If it is parked at another place later, this is another text; so in
        a graph, each retry of what could not be sent counts, too. If several steps are parked, the first of them."""
        parked = self.parked_steps
        return self.parked_place(parked[0]) if parked else None

    def parked_place(self, number: int) -> str | None:
        """Like `parked_at`, of this step."""
        step = self.steps[number - 1]
        if step.parked is None:
            return None
        what = "compensation" if step.being_undone else "transaction"
        return f"{number}/{what}/{step.current_attempt + step.unsent_retries}"

    @property
    def times_out_ms(self) -> int | None:
        """When what the current step waits for is over: its command, its signal or its pause; None: it waits for no
        such thing."""
        return self.steps[self.current_step - 1].times_out_ms

    @property
    def send_again_ms(self) -> int | None:
        """When the current step sends its command again; None: it is not backing off, or is held."""
        return self.steps[self.current_step - 1].send_again_ms

    @property
    def due_ms(self) -> int | None:
        """When it needs attention next even if no message comes: its earliest timeout, next attempt or deadline, or its
        start. None: it is parked, or has ended."""
        due_ms = self.start_ms if self.start_ms is not None and self.is_to_start else None
        for step in self.steps:
            if step.due_ms is not None and (due_ms is None or step.due_ms < due_ms):
                due_ms = step.due_ms
        if due_ms is None or (deadline_ms := self.deadline_now_ms) is None:
            return due_ms
        return deadline_ms if deadline_ms < due_ms and self.deadline_counts else due_ms

    @property
    def waiting_for(self) -> str:
        """What must happen for the saga to go on, in words."""
        if self.ended:
            return "nothing, it has ended"
        if self.start_ms is not None and self.is_to_start:
            return "its start"
        if self.format == PLAIN:  # it waits for one step at a time
            return "a person, it is parked" if self.step.parked is not None else self._step_waits_for(self.current_step)
        if (active := self.active_steps) == [self.current_step]:
            return self._step_waits_for(self.current_step)
        told = dict.fromkeys(self._step_waits_for(number) for number in (self.current_step, *active))
        more = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        return "; ".join([*told][:_TOLD]) + more

    def _step_waits_for(self, number: int) -> str:
        step = self.steps[number - 1]
        phase, attempt = step.phase, step.current_attempt
        then = "" if self.cancelling is None else self._then
        if phase in IN_FLIGHT:
            which = f" (attempt {attempt} of {step.attempts})" if attempt > 1 else ""
            return f"{step.definition.service} to answer {step.command}, step {self.told(number)}{which}{then}"
        if step.parked is not None:
            return f"a person, step {self.told(number)} is parked"
        what, shape = f"{step.command}, step {self.told(number)}", step.definition.shape
        if phase is Phase.AWAITING:
            return f"the end of its pause, step {self.told(number)}" if shape.wait is None else f"the signal {what}"
        if phase is Phase.RETRY_AWAITED:
            return f"the signal {shape.retry_on}, to send {what} again"
        if step.is_held:
            return f"{step.definition.service} to be resumed, to send {what}"
        if attempt == 0:
            return f"the time to send {what}"  # it was put off: see back.AT_ONCE_BYTES
        return f"the time to send {what} again (attempt {attempt + 1} of {step.attempts}){then}"

    @property
    def _then(self) -> str:
        """What follows once what is out is answered, if the saga is to go back."""
        return ", to be cancelled then" if self.failed_step is None else ", to go back then"

    def with_step(self, number: int, step: Step, **changes: Any) -> "SagaState":
        """The same saga with `step` as step `number`, and with these changes."""
        return replace(self, steps=(*self.steps[: number - 1], step, *self.steps[number:]), **changes)

    def has_taken(self, request_id: str | None) -> bool:
        """Whether this request of an operator was done already. Only the newest MAX_INTERVENTIONS are known."""
        return request_id is not None and any(done.request_id == request_id for done in self.interventions)

    def with_intervention(self, intervention: Intervention) -> "SagaState":
        """The same saga with one more intervention."""
        kept = [*self.interventions, intervention]
        if len(kept) > MAX_INTERVENTIONS:
            del kept[_least(kept)]
        return replace(self, interventions=tuple(kept))


def _least(interventions: list[Intervention]) -> int:
    """Which of them to forget: if there are signals, the oldest of those that came most often, so that what comes again
    and again pushes out nobody's approval; else the oldest."""
    if not any(one.is_signal for one in interventions):
        return 0
    verbs = [one.verb for one in interventions]
    return verbs.index(max(verbs, key=verbs.count))


#: What a look for a saga may find; None: there is no such saga.
Found = SagaState | UnreadableSaga | None


def protocol_view(state: SagaState) -> dict[str, Any]:
    """The SagaState of the wire protocol, as JSON values."""
    steps = []
    for step in state.steps:
        view: dict[str, Any] = {
            "transaction": step.definition.transaction,
            "params": value_of(step.params),
            "status": str(step.status),
        }
        if step.result is not None:
            view["result"] = value_of(step.result)
        steps.append(view)
    view = {
        "saga_id": state.saga_id,
        "status": str(state.status),
        "current_step": state.current_step,
        "completed_steps": list(state.completed_steps),
        "compensating_steps": list(state.compensating_steps),
        "steps": steps,
    }
    return view if state.attributes is None else view | {"attributes": state.attributes}
