"""The test kit is true: the same sagas with the same faults, run in the kit and on a real server with a real worker and
real services, end in the same way after the same events.

The faults on the real side are made here, without any code of the kit.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pytest
from msgspec import structs

from sagastream import Context, Reject, Service
from sagastream.client.blocking import SagaClient
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Command, ok, reply_to
from sagastream.core.journal import notes
from sagastream.core.messages import Verb
from sagastream.core.parsing import read_command
from sagastream.core.phases import AWAITS
from sagastream.core.saga import SagaState
from sagastream.core.strict_json import encode
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.context import Handler
from sagastream.service.handlers import Interrupted
from sagastream.service.runner import ServiceRunner
from sagastream.store import published
from sagastream.testing import Sagas
from support.servers import Server
from support.stores import KEYS, ONLY
from support.streams import append_requests
from support.waiting import takes_less_than, until

pytestmark = pytest.mark.both_in_soak

#: How long a step may take that is to time out, in milliseconds; long enough for the steps that are not.
TIMEOUT_MS = 2_000
#: A deadline that passes before that; long enough for the steps before.
DEADLINE_MS = 1_000
#: A lease that ends before a step times out; long enough for a process that lives.
SHORT_MS = 1_500
LONG_MS = 30_000
#: How long a thread may take to notice that it is to stop, in milliseconds.
_BLOCK_MS = 20

Step = dict[str, Any]


def step(transaction: str, **more: Any) -> Step:
    return {"transaction": transaction, "service": "work", "params": {"what": transaction}} | more


RESERVE, CHARGE, SHIP = step("Reserve"), step("Charge"), step("Ship")


@dataclass(frozen=True)
class Trouble:
    """A fault: a method of the kit's CommandFaults, and its arguments."""

    command: str
    method: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Signal:
    name: str
    payload: Any = None
    decline: str | None = None


@dataclass(frozen=True)
class Scenario:
    steps: tuple[Step, ...]
    troubles: tuple[Trouble, ...] = ()
    verbs: tuple[Verb, ...] = ()  # the operator's requests, one each time that the saga is parked
    deadline_ms: int | None = None
    deadline: Literal["soft", "hard"] = "soft"
    lease_ms: int = LONG_MS
    input: dict[str, Any] | None = None
    signals: tuple[Signal, ...] = ()  # each comes when it is waited for


def scenario(*steps: Step, trouble: tuple[Any, ...] | None = None, **more: Any) -> Scenario:
    troubles = (Trouble(*trouble),) if trouble is not None else more.pop("troubles", ())
    return Scenario(steps=steps, troubles=troubles, **more)


def briefly(one: Step, **more: Any) -> Step:
    return one | {"timeout_ms": TIMEOUT_MS} | more


NO_CARRIER = Trouble("Ship", "rejects", {"error": "no carrier"})
NO_REFUND = Trouble("Refund", "rejects", {"error": "closed", "times": 1})
OF_USER = {"params": {"what": {"$ref": "/input/what"}}}
AT_ONCE = (RESERVE | {"id": "reserve", "after": []} | OF_USER, CHARGE | {"id": "charge", "after": []} | OF_USER)
BOTH = SHIP | {
    "after": ["reserve", "charge"],
    "params": {"what": {"$concat": [{"$ref": "/steps/reserve/result/done"}, {"$ref": "/steps/charge/result/done"}]}},
}
TOLD_WHY = {"compensation_params": {"why": {"$ref": "/failure/reason"}, "mine": {"$ref": "/steps/reserve/result"}}}
WAIT = {"id": "agreed", "wait": "agree", "timeout_ms": LONG_MS}
AGREED = CHARGE | {"params": {"what": {"$ref": "/steps/agreed/result/by"}}}
ONE_UNDO = CHARGE | {"compensation_attempts": 1}

SCENARIOS = {
    "all goes well": scenario(RESERVE, CHARGE, SHIP),
    "the last step is rejected": scenario(RESERVE, CHARGE, SHIP, troubles=(NO_CARRIER,)),
    "a rejection is tried again": scenario(
        RESERVE, CHARGE | {"retry_failed": True, "backoff_ms": 50},
        trouble=("Charge", "rejects", {"error": {"n": 1}, "times": 2}),
    ),
    "a handler raises for good": scenario(
        RESERVE, CHARGE | {"attempts": 2, "backoff_ms": 50},
        trouble=("Charge", "raises", {"error": ValueError("broken")}),
    ),
    "a handler raises after its effect, then does not": scenario(
        RESERVE,
        CHARGE | {"attempts": 2, "backoff_ms": 50},
        trouble=("Charge", "raises", {"error": ValueError("broken"), "after_effect": True, "times": 1}),
    ),
    "a handler raises, and is rejected when it is tried again": scenario(
        RESERVE,
        CHARGE | {"backoff_ms": 50},
        troubles=(
            Trouble("Charge", "raises", {"error": ValueError("broken"), "times": 1}),
            Trouble("Charge", "rejects", {"error": "no"}),
        ),
    ),
    "a command is lost once": scenario(
        RESERVE, briefly(CHARGE, backoff_ms=50), SHIP, trouble=("Charge", "times_out", {"times": 1})
    ),
    "a command is done, and its answer lost": scenario(
        briefly(RESERVE, backoff_ms=50), CHARGE, trouble=("Reserve", "times_out", {"times": 1, "after_effect": True})
    ),
    "a command is lost each time": scenario(
        RESERVE, briefly(CHARGE, attempts=2, backoff_ms=50), trouble=("Charge", "times_out", {})
    ),
    "an answer comes before the next attempt": scenario(
        RESERVE, briefly(CHARGE), SHIP, trouble=("Charge", "answers_late", {"times": 1})
    ),
    "an answer comes after the undo": scenario(
        RESERVE, briefly(CHARGE, attempts=1), SHIP, trouble=("Charge", "answers_late", {})
    ),
    "an effect comes after the undo": scenario(
        RESERVE, briefly(CHARGE, attempts=1), SHIP, trouble=("Charge", "is_done_late", {})
    ),
    "an answer comes twice": scenario(RESERVE, CHARGE, SHIP, trouble=("Charge", "answers_twice", {})),
    "two processes have a command": scenario(RESERVE, CHARGE, SHIP, trouble=("Charge", "is_delivered_twice", {})),
    "a process dies": scenario(RESERVE, CHARGE, trouble=("Charge", "crashes", {}), lease_ms=SHORT_MS),
    "a process dies after the effect": scenario(
        RESERVE, CHARGE, SHIP,
        troubles=(NO_CARRIER, Trouble("Charge", "crashes", {"after_effect": True})),
        lease_ms=SHORT_MS,
    ),
    "a process dies, undoing": scenario(
        RESERVE, CHARGE, SHIP,
        troubles=(NO_CARRIER, Trouble("Refund", "crashes", {"after_effect": True})),
        lease_ms=SHORT_MS,
    ),
    "an undo fails, and is retried": scenario(
        RESERVE, ONE_UNDO, SHIP, troubles=(NO_CARRIER, NO_REFUND), verbs=(Verb.RETRY,)
    ),
    "an undo fails, and is skipped": scenario(
        RESERVE, ONE_UNDO, SHIP, troubles=(NO_CARRIER, NO_REFUND), verbs=(Verb.SKIP,)
    ),
    "an undo fails, and the saga is abandoned": scenario(
        RESERVE, ONE_UNDO, SHIP, troubles=(NO_CARRIER, NO_REFUND), verbs=(Verb.ABANDON,)
    ),
    "a retriable step parks, and is retried": scenario(
        RESERVE, CHARGE | {"kind": "pivot"}, SHIP | {"kind": "retriable", "attempts": 1},
        trouble=("Ship", "rejects", {"error": "no carrier", "times": 1}),
        verbs=(Verb.RETRY,),
    ),
    "a pivot that nothing undoes is lost, and a person says it was done": scenario(
        RESERVE, briefly(CHARGE, kind="pivot", attempts=1, compensation=None),
        trouble=("Charge", "times_out", {}),
        verbs=(Verb.SKIP,),
    ),
    "the deadline passes while a step is out": scenario(
        RESERVE, briefly(CHARGE), SHIP, trouble=("Charge", "times_out", {}), deadline_ms=DEADLINE_MS
    ),
    "a hard deadline passes while a step is out": scenario(
        RESERVE, CHARGE, SHIP, trouble=("Charge", "times_out", {}), deadline_ms=DEADLINE_MS, deadline="hard"
    ),
    "a hard deadline passes while a pivot is out that nothing undoes, and a person says it was not done": scenario(
        RESERVE, CHARGE | {"kind": "pivot", "compensation": None}, trouble=("Charge", "times_out", {}),
        deadline_ms=DEADLINE_MS, deadline="hard", verbs=(Verb.CANCEL,),
    ),
    "two steps at once, and one after both": scenario(*AT_ONCE, BOTH, input={"what": "x"}),
    "the one after both is rejected, and both are undone at once": scenario(
        AT_ONCE[0] | TOLD_WHY, AT_ONCE[1], BOTH, troubles=(NO_CARRIER,), input={"what": "x"}
    ),
    "one of two at once is rejected, and the other is undone": scenario(
        *AT_ONCE, BOTH, trouble=("Charge", "rejects", {"error": "no"}), input={"what": "x"}
    ),
    "a step is bypassed": scenario(
        RESERVE, CHARGE | {"when": {"eq": [{"$ref": "/input/paid"}, False]}}, SHIP, input={"paid": True}
    ),
    "what a step asks for is not there": scenario(
        RESERVE, CHARGE | {"params": {"what": {"$ref": "/input/absent"}}}, input={}
    ),
    "a signal is waited for": scenario(RESERVE, WAIT, AGREED, input={}, signals=(Signal("agree", {"by": "boss"}),)),
    "a signal is declined": scenario(RESERVE, WAIT, AGREED, input={}, signals=(Signal("agree", decline="no"),)),
    "no signal comes in time": scenario(RESERVE, WAIT | {"timeout_ms": 300}, AGREED, input={}),
    "a pause": scenario(RESERVE, {"wait_ms": 200}, SHIP, input={}),
    "a failed step is sent again by a signal": scenario(
        RESERVE, CHARGE | {"retry_on": "topped_up", "retry_within_ms": LONG_MS},
        trouble=("Charge", "rejects", {"error": "no money", "times": 1}),
        input={}, signals=(Signal("topped_up"),),
    ),
    "two steps at once are parked, and one is retried after the other": scenario(
        RESERVE | {"kind": "pivot"},
        CHARGE | {"kind": "retriable", "attempts": 1, "after": [1]},
        SHIP | {"kind": "retriable", "attempts": 1, "after": [1]},
        troubles=(
            Trouble("Charge", "rejects", {"error": "no", "times": 1}),
            Trouble("Ship", "rejects", {"error": "no", "times": 1}),
        ),
        verbs=(Verb.RETRY, Verb.RETRY), input={},
    ),
}  # fmt: skip


class Shop:
    """The service `work`, which keeps its books by key."""

    def __init__(
        self, lease_ms: int, wrapped: Callable[[str, Handler], Handler] = lambda name, handler: handler
    ) -> None:
        self.service = Service("work", lease_ms=lease_ms)
        self.called: list[str] = []
        self._done: dict[str, str] = {}
        self._void: set[str] = set()
        for name, undo in (("Reserve", "Release"), ("Charge", "Refund"), ("Ship", "Recall")):
            self.service.command(name, compensation=undo)(wrapped(name, self._transaction(name)))
            self.service.compensation(undo)(wrapped(undo, self._compensation(undo)))

    @property
    def effects(self) -> list[str]:
        return sorted(self._done)

    def _transaction(self, name: str) -> Handler:
        def do(params: Any, context: Context) -> Any:
            self.called.append(name)
            if context.key in self._void:
                raise Reject("cancelled")
            self._done[context.key] = params["what"]
            return {"done": params["what"]}

        return do

    def _compensation(self, name: str) -> Handler:
        def undo(params: Any, context: Context) -> None:
            self.called.append(name)
            self._void.add(context.transaction_key)
            self._done.pop(context.transaction_key, None)

        return undo


class Killed(Interrupted):
    """The end of a process, at any point."""


class Reality:
    """A worker and processes of a service, as threads, on a real server. Each fails as a scenario says."""

    def __init__(self, server: Server, wanted: Scenario) -> None:
        self._broker = server.broker()
        self._redis = self._broker.client
        self.client = SagaClient(self._broker)
        self._wanted = wanted
        self._struck: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.shop = Shop(wanted.lease_ms, self._wrapped)
        published.publish(self._redis, KEYS, "work", self.shop.service.publishes())
        self._start(self._worker)
        for _ in range(2):
            self._start(self._process)

    def run(self) -> SagaState:
        body: dict[str, Any] = {"saga_id": "s", "steps": list(self._wanted.steps)}
        if self._wanted.deadline_ms is not None:
            body |= {"deadline_ms": self._wanted.deadline_ms, "deadline": self._wanted.deadline}
        if self._wanted.input is not None:
            body |= {"format": 2, "input": self._wanted.input}
        append_requests(self._redis, [parse_begin(body, request_id="r", echo=True)])
        for signal in self._wanted.signals:
            until(self._awaits_signal, what="a step waits for a signal")
            self.client.signal("s", signal.name, signal.payload, 60, decline=signal.decline)
        for number, verb in enumerate(self._wanted.verbs):
            state = until(partial(self._parked, len(self._wanted.verbs) - number), what="it is parked")
            getattr(self.client, verb)("s", "as the test has it", 60, parked_at=state.parked_at)
        return until(self._settled, what="the saga ends, and no command is left")

    def _awaits_signal(self) -> bool:
        state = self.client.get("s")
        return state is not None and any(one.phase in AWAITS for one in state.steps)

    def _parked(self, at_least: int) -> SagaState | None:
        """The saga once it is parked at so many steps, if it is a graph; once it is parked, if it is not."""
        state = self.client.wait("s", timeout_s=60)
        assert state.parked
        return state if self._wanted.input is None or len(state.parked_steps) >= at_least else None

    def sent(self) -> list[str]:
        """The commands that the worker has sent, in order."""
        events: Any = self._redis.xrange(ONLY.events)
        return [json.loads(fields[b"body"])["type"] for _, fields in events if fields[b"kind"] == b"command"]

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)

    def _settled(self) -> SagaState | None:
        """The saga once it has ended and no living process holds a command."""
        state = self.client.wait("s", timeout_s=60)
        lost = sum(
            self._struck[number] for number, one in enumerate(self._wanted.troubles) if one.method == "times_out"
        )
        quiet = self._redis.xlen(ONLY.commands("work")) == lost and self._redis.xlen(ONLY.replies("work")) == 0
        return self.client.get("s") if quiet and (state.ended or state.parked) else None

    def _start(self, run: Callable[[], object]) -> None:
        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def _worker(self) -> None:
        worker = Orchestrator(self._broker, self._stop)
        while not self._stop.is_set():
            worker.turn(_BLOCK_MS)

    def _process(self) -> None:
        runner = ServiceRunner(self._broker, self.shop.service, self._stop)
        try:
            while not self._stop.is_set():
                runner.turn(_BLOCK_MS)
        except Killed:
            self._start(self._process)  # as a supervisor of processes does

    def _wrapped(self, name: str, handler: Handler) -> Handler:
        def called(params: Any, context: Context) -> Any:
            trouble = self._trouble(name)
            return handler(params, context) if trouble is None else self._go_wrong(trouble, handler, params, context)

        return called

    def _trouble(self, name: str) -> Trouble | None:
        with self._lock:
            for number, trouble in enumerate(self._wanted.troubles):
                usual = 1 if trouble.method in ("crashes", "is_delivered_twice") else None
                times = trouble.arguments.get("times", usual)
                calls = 3 if trouble.method == "raises" else 1  # a process tries it three times in a row
                if trouble.command == name and (times is None or self._struck[number] < times * calls):
                    self._struck[number] += 1
                    return trouble
        return None

    def _go_wrong(self, trouble: Trouble, handler: Handler, params: Any, context: Context) -> Any:
        arguments = trouble.arguments
        if trouble.method == "rejects":
            raise Reject(arguments["error"])
        if trouble.method in ("raises", "times_out", "crashes"):
            if arguments.get("after_effect"):
                handler(params, context)
            raise arguments["error"] if trouble.method == "raises" else Killed
        if trouble.method == "is_done_late":
            until(self._given_up, what="nobody waits for it any more")
            return handler(params, context)
        result = handler(params, context)
        entry, command = self._entry(trouble.command)
        if trouble.method == "is_delivered_twice":
            self._redis.xadd(ONLY.commands("work"), entry)
            until(lambda: self.shop.called.count(trouble.command) == 2, what="the other process has called it")
        elif trouble.method == "answers_twice":
            reply = reply_to(command, ok(command.type), result=encode(result))
            self._redis.xadd(ONLY.replies("work"), dict(reply.fields().items()))
        else:
            assert trouble.method == "answers_late"
            until(self._given_up, what="nobody waits for it any more")
        return result

    def _given_up(self) -> bool:
        state = self.client.get("s")
        assert state is not None
        return state.send_again_ms is not None or state.ended

    def _entry(self, kind: str) -> tuple[dict[Any, Any], Command]:
        """The command that a handler is working on, and its entry."""
        entries: Any = self._redis.xrange(ONLY.commands("work"))
        for _, fields in entries:
            command = read_command("work", fields, 0)
            if isinstance(command, Command) and command.type == kind:
                return fields, command
        raise AssertionError(f"{kind} is in no stream")


def story(state: SagaState) -> dict[str, Any]:
    """All of a saga except times, the names of those who asked, and the processes of services: the kit has none."""
    told = structs.asdict(state)
    if state.input is not None:  # of steps that are undone at once, either may be the last one
        del told["current_step"]
    told["signals"] = [(signal.name, signal.payload) for signal in state.signals]
    for name in ("begun_ms", "updated_ms", "deadline_ms", "request_id", "echo", "version", "duplicates"):
        del told[name]
    told["interventions"] = [(done.verb, done.reason) for done in state.interventions]
    told["steps"] = [
        {name: value for name, value in structs.asdict(one).items() if not name.endswith(("_ms", "done_by"))}
        for one in state.steps
    ]
    told["journal"] = sorted(
        f"{note.what} {note.step} {note.undo} {note.attempt} {note.how} {bytes(note.error)!r} {note.why}"
        for note in notes(state.journal)
        if note.what not in ("answered", "ignored")  # as with duplicates, chance has a part in them
    )
    told["late"] = [one.late_ms is not None for one in state.steps]
    return told


def in_the_kit(wanted: Scenario) -> tuple[dict[str, Any], list[str], list[str], list[str]]:
    shop = Shop(wanted.lease_ms)
    with Sagas(shop.service) as sagas:
        for trouble in wanted.troubles:
            getattr(sagas.command(trouble.command), trouble.method)(**trouble.arguments)
        for signal in wanted.signals:
            sagas.on_wait(signal.name, signal.payload, decline=signal.decline)
        deadline = None if wanted.deadline_ms is None else wanted.deadline
        saga = sagas.run(wanted.steps, wanted.input, saga_id="s", deadline_ms=wanted.deadline_ms, deadline=deadline)
        for verb in wanted.verbs:
            assert saga.parked
            getattr(saga, verb)("as the test has it", parked_at=saga.parked_at)
        return story(saga.state), saga.commands, shop.called, shop.effects


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_the_kit_shows_is_what_happens_on_a_real_server(server: Server, name: str) -> None:
    wanted = SCENARIOS[name]
    reality = Reality(server, wanted)
    try:
        state = reality.run()
    finally:
        reality.end()
    told, sent, called, effects = in_the_kit(wanted)
    assert (told, sent, effects) == (story(state), reality.sent(), reality.shop.effects)
    if wanted.input is None:
        assert called == reality.shop.called
    else:  # two processes may call the handlers of two steps that were sent at once in either order
        assert sorted(called) == sorted(reality.shop.called)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_kit_needs_no_time_for_it(name: str) -> None:
    with takes_less_than(TIMEOUT_MS / 1000):
        in_the_kit(SCENARIOS[name])
