"""Damaged data in the store. Whatever stands in a field of any hash, and whatever type a key has: no process ends, and
what is not damaged goes on."""

import contextlib
import json
import subprocess
import textwrap
from collections.abc import Iterator
from typing import Any, Final

import pytest
import redis

from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaStatus
from sagastream.service.records import Records
from sagastream.service.runner import Worked
from sagastream.store.quarantine import Quarantine
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

SHOP: Final = textwrap.dedent("""
    import os
    from sagastream import Reject, Service, connect

    service = Service("work", lease_ms=200)

    @service.command("Do", compensation="Undo")
    def do(params, context):
        if params == "wait":
            with connect() as db:
                db.set("waits", 1)
                db.blpop("go", 30)
        if params == "fail":
            raise Reject("as asked")
        return params

    @service.compensation("Undo")
    def undo(params, context):
        pass
""")

#: What may stand in a field.
DAMAGE: Final = (
    *(b"", b"0", b"-1", b"1", b"01", b"1.5", b"1e3", b"x", b" 7", b"NaN", b"nan", b"inf", b"0x10", b"null", b"?"),
    *(b"9" * 6, b"9" * 15, b"9" * 18, b"9" * 19, b"9" * 30, b"9" * 5000, b"-" + b"9" * 18, b"-" + b"9" * 30),
    *(
        b"\xff",
        b"\x00",
        b"ok",
        b"ok ",
        b"ok x",
        b"ok \xff",
        b"ok {",
        b"failed",
        b"failed ",
        b"failed \xff",
        b"ok 1e999",
    ),
    *(b"unknown", b"unknown ", b"unknown x", b"unknown -1", b"unknown 1e308", b"unknown nan", b"unknown 0x7"),
    *(b"[" * 1000 + b"]" * 1000, b"ok " + b"[" * 1000, b"(none)", b"Undo", b"\x1b[2J", b"x" * 100_000),
)

WORK: Final = ONLY.commands("work")


class Stage:
    """A worker and a process of the service `work`."""

    def __init__(self, server: Server, commands: Commands) -> None:
        (commands.folder / "shop.py").write_text(SHOP)
        self.client = SagaClient(server.broker())
        self.redis: redis.Redis = server.broker().client
        self._log = commands.folder / "log"
        with self._log.open("wb") as log:
            options: Any = {"env": {"REDIS_URL": server.url}, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.processes = [
                commands.start(*arguments, **options) for arguments in (("worker",), ("service", "shop:service"))
            ]
        self._good = 0
        self.is_well()

    def is_well(self) -> None:
        """The processes live, and a saga is done and another one undone."""
        self._good += 1
        for name, last in (("done", 2), ("undone", "fail")):
            self.client.begin(f"{name}-{self._good}", [do(1), do(last)])
        ended = [self.client.wait(f"{name}-{self._good}", 60).status for name in ("done", "undone")]
        assert ended == [SagaStatus.COMPLETED, SagaStatus.ABORTED]
        assert [process.poll() for process in self.processes] == [None, None]

    def times_said(self, text: str) -> int:
        """How often the processes have said this."""
        return self._log.read_text().count(text)

    def connect_again(self) -> None:
        """Have all processes join the store again."""
        self.redis.client_kill_filter(_type="normal", skipme=True)

    def deliver(self, saga_id: str, begun_ms: int = 1, **fields: Any) -> bytes:
        """A command of which somebody has died. Returns the id of its entry."""
        compensating = saga_id.endswith("undo")
        body: dict[str, Any] = {"type": "Undo" if compensating else "Do", "saga_id": saga_id, "step": 1}
        body |= {"compensating": True} if compensating else {"params": 1}
        pipeline = self.redis.pipeline()
        entry: dict[Any, Any] = {"body": json.dumps(body), "begun_ms": begun_ms} | fields
        pipeline.xadd(WORK, entry)
        pipeline.xreadgroup("work", "dead", {WORK: ">"})
        entry_id: bytes = pipeline.execute()[0]
        return entry_id

    def all_is_answered(self) -> None:
        until(lambda: self.redis.xlen(WORK) == 0, what="every command is answered or set aside")


@pytest.fixture
def stage(server: Server, commands: Commands) -> Iterator[Stage]:
    try:
        yield Stage(server, commands)
    finally:
        commands.end()


def test_no_field_of_the_records_ends_a_process(stage: Stage) -> None:
    for number, value in enumerate(DAMAGE):
        for field in ("", "/takeovers", "/undos", "(void)"):
            for direction in ("do", "undo"):
                saga_id = f"{number}.{len(field)}.{direction}"
                kind, name = ("compensation", "Undo") if direction == "undo" else ("transaction", "Do")
                record = f"{saga_id}/1/{kind}/{name}"
                damaged: Any = {
                    "": {record: value},
                    "/takeovers": {f"{record}/takeovers": value},
                    # The step was undone, so that the command is undone, and that is counted.
                    "/undos": {f"{record}/undos/{number + 1}-1": value, f"{saga_id}/1/transaction/(void)": "1"},
                    "(void)": {f"{saga_id}/1/transaction/(void)": value},
                }[field]
                stage.redis.hset(ONLY.done("work", 1), mapping=damaged)
                stage.deliver(saga_id)
    stage.all_is_answered()
    stage.is_well()


@pytest.mark.parametrize("kind", ["string", "list", "set", "zset", "stream"])
def test_records_of_another_type_set_their_commands_aside_and_hold_up_no_other(stage: Stage, kind: str) -> None:
    key, hour_ms = ONLY.done("work", 1), 3600 * 1000
    stage.redis.xadd(WORK, {"body": '{"type":"Do","saga_id":"waits","step":1,"params":"wait"}', "begun_ms": 1})
    until(lambda: stage.redis.exists("waits"), what="a handler runs")
    make(stage.redis, key, kind)
    stage.deliver("claimed.do")
    stage.deliver("claimed.undo")
    stage.redis.xadd(WORK, {"body": '{"type":"Do","saga_id":"new","step":1,"params":1}', "begun_ms": 1})
    beside = stage.deliver("beside.do", hour_ms)
    stage.redis.rpush("go", 1)
    stage.all_is_answered()
    aside = list(Quarantine(stage.redis, KEYS).newest_first())
    text = f"its answer cannot be recorded: {key} is not a hash; delete that key, then replay this entry"
    assert [message.reason for message in aside if message.stream == WORK] == [text] * 4
    assert beside.decode() not in {message.entry_id for message in aside}
    stage.is_well()
    # A person does as the reason says.
    stage.redis.delete(key)
    for message in aside:
        if message.stream == WORK:
            Quarantine(stage.redis, KEYS).replay(message.id)
    stage.redis.rpush("go", 1)
    stage.all_is_answered()
    stage.is_well()
    assert b"waits/1/transaction/Do" in stage.redis.hkeys(key)


def test_no_field_of_what_is_published_ends_a_process(stage: Stage) -> None:
    for value in DAMAGE:
        stage.redis.hset(KEYS.published("work"), mapping={b"Do": value, value: value, b"(Undo)": value, b"Fly": value})
        stage.redis.hset(KEYS.published("nobody"), mapping={value: value})
    stage.client.begin("strange", [do(1), do(2, "Fly", attempts=1, timeout_ms=1000)])
    stage.connect_again()
    until(lambda: stage.redis.hget(KEYS.published("work"), "Do") == b"Undo", what="it is published again")
    stage.is_well()
    assert stage.client.wait("strange", 60).parked  # what undoes Fly cannot be read


@pytest.mark.parametrize("key", [KEYS.published("work"), KEYS.alive, "saga:running"])
@pytest.mark.parametrize("kind", ["string", "list", "set", "hash", "stream"])
def test_a_key_of_another_type_ends_no_process(stage: Stage, key: str, kind: str) -> None:
    make(stage.redis, key, kind)
    stage.connect_again()
    stage.client.begin("done", [do(1)])
    assert stage.client.wait("done", 60).status is SagaStatus.COMPLETED
    assert [process.poll() for process in stage.processes] == [None, None]
    stage.redis.delete(key)
    stage.connect_again()
    stage.is_well()


def test_processes_that_know_the_layout_go_on_without_it(stage: Stage) -> None:
    stage.redis.rename(KEYS.store, "aside")
    stage.redis.set(KEYS.store, "x")
    stage.connect_again()
    stage.redis.xadd(WORK, {"body": '{"type":"Do","saga_id":"s1","step":1,"params":1}', "begun_ms": 1})
    stage.all_is_answered()
    until(lambda: stage.redis.xlen(ONLY.replies("work")) == 0, what="the worker reads the reply")
    stage.redis.rename("aside", KEYS.store)
    stage.is_well()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (ONLY.timers, f"the store cannot be reached: {ONLY.timers} is a string, not a zset: something else has"),
        (ONLY.events, f"the store cannot be reached: {ONLY.events} is a string, not a stream: something else has"),
        (ONLY.requests, f"{ONLY.requests} is not a stream: it is not read, until it is one or is gone"),
        (ONLY.replies("work"), f"answers cannot be sent: {ONLY.replies('work')} is not a stream: something else has"),
        (WORK, f"{WORK} is not a stream: it is not read, until it is one or is gone"),
    ],
)
def test_a_key_that_all_sagas_need_is_told_of_once_and_ends_no_process(
    stage: Stage, server: Server, commands: Commands, key: str, said: str
) -> None:
    kept: Any = stage.redis.dump(key)
    make(stage.redis, key, "string")
    stage.connect_again()
    if key == ONLY.events:
        stage.client.begin("begun", [do(1)])
    if key == ONLY.replies("work"):
        stage.redis.xadd(WORK, {"body": '{"type":"Do","saga_id":"s1","step":1,"params":1}', "begun_ms": 1})
    until(lambda: stage.times_said(said), what="it is told")
    if key == ONLY.timers:
        listed = commands.run("list", REDIS_URL=server.url)
        assert (listed.returncode, listed.stdout) == (1, "")
        assert f"{key} is a string, not a zset: something else has written there. Rename that key" in listed.stderr
    stage.redis.delete(key)
    if kept is not None:
        stage.redis.restore(key, 0, kept)
    stage.is_well()
    assert stage.times_said(said) == 1
    assert stage.times_said("The others go on") == 0


def test_no_begin_is_refused_because_the_heartbeat_cannot_be_read(server: Server) -> None:
    """Then the other worker looks like one of an earlier release, which would not know a saga that waits."""
    scene = Scene(server.broker())
    other = scene.another_worker()
    for worker in (other, scene.worker):
        worker.turn(block_ms=1)
    make(scene.redis, KEYS.alive, "string")
    scene.begin("s1", {"wait_ms": 1})
    scene.turns_until(lambda: scene.client.get("s1") is not None or scene.redis.xlen(ONLY.quarantine) > 0)
    assert scene.redis.xlen(ONLY.quarantine) == 0


def test_a_job_whose_answer_cannot_be_sent_is_not_done_again(server: Server) -> None:
    """On RQ, the process of a job is asked for it again and again until its answer is sent."""
    scene = Scene(server.broker())
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.redis.xlen(WORK) == 1)
    scene.redis.xgroup_create(WORK, "work", id="0")
    held: Any = scene.redis.xreadgroup("work", "dispatcher", {WORK: ">"})
    [[_, [[entry_id, _]]]] = held
    replies, runner = ONLY.replies("work"), scene.another_runner()
    make(scene.redis, replies, "string")
    for _ in range(3):
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            runner.work_on(entry_id, again=False)
    assert scene.effects.done == ["s1/1/transaction"]
    scene.redis.delete(replies)

    def is_answered() -> bool:
        with contextlib.suppress(redis.ResponseError):  # damaged keys are not tried at once again
            assert runner.work_on(entry_id, again=False) is Worked.ANSWERED_BEFORE
            return True
        return False

    until(is_answered, what="the answer is sent")
    assert scene.redis.xlen(replies) == 1
    assert scene.effects.done == ["s1/1/transaction"]


def test_no_field_of_the_store_and_nothing_that_says_who_is_alive_ends_a_process(stage: Stage) -> None:
    stage.redis.hset(KEYS.store, mapping={value: value for value in DAMAGE})
    stage.redis.hset("saga:running", mapping={value: value for value in DAMAGE})
    for number, value in enumerate(DAMAGE):
        stage.redis.zadd(KEYS.alive, {value: number, b'{"name":"n","kind":"worker","commands":%s}' % value: 10**18})
    stage.redis.zadd(KEYS.alive, {"-inf": float("-inf"), "inf": float("inf")})
    stage.connect_again()
    stage.is_well()


@pytest.mark.parametrize("kind", ["string", "list", "set", "zset", "stream"])
def test_a_saga_whose_key_has_another_type_ends_no_process(stage: Stage, kind: str) -> None:
    make(stage.redis, ONLY.saga("odd"), kind)
    stage.redis.zadd(ONLY.timers, {"odd": 0})
    stage.deliver("odd")
    stage.all_is_answered()
    stage.is_well()


@pytest.mark.parametrize("value", DAMAGE)
@pytest.mark.parametrize("by", [1, -1])
def test_what_cannot_be_a_count_counts_as_none(server: Server, value: bytes, by: int) -> None:
    client = server.broker().client
    client.hset("counts", "n", value)
    found = Records(client).count("counts", "n", by)
    plausible = value in (b"0", b"1", b"9" * 6) and 0 <= int(value) + by < 10**6
    assert found == (int(value) + by if plausible else max(by, 0))
    assert client.hget("counts", "n") == b"%d" % found


def make(client: redis.Redis, key: str, kind: str) -> None:
    """Put a value of this type in the place of a key."""
    client.delete(key)
    match kind:
        case "string":
            client.set(key, "x")
        case "list":
            client.rpush(key, "x")
        case "set":
            client.sadd(key, "x")
        case "zset":
            client.zadd(key, {"x": 1})
        case "hash":
            client.hset(key, "x", "x")
        case _:
            client.xadd(key, {"x": "x"})
