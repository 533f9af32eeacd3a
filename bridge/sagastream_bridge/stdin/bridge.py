"""The stdin bridge: from lines of the stdin protocol to the streams, and back.

It has three kinds of threads. The main one reads lines and appends requests. The follower reads the events stream and
answers. One thread for each served service writes its commands out.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.outage import Outage
from sagastream.broker.partial import passes_over
from sagastream.client import requests
from sagastream.client.blocking import SagaClient
from sagastream.codecs.setting import codec_of, seals_with
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import SIGNAL, Begin, Code, ToSaga
from sagastream.core.parsing import VERBS, parse_intervene, parse_signal
from sagastream.core.saga import SagaState
from sagastream.errors import DefinitionError, MalformedMessage, NotReplicated, SettingsError, UnreadableSaga
from sagastream.store import heartbeat, layout, sagas
from sagastream.store.keys import StoreKeys
from sagastream.store.lineage import Lineage
from sagastream.telemetry import Observer, guarded, runs
from sagastream_bridge.stdin.defined import names_definition, with_steps
from sagastream_bridge.stdin.follower import LOG, WHO, Asker, Follower
from sagastream_bridge.stdin.lines import (
    ORCHESTRATOR,
    BadLine,
    Caller,
    Line,
    LineWriter,
    Refusal,
    code_of,
    parse,
    read_lines,
    told,
)
from sagastream_bridge.stdin.own_stack import OwnStack
from sagastream_bridge.stdin.questions import Questions
from sagastream_bridge.stdin.served import ServedService
from sagastream_bridge.stdin.unsent import Asked, Unsent

#: How long the threads may take to end, in seconds: longer than any answer of the broker. A thread that is stuck
#: because nobody reads its output ends with the process.
_JOIN_S: Final = 6.0
#: How often to look whether the store has lost writes, in seconds.
_LOOK_EVERY_S: Final = 1.0
#: The member of a saga_begin line that says whether a replica is to have it, too. It is for the bridge alone.
DURABLE: Final = "durable"


class StdinBridge:
    """One run of the bridge."""

    def __init__(
        self,
        broker: Broker,
        *,
        outcomes: bool = False,
        echo: bool = False,
        serve: Sequence[str] = (),
        drain_timeout_s: float = 4.0,
        accept_sealed: bool = False,
        observer: Observer | None = None,
    ) -> None:
        """
        Args:
            outcomes: tell the end of every saga to the sender of its saga_begin.
            echo: write every command and reply of the sagas that were begun here.
            serve: services whose commands are written as lines, and whose replies come as lines.
            accept_sealed: see SagaClient.
            drain_timeout_s: how long to wait at the end of input for the sagas that were begun here.
        """
        self._broker = broker
        self._echo = echo
        self._drain_timeout_s = drain_timeout_s
        self._stop = threading.Event()
        self._wake = os.pipe()
        self._observer = guarded(observer)
        self._outage = Outage(broker, WHO, self._stop, observer=self._observer)
        self._out = LineWriter(self._stop)
        self._codec = codec_of(None)
        self._accept_sealed = accept_sealed
        self._client = SagaClient(broker, codec=self._codec)
        self._follower = Follower(
            broker, self._out, outcomes=outcomes, served=serve, refused=self._refused, codec=self._codec
        )
        self._questions = Questions(broker, self._client, self._follower, self._outage, self._codec)
        self._served = {name: ServedService(broker, name, self._out, self._outage, self._codec) for name in serve}
        self._lineage = Lineage(WHO, area="bridge", observer=self._observer)
        self._look_at = 0.0
        self._own_stack = OwnStack(broker, self._served)
        self._fault: Exception | None = None
        self._line_number = 0
        self._read = self._settled = 0  # lines that were read; lines whose effect the broker has
        self._requests: list[Asked] = []  # of the lines between these two
        self._unsent = Unsent(broker.client, self._tell_durable)
        self._bad_lines = 0
        self._run_id = uuid.uuid4().hex

    def run(self, fd: int) -> int:
        """Bridge until the lines of `fd` end, or `stop` is called. Returns the exit code."""
        with runs("bridge", WHO, self._observer):
            if self._codec is not None:
                LOG.info(seals_with(self._codec))
            return self._run(fd)

    def _run(self, fd: int) -> int:
        threads: list[threading.Thread] = []
        finished = False
        try:
            self._start(threads)
            for lines in read_lines(fd, self._wake[0]):
                self._take(lines)
            self._outage.patiently(lambda: self._unsent.send(self._keys, most=0))
            self._drain()
            finished = True
        except redis.RedisError:
            if not self._stop.is_set():
                raise
            # Stopped while the broker was away.
        finally:
            self._stop.set()
            deadline = time.monotonic() + _JOIN_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            self._own_stack.stop()
        if self._fault is not None:
            raise self._fault
        if self._out.gone:
            LOG.warning("nobody reads the output any more")
        if in_flight := self._read - self._settled + self._unsent.up_to(self._settled):
            LOG.warning(f"stopped with {in_flight} lines in flight; they may not have been done")
        return 0 if finished and not self._bad_lines and not self._out.gone else 1

    def _start(self, threads: list[threading.Thread]) -> None:
        self._keys = self._outage.patiently(lambda: layout.check(self._broker))
        self._outage.patiently(self._follower.start)
        self._outage.patiently(self._tend)
        for target in (self._follow, *(served.run for served in self._served.values())):
            threads.append(threading.Thread(target=self._guard, args=[target], daemon=True))
            threads[-1].start()

    def stop(self) -> None:
        """End the bridge after the lines that it has read. Any thread may call this, and a signal handler, too."""
        self._stop.set()
        os.write(self._wake[1], b"!")

    def _take(self, lines: Sequence[bytes]) -> None:
        """Do what these lines ask for, in their order. Requests next to each other go to the broker together."""
        self._read += len(lines)
        for text in lines:
            self._line_number += 1
            try:
                self._take_line(text)
            except BadLine as error:
                self._settle()
                self._complain(error.caller, error.code, str(error))
        self._settle()

    def _take_line(self, text: bytes) -> None:
        if not text.strip():
            return
        line = parse(text)
        try:
            if line.dest != ORCHESTRATOR:
                text_of_it = f"dest must be {ORCHESTRATOR}, not {line.dest[:128]!a}"
                raise BadLine(text_of_it, line.caller, Code.NOT_SUPPORTED)
            if line.type in ("saga_begin", SIGNAL) or line.type in VERBS:
                self._requests.append(self._prepare(line))
            elif line.caller.src in self._served and line.type.endswith(("_ok", "_failed")):
                self._append()
                served = self._served[line.caller.src]
                served.reply(line.body)
                self._outage.patiently(served.send)
            else:
                self._settle()
                self._answer(line)
        except (MalformedMessage, UnreadableSaga) as error:
            raise BadLine(str(error), line.caller, code_of(error)) from None
        except DefinitionError as error:
            raise BadLine(str(error), line.caller, Code.NO_SUCH_SAGA) from None
        except SettingsError as error:  # a package is not installed that the line needs
            raise BadLine(str(error), line.caller, Code.NOT_SUPPORTED) from None

    def _prepare(self, line: Line) -> Asked:
        """The request that a line makes. Its sender waits for the answer from now on."""
        request_id = f"{self._run_id}-{self._line_number}"
        durable = False
        request: Begin | ToSaga
        if line.type in VERBS:
            request = parse_intervene(line.body, request_id=request_id)
        elif line.type == SIGNAL:
            request = requests.to_send(
                self._codec, parse_signal(line.body, request_id=request_id), accept_sealed=self._accept_sealed
            )
        else:
            body = {name: member for name, member in line.body.items() if name != DURABLE}
            durable = _durable(line)
            if names_definition(body):
                body = self._outage.patiently(lambda: with_steps(self._client, body))
            begin = parse_begin(body, request_id=request_id, echo=self._echo)
            request = requests.sealed(self._codec, begin, accept_sealed=self._accept_sealed)
        self._follower.add(Asker(caller=line.caller, saga_id=request.saga_id, request=request))
        return Asked(request, self._line_number, line.caller if durable else None)

    def _append(self) -> None:
        if not self._requests:
            return
        asked, self._requests = self._requests, []

        def send() -> None:
            these, asked[:] = asked.copy(), []
            self._unsent.send(self._keys, these)

        self._outage.patiently(send)

    def _tell_durable(self, caller: Caller, saga_id: str, missing: NotReplicated | None) -> None:
        """Answer a saga_begin that a replica was to have."""
        if missing is not None:
            self._complain(caller, Code.UNAVAILABLE, str(missing))
        elif caller.msg_id is not None:
            self._out.answer(caller, "saga_begin_ok", {"saga_id": saga_id})

    def _settle(self) -> None:
        """Make sure that the broker has the effect of every line up to this one."""
        self._append()
        self._settled = self._line_number

    def _answer(self, line: Line) -> None:
        if line.type == "init":
            self._out.answer(line.caller, "init_ok")
        elif line.type == "saga_status":
            self._out.answer(line.caller, "saga_status_ok", told(self._questions.look(line, self._keys)))
        elif line.type == "saga_await":
            self._questions.wait(line, self._keys)
        else:
            text = f"the orchestrator knows no {line.type[:128]!a}"
            raise BadLine(text, line.caller, Code.NOT_SUPPORTED)

    def _complain(self, caller: Caller | None, code: int, text: str) -> None:
        self._bad_lines += 1
        if caller is not None and caller.msg_id is not None:
            self._out.error(caller, code, text)
        else:
            LOG.warning(f"line {self._line_number}: {text}")

    def _refused(self, asker: Asker, why: Refusal) -> None:
        self._bad_lines += 1
        if asker.caller.msg_id is not None:
            self._out.error(asker.caller, code_of(why), str(why))
        else:
            verb = asker.request.verb if isinstance(asker.request, ToSaga) else "begin"
            LOG.warning(f"saga_{verb} of {asker.saga_id} was refused: {why}", extra={"saga_id": asker.saga_id})

    def _follow(self) -> None:
        def turn() -> None:
            self._unsent.send_again(self._keys)
            self._follower.turn()
            self._look_and_tend()
            if self._out.gone:
                self.stop()

        self._outage.keep(turn, self._look_and_tend)

    def _look_and_tend(self) -> None:
        """See, about once a second, whether the store has lost what this bridge told of."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_EVERY_S
            run(self._broker.client, self._lineage.look(self._keys, b"", None))
        self._tend()

    def _tend(self) -> None:
        self._outage.restore()
        self._own_stack.tend(self._keys)

    def _drain(self) -> None:
        """Wait for the end of the sagas that were begun here, as long as is allowed. Log which have not ended."""
        left = self._follower.wait_until_answered(self._drain_timeout_s, self._stop)
        if not left or self._stop.is_set() or self._out.gone:
            return
        states, _ = self._outage.patiently(lambda: run(self._broker.client, sagas.load_there(self._keys, left)))
        parked = [state for state in states.values() if isinstance(state, SagaState) and state.parked]
        going = [saga_id for saga_id in left if saga_id not in {state.saga_id for state in parked}]
        if going:
            client = self._broker.client
            keys = self._keys
            alive = not self._own_stack.runs and self._outage.patiently(lambda: _worker_is_alive(client, keys))
            names = ", ".join(going[:5]) + (", …" if len(going) > 5 else "")
            then = "they go on by themselves" if alive else "they go on when a worker runs: sagastream worker"
            LOG.warning(f"not ended within {self._drain_timeout_s:g} s, and safe in the store: {names} ({then})")

    def _guard(self, target: Callable[[], None]) -> None:
        """Run the work of a thread. An error ends the whole bridge, not only the thread."""
        try:
            target()
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._fault = error
            self.stop()


def _worker_is_alive(client: redis.Redis, keys: StoreKeys) -> bool:
    """False, too, if the node of a cluster is away that knows it."""
    try:
        return heartbeat.worker_is_alive(client, keys)
    except redis.RedisError as error:
        if not passes_over(client, error):
            raise
        return False


def _durable(line: Line) -> bool:
    """Whether a saga_begin is to be answered, once a replica has it."""
    durable = line.body.get(DURABLE)
    if durable not in (None, "replica"):
        raise MalformedMessage('durable must be "replica"')
    return durable is not None
