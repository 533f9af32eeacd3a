"""Runs a saga once for each single thing that can go wrong with it, and checks each time what must hold."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from sagastream.core.saga import SagaStatus
from sagastream.core.steps import StepKind
from sagastream.errors import ScenarioError
from sagastream.testing.faults import CommandFaults, Fault
from sagastream.testing.sagas import Saga, Sagas, Step

S = TypeVar("S")

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
    """What goes wrong with one command of one step."""

    command: str
    step: int
    what: str  # of _FAULTS, or _CANCELLED

    def __str__(self) -> str:
        return f"{self.command} of step {self.step} {self.what}"


#: Besides these: an operator cancels the saga while the command is out.
_CANCELLED: Final = "is out when the saga is cancelled"


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


def check_every_fault(
    setup: Callable[[Sagas], S],
    steps: Sequence[Step],
    check: Callable[[Saga, S], None],
    *,
    deadline_ms: int | None = None,
) -> Sweep:
    """Run a saga many times, and check after each run what must hold:

    - once with nothing going wrong;
    - once for each single thing that can go wrong with one of its commands;
    - once for each that can go wrong with one of its compensations, while the saga is undone.

    If the saga is parked, the fault is stopped and an operator retries the saga. So each run ends.

    Args:
        setup: called before each run. It serves services that have done nothing yet, and returns what `check` needs.
        steps: of the saga, as `SagaClient.begin` takes them.
        check: called after each run with the saga and what `setup` returned. It raises AssertionError if the two do not
            agree, and returns nothing.
        deadline_ms: of the saga, as `SagaClient.begin` takes it.

    Returns a Sweep, which lists the runs. Raises AssertionError if `check` failed after a run: it lists all such runs,
    and tells what happened in the first. Raises ScenarioError if `check` returns something.
    """
    sweep = _Sweep(setup, steps, check, deadline_ms)
    sweep.run_all()
    return sweep.report()


class _Sweep(Generic[S]):
    def __init__(
        self,
        setup: Callable[[Sagas], S],
        steps: Sequence[Step],
        check: Callable[[Saga, S], None],
        deadline_ms: int | None,
    ) -> None:
        self._setup = setup
        self._steps = steps
        self._check = check
        self._deadline_ms = deadline_ms
        self._runs: list[str] = []
        self._broken: list[tuple[str, Exception, str]] = []

    def run_all(self) -> None:
        smooth = self._run(())
        if smooth.saga.status is not SagaStatus.COMPLETED:
            raise ScenarioError(f"nothing goes wrong, and yet the saga does not complete:\n{smooth.saga.explain()}")
        undone: Run[S] | None = None
        for trouble in _troubles(smooth.saga):
            run = self._run((trouble,))
            if trouble.what == "is rejected" and any(command.compensating for command in run.saga.sent):
                undone = run  # the last one has most to undo
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
            saga = sagas.begin(self._steps, deadline_ms=self._deadline_ms)
            run = Run(troubles=troubles, sagas=sagas, saga=saga, state=state)
            self._play(run)
            self._runs.append(str(run))
            self._judge(run)
        finally:
            sagas.close()
        return run

    def _play(self, run: Run[S]) -> None:
        faults = []
        for trouble in run.troubles:
            command = run.sagas.command(trouble.command, step=trouble.step)
            if trouble.what == _CANCELLED:
                faults.append(command.takes(0.001, times=1))
                run.sagas.advance(0)
                run.saga.cancel()
            else:
                faults.append(_FAULTS[trouble.what](command))
        run.sagas.settle()
        if run.saga.parked is not None:
            for fault in faults:
                fault.stop()
            run.saga.retry("the fault is stopped")
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


def _troubles(saga: Saga, *, compensating: bool = False) -> Iterator[Trouble]:
    """Each single thing that can go wrong with the commands that a saga has sent, or with its compensations."""
    sent = {(command.type, command.step): None for command in saga.sent if command.compensating is compensating}
    for name, step in sent:
        yield from (Trouble(command=name, step=step, what=what) for what in _FAULTS)
        if not compensating and saga.state.steps[step - 1].definition.kind is not StepKind.RETRIABLE:
            yield Trouble(command=name, step=step, what=_CANCELLED)
