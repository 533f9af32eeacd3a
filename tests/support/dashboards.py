"""A store with sagas in every state that the dashboard shows, and a dashboard of it that listens."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sagastream.client.definition import Definition
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.saga import SagaState
from sagastream_bridge.dashboard.rules import Names
from sagastream_bridge.dashboard.server import DashboardServer
from support.scenes import Scene, do
from support.stores import KEYS
from support.streams import append_requests
from support.waiting import until

#: Text that would do harm on a page or on a terminal.
HOSTILE: Final = "<script>window.hurt=1</script><img src=x onerror=window.hurt=1>\"' \x1b[31m\u202e{{7*7}}"
PIVOT: Final = do("paid", "DoForGood", kind="pivot", compensation=None)


def definition(version: int = 1) -> Definition:
    """An order, with a graph that has every form of step."""
    body = {
        "name": "order",
        "version": version,
        "example": {"customer": "c42", "lines": [{"sku": "a"}, {"sku": "b"}]},
        "steps": [
            {"id": "reserve", "transaction": "Do", "service": "work", "params": {"$ref": "/input/customer"}},
            {"id": "approval", "wait": "approve", "timeout_ms": 86_400_000, "after": ["reserve"]},
            {"id": "stock", "transaction": "Do", "service": "work", "params": 1, "after": ["reserve"]},
            {
                "id": "charge",
                "transaction": "DoForGood",
                "service": "work",
                "kind": "pivot",
                "params": {},
                "after": ["approval", "stock"],
            },
            {
                "id": "ship",
                "transaction": "Do",
                "service": "work",
                "kind": "retriable",
                "params": 2,
                "after": ["charge"],
            },
        ],
    }  # fmt: skip
    return Definition.from_json(json.dumps(body))


class Shop:
    """A scene whose store has a bit of everything."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def begin_graph(self, saga_id: str, *steps: dict[str, Any], **members: Any) -> None:
        body = {"saga_id": saga_id, "format": 2, "input": {}, "steps": list(steps)} | members
        append_requests(self.scene.redis, [parse_begin(body, request_id=f"begin-{saga_id}")])

    def until(self, saga_id: str, what: str) -> SagaState:
        """Let all move until a saga is so: ended, parked, or waiting for something else."""
        scene = self.scene

        def reached() -> SagaState | None:
            scene.worker.turn(block_ms=1)
            scene.runner.turn(block_ms=1)
            state = scene.client.get(saga_id)
            if state is None:
                return None
            is_so = {"ended": state.ended, "parked": state.parked is not None, "begun": True}
            return state if is_so.get(what, state.steps[-1].phase == what) else None

        return until(reached, what=f"{saga_id} is {what}")

    def fill(self) -> None:
        """A saga of each kind."""
        scene = self.scene
        for number in range(3):
            scene.begin(f"done-{number}", do(number), do({"order": number}, "DoForGood", compensation=None))
            self.until(f"done-{number}", "ended")
        scene.begin("went-back", do({"amount": 5}), do("fail"))
        self.until("went-back", "ended")
        for number in range(2):
            scene.begin(f"parked-{number}", PIVOT, do("fail", kind="retriable", attempts=1))
            self.until(f"parked-{number}", "parked")
        self.begin_graph(
            "branches",
            PIVOT | {"id": "paid", "after": []},
            do("fail", id="told", kind="retriable", attempts=1, after=[1]),
            do({"to": "Lagos"}, id="away", service="away", kind="retriable", after=[1]),
            do({"to": "Osaka"}, id="near", kind="retriable", after=[1]),
            do(None, id="end", kind="retriable", after=[2, 3, 4]),
            attributes={"customer": "c42", "shop": 3},
        )
        self.until("branches", "parked")
        self.begin_graph("waits", do(1, id="first", after=[]), {"wait": "approve", "timeout_ms": 600_000, "after": [1]})
        self.until("waits", "AWAITING")
        scene.begin("lonely", do({"to": "nobody"}, service="away"))
        self.until("lonely", "begun")
        scene.redis.xadd(KEYS.partitions[0].interventions, {"body": '{"type":"saga_fly","saga_id":"done-0"}'})
        scene.redis.xadd(KEYS.partitions[0].requests, {"body": "no JSON"})
        scene.turns_until(lambda: scene.redis.xlen(KEYS.partitions[0].quarantine) == 2)
        scene.client.deploy(definition(), actor="ada@works")
        scene.client.deploy(definition(2), actor="ada@works")
        scene.client.begin(definition(2), {"customer": "c7"}, saga_id="order-1", attributes={"customer": "c7"})
        self.until("order-1", "begun")

    @contextmanager
    def moving(self) -> Iterator[None]:
        """A worker and a service that are at work meanwhile, in threads."""
        stop, scene = threading.Event(), self.scene

        def work() -> None:
            while not stop.is_set():
                scene.worker.turn(block_ms=20)
                scene.runner.turn(block_ms=20)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def listening(scene: Scene, *, token: str | None = None, allow_actions: bool = False) -> Iterator[DashboardServer]:
    """A dashboard of the scene's store, at a port of its own."""
    stop = threading.Event()
    server = DashboardServer(
        scene.broker,
        host="127.0.0.1",
        port=0,
        names=Names.of("127.0.0.1"),
        token=token,
        allow_actions=allow_actions,
    )
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join()
