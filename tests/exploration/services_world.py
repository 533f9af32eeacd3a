"""One step, the processes of its service, and all that lies between them and the broker, as a value; and every move.

world.py explores whole sagas, with processes that are taken over and die. This looks closely at the processes: which of
them holds a command for the broker, what each has in its memory only, and what becomes of that if it is told to end, is
killed, loses its lease, or the broker is away. The saga is as small as it can be: it sends the step, may send it again
or give it up at any moment, and undoes it.

The decisions are the real ones of `service_rules`, the scripts are those of mirror.py. What the executor, the inbox and
the runner do with the decisions is retold here, in the words of those modules.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from exploration import mirror
from exploration.bugs import ServicesBug
from sagastream.core import holding_rules, service_rules
from sagastream.core.commands import Command, Reply, failed, ok, reply_to
from sagastream.core.holding_rules import State
from sagastream.core.service_actions import RELEASE, RUN, Answer, Call, Next, Requeue, Retry, Run, Undo
from sagastream.service.declaration import Service

Label = tuple[str, ...]

#: How often a process calls a handler that raises; less than the real limit, which changes nothing but the size.
_TRIES: Final = 2

#: Who holds an entry: a process, by its number from 0, or one of these.
UNREAD, LEFT = -1, -2  # nobody has read it; it was delivered, and its process is dead or has handed it back

#: Where the saga is.
PENDING, COMPLETED, REFUSED, UNDOING, ABORTED, PARKED = (
    "PENDING", "COMPLETED", "refused", "undoing", "ABORTED", "parked"
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicesConfig:
    """What may happen, and how often."""

    name: str
    attempts: int = 2
    #: What happens when the handler of the transaction is called: o it is done, r it is rejected, b the handler raises
    #: before its effect, a after it.
    outcomes: str = "or"
    gives_up: bool = False  # the saga may give the step up at any moment, and undo it
    processes: int = 2
    lacking: int = 0  # how many of the processes are of a release that does not have the command, and publishes nothing
    kills: int = 0
    terms: int = 0  # SIGTERM
    outages: int = 0
    slow: int = 0  # commands that are taken over from a process that is alive, and goes on later
    hand_backs: int = 0  # commands that a process hands back since they have waited for long
    undo_failures: int = 0  # calls of the compensation that fail, in the undo of what was overruled
    bug: ServicesBug | None = None

    def model(self) -> "ServicesModel":
        return ServicesModel(self)


class Letter(NamedTuple):
    """An entry of the commands stream."""

    number: int
    attempt: int  # 0: the compensation
    replayed: bool
    holder: int


class Held(NamedTuple):
    """A command that a process holds, as service.in_flight has it."""

    number: int
    attempt: int
    todo: Run | Undo
    state: State | None  # None: `answer` is ready to be sent
    seen: bytes
    begun: bool = False
    tries: int = 0
    answer: Answer | None = None


class Process(NamedTuple):
    held: Held | None = None
    stopping: bool = False
    interrupted: bool = False  # there was an outage, after which nothing was looked up again yet


class World(NamedTuple):
    saga: str
    sent: int  # how many attempts
    letters: tuple[Letter, ...]
    processes: tuple[Process, ...]
    records: tuple[tuple[str, bytes], ...]
    effect: bool
    away: bool
    kills: int
    terms: int
    outages: int
    slow: int
    hand_backs: int
    undo_failures: int


class Move(NamedTuple):
    label: Label
    after: World
    fault: bool  # this may happen or not
    broken: str | None = None


class ServicesModel:
    def __init__(self, config: ServicesConfig) -> None:
        self.config = config
        self.bug = config.bug
        self._commands = [self._command(attempt) for attempt in range(config.attempts + 1)]
        self._service = Service("work")
        self._service.command("Do", compensation="Undo")(lambda params, context: None)
        self._service.compensation("Undo")(lambda params, context: None)

    def start(self) -> World:
        config = self.config
        return World(
            saga=PENDING,
            sent=1,
            letters=(Letter(number=0, attempt=1, replayed=False, holder=UNREAD),),
            processes=(Process(),) * config.processes,
            records=(),
            effect=False,
            away=False,
            kills=config.kills,
            terms=config.terms,
            outages=config.outages,
            slow=config.slow,
            hand_backs=config.hand_backs,
            undo_failures=config.undo_failures,
        )

    # --- all that can happen next

    def moves(self, world: World) -> Iterator[Move]:
        yield from self._saga_moves(world)
        yield from self._broker_moves(world)
        for at, process in enumerate(world.processes):
            yield from self._faults(world, at, process)
            if process.held is not None:
                yield from self._handler_moves(world, at, process, process.held)
            if world.away:
                continue
            if process.interrupted:
                yield self._looks_up_again(world, at, process)
            elif process.stopping:
                yield from self._stops(world, at, process)
            elif process.held is None:
                yield from self._reads(world, at, process)
            if process.held is not None:
                yield from self._tells(world, at, process, process.held)

    def _saga_moves(self, world: World) -> Iterator[Move]:
        if world.saga == PENDING and world.sent < self.config.attempts:
            yield Move(("the saga sends the step again",), _send(world, world.sent + 1), fault=True)
        if self.config.gives_up and world.saga in (PENDING, COMPLETED):
            yield Move(("the saga goes back",), _undone(world), fault=True)

    def _broker_moves(self, world: World) -> Iterator[Move]:
        if world.away:
            yield Move(("the broker is back",), world._replace(away=False), fault=False)
        elif world.outages:
            processes = tuple(process._replace(interrupted=True) for process in world.processes)
            after = world._replace(away=True, outages=world.outages - 1, processes=processes)
            yield Move(("the broker goes away",), after, fault=True)

    def _faults(self, world: World, at: int, process: Process) -> Iterator[Move]:
        if world.kills and not self._is_orphan(world, at, process):
            after = _gone(world, at)._replace(kills=world.kills - 1)
            yield Move((f"process {at} is killed",), after, fault=True)
        if world.terms and not process.stopping:
            after = _with(world, at, process._replace(stopping=True))
            yield Move((f"process {at} is told to end",), after._replace(terms=world.terms - 1), fault=True)

    def _is_orphan(self, world: World, at: int, process: Process) -> bool:
        """Whether only this process knows of something it has not told yet. What becomes of that if it is killed is
        what docs/proof.md does not promise."""
        held = process.held
        return held is not None and held.begun and held.todo is RUN and not _holds(world, at, held.number)

    # --- what a process reads

    def _reads(self, world: World, at: int, process: Process) -> Iterator[Move]:
        held_by = {one.held.number: number for number, one in enumerate(world.processes) if one.held is not None}
        for letter in world.letters:
            what, after = "reads", world
            if letter.holder == at:
                what = "reads again"
            elif letter.holder == LEFT:
                what = "takes over"
            elif letter.holder != UNREAD:
                if not world.slow or letter.number not in held_by:
                    continue
                what, after = "takes over from a slow one", world._replace(slow=world.slow - 1)
            again = letter.holder != UNREAD or letter.replayed
            if self.bug is ServicesBug.OWN_COUNTS_AS_NEW and letter.holder == at:
                again = False
            if self.bug is ServicesBug.SENT_AGAIN_AS_NEW and letter.holder == UNREAD:
                again = False
            after = self._looks_up(_held_by(after, letter.number, at), at, letter, again)
            fault = what == "takes over from a slow one"
            if after != world:  # otherwise it is left as it was, for another process
                yield Move((f"process {at} {what}", _shown(letter)), after, fault=fault)

    def _looks_up(self, world: World, at: int, letter: Letter, again: bool) -> World:
        command = self._commands[letter.attempt]
        found = mirror.recall(
            dict(world.records),
            record=command.record,
            tombstone=command.tombstone,
            compensating=command.compensating,
        )
        todo = service_rules.delivered(command, record=found.record, tombstone=found.tombstone, again=again)
        held = Held(
            number=letter.number, attempt=letter.attempt, todo=RUN, state=State.WAITING, seen=found.record or b""
        )
        world = world._replace(records=tuple(sorted(found.records.items())))
        lacks = at >= self.config.processes - self.config.lacking and not command.compensating
        if isinstance(todo, Answer):
            held = held._replace(state=None, answer=todo)
        elif lacks and todo is not RUN:
            # Nobody says what undoes it: the entry stands for the undo.
            return _held_by(world, letter.number, LEFT)
        elif lacks:
            step = service_rules.without_handler(command, RUN, again=again)
            assert isinstance(step, Answer)
            held = held._replace(state=None, answer=step)
        elif todo is not RUN:
            held = self._to_undo(held, todo)
        return _with(world, at, world.processes[at]._replace(held=held))

    def _to_undo(self, held: Held, todo: Undo) -> Held:
        call = service_rules.undoing(self._commands[held.attempt], todo, compensation="Undo", entry_id="1-0")
        if isinstance(call, Answer):
            return held._replace(state=None, answer=call)
        return held._replace(todo=todo, state=State.WAITING, begun=False, tries=0, answer=None)

    # --- what becomes of a command

    def _handler_moves(self, world: World, at: int, process: Process, held: Held) -> Iterator[Move]:
        if held.state in (State.WAITING, State.BACKING_OFF) and not process.stopping:
            begun = held._replace(state=State.RUNNING, begun=True)
            yield Move((f"process {at} begins", self._described(held)), _with_held(world, at, begun), fault=False)
        elif held.state is State.RUNNING and held.todo is RUN:
            yield from self._runs(world, at, held)
        elif held.state is State.RUNNING:
            yield from self._undoes(world, at, held)

    def _runs(self, world: World, at: int, held: Held) -> Iterator[Move]:
        command = self._commands[held.attempt]
        if command.compensating:
            step: Next = service_rules.replied(RUN, command, reply_to(command, ok("Undo")))
            yield self._comes_to(world._replace(effect=False), at, held, step, "undoes")
            return
        done = reply_to(command, ok("Do"), result=b"1")
        raised = service_rules.raised(RUN, command, "?", tries=held.tries + 1, limit=_TRIES)
        refused = reply_to(command, failed("Do"), error=b'"no"')
        results: dict[str, tuple[str, bool, Next]] = {
            "o": ("does", True, service_rules.replied(RUN, command, done)),
            "a": ("raises, having done,", True, raised),
            "b": ("raises, not having done,", world.effect, raised),
        }
        if not world.effect:  # if it was done under this key before, that is told again, and not rejected
            results["r"] = ("rejects", False, service_rules.replied(RUN, command, refused))
        for outcome in self.config.outcomes:
            if outcome in results:
                what, effect, step = results[outcome]
                yield self._comes_to(world._replace(effect=effect), at, held, step, what)

    def _undoes(self, world: World, at: int, held: Held) -> Iterator[Move]:
        command = self._commands[held.attempt]
        assert isinstance(held.todo, Undo)
        call = service_rules.undoing(command, held.todo, compensation="Undo", entry_id="1-0")
        assert isinstance(call, Call)
        step: Next = service_rules.replied(held.todo, call.command, reply_to(call.command, ok("Undo")))
        yield self._comes_to(world._replace(effect=False), at, held, step, "undoes what came of")
        if world.undo_failures:
            after = world._replace(undo_failures=world.undo_failures - 1)
            step = service_rules.raised(held.todo, call.command, "?", tries=held.tries + 1, limit=_TRIES)
            yield self._comes_to(after, at, held, step, "fails to undo what came of", fault=True)
            rejected = reply_to(call.command, failed("Undo"), error=b'"closed"')
            step = service_rules.replied(held.todo, call.command, rejected)
            yield self._comes_to(after, at, held, step, "does not want to undo what came of", fault=True)

    def _comes_to(self, world: World, at: int, held: Held, step: Next, what: str, *, fault: bool = False) -> Move:
        label = (f"process {at} {what}", self._described(held))
        if isinstance(step, Answer):
            return Move(label, _with_held(world, at, held._replace(state=None, answer=step)), fault)
        if isinstance(step, Retry):
            held = held._replace(state=State.BACKING_OFF, tries=held.tries + 1)
            return Move(label, _with_held(world, at, held), fault)
        assert step is RELEASE
        # It stays pending: after the lease any process takes it over, this one too.
        after = _held_by(world, held.number, LEFT) if _holds(world, at, held.number) else world
        return Move(label, _with_held(after, at, None), fault)

    # --- what a process tells the broker

    def _tells(self, world: World, at: int, process: Process, held: Held) -> Iterator[Move]:
        if held.answer is not None:
            yield self._answers(world, at, held, held.answer)
        elif held.state is not State.RUNNING and not process.interrupted:
            if not _holds(world, at, held.number):
                yield Move(
                    (f"process {at} has lost", self._described(held)), self._let_go(world, at, held), fault=False
                )
            elif world.hand_backs and held.state is State.WAITING:
                after = self._hands_back(world._replace(hand_backs=world.hand_backs - 1), at, held)
                yield Move((f"process {at} hands back", self._described(held)), after, fault=True)

    def _answers(self, world: World, at: int, held: Held, answer: Answer) -> Move:
        command, reply = self._commands[held.attempt], answer.reply
        told = mirror.answer(
            dict(world.records),
            record=command.record,
            tombstone="" if command.compensating else command.tombstone,
            seen=held.seen,
            kind=answer.kind,
            payload=reply.payload or b"",
            body=reply.body(),
        )
        if told.sent is None:
            return self._is_overruled(world, at, held, reply)
        world = world._replace(records=tuple(sorted(told.records.items())))
        if _holds(world, at, held.number) or self.bug is ServicesBug.OTHERS_ACKNOWLEDGED:
            world = world._replace(letters=_without(world, held.number))
        unknown = reply.unknown or told.in_doubt
        # A recorded answer is sent in place of its own.
        kind = "_ok" if b"_ok" in told.sent else "_failed"
        after = self._reply(_with_held(world, at, None), command, kind, unknown=unknown)
        return Move(
            (f"process {at} answers", self._described(held), kind, "unknown" if unknown else ""), after, fault=False
        )

    def _is_overruled(self, world: World, at: int, held: Held, reply: Reply) -> Move:
        command, label = self._commands[held.attempt], (f"process {at} is overruled", self._described(held))
        is_held = _holds(world, at, held.number)
        if self.bug is ServicesBug.HELD_BY_ANYBODY:
            is_held = any(letter.number == held.number for letter in world.letters)
        todo = service_rules.overruled(command, reply, is_held=is_held)
        if isinstance(todo, Undo):
            return Move(label, _with_held(world, at, self._to_undo(held, todo)), fault=False)
        assert isinstance(todo, Requeue)
        after = _send(_with_held(world, at, None), held.attempt, replayed=True, counts=False)
        return Move((*label, "and sends it again"), after, fault=False)

    def _reply(self, world: World, command: Command, kind: str, *, unknown: bool) -> World:
        """What the saga does with a reply."""
        if command.compensating:
            return world._replace(saga=ABORTED) if world.saga == UNDOING else world
        if world.saga != PENDING:
            return world
        if kind == "_ok":
            return world._replace(saga=COMPLETED)
        if not unknown:
            return world._replace(saga=REFUSED)
        if world.sent < self.config.attempts:
            return _send(world, world.sent + 1) if command.attempt == world.sent else world
        return _undone(world) if command.attempt == world.sent else world

    # --- what a process holds no longer

    def _looks_up_again(self, world: World, at: int, process: Process) -> Move:
        """HandingOver.look_up_again: what does not run is read again."""
        held, world = process.held, _with(world, at, process._replace(interrupted=False))
        label = (f"process {at} looks up again",)
        if held is None or held.answer is not None or held.state is State.RUNNING:
            return Move(label, world, fault=False)
        if _holds(world, at, held.number):
            return Move(label, _with_held(world, at, None), fault=False)
        return Move(label, self._let_go(world, at, held), fault=False)

    def _stops(self, world: World, at: int, process: Process) -> Iterator[Move]:
        held = process.held
        if held is None or (self.bug is ServicesBug.LAST_ANSWERS_DROPPED and held.answer is not None):
            yield Move((f"process {at} ends",), _gone(world, at), fault=False)
        elif held.state is not None and holding_rules.is_handed_back(
            held.state, stopping=True, alone=False, held_s=0.0, lease_s=1.0
        ):
            after = self._hands_back(world, at, held)
            yield Move((f"process {at} hands back", self._described(held)), after, fault=False)

    def _hands_back(self, world: World, at: int, held: Held) -> World:
        if not _holds(world, at, held.number):
            return self._let_go(world, at, held)
        after = _with_held(world, at, None)
        if self.bug is ServicesBug.HANDED_BACK_IS_GONE:
            return after._replace(letters=_without(after, held.number))
        return _held_by(after, held.number, LEFT)

    def _let_go(self, world: World, at: int, held: Held) -> World:
        """Another process has it, or has answered it."""
        step = service_rules.lost(self._commands[held.attempt], held.todo, begun=held.begun)
        return _with_held(world, at, None if step is None else held._replace(state=None, answer=step))

    # --- what must hold

    def broken(self, world: World) -> str | None:
        """What is wrong with a world; None: nothing."""
        owed = world.letters or any(process.held is not None for process in world.processes)
        if world.saga in (REFUSED, ABORTED) and world.effect and not owed:
            return f"the step is {world.saga}, its effect stands, and nothing is pending or owed"
        if world.saga == COMPLETED and not world.effect:
            return "the step is COMPLETED, and was not done"
        return None

    def broken_end(self, world: World) -> str | None:
        """What is wrong with a world in which nothing more happens, unless something goes wrong; None: nothing."""
        if world.letters:
            return "something is left in the stream, and nobody will ever read it"
        if any(process.held is not None for process in world.processes):
            return "a process holds something, and will never go on"
        if world.saga in (PENDING, UNDOING):
            return f"the step is {world.saga}, and nothing will ever move it"
        return None

    # --- for people

    def describe(self, label: Label, after: World) -> str:
        effect = "its effect stands" if after.effect else "no effect"
        return f"{' '.join(filter(None, label))} [{after.saga}, {effect}]"

    def _described(self, held: Held) -> str:
        return self._commands[held.attempt].type + (f" {held.attempt}" if held.attempt else "")

    def _command(self, attempt: int) -> Command:
        more = {"attempt": attempt, "type": "Do"} if attempt else {"compensating": True, "type": "Undo"}
        return Command(service="work", saga_id="s", step=1, params=b"1", begun_ms=0, **more)  # type: ignore[arg-type]


# --- parts of worlds


def _with(world: World, at: int, process: Process) -> World:
    return world._replace(processes=(*world.processes[:at], process, *world.processes[at + 1 :]))


def _with_held(world: World, at: int, held: Held | None) -> World:
    return _with(world, at, world.processes[at]._replace(held=held))


def _gone(world: World, at: int) -> World:
    """A process has ended, and another one begins in its place. What it held is left to others."""
    letters = tuple(letter._replace(holder=LEFT) if letter.holder == at else letter for letter in world.letters)
    return _with(world._replace(letters=letters), at, Process())


def _holds(world: World, at: int, number: int) -> bool:
    return any(letter.number == number and letter.holder == at for letter in world.letters)


def _held_by(world: World, number: int, holder: int) -> World:
    letters = (letter._replace(holder=holder) if letter.number == number else letter for letter in world.letters)
    return world._replace(letters=tuple(letters))


def _without(world: World, number: int) -> tuple[Letter, ...]:
    return tuple(letter for letter in world.letters if letter.number != number)


def _send(world: World, attempt: int, *, replayed: bool = False, counts: bool = True) -> World:
    """An entry is added. It gets the first number that no entry has, and none that a process still holds."""
    taken = {letter.number for letter in world.letters}
    taken |= {process.held.number for process in world.processes if process.held is not None}
    number = next(number for number in range(len(taken) + 1) if number not in taken)
    letters = (*world.letters, Letter(number=number, attempt=attempt, replayed=replayed, holder=UNREAD))
    sent = attempt if counts and attempt else world.sent
    return world._replace(letters=tuple(sorted(letters)), sent=sent)


def _undone(world: World) -> World:
    return _send(world, 0)._replace(saga=UNDOING)


def _shown(letter: Letter) -> str:
    return f"Do {letter.attempt}" if letter.attempt else "Undo"
