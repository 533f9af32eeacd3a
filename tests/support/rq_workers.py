"""RQ workers as a team runs them, and a scene whose service runs on RQ."""

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rq.job import Job
from rq.serializers import JSONSerializer

from sagastream import Service
from sagastream.broker.connection import Broker
from sagastream.core.saga import SagaState
from sagastream.rq_steps.dispatcher import on_rq
from sagastream.rq_steps.queues import SERVICES_VARIABLE
from sagastream.rq_steps.server import RqServer
from sagastream.service.runner import ServiceRunner
from sagastream.store import layout, published
from support.scenes import Scene
from support.waiting import until

RQ = str(Path(sys.executable).with_name("rq"))


SHOP = """
import asyncio, logging, os, signal
from sagastream import Reject, Service, connect

service = Service("work", lease_ms=2000)


def note(what):
    with connect() as db:
        db.rpush("effects", what)


@service.command("Do", compensation="Undo", via="rq", queue="steps", concurrency=3)
def do(params, context):
    if params == "fail":
        raise Reject("as asked")
    with connect() as db:
        db.rpush("begun", os.getpid())
        if params == "wait":
            while not db.blpop("go", 1):
                pass
        if params == "die" and context.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    note(f"done {context.key}")
    return params


@service.compensation("Undo", via="rq", queue="steps")
def undo(params, context):
    note(f"undone {context.transaction_key}")


@service.command("Later", compensation=None, via="rq", queue="steps")
async def later(params, context):
    await asyncio.sleep(0)
    return params


@service.command("Swallow", compensation=None, via="rq", queue="steps", timeout_s=1)
def swallow(params, context):
    while True:
        try:
            connect().blpop("never", 5)
        except Exception:
            pass


@service.command("Now", compensation=None)
def now(params, context):
    return params


@service.command("Tell", compensation=None, via="rq", queue="steps")
def tell(params, context):
    logging.getLogger("shop.till").info("telling %s\\x1b[1m", params)


@service.command("Ask", compensation="Unask", via="rq", queue="steps")
def ask(params, context):
    return [context.input, context.definition]


@service.compensation("Unask", via="rq", queue="steps")
def unask(params, context):
    note(f"{params} {context.input} {context.definition} {context.undo}")


service.command("Charge", call="jobs.charge", compensation="Refund", via="rq", queue="steps")
service.compensation("Refund", call="jobs.refund", via="rq", queue="steps")
"""

JOBS = """
from rq import get_current_job
from sagastream import connect


def charge(user, amount=1):
    with connect() as db:
        db.rpush("effects", f"charged {user} {amount} as {get_current_job().id}")
    if amount > 10:
        raise ValueError("too much")
    return {"charged": amount}


async def refund(user, amount=1):
    with connect() as db:
        db.rpush("effects", f"refunded {user} {amount}")
"""


#: An older release of the same service: it has no Do.
OLDER = """
from sagastream import Service

service = Service("work", lease_ms=2000)
service.command("Later", compensation=None, via="rq", queue="steps")(lambda params, context: params)
"""


class Fleet:
    """RQ workers as a team runs them, in a folder with their modules."""

    def __init__(self, folder: Path, url: str, **env: str) -> None:
        self.folder = folder
        self.env = os.environ | {"REDIS_URL": url, SERVICES_VARIABLE: "shop:service", "PYTHONDONTWRITEBYTECODE": "1"}
        self.env |= env
        self.workers: list[subprocess.Popen[bytes]] = []
        (folder / "shop.py").write_text(SHOP)
        (folder / "jobs.py").write_text(JOBS)
        (folder / "older.py").write_text(OLDER)

    def worker(self, *options: str, queue: str = "steps", services: str | None = None) -> "subprocess.Popen[bytes]":
        with (self.folder / "rq.log").open("ab") as log:
            worker = subprocess.Popen(
                [RQ, "worker", "-w", "sagastream.rq_runner.SagaWorker", *options, queue],
                cwd=self.folder,
                env=self.env if services is None else self.env | {SERVICES_VARIABLE: services},
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    @property
    def said(self) -> str:
        return (self.folder / "rq.log").read_text()

    def end(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()


class Stage(Scene):
    """A scene whose service `work` runs on RQ."""

    def __init__(self, broker: Broker, fleet: Fleet) -> None:
        """Of the environment: where RQ is."""
        super().__init__(broker)
        self.rq = RqServer(broker).client
        spec = importlib.util.spec_from_file_location("shop", fleet.folder / "shop.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.service: Service = module.service
        self.fleet = fleet
        published.publish(self.redis, layout.look(self.broker), "work", self.service.publishes())
        self.runner = self.dispatcher()

    def dispatcher(self) -> ServiceRunner:
        return ServiceRunner(self.broker, self.service, threading.Event(), dispatcher=on_rq(self.broker, self.service))

    def effects_on_rq(self) -> list[str]:
        found: Any = self.redis.lrange("effects", 0, -1)
        return [effect.decode() for effect in found]

    def all_until(self, condition: Callable[[], Any], *, what: str) -> Any:
        def turned() -> Any:
            self.worker.turn(block_ms=1)
            self.runner.turn(block_ms=1)
            return condition()

        return until(turned, what=what)

    def begun(self, times: int = 1) -> int:
        """Wait until a handler has begun for the nth time; the pid of its work horse."""
        self.all_until(lambda: self.redis.llen("begun") >= times, what=f"handler {times} begins")
        pids: Any = self.redis.lrange("begun", 0, -1)
        return int(pids[times - 1])

    def job(self, saga_id: str, direction: str = "transaction") -> Job:
        return Job.fetch(f"saga-work-{saga_id}-1-{direction}", connection=self.rq, serializer=JSONSerializer)

    def state(self, saga_id: str) -> SagaState:
        state = self.client.get(saga_id)
        assert state is not None
        return state
