"""One trial of a check: its own saga, the commands that it sends, the answers that must come, and the clean-up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from sagastream.core.commands import Command, failed, ok
from sagastream.core.messages import Fields
from sagastream.core.sealing import Place, seal
from sagastream_bridge.conformance.effects import Effects
from sagastream_bridge.conformance.exchange import Answer, Exchange, Unfit

#: Until when a command may be begun, in milliseconds from now. Only one check is about that, and uses another time.
_IN_TIME_MS: Final = 3_600_000
#: A step that no check uses.
_STEP_ALONE: Final = 90


class Broken(Exception):
    """A promise is broken."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}; came {came}")
        self.expected = expected
        self.came = came


class NotChecked(Exception):
    """It cannot be found out whether a promise is kept; the text says why."""


@dataclass(slots=True, kw_only=True)
class Case:
    """A command of the service, and with what to try it."""

    command: str
    params: bytes  # JSON; with these, the service does the command
    rejected_params: bytes | None = None  # JSON; with these, it rejects the command
    compensation: str | None = None  # None: it needs none
    input: bytes | None = None  # JSON; of the sagas in which it is tried; None: they have none
    undo: bytes | None = None  # JSON; what its compensation is told besides; None: nothing
    effect: int = 0  # by how much one effect changes the number of the probe; 0: not known


class Trial:
    def __init__(self, exchange: Exchange, case: Case, probe: Effects | None, number: int) -> None:
        """`number`: unique in this run."""
        self.exchange = exchange
        self.case = case
        self.saga_id = f"{exchange.run}-{number}"
        exchange.go_to(self.saga_id)
        self.is_uncounted = False  # the check would have counted effects, and could not
        self._sent_steps: set[int] = set()  # steps whose transaction was sent
        self._probe = probe
        self._begun_ms = exchange.now_ms()
        self._before = probe.count(self.saga_id) if probe is not None and case.effect else 0

    def transaction(self, step: int = 1, attempt: int = 1) -> Command:
        return Command(
            service=self.exchange.service,
            type=self.case.command,
            saga_id=self.saga_id,
            step=step,
            params=self._params(self.case.params, step),
            attempt=attempt,
            begun_ms=self._begun_ms,
            not_after_ms=self._begun_ms + _IN_TIME_MS,
            input=self.case.input,
        )

    def rejected(self) -> Command:
        """The command with params with which it is rejected. Raises NotChecked if none were given."""
        if self.case.rejected_params is None:
            raise NotChecked("no params were given with which it is rejected: --rejected-params")
        return replace(self.transaction(), params=self._params(self.case.rejected_params, 1))

    def _params(self, params: bytes, step: int) -> bytes:
        """As a client sends them."""
        codec = self.exchange.codec
        return params if codec is None else seal(codec, params, Place(self.saga_id, step, "params"))

    def compensation(self, step: int = 1, done: Answer | None = None) -> Command:
        """What undoes a step. `done`: the answer to the step. Raises NotChecked if the command needs no
        compensation."""
        if self.case.compensation is None:
            raise NotChecked(f"{self.case.command} needs no compensation, as published")
        return replace(
            self.transaction(step),
            type=self.case.compensation,
            compensating=True,
            result=done.reply.result if done is not None else None,
            not_after_ms=None,
            retried=True,
            undo=self.case.undo,
        )

    def send(self, *commands: Command) -> list[bytes]:
        """Send commands in one transaction. Returns the ids of their entries."""
        self._sent_steps |= {command.step for command in commands if command.type == self.case.command}
        return self.exchange.send(*(command.fields() for command in commands))

    def ask(self, command: Command, extra: Fields | None = None) -> Answer:
        """Send a command, with more fields of the entry if given. Returns its answer. Raises Broken if none comes."""
        return self._ask(command, lambda: self.exchange.send(command.fields() | (extra or {})))[0]

    def ask_twice_at_once(self, command: Command) -> list[Answer]:
        """Send a command twice in one transaction. Returns both answers. Raises Broken if they do not come."""
        return self._ask(command, lambda: self.send(command, command), 2)

    def ask_by_a_dead_reader(self, command: Command) -> Answer:
        """Send a command that is read by a reader which dies. Returns the answer of the reader that takes it over.
        Raises Broken if none does."""
        if self.exchange.group() is None:
            raise NotChecked(f"the stream of its commands has no group {self.exchange.service}")
        return self._ask(command, lambda: self.exchange.send_to_the_dead(command.fields()))[0]

    def must_be_done(self, command: Command, answer: Answer) -> Answer:
        if answer.reply.type != ok(command.type):
            raise Broken(f"{ok(command.type)} for step {command.step}", str(answer))
        return answer

    def must_accept(self, command: Command, answer: Answer) -> None:
        """Raises Unfit if the service rejects the params: that is not a fault of the service."""
        if answer.reply.type == failed(command.type) and not answer.reply.unknown:
            params = self.case.params.decode(errors="backslashreplace")
            error = (answer.reply.error or b"no error").decode(errors="backslashreplace")
            raise Unfit(
                f"{self.exchange.service} rejected {command.type} with the params {params[:200]}: "
                f"{error[:200]}; give params with which it does that: --params JSON"
            )

    def must_be_refused(self, command: Command, answer: Answer) -> Answer:
        """Raises Broken unless the answer says that the command was not done."""
        if answer.reply.type != failed(command.type) or answer.reply.unknown:
            raise Broken(f"{failed(command.type)} for step {command.step}, without the field unknown", str(answer))
        return answer

    def must_be_the_same(self, first: Answer, second: Answer) -> None:
        """Compares two answers to one command. Raises NotChecked if two effects would give the same answers."""
        if _said(first) != _said(second):
            raise Broken(f"again {first}", str(second))
        if first.reply.error is None and first.reply.result is None and not self.case.effect:
            raise NotChecked(
                "the replies are the same, but carry no result: --effects COMMAND would show whether it was done once"
            )

    def must_have_effects(self, effects: int) -> None:
        """Raises Broken unless this trial has so many effects now. Does nothing if nobody can count them."""
        if self._probe is None or not self.case.effect:
            self.is_uncounted = True
            return
        found = (self._probe.count(self.saga_id) - self._before) / self.case.effect
        if found != effects:
            raise Broken(f"{effects} effects standing, as --effects counts them", f"{found:g}")

    def learn_effect(self) -> None:
        """Find out by how much one effect changes what --effects prints. Raises NotChecked; Broken if it cannot be
        undone."""
        if self._probe is None:
            raise NotChecked("no --effects COMMAND was given: only the results show how often something was done")
        before = self._probe.count(self.saga_id)
        command = self.transaction()
        done = self.must_be_done(command, self.ask(command))
        effect = self._probe.count(self.saga_id) - before
        if not effect:
            raise NotChecked(f"--effects printed {before} before {self.case.command} was done, and after it")
        if self.case.compensation is not None:
            undo = self.compensation(done=done)
            self.must_be_done(undo, self.ask(undo))
            if (after := self._probe.count(self.saga_id)) != before:
                raise Broken(f"--effects prints {before} again after it is undone", str(after))
        self.case.effect = effect

    def is_heard(self) -> bool:
        """Whether the service answers a command at all."""
        known = len(self.exchange.answers(self.saga_id))
        self.send(self.transaction(step=_STEP_ALONE))
        return bool(self.exchange.until(lambda: len(self.exchange.answers(self.saga_id)) > known))

    def undo(self) -> None:
        """Undo what was done, or may have been done, if the service undoes it."""
        if self.case.compensation is None:
            return
        for step in self._standing():
            command = self.compensation(step)
            try:
                self.ask(command)
            except Broken:  # the checks about that report it
                return

    def _standing(self) -> list[int]:
        """The steps that were done and not undone since, or may have been."""
        done, undone = ok(self.case.command), ok(self.case.compensation or "")
        last = dict.fromkeys(sorted(self._sent_steps), "")
        for answer in self.exchange.answers(self.saga_id):
            if answer.reply.type in (done, undone):
                last[answer.reply.step] = answer.reply.type
            elif answer.reply.type == failed(self.case.command) and not answer.reply.unknown:
                last[answer.reply.step] = last.get(answer.reply.step) or undone
        return [step for step, kind in last.items() if kind != undone]

    def _ask(self, command: Command, send: Callable[[], object], count: int = 1) -> list[Answer]:
        known = len(self._answers(command))
        if command.type == self.case.command:
            self._sent_steps.add(command.step)
        send()
        if self.exchange.until(lambda: len(self._answers(command)) >= known + count):
            return self._answers(command)[known : known + count]
        expected = f"{ok(command.type)} or {failed(command.type)} of saga {self.saga_id}, step {command.step}"
        raise Broken(f"{count} replies {expected}" if count > 1 else expected, self._instead(command, known))

    def _answers(self, command: Command) -> list[Answer]:
        """The answers to a command that have come so far."""
        types = (ok(command.type), failed(command.type))
        found = self.exchange.answers(self.saga_id)
        return [answer for answer in found if answer.reply.type in types and answer.reply.step == command.step]

    def _instead(self, command: Command, known: int) -> str:
        """What came instead of an answer."""
        waited = f"within {self.exchange.timeout_s:g} s"
        answers = self._answers(command)
        came = [str(answer) for answer in answers[known:]]
        came += [str(answer) for answer in self.exchange.answers(self.saga_id) if answer not in answers]
        came += [f"{what}, of a saga that this store does not hold" for what in self.exchange.strangers()]
        if came:
            return f"{waited} only " + " and ".join(came[-3:])
        group = self.exchange.group()
        if group is None:
            return f"nothing {waited}; the stream of its commands has no group {self.exchange.service}"
        return f"nothing {waited}; its group has {group['consumers']} consumers"


def _said(answer: Answer) -> tuple[str, object, object]:
    body = answer.body
    return answer.reply.type, body.get("result"), body.get("error")
