"""Runs a saga once for each single thing that can go wrong with it, and checks each time what must hold."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from sagastream.core.graph import before
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaStatus
from sagastream.core.steps import StepKind
from sagastream.errors import ScenarioError
from sagastream.testing.faults import CommandFaults, Fault
from sagastream.testing.saga import Saga
from sagastream.testing.sagas import Sagas, Step
from sagastream.testing.signals import Wrong
from sagastream.testing.tracebacks import without_ours

if TYPE_CHECKING:
    from sagastream.client.definition import Definition

S = TypeVar("S")
#: pytest leaves out the frames of this module: the report tells what happened.
__tracebackhide__ = True

#: All that can go wrong with one command, each described in words.
_FAULTS: Final[dict[str, Callable[[CommandFaults], Fault]]] = {
    "is rejected": lambda command: command.rejects("as the test has it"),
    "raises once": lambda command: command.raises(times=1),
    "raises each time": lambda command: command.raises(),
    "raises once, having been done": lambda command: command.raises(after_effect=True, times=1),
    "raises each time, having been done": lambda command: command.raises(after_effect=True),
    "is lost once": lambda command: command.times_out(times=1),
    "is lost each time": lambda command: command.times_out(),
    "is done once, and not answered": lambda command: command.times_out(after_effect=True, times=1),
    "is done each time, and not answered": lambda command: command.times_out(after_effect=True),
    "is answered late once": lambda command: command.answers_late(times=1),
    "is answered late each time": lambda command: command.answers_late(),
    "is answered a day late": lambda command: command.answers_late(by_s=24 * 3600),
    "is done a day late": lambda command: command.is_done_late(by_s=24 * 3600),
    "is answered twice": lambda command: command.answers_twice(),
    "is given to two processes": lambda command: command.is_delivered_twice(),
    "kills its process": lambda command: command.crashes(),
    "kills its process, having been done": lambda command: command.crashes(after_effect=True),
    "kills every process that works on it": lambda command: command.crashes(after_effect=True, times=None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What goes wrong with one command of one step, or with one wait."""

    command: str  # of a step that waits: its signal
    step: int
    what: str  # of _FAULTS, of Wrong, or one of the next ones

    def __str__(self) -> str:
        return f"{self.command} of step {self.step} {self.what}"


#: Besides these: an operator cancels the saga while the command is out, or while the step waits; a signal comes before
#: its step waits for it.
_CANCELLED: Final = "is out when the saga is cancelled"
_CANCELLED_WAITING: Final = "is waited for when the saga is cancelled"
_EARLY: Final = "is signalled before its step waits"
#: … and while a step fails, another that was sent with it is answered later, or not at all.
_SLOW: Final = "is answered after the others"
_REJECTED: Final = "is rejected"
_LOST: Final = "is lost each time"
#: After these, a saga goes back.
_FAILS: Final = (_REJECTED, Wrong.DECLINED.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Generic[S]):
    """One run of a saga in which something went wrong."""

    troubles: tuple[Trouble, ...]
    sagas: Sagas
    saga: Saga
    state: S  # what the setup returned

    def __str__(self) -> str:
        return ", then ".join(map(str, self.troubles)) or "nothing goes wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What was tried: each run, in words."""

    runs: tuple[str, ...]


@without_ours
def check_every_fault(
    setup: Callable[[Sagas], S],
    steps: "Sequence[Step] | Definition",
    check: Callable[[Saga, S], None],
    *,
    input: Any = None,  # noqa: A002 - as SagaClient.begin calls it
    deadline_ms: int | None = None,
    start_in_s: float | None = None,
) -> Sweep:
    """Run a saga many times, and check after each run what must hold:

    - once with nothing going wrong;
    - once for each single thing that can go wrong with one of its commands;
    - once for each that can go wrong with one of its compensations, while the saga is undone;
    - once for each two steps that are sent together: one is rejected, and the other is answered later, or never;
    - once for each that can go wrong with a signal that one of its steps waits for: it is declined, does not come in
      time, comes before its step waits, comes twice, or the saga is cancelled meanwhile; so it is with pauses, and with
      the signals that send a failed step again.

    If the saga is parked, the fault is stopped and an operator retries the saga. So each run ends.

    Args:
        setup: called before each run. It serves services that have done nothing yet, says which signals come by
            `Sagas.on_wait`, and returns what `check` needs.
        steps: of the saga, as `SagaClient.begin` takes them; or a Definition.
        check: called after each run with the saga and what `setup` returned. It raises AssertionError if the two do not
            agree, and returns nothing.
        input: of the saga, as `SagaClient.begin` takes it.
        deadline_ms: of the saga, as `SagaClient.begin` takes it.
        start_in_s: it does nothing for so many seconds of the test's time.

    Returns a Sweep, which lists the runs. Raises AssertionError if `check` failed after a run: it lists all such runs,
    and tells what happened in the first. Raises ScenarioError if `check` returns something.
    """
    begin: dict[str, Any] = {"input": input, "deadline_ms": deadline_ms}
    sweep = _Sweep(setup, steps, check, begin, start_in_s)
    sweep.run_all()
    return sweep.report()


class _Sweep(Generic[S]):
    def __init__(
        self,
        setup: Callable[[Sagas], S],
        steps: "Sequence[Step] | Definition",
        check: Callable[[Saga, S], None],
        begin: dict[str, Any],
        start_in_s: float | None,
    ) -> None:
        self._setup = setup
        self._steps = steps
        self._check = check
        self._begin = begin
        self._start_in_s = start_in_s
        self._runs: list[str] = []
        self._broken: list[tuple[str, Exception, str]] = []

    def run_all(self) -> None:
        smooth = self._run(())
        if smooth.saga.status is not SagaStatus.COMPLETED:
            raise ScenarioError(f"nothing goes wrong, and yet the saga does not complete:\n{smooth.saga.explain()}")
        undone: Run[S] | None = None
        for trouble in (*_troubles(smooth.saga), *_waits(smooth.saga)):
            run = self._run((trouble,))
            if (
                trouble.what in _FAILS
                and (to_undo := _undone(run.saga))
                and (undone is None or to_undo >= _undone(undone.saga))
            ):
                undone = run  # of those that have most to undo, the last one
        for troubles in (*_beside(smooth.saga), *_retries(smooth.saga)):
            self._run(troubles)
        if undone is not None:
            for trouble in _troubles(undone.saga, compensating=True):
                self._run((*undone.troubles, trouble))

    def report(self) -> Sweep:
        if self._broken:
            name, first, explained = self._broken[0]
            broken = "".join(f"\n  {name}: {_first_line(error)}" for name, error, _ in self._broken)
            many = f"{len(self._broken)} of {len(self._runs)} runs broke:{broken}"
            raise AssertionError(f"{many}\n\nThe first of them, {name}:\n{explained}") from first
        return Sweep(runs=tuple(self._runs))

    def _run(self, troubles: tuple[Trouble, ...]) -> Run[S]:
        sagas = Sagas()
        try:
            state = self._setup(sagas)
            start_at = None if self._start_in_s is None else sagas.clock.now() + timedelta(seconds=self._start_in_s)
            saga = sagas.begin(self._steps, start_at=start_at, **self._begin)
            run = Run(troubles=troubles, sagas=sagas, saga=saga, state=state)
            self._play(run)
            self._runs.append(str(run))
            self._judge(run)
        finally:
            sagas.close()
        return run

    def _play(self, run: Run[S]) -> None:
        faults = [fault for trouble in run.troubles if (fault := _happen(run, trouble)) is not None]
        run.sagas.settle()
        for number in run.saga.state.parked_steps:
            if number not in run.saga.state.parked_steps:
                continue  # it went on with the one before
            for fault in faults:
                fault.stop()
            run.sagas.signals.go_well()
            step = number if len(run.saga.state.parked_steps) > 1 else None
            run.saga.retry("the fault is stopped", step=step)
        run.sagas.check_faults()

    def _judge(self, run: Run[S]) -> None:
        if not run.saga.state.ended:
            error = AssertionError(f"the fault was stopped, and yet the saga is parked again: {run.saga.parked}")
            self._broken.append((str(run), error, run.saga.explain()))
            return
        try:
            returned: object = self._check(run.saga, run.state)
        except Exception as error:  # noqa: BLE001 - whatever a check raises, it has not passed
            self._broken.append((str(run), error, run.saga.explain()))
            return
        if returned is not None:
            raise ScenarioError(f"check returned {returned!r}, which is ignored: let it assert what must hold")


def _first_line(error: Exception) -> str:
    # The other lines of a failed assertion explain its values. For the first error pytest shows them all.
    return next(iter(str(error).splitlines()), type(error).__name__)


def _happen(run: Run[S], trouble: Trouble) -> Fault | None:
    """Let this go wrong, or see to it that it will. Returns what goes wrong with a command."""
    if trouble.what in _FAULTS or trouble.what in (_CANCELLED, _SLOW):
        command = run.sagas.command(trouble.command, step=trouble.step)
        if trouble.what == _SLOW:
            return command.takes(0.5)
        if trouble.what != _CANCELLED:
            return _FAULTS[trouble.what](command)
        fault = command.takes(0.001, times=1)
        run.sagas.advance_until(lambda: fault.struck > 0)
        run.saga.cancel()
        return fault
    if trouble.what == _CANCELLED_WAITING:
        run.sagas.signals.go_wrong(trouble.step, Wrong.NEVER)
        run.sagas.advance_until(lambda: run.saga.state.steps[trouble.step - 1].phase is Phase.AWAITING)
        run.saga.cancel()
    elif trouble.what == _EARLY:
        run.saga.signal(trouble.command, run.sagas.signals.payload_of(trouble.command))
    else:
        run.sagas.signals.go_wrong(trouble.step, Wrong(trouble.what))
    return None


def _undone(saga: Saga) -> int:
    """How many steps of a saga were undone."""
    return len({command.step for command in saga.sent if command.compensating})


def _troubles(saga: Saga, *, compensating: bool = False) -> Iterator[Trouble]:
    """Each single thing that can go wrong with the commands that a saga has sent, or with its compensations."""
    sent = {(command.type, command.step): None for command in saga.sent if command.compensating is compensating}
    for name, step in sent:
        yield from (Trouble(command=name, step=step, what=what) for what in _FAULTS)
        if not compensating and saga.state.steps[step - 1].definition.kind is not StepKind.RETRIABLE:
            yield Trouble(command=name, step=step, what=_CANCELLED)


def _beside(saga: Saga) -> Iterator[tuple[Trouble, ...]]:
    """What can go wrong with two steps of a saga that were sent together: one fails, and the other is out by then."""
    steps = [
        (number, step.definition.transaction, before(step.definition, number))
        for number, step in enumerate(saga.state.steps, 1)
        if step.attempt and step.definition.shape.sends and step.definition.kind is not StepKind.RETRIABLE
    ]
    for number, name, after in steps:
        for other, its_name, its_after in steps:
            if other != number and its_after == after:
                for what in (_SLOW, _LOST):
                    fails = Trouble(command=name, step=number, what=_REJECTED)
                    yield Trouble(command=its_name, step=other, what=what), fails


def _retries(saga: Saga) -> Iterator[tuple[Trouble, ...]]:
    """What can go wrong with the signals after which failed steps of a saga are sent again."""
    for number, step in enumerate(saga.state.steps, 1):
        signal = step.definition.shape.retry_on
        if signal is not None and step.phase is Phase.COMPLETED:
            rejected = Trouble(command=step.definition.transaction, step=number, what=_REJECTED)
            for wrong in (Wrong.DECLINED, Wrong.NEVER):
                yield rejected, Trouble(command=signal, step=number, what=wrong.value)


def _waits(saga: Saga) -> Iterator[Trouble]:
    """Each single thing that can go wrong with what the steps of a saga have waited for."""
    for number, step in enumerate(saga.state.steps, 1):
        definition = step.definition
        if definition.shape.sends or step.phase is not Phase.COMPLETED:
            continue
        name, signal = definition.transaction, definition.shape.wait
        if signal is not None:
            yield from (Trouble(command=signal, step=number, what=wrong.value) for wrong in Wrong)
            yield Trouble(command=signal, step=number, what=_EARLY)
        if definition.kind is not StepKind.RETRIABLE:
            yield Trouble(command=name, step=number, what=_CANCELLED_WAITING)
