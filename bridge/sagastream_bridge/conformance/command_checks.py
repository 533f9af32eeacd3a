"""The promises about one command: it is done once and undone once, in any order, and however often it is
delivered."""

from typing import Any, Final

from msgspec.structs import replace

from sagastream.core.commands import Command, failed, ok
from sagastream.core.messages import is_id
from sagastream_bridge.conformance.exchange import Answer
from sagastream_bridge.conformance.promises import Checks
from sagastream_bridge.conformance.trial import Broken, NotChecked, Trial

CHECKS: Final = Checks()
_check = CHECKS.check

#: How often to look whether a command is acknowledged before it is answered.
_LOOKS: Final = 10
#: An attempt that no service writes by mistake.
_ATTEMPT: Final = 7


@_check("published", "The service publishes its commands, and what undoes each.", "the-minimum-that-is-safe", needs=())
def published(trial: Trial) -> str:
    name, command = trial.exchange.keys.published(trial.exchange.service), trial.case.command
    fields: Any = trial.exchange.client.hgetall(name)
    found = {
        one.decode(errors="backslashreplace"): undo.decode(errors="backslashreplace") for one, undo in fields.items()
    }
    if command not in found:
        raise Broken(f"a hash {name} with a field {command}", f"the fields {', '.join(sorted(found)) or '(none)'}")
    for one, undo in found.items():
        if not is_id(one) or (undo and not is_id(undo)):
            raise Broken("names of 1 to 128 characters of A-Z a-z 0-9 . _ : -", f"{one} undone by {undo}")
    return ", ".join(f"{one} undone by {undo or 'nothing'}" for one, undo in sorted(found.items()))


@_check("answers", "A command is answered with its type and _ok, for its saga and its step.", "the-messages", needs=())
def answers(trial: Trial) -> str:
    command = trial.transaction(step=2)
    answer = trial.ask(command)
    trial.must_accept(command, answer)
    return str(trial.must_be_done(command, answer))


@_check(
    "shape",
    "A reply has the members of the protocol and no others, and the field attempt of its command.",
    "fields-of-a-reply",
)
def shape(trial: Trial) -> str:
    command = trial.transaction(attempt=_ATTEMPT)
    return _must_have_shape(command, trial.must_be_done(command, trial.ask(command)), "result")


@_check(
    "effects",
    "The compensation of a command takes its effect away, as --effects counts it.",
    "effects-and-their-undoing",
)
def effects(trial: Trial) -> str:
    trial.learn_effect()
    return f"one effect is {trial.case.effect:+d}"


@_check(
    "answered first",
    "A command is acknowledged after its reply is written, not before: a crash in between would lose it.",
    "what-a-service-must-never-do",
)
def answered_first(trial: Trial) -> str:
    if trial.exchange.group() is None:
        raise NotChecked(f"the stream of its commands has no group {trial.exchange.service}")
    looks = [trial.transaction()]
    looks += [trial.transaction(attempt=2)] * _LOOKS
    if trial.case.compensation is not None:
        looks += [trial.compensation(step) for step in range(1, _LOOKS + 1)]
    for command in looks:
        [entry_id] = trial.send(command)
        was_first = trial.exchange.answered_before_acknowledged(entry_id, trial.saga_id)
        trial.exchange.answers(trial.saga_id)  # take it, so that the next look sees only the next reply
        if was_first is None or entry_id in trial.exchange.quarantined:
            raise NotChecked(f"{command.type} was not answered")
        if not was_first:
            raise Broken("its reply before it is acknowledged", f"{command.type} acknowledged, and no reply to it")
    return f"in {len(looks)} looks it was never seen the other way round"


@_check("steps apart", "Two steps of one saga are two commands, even if they are alike.", "effects-and-their-undoing")
def steps_apart(trial: Trial) -> str:
    first, second = trial.transaction(step=1), trial.transaction(step=2)
    one = trial.must_be_done(first, trial.ask(first))
    other = trial.must_be_done(second, trial.ask(second))
    trial.must_have_effects(2)
    return f"{one} and {other}"


@_check(
    "rejection",
    "A command that cannot be done is answered with _failed and an error, and nothing of it remains.",
    "the-messages",
)
def rejection(trial: Trial) -> str:
    command = trial.rejected()
    answer = trial.must_be_refused(command, trial.ask(command))
    if answer.reply.error is None:
        raise Broken("an error that says why", str(answer))
    trial.must_have_effects(0)
    return str(answer)


@_check(
    "rejection again",
    "A rejection is the last word: delivered again, the answer is the same.",
    "after-recalllua",
    needs=("rejection",),
)
def rejection_again(trial: Trial) -> str:
    command = trial.rejected()
    first = trial.must_be_refused(command, trial.ask(command))
    # With params that would be accepted now, as if an account had been filled meanwhile.
    second = trial.ask(trial.transaction(attempt=2))
    trial.must_be_the_same(first, second)
    trial.must_have_effects(0)
    return f"again {second}"


@_check(
    "shape of a rejection",
    "A rejection has an error, and else what every reply has.",
    "fields-of-a-reply",
    needs=("rejection",),
)
def shape_of_a_rejection(trial: Trial) -> str:
    command = replace(trial.rejected(), attempt=_ATTEMPT)
    return _must_have_shape(command, trial.must_be_refused(command, trial.ask(command)), "error")


@_check(
    "duplicate",
    "A command that is delivered again after it was answered is not done again: the answer is the same.",
    "after-recalllua",
)
def duplicate(trial: Trial) -> str:
    command = trial.transaction()
    first = trial.must_be_done(command, trial.ask(command))
    second = trial.ask(command)
    trial.must_have_effects(1)
    trial.must_be_the_same(first, second)
    return f"again {second}"


@_check(
    "twins", "A command that is delivered twice at once is done once: both answers are the same.", "after-recalllua"
)
def twins(trial: Trial) -> str:
    command = trial.transaction()
    first, second = trial.ask_twice_at_once(command)
    trial.must_be_done(command, first)
    trial.must_have_effects(1)
    trial.must_be_the_same(first, second)
    return f"twice {second}"


@_check(
    "next attempt",
    "A later attempt of a command that was done gets the same answer, with its own attempt number.",
    "after-recalllua",
)
def next_attempt(trial: Trial) -> str:
    command = trial.transaction()
    first = trial.must_be_done(command, trial.ask(command))
    second = trial.ask(trial.transaction(attempt=2))
    trial.must_have_effects(1)
    trial.must_be_the_same(first, second)
    if second.reply.attempt not in (None, 2):
        raise Broken("a reply to attempt 2", str(second))
    return f"again {second}"


@_check("crash before", "A command that a dead reader held is taken over, and done.", "the-minimum-that-is-safe")
def crash_before(trial: Trial) -> str:
    command = trial.transaction()
    answer = trial.must_be_done(command, trial.ask_by_a_dead_reader(command))
    trial.must_have_effects(1)
    return str(answer)


@_check(
    "crash after",
    "A command that a reader had done before it died is taken over, and not done again: the answer is the same.",
    "after-recalllua",
    needs=("answers", "crash before"),
)
def crash_after(trial: Trial) -> str:
    command = trial.transaction()
    first = trial.must_be_done(command, trial.ask(command))
    second = trial.ask_by_a_dead_reader(command)
    trial.must_have_effects(1)
    trial.must_be_the_same(first, second)
    return f"again {second}"


@_check(
    "late",
    "A command for which nobody waits any more (not_after_ms) is not begun: the reply says unknown.",
    "after-recalllua",
)
def late(trial: Trial) -> str:
    command = replace(trial.transaction(), not_after_ms=trial.exchange.now_ms() - 60_000)
    answer = trial.ask(command)
    trial.must_have_effects(0)
    if answer.reply.type != failed(command.type) or not answer.reply.unknown:
        raise Broken(f"{failed(command.type)} with the field unknown", str(answer))
    return str(answer)


@_check("compensation", "A compensation is answered with its type and _ok, and what it undoes is gone.", "the-messages")
def compensation(trial: Trial) -> str:
    command = trial.transaction()
    done = trial.must_be_done(command, trial.ask(command))
    undo = trial.compensation(done=done)
    undone = trial.must_be_done(undo, trial.ask(undo))
    trial.must_have_effects(0)
    return str(undone)


@_check(
    "shape of a compensation",
    "The reply to a compensation has no result, and else what every reply has.",
    "fields-of-a-reply",
    needs=("compensation",),
)
def shape_of_a_compensation(trial: Trial) -> str:
    command = trial.transaction()
    done = trial.must_be_done(command, trial.ask(command))
    undo = replace(trial.compensation(done=done), attempt=_ATTEMPT)
    return _must_have_shape(undo, trial.must_be_done(undo, trial.ask(undo)), "")


@_check(
    "compensation again",
    "A compensation that comes again is answered as before.",
    "effects-and-their-undoing",
    needs=("compensation",),
)
def compensation_again(trial: Trial) -> str:
    command = trial.transaction()
    done = trial.must_be_done(command, trial.ask(command))
    undo = trial.compensation(done=done)
    trial.must_be_done(undo, trial.ask(undo))
    again = trial.must_be_done(undo, trial.ask(replace(undo, attempt=2)))
    trial.must_have_effects(0)
    return f"again {again}"


@_check(
    "nothing to undo",
    "A compensation that comes before its command, or without one, is answered with _ok.",
    "effects-and-their-undoing",
    needs=("compensation",),
)
def nothing_to_undo(trial: Trial) -> str:
    undo = trial.compensation()
    answer = trial.must_be_done(undo, trial.ask(undo))
    trial.must_have_effects(0)
    return str(answer)


@_check(
    "command after its compensation",
    "A command that comes after its compensation is refused, and has no effect.",
    "after-recalllua",
    needs=("nothing to undo",),
)
def command_after_its_compensation(trial: Trial) -> str:
    undo, command = trial.compensation(), trial.transaction()
    trial.must_be_done(undo, trial.ask(undo))
    answer = trial.must_be_refused(command, trial.ask(command))
    trial.must_have_effects(0)
    return str(answer)


@_check(
    "command after it was undone",
    "A command that comes again after it was undone is not done again.",
    "after-recalllua",
    needs=("compensation",),
)
def command_after_it_was_undone(trial: Trial) -> str:
    command = trial.transaction()
    done = trial.must_be_done(command, trial.ask(command))
    undo = trial.compensation(done=done)
    trial.must_be_done(undo, trial.ask(undo))
    answer = trial.ask(replace(command, attempt=2))
    trial.must_have_effects(0)
    if answer.reply.type == ok(command.type):
        trial.must_be_the_same(done, answer)
    return str(answer)


def _must_have_shape(command: Command, answer: Answer, payload: str) -> str:
    """`payload`: the one further member that the body may have; "": none."""
    wanted = {"type", "saga_id", "step"} | ({payload} if payload else set())
    if strange := sorted(answer.body.keys() - wanted):
        raise Broken(f"no members but {', '.join(sorted(wanted))}", f"{strange[0]} in {answer}")
    if answer.fields.get(b"attempt") != str(command.attempt).encode():
        raise Broken(f"the field attempt={command.attempt}, as in the command", str(answer))
    return str(answer)
