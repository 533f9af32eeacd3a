"""Random graphs on real processes: somebody signals to them, an operator helps those that are parked, and the verdict
compares what they say with what the services did."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.failures import is_outage
from sagastream.client import requests
from sagastream.client.blocking import SagaClient
from sagastream.core.messages import ToSaga, Verb
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState
from sagastream.errors import RequestRefused, StoreFull
from support import graph_services, oracle, random_graphs
from support.faults import Plan, Process, Scale, World
from support.processes import Commands
from support.random_graphs import Fate, Graph, Sends, Task
from support.servers import OwnServer, start_server
from support.waiting import until

MODULE: Final = "support.graph_services"
#: The steps after these could begin.
_LETS_ON: Final = (Phase.COMPLETED, Phase.SKIPPED, Phase.BYPASSED, Phase.COMPENSATED, Phase.UNDO_SKIPPED)


class GraphWorld(World):
    """A world whose sagas are graphs."""

    def __init__(self, server: OwnServer, commands: Commands, scale: Scale, *, partitions: int = 1) -> None:
        super().__init__(server, commands, scale, partitions=partitions)
        graph_services.prepare(self.oracle)
        self.seed = "graphs"
        self.hasty = False
        self.graphs: dict[str, Graph] = {}
        self.taken: set[tuple[str, str]] = set()  # saga and name of the signals that were taken
        self._attendant: _Attendant | None = None

    def begin(self, number: int, client: SagaClient, stop: threading.Event) -> None:
        made = random_graphs.graph(number, self.seed, hasty=self.hasty)
        body: Any = made.body(int(time.time() * 1000))
        while not stop.is_set():
            try:
                client.begin_request(requests.to_begin(body))
            except (redis.RedisError, StoreFull) as error:
                if isinstance(error, redis.RedisError) and not is_outage(error):
                    raise
                self.figures["begins sent again"] += 1
                stop.wait(0.02)
            else:
                self._plans[made.saga_id] = Plan(saga_id=made.saga_id, steps=[], expected=None)  # type: ignore[arg-type]
                self.graphs[made.saga_id] = made
                return

    def assert_all_live(self) -> None:
        """… but for services that a handler has killed: a supervisor starts them again."""
        if self._attendant is not None and self._attendant.error is not None:
            raise self._attendant.error
        for process in (*self.workers, *self.services):
            if (code := process.now.poll()) is None:
                continue
            assert process in self.services, f"{process.arguments} has ended\n{self.tail()}"
            assert code == -signal.SIGKILL, f"{process.arguments} has ended with {code}\n{self.tail()}"
            self.figures["killed by a handler"] += 1
            self._commands.running.remove(process.now)
            process.now = self._spawn(process.release, process.arguments)

    def replace(self, process: Process) -> None:
        try:
            super().replace(process)
        except AssertionError:
            if process.now.returncode != -signal.SIGKILL:  # unless a handler has killed it first
                raise

    def settle(self, timeout_s: float = 200.0) -> None:
        """Wait until every saga has ended, and nothing is left to be read."""

        def is_settled() -> bool:
            self.assert_all_live()
            live = sum(self.redis.zcard(one.timers) for one in self.keys.partitions)
            return not live and not any(self.redis.xlen(stream) for stream in self.streams())

        try:
            until(is_settled, what="all sagas end", timeout_s=timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._stuck()}\n{self.tail()}") from None

    def _stuck(self) -> str:
        client = SagaClient(self.server.broker())
        found = [client.get(saga_id) for saga_id in self.graphs]
        return "\n".join(f"{one}\n{client.why(one.saga_id)}" for one in found if one is not None and not one.ended)

    @contextlib.contextmanager
    def attended(self) -> Iterator[None]:
        """Within this, signals are sent, and an operator cancels sagas and helps those that are parked."""
        attendant = self._attendant = _Attendant(self)
        thread = threading.Thread(target=attendant.run)
        thread.start()
        try:
            yield
        finally:
            attendant.stop.set()
            thread.join()
        self.assert_all_live()

    # --- the verdict

    def verdict(self, *, unfit: tuple[str, ...] = ()) -> None:
        self.settle()
        self._told = graph_services.told(self.oracle)
        super().verdict(unfit=unfit)
        self.figures["steps"] = sum(len(made.nodes) for made in self.graphs.values())

    def _judge(self, wanted: Plan, state: SagaState, record: oracle.Record) -> None:
        made = self.graphs[state.saga_id]
        told = f"{state.saga_id} {state.status}, {record}\n{made}\n{state}"
        assert str(state.status) in made.expected, told
        assert len(record.did) == len(set(record.did)), f"an effect was there twice: {told}"
        assert len(record.undid) == len(set(record.undid)), f"an effect was undone twice: {told}"
        for node, step in zip(made.nodes, state.steps, strict=True):
            self.figures[f"steps {step.phase}"] += 1
            self._judge_step(state, made, node.number, record, told)
        self._judge_order(made, state, record, told)
        self._judge_told(made, state, told)

    def _judge_step(self, state: SagaState, made: Graph, number: int, record: oracle.Record, told: str) -> None:
        told = f"step {number}: {told}"
        node, step = made.nodes[number - 1], state.steps[number - 1]
        effect = number in record.effects
        calls = record.calls.get(number, 0)
        if not node.sends or step.phase in (Phase.BYPASSED, Phase.WAITING, Phase.SKIPPED):
            assert not calls, f"it was called all the same, {told}"
        if step.phase is Phase.BYPASSED:
            assert node.fate is Fate.BYPASSED, told
        if any(state.steps[one - 1].phase not in _LETS_ON for one in node.before):
            assert step.phase is Phase.WAITING, f"it began before those before it were done: {told}"
        if str(state.status) == "COMPLETED":
            wanted = {Fate.DONE: Phase.COMPLETED, Fate.BYPASSED: Phase.BYPASSED, Fate.SKIPPED: Phase.SKIPPED}
            assert step.phase is wanted[node.fate], told
            assert effect is (node.sends and node.fate is Fate.DONE), told
            assert number not in record.undid, told
            if node.fate is Fate.DONE:
                assert step.result_value == (node.result if node.has_result else None), told
        elif step.phase is Phase.COMPENSATED:
            assert not effect, f"an effect remains: {told}"
            assert record.undid.count(number) == record.did.count(number), told
        elif step.phase is Phase.UNDO_SKIPPED:
            assert node.undo_cannot_be_told, told
        elif step.phase is Phase.COMPLETED:
            assert not node.is_undoable, f"it was not undone: {told}"
            assert effect is node.sends, told
        elif step.phase is Phase.IN_DOUBT:
            assert not node.is_undoable, told
        else:
            assert step.phase in (Phase.FAILED, Phase.WAITING, Phase.BYPASSED), told
            assert not effect, f"an effect remains: {told}"

    def _judge_order(self, made: Graph, state: SagaState, record: oracle.Record, told: str) -> None:
        """Nothing was done before what comes before it, or undone before what comes after it."""
        for number, ancestors in enumerate(made.ancestors(), 1):
            for before in ancestors:
                if number in record.did and before in record.did:
                    assert record.did.index(before) < record.did.index(number), f"{before}, {number} done: {told}"
                if before in record.undid and number in record.undid:
                    at = record.undid.index
                    assert at(number) < at(before), f"{before} was undone before {number}: {told}"
                if before in state.compensating_steps and number in state.compensating_steps:
                    at = state.compensating_steps.index
                    assert at(number) < at(before), f"the undo of {before} began before that of {number}: {told}"
        assert len(set(state.compensating_steps)) == len(state.compensating_steps), told

    def _judge_told(self, made: Graph, state: SagaState, told: str) -> None:
        """Every call of a handler was told what the references find, and each time the same."""
        failed = None if state.failed_step is None else state.steps[state.failed_step - 1]
        for node, step in zip(made.nodes, state.steps, strict=True):
            done = self._told.get(f"{state.saga_id}/{node.number}/transaction", [])
            undone = self._told.get(f"{state.saga_id}/{node.number}/compensation", [])
            for one in (*done, *undone):
                assert one["params"] == node.params, f"step {node.number} was told {one}: {told}"
                assert one["input"] == made.input, f"step {node.number} was told {one}: {told}"
            # It is built once. The result may be heard of later, if the step was given up.
            mine = next((one["undo"]["mine"] for one in undone if one["undo"]), None)
            if undone and not node.uncertain:
                assert mine == (None if undone[0]["result"] is None else node.number) or not undone[0]["undo"], told
            for one in undone:
                undo = None
                if "compensation_params" in node.body:
                    name = None if state.failed_step is None else made.nodes[state.failed_step - 1].body.get("id")
                    undo = {
                        "why": state.reason,
                        "failed": name or state.failed_step,
                        "error": None if failed is None else failed.error_value,
                        "mine": mine,
                        "evil": made.input["evil"],
                    }
                assert one["undo"] == undo, f"the undo of step {node.number} was told {one}, not {undo}: {told}"
            if node.task is not None and node.task.when in (Sends.EARLY, Sends.IN_TIME) and not node.sends:
                taken = (state.saga_id, node.task.name) in self.taken
                assert step.phase is not Phase.COMPLETED or taken, f"step {node.number} needs a signal: {told}"


class _Attendant:
    """Whoever signals to sagas, and the operator, in a thread of its own."""

    def __init__(self, world: GraphWorld) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._world = world
        self._live: dict[str, list[Task]] = {}  # the signals that are still to be sent
        self._cancelled: set[str] = set()
        self._known = 0
        self._requests: dict[tuple[str, str], ToSaga] = {}  # sent, and perhaps taken

    def run(self) -> None:
        try:
            with contextlib.closing(Broker(self._world.server.url)) as broker:
                client = SagaClient(broker)
                while not self.stop.is_set():
                    self._look_for_new()
                    for saga_id in list(self._live):
                        self._attend(client, saga_id)
                    self.stop.wait(0.03)
        except BaseException as error:  # noqa: BLE001 - raised again where the world is left
            self.error = error

    def _look_for_new(self) -> None:
        made = list(self._world.graphs.values())
        for one in made[self._known :]:
            self._live[one.saga_id] = list(random_graphs.tasks(one))
        self._known = len(made)

    def _attend(self, client: SagaClient, saga_id: str) -> None:
        made = self._world.graphs[saga_id]
        try:
            for task in [task for task in self._live[saga_id] if _is_sent_at_once(task, made)]:
                self._signal(client, saga_id, task)
            state = client.get(saga_id)
            if state is None:
                return
            self._look_for_more_retries(made, state)
            for task in list(self._live[saga_id]):
                if self._is_time(task, state):
                    self._signal(client, saga_id, task)
            if state.ended:
                del self._live[saga_id]
                return
            if made.cancel and saga_id not in self._cancelled and len(state.completed_steps) >= len(state.steps) // 2:
                self._cancelled.add(saga_id)
                self._ask(client, Verb.CANCEL, state, None, now=made.cancel == "now")
            for number in state.parked_steps:
                self._help(client, made, state, number)
        except redis.RedisError as error:
            if not is_outage(error):
                raise

    def _look_for_more_retries(self, made: Graph, state: SagaState) -> None:
        """A step that was sent again at a signal has timed out as often as it may, and waits for another signal."""
        for node, step in zip(made.nodes, state.steps, strict=True):
            task = node.task
            if step.phase is not Phase.RETRY_AWAITED or task is None or task in self._live[made.saga_id]:
                continue
            if task.when in (Sends.EARLY, Sends.IN_TIME):
                del self._requests[made.saga_id, task.name]
                self._live[made.saga_id].append(task)

    def _is_time(self, task: Task, state: SagaState) -> bool:
        phase = state.steps[task.step - 1].phase
        if task.when is Sends.LATE:
            return phase is Phase.COMPLETED
        if task.when is Sends.AFTER_RETRY:
            return phase is Phase.AWAITING and state.steps[task.step - 1].attempt > 1
        if task.when is Sends.EARLY and phase in (Phase.OUT, Phase.BACKING_OFF):
            return True  # it may be sent again by a signal, and has not failed yet
        return phase in (Phase.AWAITING, Phase.RETRY_AWAITED)

    def _signal(self, client: SagaClient, saga_id: str, task: Task) -> None:
        figures, key = self._world.figures, (saga_id, task.name)
        decline = "no" if task.when is Sends.DECLINED else None
        payload = None if decline else task.payload
        request = self._requests.setdefault(
            key, requests.to_signal(saga_id, task.name, payload, decline=decline, actor="boss")
        )
        try:
            client.intervene(request, 60)
        except RequestRefused as error:
            figures[f"signals {task.when}: refused"] += 1
            if task.when is Sends.AFTER_RETRY:
                del self._requests[key]  # it came too late once more
                return
            state = client.get(saga_id)
            goes_back = state is None or state.cancelling or str(state.status) in ("COMPENSATING", "ABORTED")
            node = self._world.graphs[saga_id].nodes[task.step - 1]
            is_done = state is not None and node.sends and state.steps[node.number - 1].completed  # by another delivery
            gets_there = node.fate is Fate.DONE and not node.uncertain and not is_done  # … and needs the signal
            if task.when is not Sends.LATE and gets_there and not goes_back:
                raise AssertionError(f"{task} was refused: {error}, {state}") from None
        else:
            figures[f"signals {task.when}: taken"] += 1
            assert task.when is not Sends.LATE, f"{saga_id} took a signal that came too late: {task}"
            self._world.taken.add(key)
        self._live[saga_id].remove(task)

    def _help(self, client: SagaClient, made: Graph, state: SagaState, number: int) -> None:
        node, step = made.nodes[number - 1], state.steps[number - 1]
        skips = node.undo_cannot_be_told if step.being_undone else node.fate is Fate.SKIPPED
        self._ask(client, Verb.SKIP if skips else Verb.RETRY, state, number)

    def _ask(self, client: SagaClient, verb: Verb, state: SagaState, number: int | None, *, now: bool = False) -> None:
        place = None if number is None else state.parked_place(number)
        request = requests.to_intervene(verb, state.saga_id, "as I see it", parked_at=place, step=number, now=now)
        self._world.figures[f"{verb} asked"] += 1
        with contextlib.suppress(RequestRefused):  # it has moved meanwhile
            client.intervene(request, 60)


def _is_sent_at_once(task: Task, made: Graph) -> bool:
    """Whether it is sent as soon as the saga is there. A signal to send a step again is for a command that is out."""
    return task.when is Sends.EARLY and not made.nodes[task.step - 1].sends


@contextlib.contextmanager
def graph_world_of(
    scale: Scale, folder: Path, commands: Commands, *, kind: str = "valkey", partitions: int = 1
) -> Iterator[GraphWorld]:
    """A world of graphs on a server of its own, in this folder. All of it has ended afterwards."""
    server = start_server(kind, folder, OwnServer)
    try:
        made = GraphWorld(server, commands, scale, partitions=partitions)
        yield made
        made.close()
    finally:
        commands.end()
        server.stop()
