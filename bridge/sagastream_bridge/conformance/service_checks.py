"""The promises of a service as a whole: its consumer group, and that nothing stops it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from sagastream.core.commands import failed
from sagastream.core.messages import Fields
from sagastream_bridge.conformance.exchange import Answer
from sagastream_bridge.conformance.promises import Check, Checks
from sagastream_bridge.conformance.trial import Broken, Trial

#: Checks that may make a service fail come last.
CHECKS: Final = Checks()
_check = CHECKS.check

#: No service has a command or a compensation with these names.
_NO_COMMAND: Final = "check-service-no-such-command"
_NO_COMPENSATION: Final = "check-service-no-such-compensation"
#: More bytes than a body may have.
_HUGE: Final = (1 << 20) + 1000
_DEEP: Final = 50_000


@_check(
    "group",
    "Its processes read their commands as one consumer group, which has the service's name.",
    "the-minimum-that-is-safe",
)
def group(trial: Trial) -> str:
    service = trial.exchange.service
    found = trial.exchange.group()
    if found is None or not found["consumers"]:
        raise Broken(f"a group {service} with consumers at {trial.exchange.stream}", "none")
    return f"group {service} with {found['consumers']} consumers"


@_check(
    "cleared",
    "A command is acknowledged and deleted after it is answered, so that its stream does not grow.",
    "what-a-service-must-never-do",
)
def cleared(trial: Trial) -> str:
    command = trial.transaction()
    [entry_id] = trial.send(command)
    trial.exchange.until(lambda: bool(trial.exchange.answers(trial.saga_id)))
    if trial.exchange.until(lambda: not trial.exchange.is_there(entry_id)) is None:
        held = "not acknowledged" if trial.exchange.is_pending(entry_id) else "acknowledged"
        raise Broken("the entry deleted from the stream", f"it is still there, {held}")
    if trial.exchange.is_pending(entry_id):
        raise Broken("the entry acknowledged", "it is deleted, and still pending")
    return "acknowledged and deleted"


@_check(
    "unknown command",
    "A command that the service does not have is answered with _failed, and holds nothing up.",
    "the-minimum-that-is-safe",
)
def unknown_command(trial: Trial) -> str:
    command = replace(trial.transaction(), type=_NO_COMMAND)
    answer = trial.ask(command)
    if answer.reply.type != failed(command.type):
        raise Broken(failed(command.type), str(answer))
    _must_go_on(trial)
    return str(answer)


@_check(
    "unknown compensation",
    "A compensation that it does not have is answered with _failed: nothing was undone.",
    "the-minimum-that-is-safe",
)
def unknown_compensation(trial: Trial) -> str:
    undo = replace(trial.transaction(step=2), type=_NO_COMPENSATION, compensating=True, not_after_ms=None)
    answer = trial.ask(undo)
    if answer.reply.type != failed(undo.type):
        raise Broken(failed(undo.type), str(answer))
    _must_go_on(trial)
    return str(answer)


@_check("more fields", "Fields of an entry that the service does not know are ignored.", "what-is-stable")
def more_fields(trial: Trial) -> str:
    command = trial.transaction()
    extra: Fields = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x": "\x00\x01"}
    return str(trial.must_be_done(command, trial.ask(command, extra)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Malformed:
    """An entry that is not a command, made from the fields of a good one."""

    what: str
    fields: Callable[[Fields], Fields]


def _with_body(body: bytes) -> Callable[[Fields], Fields]:
    return lambda good: good | {"body": body}


_MALFORMED: Final = (
    _Malformed(what="not JSON", fields=_with_body(b'{"type":')),
    _Malformed(what="no object", fields=_with_body(b"[1]")),
    _Malformed(what="members missing", fields=_with_body(b"{}")),
    _Malformed(what="wrong types", fields=_with_body(b'{"type":{},"saga_id":7,"step":"one","params":[]}')),
    _Malformed(what="bytes", fields=_with_body(bytes(range(256)))),
    _Malformed(what="no body", fields=lambda _: {"note": "x"}),
    _Malformed(what="deep", fields=_with_body(b"[" * _DEEP + b"]" * _DEEP)),
    _Malformed(what="huge", fields=_with_body(b'{"x":"' + b"x" * _HUGE + b'"}')),
    _Malformed(what="attempt", fields=lambda good: good | {"attempt": "x"}),
)


def _send_malformed(malformed: _Malformed, trial: Trial) -> str:
    exchange, good = trial.exchange, trial.transaction(step=2)
    [entry_id, _] = exchange.send(malformed.fields(trial.transaction(step=1).fields()), good.fields())

    def answer_to(step: int) -> Answer | None:
        return next((one for one in exchange.answers(trial.saga_id) if one.reply.step == step), None)

    if exchange.until(lambda: answer_to(2)) is None:
        raise Broken("an answer to the good command behind it", f"nothing within {exchange.timeout_s:g} s")

    def is_settled() -> bool:
        told = entry_id in exchange.quarantined or answer_to(1) is not None
        return told and not exchange.is_pending(entry_id)

    exchange.until(is_settled)
    if exchange.is_pending(entry_id):
        raise Broken("it quarantined or answered, and acknowledged", "it is still pending")
    if entry_id in exchange.quarantined:
        return f"quarantined: {exchange.quarantined[entry_id]}"
    if (answer := answer_to(1)) is not None:
        return f"answered: {answer}"
    raise Broken(f"it in {exchange.aside}, with its stream and its entry_id, or answered", "it was acknowledged alone")


def _malformed_check(malformed: _Malformed) -> Check:
    return Check(
        name=f"malformed: {malformed.what}",
        promise="An entry that is not a command is quarantined or answered, and holds nothing up.",
        run=lambda trial: _send_malformed(malformed, trial),
        needs=("answers",),
        section="the-minimum-that-is-safe",
    )


CHECKS.all += map(_malformed_check, _MALFORMED)


@_check("alive", "After all these, the service answers as in the beginning.", "the-minimum-that-is-safe")
def alive(trial: Trial) -> str:
    return _must_go_on(trial)


def _must_go_on(trial: Trial) -> str:
    command = trial.transaction(step=3)
    return str(trial.must_be_done(command, trial.ask(command)))
