"""A worker, a service and a client in the test's own process, on a real server: the test moves them turn by turn."""

import threading
import uuid
from collections.abc import Callable
from typing import Any

from sagastream import Context, Reject, Service
from sagastream.broker.connection import Broker
from sagastream.client.blocking import SagaClient
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.saga import SagaState
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store import published
from sagastream.store.keys import StoreKeys
from sagastream.telemetry import Observer
from support.streams import append_requests
from support.waiting import until


class Effects:
    """The service `work`, which does and undoes things and keeps a list of it: the oracle of a test."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.undone: list[str] = []
        self.service = Service("work")
        self.service.command("Do", compensation="Undo")(self._do)
        self.service.compensation("Undo")(self._undo)
        self.service.command("DoForGood", compensation=None)(self._do)

    def _do(self, params: Any, context: Context) -> Any:
        if params == "fail":
            raise Reject("as asked")
        self.done.append(context.key)
        return params

    def _undo(self, params: Any, context: Context) -> None:
        self.undone.append(context.transaction_key)


class Scene:
    """A worker, a service and a client."""

    def __init__(self, broker: Broker, *, observer: Observer | None = None) -> None:
        self.broker = broker
        self.redis = broker.client
        self.effects = Effects()
        self.client = SagaClient(broker)
        self.stop = threading.Event()
        self.worker = Orchestrator(broker, self.stop, observer=observer)
        published.publish(broker.client, StoreKeys(broker.prefix, ["0"]), "work", self.effects.service.publishes())
        self.runner = ServiceRunner(broker, self.effects.service, self.stop, observer=observer)

    def another_worker(self) -> Orchestrator:
        return Orchestrator(self.broker, self.stop)

    def another_runner(self) -> ServiceRunner:
        return ServiceRunner(self.broker, self.effects.service, self.stop)

    def begin(self, saga_id: str, *steps: dict[str, Any], deadline_ms: int | None = None, **options: Any) -> str:
        """Ask for a saga. Returns the id of the request."""
        options = {"request_id": uuid.uuid4().hex} | options
        body: dict[str, Any] = {"saga_id": saga_id, "steps": list(steps)}
        if deadline_ms:
            body |= {"deadline_ms": deadline_ms, "deadline": options.pop("deadline", "soft")}
        append_requests(self.redis, [parse_begin(body, **options)])
        return str(options["request_id"])

    def hold_more(self) -> int:
        """Have the process of the service hold the commands that one reading brings, without calling a handler. Returns
        how many it holds."""
        self.runner._executor.hold(self.runner._inbox.read(1))
        return self.runner.held

    def play(self, saga_id: str) -> SagaState:
        """Let all move until the saga has ended or is parked."""

        def settled() -> SagaState | None:
            self.worker.turn(block_ms=1)
            self.runner.turn(block_ms=1)
            state = self.client.get(saga_id)
            return state if state and (state.ended or state.parked) else None

        return until(settled, what=f"{saga_id} settles")

    def turns_until(self, condition: Callable[[], bool], *workers: Orchestrator) -> None:
        def turned() -> bool:
            for worker in workers or (self.worker,):
                worker.turn(block_ms=1)
            return condition()

        until(turned, what="the workers get there")


def do(params: Any = None, name: str = "Do", service: str = "work", **more: Any) -> Any:
    """One step: a StepRequest, with the changes in `more`. It is tried a few times, so that a test sees the end."""
    attempts = 10 if more.get("kind") == "retriable" else 3
    few = {"attempts": attempts, "compensation_attempts": 10}
    return {"transaction": name, "service": service, "params": params} | few | more
