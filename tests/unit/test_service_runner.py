"""What a service does with the commands in hand."""

import math
import threading
import time
from typing import Any

import orjson
import pytest
import redis
from msgspec.structs import replace

from sagastream import backoff, dedupe, keys
from sagastream.command_inbox import CommandInbox, Delivery
from sagastream.errors import Reject
from sagastream.messages import Command, Reply
from sagastream.service import Context, Handler, Service
from sagastream.service_runner import TRIES, ServiceRunner
from sagastream.streams import Entry
from sagastream.strict_json import MAX_PAYLOAD_BYTES


def a_command(*, compensating: bool = False, not_after_ms: int | None = None) -> Command:
    return Command(
        service="payment",
        type="Refund" if compensating else "Charge",
        saga_id="saga42",
        step=2,
        params=b'{"n":18446744073709551615}',
        compensating=compensating,
        attempt=3,
        begun_ms=5,
        not_after_ms=not_after_ms,
    )


# --- handlers that raise


class Waits(threading.Event):
    """An event that nobody waits for: what would have been waited is kept. `stopped`: it is set."""

    def __init__(self, *, stopped: bool = False) -> None:
        super().__init__()
        self.waited: list[float | None] = []
        if stopped:
            self.set()

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout)
        return self.is_set()


#: The time by the broker's clock, about, in these tests.
NOW_MS = 1_700_000_000_000


def an_inbox() -> CommandInbox:
    """As much of an inbox as answers wait in until they are sent."""
    inbox = CommandInbox.__new__(CommandInbox)
    inbox._lock = threading.Lock()
    inbox._answers = []
    inbox._ahead_ms = NOW_MS - time.monotonic() * 1000
    return inbox


def a_runner(handler: Handler, stop: Waits | None = None, *, undo: Handler | None = None) -> ServiceRunner:
    """As much of a runner as handling a command takes."""
    service = Service("payment")
    service.command("Charge", compensation="Refund" if undo else None)(handler)
    if undo is not None:
        service.compensation("Refund")(undo)
    runner = ServiceRunner.__new__(ServiceRunner)
    runner.name = "service payment"
    runner._service = service
    runner._stop = stop or Waits()
    runner._inbox = an_inbox()
    return runner


def handled(runner: ServiceRunner, command: Command | None = None) -> Reply:
    """The reply, of which there is one."""
    reply = runner._handle(command or a_command())
    assert reply is not None
    return reply


class Raising:
    """A handler that raises these, one after the other, and then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.left = list(errors)
        self.calls = 0

    def __call__(self, params: Any, context: Context) -> str:
        self.calls += 1
        if self.left:
            raise self.left.pop(0)
        return "done"


def test_a_handler_that_raises_is_called_again_after_a_while() -> None:
    stop = Waits()
    reply = handled(a_runner(Raising(ValueError("once"), ValueError("twice")), stop))
    assert reply == Reply(type="Charge_ok", saga_id="saga42", step=2, result=b'"done"', attempt=3)
    assert stop.waited == [backoff.delay(1), backoff.delay(2)]


def test_a_handler_that_raises_at_every_try_leaves_the_outcome_unknown() -> None:
    handler = Raising(*[ValueError(f"try {n}") for n in range(1, TRIES + 2)])
    reply = handled(a_runner(handler))
    assert reply == Reply(
        type="Charge_failed", saga_id="saga42", step=2, error=b'"ValueError: try 3"', unknown=True, attempt=3
    )
    assert handler.calls == TRIES


def test_a_handler_that_exits_is_one_that_raises() -> None:
    assert handled(a_runner(Raising(SystemExit(0)))).type == "Charge_ok"
    reply = handled(a_runner(Raising(*[SystemExit("no configuration")] * TRIES)))
    assert (reply.type, reply.error, reply.unknown) == ("Charge_failed", b'"SystemExit: no configuration"', True)


def test_whoever_interrupts_the_process_does_so() -> None:
    with pytest.raises(KeyboardInterrupt):
        a_runner(Raising(KeyboardInterrupt()))._handle(a_command())


def test_a_process_that_is_to_stop_leaves_what_raised_to_another() -> None:
    handler = Raising(ValueError("once"))
    assert a_runner(handler, Waits(stopped=True))._handle(a_command()) is None
    assert handler.calls == 1


def test_a_process_that_is_to_stop_still_answers_what_is_done_or_can_never_be() -> None:
    stop = Waits(stopped=True)
    assert handled(a_runner(Raising(), stop)).type == "Charge_ok"
    assert handled(a_runner(Raising(Reject("no")), stop)).type == "Charge_failed"
    assert handled(a_runner(lambda params, context: math.nan, stop)).unknown


@pytest.mark.parametrize(
    "error",
    [redis.ConnectionError("gone"), redis.TimeoutError("slow"), redis.ResponseError("MISCONF no disk")],
)
def test_a_handler_that_cannot_reach_its_data_gets_no_verdict(error: redis.RedisError) -> None:
    handler = Raising(error)
    with pytest.raises(redis.RedisError) as caught:
        a_runner(handler)._handle(a_command())
    assert caught.value is error
    assert handler.calls == 1


@pytest.mark.parametrize("error", [redis.ResponseError("WRONGTYPE it is a list"), redis.AuthenticationError("no")])
def test_an_error_of_the_broker_that_is_no_outage_counts_as_any_other(error: redis.RedisError) -> None:
    assert handled(a_runner(Raising(*[error] * TRIES))).unknown


@pytest.mark.parametrize("result", [math.nan, {1, 2}, object(), "x" * (MAX_PAYLOAD_BYTES + 1)])
def test_a_handler_whose_result_is_no_json_is_not_called_again(
    result: object, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def handle(params: Any, context: Context) -> object:
        calls.append(params)
        return result

    reply = handled(a_runner(handle))
    assert (reply.type, reply.unknown, len(calls)) == ("Charge_failed", True, 1)
    assert orjson.loads(reply.error or b"").startswith("the result of Charge is unusable: ")
    assert "the outcome of step" in capsys.readouterr().err


def test_a_rejection_is_final() -> None:
    handler = Raising(Reject("no"))
    reply = handled(a_runner(handler))
    assert (reply.type, reply.error, reply.unknown, handler.calls) == ("Charge_failed", b'"no"', False, 1)


def test_a_command_that_the_service_does_not_have_fails_and_has_no_effect() -> None:
    reply = handled(a_runner(Raising()), a_command(compensating=True))
    assert (reply.type, reply.unknown) == ("Refund_failed", False)
    assert orjson.loads(reply.error or b"") == "unknown_command: service payment has no compensation Refund"


def test_what_a_handler_raises_is_told_on_stderr_and_cannot_act_on_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    handled(a_runner(Raising(*[ValueError("\x1b[2J\u202e")] * TRIES)))
    lines = capsys.readouterr().err.splitlines()
    assert "Charge of saga saga42, step 2, raised ValueError" in lines[0]
    assert all(line.isprintable() for line in lines)


def test_an_error_whose_text_has_a_lone_surrogate_does_not_end_the_service() -> None:
    # As the name of a file that is no UTF-8 has.
    reply = handled(a_runner(Raising(*[FileNotFoundError("caf\udce9.txt")] * TRIES)))
    assert reply.unknown


# --- commands that come too late


def test_a_command_that_nobody_waits_for_any_more_is_not_begun() -> None:
    handler = Raising()
    runner = a_runner(handler)
    runner._inbox = post = Post(a_command(not_after_ms=NOW_MS - 60_000))
    [delivery] = post.read(1)
    for again in (False, True):
        assert runner._serve(replace(delivery, entry=replace(delivery.entry, again=again)), {})
    first, second = post._answers
    assert handler.calls == 0
    for answer in (first, second):
        assert answer.reply is not None
        assert (answer.reply.type, answer.reply.unknown, answer.reply.attempt) == ("Charge_failed", True, 3)
        assert "too late, and was not begun" in (answer.reply.error or b"").decode()
    # Only of one that somebody may have begun before anything is in doubt.
    assert (first.kind, second.kind) == ("final", "unknown")


def test_a_command_that_is_still_waited_for_is_begun() -> None:
    handler = Raising()
    assert handled(a_runner(handler), a_command(not_after_ms=NOW_MS + 60_000)).type == "Charge_ok"
    assert handled(a_runner(handler), a_command(not_after_ms=None)).type == "Charge_ok"
    assert handler.calls == 2


# --- commands whose step has failed, or was undone meanwhile


class Undoing(Raising):
    """A handler that also keeps what it was told."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__(*errors)
        self.told: list[tuple[Any, Context]] = []

    def __call__(self, params: Any, context: Context) -> str:
        self.told.append((params, context))
        return super().__call__(params, context)


def overruled(runner: ServiceRunner, result: bytes | None = None) -> list[tuple[str, Reply | None]]:
    """The kind and the reply of each answer, once a command that must not be done any more was seen to."""
    entry = Entry(stream=keys.commands("payment"), id=b"1-0", fields={})
    delivery = Delivery(entry=entry, command=a_command())
    runner._overrule(delivery, result, dedupe.refusal(delivery.command))
    assert all(answer.entry is entry for answer in runner._inbox._answers)
    return [(answer.kind, answer.reply) for answer in runner._inbox._answers]


def test_what_must_not_have_been_done_is_undone_and_then_refused_for_good() -> None:
    undo = Undoing()
    refusal = dedupe.refusal(a_command())
    assert overruled(a_runner(Raising(), undo=undo), b'{"payment_id":"p1"}') == [("final", refusal)]
    ((params, context),) = undo.told
    assert params == {"n": 2**64 - 1}
    # A key of its own: under the usual one the step's compensation has run, and has found nothing.
    assert (context.key, context.transaction_key) == ("saga42/2/compensation/1-0", "saga42/2/transaction")
    assert context.result == {"payment_id": "p1"}


def test_what_may_have_been_done_is_undone_without_a_result() -> None:
    undo = Undoing()
    overruled(a_runner(Raising(), undo=undo))
    assert [context.result for _, context in undo.told] == [None]


def test_what_needs_no_undoing_is_refused_at_once() -> None:
    handler = Raising()
    assert overruled(a_runner(handler)) == [("final", dedupe.refusal(a_command()))]
    assert handler.calls == 0


def test_an_undo_that_raises_is_tried_again() -> None:
    undo = Undoing(ValueError("once"), ValueError("twice"))
    assert overruled(a_runner(Raising(), undo=undo)) == [("final", dedupe.refusal(a_command()))]
    assert undo.calls == 3


@pytest.mark.parametrize("error", [ValueError("always"), Reject("no")])
def test_a_command_whose_undo_does_not_succeed_is_not_answered(error: Exception) -> None:
    assert overruled(a_runner(Raising(), undo=Undoing(*[error] * TRIES))) == []


def test_an_undo_is_left_to_another_where_the_process_is_to_stop() -> None:
    undo = Undoing(ValueError("once"))
    assert overruled(a_runner(Raising(), Waits(stopped=True), undo=undo)) == []
    assert undo.calls == 1


def test_an_undo_that_cannot_reach_its_data_is_an_outage() -> None:
    runner = a_runner(Raising(), undo=Undoing(redis.ConnectionError("gone")))
    with pytest.raises(redis.ConnectionError):
        overruled(runner)
    assert runner._inbox._answers == []


# --- a batch of commands


class Post(CommandInbox):
    """An inbox that is handed its commands, and keeps the answers that are sent."""

    def __init__(self, *commands: Command) -> None:
        entries = [Entry(stream=keys.commands("payment"), id=b"%d-0" % n, fields={}) for n in range(len(commands))]
        self._unread = [
            Delivery(entry=entry, command=command) for entry, command in zip(entries, commands, strict=True)
        ]
        self.__dict__.update(vars(an_inbox()))
        self.sent: list[tuple[int | None, str]] = []

    def read(self, block_ms: int, count: int = 0) -> list[Delivery]:
        read, self._unread = self._unread, []
        return read

    def send(self) -> list[tuple[Delivery, Reply]]:
        """The broker takes them all, and overrules none."""
        self.sent += [(answer.reply.attempt, answer.kind) for answer in self._answers if answer.reply is not None]
        self._answers = []
        return []


def answers(handler: Handler, *commands: Command) -> list[tuple[int | None, str]]:
    """The attempt that each answer is to, and its kind, after a turn with these commands."""
    runner = a_runner(handler)
    runner._inbox = post = Post(*commands)
    runner._pace_s = 0.001
    runner._publish_at = float("inf")
    runner.turn()
    return post.sent


def attempts(*not_after_ms: int | None, retried: bool = False) -> list[Command]:
    """Attempts of one command, from the first on."""
    return [
        replace(a_command(not_after_ms=ms), attempt=number, retried=retried)
        for number, ms in enumerate(not_after_ms, 1)
    ]


def test_a_command_that_comes_twice_in_one_batch_is_done_once_and_both_are_answered() -> None:
    handler = Raising()
    assert answers(handler, *attempts(None, None)) == [(1, "ok"), (2, "ok")]
    assert handler.calls == 1
    refusing = Raising(Reject("no"))
    assert answers(refusing, *attempts(None, None)) == [(1, "failed"), (2, "failed")]
    assert refusing.calls == 1


def test_an_attempt_that_is_in_time_is_made_where_an_earlier_one_in_its_batch_came_too_late() -> None:
    # A service that was away finds all of them at once when it comes back.
    handler = Raising()
    late, in_time = NOW_MS - 60_000, NOW_MS + 60_000
    assert answers(handler, *attempts(late, late, in_time)) == [(1, "final"), (2, "final"), (3, "ok")]
    assert handler.calls == 1


def test_a_later_attempt_is_made_where_an_earlier_one_in_its_batch_was_no_last_word() -> None:
    assert answers(Raising(*[ValueError()] * TRIES), *attempts(None, None)) == [(1, "unknown"), (2, "ok")]
    assert answers(Raising(Reject("busy")), *attempts(None, None, retried=True)) == [(1, "unknown"), (2, "ok")]
