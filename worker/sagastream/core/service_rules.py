"""The rule book of the service side: what a process does with a command that it holds. Pure.

Each rule is told what has happened to one command, and returns what to do next, as a value of service_actions:

    rule                what has happened                                       what to do next
    ----                -----------------                                       ---------------
    is_new              the command has come                                    whether it needs no look-up
    delivered           the command has come, and was looked up                 Run, Undo or Answer
    undoing             its undo is to be prepared                              Call or Answer
    without_handler     this process has no handler for what is to be called    Answer, Count, SetAside, Release or
                                                                                HandBack
    unopened            its values are sealed, and this process cannot open     Answer or HandBack
                        them
    runs_alone          the command comes from a process that may have died     whether it runs without any other
    before_call         a handler is about to be called                         Run, Undo, Answer, Count, SetAside
    replied             the handler has returned, or rejected the command       Answer or Release
    raised              the handler has raised something else                   Retry, Answer or Release
    data_away           the handler cannot reach its data                       Retry
    in_doubt            nobody can say whether the step had its effect          Answer or Release
    overruled           answer.lua did not accept the answer                    Undo or Requeue
    lost                another process has taken it over, or answered it      Answer or None
    for_twin            another delivery of an answered command is held too     Answer

The executor of a service's process and of RQ jobs (service.executor), the inbox (service.inbox), the outbox
(service.outbox), the test kit (sagastream.testing) and the explorer (tests/exploration) carry these values out. None of
them decides by itself. What they do with a command while time passes, holding_rules says.

Before a process undoes a step it leaves a *tombstone* for the step's transaction: from then on the transaction is
refused, and a process that was running it has to undo what came of it. recall.lua looks up the record (see
service_records) and leaves the tombstone. answer.lua applies the same rules again at the moment of the answer: it
overrules an answer whose step has failed or was undone meanwhile.

An undo that is *owed* is never only in the memory of a process: an entry of the service's commands stands for it. If
the process still holds the command, that entry does. It was delivered before, so whoever takes it over undoes it, as
`delivered` says. If the process holds it no more, others may have answered it before the effect was there: then the
command is added to the stream again. The entry goes only when the undo has succeeded, or to the quarantine.
"""

from typing import Final

from msgspec.structs import replace

from sagastream.core import backoff
from sagastream.core.commands import Command, Reply, failed, ok, reply_to
from sagastream.core.service_actions import (
    HAND_BACK,
    RELEASE,
    RUN,
    Answer,
    Call,
    Count,
    HandBack,
    Kind,
    Release,
    Requeue,
    Retry,
    Run,
    SetAside,
    Undo,
)
from sagastream.core.service_records import recorded
from sagastream.core.strict_json import encode

#: How often one process calls a handler that raises something other than Reject, before the reply says `unknown`.
TRIES: Final = 3
#: How often the undo of a command that was delivered before may begin, before a person has to decide.
MAX_UNDOS: Final = 10
#: The takeover at which the handler is not called any more, and the outcome is said to be unknown. The process that had
#: the command first has died by then, and so has each that took it over before. Without this limit a command that kills
#: its process would kill one after another. From the second takeover on it runs alone, so that what else a process had
#: begun is not charged with its death.
MAX_TAKEOVERS: Final = 5

#: For how long a command is new, in milliseconds. What else a process reads at once it begins within 200 ms.
NEW_MS: Final = 1_000

# --- before a handler is called


def is_new(command: Command, *, added_ms: int, again: bool, now_ms: int | None) -> bool:
    """Whether a command needs no look-up: a worker has looked when it sent it, a moment ago, and nothing was recorded.
    A copy of its entry is not new: it has another time.

    The step may be undone after the worker looked, by an operator or because of another step. That is as if it were
    undone just after a look-up: answer.lua overrules the answer, and the service undoes what it did.

    Args:
        added_ms: when its entry was added, by the broker's clock.
        again: whether the command was delivered before.
        now_ms: the time by the broker's clock; None: it is not known.
    """
    if again or command.unrecorded_ms != added_ms or not command.is_first:
        return False
    return now_ms is not None and 0 <= now_ms - added_ms <= NEW_MS


def delivered(command: Command, *, record: bytes | None, tombstone: bool, again: bool) -> Run | Undo | Answer:
    """
    Args:
        record: what is recorded under `command.record`.
        tombstone: whether the step's compensation has come already.
        again: whether the command was delivered before, so that another process may have begun with it.
    """
    reply = recorded(command, record)
    if reply is None and tombstone and not command.compensating:
        reply = refusal(command)
    if reply is None:
        return RUN
    # Also if an ok is recorded: that was of another delivery, and this one may have been done after the undo.
    must_not_stand = not command.compensating and (tombstone or reply.type == failed(command.type))
    return Undo(refusal=reply, result=command.result) if must_not_stand and again else Answer(reply, "final")


def undoing(command: Command, undo: Undo, *, compensation: str | None, entry_id: str) -> Call | Answer:
    """
    Args:
        compensation: the name of what undoes the command; None: it needs no undo.
        entry_id: the entry of the command. The undo gets a key of its own: under the usual key the step's compensation
            has run already, and has found nothing to undo.
    """
    if compensation is None:
        return undo.answer
    call = replace(command, type=compensation, compensating=True, result=undo.result)
    return Call(call, f"{call.key}/{entry_id}")


def without_handler(
    command: Command,
    todo: Run | Undo,
    *,
    again: bool,
    published: bool = False,
    now_ms: int = 0,
    times: int | None = None,
) -> Answer | Count | Release | HandBack | SetAside:
    """
    Args:
        again: as for `delivered`.
        published: whether the service publishes what is to be called, so that a process of another release has it.
        now_ms: the time by the broker's clock.
        times: how often this was counted, if the rule has asked for it.
    """
    if published:
        # This process knows nothing of the command, so it must not say that the service cannot do it.
        return too_late(command, todo, not_begun=not again, now_ms=now_ms) or HAND_BACK
    if todo is not RUN:
        # A try like any other: a later release of the service may have the compensation.
        next_ = _begin_undo(command, todo, again=again, times=times)
        return RELEASE if isinstance(next_, Undo) else next_
    known = "compensation" if command.compensating else "command"
    text = f"unknown_command: service {command.service} has no {known} {command.type}"
    # A process of another release may have had it, or has an earlier attempt of it: what a service publishes can be
    # deleted, so that it is not there does not say that nobody has begun it.
    unknown = again or command.attempt > 1
    return _answer(command, reply_to(command, failed(command.type), error=encode(text), unknown=unknown))


def unopened(command: Command, todo: Run | Undo, *, again: bool, now_ms: int) -> Answer | HandBack:
    """Another process may have the key, or this one once it is started again. If none ever has, the step times out.

    Args:
        again: as for `delivered`.
        now_ms: the time by the broker's clock.
    """
    return too_late(command, todo, not_begun=not again, now_ms=now_ms) or HAND_BACK


def runs_alone(begun: int) -> bool:
    """Whether nothing else runs in a process while this command does: it may kill the process.

    `begun`: how often the beginning of it, or of its undo, was counted before. The first time that a command is taken
    over it is not known which of those that its process had begun was the one that killed it.
    """
    return begun > 0


def before_call(
    command: Command,
    todo: Run | Undo,
    *,
    is_first: bool,
    again: bool,
    taken_over: bool,
    now_ms: int,
    times: int | None = None,
) -> Run | Undo | Answer | Count | SetAside:
    """
    Args:
        is_first: whether this process calls a handler for this delivery for the first time.
        again: as for `delivered`.
        taken_over: whether this process has the command from another one, which held it for too long or released it.
        now_ms: the time by the broker's clock.
        times: how often this was counted, if the rule has asked for it.
    """
    if todo is not RUN:
        return _begin_undo(command, todo, again=again, times=times) if is_first else todo
    if (late := too_late(command, todo, not_begun=is_first and not again, now_ms=now_ms)) is not None:
        return late
    if not (is_first and taken_over):
        return RUN
    if times is None:
        return Count.TAKEOVERS
    return RUN if times < MAX_TAKEOVERS else _answer(command, gave_up(command, times))


def too_late(command: Command, todo: Run | Undo, *, not_begun: bool, now_ms: int) -> Answer | None:
    """The answer to a command that nobody waits for any more; None: it is in time, or is to be undone, which is never
    too late. `not_begun`: it is certain that no process has begun with it."""
    if todo is not RUN or command.not_after_ms is None or not may_be_late(command, now_ms):
        return None
    text = f"{command.type} came {now_ms - command.not_after_ms} ms too late, and was not begun"
    reply = reply_to(command, failed(command.type), error=encode(text), unknown=True)
    return Answer(reply, "final") if not_begun else _answer(command, reply)


def may_be_late(command: Command, now_ms: int) -> bool:
    """Whether `too_late` may refuse a command at this time. Before it does, ask for the time: see
    CommandInbox.fresh_time_for."""
    return command.not_after_ms is not None and now_ms > command.not_after_ms


def _begin_undo(command: Command, undo: Undo, *, again: bool, times: int | None) -> Undo | Count | SetAside:
    if not again:
        return undo
    if times is None:
        return Count.UNDOS
    if times < MAX_UNDOS:
        return undo
    return SetAside(f"{command.type} may have been done after it was refused, and could not be undone {times} times")


# --- after a handler was called


def replied(todo: Run | Undo, called: Command, reply: Reply) -> Answer | Release:
    """`called`: what the handler was called with: the command or, for an Undo, its compensation."""
    if todo is not RUN:
        return todo.answer if reply.type == ok(called.type) else RELEASE
    return Answer(reply, kind(called, reply))


def raised(todo: Run | Undo, called: Command, why: str, *, tries: int, limit: int) -> Retry | Answer | Release:
    """
    Args:
        called: as for `replied`.
        why: the error, as printable text.
        tries: how often the handler has raised in this process, this time included.
        limit: how often it may.
    """
    return Retry(backoff.delay(tries)) if tries < limit else in_doubt(todo, called, why)


def data_away(times: int) -> Retry:
    """The handler cannot reach its own Redis, for the `times`th time in a row. That is an outage, not an error of the
    handler, so it is not one of its tries."""
    return Retry(backoff.delay(times))


def in_doubt(todo: Run | Undo, called: Command, why: str) -> Answer | Release:
    """`called`: as for `replied`. `why`: printable text."""
    return replied(todo, called, reply_to(called, failed(called.type), error=encode(why), unknown=True))


def overruled(command: Command, reply: Reply, *, is_held: bool) -> Undo | Requeue:
    """The step has failed, or was undone, while the handler ran that gave this reply.

    Args:
        is_held: whether the process still held the command when answer.lua said so. If another process takes it over
            later, that one looks it up after the effect, and so undoes it.
    """
    return Undo(refusal=refusal(command), result=reply.result) if is_held else Requeue(result=reply.result)


def lost(command: Command, todo: Run | Undo, *, begun: bool) -> Answer | None:
    """What a process says of a command that it does not run, and that it has lost to another one; None: nothing. If it
    has begun with it, only this process may know of an effect that came after the other one had answered.

    Args:
        begun: whether this process has called a handler for it.
    """
    if not begun or todo is not RUN:  # what is to be undone was done before the other process looked it up
        return None
    text = f"{command.type} was begun by a process that lost it to another one"
    return _answer(command, reply_to(command, failed(command.type), error=encode(text), unknown=True))


def for_twin(answer: Answer, twin: Command) -> Answer:
    """`answer`: to another delivery of the same command. It has to be the last word; if it is not, the twin is still to
    be done."""
    return _answer(twin, replace(answer.reply, attempt=twin.attempt))


# --- replies without a handler


def gave_up(command: Command, takeovers: int) -> Reply:
    """The reply to a command that kills every process that runs it."""
    text = f"{takeovers} processes took {command.type} and did not live to answer it"
    return reply_to(command, failed(command.type), error=encode(text), unknown=True)


def refusal(command: Command) -> Reply:
    """The reply to a command whose step was undone before it came."""
    text = f"cancelled: {command.type} came after its compensation"
    return reply_to(command, failed(command.type), error=encode(text))


def unusable(called: Command, why: str) -> str:
    """Why the outcome is in doubt if the handler returned what is not JSON: calling it again would not help."""
    return f"the result of {called.type} is unusable: {why}"


def names_process(command: Command, reply: Reply) -> bool:
    """Whether a reply says which process gives it. Of the first attempt of a command that is done, it does not: that is
    the usual case, and the name in each reply costs a server 8 % of its work for a saga."""
    return command.attempt > 1 or command.compensating or reply.type != ok(command.type)


def kind(command: Command, reply: Reply) -> Kind:
    """What answer.lua does with the reply of a handler. What is recorded is the last word."""
    if reply.type == ok(command.type):
        return "ok"
    return "unknown" if reply.unknown or command.retried else "failed"


def _answer(command: Command, reply: Reply) -> Answer:
    return Answer(reply, kind(command, reply))
