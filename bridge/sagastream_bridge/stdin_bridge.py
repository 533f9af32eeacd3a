"""The stdin bridge: lines of the stdin protocol in, streams out, and back again.

Three kinds of threads: the main one reads lines and appends what they ask for; the follower reads the events stream
and answers; one a served service writes its commands out.
"""

import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import redis

from sagastream.broker import Broker, Outage
from sagastream.client import append_begins, last_event, read_events
from sagastream.console import say
from sagastream.decision import begun_with, decide
from sagastream.errors import CorruptSaga, MalformedMessage
from sagastream.messages import Begin, Code, decode, is_id, parse_begin
from sagastream.saga import SagaState, protocol_view
from sagastream.service import load_service
from sagastream.store import Store
from sagastream.streams import Entry
from sagastream_bridge.lines import ORCHESTRATOR, BadLine, Caller, Line, LineWriter, parse, read_lines
from sagastream_bridge.served import ServedService
from sagastream_bridge.stack import SAMPLES, Stack
from sagastream_bridge.watch import Watch, Watches

#: How long the follower waits for events before it looks at the states themselves, in milliseconds.
_LOOK_MS: Final = 500


class StdinBridge:
    """One run of the bridge."""

    def __init__(
        self,
        broker: Broker,
        *,
        outcomes: bool = False,
        trace: bool = False,
        serve: Sequence[str] = (),
        drain_timeout_s: float = 4.0,
    ) -> None:
        """
        Args:
            outcomes: tell the end of every saga to who began it.
            trace: write out every command and reply of the sagas that were begun here.
            serve: services that are played by the lines.
            drain_timeout_s: how long to wait at the end of input for what was begun here.
        """
        self._broker = broker
        self._outcomes = outcomes
        self._trace = trace
        self._drain_timeout_s = drain_timeout_s
        self._stop = threading.Event()
        self._outage = Outage(broker, "sagastream bridge", self._stop)
        self._out = LineWriter()
        self._store = Store(broker.client)
        self._watches = Watches()
        self._served = {name: ServedService(broker, name, self._out, self._outage, self._stop) for name in serve}
        self._stack: Stack | None = None
        self._line_number = 0
        self._bad_lines = 0
        self._fault: Exception | None = None
        self._run_id = uuid.uuid4().hex

    def run(self, fd: int) -> int:
        """Bridge until the lines of `fd` end; the exit code."""
        threads: list[threading.Thread] = []
        try:
            self._outage.patiently(self._broker.check)
            self._outage.patiently(self._publish_served)
            self._after = self._outage.patiently(lambda: last_event(self._broker.client))
            self._tend()
            for target in (self._follow, *(served.run for served in self._served.values())):
                threads.append(threading.Thread(target=self._guard, args=[target], daemon=True))
                threads[-1].start()
            for lines in read_lines(fd):
                self._take(lines)
                if self._out.gone:
                    say("sagastream bridge", "nobody reads the output any more")
                    return 1
            self._drain()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            if self._stack is not None:
                self._stack.stop()
            if self._fault is not None:  # in place of the SystemExit that it led to
                raise self._fault
        return 1 if self._bad_lines else 0

    def _take(self, lines: Sequence[bytes]) -> None:
        """Do what these lines ask for, in order; begins next to each other go to the broker together."""
        begins: list[Begin] = []
        for text in lines:
            self._line_number += 1
            if not text.strip():
                continue
            try:
                line = parse(text)
                if line.dest == ORCHESTRATOR and line.type == "saga_begin":
                    begins.append(self._prepare_begin(line))
                    continue
                self._append(begins)
                self._answer(line)
            except BadLine as error:
                self._complain(error.caller, Code.MALFORMED, str(error))
            except MalformedMessage as error:
                self._complain(line.caller, Code.MALFORMED, str(error))
        self._append(begins)

    def _prepare_begin(self, line: Line) -> Begin:
        request_id = f"{self._run_id}-{self._line_number}"
        begin = parse_begin(line.body, request_id=request_id, trace=self._trace)
        self._watches.add(Watch(caller=line.caller, saga_id=begin.saga_id, begin=begin))
        return begin

    def _append(self, begins: list[Begin]) -> None:
        if begins:
            self._outage.patiently(lambda: append_begins(self._broker.client, begins))
            begins.clear()

    def _answer(self, line: Line) -> None:
        if line.dest != ORCHESTRATOR:
            self._complain(line.caller, Code.NOT_SUPPORTED, f"dest must be {ORCHESTRATOR}, not {line.dest[:128]!a}")
        elif line.caller.src in self._served:
            self._served[line.caller.src].reply(line.body)
            self._outage.patiently(self._served[line.caller.src].send)
        elif line.type == "init":
            self._out.answer(line.caller, "init_ok")
        elif line.type == "saga_status":
            self._status(line)
        elif line.type == "saga_await":
            self._await(line)
        else:
            text = f"the orchestrator knows no {line.type[:128]!a}"
            self._complain(line.caller, Code.NOT_SUPPORTED, text)

    def _status(self, line: Line) -> None:
        state = self._look(line)
        if state is not None:
            self._out.answer(line.caller, "saga_status_ok", {"state": protocol_view(state)})

    def _await(self, line: Line) -> None:
        if self._look(line) is None:
            return
        saga_id = line.body["saga_id"]
        self._watches.add(Watch(caller=line.caller, saga_id=saga_id))
        # Only now: had it ended in between, nobody would tell.
        state = self._outage.patiently(lambda: self._load(saga_id))
        if state is not None and state.ended:
            self._ended(state)

    def _look(self, line: Line) -> SagaState | None:
        """The saga that a line asks about; None: the caller was told that there is none."""
        saga_id = line.body.get("saga_id")
        if not is_id(saga_id):
            raise MalformedMessage("saga_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
        assert isinstance(saga_id, str)
        state = self._outage.patiently(lambda: self._load(saga_id))
        if state is None and (begin := self._watches.begin_of(saga_id)) is not None:
            # It was accepted, and a worker has yet to read of it.
            state = decide(None, begin, int(time.time() * 1000), {}).state
        if state is None:
            self._complain(line.caller, Code.NO_SUCH_SAGA, f"there is no saga {saga_id}")
        return state

    def _load(self, saga_id: str) -> SagaState | None:
        state = self._store.load([saga_id])[0][saga_id]
        if isinstance(state, CorruptSaga):
            raise MalformedMessage(str(state))
        return state

    def _complain(self, caller: Caller | None, code: Code, text: str) -> None:
        self._bad_lines += 1
        if caller is not None and caller.msg_id is not None:
            self._out.error(caller, code, text)
        else:
            say("sagastream bridge", f"line {self._line_number}: {text}")

    def _follow(self) -> None:
        """Read events and answer with them, until the bridge stops."""
        while not self._stop.is_set():
            try:
                events = read_events(self._broker.client, self._after, _LOOK_MS)
                if events:
                    self._tell(events)
                    self._after = events[-1].id
                else:
                    self._check_states()
                self._outage.over()
            except redis.RedisError as error:
                self._outage.wait(error)
            self._tend()

    def _tell(self, events: Sequence[Entry]) -> None:
        """Answer with these events, in order."""
        outcomes = [event.fields.get(b"saga_id", b"") for event in events if event.fields.get(b"kind") == b"outcome"]
        ended = {saga_id.decode(errors="replace") for saga_id in outcomes}
        states = self._store.load([saga_id for saga_id in ended if self._watches.has(saga_id)])[0]
        for event in events:
            try:
                self._tell_one(event.fields, states)
            except (KeyError, TypeError, MalformedMessage) as error:
                say("sagastream bridge", f"the event {event.id.decode()} makes no sense: {error!r}")

    def _tell_one(self, fields: dict[bytes, bytes], states: Mapping[str, SagaState | CorruptSaga | None]) -> None:
        kind, saga_id = fields.get(b"kind"), fields.get(b"saga_id", b"").decode(errors="replace")
        if kind == b"refused":
            error = decode(fields[b"body"])
            watch = self._watches.take_request(fields[b"request_id"].decode(errors="replace"))
            if watch is not None:
                self._refused(watch, error["code"], error["text"])
        elif kind == b"outcome" and isinstance(state := states.get(saga_id), SagaState):
            self._ended(state)
        elif kind in (b"command", b"reply") and self._trace and self._watches.begin_of(saga_id):
            ends = (ORCHESTRATOR, fields[b"service"].decode(errors="replace"))
            src, dest = ends if kind == b"command" else ends[::-1]
            self._out.message(src, dest, decode(fields[b"body"]))

    def _check_states(self) -> None:
        """Look at the sagas that are watched: the hashes are the truth, an event may have been missed."""
        watched = self._watches.saga_ids()
        if not watched:
            return
        for state in self._store.load(watched)[0].values():
            if isinstance(state, SagaState) and state.ended:
                self._ended(state)

    def _ended(self, state: SagaState) -> None:
        """Answer everybody who waited for the end of this saga."""
        for watch in self._watches.take(state.saga_id):
            if watch.begin is not None and not begun_with(state, watch.begin):
                text = f"another saga has the id {state.saga_id}: it began with other steps"
                self._refused(watch, Code.PRECONDITION_FAILED, text)
            elif watch.begin is None:
                self._out.answer(watch.caller, "saga_await_ok", {"state": protocol_view(state)})
            elif self._outcomes:
                outcome: dict[str, Any] = {"saga_id": state.saga_id, "status": str(state.status)}
                if state.reason is not None:
                    outcome["reason"] = state.reason
                self._out.answer(watch.caller, f"saga_{state.status.lower()}", outcome)

    def _refused(self, watch: Watch, code: int, text: str) -> None:
        self._bad_lines += 1
        if watch.caller.msg_id is not None:
            self._out.error(watch.caller, code, text)
        else:
            say("sagastream bridge", f"saga_begin of {watch.saga_id} was refused: {text}")

    def _publish_served(self) -> None:
        """A served service that the samples know keeps the compensations that it publishes."""
        for name in self._served:
            if name in SAMPLES:
                load_service(SAMPLES[name]).publish(self._broker.client)

    def _tend(self) -> None:
        """Whoever owns the home's server runs its worker and services too; that may come later, when an owner
        has gone."""
        self._outage.restore()
        if self._broker.embedded is None or not self._broker.embedded.owned:
            return
        if self._stack is None:
            services = [where for name, where in SAMPLES.items() if name not in self._served]
            self._stack = Stack(self._broker, workers=1, services=services, log_dir=self._broker.embedded.home)
        self._stack.tend()

    def _drain(self) -> None:
        """Wait for the end of what was begun here, for as long as is allowed."""
        left = self._watches.wait_until_empty(self._drain_timeout_s)
        if left:
            names = ", ".join(left[:5]) + (", …" if len(left) > 5 else "")
            say(
                "sagastream bridge",
                f"{len(left)} sagas have not ended within {self._drain_timeout_s:g} s: {names}; "
                "they are safe in the store and go on while a worker runs",
            )

    def _guard(self, target: Callable[[], None]) -> None:
        """Run a thread's work; what it cannot go on from ends the whole bridge, not just the thread."""
        try:
            target()
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._fault = error
            signal.raise_signal(signal.SIGTERM)
