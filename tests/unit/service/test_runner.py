"""What a service does with the commands that it holds."""

import asyncio
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import orjson
import pytest
import redis
from msgspec.structs import replace

from sagastream.broker.clock import BrokerClock, own_s
from sagastream.broker.connection import Broker
from sagastream.broker.entries import Entry
from sagastream.core import backoff, service_rules
from sagastream.core.causes import GRACE_S
from sagastream.core.commands import Command, Reply
from sagastream.core.service_actions import Count, Undo
from sagastream.core.service_rules import TRIES
from sagastream.core.strict_json import MAX_PAYLOAD_BYTES
from sagastream.errors import Reject
from sagastream.log_output import TextLines
from sagastream.service.context import Context, Handler
from sagastream.service.declaration import Service
from sagastream.service.delivery import Delivery
from sagastream.service.handlers import Interrupted
from sagastream.service.inbox import CommandInbox
from sagastream.service.outbox import Outbox
from sagastream.service.packing import Quarantined
from sagastream.service.records import Records
from sagastream.service.runner import ServiceRunner
from sagastream.store.lineage import Lineage
from sagastream_bridge.commands.main import cli
from support.stores import ONLY
from support.values import a_charge
from support.waiting import until

# --- handlers that raise


#: In these tests, about the time by the broker's clock.
NOW_MS = 1_700_000_000_000


class Sent(Outbox):
    """An outbox that keeps the answers that are sent. `overrules`: the numbers of entries whose answers the broker
    overrules."""

    def __init__(self, overrules: tuple[int, ...]) -> None:
        self._overrules = {b"%d-0" % number for number in overrules}
        self._lock = threading.Lock()
        self._ready = []
        self._ready_bytes = 0
        self.sent: list[tuple[bytes, Reply, str]] = []

    def send(self, ahead: int = 0) -> list[Delivery]:
        overruled = []
        for one in self._ready:
            assert not isinstance(one, Quarantined)
            delivery, answer = one
            if delivery.entry.id in self._overrules:
                self._overrules.discard(delivery.entry.id)
                todo = service_rules.overruled(delivery.command, answer.reply, is_held=True)
                assert isinstance(todo, Undo)
                overruled.append(replace(delivery, todo=todo))
            else:
                self.sent.append((delivery.entry.id, answer.reply, answer.kind))
        self._ready = []
        self._ready_bytes = 0
        return overruled


class Post(CommandInbox):
    """An inbox that gets its commands from the test; `overrules` as for its outbox."""

    def __init__(
        self, *commands: Command, again: bool = False, taken_over: bool = False, overrules: tuple[int, ...] = ()
    ) -> None:
        stream = ONLY.commands("payment")
        self._unread = [
            Delivery.of(
                Entry(stream=stream, id=b"%d-0" % number, fields={}, again=again, taken_over=taken_over), command, ONLY
            )
            for number, command in enumerate(commands, 1)
        ]
        self._observer = None
        self._lineage = Lineage("service payment", area="service")
        self.outbox = outbox = Sent(overrules)
        self.sent = outbox.sent
        self._records = Records.__new__(Records)
        self._records._ahead_s = NOW_MS / 1000 - own_s()
        self._records._clock = BrokerClock()
        self._came_s = self._records._told_s = own_s()  # so the time is as new as the commands
        self.heard_s = time.monotonic()
        self.renewed: list[bytes] = []
        self.handed_back: list[bytes] = []
        self.published_fields: dict[str, str] = {}  # what the service publishes
        self.counts: list[int] = []  # how many were asked for

    def read(self, block_ms: int, count: int = 0) -> list[Delivery]:
        self.counts.append(count)
        if not self._unread:
            time.sleep(block_ms / 1000)
        read, self._unread = self._unread[:count], self._unread[count:]
        return read

    def renew(self, deliveries: Iterable[Delivery]) -> set[tuple[str, bytes]]:
        self.renewed += [delivery.entry.id for delivery in deliveries]
        return set()

    def hand_back(self, deliveries: Iterable[Delivery]) -> set[tuple[str, bytes]]:
        self.handed_back += [delivery.entry.id for delivery in deliveries]
        return set()

    def leave(self, deliveries: Sequence[Delivery]) -> None:
        self.hand_back(deliveries)

    def published(self) -> dict[str, str]:
        return self.published_fields

    def count(self, delivery: Delivery, what: Count, by: int = 1) -> int:
        return 1


def a_service(
    handler: Handler, *, undo: Handler | None = None, concurrency: int = 1, limit: int | None = None
) -> Service:
    service = Service("payment", concurrency=concurrency)
    service.command("Charge", compensation="Refund" if undo else None, concurrency=limit)(handler)
    if undo is not None:
        service.compensation("Refund")(undo)
    return service


class Nowhere:
    """As much of a broker as a runner needs that never runs."""

    client = redis.Redis()  # it does not connect before it is used


def a_runner(service: Service, post: Post) -> ServiceRunner:
    runner = ServiceRunner(cast(Broker, Nowhere()), service, threading.Event())
    runner._inbox = runner._maintenance._inbox = runner._executor._inbox = runner._executor._others._inbox = post
    runner._handing_over._inbox = post
    runner._executor._outbox = runner._handing_over._outbox = post.outbox
    return runner


def handled(
    handler: Handler, *commands: Command, undo: Handler | None = None, **options: Any
) -> list[tuple[bytes, Reply, str]]:
    """The answers to these commands, in one batch: the entry, the reply and its kind."""
    post = Post(*commands, **options)
    runner = a_runner(a_service(handler, undo=undo), post)
    runner._prefetch._command_s = 0.001

    def through() -> bool:
        runner.turn(block_ms=1)
        return not post._unread and runner._in_flight.is_empty

    until(through, what="all is through")
    return post.sent


def reply_of(handler: Handler, command: Command | None = None) -> Reply:
    """The only reply."""
    [(_, reply, _)] = handled(handler, command or a_charge())
    return reply


class Raising:
    """A handler that raises these errors, one after the other, and then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.left = list(errors)
        self.calls = 0

    def __call__(self, params: Any, context: Context) -> str:
        self.calls += 1
        if self.left:
            raise self.left.pop(0)
        return "done"


def test_a_handler_that_raises_is_called_again_after_a_while() -> None:
    handler = Raising(ValueError("once"), ValueError("twice"))
    began = time.monotonic()
    assert reply_of(handler) == Reply(type="Charge_ok", saga_id="saga42", step=2, result=b'"done"', attempt=3)
    assert time.monotonic() - began >= backoff.delay(1) + backoff.delay(2)


def test_while_a_handler_rests_that_has_raised_others_are_called() -> None:
    calls: list[str] = []

    def handle(params: Any, context: Context) -> None:
        calls.append(context.saga_id)
        if calls == ["saga42"]:
            raise ValueError("once")

    others = [replace(a_charge(), saga_id=f"other{number}") for number in range(3)]
    handled(handle, a_charge(), *others)
    assert calls == ["saga42", "other0", "other1", "other2", "saga42"]


def test_a_handler_that_raises_at_every_try_leaves_the_outcome_unknown() -> None:
    handler = Raising(*[ValueError(f"try {n}") for n in range(1, TRIES + 2)])
    reply = reply_of(handler)
    assert reply == Reply(
        type="Charge_failed", saga_id="saga42", step=2, error=b'"ValueError: try 3"', unknown=True, attempt=3
    )
    assert handler.calls == TRIES


def test_a_handler_that_exits_is_one_that_raises() -> None:
    assert reply_of(Raising(SystemExit(0))).type == "Charge_ok"
    reply = reply_of(Raising(*[SystemExit("no configuration")] * TRIES))
    assert (reply.type, reply.error, reply.unknown) == ("Charge_failed", b'"SystemExit: no configuration"', True)


class Strange(BaseException):
    """An error of a library that wants nobody to catch it."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, Strange, asyncio.CancelledError])
def test_whatever_a_handler_raises_is_a_failure_of_it(kind: type[BaseException]) -> None:
    assert reply_of(Raising(kind())).type == "Charge_ok"
    reply = reply_of(Raising(*[kind("by itself")] * TRIES))
    assert (reply.type, reply.unknown) == ("Charge_failed", True)
    assert reply.error == orjson.dumps(f"{kind.__name__}: by itself")


def test_what_ends_a_handler_from_outside_is_no_failure_of_it() -> None:
    with pytest.raises(Interrupted):
        reply_of(Raising(Interrupted()))


@contextmanager
def handles(number: signal.Signals, handler: Callable[..., object]) -> Iterator[None]:
    """While this lasts, this is the program's handler of a signal."""
    before = signal.signal(number, handler)
    try:
        yield
        assert signal.getsignal(number) is handler, "the handler is not put back"
    finally:
        signal.signal(number, before)


def exits(*_: object) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("number", "program", "kind"),
    [(signal.SIGINT, signal.default_int_handler, KeyboardInterrupt), (signal.SIGTERM, exits, SystemExit)],
)
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_that_reaches_the_process_within_a_handler_ends_it(
    number: signal.Signals, program: Callable[..., object], kind: type[BaseException], swallowed: bool
) -> None:
    """The command line's handlers of signals raise nothing; those of a program that embeds a runner do."""

    def handle(params: Any, context: Context) -> str:
        calls.append(context.saga_id)
        try:
            signal.raise_signal(number)
        except BaseException:
            if not swallowed:
                raise
        return "done"

    calls: list[str] = []
    post = Post(a_charge(), replace(a_charge(), saga_id="other"))
    runner = a_runner(a_service(handle), post)
    with handles(number, program), pytest.raises(kind), runner._signals.watched():
        runner.turn(block_ms=1)
    assert calls == ["saga42"]
    # What was interrupted is left to other processes, unanswered. What has ended all the same is answered.
    runner._executor.send()
    assert [reply.type for _, reply, _ in post.sent] == (["Charge_ok"] if swallowed else [])


def test_in_another_thread_no_signal_is_watched_and_a_handler_fails_by_itself() -> None:
    runner = a_runner(a_service(Raising(*[KeyboardInterrupt()] * TRIES)), post := Post(a_charge()))

    def work() -> None:
        with runner._signals.watched():
            while not post.sent:
                runner.turn(block_ms=1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [reply.unknown for _, reply, _ in post.sent] == [True]


def test_a_process_that_is_to_stop_begins_nothing_and_hands_back_what_it_holds() -> None:
    def handle(params: Any, context: Context) -> None:
        calls.append(context.saga_id)
        runner._stop.set()
        raise ValueError("once")

    calls: list[str] = []
    post = Post(a_charge(), replace(a_charge(), saga_id="other"))
    runner = a_runner(a_service(handle), post)
    runner._prefetch._command_s = 0.001
    runner.turn(block_ms=1)
    runner._maintenance.turn()
    assert calls == ["saga42"]
    assert sorted(post.handed_back) == [b"1-0", b"2-0"]
    assert post.sent == []


def test_whether_a_command_may_begin_is_looked_up_anew_after_an_outage() -> None:
    class Cut(Post):
        cuts = 1

        def passes_over(self, error: redis.RedisError) -> bool:
            return False

        def count(self, delivery: Delivery, what: Count, by: int = 1) -> int:
            if self.cuts:
                self.cuts -= 1
                raise redis.ConnectionError("cut")
            return service_rules.MAX_TAKEOVERS

    handler = Raising()
    runner = a_runner(a_service(handler), post := Cut(a_charge(), again=True, taken_over=True))
    with pytest.raises(redis.ConnectionError):
        runner.turn(block_ms=1)
    runner.turn(block_ms=1)  # in another thread: this one would read it again
    assert handler.calls == 0
    assert [reply.unknown for _, reply, _ in post.sent] == [True]


@pytest.mark.parametrize("outcome", ["done", Reject("no"), math.nan])
def test_a_process_that_is_to_stop_still_answers_what_runs(outcome: object) -> None:
    def handle(params: Any, context: Context) -> object:
        runner._stop.set()
        if isinstance(outcome, Reject):
            raise outcome
        return outcome

    post = Post(a_charge())
    runner = a_runner(a_service(handle), post)
    runner.turn(block_ms=1)
    assert len(post.sent) == 1


@pytest.mark.parametrize(
    "error",
    [redis.ConnectionError("gone"), redis.TimeoutError("slow"), redis.ResponseError("MISCONF no disk")],
)
def test_a_handler_that_cannot_reach_its_data_is_called_until_it_can(
    error: redis.RedisError, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Raising(*[error] * (TRIES + 1))
    assert reply_of(handler).type == "Charge_ok"
    assert handler.calls == TRIES + 2
    # That is told once, not at each try.
    assert caplog.text.count("cannot reach its data") == 1


@pytest.mark.parametrize("error", [redis.ResponseError("WRONGTYPE it is a list"), redis.AuthenticationError("no")])
def test_an_error_of_the_broker_that_is_no_outage_counts_as_any_other(error: redis.RedisError) -> None:
    assert reply_of(Raising(*[error] * TRIES)).unknown


@pytest.mark.parametrize("result", [math.nan, {1, 2}, object(), "x" * (MAX_PAYLOAD_BYTES + 1)])
def test_a_handler_whose_result_is_no_json_is_not_called_again(
    result: object, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def handle(params: Any, context: Context) -> object:
        calls.append(params)
        return result

    reply = reply_of(handle)
    assert (reply.type, reply.unknown, len(calls)) == ("Charge_failed", True, 1)
    assert orjson.loads(reply.error or b"").startswith("the result of Charge is unusable: ")
    assert "may have been done or not" in caplog.text


def test_a_rejection_is_final() -> None:
    handler = Raising(Reject("no"))
    reply = reply_of(handler)
    assert (reply.type, reply.error, reply.unknown, handler.calls) == ("Charge_failed", b'"no"', False, 1)


@pytest.mark.parametrize(("attempt", "unknown"), [(1, False), (3, True)])
def test_a_command_that_the_service_does_not_have_fails(attempt: int, unknown: bool) -> None:
    """A process of another release may have done an earlier attempt."""
    reply = reply_of(Raising(), replace(a_charge(compensating=True), attempt=attempt))
    assert (reply.type, reply.unknown) == ("Refund_failed", unknown)
    assert orjson.loads(reply.error or b"") == "unknown_command: service payment has no compensation Refund"


def test_what_a_handler_raises_is_logged_with_its_traceback_and_cannot_act_on_a_terminal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reply_of(Raising(*[ValueError("\x1b[2J\u202e")] * TRIES))
    lines = "\n".join(TextLines().format(record) for record in caplog.records).splitlines()
    assert "Charge of saga saga42, step 2, attempt 3, raised ValueError" in lines[0]
    assert sum(line.endswith(": Traceback (most recent call last):") for line in lines) == 1
    assert all(line.isprintable() for line in lines)


def test_an_error_whose_text_has_a_lone_surrogate_does_not_end_the_service() -> None:
    # Like the name of a file that is not UTF-8.
    reply = reply_of(Raising(*[FileNotFoundError("caf\udce9.txt")] * TRIES))
    assert reply.unknown


# --- commands that come too late


def test_a_command_that_nobody_waits_for_any_more_is_not_begun() -> None:
    handler = Raising()
    late = a_charge(not_after_ms=NOW_MS - 60_000)
    [(_, first, first_kind)] = handled(handler, late)
    [(_, second, second_kind)] = handled(handler, late, again=True)
    assert handler.calls == 0
    for reply in (first, second):
        assert (reply.type, reply.unknown, reply.attempt) == ("Charge_failed", True, 3)
        assert "too late, and was not begun" in (reply.error or b"").decode()
    # The outcome is in doubt only if some process may have begun with the command.
    assert (first_kind, second_kind) == ("final", "unknown")


def test_a_command_that_is_still_waited_for_is_begun() -> None:
    handler = Raising()
    assert reply_of(handler, a_charge(not_after_ms=NOW_MS + 60_000)).type == "Charge_ok"
    assert reply_of(handler, a_charge(not_after_ms=None)).type == "Charge_ok"
    assert handler.calls == 2


def test_a_command_that_was_begun_and_rests_is_not_begun_again_too_late() -> None:
    handler = Raising(redis.ConnectionError("gone"), redis.ConnectionError("gone"))
    [(_, reply, kind)] = handled(handler, a_charge(not_after_ms=NOW_MS + 20))
    assert handler.calls == 1
    assert (reply.unknown, kind) == (True, "unknown")


# --- commands whose step has failed, or was undone meanwhile


class Undoing(Raising):
    """A handler that also keeps its arguments."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__(*errors)
        self.told: list[tuple[Any, Context]] = []

    def __call__(self, params: Any, context: Context) -> str:
        self.told.append((params, context))
        return super().__call__(params, context)


def overruled(handler: Handler, undo: Handler | None = None) -> list[tuple[bytes, Reply, str]]:
    """The answer, in the end, to a command that was overruled after its handler had run."""
    return handled(handler, a_charge(), undo=undo, overrules=(1,))


REFUSED = [(b"1-0", service_rules.refusal(a_charge()), "final")]


def test_what_must_not_have_been_done_is_undone_and_then_refused_for_good() -> None:
    undo = Undoing()
    assert overruled(Raising(), undo) == REFUSED
    ((params, context),) = undo.told
    assert params == {"n": 2**64 - 1}
    # A key of its own: under the usual key the step's compensation has run, and has found nothing to undo.
    assert (context.key, context.transaction_key) == ("saga42/2/compensation/1-0", "saga42/2/transaction")
    assert context.result == "done"


def test_what_may_have_been_done_is_undone_without_a_result() -> None:
    undo = Undoing()
    assert overruled(Raising(*[ValueError("after the effect")] * TRIES), undo) == REFUSED
    assert [context.result for _, context in undo.told] == [None]


def test_what_needs_no_undoing_is_refused_at_once() -> None:
    handler = Raising()
    assert overruled(handler) == REFUSED
    assert handler.calls == 1


@pytest.mark.parametrize("error", [ValueError("raised"), redis.ConnectionError("gone")])
def test_an_undo_that_raises_is_tried_again(error: Exception) -> None:
    undo = Undoing(error, error)
    assert overruled(Raising(), undo) == REFUSED
    assert undo.calls == 3


@pytest.mark.parametrize("error", [ValueError("always"), Reject("no")])
def test_a_command_whose_undo_does_not_succeed_is_not_answered(error: Exception) -> None:
    assert overruled(Raising(), Undoing(*[error] * TRIES)) == []


def test_the_command_line_grants_the_grace_that_the_runner_does() -> None:
    [grace] = [option.default for option in cli.commands["service"].params if option.name == "grace"]
    assert grace == GRACE_S


# --- a batch of commands


def answers(handler: Handler, *commands: Command) -> list[tuple[int | None, str]]:
    """The attempts that are answered, and the kind of each answer, in the order of the commands."""
    return [(reply.attempt, kind) for _, reply, kind in sorted(handled(handler, *commands), key=lambda one: one[0])]


def attempts(*not_after_ms: int | None, retried: bool = False) -> list[Command]:
    """Attempts of one command, starting with the first."""
    return [
        replace(a_charge(not_after_ms=ms), attempt=number, retried=retried) for number, ms in enumerate(not_after_ms, 1)
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
