"""One saga, its workers, its services and all that lies between them, as a value; and every move that can come next.

The decisions are the real ones: `decide` of the core for a saga, `service_rules` for a service's command, and the
store's code for a saga's score. The scripts are those of mirror.py.

A world is a tuple of numbers. Each number names a value in a table, so a world is small and quick to compare and to
hash. Two reductions keep the number of worlds low. Neither leaves anything out:

- Workers are alike, and so are the processes of a service. Each group is kept sorted, as a collection without names.
- Reading and loading is one move, and so is receiving a command and looking it up. While a worker has read an entry
  and not yet loaded the saga, others see only that the entry is taken; and a later load is the same as a later read.

All workers take the saga's partition for theirs, as two may that have not heard of the same processes yet: each may
take any entry, and find the saga due.

Entries are taken in any order, not in that of the stream: that adds runs that no broker has, and leaves none out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import permutations
from typing import Any, Final, Generic, NamedTuple, TypeVar

from msgspec.structs import replace

from exploration import mirror, rules
from exploration.bugs import Bug
from exploration.rules import NOW, canonical
from sagastream.core import service_rules
from sagastream.core.commands import Command, Reply, failed, ok, reply_to
from sagastream.core.decision import Event, decide
from sagastream.core.messages import Begin, Due, Intervene, Signal, Unreadable, Verb
from sagastream.core.parsing import read_reply, read_request
from sagastream.core.pauses import NOTHING_PAUSED, Paused
from sagastream.core.phases import AWAITS, Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.service_actions import RELEASE, RUN, Answer, Call, Next, Requeue, Run, Undo
from sagastream.core.service_rules import TRIES
from sagastream.core.step_state import StepStatus
from sagastream.core.steps import GRAPH, PLAIN, StepDefinition
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Decision, Moment
from sagastream.orchestrator.packing import _score
from sagastream.service.declaration import Service

SAGA_ID: Final = "s"
_DEADLINE_MS: Final = 10_000_000
_START_MS: Final = NOW + 1000
_PAUSED: Final[Paused] = frozenset({"work"})
#: A step whose time has not come is due later than any other.
_LATER_MS: Final = 100_000_000


class Handler(Enum):
    """What a service does, by its own books, about a transaction that it has done before."""

    BOOKS = "keeps what it did and what it undid, by key: as the sample services do"
    KEY = "does nothing while the key is there; forgets it with the undo"
    NAIVE = "does it again: it relies on the runtime alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What may happen, and how often."""

    name: str
    steps: tuple[StepDefinition, ...] = ()
    #: In place of steps: those of a graph, as in a saga_begin. They are parsed when the model is made, so that mistakes
    #: can be planted in what checks them.
    graph: tuple[dict[str, Any], ...] = ()
    starts_later: bool = False  # whether the saga has a start that is still to come
    #: What happens when the handler of each step's transaction is called: o it is done, r it is rejected, b the handler
    #: raises before its effect, a after it, s it finds that the command came too late.
    #: … A step that sends nothing has none.
    outcomes: tuple[str, ...]
    undo: str = "o"  # … and the handler of its compensation: o, r, b, a
    handler: Handler = Handler.KEY
    workers: int = 2
    processes: int = 2
    loss: int = 0  # how many commands and replies vanish before they are read
    duplication: int = 0  # … and how many come twice
    worker_crashes: int = 0
    service_crashes: int = 0
    zombies: int = 0  # entries or timers that are taken over from a process that is only slow and goes on later
    verbs: tuple[Verb, ...] = ()  # what an operator may ask for
    now: bool = False  # whether a cancel may say `now`
    requests: int = 0  # … and how often
    signals: tuple[str, ...] = ()  # what may be signalled, each once: a name, with a `-` before it if it is declined
    #: Whether a request about a parked saga says where its sender saw it parked. By the time that a worker reads it,
    #: the saga may be elsewhere.
    seen: bool = False
    pauses: int = 0  # how often the service is paused, or resumed after that
    resend: int = 0  # requests that arrive twice, because the answer to the append was lost
    batch: int = 1  # entries that a worker takes in one turn
    deadline: bool = False
    hard: bool = False  # whether the deadline is a hard one
    #: Whether a process may die that was slow, has lost its command to another process, and has its effect after that.
    #: Once the other process has answered, only the service's own books show that effect: see docs/proof.md.
    orphans_die: bool = False
    bug: Bug | None = None

    def model(self) -> "Model":
        return Model(self)


# The parts of a world.
SAGA, TIMER, LETTERS, WORKERS, COMMANDS, PROCESSES, RECORDS, EFFECTS, BUDGET = range(9)
World = tuple[int, ...]

NO_TIMER, TIMED, PARKED = 0, 1, 2

# The parts of the budget: how much of it is left.
LOSS, DUPLICATION, WORKER_CRASH, SERVICE_CRASH, ZOMBIE, REQUEST, RESEND, SIGNALS, PAUSES = range(9)

#: An entry of a stream: what it says, a number that tells it from equal entries, whether it was delivered.
Entry = tuple[int, int, bool]
#: What a worker holds: events and numbers of entries (-1: none, the saga was due); the saga as it was loaded (_STALE:
#: it has changed since).
Worker = tuple[Any, ...]
#: What a process holds: what the rules say is next, the command, the number of its entry, the number of the record as
#: it was looked up, and the sum of those of _AGAIN, _TO_RECORD and _LOST that hold.
Process = tuple[int, ...]
_STALE: Final = -1
#: The command was delivered before; kept after the look-up only if something still depends on it.
_AGAIN: Final = 1
#: It was answered, and is recorded only now: this is a mistake.
_TO_RECORD: Final = 2
#: Another process has taken it over: for the broker it is not this one's any more.
_LOST: Final = 4

Label = tuple[Any, ...]


class Move(NamedTuple):
    label: Label
    after: World
    fault: bool  # this may happen or not
    broken: str | None = None


class Outcome(NamedTuple):
    """The result of deciding on events, one after the other, from a state."""

    after: int
    changed: bool
    commands: tuple[int, ...]
    timer: int | None  # None: unchanged
    broken: str | None


T = TypeVar("T")


class Table(Generic[T]):
    """Values, each with a number."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._numbers: dict[T, int] = {}

    def number(self, value: T) -> int:
        number = self._numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


class Model:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.bug = config.bug
        self.sagas: Table[SagaState | None] = Table()
        self.events: Table[Event] = Table()
        self.commands: Table[Command] = Table()
        self.steps: Table[Next] = Table()
        self.entries: Table[tuple[Entry, ...]] = Table()
        self.workers: Table[tuple[Worker, ...]] = Table()
        self.processes: Table[tuple[Process, ...]] = Table()
        self.seen: Table[bytes] = Table()
        self.records: Table[tuple[tuple[str, bytes], ...]] = Table()
        self.effects: Table[tuple[tuple[tuple[str, ...], bool], ...]] = Table()
        self.budgets: Table[tuple[int, ...]] = Table()
        self._begin = self._asked_for()
        self._sends = [step.shape.sends for step in self._begin.steps] if isinstance(self._begin, Begin) else []
        # A worker finds that the saga is due; what of it is due shows when it decides. Only its number tells such an
        # event from the others.
        self._due = self.events.number(Due(saga_id=SAGA_ID))
        self._resumed = self.events.number(Due(saga_id=f"{SAGA_ID}-resumed"))
        self._deadline = self.events.number(Due(saga_id=f"{SAGA_ID}-deadline"))
        self._times = [self.events.number(Due(saga_id=f"{SAGA_ID}-{number}")) for number in range(len(self._sends) + 1)]
        self._decided: dict[tuple[int, tuple[int, ...], Paused], Outcome] = {}
        self._one: dict[tuple[int, int, Paused], tuple[int, bool, tuple[int, ...], str | None]] = {}
        self._recalled: dict[tuple[int, int, bool], tuple[int, int, int]] = {}
        self._answered: dict[tuple[int, int, int, int], tuple[int, int]] = {}
        self._checked: dict[tuple[int, ...], str | None] = {}
        self._service = Service("work")
        self._service.command("Do", compensation="Undo")(lambda params, context: None)
        self._service.compensation("Undo")(lambda params, context: None)
        self._published = {"work": self._service.publishes()}

    def _asked_for(self) -> Begin | Unreadable:
        """The request that begins the saga, as a worker reads it."""
        config = self.config
        deadline_ms = _DEADLINE_MS if config.deadline else None
        if not config.graph:
            return Begin(saga_id=SAGA_ID, steps=config.steps, request_id="begin", deadline_ms=deadline_ms,
                         hard_deadline=config.hard)  # fmt: skip
        body: dict[str, Any] = {"type": "saga_begin", "saga_id": SAGA_ID, "format": GRAPH, "input": {}}
        body |= {"steps": list(config.graph)} | ({"start_at_ms": _START_MS} if config.starts_later else {})
        body |= {"deadline_ms": deadline_ms, "deadline": "hard" if config.hard else "soft"} if config.deadline else {}
        begin = read_request({b"body": encode(body), b"request_id": b"begin"})
        assert isinstance(begin, Begin | Unreadable)
        return begin

    def start(self) -> World:
        config, begin = self.config, self._begin
        budget = (config.loss, config.duplication, config.worker_crashes, config.service_crashes, config.zombies,
                  config.requests, config.resend, (1 << len(config.signals)) - 1, config.pauses)  # fmt: skip
        return (
            self.sagas.number(None),
            NO_TIMER,
            self.entries.number(((self.events.number(begin), 0, False),)),
            self.workers.number(((),) * config.workers),
            self.entries.number(()),
            self.processes.number(((),) * config.processes),
            self.records.number(()),
            self.effects.number((((), False),) * len(self._sends)),
            self.budgets.number(budget),
        )

    # --- all that can happen next

    def moves(self, world: World) -> Iterator[Move]:
        yield from self._workers_move(world)
        yield from self._processes_move(world)
        yield from self._streams_move(world)
        if self.config.verbs:
            yield from self._operators_move(world)
        if self.config.signals:
            yield from self._others_signal(world)
        if self.budgets.values[world[BUDGET]][PAUSES]:
            what = "somebody resumes the service" if self._is_paused(world) else "somebody pauses the service"
            yield Move((what,), self._spend(world, PAUSES), fault=True)

    def _is_paused(self, world: World) -> bool:
        return (self.config.pauses - self.budgets.values[world[BUDGET]][PAUSES]) % 2 == 1

    def _seen_paused(self, world: World) -> list[Paused]:
        """What a worker may have seen to be paused: it reads that now and then, and decides by what it read last."""
        if self.budgets.values[world[BUDGET]][PAUSES] == self.config.pauses:
            return [NOTHING_PAUSED]
        return [NOTHING_PAUSED, _PAUSED]

    def _workers_move(self, world: World) -> Iterator[Move]:
        slots = self.workers.values[world[WORKERS]]
        budget = self.budgets.values[world[BUDGET]]
        before: Worker | None = None
        for at, slot in enumerate(slots):
            if slot == before:
                continue  # workers are alike
            before = slot
            if not slot:
                yield from self._take(world, slots, at, budget)
                continue
            yield from self._commits(world, slots, at)
            if budget[WORKER_CRASH]:
                crashed = self._with_worker(world, slots, at, ())
                yield Move(("a worker dies", *slot), self._spend(crashed, WORKER_CRASH), fault=True)

    def _take(self, world: World, slots: tuple[Worker, ...], at: int, budget: tuple[int, ...]) -> Iterator[Move]:
        """An idle worker reads entries, or finds that the saga is due, and loads the saga."""
        entries = self.entries.values[world[LETTERS]]
        held = [letter for slot in slots if slot for letter in slot[0]]
        fresh = []
        for index, (event, number, delivered) in enumerate(entries):
            zombie = delivered and (event, number) in held
            if delivered and (self.bug is Bug.NEVER_READ_AGAIN or (zombie and not budget[ZOMBIE])):
                continue
            if not delivered:
                fresh.append(index)
            yield self._taken(world, slots, at, (index,), zombie=zombie)
        if self.config.batch > 1:
            for pair in permutations(fresh, 2):
                yield self._taken(world, slots, at, pair, zombie=False)
        if world[TIMER] == TIMED:
            yield from self._find_due(world, slots, at, held)

    def _find_due(
        self, world: World, slots: tuple[Worker, ...], at: int, held: list[tuple[int, int]]
    ) -> Iterator[Move]:
        """An idle worker finds that the saga is due, and leases it. Another finds it only if the first is slow."""
        state = self.sagas.values[world[SAGA]]
        if state is None or state.due_ms is None:
            return
        times = [self._due] if self._due_times(world, state) else []
        if any(step.is_held for step in state.steps) and not self._is_paused(world):
            times.append(self._resumed)  # it is in the index of what is held, which is looked through after a pause
        if state.deadline_ms is not None and state.deadline_counts:
            times.append(self._deadline)
        zombie = any(number == -1 for _, number in held)
        if zombie and not self.budgets.values[world[BUDGET]][ZOMBIE]:
            return
        for time in times:
            after = self._with_worker(world, slots, at, (((time, -1),), world[SAGA]))
            after = self._spend(after, ZOMBIE) if zombie else after
            yield Move(("a worker finds it due", time), after, fault=zombie)

    def _due_times(self, world: World, state: SagaState) -> list[int]:
        """The events of which one happens if the saga is due: the time of one of its steps has come, or its start."""
        if state.is_to_start:
            return self._times[:1]
        steps = enumerate(state.steps, 1)
        due = [number for number, step in steps if step.due_ms is not None and not step.is_held]
        if self.config.signals and any(
            isinstance(self.events.values[e], Signal) for e, _, _ in self.entries.values[world[LETTERS]]
        ):
            # A wait is not over while a signal that may have come in time was not taken: see orchestrator/order.py.
            due = [number for number in due if state.steps[number - 1].phase not in AWAITS]
        return [self._times[number] for number in due]

    def _taken(
        self, world: World, slots: tuple[Worker, ...], at: int, indexes: tuple[int, ...], *, zombie: bool
    ) -> Move:
        entries = list(self.entries.values[world[LETTERS]])
        letters = tuple(entries[index][:2] for index in indexes)
        again = any(entries[index][2] for index in indexes)
        for index in indexes:
            entries[index] = (*entries[index][:2], True)
        if self.bug is Bug.EARLY_ACKNOWLEDGEMENT:
            entries = [entry for entry in entries if entry[:2] not in letters]
        after = self._with_worker(world, slots, at, (letters, world[SAGA]))
        after = self._with(after, LETTERS, self.entries.number(tuple(sorted(entries))))
        if zombie:
            after = self._spend(after, ZOMBIE)
        return Move(("a worker takes over" if again else "a worker reads", letters), after, fault=zombie)

    def _commits(self, world: World, slots: tuple[Worker, ...], at: int) -> Iterator[Move]:
        letters, seen, *rest = slots[at]
        if rest:
            yield self._set_timer_apart(world, slots, at)
        elif not mirror.commits(world[SAGA], seen) and self.bug is not Bug.NO_VERSION:
            after = self._with_worker(world, slots, at, (letters, world[SAGA]))
            yield Move(("a worker is refused, and loads again", letters), after, fault=False)
        elif letters == ((self._resumed, -1),):
            # A worker that reads that something is paused no more looks at once at what is held.
            yield self._commit(
                world, slots, at, (self._resumed,), _PAUSED if self._is_paused(world) else NOTHING_PAUSED
            )
        else:
            chances = [tuple(event for event, _ in letters)]
            if letters == ((self._due, -1),):
                state = self.sagas.values[seen]
                times = self._due_times(world, state) if state is not None else []
                chances = [(time,) for time in times or [self._due]]
            for paused in self._seen_paused(world):
                for events in chances:
                    yield self._commit(world, slots, at, events, paused)

    def _commit(
        self, world: World, slots: tuple[Worker, ...], at: int, events: tuple[int, ...], paused: Paused
    ) -> Move:
        letters, seen = slots[at]
        outcome = self._fold(seen, events, paused)
        broken = outcome.broken
        if seen != world[SAGA] and outcome.changed:
            broken = self._broken_write(world[SAGA], outcome)
        slots = (*slots[:at], (), *slots[at + 1 :])
        parts = list(world)
        if outcome.changed:
            parts[SAGA] = outcome.after
            if self.bug is not Bug.NO_VERSION:
                # A version never comes again, so a commit of what was loaded before this one is always refused.
                slots = tuple((slot[0], _STALE, *slot[2:]) if slot else () for slot in slots)
        timer = outcome.timer
        if self.bug is Bug.TIMER_APART and timer is not None:
            slots, timer = (*slots[:at], ((), _STALE, timer), *slots[at + 1 :]), None
        if timer is not None:
            parts[TIMER] = timer
        if outcome.commands:
            parts[COMMANDS] = self._append(parts[COMMANDS], outcome.commands, self._held_by_processes(world))
        entries = self.entries.values[world[LETTERS]]
        parts[LETTERS] = self.entries.number(tuple(entry for entry in entries if entry[:2] not in letters))
        parts[WORKERS] = self.workers.number(tuple(sorted(slots)))
        return Move(
            ("a worker commits", events, outcome.after, outcome.commands), tuple(parts), fault=False, broken=broken
        )

    def _set_timer_apart(self, world: World, slots: tuple[Worker, ...], at: int) -> Move:
        """A mistake: something that belongs in the commit is done after it."""
        after = self._with(self._with_worker(world, slots, at, ()), TIMER, slots[at][2])
        return Move(("a worker sets the timer",), after, fault=False)

    def _processes_move(self, world: World) -> Iterator[Move]:
        slots = self.processes.values[world[PROCESSES]]
        budget = self.budgets.values[world[BUDGET]]
        before: Process | None = None
        for at, slot in enumerate(slots):
            if slot == before:
                continue  # processes are alike
            before = slot
            if not slot:
                yield from self._receive(world, slots, at, budget)
                continue
            what, command, _, _, flag = slot
            step = self.steps.values[what]
            if flag & _TO_RECORD:
                yield self._record_apart(world, slots, at)
            elif step is RUN:
                yield from self._handle(world, slots, at)
            elif isinstance(step, Undo):
                yield from self._undo(world, slots, at, step)
            else:
                yield self._answer(world, slots, at)
            may_be_done = isinstance(step, Answer) and step.kind != "final"
            orphan = flag & _LOST and may_be_done and not flag & _TO_RECORD
            if budget[SERVICE_CRASH] and (self.config.orphans_die or not orphan):
                crashed = self._with_process(world, slots, at, ())
                label = ("a process dies that was to", _shown_step(step), command)
                yield Move(label, self._spend(crashed, SERVICE_CRASH), fault=True)

    def _receive(self, world: World, slots: tuple[Process, ...], at: int, budget: tuple[int, ...]) -> Iterator[Move]:
        """An idle process reads a command, and looks it up."""
        entries = self.entries.values[world[COMMANDS]]
        held = [slot[1:3] for slot in slots if slot]
        for index, (command, number, delivered) in enumerate(entries):
            zombie = delivered and (command, number) in held
            if delivered and (self.bug is Bug.NEVER_READ_AGAIN or (zombie and not budget[ZOMBIE])):
                continue
            if not delivered and self._may_be_new(world, command, budget):
                taken = (*entries[:index], (command, number, True), *entries[index + 1 :])
                held_now = (self.steps.number(RUN), command, number, self.seen.number(b""), 0)
                after = self._with(self._with_process(world, slots, at, held_now), COMMANDS, self.entries.number(taken))
                yield Move(("a process reads as new", command), after, fault=False)
            step, records, seen = self._recall(world[RECORDS], command, delivered)
            flag = _AGAIN if delivered and self._may_come_too_late(command) else 0
            others = slots
            if zombie:
                others = tuple((*s[:4], s[4] | _LOST) if s and s[1:3] == (command, number) else s for s in slots)
            after = self._with_process(world, others, at, (step, command, number, seen, flag))
            parts = list(after)
            parts[RECORDS] = records
            if not delivered:
                taken = (*entries[:index], (command, number, True), *entries[index + 1 :])
                parts[COMMANDS] = self.entries.number(taken)
            after = self._spend(tuple(parts), ZOMBIE) if zombie else tuple(parts)
            what = "a process takes over" if delivered else "a process reads"
            yield Move((what, command, _shown_step(self.steps.values[step])), after, fault=zombie)

    def _may_be_new(self, world: World, number: int, budget: tuple[int, ...]) -> bool:
        """Whether a process may begin a command without a look-up. No copy of an entry is new. Once a second attempt
        was sent, the first one comes too late for that; `is_new` asks for the time instead."""
        command = self.commands.values[number]
        saga = self.sagas.values[world[SAGA]]
        tried_again = isinstance(saga, SagaState) and saga.steps[command.step - 1].attempt > 1
        if self.bug is Bug.NEW_FOR_EVER:
            tried_again = False
        return command.is_first and not tried_again and budget[DUPLICATION] == self.config.duplication

    def _may_come_too_late(self, number: int) -> bool:
        command = self.commands.values[number]
        return not command.compensating and "s" in self.config.outcomes[command.step - 1]

    def _recall(self, records: int, number: int, again: bool) -> tuple[int, int, int]:
        """What follows from a command that was looked up: what is next, the records, the record as it was."""
        key = (records, number, again)
        if key not in self._recalled:
            command = self.commands.values[number]
            found = mirror.recall(
                dict(self.records.values[records]),
                record=self._record(command),
                tombstone=command.tombstone,
                compensating=command.compensating and self.bug is not Bug.NO_TOMBSTONE,
            )
            step = service_rules.delivered(command, record=found.record, tombstone=found.tombstone, again=again)
            # If a record says how the command ended, nothing more can change in it.
            in_doubt = step is RUN and found.record is not None and found.record.startswith(b"unknown ")
            seen = self.seen.number(found.record or b"" if in_doubt else b"")
            recorded = self.records.number(tuple(sorted(found.records.items())))
            self._recalled[key] = (self._step(command, step), recorded, seen)
        return self._recalled[key]

    def _step(self, command: Command, step: Next) -> int:
        """The number of what the rules say is next for a command, as a process prepares it."""
        if isinstance(step, Undo):
            undo = self._undoing(command, step)
            # Only the handler that undoes it needs the result.
            step = undo if isinstance(undo, Answer) else replace(step, result=None)
        return self.steps.number(step)

    def _undoing(self, command: Command, undo: Undo) -> Call | Answer:
        compensation = self._service.undo_of(command)
        return service_rules.undoing(command, undo, compensation=compensation, entry_id="1-0")

    def _handle(self, world: World, slots: tuple[Process, ...], at: int) -> Iterator[Move]:
        """The handler is called, with each of its possible results."""
        _, number, entry, seen, flag = slots[at]
        command = self.commands.values[number]
        for kind, effects, step in self._results(command, world[EFFECTS], again=bool(flag & _AGAIN)):
            slot = (self._step(command, step), number, entry, seen, flag & _LOST)
            after = self._with_process(world, slots, at, slot)
            yield Move(("a handler", kind, number), self._with(after, EFFECTS, effects), fault=False)

    def _results(self, command: Command, effects: int, *, again: bool) -> Iterator[tuple[str, int, Next]]:
        """The possible results of a handler: a description, the effects after it, what the rules say is next."""
        rejected = _replied(command, failed(command.type), error=b'"no"')
        unknown = _raised(RUN, command)
        if command.compensating:
            undone = self._undone(effects, command)
            results = {
                "o": ("undoes", undone, _replied(command, ok(command.type))),
                "r": ("rejects", effects, rejected),
                "b": ("raises, not having undone,", effects, unknown),
                "a": ("raises, having undone,", undone, unknown),
            }
            yield from (results[outcome] for outcome in self.config.undo)
            return
        present, void = self.effects.values[effects][command.step - 1]
        done = self._done(effects, command)
        results = {"b": ("raises, not having done,", effects, unknown)}
        if command.not_after_ms is not None:
            too_late = service_rules.before_call(
                command, RUN, is_first=True, again=again, taken_over=False, now_ms=command.not_after_ms + 1
            )
            results["s"] = ("is not called, too late, for", effects, too_late)
        if void:
            yield "rejects", effects, _replied(command, failed(command.type), error=b'"cancelled"')
        else:
            results["o"] = ("does", done, _replied(command, ok(command.type), result=b"1"))
            results["a"] = ("raises, having done,", done, unknown)
            if not present:  # if it was done under this key before, that is told again, and not rejected
                results["r"] = ("rejects", effects, rejected)
        yield from (results[outcome] for outcome in self.config.outcomes[command.step - 1] if outcome in results)

    def _done(self, effects: int, command: Command) -> int:
        """The effects after the handler of a transaction."""
        all_of_them = self.effects.values[effects]
        present, void = all_of_them[command.step - 1]
        key = self._key(command)
        if self.config.handler is Handler.NAIVE:
            key = f"{key}, time {len(present) + 1}"
        if void or key in present:
            return effects
        return self._with_effect(effects, command.step, ((*present, key), void))

    def _undone(self, effects: int, command: Command) -> int:
        """The effects after the handler of a compensation."""
        return self._with_effect(effects, command.step, ((), self.config.handler is Handler.BOOKS))

    def _with_effect(self, effects: int, step: int, effect: tuple[tuple[str, ...], bool]) -> int:
        all_of_them = self.effects.values[effects]
        return self.effects.number((*all_of_them[: step - 1], effect, *all_of_them[step:]))

    def _undo(self, world: World, slots: tuple[Process, ...], at: int, undo: Undo) -> Iterator[Move]:
        """The runtime undoes a command that must not be done any more."""
        _, number, entry, seen, flag = slots[at]
        flag &= _LOST
        command = self.commands.values[number]
        call = self._undoing(command, undo)
        assert isinstance(call, Call)
        step: Next = service_rules.replied(undo, call.command, reply_to(call.command, ok(call.command.type)))
        after = self._with_process(world, slots, at, (self.steps.number(step), number, entry, seen, flag))
        after = self._with(after, EFFECTS, self._undone(world[EFFECTS], command))
        yield Move(("the runtime undoes", number), after, fault=False)
        left = self.budgets.values[world[BUDGET]][SERVICE_CRASH]
        if left and set(self.config.undo) - {"o"}:
            # It cannot be undone now. This looks like a crash, and counts as one: an entry stands for the undo.
            step = _raised(undo, call.command)
            slot: Process = () if step is RELEASE else (self.steps.number(step), number, entry, seen, flag)
            after = self._spend(self._with_process(world, slots, at, slot), SERVICE_CRASH)
            yield Move(("the runtime fails to undo", number), after, fault=True)

    def _record_apart(self, world: World, slots: tuple[Process, ...], at: int) -> Move:
        """A mistake: something that belongs in the call of answer.lua is done after it."""
        step, number, _, seen, _ = slots[at]
        _, records = self._answer_of(world[RECORDS], number, step, seen)
        after = self._with(self._with_process(world, slots, at, ()), RECORDS, records)
        return Move(("a process records", number), after, fault=False)

    def _answer(self, world: World, slots: tuple[Process, ...], at: int) -> Move:
        step, number, entry, seen, flag = slots[at]
        parts = list(world)
        sent, records = self._answer_of(world[RECORDS], number, step, seen)
        if sent == _OVERRULED:
            command, answer = self.commands.values[number], self.steps.values[step]
            assert isinstance(answer, Answer)
            todo = service_rules.overruled(command, answer.reply, is_held=not flag & _LOST)
            return self._overruled(world, slots, at, todo)
        apart = self.bug is Bug.RECORD_APART and records != world[RECORDS]
        if not apart:
            parts[RECORDS] = records
        entries = self.entries.values[world[COMMANDS]]
        if not flag & _LOST:  # otherwise the entry may stand for what another process has begun
            parts[COMMANDS] = self.entries.number(tuple(one for one in entries if one[:2] != (number, entry)))
        held = [letter for slot in self.workers.values[world[WORKERS]] if slot for letter in slot[0]]
        parts[LETTERS] = self._append(parts[LETTERS], (sent,), held)
        left: Process = (step, number, entry, seen, flag | _TO_RECORD) if apart else ()
        return Move(("a process answers", number, sent), self._with_process(tuple(parts), slots, at, left), fault=False)

    def _overruled(self, world: World, slots: tuple[Process, ...], at: int, todo: "Undo | Requeue") -> Move:
        _, number, entry, seen, _ = slots[at]
        if isinstance(todo, Undo):
            slot = (self._step(self.commands.values[number], todo), number, entry, seen, 0)
            return Move(("a process is overruled", number), self._with_process(world, slots, at, slot), fault=False)
        again = self._append(world[COMMANDS], (number,), self._held_by_processes(world), delivered=True)
        after = self._with(self._with_process(world, slots, at, ()), COMMANDS, again)
        return Move(("a process is overruled, and sends again", number), after, fault=False)

    def _answer_of(self, records: int, number: int, step: int, seen: int) -> tuple[int, int]:
        """What answer.lua sends, or _OVERRULED; and the records after it."""
        key = (records, number, step, seen)
        if key not in self._answered:
            command, answer = self.commands.values[number], self.steps.values[step]
            assert isinstance(answer, Answer)
            reply = answer.reply
            there = dict(self.records.values[records])
            answered = mirror.answer(
                {} if self.bug is Bug.NO_DEDUPE else there,
                record=self._record(command),
                tombstone="" if command.compensating else command.tombstone,
                seen=self.seen.values[seen],
                kind=answer.kind,
                payload=reply.payload or b"",
                body=reply.body(),
            )
            if answered.sent is None:
                self._answered[key] = (_OVERRULED, records)
            else:
                fields = {name.encode(): _bytes(value) for name, value in reply.fields().items()}
                fields |= {b"body": answered.sent} | ({b"unknown": b"1"} if answered.in_doubt else {})
                sent = read_reply(fields)
                assert isinstance(sent, Reply)
                after = answered.records if self.bug is not Bug.NO_DEDUPE else there | dict(answered.records)
                number = self.records.number(tuple(sorted(after.items())))
                self._answered[key] = (self.events.number(sent), number)
        return self._answered[key]

    def _streams_move(self, world: World) -> Iterator[Move]:
        """Commands and replies vanish before they are read, or come twice. Requests only come twice: the broker keeps
        what it has accepted."""
        budget = self.budgets.values[world[BUDGET]]
        for part in (COMMANDS, LETTERS):
            if not (budget[LOSS] or budget[DUPLICATION] or budget[RESEND]):
                return
            entries = self.entries.values[world[part]]
            for index, (what, _, delivered) in enumerate(entries):
                if delivered:
                    continue
                event = self.events.values[what] if part == LETTERS else None
                if event is not None and not isinstance(event, Reply):
                    if budget[RESEND]:
                        yield self._sent_again(world, event)
                    continue
                if budget[LOSS]:
                    lost = self.entries.number((*entries[:index], *entries[index + 1 :]))
                    yield Move(("is lost:", part, what), self._spend(self._with(world, part, lost), LOSS), fault=True)
                if budget[DUPLICATION]:
                    yield Move(("comes twice:", part, what), self._twice(world, part, what), fault=True)

    def _twice(self, world: World, part: int, what: int) -> World:
        held = self._held_by_processes(world) if part == COMMANDS else self._held_by_workers(world)
        return self._spend(self._with(world, part, self._append(world[part], (what,), held)), DUPLICATION)

    def _sent_again(self, world: World, event: Event) -> Move:
        assert isinstance(event, Begin | Intervene | Signal)
        if self.bug is Bug.SENT_AGAIN_UNKNOWN:
            event = replace(event, request_id=f"{event.request_id}, again")
        what = self.events.number(event)
        after = self._with(world, LETTERS, self._append(world[LETTERS], (what,), self._held_by_workers(world)))
        return Move(("a client sends again:", LETTERS, what), self._spend(after, RESEND), fault=True)

    def _operators_move(self, world: World) -> Iterator[Move]:
        state = self.sagas.values[world[SAGA]]
        left = self.budgets.values[world[BUDGET]][REQUEST]
        if state is None or state.ended or not left:
            return
        parked = state.parked_steps
        for verb in self.config.verbs:
            # Requests that would be refused anyway do nothing. If one races with something else, it is decided on later
            # than it was sent.
            if (verb is Verb.CANCEL and state.may_be_cancelled) or (verb is not Verb.CANCEL and parked):
                for step in parked if len(parked) > 1 else [None]:
                    yield self._asked(world, left, verb, step=step)
                if verb is Verb.ABANDON and self.config.now:
                    yield self._asked(world, left, verb, now=True, step=parked[0] if len(parked) > 1 else None)
                for number in parked if self.config.seen else []:
                    yield self._asked(world, left, verb, parked_at=state.parked_place(number))
        if self.config.now and state.may_be_cancelled_now and Verb.CANCEL in self.config.verbs:
            yield self._asked(world, left, Verb.CANCEL, now=True)

    def _asked(
        self,
        world: World,
        left: int,
        verb: Verb,
        *,
        now: bool = False,
        parked_at: str | None = None,
        step: int | None = None,
    ) -> Move:
        request_id = f"request {self.config.requests - left + 1}"
        event = Intervene(verb=verb, saga_id=SAGA_ID, reason="why", now=now, parked_at=parked_at, step=step,
                          request_id=request_id)  # fmt: skip
        letters = self._append(world[LETTERS], (self.events.number(event),), self._held_by_workers(world))
        after = self._spend(self._with(world, LETTERS, letters), REQUEST)
        what = f"{verb} now" if now else f"{verb} of {parked_at}" if parked_at else verb
        return Move(("an operator asks for", what if step is None else f"{what} of step {step}"), after, fault=True)

    def _others_signal(self, world: World) -> Iterator[Move]:
        """Somebody signals to the saga: at any time while it lives, and each signal once."""
        state = self.sagas.values[world[SAGA]]
        left = self.budgets.values[world[BUDGET]][SIGNALS]
        if state is None or state.status is not SagaStatus.PENDING:
            return
        for at, what in enumerate(self.config.signals):
            if left & (1 << at):
                members = {"declined": "no"} if what.startswith("-") else {"payload": b"1"}
                event = Signal(saga_id=SAGA_ID, name=what.removeprefix("-"), request_id=f"signal {at}", **members)
                letters = self._append(world[LETTERS], (self.events.number(event),), self._held_by_workers(world))
                after = self._spend(self._with(world, LETTERS, letters), SIGNALS, 1 << at)
                yield Move(("somebody signals", what), after, fault=True)

    # --- decisions

    def _fold(self, seen: int, events: tuple[int, ...], paused: Paused) -> Outcome:
        key = (seen, events, paused)
        if key not in self._decided:
            state, changed, broken = seen, False, None
            commands: tuple[int, ...] = ()
            for event in events:
                state, moved, sent, wrong = self._decide(state, event, paused)
                changed, commands, broken = changed or moved, commands + sent, broken or wrong
            before, after = self.sagas.values[seen], self.sagas.values[state]
            timers = {"": None, "ended": NO_TIMER, "aborted": NO_TIMER, "+inf": PARKED}
            timer = timers.get(_score(before, after), TIMED) if changed else None
            self._decided[key] = Outcome(state, changed, commands, timer, broken)
        return self._decided[key]

    def _decide(self, seen: int, number: int, paused: Paused) -> tuple[int, bool, tuple[int, ...], str | None]:
        key = (seen, number, paused)
        if key not in self._one:
            state = self.sagas.values[seen]
            event, now = self._happening(state, number)
            state = self._at_its_time(state, number)
            decision = decide(state, event, Moment(now_ms=now, published=self._published, paused=paused))
            after = decision.state
            assert after is None or isinstance(after, SagaState)
            commands = tuple(self.commands.number(_timeless(command)) for command in decision.commands)
            number_after = seen if after is state else self.sagas.number(after and canonical(after))
            broken = None
            if self.bug not in (Bug.LATE_OK_APPLIED, Bug.UNKNOWN_IS_FAILED):  # the event was another one
                broken = rules.broken_by_decision(state, event, decision, now, paused)
            if (
                number == self._resumed
                and not paused
                and after is not None
                and any(step.is_held for step in after.steps)
            ):
                broken = broken or f"nothing is paused, and it stays held: {self._shown(after)}"
            self._one[key] = (number_after, after is not state, commands, broken)
        return self._one[key]

    def _happening(self, state: SagaState | None, number: int) -> tuple[Event, int]:
        """An event, and the moment at which it happens."""
        event = self.events.values[number]
        if isinstance(event, Due):
            event = self.events.values[self._due]
            if state is None or state.due_ms is None:
                return event, NOW
            if number == self._deadline:
                return event, state.deadline_ms or NOW
            if number == self._resumed:
                return event, NOW
            if state.is_to_start:
                return event, state.start_ms or NOW
            if self.bug is Bug.UNKNOWN_IS_FAILED and state.status is SagaStatus.PENDING and state.times_out_ms:
                failure = Reply(type=failed(state.step.command), saga_id=SAGA_ID, step=state.current_step, error=b'"?"')
                return failure, NOW
            return event, NOW
        if (
            self.bug is Bug.LATE_OK_APPLIED
            and isinstance(event, Reply)
            and state
            and event.type == ok(state.step.command)
        ):
            event = replace(event, step=state.current_step)
        return event, NOW

    def _at_its_time(self, state: SagaState | None, number: int) -> SagaState | None:
        """The saga when the time of this step has come, and of no other: the times of steps come in any order. What is
        held has no time."""
        if state is None or number not in (*self._times[1:], self._resumed):
            return state
        due = 0 if number == self._resumed else self._times.index(number)
        steps = [
            step if step.due_ms is None or step.is_held else replace(step, due_ms=NOW if at == due else NOW + _LATER_MS)
            for at, step in enumerate(state.steps, 1)
        ]
        return replace(state, steps=tuple(steps))

    def _broken_write(self, saga: int, outcome: Outcome) -> str | None:
        before, after = self.sagas.values[saga], self.sagas.values[outcome.after]
        assert after is not None
        sent: Sequence[Command] = [self.commands.values[number] for number in outcome.commands]
        return rules.broken_by_change(before, after, sent)

    # --- what must hold

    def broken(self, world: World) -> str | None:
        """What is wrong with a world; None: nothing."""
        apart = any(slot and len(slot) > 2 for slot in self.workers.values[world[WORKERS]])
        left = self.budgets.values[world[BUDGET]][REQUEST]
        key = (world[SAGA], -1 if apart else world[TIMER], world[EFFECTS], left)
        if key not in self._checked:
            state = self.sagas.values[world[SAGA]]
            self._checked[key] = self._broken_timer(state, key[1]) or self._broken_effects(state, world[EFFECTS], left)
        return self._checked[key]

    def _broken_timer(self, state: SagaState | None, timer: int) -> str | None:
        wanted = NO_TIMER if state is None or state.ended else PARKED if _waits_for_a_person(state) else TIMED
        if timer in (-1, wanted):
            return None
        there = ("none", "a time", "+inf")[timer]
        return f"the saga is {self._shown(state)}, its timer is {there}: nothing would ever move it"

    def _broken_effects(self, state: SagaState | None, effects: int, left: int) -> str | None:
        for number, (present, _) in enumerate(self.effects.values[effects], 1):
            if len(present) > 1:
                return f"step {number} was done twice: {', '.join(present)}"
            if present and (state is None or state.steps[number - 1].attempt == 0):
                return f"step {number} was done, and never sent"
            going_on = state is not None and state.status in (SagaStatus.PENDING, SagaStatus.COMPLETED)
            if not self._sends[number - 1]:
                continue
            if state and going_on and state.steps[number - 1].status is StepStatus.COMPLETED and not present:
                return f"step {number} is COMPLETED, and was not done"
        asked = self.config.requests - left
        done = (
            [one.verb for one in state.interventions if (one.request_id or "").startswith("request")] if state else []
        )
        return f"an operator asked for {asked}, done were {', '.join(done)}" if len(done) > asked else None

    def broken_end(self, world: World) -> str | None:
        """What is wrong with a world in which nothing more happens, unless something goes wrong; None: nothing."""
        if self.entries.values[world[LETTERS]] or self.entries.values[world[COMMANDS]]:
            return "something is left in a stream, and nobody will ever read it"
        state = self.sagas.values[world[SAGA]]
        if state is None:
            refused = isinstance(self._begin, Unreadable)
            return None if refused else "a saga was asked for, and is not there"
        if not state.ended and not _waits_for_a_person(state) and not (_is_held(state) and self._is_paused(world)):
            return f"the saga is {self._shown(state)}, and nothing will ever move it"
        abandoned = rules.is_abandoned(state)
        for number, (step, (present, _)) in enumerate(
            zip(state.steps, self.effects.values[world[EFFECTS]], strict=True), 1
        ):
            is_done = present or step.skipped or step.phase is Phase.BYPASSED or not self._sends[number - 1]
            if state.status is SagaStatus.COMPLETED and not is_done:
                return f"the saga is COMPLETED, and step {number} was not done"
            may_stay = step.definition.compensation is None or step.skipped or abandoned
            if state.status is SagaStatus.ABORTED and present and not may_stay:
                return f"the saga is ABORTED, and step {number} remains done ({step.status})"
            if step.status is StepStatus.COMPENSATED and present:
                return f"step {number} is COMPENSATED, and remains done"
        return None

    # --- parts of worlds

    def _with(self, world: World, part: int, value: int) -> World:
        return (*world[:part], value, *world[part + 1 :])

    def _with_worker(self, world: World, slots: tuple[Worker, ...], at: int, slot: Worker) -> World:
        slots = tuple(sorted((*slots[:at], slot, *slots[at + 1 :])))
        return self._with(world, WORKERS, self.workers.number(slots))

    def _with_process(self, world: World, slots: tuple[Process, ...], at: int, slot: Process) -> World:
        slots = tuple(sorted((*slots[:at], slot, *slots[at + 1 :])))
        return self._with(world, PROCESSES, self.processes.number(slots))

    def _spend(self, world: World, what: int, much: int = 1) -> World:
        budget = self.budgets.values[world[BUDGET]]
        number = self.budgets.number((*budget[:what], budget[what] - much, *budget[what + 1 :]))
        return (*world[:BUDGET], number)

    def _held_by_workers(self, world: World) -> list[tuple[int, int]]:
        return [letter for slot in self.workers.values[world[WORKERS]] if slot for letter in slot[0]]

    def _held_by_processes(self, world: World) -> list[tuple[int, int]]:
        return [(slot[1], slot[2]) for slot in self.processes.values[world[PROCESSES]] if slot]

    def _append(
        self, stream: int, values: Sequence[int], held: Sequence[tuple[int, int]], *, delivered: bool = False
    ) -> int:
        """The stream with these entries added. Each gets the first number that differs from those of equal entries, in
        the stream or held by a process that does not know yet that they are gone."""
        entries = list(self.entries.values[stream])
        for value in values:
            taken = {entry[1] for entry in entries if entry[0] == value} | {n for what, n in held if what == value}
            number = next(n for n in range(len(taken) + 1) if n not in taken)
            entries.append((value, number, delivered))
        return self.entries.number(tuple(sorted(entries)))

    def _key(self, command: Command) -> str:
        return f"{command.key}/{command.attempt}" if self.bug is Bug.ATTEMPT_IN_KEY else command.key

    def _record(self, command: Command) -> str:
        if self.bug is Bug.ATTEMPT_IN_KEY:
            return f"{command.key}, {command.attempt}/{command.type}"
        return command.record

    # --- for people

    def describe(self, label: Label, after: World) -> str:
        what, *more = label
        state = self._shown(self.sagas.values[after[SAGA]])
        describe: dict[str, Callable[[], str]] = {
            "a worker reads": lambda: self._letters(more[0]),
            "a worker takes over": lambda: self._letters(more[0]),
            "a worker dies": lambda: f"holding {self._letters(more[0])}" if more[0] else "",
            "a worker finds it due": lambda: self._event(more[0]),
            "a worker is refused, and loads again": lambda: self._letters(more[0]),
            "a worker commits": lambda: (
                f"{' and '.join(map(self._event, more[0]))} -> {state}"
                + "".join(f"; sends {self._command(number)}" for number in more[2])
            ),
            "a process answers": lambda: f"{self._command(more[0])}: {self._event(more[1])}",
            "a process dies that was to": lambda: f"{more[0]} {self._command(more[1])}",
            "a process reads": lambda: f"{self._command(more[0])}, to {more[1]}",
            "a process takes over": lambda: f"{self._command(more[0])}, to {more[1]}",
            "a handler": lambda: f"{more[0]} {self._command(more[1])}",
            "is lost:": lambda: self._command(more[1]) if more[0] == COMMANDS else self._event(more[1]),
            "comes twice:": lambda: self._command(more[1]) if more[0] == COMMANDS else self._event(more[1]),
            "a client sends again:": lambda: self._event(more[1]),
            "an operator asks for": lambda: str(more[0]),
            "somebody signals": lambda: str(more[0]),
        }
        by_default = lambda: self._command(more[0]) if more else ""  # noqa: E731 - as the others
        return f"{what} {describe.get(what, by_default)()}".strip()

    def _letters(self, letters: Sequence[tuple[int, int]]) -> str:
        return " and ".join(self._event(event) for event, _ in letters)

    def _event(self, number: int) -> str:
        if number < 0:
            return "nothing"
        event = self.events.values[number]
        if isinstance(event, Due):
            if number in self._times[1:]:
                return f"the time of step {self._times.index(number)}"
            told = {self._deadline: "the deadline", self._due: "a time", self._resumed: "the end of a pause"}
            return told.get(number, "the start")
        if isinstance(event, Signal):
            return f"the signal {event.name}" + ("" if event.declined is None else ", declined")
        if isinstance(event, Reply):
            how = ", unknown" if event.unknown else ""
            return f"{event.type} of step {event.step} (attempt {event.attempt}{how})"
        if isinstance(event, Intervene):
            of = "" if event.step is None else f" of step {event.step}"
            return f"saga_{event.verb}{' now' if event.now else ''}{of} ({event.request_id})"
        return "saga_begin"

    def _command(self, number: int) -> str:
        command = self.commands.values[number]
        return f"{command.type} of step {command.step} (attempt {command.attempt})"

    def _shown(self, state: SagaState | None) -> str:
        if state is None:
            return "not there"
        steps = ", ".join(step.status if state.format == PLAIN else step.phase for step in state.steps)
        parked = ", parked" if state.parked else ""
        cancelling = ", to be cancelled" if state.cancelling else ""
        return f"{state.status} at step {state.current_step} [{steps}]{parked}{cancelling}"


_OVERRULED: Final = -2


def _waits_for_a_person(state: SagaState) -> bool:
    """Whether nothing moves the saga but a person: all that is active is parked."""
    return state.parked is not None and state.due_ms is None


def _is_held(state: SagaState) -> bool:
    """Whether nothing moves the saga while its service is paused, but a person, or its deadline."""
    active = [state.steps[number - 1] for number in state.active_steps]
    return any(step.is_held for step in active) and all(step.is_held or step.parked for step in active)


def _timeless(command: Command) -> Command:
    return command if command.not_after_ms is None else replace(command, not_after_ms=NOW)


def _replied(command: Command, kind: str, *, result: bytes | None = None, error: bytes | None = None) -> Next:
    """What the rules say about the reply of a handler."""
    return service_rules.replied(RUN, command, reply_to(command, kind, result=result, error=error))


def _raised(todo: Run | Undo, called: Command) -> Next:
    """What the rules say about a handler that has raised as often as it may."""
    return service_rules.raised(todo, called, "?", tries=TRIES, limit=TRIES)


def _shown_step(step: Next) -> str:
    if isinstance(step, Answer):
        return "answer for good" if step.kind == "final" else "answer"
    return "undo" if isinstance(step, Undo) else "handle"


def _bytes(value: str | bytes | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


__all__ = ["Config", "Decision", "Handler", "Model", "Move", "World"]
